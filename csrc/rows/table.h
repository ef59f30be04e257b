#pragma once

#include "rows/elementwise.h"
#include "rows/kernels.h"
#include "rows/norm.h"
#include "rows/rotate.h"

// The row kernels of one instruction set, as its kernels_*.cpp compiles them. Everything here and in the
// headers that define kernels has internal linkage: the linker must never take one set's copy of a
// function for another's.
namespace ridgeline {
namespace {

constexpr RowKernels kRowKernels = {norm_vectors,   add_rows, weighted_sum_rows, activate_rows, softcap_rows,
                                    rotate_vectors, convert};

}  // namespace
}  // namespace ridgeline
