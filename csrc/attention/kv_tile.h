#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>

#include "attention/elements.h"
#include "attention/mask.h"
#include "attention/plan.h"
#include "attention/tile.h"

// A tile of keys and values as the products read it: blocks of our own cache as they lie in memory, or
// panels made of int8 blocks or of a user's layout.
namespace ridgeline {
namespace {

struct KvTile {
    Panel panels[kTilePanels];
    alignas(64) float multipliers[kTileKeys];   // of the scores
    alignas(64) float value_scales[kTileKeys];  // int8 only
    uint8_t* keys;                              // memory for panels that are made
    uint8_t* values;
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

inline const uint8_t* record_of(const Attention& call, const Item& item, int64_t key) {
    const Sequences& all = call.sequences;
    const int64_t block = all.tables[item.sequence * all.table_stride + key / kPanelKeys];
    const KvLayout& layout = call.source.layout;
    return call.source.blocks + block * layout.block_bytes() + item.kv_head * layout.record_bytes();
}

inline void expand(const uint8_t* from, int64_t n, uint8_t* to) {
    for (int64_t i = 0; i < n; i += Arch::kLanes)
        Arch::int8_to_bf16(reinterpret_cast<const int8_t*>(from) + i, reinterpret_cast<uint16_t*>(to) + i);
}

/// 32 rows of words become columns: [32][words] -> [words][32]; rows from `count` on are zeros.
inline void transpose_rows(const uint8_t* const* rows, int64_t count, int64_t bytes, uint8_t* to) {
    constexpr int lanes = Arch::kLanes;
    const int64_t words = (bytes + 3) / 4;
    for (int64_t lane = 0; lane < kPanelKeys; lane += lanes)
        for (int64_t word = 0; word < words; word += lanes) {
            const int64_t there = std::min<int64_t>(lanes * 4, bytes - word * 4);
            Arch::I square[lanes];
            for (int i = 0; i < lanes; ++i) {
                if (lane + i >= count) {
                    square[i] = Arch::set_int(0);
                } else if (there == lanes * 4) {
                    square[i] = Arch::load_int(rows[lane + i] + word * 4);
                } else {
                    uint8_t part[lanes * 4] = {};
                    std::memcpy(part, rows[lane + i] + word * 4, there);
                    square[i] = Arch::load_int(part);
                }
            }
            Arch::transpose(square);
            for (int64_t i = 0; i < std::min<int64_t>(lanes, words - word); ++i)
                Arch::store_int(to + (word + i) * kStepBytes + lane * 4, square[i]);
        }
}

/// Value rows as they are, padded with zeros.
inline void lay_values(Fp32, const uint8_t* const* rows, int64_t count, int64_t dim, int64_t width,
                       uint8_t* to) {
    for (int64_t key = 0; key < kPanelKeys; ++key, to += width * 4) {
        const int64_t n = key < count ? dim : 0;
        if (n > 0) std::memcpy(to, rows[key], n * 4);
        std::memset(to + n * 4, 0, (width - n) * 4);
    }
}

/// Pairs of value rows, element by element.
inline void lay_values(Bf16, const uint8_t* const* rows, int64_t count, int64_t dim, int64_t width,
                       uint8_t* to) {
    static constexpr uint16_t kZeros[kMostDim] = {};
    for (int64_t key = 0; key < kPanelKeys; key += 2, to += width * 4) {
        const auto row = [&](int64_t at) {
            return at < count ? reinterpret_cast<const uint16_t*>(rows[at]) : kZeros;
        };
        const uint16_t *first = row(key), *second = row(key + 1);
        int64_t i = 0;
        for (; i + Arch::kLanes <= dim; i += Arch::kLanes) {
            const Arch::I low = Arch::template shift_right<16>(Arch::bits(Arch::load_bf16(first + i)));
            Arch::store_int(to + i * 4, Arch::or_int(low, Arch::bits(Arch::load_bf16(second + i))));
        }
        for (; i < dim; ++i) {
            std::memcpy(to + i * 4, first + i, 2);
            std::memcpy(to + i * 4 + 2, second + i, 2);
        }
        std::memset(to + dim * 4, 0, (width - dim) * 4);
    }
}

/// Where keys [key, key + count) of a user's layout lie.
inline void plain_rows(const Attention& call, const HeadRows& x, const Item& item, int64_t key,
                       int64_t count, const uint8_t** rows) {
    const int64_t page_tokens = call.source.plain.page_tokens;
    const Sequences& all = call.sequences;
    for (int64_t i = 0; i < count; ++i) {
        const int64_t at = key + i;
        if (page_tokens == 0) {
            rows[i] = vector_at(x, item.sequence, item.first_key, at, item.kv_head);
        } else {
            const int64_t page = all.tables[item.sequence * all.table_stride + at / page_tokens];
            const int64_t offset = page * x.sequence + at % page_tokens * x.row + item.kv_head * x.head;
            rows[i] = static_cast<const uint8_t*>(x.data) + offset * element_bytes(x.dtype);
        }
    }
}

/// Makes panel `p` of the tile, whose first key is `key`, of a user's layout.
template <class Number>
void make_panel(const Attention& call, const Item& item, int64_t key, int64_t count, int p, KvTile& tile) {
    const KvLayout& layout = call.source.layout;
    const uint8_t* rows[kPanelKeys];
    uint8_t* keys = tile.keys + p * made_key_bytes<Number>(layout);
    uint8_t* values = tile.values + p * made_value_bytes<Number>(layout);
    plain_rows(call, call.source.plain.keys, item, key, count, rows);
    transpose_rows(rows, count, layout.dim * layout.element_bytes(), keys);
    plain_rows(call, call.source.plain.values, item, key, count, rows);
    lay_values(Number{}, rows, count, layout.value_dim, layout.padded_value_dim(), values);
    tile.panels[p] = {keys, values};
}

/// Makes panel `p` of an int8 block.
template <class Number>
void expand_panel(const KvLayout& layout, const uint8_t* record, int p, KvTile& tile) {
    uint8_t* keys = tile.keys + p * made_key_bytes<Number>(layout);
    uint8_t* values = tile.values + p * made_value_bytes<Number>(layout);
    expand(record, layout.key_bytes(), keys);
    expand(record + layout.key_bytes(), layout.value_bytes(), values);
    float scales[kPanelKeys];
    std::memcpy(scales, record + layout.key_scales_at(), sizeof scales);
    for (int i = 0; i < kPanelKeys; ++i) tile.multipliers[p * kPanelKeys + i] *= scales[i];
    std::memcpy(tile.value_scales + p * kPanelKeys, record + layout.value_scales_at(), sizeof scales);
    tile.panels[p] = {keys, values};
}

/// The panels of a view of the tile that begins at `first_key`.
template <class Number>
void load_tile(const Attention& call, const Item& item, const TileView& view, int64_t first_key,
               int64_t keys, float multiplier, KvTile& tile) {
    std::fill_n(tile.multipliers, kTileKeys, multiplier);
    for (int64_t key = view.begin; key < view.end; key += kPanelKeys) {
        const int p = static_cast<int>((key - first_key) / kPanelKeys);
        if (call.source.blocks == nullptr) {
            make_panel<Number>(call, item, key, std::min<int64_t>(kPanelKeys, keys - key), p, tile);
            continue;
        }
        const uint8_t* record = record_of(call, item, key);
        if (call.source.layout.format == KvFormat::int8)
            expand_panel<Number>(call.source.layout, record, p, tile);
        else
            tile.panels[p] = {record, record + call.source.layout.key_bytes()};
    }
}

}  // namespace
}  // namespace ridgeline
