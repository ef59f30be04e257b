#pragma once

#include <algorithm>
#include <cstdint>

#include "linear/tile.h"

// Integer weights against bf16 activations: a run of inputs at a time, the weights' integers, which
// bf16 holds exactly, are laid out as a bf16 panel; scales are applied to the run's sum.
namespace ridgeline {
namespace {

/// Inputs that are expanded at a time: the largest group of int4, and a part of an int8 channel.
constexpr int64_t kRun = 128;

/// Two registers of small integers as pairs of bf16. Their floats have nothing in the lower 16 bits.
[[gnu::always_inline]] inline Arch::I bf16_pair(Arch::I first, Arch::I second) {
    const Arch::I low = Arch::template shift_right<16>(Arch::bits(Arch::to_float(first)));
    return Arch::or_int(low, Arch::bits(Arch::to_float(second)));
}

/// Byte j of every lane, less `offset`.
template <int j>
[[gnu::always_inline]] inline Arch::I byte_of(Arch::I bytes, Arch::I offset) {
    return Arch::sub_int(Arch::and_int(Arch::template shift_right<8 * j>(bytes), Arch::set_int(255)), offset);
}

/// Four bytes a lane as two pairs, kPanel lanes apart.
[[gnu::always_inline]] inline void expand_bytes(Arch::I bytes, Arch::I offset, uint32_t* to) {
    Arch::store_int(to, bf16_pair(byte_of<0>(bytes, offset), byte_of<1>(bytes, offset)));
    Arch::store_int(to + kPanel, bf16_pair(byte_of<2>(bytes, offset), byte_of<3>(bytes, offset)));
}

void expand_int8(const uint8_t* from, int64_t steps, uint32_t* to) {
    const Arch::I offset = Arch::set_int(128);
    for (int64_t k = 0; k < steps; ++k)
        for (int column = 0; column < kPanel; column += Arch::kLanes)
            expand_bytes(Arch::load_int(from + k * Layout::kStepBytes + column * 4), offset,
                         to + k * 2 * kPanel + column);
}

void expand_int4(const Operands& o, int64_t group, uint32_t* to) {
    const uint8_t* from = o.panel + group * o.layout.group_bytes();
    const Arch::I low = Arch::set_int(0x0f0f0f0f);
    for (int column = 0; column < kPanel; column += Arch::kLanes) {
        const Arch::I zero =
            o.layout.zero_points ? zero_points(o, group, column) : Arch::set_int(kInt4Offset);
        for (int64_t k = 0; k < o.layout.group_steps(); ++k) {
            const Arch::I both = Arch::load_int(from + k * Layout::kStepBytes + column * 4);
            uint32_t* at = to + k * 4 * kPanel + column;
            expand_bytes(Arch::and_int(both, low), zero, at);
            expand_bytes(Arch::and_int(Arch::template shift_right<4>(both), low), zero, at + 2 * kPanel);
        }
    }
}

/// tile += scale times the product of an expanded run of `inputs`.
template <int R>
[[gnu::flatten]] void add_run(const uint32_t* run, const uint8_t* activations, int64_t inputs,
                              const uint8_t* scales, float* tile, Ahead ahead) {
    each_strip([&](int column) {
        Arch::F acc[R][Arch::kStrip];
        unroll<R>([&](auto r) { unroll<Arch::kStrip>([&](auto c) { acc[r][c] = Arch::zero(); }); });
        multiply_bf16<R>(acc, reinterpret_cast<const uint8_t*>(run + column), activations, inputs / 2, ahead);
        add_group<R>(acc, scales + column * 2, tile + column);
    });
}

template <int R>
void tile_int8_weight_only(const Operands& o) {
    alignas(64) uint32_t run[kRun / 2 * kPanel];
    clear<R>(o.tile);
    const uint8_t* scales = o.panel + o.layout.group_bytes() - Layout::kScaleBytes;
    for (int64_t k = 0; k < o.layout.padded_in(); k += kRun) {
        const int64_t inputs = std::min(kRun, o.layout.padded_in() - k);
        expand_int8(o.panel + k / 4 * Layout::kStepBytes, inputs / 4, run);
        add_run<R>(run, o.activations + k * R * 2, inputs, scales, o.tile,
                   {o.ahead.at + k / 4 * o.ahead.step, o.ahead.step / 2});
    }
}

template <int R>
void tile_int4_weight_only(const Operands& o) {
    alignas(64) uint32_t run[kRun / 2 * kPanel];
    clear<R>(o.tile);
    for (int64_t g = 0; g < o.layout.groups(); ++g) {
        expand_int4(o, g, run);
        const uint8_t* scales = o.panel + (g + 1) * o.layout.group_bytes() - Layout::kScaleBytes;
        add_run<R>(run, o.activations + g * o.layout.group * R * 2, o.layout.group, scales, o.tile,
                   {o.ahead.at + g * o.layout.group_steps() * o.ahead.step, o.ahead.step / 4});
    }
}

}  // namespace
}  // namespace ridgeline
