#include "sample/loops.h"

namespace ridgeline {
constinit const ChunkKernels kPortableChunkKernels = kChunkKernels;
}
