#pragma once

#include <cstdint>

#include "linear/job.h"
#include "simd/unroll.h"

// Multiplying one tile: R rows against one panel of 32 outputs, into a float tile [R][32].
//
// Every output is one chain of operations over the inputs in their order, whatever R is, so a row
// gets the same bits alone and among others. Arch is one instruction set; see simd/avx512.h.
namespace ridgeline {
namespace {

/// Weights that are wanted soon, to be asked for while others are multiplied: `step` bytes a step. Two lines
/// of a step are asked for, and what lies beyond, scales for the most part, is left to the hardware.
struct Ahead {
    const uint8_t* at;
    int64_t step;

    [[gnu::always_inline]] void prefetch(int64_t steps) const {
        __builtin_prefetch(at + steps * step);
        __builtin_prefetch(at + steps * step + 64);
    }
};

/// What a tile is multiplied from.
struct Operands {
    const Layout& layout;
    const uint8_t* panel;
    const uint8_t* activations;  // [steps][R] times the bytes of a step, see prepare.h
    const int32_t* group_sums;   // int8 activations: [groups][R]
    float* tile;                 // [R][kPanel]
    Ahead ahead;
};

/// The strips of `strip` registers that make up a panel: f(first column).
template <int strip = Arch::kStrip, class F>
[[gnu::always_inline]] inline void each_strip(const F& f) {
    for (int column = 0; column < kPanel; column += Arch::kLanes * strip) f(column);
}

template <int R>
[[gnu::flatten]] void tile_fp32(const Operands& o) {
    each_strip([&](int column) {
        Arch::F acc[R][Arch::kStrip];
        unroll<R>([&](auto r) { unroll<Arch::kStrip>([&](auto c) { acc[r][c] = Arch::zero(); }); });
        const uint8_t* w = o.panel + column * 4;
        const uint8_t* a = o.activations;
        for (int64_t k = 0; k < o.layout.steps(); ++k, w += Layout::kStepBytes, a += R * 4) {
            o.ahead.prefetch(k);
            Arch::F weight[Arch::kStrip];
            unroll<Arch::kStrip>(
                [&](auto c) { weight[c] = Arch::from_bits(Arch::load_int(w + c * Arch::kLanes * 4)); });
            unroll<R>([&](auto r) {
                const Arch::F x = Arch::from_bits(Arch::set_bytes(a + r * 4));
                unroll<Arch::kStrip>([&](auto c) { acc[r][c] = Arch::fma(x, weight[c], acc[r][c]); });
            });
        }
        unroll<R>([&](auto r) {
            unroll<Arch::kStrip>(
                [&](auto c) { Arch::store(o.tile + r * kPanel + column + c * Arch::kLanes, acc[r][c]); });
        });
    });
}

/// acc += the products of `steps` pairs of inputs.
template <int R>
[[gnu::always_inline]] inline void multiply_bf16(Arch::F (&acc)[R][Arch::kStrip], const uint8_t* w,
                                                 const uint8_t* a, int64_t steps, Ahead ahead) {
    for (int64_t k = 0; k < steps; ++k, w += Layout::kStepBytes, a += R * 4) {
        ahead.prefetch(k);
        Arch::I weight[Arch::kStrip];
        unroll<Arch::kStrip>([&](auto c) { weight[c] = Arch::load_int(w + c * Arch::kLanes * 4); });
        unroll<R>([&](auto r) {
            const Arch::I x = Arch::set_bytes(a + r * 4);
            unroll<Arch::kStrip>([&](auto c) { acc[r][c] = Arch::dot_bf16(acc[r][c], weight[c], x); });
        });
    }
}

template <int R>
[[gnu::flatten]] void tile_bf16(const Operands& o) {
    each_strip([&](int column) {
        Arch::F acc[R][Arch::kStrip];
        unroll<R>([&](auto r) { unroll<Arch::kStrip>([&](auto c) { acc[r][c] = Arch::zero(); }); });
        multiply_bf16<R>(acc, o.panel + column * 4, o.activations, o.layout.steps(), o.ahead);
        unroll<R>([&](auto r) {
            unroll<Arch::kStrip>(
                [&](auto c) { Arch::store(o.tile + r * kPanel + column + c * Arch::kLanes, acc[r][c]); });
        });
    });
}

/// tile += scale acc, for one group of inputs.
template <int R>
[[gnu::always_inline]] inline void add_group(Arch::F (&acc)[R][Arch::kStrip], const uint8_t* scales,
                                             float* tile) {
    const uint16_t* fp16 = reinterpret_cast<const uint16_t*>(scales);
    unroll<Arch::kStrip>([&](auto c) {
        const Arch::F scale = Arch::load_fp16(fp16 + c * Arch::kLanes);
        unroll<R>([&](auto r) {
            float* to = tile + r * kPanel + c * Arch::kLanes;
            Arch::store(to, Arch::fma(acc[r][c], scale, Arch::load(to)));
        });
    });
}

template <int R>
[[gnu::always_inline]] inline void clear(float* tile) {
    for (int i = 0; i < R * kPanel; ++i) tile[i] = 0.0f;
}

template <int R>
[[gnu::always_inline]] inline void to_float(const Arch::I (&sums)[R][Arch::kStrip],
                                            Arch::F (&acc)[R][Arch::kStrip]) {
    unroll<R>([&](auto r) { unroll<Arch::kStrip>([&](auto c) { acc[r][c] = Arch::to_float(sums[r][c]); }); });
}

/// The sums of w times q in integers, which are exact: stored weights are q + offset, so the sum begins
/// at -offset times the sum of the row's q.
template <int R>
[[gnu::flatten]] void tile_int8(const Operands& o) {
    clear<R>(o.tile);
    each_strip([&](int column) {
        Arch::I sums[R][Arch::kStrip];
        unroll<R>([&](auto r) {
            unroll<Arch::kStrip>(
                [&](auto c) { sums[r][c] = Arch::set_int(-Arch::kInt8Offset * o.group_sums[r]); });
        });
        const uint8_t* w = o.panel + column * 4;
        const uint8_t* a = o.activations;
        for (int64_t k = 0; k < o.layout.steps(); ++k, w += Layout::kStepBytes, a += R * 4) {
            o.ahead.prefetch(k);
            Arch::I weight[Arch::kStrip];
            unroll<Arch::kStrip>([&](auto c) { weight[c] = Arch::load_int(w + c * Arch::kLanes * 4); });
            unroll<R>([&](auto r) {
                const Arch::I x = Arch::set_bytes(a + r * 4);
                unroll<Arch::kStrip>([&](auto c) { sums[r][c] = Arch::dot_int8(sums[r][c], weight[c], x); });
            });
        }
        Arch::F acc[R][Arch::kStrip];
        to_float<R>(sums, acc);
        add_group<R>(acc, o.panel + o.layout.group_bytes() - Layout::kScaleBytes + column * 2,
                     o.tile + column);
    });
}

/// The zero points of a group for one register of columns: stored nibbles are q, which stands for q - zero.
[[gnu::always_inline]] inline Arch::I zero_points(const Operands& o, int64_t group, int column) {
    const uint8_t* zeros = o.panel + o.layout.zero_points_at() + group * Layout::kZeroBytes;
    const Arch::I both = Arch::load_bytes(zeros + column % 16);
    return Arch::and_int(column < 16 ? both : Arch::template shift_right<4>(both), Arch::set_int(15));
}

/// Without zero points stored nibbles are q + 8.
constexpr int kInt4Offset = 8;

/// sums += the products of one half of the bytes at `w`, the nibbles above bit `shift`, and of R activations.
template <int shift, int R, int S>
[[gnu::always_inline]] inline void add_nibbles(Arch::I (&sums)[R][S], const uint8_t* w, const uint8_t* a,
                                               Arch::I low) {
    Arch::I weight[S];
    unroll<S>([&](auto c) {
        const Arch::I both = Arch::load_int(w + c * Arch::kLanes * 4);
        weight[c] = Arch::and_int(shift == 0 ? both : Arch::template shift_right<shift>(both), low);
    });
    unroll<R>([&](auto r) {
        const Arch::I x = Arch::set_bytes(a + r * 4);
        unroll<S>([&](auto c) { sums[r][c] = Arch::dot_nibble(sums[r][c], weight[c], x); });
    });
}

/// As tile_int8, group by group: integers inside a group, floats from group to group. Both are kept in
/// registers, since a group is short: with floats in memory, half of the time goes into fetching them.
template <int R, bool ZeroPoints>
[[gnu::flatten]] void tile_int4(const Operands& o) {
    constexpr int S = R * Arch::kStrip <= Arch::kNibbleAccumulators ? Arch::kStrip : 1;
    const Arch::I low = Arch::set_int(0x0f0f0f0f);
    const int64_t steps = o.layout.group_steps(), group_bytes = o.layout.group_bytes();
    each_strip<S>([&](int column) {
        Arch::F acc[R][S];
        unroll<R>([&](auto r) { unroll<S>([&](auto c) { acc[r][c] = Arch::zero(); }); });
        const uint8_t *w = o.panel + column * 4, *a = o.activations;
        int64_t step = 0;
        for (int64_t g = 0; g < o.layout.groups(); ++g) {
            const int32_t* group_sums = o.group_sums + g * R;
            Arch::I sums[R][S];
            unroll<R>([&](auto r) {
                const int start = ZeroPoints ? 0 : -kInt4Offset * group_sums[r];
                unroll<S>([&](auto c) { sums[r][c] = Arch::set_int(start); });
            });
            for (int64_t k = 0; k < steps; ++k, ++step, w += Layout::kStepBytes, a += R * 8) {
                o.ahead.prefetch(step);
                add_nibbles<0>(sums, w, a, low);
                add_nibbles<4>(sums, w, a + R * 4, low);
            }
            if constexpr (ZeroPoints)
                unroll<S>([&](auto c) {
                    const Arch::I zero = zero_points(o, g, column + c * Arch::kLanes);
                    unroll<R>([&](auto r) {
                        const Arch::I excess = Arch::mul_int(zero, Arch::set_int(group_sums[r]));
                        sums[r][c] = Arch::sub_int(sums[r][c], excess);
                    });
                });
            const uint8_t* scales = o.panel + (g + 1) * group_bytes - Layout::kScaleBytes + column * 2;
            unroll<S>([&](auto c) {
                const Arch::F scale =
                    Arch::load_fp16(reinterpret_cast<const uint16_t*>(scales) + c * Arch::kLanes);
                unroll<R>(
                    [&](auto r) { acc[r][c] = Arch::fma(Arch::to_float(sums[r][c]), scale, acc[r][c]); });
            });
            w += Layout::kScaleBytes;
        }
        unroll<R>([&](auto r) {
            unroll<S>(
                [&](auto c) { Arch::store(o.tile + r * kPanel + column + c * Arch::kLanes, acc[r][c]); });
        });
    });
}

}  // namespace
}  // namespace ridgeline
