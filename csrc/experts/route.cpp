#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

#include "experts/experts.h"
#include "simd/half.h"
#include "threads/pool.h"

namespace ridgeline {
namespace {

/// Fewer logits than this are looked at by the caller alone: waking another thread takes longer.
constexpr int64_t kAloneLogits = 2048;

/// Whether score a goes before b: one that is not a number before all, as in a sort of PyTorch's.
bool before(float a, float b) { return a > b || (std::isnan(a) && !std::isnan(b)); }

/// The `count` highest of n scores, by number in ascending order; of equal ones the lower numbers.
void highest(const float* scores, int64_t n, int64_t count, std::vector<int32_t>& found) {
    found.clear();
    for (int32_t i = 0; i < n; ++i) {
        // The best so far, from the highest down; a newcomer passes only what it is above.
        auto at = found.end();
        while (at != found.begin() && before(scores[i], scores[*(at - 1)])) --at;
        if (at - found.begin() >= count) continue;
        found.insert(at, i);
        if (static_cast<int64_t>(found.size()) > count) found.pop_back();
    }
    std::sort(found.begin(), found.end());
}

void score(const Routing& job, const float* logits, float* scores) {
    if (job.scoring == Scoring::sigmoid) {
        for (int64_t i = 0; i < job.experts; ++i) {
            const float small = std::exp(-std::fabs(logits[i]));  // no overflow on either side
            scores[i] = (logits[i] < 0.0f ? small : 1.0f) / (1.0f + small);
        }
        return;
    }
    float most = logits[0], sum = 0.0f;
    for (int64_t i = 1; i < job.experts; ++i) most = std::max(most, logits[i]);
    for (int64_t i = 0; i < job.experts; ++i) sum += scores[i] = std::exp(logits[i] - most);
    for (int64_t i = 0; i < job.experts; ++i) scores[i] /= sum;
}

float at(const void* vector, Dtype dtype, int64_t i) {
    return dtype == Dtype::fp32 ? static_cast<const float*>(vector)[i]
                                : from_bf16(static_cast<const uint16_t*>(vector)[i]);
}

/// What a group's best expert scores, or its best two together.
float group_value(const Routing& job, const float* preference) {
    const int64_t n = job.experts / job.groups;
    float first = preference[0], second = -std::numeric_limits<float>::infinity();
    for (int64_t i = 1; i < n; ++i) {
        if (before(preference[i], first)) {
            second = first;
            first = preference[i];
        } else if (before(preference[i], second)) {
            second = preference[i];
        }
    }
    return job.group_score == GroupScore::best ? first : first + second;
}

/// What a row is worked on in.
struct Memory {
    std::vector<float> scores, preference, values;
    std::vector<int32_t> found;
};

void close_groups(const Routing& job, Memory& memory) {
    const int64_t n = job.experts / job.groups;
    memory.values.resize(job.groups);
    for (int64_t g = 0; g < job.groups; ++g)
        memory.values[g] = group_value(job, memory.preference.data() + g * n);
    highest(memory.values.data(), job.groups, job.open_groups, memory.found);
    for (int64_t g = 0; g < job.groups; ++g)
        if (!std::binary_search(memory.found.begin(), memory.found.end(), static_cast<int32_t>(g)))
            std::fill_n(memory.preference.data() + g * n, n, -std::numeric_limits<float>::infinity());
}

void route_row(const Routing& job, int64_t row, Memory& memory) {
    memory.scores.resize(job.experts);
    score(job, job.logits + row * job.stride, memory.scores.data());
    memory.preference = memory.scores;
    if (job.bias != nullptr)
        for (int64_t i = 0; i < job.experts; ++i) memory.preference[i] += at(job.bias, job.bias_dtype, i);
    if (job.groups > 1) close_groups(job, memory);
    highest(memory.preference.data(), job.experts, job.out.chosen, memory.found);
    int32_t* experts = job.out.experts + row * job.out.stride;
    float* weights = job.out.weights + row * job.out.stride;
    float sum = 0.0f;
    for (int64_t i = 0; i < job.out.chosen; ++i) {
        experts[i] = memory.found[i];
        weights[i] = memory.scores[experts[i]];
        sum += weights[i];
    }
    for (int64_t i = 0; i < job.out.chosen; ++i)
        weights[i] = (job.normalised ? weights[i] / sum : weights[i]) * job.scale;
}

}  // namespace

void route(const Routing& job) {
    const auto run = [&](int64_t begin, int64_t end) {
        thread_local Memory memory;
        for (int64_t row = begin; row < end; ++row) route_row(job, row, memory);
    };
    if (job.rows * job.experts < kAloneLogits)
        run(0, job.rows);
    else
        parallel_for(job.rows, run);
}

}  // namespace ridgeline
