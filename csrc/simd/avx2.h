#pragma once

#include <immintrin.h>

#include <cstdint>

// AVX2 with FMA and F16C.
namespace ridgeline {
namespace {

struct Arch {
    static constexpr int kLanes = 8;
    static constexpr int kMaxRows = 5;  // 5 x 2 accumulators leave 6 of 16 registers
    static constexpr int kMaxNibbleRows = 5;
    static constexpr int kNibbleAccumulators = 5;
    static constexpr int kStrip = 2;
    static constexpr int kInt8Offset = 0;              // dot_int8 takes the stored offset off
    static constexpr float kPowerUnderflow = -252.0f;  // scale(1..2, this) is 0

    using F = __m256;
    using I = __m256i;

    static F zero() { return _mm256_setzero_ps(); }
    static F set(float x) { return _mm256_set1_ps(x); }
    static F load(const float* p) { return _mm256_loadu_ps(p); }
    static void store(float* p, F x) { _mm256_storeu_ps(p, x); }
    static F add(F a, F b) { return _mm256_add_ps(a, b); }
    static F sub(F a, F b) { return _mm256_sub_ps(a, b); }
    static F mul(F a, F b) { return _mm256_mul_ps(a, b); }
    static F div(F a, F b) { return _mm256_div_ps(a, b); }
    static F fma(F a, F b, F c) { return _mm256_fmadd_ps(a, b, c); }
    /// b where either is not a number, so that a limit as `a` lets a NaN through.
    static F max(F a, F b) { return _mm256_max_ps(a, b); }
    static F min(F a, F b) { return _mm256_min_ps(a, b); }
    static F abs(F x) { return _mm256_andnot_ps(set(-0.0f), x); }
    static float reduce_max(F x) {
        const __m128 half = _mm_max_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps(x, 1));
        const __m128 quarter = _mm_max_ps(half, _mm_movehl_ps(half, half));
        return _mm_cvtss_f32(_mm_max_ss(quarter, _mm_movehdup_ps(quarter)));
    }
    static float reduce_sum(F x) {
        const __m128 half = _mm_add_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps(x, 1));
        const __m128 quarter = _mm_add_ps(half, _mm_movehl_ps(half, half));
        return _mm_cvtss_f32(_mm_add_ss(quarter, _mm_movehdup_ps(quarter)));
    }
    static F round(F x) { return _mm256_round_ps(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }
    /// x 2^n for a whole n of size 252 or less, in two steps, since a float holds 2^n for 127 at most.
    static F scale(F x, F n) {
        const I whole = _mm256_cvtps_epi32(n), half = _mm256_srai_epi32(whole, 1);
        return mul(mul(x, power(half)), power(_mm256_sub_epi32(whole, half)));
    }
    static F negative(F x, F then, F otherwise) {
        return _mm256_blendv_ps(otherwise, then, _mm256_cmp_ps(x, zero(), _CMP_LT_OQ));
    }
    static F with_sign_of(F x, F sign) {
        return _mm256_or_ps(_mm256_and_ps(set(-0.0f), sign), _mm256_andnot_ps(set(-0.0f), x));
    }

    static I load_int(const void* p) { return _mm256_loadu_si256(static_cast<const __m256i*>(p)); }
    static void store_int(void* p, I x) { _mm256_storeu_si256(static_cast<__m256i*>(p), x); }
    static I set_int(int32_t x) { return _mm256_set1_epi32(x); }
    static I set_bytes(const uint8_t* p) {  // the same 4 bytes in every lane
        int32_t x;
        __builtin_memcpy(&x, p, sizeof x);
        return _mm256_set1_epi32(x);
    }
    static I load_bytes(const uint8_t* p) {
        return _mm256_cvtepu8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(p)));
    }
    static I and_int(I a, I b) { return _mm256_and_si256(a, b); }
    static I or_int(I a, I b) { return _mm256_or_si256(a, b); }
    static I sub_int(I a, I b) { return _mm256_sub_epi32(a, b); }
    static I mul_int(I a, I b) { return _mm256_mullo_epi32(a, b); }
    template <int n>
    static I shift_right(I x) {
        return _mm256_srli_epi32(x, n);
    }
    static F to_float(I x) { return _mm256_cvtepi32_ps(x); }
    static I bits(F x) { return _mm256_castps_si256(x); }
    static F from_bits(I x) { return _mm256_castsi256_ps(x); }

    static F load_fp16(const uint16_t* p) {
        return _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
    }
    static F load_bf16(const uint16_t* p) {
        return from_bits(_mm256_slli_epi32(
            _mm256_cvtepu16_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p))), 16));
    }
    static void store_bf16(uint16_t* p, F x) {
        const I b = bits(x);
        const I odd = and_int(shift_right<16>(b), set_int(1));
        const I rounded = _mm256_add_epi32(_mm256_add_epi32(b, set_int(0x7fff)), odd);
        const I quiet = or_int(b, set_int(0x400000));
        const I nan = bits(_mm256_cmp_ps(x, x, _CMP_UNORD_Q));
        const I kept = shift_right<16>(_mm256_blendv_epi8(rounded, quiet, nan));
        const I packed = _mm256_permute4x64_epi64(_mm256_packus_epi32(kept, kept), 0x08);
        _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm256_castsi256_si128(packed));
    }

    /// The same where subnormal numbers may become 0.
    static void store_normal_bf16(uint16_t* p, F x) { store_bf16(p, x); }
    /// 2 kLanes whole numbers as bf16, which holds them exactly: the upper halves of their floats.
    static void int8_to_bf16(const int8_t* from, uint16_t* to) {
        const auto upper_halves = [&](int at) {
            const __m128i q = _mm_loadl_epi64(reinterpret_cast<const __m128i*>(from + at));
            return shift_right<16>(bits(to_float(_mm256_cvtepi8_epi32(q))));
        };
        store_int(to, _mm256_permute4x64_epi64(_mm256_packus_epi32(upper_halves(0), upper_halves(8)), 0xd8));
    }
    /// Rows become columns.
    static void transpose(I (&rows)[kLanes]) {
        I t[kLanes];
        for (int i = 0; i < kLanes; i += 2) {
            t[i] = _mm256_unpacklo_epi32(rows[i], rows[i + 1]);
            t[i + 1] = _mm256_unpackhi_epi32(rows[i], rows[i + 1]);
        }
        for (int i = 0; i < kLanes; i += 4) {
            rows[i] = _mm256_unpacklo_epi64(t[i], t[i + 2]);
            rows[i + 1] = _mm256_unpackhi_epi64(t[i], t[i + 2]);
            rows[i + 2] = _mm256_unpacklo_epi64(t[i + 1], t[i + 3]);
            rows[i + 3] = _mm256_unpackhi_epi64(t[i + 1], t[i + 3]);
        }
        // rows[4 i + j] holds columns j and j + 4 of rows 4 i .. 4 i + 3.
        for (int j = 0; j < 4; ++j) {
            t[j] = _mm256_permute2x128_si256(rows[j], rows[4 + j], 0x20);
            t[j + 4] = _mm256_permute2x128_si256(rows[j], rows[4 + j], 0x31);
        }
        for (int i = 0; i < kLanes; ++i) rows[i] = t[i];
    }

    /// acc + the products of each lane's two bf16, w and a.
    static F dot_bf16(F acc, I w, I a) {
        const I high = set_int(static_cast<int32_t>(0xffff0000));
        acc = fma(from_bits(_mm256_slli_epi32(w, 16)), from_bits(_mm256_slli_epi32(a, 16)), acc);
        return fma(from_bits(and_int(w, high)), from_bits(and_int(a, high)), acc);
    }
    /// acc + the products of each lane's four bytes, w as stored (q + 128) and a signed. The size of w
    /// times a with w's sign: pairs sum to 2 * 127 * 127 at most, which 16 bits hold.
    static I dot_int8(I acc, I w, I a) {
        const I q = _mm256_xor_si256(w, _mm256_set1_epi8(-128));
        return dot_nibble(acc, _mm256_abs_epi8(q), _mm256_sign_epi8(a, q));
    }
    /// The same for w from 0 to 127, without an offset.
    static I dot_nibble(I acc, I w, I a) {
        return _mm256_add_epi32(acc, _mm256_madd_epi16(_mm256_maddubs_epi16(w, a), _mm256_set1_epi16(1)));
    }

private:
    static F power(I n) { return from_bits(_mm256_slli_epi32(_mm256_add_epi32(n, set_int(127)), 23)); }
};

}  // namespace
}  // namespace ridgeline
