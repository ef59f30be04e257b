#pragma once

#include <cstdint>

#include "attention/tile_step.h"

// Flash attention: tiles of keys are met in order inside splits of one absolute size, with a running softmax,
// and the states of the splits are merged in order. Both sizes count from key 0, so neither the rows
// of an item nor the threads change the order in which a row's sums are made.
namespace ridgeline {
namespace {

constexpr int kSplitTiles = 4;
constexpr int64_t kSplitKeys = kSplitTiles * kTileKeys;

template <class Number>
void meet_tile(Run<Number>& run, int64_t first_key) {
    const TileView all = run.view(0, run.rows.count(), first_key);
    if (all.empty()) return;
    run.load(all, first_key, run.item.split_end * kSplitKeys);
    for (int64_t block = 0; block < run.blocks.count; ++block) {
        const int64_t begin = run.blocks.begin(block), end = run.blocks.begin(block + 1);
        const TileView view = run.view(begin, end, first_key);
        if (view.empty()) continue;
        make_scores(run, block, view, first_key);
        meet_scores<Number>(run.work.scores, view.begin - first_key, view.end - first_key,
                            run.blocks.size(block), run.value_scales(),
                            run.work.running.row(begin, run.width), run.work.weights, run.work.rescale);
        add_values(run, block, view, first_key);
    }
}

/// The states of the item's rows over one split, in work.running.
template <class Number>
void meet_split(Run<Number>& run, int64_t split) {
    const Seen first = run.seen(0), last = run.seen(run.rows.count() - 1);
    clear(run.work.running, run.rows.count(), run.width);
    for (int64_t tile = split * kSplitTiles; tile < (split + 1) * kSplitTiles; ++tile) {
        tile = next_tile(first, last, tile, kTileKeys);
        if (tile >= (split + 1) * kSplitTiles || tile * kTileKeys >= run.rows.keys) return;
        meet_tile(run, tile * kTileKeys);
    }
}

/// f(split) for the splits that hold keys that the item's rows may see, in order.
template <class Number, class Function>
void each_split(const Run<Number>& run, const Function& f) {
    const Seen first = run.seen(0), last = run.seen(run.rows.count() - 1);
    for (int64_t split = run.item.split_begin;; ++split) {
        split = next_tile(first, last, split, kSplitKeys);
        if (split >= run.item.split_end) return;
        f(split);
    }
}

template <class Number>
void write_rows(const Run<Number>& run) {
    for (int64_t row = 0; row < run.rows.count(); ++row) write_row(run, row);
}

/// All splits of an item, to the end.
template <class Number>
void run_flash(Run<Number>& run) {
    const int64_t rows = run.rows.count();
    pack_queries<Number>(run.call, run.item, run.rows, run.work.queries);
    clear(run.work.total, rows, run.width);
    each_split(run, [&](int64_t split) {
        meet_split(run, split);
        merge(run.work.total, close(run.work.running, rows), rows, run.width);
    });
    write_rows(run);
}

/// Where the states of `rows` rows over a split are kept until they are merged, from `states` on.
inline State kept_state(float* states, int64_t split, int64_t rows, int64_t width) {
    float* at = states + split * rows * (width + 2);
    return {at, at + rows, at + 2 * rows};
}

/// The item's splits, to be merged with others later.
template <class Number>
void run_splits(Run<Number>& run, float* states) {
    const int64_t rows = run.rows.count();
    pack_queries<Number>(run.call, run.item, run.rows, run.work.queries);
    each_split(run, [&](int64_t split) {
        meet_split(run, split);
        const State state = close(run.work.running, rows);
        const State kept = kept_state(states, split, rows, run.width);
        std::copy_n(state.largest, rows, kept.largest);
        std::copy_n(state.sum, rows, kept.sum);
        std::copy_n(state.out, rows * run.width, kept.out);
    });
}

/// Merges what run_splits kept of all splits of an item, to the end.
template <class Number>
void merge_splits(Run<Number>& run, float* states) {
    const int64_t rows = run.rows.count();
    clear(run.work.total, rows, run.width);
    each_split(run, [&](int64_t split) {
        merge(run.work.total, kept_state(states, split, rows, run.width), rows, run.width);
    });
    write_rows(run);
}

}  // namespace
}  // namespace ridgeline
