#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>

#include "attention/elements.h"
#include "attention/job.h"

// New keys and values on their way into the cache: rotated, rounded, and laid among the lanes of their block.
namespace ridgeline {
namespace {

/// Elements of one vector in the cache's format, with the scale of an int8 one.
struct Stored {
    alignas(64) uint8_t elements[kMostDim * 4];
    float scale;
};

/// scale = max|x| / 127, at least the smallest normal float, and q the nearest whole number to x / scale; a
/// vector that holds a NaN or an infinity gets a NaN as its scale.
inline void quantize(const float* x, int64_t n, Stored& to) {
    uint32_t largest = 0;
    for (int64_t i = 0; i < n; ++i) largest = std::max(largest, float_bits(x[i]) & 0x7fffffff);
    const bool finite = largest < 0x7f800000;
    const float scale = std::max(float_from_bits(largest) / 127.0f, 0x1p-126f);
    const float inverse = 1.0f / scale;
    for (int64_t i = 0; i < n; ++i) {
        const float q = finite ? std::nearbyintf(x[i] * inverse) : 0.0f;
        to.elements[i] = static_cast<uint8_t>(static_cast<int8_t>(q));
    }
    to.scale = finite ? scale : NAN;
}

inline void store_vector(KvFormat format, const float* x, int64_t n, Stored& to) {
    switch (format) {
        case KvFormat::fp32: return write_floats(x, to.elements, Dtype::fp32, n);
        case KvFormat::bf16: return write_floats(x, to.elements, Dtype::bf16, n);
        case KvFormat::int8: return quantize(x, n, to);
    }
}

/// The key of lane `lane` of a block, element by element a step apart.
inline void put_key(const KvLayout& layout, const Stored& key, int lane, uint8_t* record) {
    const int64_t unit = layout.step() * layout.element_bytes();
    const int64_t steps = layout.padded_dim() / layout.step();
    const auto copy = [&](auto size) {
        for (int64_t k = 0; k < steps; ++k)
            std::memcpy(record + (k * kPanelKeys + lane) * size, key.elements + k * size, size);
    };
    if (unit == 4)
        copy(std::integral_constant<int, 4>{});
    else
        copy(std::integral_constant<int, 2>{});
    if (layout.format == KvFormat::int8)
        std::memcpy(record + layout.key_scales_at() + lane * 4, &key.scale, sizeof key.scale);
}

/// The value of lane `lane`, interleaved with its neighbour's.
inline void put_value(const KvLayout& layout, const Stored& value, int lane, uint8_t* record) {
    const int64_t step = layout.step(), width = layout.padded_value_dim();
    uint8_t* to = record + layout.key_bytes();
    const auto copy = [&](auto size) {
        for (int64_t i = 0; i < width; ++i)
            std::memcpy(to + ((lane / step * width + i) * step + lane % step) * size,
                        value.elements + i * size, size);
    };
    switch (layout.format) {
        case KvFormat::fp32: return copy(std::integral_constant<int, 4>{});
        case KvFormat::bf16: return copy(std::integral_constant<int, 2>{});
        case KvFormat::int8: copy(std::integral_constant<int, 1>{});
    }
    std::memcpy(record + layout.value_scales_at() + lane * 4, &value.scale, sizeof value.scale);
}

/// Stores rows [begin, end) of a sequence, whose rows begin at `first_row` of the call, for one head.
void append_rows(const Append& call, int64_t sequence, int64_t first_row, int64_t begin, int64_t end,
                 int64_t head) {
    const KvLayout& layout = call.layout;
    const Sequences& all = call.sequences;
    float vector[kMostDim] = {};
    Stored stored;
    for (int64_t row = begin; row < end; ++row) {
        const int64_t key = all.past[sequence] + row;
        const int64_t block = all.tables[sequence * all.table_stride + key / kPanelKeys];
        uint8_t* record = call.blocks + block * layout.block_bytes() + head * layout.record_bytes();
        const int lane = static_cast<int>(key % kPanelKeys);
        read_floats(vector_at(call.keys, sequence, first_row, row, head), call.keys.dtype, layout.dim,
                    vector);
        std::fill(vector + layout.dim, vector + layout.padded_dim(), 0.0f);
        if (call.angles.cos != nullptr) {
            const int64_t angle = call.angles.row(first_row + row);
            rotate_half(vector, call.angles.cos + angle, call.angles.sin + angle, layout.dim);
        }
        store_vector(layout.format, vector, layout.padded_dim(), stored);
        put_key(layout, stored, lane, record);
        read_floats(vector_at(call.values, sequence, first_row, row, head), call.values.dtype,
                    layout.value_dim, vector);
        std::fill(vector + layout.value_dim, vector + layout.padded_value_dim(), 0.0f);
        store_vector(layout.format, vector, layout.padded_value_dim(), stored);
        put_value(layout, stored, lane, record);
    }
}

}  // namespace
}  // namespace ridgeline
