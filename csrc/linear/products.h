#pragma once

#include <cstdint>
#include <utility>

#include "linear/epilogue.h"
#include "linear/prepare.h"
#include "linear/tile.h"
#include "linear/weight_only.h"

// The products of one instruction set, as its kernels_*.cpp compiles them. Everything here and in the
// headers that define kernels has internal linkage: the linker must never take one set's copy of a
// function for another's.
namespace ridgeline {
namespace {

struct Fp32 {
    static constexpr int max_rows = Arch::kMaxRows;
    static constexpr int activation_bytes = 4;
    static void prepare(const Job& job, int64_t tile) { prepare_fp32(job, tile); }
    template <int R>
    static void multiply(const Operands& o) {
        tile_fp32<R>(o);
    }
};

struct Bf16 {
    static constexpr int max_rows = Arch::kMaxRows;
    static constexpr int activation_bytes = 2;
    static void prepare(const Job& job, int64_t tile) { prepare_bf16(job, tile); }
    template <int R>
    static void multiply(const Operands& o) {
        tile_bf16<R>(o);
    }
};

struct Int8 {
    static constexpr int max_rows = Arch::kMaxRows;
    static constexpr int activation_bytes = 1;
    static void prepare(const Job& job, int64_t tile) { prepare_int8(job, tile); }
    template <int R>
    static void multiply(const Operands& o) {
        tile_int8<R>(o);
    }
};

struct Int4 {
    static constexpr int max_rows = Arch::kMaxNibbleRows;
    static constexpr int activation_bytes = 1;
    static void prepare(const Job& job, int64_t tile) { prepare_int8(job, tile); }
    template <int R>
    static void multiply(const Operands& o) {
        tile_int4<R, false>(o);
    }
};

struct Int4ZeroPoints {
    static constexpr int max_rows = Arch::kMaxNibbleRows;
    static constexpr int activation_bytes = 1;
    static void prepare(const Job& job, int64_t tile) { prepare_int8(job, tile); }
    template <int R>
    static void multiply(const Operands& o) {
        tile_int4<R, true>(o);
    }
};

struct Int8WeightOnly {
    static constexpr int max_rows = Arch::kMaxRows;
    static constexpr int activation_bytes = 2;
    static void prepare(const Job& job, int64_t tile) { prepare_bf16(job, tile); }
    template <int R>
    static void multiply(const Operands& o) {
        tile_int8_weight_only<R>(o);
    }
};

struct Int4WeightOnly {
    static constexpr int max_rows = Arch::kMaxRows;
    static constexpr int activation_bytes = 2;
    static void prepare(const Job& job, int64_t tile) { prepare_bf16(job, tile); }
    template <int R>
    static void multiply(const Operands& o) {
        tile_int4_weight_only<R>(o);
    }
};

/// of_rows[R - 1] multiplies a tile of R rows.
template <class Kind>
struct TileFunctions {
    void (*of_rows[Kind::max_rows])(const Operands&);
};

template <class Kind, int... i>
constexpr TileFunctions<Kind> tile_functions(std::integer_sequence<int, i...>) {
    return {{Kind::template multiply<i + 1>...}};
}

/// How far ahead one tile asks for the panel that it reads itself.
constexpr int64_t kPrefetchBytes = 4096;

/// What tile `tile` of a panel asks for: its part of the next panel or, alone with its panel, what it
/// comes to itself in a moment. Left to the hardware, a panel's first tile would wait for memory.
inline Ahead weights_ahead(const Job& job, const uint8_t* panel, int64_t tile) {
    const int64_t bytes = job.layout.panel_bytes(), steps = job.layout.steps() * job.tiles;
    const int64_t step = (bytes + steps - 1) / steps;  // more than is multiplied: scales lie between
    if (job.tiles == 1) return {panel + kPrefetchBytes, step};
    return {panel + bytes + bytes * tile / job.tiles, step};
}

template <class Kind>
void multiply_items(const Job& job, int64_t begin, int64_t end) {
    static constexpr auto functions = tile_functions<Kind>(std::make_integer_sequence<int, Kind::max_rows>{});
    const int64_t row_bytes = job.layout.padded_in() * Kind::activation_bytes, groups = job.layout.groups();
    alignas(64) float sums[Kind::max_rows * kPanel];
    for (int64_t item = begin; item < end; ++item) {
        const int64_t panel = item / job.tiles, tile = item % job.tiles;
        const int64_t first = job.tile_begin(tile);
        const int rows = job.tile_rows(tile);
        const int32_t* group_sums = job.group_sums == nullptr ? nullptr : job.group_sums + first * groups;
        const uint8_t* weights = job.weight + panel * job.layout.panel_bytes();
        functions.of_rows[rows - 1]({job.layout, weights, job.activations + first * row_bytes, group_sums,
                                     sums, weights_ahead(job, weights, tile)});
        finish(job, {sums, rows, first, panel});
    }
}

template <class Kind>
constexpr Product product() {
    return {Kind::max_rows, Kind::activation_bytes, Kind::prepare, multiply_items<Kind>};
}

constexpr Products kProducts = {
    product<Fp32>(),           product<Bf16>(),           product<Int8>(),           product<Int4>(),
    product<Int4ZeroPoints>(), product<Int8WeightOnly>(), product<Int4WeightOnly>(),
};

}  // namespace
}  // namespace ridgeline
