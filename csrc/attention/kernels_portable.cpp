#include "simd/portable.h"
// The instruction set comes first: the templates below are written in terms of it.
#include "attention/schedules.h"

namespace ridgeline {
constinit const AttentionKernels kPortableAttention = kAttention;
}
