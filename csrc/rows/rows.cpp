#include "rows/rows.h"

#include <cstring>
#include <stdexcept>
#include <string>
#include <vector>

#include "isa/isa.h"
#include "linear/pack.h"
#include "rows/kernels.h"
#include "threads/pool.h"

namespace ridgeline {
namespace {

/// Fewer elements than this are worked on by the caller alone: waking another thread takes longer.
constexpr int64_t kAloneElements = 16384;

const RowKernels& kernels() {
    switch (current_isa()) {
#if defined(__x86_64__)
        case Isa::avx512_bf16:
        case Isa::avx512: return kAvx512RowKernels;
        case Isa::avx2: return kAvx2RowKernels;
#endif
        default: return kPortableRowKernels;
    }
}

/// f(begin, end) over `items` of `elements` each.
template <class F>
void share(int64_t items, int64_t elements, const F& f) {
    if (items * elements < kAloneElements)
        f(int64_t{0}, items);
    else
        parallel_for(items, f);
}

/// Throws unless every one of n indices is from `low` to `high` - 1.
void check_range(const int64_t* indices, int64_t n, int64_t low, int64_t high) {
    for (int64_t i = 0; i < n; ++i)
        if (indices[i] < low || indices[i] >= high)
            throw std::domain_error("holds " + std::to_string(indices[i]) + " at " + std::to_string(i) +
                                    "; the table has rows for " + std::to_string(low) + " to " +
                                    std::to_string(high - 1));
}

void check_ids(const Gather& job) {
    check_range(job.ids, job.rows, -job.offset, job.table_rows - job.offset);
}

int64_t element_bytes(Dtype dtype) { return dtype == Dtype::fp32 ? 4 : 2; }

uint8_t* row_of(const Vectors& v, int64_t row) {
    return static_cast<uint8_t*>(v.data) + row * v.row_stride * element_bytes(v.dtype);
}

void scale_row(const Gather& job, int64_t row) {
    if (job.scale == 1.0f) return;
    float* out = reinterpret_cast<float*>(row_of(job.out, row));
    for (int64_t i = 0; i < job.columns; ++i) out[i] *= job.scale;
}

}  // namespace

void norm(const Norm& job) {
    const auto kernel = kernels().norm;
    share(job.rows * job.heads, job.dim, [&](int64_t begin, int64_t end) { kernel(job, begin, end); });
}

void add(const Sum& job) {
    const auto kernel = kernels().add;
    share(job.rows, job.columns, [&](int64_t begin, int64_t end) { kernel(job, begin, end); });
}

void copy(const Copy& job) {
    const auto convert = kernels().convert;
    const bool same = job.x.dtype == job.out.dtype;
    const int64_t row_bytes = job.columns * element_bytes(job.x.dtype);
    share(job.rows, job.columns, [&](int64_t begin, int64_t end) {
        for (int64_t i = begin; i < end; ++i) {
            const uint8_t* from = row_of(job.x, i);
            if (same)
                std::memcpy(row_of(job.out, i), from, row_bytes);
            else
                convert(from, job.x.dtype, row_of(job.out, i), job.out.dtype, job.columns);
        }
    });
}

void weighted_sum(const WeightedSum& job) {
    const auto kernel = kernels().weighted_sum;
    share(job.rows, job.columns * job.terms, [&](int64_t begin, int64_t end) { kernel(job, begin, end); });
}

void activate(const Activate& job) {
    const auto kernel = kernels().activate;
    share(job.rows, job.columns, [&](int64_t begin, int64_t end) { kernel(job, begin, end); });
}

void softcap(const Softcap& job) {
    const auto kernel = kernels().softcap;
    share(job.rows, job.columns, [&](int64_t begin, int64_t end) { kernel(job, begin, end); });
}

void rotate(const Rotation& job) {
    if (job.positions != nullptr) check_range(job.positions, job.rows, 0, job.angles);
    const auto kernel = kernels().rotate;
    share(job.rows * job.heads, job.dim, [&](int64_t begin, int64_t end) { kernel(job, begin, end); });
}

void gather(const Gather& job, const Vectors& table) {
    check_ids(job);
    const auto convert = kernels().convert;
    const bool same = table.dtype == job.out.dtype;
    const int64_t row_bytes = job.columns * element_bytes(table.dtype);
    share(job.rows, job.columns, [&](int64_t begin, int64_t end) {
        for (int64_t i = begin; i < end; ++i) {
            const uint8_t* from = row_of(table, job.ids[i] + job.offset);
            if (same)
                std::memcpy(row_of(job.out, i), from, row_bytes);
            else
                convert(from, table.dtype, row_of(job.out, i), job.out.dtype, job.columns);
            scale_row(job, i);
        }
    });
}

void gather(const Gather& job, const Layout& layout, const uint8_t* packed) {
    check_ids(job);
    const auto convert = kernels().convert;
    share(job.rows, job.columns, [&](int64_t begin, int64_t end) {
        thread_local std::vector<float> row;
        row.resize(layout.in);
        for (int64_t i = begin; i < end; ++i) {
            unpack_row(layout, packed, job.ids[i] + job.offset, row.data());
            convert(row.data(), Dtype::fp32, row_of(job.out, i), job.out.dtype, job.columns);
            scale_row(job, i);
        }
    });
}

}  // namespace ridgeline
