#include "linear/quantize.h"

#include <algorithm>
#include <cmath>
#include <stdexcept>

#include "simd/half.h"

namespace ridgeline {
namespace {

/// The nearest whole number, ties to even, for |x| < 2^22: adding 1.5 * 2^23 leaves no fraction.
/// Vectorises where nearbyint does not.
inline float round_even(float x) {
    constexpr float shift = 0x1.8p23f;
    return (x + shift) - shift;
}

/// 1 / scale, or 0 for a scale of 0, which stands for a run of zeros.
float inverse(float scale) { return scale == 0.0f ? 0.0f : 1.0f / scale; }

uint16_t checked_scale(float scale) {
    const uint16_t half = to_fp16(scale);
    if (!std::isfinite(from_fp16(half)))
        throw std::domain_error(std::isfinite(scale) ? "holds values too large for fp16 scales"
                                                     : "holds a NaN or an infinity");
    return half;
}

/// The weight of largest size, with its sign; NaN if any is not a number.
float signed_peak(const float* w, int64_t n) {
    float peak = 0.0f, bad = 0.0f;
    for (int64_t i = 0; i < n; ++i) {
        bad += w[i] * 0.0f;
        if (std::fabs(w[i]) > std::fabs(peak)) peak = w[i];
    }
    return peak + bad;
}

double squared_error(const float* w, int64_t n, float scale, float low, float high) {
    const float inv = inverse(scale);
    float sums[8] = {};  // eight partial sums, so that the loop vectorises in a fixed order
    int64_t i = 0;
    for (; i + 8 <= n; i += 8) {
        for (int j = 0; j < 8; ++j) {
            const float q = std::min(std::max(round_even(w[i + j] * inv), low), high);
            const float error = w[i + j] - q * scale;
            sums[j] += error * error;
        }
    }
    double sum = 0.0;
    for (float part : sums) sum += part;
    return sum;
}

/// The scale with the least squared error for the whole numbers that `scale` gives: sum of w q / sum of q q.
float fitted_scale(const float* w, int64_t n, float scale, float low, float high) {
    const float inv = inverse(scale);
    float products[8] = {}, squares[8] = {};
    for (int64_t i = 0; i + 8 <= n; i += 8)
        for (int j = 0; j < 8; ++j) {
            const float q = std::min(std::max(round_even(w[i + j] * inv), low), high);
            products[j] += w[i + j] * q;
            squares[j] += q * q;
        }
    double product = 0.0, square = 0.0;
    for (int j = 0; j < 8; ++j) product += products[j], square += squares[j];
    return square == 0.0 ? scale : static_cast<float>(product / square);
}

void round_all(const float* w, int64_t n, float scale, float zero, float low, float high, int* q) {
    const float inv = inverse(scale);
    for (int64_t i = 0; i < n; ++i)
        q[i] = static_cast<int>(std::min(std::max(round_even(w[i] * inv) + zero, low), high));
}

}  // namespace

Quantized quantize_int8(const float* w, int64_t n, int* q) {
    const uint16_t half = checked_scale(std::fabs(signed_peak(w, n)) / 127.0f);
    round_all(w, n, from_fp16(half), 0.0f, -127.0f, 127.0f, q);
    return {half, 0};
}

Quantized quantize_int4(const float* w, int64_t n, int* q) {
    constexpr float low = -8.0f, high = 7.0f;
    const float peak = signed_peak(w, n);
    uint16_t best = checked_scale(-peak / 8.0f);
    double least = squared_error(w, n, from_fp16(best), low, high);
    const auto offer = [&](float scale) {
        const uint16_t candidate = checked_scale(scale);
        const double error = squared_error(w, n, from_fp16(candidate), low, high);
        if (error >= least) return false;
        least = error;
        best = candidate;
        return true;
    };
    // The peak at -8 or a little nearer, and at 7: there the other sign has the longer side.
    for (int s = -2; s <= 10; ++s) offer(-peak / (8.0f - static_cast<float>(s) / 8.0f));
    for (int s = -4; s <= 4; ++s) offer(peak / (7.0f - static_cast<float>(s) / 8.0f));
    for (int i = 0; i < 3; ++i)
        if (!offer(fitted_scale(w, n, from_fp16(best), low, high))) break;
    round_all(w, n, from_fp16(best), 0.0f, low, high, q);
    return {best, 0};
}

Quantized quantize_int4_zero(const float* w, int64_t n, int* q) {
    float low = 0.0f, high = 0.0f, bad = 0.0f;
    for (int64_t i = 0; i < n; ++i) {
        bad += w[i] * 0.0f;
        low = std::min(low, w[i]);
        high = std::max(high, w[i]);
    }
    const uint16_t half = checked_scale((high - low) / 15.0f + bad);
    const float scale = from_fp16(half);
    const float zero = std::min(std::max(round_even(-low * inverse(scale)), 0.0f), 15.0f);
    round_all(w, n, scale, zero, 0.0f, 15.0f, q);
    return {half, static_cast<int>(zero)};
}

}  // namespace ridgeline
