#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>

#include "attention/job.h"
#include "simd/half.h"

// Vectors of heads, as float32 on the stack.
namespace ridgeline {
namespace {

inline int64_t element_bytes(Dtype dtype) { return dtype == Dtype::fp32 ? 4 : 2; }

inline void read_floats(const void* from, Dtype dtype, int64_t n, float* to) {
    if (dtype == Dtype::fp32) {
        std::memcpy(to, from, n * sizeof(float));
        return;
    }
    const uint16_t* at = static_cast<const uint16_t*>(from);
    int64_t i = 0;
    for (; i + Arch::kLanes <= n; i += Arch::kLanes) Arch::store(to + i, Arch::load_bf16(at + i));
    for (; i < n; ++i) to[i] = from_bf16(at[i]);
}

inline void write_floats(const float* from, void* to, Dtype dtype, int64_t n) {
    if (dtype == Dtype::fp32) {
        std::memcpy(to, from, n * sizeof(float));
        return;
    }
    uint16_t* at = static_cast<uint16_t*>(to);
    int64_t i = 0;
    for (; i + Arch::kLanes <= n; i += Arch::kLanes) Arch::store_bf16(at + i, Arch::load(from + i));
    for (; i < n; ++i) at[i] = to_bf16(from[i]);
}

/// Room for a vector and the zeros after it.
using Vector = float[kMostDim + kPadding];

/// x cos + (-x2, x1) sin, where x = (x1, x2) are halves of `dim` elements. The same operations for every
/// element, whether it is in a whole register or not.
inline void rotate_half(float* x, const float* cos, const float* sin, int64_t dim) {
    const int64_t half = dim / 2;
    float turned[kMostDim];
    for (int64_t i = 0; i < half; ++i) turned[i] = -x[half + i];
    for (int64_t i = 0; i < half; ++i) turned[half + i] = x[i];
    for (int64_t i = 0; i < dim; ++i) x[i] = x[i] * cos[i] + turned[i] * sin[i];
}

/// A vector as float32, rotated by the angle of the call's row `row`, with zeros after its end.
inline void read_vector(const HeadRows& x, const void* from, int64_t dim, const Angles& angles, int64_t row,
                        float* to) {
    read_floats(from, x.dtype, dim, to);
    std::fill_n(to + dim, kPadding, 0.0f);
    if (angles.cos == nullptr) return;
    const int64_t angle = angles.row(row);
    rotate_half(to, angles.cos + angle, angles.sin + angle, angles.dim);
}

/// Where the vector of `head` of row `row` of a sequence lies; `first_row` is the sequence's first packed
/// row.
inline uint8_t* vector_at(const HeadRows& x, int64_t sequence, int64_t first_row, int64_t row, int64_t head) {
    const int64_t start = x.sequence == kPacked ? first_row * x.row : sequence * x.sequence;
    const int64_t at = start + row * x.row + head * x.head;
    return static_cast<uint8_t*>(x.data) + at * element_bytes(x.dtype);
}

}  // namespace
}  // namespace ridgeline
