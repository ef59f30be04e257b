#pragma once

#include <cstdint>

namespace ridgeline {

/// Tokens that are looked at together; their scores lie in the first-level cache.
constexpr int kChunk = 256;

/// A row's largest logit and the lowest id that has it; the logit is a NaN if the row holds one.
struct Largest {
    float logit;
    int64_t token;
};

/// What is done to many tokens at once. The functions are plain loops that the compiler makes vectors of,
/// once for each instruction set; elements are computed alike, so results are the same bits.
struct ChunkKernels {
    Largest (*largest)(const float* logits, int64_t vocab);
    /// scores = (logits - largest) / temperature; returns the greatest of the n.
    float (*scores)(const float* logits, int64_t n, float largest, float temperature, float* scores);
    /// e^score.
    void (*masses)(const float* scores, int64_t n, float* masses);
    /// Marks the tokens that may beat `best`, a sum of score and noise, with a byte that is not 0, and no
    /// fewer; returns whether there are any. The first of the n has the id `token`.
    bool (*contenders)(const float* scores, int64_t n, uint64_t state, int64_t token, float best,
                       uint8_t* marks);
};

extern const ChunkKernels kPortableChunkKernels;
#if defined(__x86_64__)
extern const ChunkKernels kAvx2ChunkKernels;
extern const ChunkKernels kAvx512ChunkKernels;
#endif

}  // namespace ridgeline
