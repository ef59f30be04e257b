#pragma once

#include <cmath>
#include <cstdint>

// Noise that belongs to a seed, a position and a token: they are hashed to a number of the SplitMix64
// generator (Steele, Lea and Flood 2014), and that to a uniform u and to Gumbel noise -log(-log u).
// Internal linkage, as in all headers that files of different instruction sets share.
namespace ridgeline {
namespace {

constexpr uint64_t kGoldenStep = 0x9E3779B97F4A7C15;

/// SplitMix64's output function: a bijection that scatters its bits.
inline uint64_t mix(uint64_t z) {
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9;
    z = (z ^ (z >> 27)) * 0x94D049BB133111EB;
    return z ^ (z >> 31);
}

/// The generator of a seed and a position.
inline uint64_t noise_state(int64_t seed, int64_t position) {
    const uint64_t seeded = mix(static_cast<uint64_t>(seed) + kGoldenStep);
    return mix(seeded + static_cast<uint64_t>(position) * kGoldenStep);
}

/// The 64 random bits of a token; the upper 52 make its uniform.
inline uint64_t noise_bits(uint64_t state, int64_t token) {
    return mix(state + static_cast<uint64_t>(token + 1) * kGoldenStep);
}

/// With half a step added the uniform is exact in double, never 0 and never 1.
inline double gumbel(uint64_t bits) {
    const double uniform = (static_cast<double>(bits >> 12) + 0.5) * 0x1p-52;
    return -std::log(-std::log(uniform));
}

}  // namespace
}  // namespace ridgeline
