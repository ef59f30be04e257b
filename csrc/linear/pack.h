#pragma once

#include <cstdint>

#include "linear/job.h"
#include "linear/layout.h"

namespace ridgeline {

/// Packs panels [begin, end) of the row-major weight [out, in] of float32 or bfloat16, quantising
/// it if the layout says so, into `packed` (layout.bytes() long), on all threads.
/// Throws std::domain_error for a weight that can't be quantised.
void pack(const Layout& layout, Matrix weight, uint8_t* packed, int64_t begin, int64_t end);

/// What output `row` of a packed weight stands for, as float32 [in].
void unpack_row(const Layout& layout, const uint8_t* packed, int64_t row, float* to);

/// Row by row what a packed weight stands for, as float32 [out, in].
void unpack(const Layout& layout, const uint8_t* packed, float* weight);

/// Asks for large pages under [start, start + bytes), which spares a kernel that reads it most misses of
/// the address cache; call it before the memory is first written.
void advise_large_pages(uint8_t* start, int64_t bytes);

}  // namespace ridgeline
