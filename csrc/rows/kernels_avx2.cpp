#include "simd/avx2.h"
// The instruction set comes first: the templates below are written in terms of it.
#include "rows/table.h"

namespace ridgeline {
constinit const RowKernels kAvx2RowKernels = kRowKernels;
}
