#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

// 16-bit floats, one at a time. Only packing and remainders use these; kernels convert vectors.
// Internal linkage, so that a file built for AVX-512 can't lend its copy to one that is not.
namespace ridgeline {
namespace {

inline uint32_t float_bits(float x) {
    uint32_t bits;
    std::memcpy(&bits, &x, sizeof bits);
    return bits;
}

inline float float_from_bits(uint32_t bits) {
    float x;
    std::memcpy(&x, &bits, sizeof x);
    return x;
}

inline float from_bf16(uint16_t x) { return float_from_bits(static_cast<uint32_t>(x) << 16); }

/// Round to nearest, ties to even; a NaN stays a NaN.
inline uint16_t to_bf16(float x) {
    const uint32_t bits = float_bits(x);
    const uint32_t rounded = bits + 0x7fff + (bits >> 16 & 1);
    const bool nan = (bits & 0x7fffffff) > 0x7f800000;
    return static_cast<uint16_t>((nan ? bits | 0x400000 : rounded) >> 16);
}

/// Exact: a subnormal is its integer significand times 2^-24.
inline float from_fp16(uint16_t x) {
    const uint32_t sign = static_cast<uint32_t>(x & 0x8000) << 16;
    const uint32_t exponent = x >> 10 & 31, fraction = x & 1023;
    if (exponent == 0) return float_from_bits(sign | float_bits(static_cast<float>(fraction) * 0x1p-24f));
    const uint32_t wide = exponent == 31 ? 255 : exponent + 112;
    return float_from_bits(sign | wide << 23 | fraction << 13);
}

/// Round to nearest, ties to even; too large becomes infinity, a NaN stays a NaN.
inline uint16_t to_fp16(float x) {
    const uint32_t bits = float_bits(x);
    const uint16_t sign = static_cast<uint16_t>(bits >> 16 & 0x8000);
    const uint32_t size = bits & 0x7fffffff;
    if (size > 0x7f800000) return sign | 0x7e00;
    if (size >= 0x477ff000) return sign | 0x7c00;  // 65520 and more round to infinity
    if (size < 0x38800000)                         // below 2^-14: a whole number of 2^-24
        return sign | static_cast<uint16_t>(std::nearbyintf(float_from_bits(size) * 0x1p24f));
    const uint32_t rounded = size + 0xfff + (size >> 13 & 1);
    return sign | static_cast<uint16_t>((rounded - (112u << 23)) >> 13);
}

}  // namespace
}  // namespace ridgeline
