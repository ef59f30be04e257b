#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>

#include "attention/tile.h"
#include "simd/math.h"

// Online softmax. The state of a row over the keys met so far is (m, l, o): their largest score, the sum of
// 2^(score - m), and the sum of 2^(score - m) times the values. Scores are in units of log 2. More keys
// of a larger score m' rescale l and o by 2^(m - m'). A row that has met no key is (-inf, 0, 0).
namespace ridgeline {
namespace {

constexpr float kLog2E = 0x1.715476p0f;
constexpr float kNoScore = -std::numeric_limits<float>::infinity();

/// States of rows while keys are met.
struct RunningState {
    float* largest;  // [rows]
    float* sums;     // [rows][kLanes], one sum a lane
    float* out;      // [rows][width]

    RunningState row(int64_t r, int64_t width) const {
        return {largest + r, sums + r * Arch::kLanes, out + r * width};
    }
};

inline void clear(const RunningState& state, int64_t rows, int64_t width) {
    std::fill_n(state.largest, rows, kNoScore);
    std::fill_n(state.sums, rows * Arch::kLanes, 0.0f);
    std::fill_n(state.out, rows * width, 0.0f);
}

/// What exponents are taken relative to: 0 for rows without a key, since -inf - -inf is no number.
inline float reference_score(float largest) { return largest == kNoScore ? 0.0f : largest; }

inline float exp2_below_zero(float x) {
    float lanes[Arch::kLanes];
    Arch::store(lanes, exp2_below_zero(Arch::set(x)));
    return lanes[0];
}

/// The largest score; one that is not a number is passed over, and makes its weight, and so the row, NaN.
inline float largest_score(const float* scores, int64_t begin, int64_t end) {
    Arch::F largest = Arch::set(kNoScore);
    for (int64_t i = begin; i < end; i += Arch::kLanes) largest = Arch::max(Arch::load(scores + i), largest);
    return Arch::reduce_max(largest);
}

/// The weights 2^(score - reference) of a row, times the scales of the values if there are any; their sum
/// without scales is added to `sums`.
template <class Number>
[[gnu::always_inline]] inline void weigh(const float* scores, int64_t begin, int64_t end, float reference,
                                         const float* value_scales, float* sums, uint8_t* weights) {
    const Arch::F offset = Arch::set(reference);
    Arch::F sum = Arch::load(sums);
    for (int64_t i = begin; i < end; i += Arch::kLanes) {
        Arch::F weight = exp2_below_zero(Arch::sub(Arch::load(scores + i), offset));
        sum = Arch::add(sum, weight);
        if (value_scales != nullptr) weight = Arch::mul(weight, Arch::load(value_scales + i));
        Number::store(weights, i, weight);
    }
    Arch::store(sums, sum);
}

/// Takes the scores of keys [begin, end) of a tile into the states of `rows` rows, up to the values:
/// `weights` and `rescale` are what these are to be multiplied by.
template <class Number>
void meet_scores(const float* scores, int64_t begin, int64_t end, int rows, const float* value_scales,
                 const RunningState& state, uint8_t* weights, float* rescale) {
    // Whole registers of rows, since the exponential takes no less.
    constexpr int most = (Arch::kMaxRows + Arch::kLanes - 1) / Arch::kLanes * Arch::kLanes;
    float reference[most], difference[most] = {};
    for (int r = 0; r < rows; ++r) {
        const float before = state.largest[r];
        const float now = std::max(before, largest_score(scores + r * kTileKeys, begin, end));
        state.largest[r] = now;
        reference[r] = reference_score(now);
        difference[r] = before - reference[r];
    }
    for (int r = 0; r < rows; r += Arch::kLanes) {
        const Arch::F factor = exp2_below_zero(Arch::load(difference + r));
        Arch::store(difference + r, factor);
    }
    for (int r = 0; r < rows; ++r) {
        rescale[r] = difference[r];
        float* sums = state.sums + r * Arch::kLanes;
        Arch::store(sums, Arch::mul(Arch::load(sums), Arch::set(rescale[r])));
        weigh<Number>(scores + r * kTileKeys, begin, end, reference[r], value_scales, sums,
                      weights + r * kWeightBytes<Number>);
    }
}

/// States of rows over whole splits.
struct State {
    float* largest;  // [rows]
    float* sum;      // [rows]
    float* out;      // [rows][width]
};

inline void clear(const State& state, int64_t rows, int64_t width) {
    std::fill_n(state.largest, rows, kNoScore);
    std::fill_n(state.sum, rows, 0.0f);
    std::fill_n(state.out, rows * width, 0.0f);
}

/// The same states with their lanes added up, in place.
inline State close(const RunningState& running, int64_t rows) {
    for (int64_t r = 0; r < rows; ++r)
        running.sums[r] = Arch::reduce_sum(Arch::load(running.sums + r * Arch::kLanes));
    return {running.largest, running.sums, running.out};
}

/// Merges the states of a later split into those of the earlier ones. An empty state changes no bit.
inline void merge(const State& state, const State& later, int64_t rows, int64_t width) {
    for (int64_t r = 0; r < rows; ++r) {
        const float largest = std::max(state.largest[r], later.largest[r]);
        const float reference = reference_score(largest);
        const float a = exp2_below_zero(state.largest[r] - reference);
        const float b = exp2_below_zero(later.largest[r] - reference);
        state.largest[r] = largest;
        state.sum[r] = state.sum[r] * a + later.sum[r] * b;
        const Arch::F scale_a = Arch::set(a), scale_b = Arch::set(b);
        for (int64_t i = r * width; i < (r + 1) * width; i += Arch::kLanes)
            Arch::store(state.out + i, Arch::fma(Arch::load(later.out + i), scale_b,
                                                 Arch::mul(Arch::load(state.out + i), scale_a)));
    }
}

/// The learned sink enters once, as the state (sink, 1, 0).
inline void add_sink(const State& state, int64_t row, int64_t width, float sink) {
    const float zeros[kMostDim] = {};
    float largest = sink * kLog2E, one = 1.0f;
    merge({state.largest + row, state.sum + row, state.out + row * width},
          {&largest, &one, const_cast<float*>(zeros)}, 1, width);
}

/// Natural logarithm of the sum of the exponentials of all scores.
inline float log_sum_exp(float largest, float sum) {
    return static_cast<float>(0.6931471805599453 * largest + std::log(static_cast<double>(sum)));
}

/// out / sum, and 0 for a row without a key; the sign of a zero is not kept, since it depends on how many
/// weights of 0 were met.
inline void normalise(float* out, float sum, int64_t width) {
    const Arch::F zero = Arch::zero();
    const Arch::F inverse = Arch::set(sum == 0.0f ? 1.0f : 1.0f / sum);
    for (int64_t i = 0; i < width; i += Arch::kLanes)
        Arch::store(out + i, Arch::add(Arch::mul(Arch::load(out + i), inverse), zero));
}

}  // namespace
}  // namespace ridgeline
