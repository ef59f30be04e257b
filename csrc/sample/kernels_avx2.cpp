#include "sample/loops.h"

namespace ridgeline {
constinit const ChunkKernels kAvx2ChunkKernels = kChunkKernels;
}
