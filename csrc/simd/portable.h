#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

#include "simd/half.h"

// Four lanes in the compilers' own vectors: whatever 16-byte registers a machine has, or none.
namespace ridgeline {
namespace {

struct Arch {
    static constexpr int kLanes = 4;
    static constexpr int kMaxRows = 4;
    static constexpr int kMaxNibbleRows = 4;
    static constexpr int kNibbleAccumulators = 8;
    static constexpr int kStrip = 2;
    static constexpr int kInt8Offset = 128;
    static constexpr float kPowerUnderflow = -252.0f;  // scale(1..2, this) is 0

    typedef float F __attribute__((vector_size(16)));
    typedef int32_t I __attribute__((vector_size(16)));

    static F zero() { return F{}; }
    static F set(float x) { return F{x, x, x, x}; }
    static F load(const float* p) { return copy<F>(p); }
    static void store(float* p, F x) { std::memcpy(p, &x, sizeof x); }
    static F add(F a, F b) { return a + b; }
    static F sub(F a, F b) { return a - b; }
    static F mul(F a, F b) { return a * b; }
    static F div(F a, F b) { return a / b; }
    /// Two roundings: not every machine has the fused operation.
    static F fma(F a, F b, F c) { return a * b + c; }
    /// b where either is not a number, so that a limit as `a` lets a NaN through.
    static F max(F a, F b) { return select(a > b, a, b); }
    static F min(F a, F b) { return select(a < b, a, b); }
    static F abs(F x) { return from_bits(bits(x) & 0x7fffffff); }
    static float reduce_max(F x) {
        const float a = x[0] > x[2] ? x[0] : x[2], b = x[1] > x[3] ? x[1] : x[3];
        return a > b ? a : b;
    }
    static float reduce_sum(F x) { return (x[0] + x[2]) + (x[1] + x[3]); }
    /// To the nearest whole number, ties to even, for |x| < 2^22.
    static F round(F x) {
        const F shift = set(0x1.8p23f);
        return (x + shift) - shift;
    }
    /// x 2^n for a whole n of size 252 or less, in two steps, since a float holds 2^n for 127 at most.
    static F scale(F x, F n) {
        const I whole = truncate(n), half = whole >> 1;
        return x * power(half) * power(whole - half);
    }
    static F negative(F x, F then, F otherwise) { return select(x < zero(), then, otherwise); }
    static F with_sign_of(F x, F sign) {
        return from_bits((bits(x) & 0x7fffffff) | (bits(sign) & INT32_MIN));
    }

    static I load_int(const void* p) { return copy<I>(p); }
    static void store_int(void* p, I x) { std::memcpy(p, &x, sizeof x); }
    static I set_int(int32_t x) { return I{x, x, x, x}; }
    static I set_bytes(const uint8_t* p) {  // the same 4 bytes in every lane
        int32_t x;
        std::memcpy(&x, p, sizeof x);
        return set_int(x);
    }
    static I load_bytes(const uint8_t* p) { return I{p[0], p[1], p[2], p[3]}; }
    static I and_int(I a, I b) { return a & b; }
    static I or_int(I a, I b) { return a | b; }
    static I sub_int(I a, I b) { return a - b; }
    static I mul_int(I a, I b) { return a * b; }
    template <int n>
    static I shift_right(I x) {
        return reinterpret_cast<I>(reinterpret_cast<U>(x) >> n);
    }
    static F to_float(I x) {
        return F{static_cast<float>(x[0]), static_cast<float>(x[1]), static_cast<float>(x[2]),
                 static_cast<float>(x[3])};
    }
    static I bits(F x) { return reinterpret_cast<I>(x); }
    static F from_bits(I x) { return reinterpret_cast<F>(x); }

    static F load_fp16(const uint16_t* p) {
        return F{from_fp16(p[0]), from_fp16(p[1]), from_fp16(p[2]), from_fp16(p[3])};
    }
    static F load_bf16(const uint16_t* p) {
        return F{from_bf16(p[0]), from_bf16(p[1]), from_bf16(p[2]), from_bf16(p[3])};
    }
    static void store_bf16(uint16_t* p, F x) {
        for (int i = 0; i < kLanes; ++i) p[i] = to_bf16(x[i]);
    }

    /// The same where subnormal numbers may become 0.
    static void store_normal_bf16(uint16_t* p, F x) { store_bf16(p, x); }
    /// 2 kLanes whole numbers as bf16, which holds them exactly: the upper halves of their floats.
    static void int8_to_bf16(const int8_t* from, uint16_t* to) {
        for (int i = 0; i < 2 * kLanes; ++i) to[i] = float_bits(from[i]) >> 16;
    }
    /// Rows become columns.
    static void transpose(I (&rows)[kLanes]) {
        I t[kLanes];
        for (int i = 0; i < kLanes; ++i)
            for (int j = 0; j < kLanes; ++j) t[i][j] = rows[j][i];
        for (int i = 0; i < kLanes; ++i) rows[i] = t[i];
    }

    /// acc + the products of each lane's two bf16, w and a.
    static F dot_bf16(F acc, I w, I a) {
        const I high = set_int(static_cast<int32_t>(0xffff0000));
        acc = fma(from_bits(w << 16), from_bits(a << 16), acc);
        return fma(from_bits(w & high), from_bits(a & high), acc);
    }
    /// acc + the products of each lane's four bytes, w as stored and a signed.
    static I dot_int8(I acc, I w, I a) {
        acc += (w & 255) * (a << 24 >> 24);
        acc += (w >> 8 & 255) * (a << 16 >> 24);
        acc += (w >> 16 & 255) * (a << 8 >> 24);
        return acc + (w >> 24 & 255) * (a >> 24);
    }
    /// The same for w from 0 to 15.
    static I dot_nibble(I acc, I w, I a) { return dot_int8(acc, w, a); }

private:
    typedef uint32_t U __attribute__((vector_size(16)));

    template <class V>
    static V copy(const void* p) {
        V x;
        std::memcpy(&x, p, sizeof x);
        return x;
    }
    static F select(I mask, F then, F otherwise) {
        return from_bits((bits(then) & mask) | (bits(otherwise) & ~mask));
    }
    static I truncate(F x) {
        return I{static_cast<int32_t>(x[0]), static_cast<int32_t>(x[1]), static_cast<int32_t>(x[2]),
                 static_cast<int32_t>(x[3])};
    }
    static F power(I n) { return from_bits((n + 127) << 23); }
};

}  // namespace
}  // namespace ridgeline
