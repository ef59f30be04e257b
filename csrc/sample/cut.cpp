#include "sample/cut.h"

#include <array>

namespace ridgeline {
namespace {

/// Scores are sorted roughly into bins of 1/32, of which each holds a few hundred tokens at most of usual
/// logits; the last takes all that are e^-32 times as likely as the likeliest, or less.
constexpr float kBinsPerUnit = 32.0f;
constexpr int kBins = 1024;

int bin_of(float score) {
    return static_cast<int>(std::min(-score * kBinsPerUnit, static_cast<float>(kBins - 1)));
}

/// How many tokens select_top_k lets come together before it looks for the best k of them.
constexpr int64_t kFewest = 1024;

void keep_first(std::vector<Candidate>& found, int64_t k) {
    std::nth_element(found.begin(), found.begin() + (k - 1), found.end(), before);
    found.resize(k);
}

/// Walks along `ordered`, before which lies the mass `sum`, as long as that is less than `wanted`.
Cut walk(const std::vector<Candidate>& ordered, double sum, double wanted) {
    Cut last = ordered.front();
    for (const Candidate& token : ordered) {
        if (sum >= wanted) break;
        last = token;
        sum += exponential(token.score);
    }
    return last;
}

}  // namespace

void select_top_k(const Row& row, int64_t k, std::vector<Candidate>& top) {
    const int64_t limit = k + std::max(k, kFewest);
    float threshold = -std::numeric_limits<float>::infinity();
    top.clear();
    row.each_chunk([&](int64_t first, int64_t n, const float* scores, float most) {
        if (most <= threshold) return;
        // A token of the threshold's own score has a higher id than those that are there.
        for (int64_t i = 0; i < n; ++i)
            if (scores[i] > threshold) top.push_back({scores[i], first + i});
        if (static_cast<int64_t>(top.size()) < limit) return;
        keep_first(top, k);
        threshold = top.back().score;
    });
    if (static_cast<int64_t>(top.size()) > k) keep_first(top, k);
}

Cut top_p_of(std::vector<Candidate>& top, double p) {
    std::sort(top.begin(), top.end(), before);
    double total = 0.0;
    for (const Candidate& token : top) total += exponential(token.score);
    return walk(top, 0.0, p * total);
}

Cut top_p_of(const Row& row, double p, std::vector<Candidate>& found) {
    std::array<double, kBins> mass{};
    row.each_chunk([&](int64_t, int64_t n, const float* scores, float) {
        float masses[kChunk];
        int bins[kChunk];
        row.kernels.masses(scores, n, masses);
        for (int64_t i = 0; i < n; ++i) bins[i] = bin_of(scores[i]);
        for (int64_t i = 0; i < n; ++i) mass[bins[i]] += masses[i];
    });
    double total = 0.0;
    for (double of_bin : mass) total += of_bin;
    // The bin in which the sum reaches what is wanted.
    int bin = 0;
    double sum = 0.0;
    while (bin < kBins - 1 && sum + mass[bin] < p * total) sum += mass[bin++];
    found.clear();
    row.each_chunk([&](int64_t first, int64_t n, const float* scores, float most) {
        if (bin_of(most) > bin) return;
        for (int64_t i = 0; i < n; ++i)
            if (bin_of(scores[i]) == bin) found.push_back({scores[i], first + i});
    });
    std::sort(found.begin(), found.end(), before);
    return walk(found, sum, p * total);
}

}  // namespace ridgeline
