#pragma once

#include <algorithm>
#include <cstdint>

#include "attention/job.h"

namespace ridgeline {

/// The keys that a query sees: [0, sinks) and [begin, end). Both grow with the query's position.
struct Seen {
    int64_t sinks;
    int64_t begin;
    int64_t end;
};

/// What the query at `position` sees of `keys` keys.
inline Seen seen_at(const Mask& mask, int64_t position, int64_t keys) {
    const int64_t before = mask.causal ? std::clamp<int64_t>(position + 1, 0, keys) : keys;
    const int64_t right = mask.causal ? 0 : mask.right;
    const int64_t end = right < 0 ? keys : std::clamp<int64_t>(position + right + 1, 0, keys);
    const int64_t begin = mask.left < 0 ? 0 : std::clamp<int64_t>(position - mask.left, 0, end);
    return {std::min(mask.sinks, before), begin, end};
}

/// What queries see of a tile of keys.
struct TileView {
    int64_t begin, end;  // whole panels; none of the queries sees a key of the tile outside of them
    bool full;           // each query sees each of these keys

    bool empty() const { return begin >= end; }
};

/// Of keys [begin, end), for queries of which the first sees `first` and the last sees `last`.
inline TileView view_tile(const Seen& first, const Seen& last, int64_t begin, int64_t end) {
    const int64_t window_begin = std::max(begin, first.begin), window_end = std::min(end, last.end);
    const bool sinks = begin < last.sinks;
    TileView view{sinks ? begin : window_begin, begin, false};
    if (sinks) view.end = std::min(end, last.sinks);
    if (window_begin < window_end) view.end = std::max(view.end, window_end);
    view.begin = view.begin / kPanelKeys * kPanelKeys;
    view.end = (view.end + kPanelKeys - 1) / kPanelKeys * kPanelKeys;
    const int64_t all_begin = last.begin <= first.sinks ? 0 : last.begin;
    view.full = view.end <= first.sinks || (all_begin <= view.begin && view.end <= first.end);
    return view;
}

/// The first tile from `tile` on, of `tile_keys` keys each, that may hold a key seen by such queries.
inline int64_t next_tile(const Seen& first, const Seen& last, int64_t tile, int64_t tile_keys) {
    return tile * tile_keys < last.sinks ? tile : std::max(tile, first.begin / tile_keys);
}

}  // namespace ridgeline
