#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>

#include "linear/job.h"
#include "simd/half.h"

// Rows as the kernels read them: a tile of R rows lies step by step, the rows of a step side by side,
// [steps][R] of 4 bytes (1 float, 2 bf16 or 4 int8), so that a kernel reads it from front to back.
namespace ridgeline {
namespace {

/// Inputs that are converted at a time, on the stack.
constexpr int64_t kChunk = 256;

/// Inputs [k, k + n) of a row as float32, zeros beyond the row's end.
inline void read_chunk(const Job& job, int64_t row, int64_t k, int64_t n, float* to) {
    const int64_t there = std::clamp<int64_t>(job.layout.in - k, 0, n);
    if (job.x.dtype == Dtype::fp32) {
        std::memcpy(to, static_cast<const float*>(job.x.data) + row * job.x.stride + k,
                    there * sizeof(float));
    } else {
        const uint16_t* from = static_cast<const uint16_t*>(job.x.data) + row * job.x.stride + k;
        for (int64_t i = 0; i < there; ++i) to[i] = from_bf16(from[i]);
    }
    for (int64_t i = there; i < n; ++i) to[i] = 0.0f;
}

/// Writes `steps` steps of 4 bytes of row r into a tile of R rows.
inline void scatter(uint8_t* tile, int r, int R, const void* row, int64_t first, int64_t steps) {
    const uint8_t* from = static_cast<const uint8_t*>(row);
    for (int64_t k = 0; k < steps; ++k) std::memcpy(tile + ((first + k) * R + r) * 4, from + k * 4, 4);
}

/// f(row, r, R, where its tile begins) for the rows of a tile.
template <class F>
void each_row(const Job& job, int64_t tile, int64_t row_bytes, const F& f) {
    const int64_t first = job.tile_begin(tile);
    const int R = job.tile_rows(tile);
    for (int r = 0; r < R; ++r) f(first + r, r, R, job.activations + first * row_bytes);
}

void prepare_fp32(const Job& job, int64_t tile) {
    const int64_t in = job.layout.padded_in();
    each_row(job, tile, in * 4, [&](int64_t row, int r, int R, uint8_t* to) {
        float chunk[kChunk];
        for (int64_t k = 0; k < in; k += kChunk) {
            const int64_t n = std::min(kChunk, in - k);
            read_chunk(job, row, k, n, chunk);
            scatter(to, r, R, chunk, k, n);
        }
    });
}

/// Rounds float32 rows to bf16; bf16 rows are taken as they are.
void prepare_bf16(const Job& job, int64_t tile) {
    const int64_t in = (job.layout.padded_in() + 1) / 2 * 2;
    each_row(job, tile, in * 2, [&](int64_t row, int r, int R, uint8_t* to) {
        float chunk[kChunk];
        uint16_t rounded[kChunk];
        for (int64_t k = 0; k < in; k += kChunk) {
            const int64_t n = std::min(kChunk, in - k);
            read_chunk(job, row, k, n, chunk);
            for (int64_t i = 0; i < n; ++i) rounded[i] = to_bf16(chunk[i]);
            scatter(to, r, R, rounded, k / 2, n / 2);
        }
    });
}

/// The largest size in a row, as the bits of a float, which order as their floats do: a NaN is
/// above infinity.
inline uint32_t largest_bits(const Job& job, int64_t row) {
    float chunk[kChunk];
    uint32_t largest = 0;
    for (int64_t k = 0; k < job.layout.in; k += kChunk) {
        const int64_t n = std::min(kChunk, job.layout.in - k);
        read_chunk(job, row, k, n, chunk);
        for (int64_t i = 0; i < n; ++i) largest = std::max(largest, float_bits(chunk[i]) & 0x7fffffff);
    }
    return largest;
}

/// Rounds rows to int8, one scale a row: scale = max|x| / 127, at least the smallest normal float, and q
/// the nearest whole number to x / scale, ties to even. A row that holds a NaN or an infinity gets
/// a NaN as its scale, and so in all its outputs.
void prepare_int8(const Job& job, int64_t tile) {
    const int64_t in = job.layout.padded_in();
    const int64_t groups = job.layout.groups(), group = in / groups;
    each_row(job, tile, in, [&](int64_t row, int r, int R, uint8_t* to) {
        const uint32_t largest = largest_bits(job, row);
        const bool finite = largest < 0x7f800000;
        const float scale = std::max(float_from_bits(largest) / 127.0f, 0x1p-126f);
        const float inverse = 1.0f / scale;
        job.row_scales[row] = finite ? scale : NAN;
        int32_t* sums = job.group_sums + job.tile_begin(tile) * groups;
        float chunk[kChunk];
        int8_t q[kChunk];
        for (int64_t g = 0; g < groups; ++g) {
            int32_t sum = 0;
            for (int64_t k = g * group; k < (g + 1) * group; k += kChunk) {
                const int64_t n = std::min(kChunk, (g + 1) * group - k);
                read_chunk(job, row, k, n, chunk);
                for (int64_t i = 0; i < n; ++i)
                    q[i] = finite ? static_cast<int8_t>(std::nearbyintf(chunk[i] * inverse)) : int8_t{0};
                for (int64_t i = 0; i < n; ++i) sum += q[i];
                scatter(to, r, R, q, k / 4, n / 4);
            }
            sums[g * R + r] = sum;
        }
    });
}

}  // namespace
}  // namespace ridgeline
