#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>

#include "linear/job.h"
#include "simd/activation.h"
#include "simd/half.h"

// What happens to a tile of sums before it is stored: row scale, bias, activation, gates, residual.
// Each is a pass over the tile, which lies in the first-level cache.
namespace ridgeline {
namespace {

/// A tile of sums and where it belongs in the product.
struct Tile {
    float* sums;  // [rows][kPanel]
    int rows;
    int64_t first_row;
    int64_t panel;
};

/// Applies f to the first `columns` columns of every row.
template <class Function>
[[gnu::always_inline]] inline void map(const Tile& tile, int64_t columns, const Function& f) {
    for (int r = 0; r < tile.rows; ++r)
        for (int64_t c = 0; c < columns; c += Arch::kLanes) {
            float* at = tile.sums + r * kPanel + c;
            Arch::store(at, f(Arch::load(at)));
        }
}

inline void scale_rows(const Tile& tile, const float* row_scales) {
    for (int r = 0; r < tile.rows; ++r) {
        const Arch::F scale = Arch::set(row_scales[tile.first_row + r]);
        for (int c = 0; c < kPanel; c += Arch::kLanes) {
            float* at = tile.sums + r * kPanel + c;
            Arch::store(at, Arch::mul(Arch::load(at), scale));
        }
    }
}

inline void add_bias(const Job& job, const Tile& tile) {
    float bias[kPanel];
    for (int lane = 0; lane < kPanel; ++lane) {
        const int64_t row = job.layout.row(tile.panel, lane);
        if (row < 0)
            bias[lane] = 0.0f;
        else if (job.bias_dtype == Dtype::fp32)
            bias[lane] = static_cast<const float*>(job.bias)[row];
        else
            bias[lane] = from_bf16(static_cast<const uint16_t*>(job.bias)[row]);
    }
    for (int r = 0; r < tile.rows; ++r)
        for (int c = 0; c < kPanel; c += Arch::kLanes) {
            float* at = tile.sums + r * kPanel + c;
            Arch::store(at, Arch::add(Arch::load(at), Arch::load(bias + c)));
        }
}

/// A gated product activates its gate, the first half of the columns.
inline void activate(const Job& job, const Tile& tile) {
    with_activation(job.activation, [&](auto act) { map(tile, job.layout.panel_columns(), act); });
}

inline void multiply_by_gate(const Tile& tile) {
    constexpr int half = kPanel / 2;
    for (int r = 0; r < tile.rows; ++r)
        for (int c = 0; c < half; c += Arch::kLanes) {
            float* gate = tile.sums + r * kPanel + c;
            Arch::store(gate, Arch::mul(Arch::load(gate), Arch::load(gate + half)));
        }
}

/// sums times n factors.
inline void multiply_elements(float* sums, const float* factors, int64_t n) {
    int64_t c = 0;
    for (; c + Arch::kLanes <= n; c += Arch::kLanes)
        Arch::store(sums + c, Arch::mul(Arch::load(factors + c), Arch::load(sums + c)));
    for (; c < n; ++c) sums[c] = factors[c] * sums[c];
}

/// n elements from `at` as float32, n a multiple of the lanes unless the panel is the last.
inline void add_elements(float* sums, const void* at, Dtype dtype, int64_t n) {
    int64_t c = 0;
    if (dtype == Dtype::fp32) {
        const float* from = static_cast<const float*>(at);
        for (; c + Arch::kLanes <= n; c += Arch::kLanes)
            Arch::store(sums + c, Arch::add(Arch::load(from + c), Arch::load(sums + c)));
        for (; c < n; ++c) sums[c] = from[c] + sums[c];
    } else {
        const uint16_t* from = static_cast<const uint16_t*>(at);
        for (; c + Arch::kLanes <= n; c += Arch::kLanes)
            Arch::store(sums + c, Arch::add(Arch::load_bf16(from + c), Arch::load(sums + c)));
        for (; c < n; ++c) sums[c] = from_bf16(from[c]) + sums[c];
    }
}

inline void store_elements(const float* sums, void* at, Dtype dtype, int64_t n) {
    if (dtype == Dtype::fp32) {
        std::memcpy(at, sums, n * sizeof(float));
        return;
    }
    uint16_t* to = static_cast<uint16_t*>(at);
    int64_t c = 0;
    for (; c + Arch::kLanes <= n; c += Arch::kLanes) Arch::store_bf16(to + c, Arch::load(sums + c));
    for (; c < n; ++c) to[c] = to_bf16(sums[c]);
}

inline int64_t element_bytes(Dtype dtype) { return dtype == Dtype::fp32 ? 4 : 2; }

inline void finish(const Job& job, const Tile& tile) {
    if (job.row_scales != nullptr) scale_rows(tile, job.row_scales);
    if (job.bias != nullptr) add_bias(job, tile);
    activate(job, tile);
    if (job.layout.gated) multiply_by_gate(tile);
    const int64_t column = tile.panel * job.layout.panel_columns();
    const int64_t columns = std::min(job.layout.panel_columns(), job.layout.product_columns() - column);
    for (int r = 0; r < tile.rows; ++r) {
        float* sums = tile.sums + r * kPanel;
        const int64_t row = tile.first_row + r;
        if (job.sequence_gate.data != nullptr) {
            const SequenceGate& gate = job.sequence_gate;
            multiply_elements(sums, gate.data + gate.sequences[row] * gate.stride + column, columns);
        }
        if (job.residual.data != nullptr) {
            const int64_t at = (row * job.residual.stride + column) * element_bytes(job.residual.dtype);
            add_elements(sums, static_cast<const uint8_t*>(job.residual.data) + at, job.residual.dtype,
                         columns);
        }
        const int64_t at = (row * job.out_stride + column) * element_bytes(job.out_dtype);
        store_elements(sums, static_cast<uint8_t*>(job.out) + at, job.out_dtype, columns);
    }
}

}  // namespace
}  // namespace ridgeline
