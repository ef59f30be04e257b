#pragma once

#include <cstdint>

#include "rows/rows.h"

namespace ridgeline {

/// The row kernels that an instruction set brings. Each does items [begin, end): vectors of all rows, row by
/// row, for norms and rotations, rows for the others.
struct RowKernels {
    void (*norm)(const Norm& job, int64_t begin, int64_t end);
    void (*add)(const Sum& job, int64_t begin, int64_t end);
    void (*weighted_sum)(const WeightedSum& job, int64_t begin, int64_t end);
    void (*activate)(const Activate& job, int64_t begin, int64_t end);
    void (*softcap)(const Softcap& job, int64_t begin, int64_t end);
    void (*rotate)(const Rotation& job, int64_t begin, int64_t end);
    /// n floats to another dtype, or to the same.
    void (*convert)(const void* from, Dtype from_dtype, void* to, Dtype to_dtype, int64_t n);
};

extern const RowKernels kPortableRowKernels;
#if defined(__x86_64__)
extern const RowKernels kAvx2RowKernels;
extern const RowKernels kAvx512RowKernels;
#endif

}  // namespace ridgeline
