#pragma once

#include <cmath>
#include <cstdint>

#include "attention/kernels.h"
#include "attention/softmax.h"

namespace ridgeline {
namespace {

/// Of states (o_i, lse_i), with m the largest lse and w_i = e^(lse_i - m): sum w_i o_i / sum w_i, and
/// m + ln sum w_i. A state whose lse is infinite, of either sign, is empty, and is not read.
void merge_state_rows(const StateMerge& call, int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row) {
        float largest = kNoScore;
        const auto lse = [&](int64_t s) {
            const float x = call.lse[s * call.rows + row];
            return std::isinf(x) ? kNoScore : x;
        };
        for (int64_t s = 0; s < call.states; ++s) largest = std::max(largest, lse(s));
        float* out = call.out + row * call.dim;
        std::fill_n(out, call.dim, 0.0f);
        float sum = 0.0f;
        for (int64_t s = 0; s < call.states; ++s) {
            if (lse(s) == kNoScore) continue;
            const float weight = exp2_below_zero((lse(s) - reference_score(largest)) * kLog2E);
            const float* from = call.in + (s * call.rows + row) * call.dim;
            for (int64_t i = 0; i < call.dim; ++i) out[i] += weight * from[i];
            sum += weight;
        }
        if (sum != 0.0f)
            for (int64_t i = 0; i < call.dim; ++i) out[i] /= sum;
        call.out_lse[row] = reference_score(largest) + std::log(sum);
    }
}

}  // namespace
}  // namespace ridgeline
