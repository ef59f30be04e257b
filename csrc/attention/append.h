#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>

#include "attention/elements.h"
#include "attention/job.h"
#include "attention/panel.h"

// New keys and values on their way into the cache: rotated, rounded, and laid among the lanes of their block.
namespace ridgeline {
namespace {

/// scale = max|x| / 127, at least the smallest normal float, and q the nearest whole number to x / scale; a
/// vector that holds a NaN or an infinity gets a NaN as its scale. Returns the scale.
inline float quantize(const float* x, int64_t n, int8_t* to) {
    uint32_t largest = 0;
    for (int64_t i = 0; i < n; ++i) largest = std::max(largest, float_bits(x[i]) & 0x7fffffff);
    const bool finite = largest < 0x7f800000;
    const float scale = std::max(float_from_bits(largest) / 127.0f, 0x1p-126f);
    const float inverse = 1.0f / scale;
    for (int64_t i = 0; i < n; ++i)
        to[i] = finite ? static_cast<int8_t>(std::nearbyintf(x[i] * inverse)) : int8_t{0};
    return finite ? scale : NAN;
}

/// Vectors of a panel's tokens in the cache's format, one after another, and the scales of int8 ones.
struct Stored {
    alignas(64) uint8_t elements[kPanelKeys][kMostDim * 4];
    const uint8_t* rows[kPanelKeys];
    float scales[kPanelKeys];

    Stored() {
        for (int i = 0; i < kPanelKeys; ++i) rows[i] = elements[i];
    }
    void put(int64_t i, KvFormat format, const float* x, int64_t n) {
        switch (format) {
            case KvFormat::fp32: return write_floats(x, elements[i], Dtype::fp32, n);
            case KvFormat::bf16: return write_floats(x, elements[i], Dtype::bf16, n);
            case KvFormat::int8: scales[i] = quantize(x, n, reinterpret_cast<int8_t*>(elements[i]));
        }
    }
};

/// `count` keys in the lanes from `lane` on, element by element a step apart.
template <int unit>
void put_keys(const Stored& keys, int64_t count, int64_t lane, int64_t steps, uint8_t* to) {
    for (int64_t i = 0; i < count; ++i)
        for (int64_t k = 0; k < steps; ++k)
            std::memcpy(to + (k * kPanelKeys + lane + i) * unit, keys.elements[i] + k * unit, unit);
}

/// `count` values from `lane` on, each interleaved with its neighbour's.
template <int unit>
void put_values(const Stored& values, int64_t count, int64_t lane, int64_t step, int64_t width, uint8_t* to) {
    for (int64_t i = 0; i < count; ++i) {
        const int64_t at = (lane + i) / step * width * step + (lane + i) % step;
        for (int64_t c = 0; c < width; ++c)
            std::memcpy(to + (at + c * step) * unit, values.elements[i] + c * unit, unit);
    }
}

/// `count` tokens in the panel from `lane` on. A whole panel goes by registers.
inline void put(const KvLayout& layout, const Stored& keys, const Stored& values, int64_t count, int64_t lane,
                const StoredPanel& to) {
    const int64_t steps = layout.padded_dim() / layout.step(), width = layout.padded_value_dim();
    const bool whole = count == kPanelKeys;
    switch (layout.format) {
        case KvFormat::fp32:
            if (whole)
                lay_keys(keys.rows, count, steps * 4, to.keys);
            else
                put_keys<4>(keys, count, lane, steps, to.keys);
            return put_values<4>(values, count, lane, 1, width, to.values);
        case KvFormat::bf16:
            if (whole) {
                lay_keys(keys.rows, count, steps * 4, to.keys);
                return lay_values(Bf16{}, values.rows, count, width, width, to.values);
            }
            put_keys<4>(keys, count, lane, steps, to.keys);
            return put_values<2>(values, count, lane, 2, width, to.values);
        case KvFormat::int8:
            put_keys<2>(keys, count, lane, steps, to.keys);
            put_values<1>(values, count, lane, 2, width, to.values);
            std::copy_n(keys.scales, count, to.key_scales + lane);
            std::copy_n(values.scales, count, to.value_scales + lane);
    }
}

/// Stores rows [begin, end) of a sequence, which lie in one panel, for one head. The sequence's rows begin
/// at `first_row` of the call.
void append_rows(const Append& call, int64_t sequence, int64_t first_row, int64_t begin, int64_t end,
                 int64_t head) {
    const KvLayout& layout = call.layout;
    const Sequences& all = call.sequences;
    Vector vector;
    Stored keys, values;
    for (int64_t row = begin; row < end; ++row) {
        const void* key = vector_at(call.keys, sequence, first_row, row, head);
        read_vector(call.keys, key, layout.dim, call.angles, first_row + row, vector);
        keys.put(row - begin, layout.format, vector, layout.padded_dim());
        const void* value = vector_at(call.values, sequence, first_row, row, head);
        read_vector(call.values, value, layout.value_dim, {}, 0, vector);
        values.put(row - begin, layout.format, vector, layout.padded_value_dim());
    }
    const int64_t first = all.past[sequence] + begin;
    const StoredPanel panel = layout.panel(call.blocks, all.table(sequence), first, head);
    put(layout, keys, values, end - begin, first % kPanelKeys, panel);
}

}  // namespace
}  // namespace ridgeline
