#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>

#include "attention/elements.h"
#include "attention/mask.h"
#include "attention/panel.h"
#include "attention/plan.h"
#include "attention/tile.h"

// A tile of keys and values as the products read it: blocks of our own cache as they lie in memory, or
// panels made of int8 blocks or of a user's layout.
namespace ridgeline {
namespace {

struct KvTile {
    Panel panels[kTilePanels];
    Panel ahead[kTilePanels];  // a tile further on, where that is met too and lies in memory as it is read
    alignas(64) float multipliers[kTileKeys];   // of the scores
    alignas(64) float value_scales[kTileKeys];  // int8 only
    uint8_t* keys;                              // memory for panels that are made
    uint8_t* values;
    int first, last;                                // panels [first, last) are loaded
    enum class Finite { unknown, yes, no } finite;  // all their values, once that was asked for
};

/// Bytes of a panel of keys or of values as the products read it.
template <class Number>
int64_t made_key_bytes(const KvLayout& layout) {
    return layout.padded_dim() / Number::kStep * kStepBytes;
}
template <class Number>
int64_t made_value_bytes(const KvLayout& layout) {
    return layout.padded_value_dim() * kPanelKeys / Number::kStep * 4;
}

inline StoredPanel stored_panel(const Attention& call, const Item& item, int64_t key) {
    const int32_t* table = call.sequences.table(item.sequence);
    return call.source.layout.panel(call.source.blocks, table, key, item.kv_head);
}

/// n bytes as bf16; asks for as many at `ahead`.
inline void expand(const uint8_t* from, const uint8_t* ahead, int64_t n, uint8_t* to) {
    for (int64_t i = 0; i < n; i += 2 * Arch::kLanes) {
        __builtin_prefetch(ahead + i);
        Arch::int8_to_bf16(reinterpret_cast<const int8_t*>(from) + i, reinterpret_cast<uint16_t*>(to) + i);
    }
}

/// Where keys [key, key + count) of a user's layout lie.
inline void find_rows(const Attention& call, const HeadRows& x, const Item& item, int64_t key, int64_t count,
                      const uint8_t** rows) {
    const int64_t page_tokens = call.source.plain.page_tokens, row_bytes = x.row * element_bytes(x.dtype);
    while (count > 0) {
        int64_t n = count;
        const uint8_t* at;
        if (page_tokens == 0) {
            at = vector_at(x, item.sequence, item.first_key, key, item.kv_head);
        } else {
            const int64_t page = key / page_tokens, token = key - page * page_tokens;
            n = std::min(n, page_tokens - token);
            at = vector_at(x, call.sequences.table(item.sequence)[page], 0, token, item.kv_head);
        }
        for (int64_t i = 0; i < n; ++i) rows[i] = at + i * row_bytes;
        rows += n, key += n, count -= n;
    }
}

/// Asks for `count` rows of `bytes` bytes: hardware doesn't foresee rows that are far apart.
inline void ask_for_rows(const uint8_t* const* rows, int64_t count, int64_t bytes) {
    for (int64_t i = 0; i < count; ++i)
        for (int64_t at = 0; at < bytes; at += 64) __builtin_prefetch(rows[i] + at);
}

/// Makes the tile's panels, from key `key` on, of a user's layout; rows go on to be met up to `end`.
template <class Number>
void make_panels(const Attention& call, const Item& item, int64_t key, int64_t keys, int64_t end,
                 KvTile& tile) {
    const KvLayout& layout = call.source.layout;
    constexpr int64_t most = kTileKeys + kPanelKeys;  // one panel more, to be asked for
    const uint8_t *key_rows[most], *value_rows[most];
    const int64_t tile_end = key + (tile.last - tile.first) * kPanelKeys;
    const int64_t count = std::min(tile_end, keys) - key;
    const int64_t asked = std::max(count, std::min(tile_end + kPanelKeys, end) - key);
    find_rows(call, call.source.plain.keys, item, key, asked, key_rows);
    find_rows(call, call.source.plain.values, item, key, asked, value_rows);
    for (int p = tile.first; p < tile.last; ++p) {
        const int64_t begin = (p - tile.first) * kPanelKeys, next = begin + kPanelKeys;
        const int64_t wanted = std::clamp<int64_t>(asked - next, 0, kPanelKeys);
        ask_for_rows(key_rows + next, wanted, layout.dim * layout.element_bytes());
        ask_for_rows(value_rows + next, wanted, layout.value_dim * layout.element_bytes());
        uint8_t* panel_keys = tile.keys + p * made_key_bytes<Number>(layout);
        uint8_t* panel_values = tile.values + p * made_value_bytes<Number>(layout);
        const int64_t there = std::min<int64_t>(kPanelKeys, count - begin);
        lay_keys(key_rows + begin, there, layout.dim * layout.element_bytes(), panel_keys);
        lay_values(Number{}, value_rows + begin, there, layout.value_dim, layout.padded_value_dim(),
                   panel_values);
        tile.panels[p] = tile.ahead[p] = {panel_keys, panel_values};
    }
}

/// Makes panel `p` of a stored int8 one, and asks for the one that is met next.
template <class Number>
void expand_panel(const KvLayout& layout, const StoredPanel& stored, const StoredPanel& next, int p,
                  KvTile& tile) {
    uint8_t* keys = tile.keys + p * made_key_bytes<Number>(layout);
    uint8_t* values = tile.values + p * made_value_bytes<Number>(layout);
    expand(stored.keys, next.keys, layout.key_bytes(), keys);
    expand(stored.values, next.values, layout.value_bytes(), values);
    __builtin_prefetch(next.key_scales);
    __builtin_prefetch(next.value_scales);
    for (int i = 0; i < kPanelKeys; ++i) tile.multipliers[p * kPanelKeys + i] *= stored.key_scales[i];
    std::copy_n(stored.value_scales, kPanelKeys, tile.value_scales + p * kPanelKeys);
    tile.panels[p] = tile.ahead[p] = {keys, values};
}

/// Panel `p` as it lies in memory, and what it is followed by a tile later.
inline void find_panel(const Attention& call, const Item& item, int64_t key, int64_t end, int p,
                       KvTile& tile) {
    const StoredPanel stored = stored_panel(call, item, key);
    tile.panels[p] = tile.ahead[p] = {stored.keys, stored.values};
    if (key + kTileKeys >= end) return;
    const StoredPanel ahead = stored_panel(call, item, key + kTileKeys);
    tile.ahead[p] = {ahead.keys, ahead.values};
}

/// The panels of a view of the tile that begins at `first_key`; `keys` is how many the sequence has.
template <class Number>
void load_tile(const Attention& call, const Item& item, const TileView& view, int64_t first_key, int64_t keys,
               int64_t end, float multiplier, KvTile& tile) {
    std::fill_n(tile.multipliers, kTileKeys, multiplier);
    tile.first = static_cast<int>((view.begin - first_key) / kPanelKeys);
    tile.last = static_cast<int>((view.end - first_key) / kPanelKeys);
    tile.finite = KvTile::Finite::unknown;
    if (call.source.blocks == nullptr) return make_panels<Number>(call, item, view.begin, keys, end, tile);
    for (int p = tile.first; p < tile.last; ++p) {
        const int64_t key = first_key + p * kPanelKeys;
        if (call.source.layout.format == KvFormat::int8) {
            const int64_t next = key + kPanelKeys < std::min(end, keys) ? key + kPanelKeys : key;
            expand_panel<Number>(call.source.layout, stored_panel(call, item, key),
                                 stored_panel(call, item, next), p, tile);
        } else {
            find_panel(call, item, key, end, p, tile);
        }
    }
}

}  // namespace
}  // namespace ridgeline
