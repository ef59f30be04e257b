#pragma once

#include <cstdint>

#include "simd/half.h"

namespace ridgeline {
namespace {

/// e^x for x <= 0 to 2e-7 of it, and e^-87 for x below -87: nothing beside the 1 of the likeliest token.
/// simd/math.h's fuses products and sums where the machine can; here every machine must get the same bits.
inline float exponential(float x) {
    const float limited = x > -87.0f ? x : -87.0f;
    constexpr float kShift = 0x1.8p23f;  // adding it leaves no fraction
    const float n = (limited * 0x1.715476p0f + kShift) - kShift;
    // ln 2 in two parts, the first with few enough bits for n times it to be exact.
    const float r = (limited - n * 0x1.62e4p-1f) - n * 0x1.7f7d1cp-20f;
    float series = r * (1.0f / 5040) + 1.0f / 720;  // Taylor's, to r^7
    series = series * r + 1.0f / 120;
    series = series * r + 1.0f / 24;
    series = series * r + 1.0f / 6;
    series = series * r + 0.5f;
    series = series * r + 1.0f;
    series = series * r + 1.0f;
    return series * float_from_bits(static_cast<uint32_t>(static_cast<int32_t>(n) + 127) << 23);
}

}  // namespace
}  // namespace ridgeline
