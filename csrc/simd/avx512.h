#pragma once

#include <immintrin.h>

#include <cstdint>

// AVX-512 with VNNI, and with BF16 where this file is compiled for it.
namespace ridgeline {
namespace {

struct Arch {
    static constexpr int kLanes = 16;
    // 14 x 2 accumulators, 2 weights and 1 activation take 31 of 32 registers.
    static constexpr int kMaxRows = 14;
    static constexpr int kStrip = 2;  // registers of columns that a tile works on at a time
    // A nibble accumulates twice, as integers and as floats, and needs a mask.
    static constexpr int kMaxNibbleRows = 5;
    static constexpr int kNibbleAccumulators = 10;
    static constexpr int kInt8Offset = 128;            // int8 dot products take weights as stored, q + 128
    static constexpr float kPowerUnderflow = -160.0f;  // scale(1..2, this) is 0

    using F = __m512;
    using I = __m512i;

    static F zero() { return _mm512_setzero_ps(); }
    static F set(float x) { return _mm512_set1_ps(x); }
    static F load(const float* p) { return _mm512_loadu_ps(p); }
    static void store(float* p, F x) { _mm512_storeu_ps(p, x); }
    static F add(F a, F b) { return _mm512_add_ps(a, b); }
    static F sub(F a, F b) { return _mm512_sub_ps(a, b); }
    static F mul(F a, F b) { return _mm512_mul_ps(a, b); }
    static F div(F a, F b) { return _mm512_div_ps(a, b); }
    static F fma(F a, F b, F c) { return _mm512_fmadd_ps(a, b, c); }
    /// b where either is not a number, so that a limit as `a` lets a NaN through.
    static F max(F a, F b) { return _mm512_max_ps(a, b); }
    static F min(F a, F b) { return _mm512_min_ps(a, b); }
    static F abs(F x) { return _mm512_abs_ps(x); }
    static float reduce_max(F x) { return _mm512_reduce_max_ps(x); }
    static float reduce_sum(F x) { return _mm512_reduce_add_ps(x); }
    static F round(F x) { return _mm512_roundscale_ps(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }
    /// x 2^n for a whole n.
    static F scale(F x, F n) { return _mm512_scalef_ps(x, n); }
    static F negative(F x, F then, F otherwise) {
        return _mm512_mask_blend_ps(_mm512_cmp_ps_mask(x, zero(), _CMP_LT_OQ), otherwise, then);
    }
    static F with_sign_of(F x, F sign) {
        const I mask = _mm512_set1_epi32(INT32_MIN);
        return _mm512_castsi512_ps(
            _mm512_ternarylogic_epi32(mask, _mm512_castps_si512(sign), _mm512_castps_si512(x), 0xca));
    }

    static I load_int(const void* p) { return _mm512_loadu_si512(p); }
    static void store_int(void* p, I x) { _mm512_storeu_si512(p, x); }
    static I set_int(int32_t x) { return _mm512_set1_epi32(x); }
    static I set_bytes(const uint8_t* p) {  // the same 4 bytes in every lane
        int32_t x;
        __builtin_memcpy(&x, p, sizeof x);
        return _mm512_set1_epi32(x);
    }
    static I load_bytes(const uint8_t* p) {
        return _mm512_cvtepu8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
    }
    static I and_int(I a, I b) { return _mm512_and_si512(a, b); }
    static I or_int(I a, I b) { return _mm512_or_si512(a, b); }
    static I sub_int(I a, I b) { return _mm512_sub_epi32(a, b); }
    static I mul_int(I a, I b) { return _mm512_mullo_epi32(a, b); }
    template <int n>
    static I shift_right(I x) {
        return _mm512_srli_epi32(x, n);
    }
    static F to_float(I x) { return _mm512_cvtepi32_ps(x); }
    static I bits(F x) { return _mm512_castps_si512(x); }
    static F from_bits(I x) { return _mm512_castsi512_ps(x); }

    static F load_fp16(const uint16_t* p) {
        return _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
    }
    static F load_bf16(const uint16_t* p) {
        return from_bits(_mm512_slli_epi32(
            _mm512_cvtepu16_epi32(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p))), 16));
    }
    static void store_bf16(uint16_t* p, F x) {
        const I b = bits(x);
        const I odd = _mm512_and_si512(_mm512_srli_epi32(b, 16), set_int(1));
        const I rounded = _mm512_add_epi32(_mm512_add_epi32(b, set_int(0x7fff)), odd);
        const __mmask16 nan = _mm512_cmp_ps_mask(x, x, _CMP_UNORD_Q);
        const I kept = _mm512_mask_or_epi32(rounded, nan, b, set_int(0x400000));
        _mm256_storeu_si256(reinterpret_cast<__m256i*>(p),
                            _mm512_cvtepi32_epi16(_mm512_srli_epi32(kept, 16)));
    }

    /// The same where subnormal numbers may become 0.
    static void store_normal_bf16(uint16_t* p, F x) {
#if defined(__AVX512BF16__)
        __m256i packed;
        asm("vcvtneps2bf16 %1, %0" : "=v"(packed) : "v"(x));
        _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), packed);
#else
        store_bf16(p, x);
#endif
    }
    /// 2 kLanes whole numbers as bf16, which holds them exactly: the upper halves of their floats.
    static void int8_to_bf16(const int8_t* from, uint16_t* to) {
        const I upper_halves =
            _mm512_set_epi16(63, 61, 59, 57, 55, 53, 51, 49, 47, 45, 43, 41, 39, 37, 35, 33, 31, 29, 27, 25,
                             23, 21, 19, 17, 15, 13, 11, 9, 7, 5, 3, 1);
        const auto floats = [&](int at) {
            const __m128i q = _mm_loadu_si128(reinterpret_cast<const __m128i*>(from + at));
            return bits(to_float(_mm512_cvtepi8_epi32(q)));
        };
        store_int(to, _mm512_permutex2var_epi16(floats(0), upper_halves, floats(16)));
    }
    /// Rows become columns.
    static void transpose(I (&rows)[kLanes]) {
        I t[kLanes];
        for (int i = 0; i < kLanes; i += 2) {
            t[i] = _mm512_unpacklo_epi32(rows[i], rows[i + 1]);
            t[i + 1] = _mm512_unpackhi_epi32(rows[i], rows[i + 1]);
        }
        for (int i = 0; i < kLanes; i += 4) {
            rows[i] = _mm512_unpacklo_epi64(t[i], t[i + 2]);
            rows[i + 1] = _mm512_unpackhi_epi64(t[i], t[i + 2]);
            rows[i + 2] = _mm512_unpacklo_epi64(t[i + 1], t[i + 3]);
            rows[i + 3] = _mm512_unpackhi_epi64(t[i + 1], t[i + 3]);
        }
        // rows[4 i + j] holds columns j, j + 4, j + 8, j + 12 of rows 4 i .. 4 i + 3.
        for (int j = 0; j < 4; ++j) {
            const I even = _mm512_shuffle_i32x4(rows[j], rows[4 + j], 0x88);
            const I odd = _mm512_shuffle_i32x4(rows[j], rows[4 + j], 0xdd);
            const I even_low = _mm512_shuffle_i32x4(rows[8 + j], rows[12 + j], 0x88);
            const I odd_low = _mm512_shuffle_i32x4(rows[8 + j], rows[12 + j], 0xdd);
            t[j] = _mm512_shuffle_i32x4(even, even_low, 0x88);
            t[j + 8] = _mm512_shuffle_i32x4(even, even_low, 0xdd);
            t[j + 4] = _mm512_shuffle_i32x4(odd, odd_low, 0x88);
            t[j + 12] = _mm512_shuffle_i32x4(odd, odd_low, 0xdd);
        }
        for (int i = 0; i < kLanes; ++i) rows[i] = t[i];
    }

    /// acc + the products of each lane's two bf16, w and a.
    static F dot_bf16(F acc, I w, I a) {
#if defined(__AVX512BF16__)
        // As an instruction, not an intrinsic: clang 16 never comes to an end on the intrinsic's types.
        asm("vdpbf16ps %2, %1, %0" : "+v"(acc) : "v"(w), "v"(a));
        return acc;
#else
        const I high = set_int(static_cast<int32_t>(0xffff0000));
        acc = fma(from_bits(_mm512_slli_epi32(w, 16)), from_bits(_mm512_slli_epi32(a, 16)), acc);
        return fma(from_bits(and_int(w, high)), from_bits(and_int(a, high)), acc);
#endif
    }
    /// acc + the products of each lane's four bytes, w as stored and a signed.
    static I dot_int8(I acc, I w, I a) {
        // In place, whatever the compiler thinks: GCC 12 copies and spills accumulators otherwise.
        asm("vpdpbusd %2, %1, %0" : "+v"(acc) : "v"(w), "v"(a));
        return acc;
    }
    /// The same for w from 0 to 15.
    static I dot_nibble(I acc, I w, I a) { return dot_int8(acc, w, a); }
};

}  // namespace
}  // namespace ridgeline
