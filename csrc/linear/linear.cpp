#include "linear/linear.h"

#include <algorithm>

#include "isa/isa.h"
#include "threads/pool.h"
#include "threads/scratch.h"

namespace ridgeline {
namespace {

/// Prepared rows that are multiplied at a time: few enough for the last-level cache, from which a tile is
/// read at a pace that prefetching hides, and enough for the weights to be read from memory few times.
constexpr int64_t kRowBlockBytes = 2 * 1024 * 1024;

const Products& products() {
    switch (current_isa()) {
#if defined(__x86_64__)
        case Isa::avx512_bf16: return kAvx512Bf16Products;
        case Isa::avx512: return kAvx512Products;
        case Isa::avx2: return kAvx2Products;
#endif
        default: return kPortableProducts;
    }
}

const uint8_t* row_of(const void* data, int64_t row, int64_t stride, Dtype dtype) {
    return static_cast<const uint8_t*>(data) + row * stride * (dtype == Dtype::fp32 ? 4 : 2);
}

/// The part of the job that is rows [begin, begin + rows).
Job block_of(const Job& job, int64_t begin, int64_t rows, int max_rows) {
    Job block = job;
    block.rows = rows;
    block.tiles = (rows + max_rows - 1) / max_rows;
    block.x.data = row_of(job.x.data, begin, job.x.stride, job.x.dtype);
    block.out = const_cast<uint8_t*>(row_of(job.out, begin, job.out_stride, job.out_dtype));
    if (job.sequence_gate.data != nullptr) block.sequence_gate.sequences += begin;
    if (job.residual.data != nullptr)
        block.residual.data = row_of(job.residual.data, begin, job.residual.stride, job.residual.dtype);
    return block;
}

void multiply_block(const Job& block, const Product& product) {
    // Waking the other threads takes longer than preparing one tile does.
    if (block.tiles == 1)
        product.prepare(block, 0);
    else
        parallel_for(block.tiles, [&](int64_t begin, int64_t end) {
            for (int64_t tile = begin; tile < end; ++tile) product.prepare(block, tile);
        });
    parallel_for(block.layout.panels() * block.tiles,
                 [&](int64_t begin, int64_t end) { product.multiply(block, begin, end); });
}

void run(Job job, const Product& product, bool quantized_activations) {
    if (job.rows == 0 || job.layout.out == 0) return;
    const int64_t row_bytes = std::max<int64_t>(1, job.layout.padded_in() * product.activation_bytes);
    const int64_t tiles = std::max<int64_t>(1, kRowBlockBytes / row_bytes / product.max_rows);
    const int64_t most_rows = std::min(job.rows, tiles * product.max_rows);
    // Blocks of like size: a last one of a few rows would read all weights for little.
    const int64_t blocks = (job.rows + most_rows - 1) / most_rows;
    const int64_t block_rows = (job.rows + blocks - 1) / blocks;
    const int64_t rows_at = 0, scales_at = aligned(block_rows * row_bytes);
    const int64_t sums_at = scales_at + aligned(block_rows * 4);
    thread_local Scratch scratch;
    uint8_t* memory = scratch.reserve(sums_at + block_rows * job.layout.groups() * 4);
    job.activations = memory + rows_at;
    job.row_scales = quantized_activations ? reinterpret_cast<float*>(memory + scales_at) : nullptr;
    job.group_sums = quantized_activations ? reinterpret_cast<int32_t*>(memory + sums_at) : nullptr;
    for (int64_t begin = 0; begin < job.rows; begin += block_rows)
        multiply_block(block_of(job, begin, std::min(block_rows, job.rows - begin), product.max_rows),
                       product);
}

}  // namespace

void linear(Job job) {
    switch (job.layout.format) {
        case Format::fp32: return run(job, products().fp32, false);
        case Format::bf16: return run(job, products().bf16, false);
        case Format::int8: return run(job, products().int8, true);
        case Format::int4:
            return run(job, job.layout.zero_points ? products().int4_zero_points : products().int4, true);
    }
}

void linear_weight_only(Job job) {
    switch (job.layout.format) {
        case Format::int8: return run(job, products().int8_weight_only, false);
        case Format::int4: return run(job, products().int4_weight_only, false);
        default: return linear(job);
    }
}

}  // namespace ridgeline
