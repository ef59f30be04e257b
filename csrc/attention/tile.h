#pragma once

#include <cstdint>
#include <initializer_list>
#include <utility>

#include "attention/layout.h"
#include "simd/unroll.h"

// The two matrix products of a tile: R query rows against panels of 32 keys, and their weights against
// the panels' values.
//
// A score is one chain of operations over the elements of a head in their order, an output one over the
// keys, whatever R is. So a row gets the same bits alone, as a decode, and among others, as a part of a
// prompt. Whatever the format, keys and values are words of 4 bytes: one float, or two bf16 that meet
// two others in one instruction.
namespace ridgeline {
namespace {

/// Keys whose scores are made before their weights: the unit of the running softmax.
constexpr int kTilePanels = 8;
constexpr int kTileKeys = kTilePanels * kPanelKeys;
/// Bytes of a step of a panel's keys: one word of each.
constexpr int64_t kStepBytes = 4 * kPanelKeys;

struct Fp32 {
    static constexpr int kStep = 1;
    [[gnu::always_inline]] static Arch::F dot(Arch::F acc, Arch::I w, Arch::I a) {
        return Arch::fma(Arch::from_bits(a), Arch::from_bits(w), acc);
    }
    static void store(uint8_t* words, int64_t i, Arch::F x) {
        Arch::store(reinterpret_cast<float*>(words) + i, x);
    }
};

struct Bf16 {
    static constexpr int kStep = 2;
    [[gnu::always_inline]] static Arch::F dot(Arch::F acc, Arch::I w, Arch::I a) {
        return Arch::dot_bf16(acc, w, a);
    }
    static void store(uint8_t* words, int64_t i, Arch::F x) {
        Arch::store_normal_bf16(reinterpret_cast<uint16_t*>(words) + i, x);
    }
};

/// Bytes of a row of weights.
template <class Number>
constexpr int64_t kWeightBytes = kTileKeys * 4 / Number::kStep;

/// Few rows wait for memory, so their tile asks for the next one while it is multiplied. Many rows find most
/// of it in the caches, and leave no time for asking.
template <int R>
constexpr bool kAskAhead = R <= 8;

/// 32 keys and their values as the products read them.
struct Panel {
    const uint8_t* keys;    // [steps][32] words
    const uint8_t* values;  // [32 / step][width] words
};

struct ScoreTile {
    const uint8_t* queries;  // [steps][R] words
    int64_t steps;
    const Panel* panels;
    const Panel* ahead;        // what comes next in the place of each panel, to be asked for
    int first, last;           // panels [first, last) of the tile
    const float* multipliers;  // [kTileKeys], of each key's score
    float* scores;             // [R][kTileKeys]
};

/// Asks for n registers from `at` on.
template <int n>
[[gnu::always_inline]] inline void ask(const uint8_t* at) {
    constexpr int line = 64, bytes = n * Arch::kLanes * 4;
    unroll<(bytes + line - 1) / line>([&](auto i) { __builtin_prefetch(at + i * line, 0, 3); });
}

template <class Number, int R>
[[gnu::flatten]] void multiply_keys(const ScoreTile& t) {
    for (int p = t.first; p < t.last; ++p)
        for (int column = 0; column < kPanelKeys; column += Arch::kLanes * Arch::kStrip) {
            Arch::F acc[R][Arch::kStrip];
            unroll<R>([&](auto r) { unroll<Arch::kStrip>([&](auto c) { acc[r][c] = Arch::zero(); }); });
            const uint8_t* w = t.panels[p].keys + column * 4;
            const uint8_t* a = t.queries;
            const uint8_t* ahead = t.ahead[p].keys + column * 4;
            for (int64_t k = 0; k < t.steps; ++k, w += kStepBytes, a += R * 4) {
                if constexpr (kAskAhead<R>) ask<Arch::kStrip>(ahead + k * kStepBytes);
                Arch::I key[Arch::kStrip];
                unroll<Arch::kStrip>([&](auto c) { key[c] = Arch::load_int(w + c * Arch::kLanes * 4); });
                unroll<R>([&](auto r) {
                    const Arch::I q = Arch::set_bytes(a + r * 4);
                    unroll<Arch::kStrip>([&](auto c) { acc[r][c] = Number::dot(acc[r][c], key[c], q); });
                });
            }
            const int64_t at = p * kPanelKeys + column;
            unroll<Arch::kStrip>([&](auto c) {
                const Arch::F multiplier = Arch::load(t.multipliers + at + c * Arch::kLanes);
                unroll<R>([&](auto r) {
                    Arch::store(t.scores + r * kTileKeys + at + c * Arch::kLanes,
                                Arch::mul(acc[r][c], multiplier));
                });
            });
        }
}

struct ValueTile {
    const uint8_t* weights;  // [R][kWeightBytes]
    const Panel* panels;
    const Panel* ahead;
    int first, last;
    int64_t width;         // of a value, a multiple of 16
    const float* rescale;  // [R], of what was summed so far
    float* out;            // [R][width]
};

/// C registers of columns of all rows.
template <class Number, int R, int C>
[[gnu::always_inline]] inline void multiply_columns(const ValueTile& t, int64_t column) {
    constexpr int steps = kPanelKeys / Number::kStep;
    Arch::F acc[R][C];
    unroll<R>([&](auto r) {
        const Arch::F rescale = Arch::set(t.rescale[r]);
        unroll<C>([&](auto c) {
            acc[r][c] = Arch::mul(Arch::load(t.out + r * t.width + column + c * Arch::kLanes), rescale);
        });
    });
    for (int p = t.first; p < t.last; ++p) {
        const uint8_t* w = t.panels[p].values + column * 4;
        const uint8_t* ahead = t.ahead[p].values + column * 4;
        const uint8_t* a = t.weights + p * steps * 4;
        for (int k = 0; k < steps; ++k, w += t.width * 4, a += 4) {
            if constexpr (kAskAhead<R>) ask<C>(ahead + k * t.width * 4);
            Arch::I value[C];
            unroll<C>([&](auto c) { value[c] = Arch::load_int(w + c * Arch::kLanes * 4); });
            unroll<R>([&](auto r) {
                const Arch::I weight = Arch::set_bytes(a + r * kWeightBytes<Number>);
                unroll<C>([&](auto c) { acc[r][c] = Number::dot(acc[r][c], value[c], weight); });
            });
        }
    }
    unroll<R>([&](auto r) {
        unroll<C>([&](auto c) { Arch::store(t.out + r * t.width + column + c * Arch::kLanes, acc[r][c]); });
    });
}

/// The columns from `column` on, C registers at a time and what is left in fewer.
template <class Number, int R, int C>
[[gnu::always_inline]] inline void multiply_rest(const ValueTile& t, int64_t column) {
    for (; column + C * Arch::kLanes <= t.width; column += C * Arch::kLanes)
        multiply_columns<Number, R, C>(t, column);
    if constexpr (C > 1) multiply_rest<Number, R, C / 2>(t, column);
}

/// Registers of columns at a time: what fits beside as many values and one weight. A few rows take a whole
/// value of 128 elements at once, and so read memory in its order.
template <int R>
constexpr int value_columns() {
    constexpr int registers = Arch::kMaxRows * Arch::kStrip + Arch::kStrip + 1;
    for (int columns : {8, 4})
        if (columns * (R + 1) + 1 <= registers) return columns;
    return 2;
}

template <class Number, int R>
[[gnu::flatten]] void multiply_values(const ValueTile& t) {
    multiply_rest<Number, R, value_columns<R>()>(t, 0);
}

/// The products of tiles of 1 .. kMaxRows rows, at [rows - 1].
template <class Number>
struct TileProducts {
    void (*scores[Arch::kMaxRows])(const ScoreTile&);
    void (*values[Arch::kMaxRows])(const ValueTile&);
};

template <class Number, int... i>
constexpr TileProducts<Number> tile_products(std::integer_sequence<int, i...>) {
    return {{multiply_keys<Number, i + 1>...}, {multiply_values<Number, i + 1>...}};
}

template <class Number>
inline constexpr TileProducts<Number> kTileProducts =
    tile_products<Number>(std::make_integer_sequence<int, Arch::kMaxRows>{});

}  // namespace
}  // namespace ridgeline
