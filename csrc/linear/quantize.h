#pragma once

#include <cstdint>

namespace ridgeline {

/// A run of weights as integers: w is about scale (q - zero).
struct Quantized {
    uint16_t scale;  // fp16
    int zero;
};

/// The quantisers round to nearest, ties to even, against the scale as fp16 holds it. They throw
/// std::domain_error for a weight that is not finite or too large for an fp16 scale.

/// 8 bits, symmetric: scale = max|w| / 127, -127 <= q <= 127, zero = 0.
Quantized quantize_int8(const float* w, int64_t n, int* q);

/// 4 bits, symmetric: of the candidates scale = -m / (8 - s / 8), m the weight of largest size and
/// s = 0..8, the one with the least squared error, the first of equals; -8 <= q <= 7, zero = 0.
Quantized quantize_int4(const float* w, int64_t n, int* q);

/// 4 bits with a zero point, 0 included in the range: lo = min(w, 0), hi = max(w, 0),
/// scale = (hi - lo) / 15, zero = round(-lo / scale), 0 <= q <= 15.
Quantized quantize_int4_zero(const float* w, int64_t n, int* q);

}  // namespace ridgeline
