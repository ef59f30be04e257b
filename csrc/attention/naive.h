#pragma once

#include <algorithm>
#include <cstdint>

#include "attention/tile_step.h"

// Attention as its formula reads: the scores of all rows and keys in memory, their softmax, and their
// product with the values.
namespace ridgeline {
namespace {

/// f(view, block, first_key) for the tiles of keys and the blocks of rows that see some of them.
template <class Number, class Function>
void each_tile_block(Run<Number>& run, const Function& f) {
    for (int64_t first_key = 0; first_key < run.rows.keys; first_key += kTileKeys) {
        const TileView all = run.view(0, run.rows.count(), first_key);
        if (all.empty()) continue;
        run.load(all, first_key, run.rows.keys);
        for (int64_t block = 0; block < run.blocks.count; ++block) {
            const TileView view = run.view(run.blocks.begin(block), run.blocks.begin(block + 1), first_key);
            if (!view.empty()) f(view, block, first_key);
        }
    }
}

inline int64_t whole_tiles(int64_t keys) { return (keys + kTileKeys - 1) / kTileKeys * kTileKeys; }

template <class Number>
void run_naive(Run<Number>& run) {
    const int64_t rows = run.rows.count(), keys = whole_tiles(run.rows.keys);
    const RunningState& state = run.work.running;
    pack_queries<Number>(run.call, run.item, run.rows, run.work.queries);
    clear(state, rows, run.width);
    std::fill_n(run.work.all_scores, rows * keys, kNoScore);
    each_tile_block(run, [&](const TileView& view, int64_t block, int64_t first_key) {
        make_scores(run, block, view, first_key);
        for (int r = 0; r < run.blocks.size(block); ++r) {
            const float* row = run.work.scores + r * kTileKeys;
            std::copy(row + view.begin - first_key, row + view.end - first_key,
                      run.work.all_scores + (run.blocks.begin(block) + r) * keys + view.begin);
        }
    });
    for (int64_t row = 0; row < rows; ++row)
        state.largest[row] = largest_score(run.work.all_scores + row * keys, 0, keys);
    each_tile_block(run, [&](const TileView& view, int64_t block, int64_t first_key) {
        for (int r = 0; r < run.blocks.size(block); ++r) {
            const int64_t row = run.blocks.begin(block) + r;
            run.work.rescale[r] = 1.0f;
            weigh<Number>(run.work.all_scores + row * keys + first_key, view.begin - first_key,
                          view.end - first_key, reference_score(state.largest[row]), run.value_scales(),
                          state.sums + row * Arch::kLanes, run.work.weights + r * kWeightBytes<Number>);
        }
        add_values(run, block, view, first_key);
    });
    clear(run.work.total, rows, run.width);
    merge(run.work.total, close(state, rows), rows, run.width);
    for (int64_t row = 0; row < rows; ++row) write_row(run, row);
}

}  // namespace
}  // namespace ridgeline
