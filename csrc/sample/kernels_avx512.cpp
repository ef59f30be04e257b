#include "sample/loops.h"

namespace ridgeline {
constinit const ChunkKernels kAvx512ChunkKernels = kChunkKernels;
}
