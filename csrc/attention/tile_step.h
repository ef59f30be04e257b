#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

#include "attention/queries.h"
#include "attention/score.h"
#include "attention/workspace.h"

// What every schedule does with a tile: scores of a block of rows, and their weights times the values.
namespace ridgeline {
namespace {

/// An item, its rows and what it is computed in.
template <class Number>
struct Run {
    const Attention& call;
    const Item& item;
    QueryRows rows;
    RowBlocks blocks;
    Workspace<Number>& work;
    int64_t width;
    int64_t steps;

    Run(const Attention& call, const Item& item, Workspace<Number>& work)
        : call(call),
          item(item),
          rows(call, item),
          blocks(rows.count()),
          work(work),
          width(call.source.layout.padded_value_dim()),
          steps(call.source.layout.padded_dim() / Number::kStep) {}

    Seen seen(int64_t row) const { return seen_at(call.mask, rows.position(row), rows.keys); }
    /// What rows [begin, end) see of the tile whose first key is `first_key`.
    TileView view(int64_t begin, int64_t end, int64_t first_key) const {
        return view_tile(seen(begin), seen(end - 1), first_key, std::min(first_key + kTileKeys, rows.keys));
    }
    /// Loads a tile, of keys that these rows go on to meet up to `end`.
    void load(const TileView& view, int64_t first_key, int64_t end) {
        load_tile<Number>(call, item, view, first_key, rows.keys, std::min(end, rows.keys),
                          score_multiplier(call.score), *work.tile);
    }
    const float* value_scales() const {
        const bool scaled = call.source.blocks != nullptr && call.source.layout.format == KvFormat::int8;
        return scaled ? work.tile->value_scales : nullptr;
    }
};

inline int panel_of(int64_t key, int64_t first_key) {
    return static_cast<int>((key - first_key) / kPanelKeys);
}

/// Scores of a block of rows and the keys of its view, masked.
template <class Number>
void make_scores(const Run<Number>& run, int64_t block, const TileView& view, int64_t first_key) {
    const int R = run.blocks.size(block);
    const int64_t first_row = run.blocks.begin(block);
    kTileProducts<Number>.scores[R - 1]({run.work.queries + first_row * run.steps * 4, run.steps,
                                         run.work.tile->panels, run.work.tile->ahead,
                                         panel_of(view.begin, first_key), panel_of(view.end, first_key),
                                         run.work.tile->multipliers, run.work.scores});
    finish_scores(run.call, run.rows, first_row, R, view, first_key, run.work.scores);
}

/// Whether all values of a tile, and their scales, are finite: then a weight of 0 hides any of them.
template <class Number>
bool finite_values(const Run<Number>& run) {
    KvTile& tile = *run.work.tile;
    if (tile.finite != KvTile::Finite::unknown) return tile.finite == KvTile::Finite::yes;
    Arch::F sums[4] = {Arch::zero(), Arch::zero(), Arch::zero(), Arch::zero()};
    const int64_t bytes = made_value_bytes<Number>(run.call.source.layout);
    for (int p = tile.first; p < tile.last; ++p)
        for (int64_t i = 0; i < bytes; i += 16 * Arch::kLanes)
            unroll<4>([&](auto c) {
                const Arch::I values = Arch::load_int(tile.panels[p].values + i + c * 4 * Arch::kLanes);
                sums[c] = Number::dot(sums[c], values, Arch::set_int(0));
            });
    if (run.value_scales() != nullptr)
        for (int i = tile.first * kPanelKeys; i < tile.last * kPanelKeys; i += Arch::kLanes)
            sums[0] = Arch::fma(Arch::load(tile.value_scales + i), Arch::zero(), sums[0]);
    const float sum = Arch::reduce_sum(Arch::add(Arch::add(sums[0], sums[1]), Arch::add(sums[2], sums[3])));
    tile.finite = std::isnan(sum) ? KvTile::Finite::no : KvTile::Finite::yes;
    return !std::isnan(sum);
}

/// As add_values for one row of a block, which sees keys that are finite among others that are not: these
/// are taken as 0.
template <class Number>
void add_seen_values(const Run<Number>& run, int64_t row, int r, int first, int last, int64_t first_key) {
    const Seen seen = run.seen(row);
    const int64_t bytes = made_value_bytes<Number>(run.call.source.layout);
    constexpr int64_t step = Number::kStep, element = 4 / step;
    uint8_t* weights = run.work.weights + r * kWeightBytes<Number>;
    Panel panels[kTilePanels];
    for (int p = first; p < last; ++p) {
        uint8_t* values = run.work.seen_values + p * bytes;
        std::memcpy(values, run.work.tile->panels[p].values, bytes);
        panels[p].values = values;
        for (int64_t i = 0; i < kPanelKeys; ++i) {
            const int64_t key = first_key + p * kPanelKeys + i;
            if (key < seen.sinks || (seen.begin <= key && key < seen.end)) continue;
            std::memset(weights + (p * kPanelKeys + i) * element, 0, element);
            for (int64_t c = 0; c < run.width; ++c)
                std::memset(values + ((i / step * run.width + c) * step + i % step) * element, 0, element);
        }
    }
    kTileProducts<Number>.values[0]({weights, panels, panels, first, last, run.width, run.work.rescale + r,
                                     run.work.running.out + row * run.width});
}

/// Rescales the outputs of a block and adds the values of its view by their weights.
template <class Number>
void add_values(const Run<Number>& run, int64_t block, const TileView& view, int64_t first_key) {
    const int R = run.blocks.size(block);
    const int64_t first_row = run.blocks.begin(block);
    const int first = panel_of(view.begin, first_key), last = panel_of(view.end, first_key);
    // A weight of 0 times what is not finite would be NaN, so a key that only other rows see would show.
    if (view.full || finite_values(run)) {
        kTileProducts<Number>.values[R - 1]({run.work.weights, run.work.tile->panels, run.work.tile->ahead,
                                             first, last, run.width, run.work.rescale,
                                             run.work.running.out + first_row * run.width});
        return;
    }
    for (int r = 0; r < R; ++r) add_seen_values(run, first_row + r, r, first, last, first_key);
}

/// Writes a row's output and LSE.
template <class Number>
void write_row(const Run<Number>& run, int64_t row) {
    const State state{run.work.total.largest + row, run.work.total.sum + row,
                      run.work.total.out + row * run.width};
    const int64_t token = run.rows.token(row), head = run.rows.head(row);
    if (run.call.score.sinks != nullptr) add_sink(state, 0, run.width, run.call.score.sinks[head]);
    normalise(state.out, *state.sum, run.width);
    write_floats(state.out, vector_at(run.call.out, run.item.sequence, run.item.first_row, token, head),
                 run.call.out.dtype, run.call.source.layout.value_dim);
    if (run.call.lse.data == nullptr) return;
    const float lse = log_sum_exp(*state.largest, *state.sum);
    std::memcpy(vector_at(run.call.lse, run.item.sequence, run.item.first_row, token, head), &lse,
                sizeof lse);
}

}  // namespace
}  // namespace ridgeline
