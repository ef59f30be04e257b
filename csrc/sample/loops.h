#pragma once

#include <cstdint>
#include <cstring>

#include "sample/chunk.h"
#include "sample/exponential.h"
#include "sample/noise.h"
#include "simd/half.h"

// The chunk kernels of one instruction set, as its kernels_*.cpp compiles them. Everything here has internal
// linkage: the linker must never take one set's copy of a function for another's.
namespace ridgeline {
namespace {

/// The bits of a float as an integer of the same order; adding 0 makes -0 a 0.
inline int32_t ordered(float x) {
    const int32_t bits = static_cast<int32_t>(float_bits(x + 0.0f));
    return bits ^ (bits >> 31 & 0x7fffffff);
}

Largest largest(const float* logits, int64_t vocab) {
    int32_t most = INT32_MIN, nan = 0;
    int64_t where = 0;
    for (int64_t first = 0; first < vocab; first += kChunk) {
        const int64_t n = vocab - first < kChunk ? vocab - first : kChunk;
        int32_t here = INT32_MIN;
        for (int64_t i = 0; i < n; ++i) {
            const int32_t key = ordered(logits[first + i]);
            here = here > key ? here : key;
            nan |= (float_bits(logits[first + i]) & 0x7fffffff) > 0x7f800000;
        }
        if (here <= most) continue;
        most = here;
        where = first;
    }
    if (nan) return {__builtin_nanf(""), 0};
    while (ordered(logits[where]) != most) ++where;
    return {logits[where], where};
}

float scores(const float* logits, int64_t n, float largest, float temperature, float* scores) {
    // Of numbers that are not positive, the greatest has the least bits.
    uint32_t least = UINT32_MAX;
    for (int64_t i = 0; i < n; ++i) {
        scores[i] = (logits[i] - largest) / temperature;
        const uint32_t bits = float_bits(scores[i]);
        least = least < bits ? least : bits;
    }
    return float_from_bits(least);
}

void masses(const float* scores, int64_t n, float* masses) {
    for (int64_t i = 0; i < n; ++i) masses[i] = exponential(scores[i]);
}

/// score + gumbel(u) > best means -log u < e^(score - best), and 1 - u <= -log u: so a contender has
/// 1 - u < e^(score - best), for which neither a logarithm nor more than the first bits of u are needed.
/// While `best` is near what it will be, that holds for e^(score - best) of the tokens: for few of all.
bool contenders(const float* scores, int64_t n, uint64_t state, int64_t token, float best, uint8_t* marks) {
    constexpr int kBits = 24;  // which a float holds exactly
    constexpr float kSlack = 1.001f;
    int32_t least[kChunk];  // 1 - u in steps of 2^-24, rounded down
    for (int64_t i = 0; i < n; ++i)
        least[i] = static_cast<int32_t>(~noise_bits(state, token + i) >> (64 - kBits));
    uint8_t any = 0;
    for (int64_t i = 0; i < n; ++i) {
        const float lead = scores[i] - best;
        const float most = exponential(lead < 0.0f ? lead : 0.0f) * (kSlack * (1 << kBits));
        marks[i] = static_cast<float>(least[i]) <= most;
        any |= marks[i];
    }
    return any != 0;
}

constexpr ChunkKernels kChunkKernels = {largest, scores, masses, contenders};

}  // namespace
}  // namespace ridgeline
