#include "sample/sample.h"

#include <cmath>
#include <stdexcept>
#include <string>

#include "isa/isa.h"
#include "sample/cut.h"
#include "sample/noise.h"
#include "threads/pool.h"

namespace ridgeline {
namespace {

const ChunkKernels& kernels() {
    switch (current_isa()) {
#if defined(__x86_64__)
        case Isa::avx512_bf16:
        case Isa::avx512: return kAvx512ChunkKernels;
        case Isa::avx2: return kAvx2ChunkKernels;
#endif
        default: return kPortableChunkKernels;
    }
}

Largest checked_largest(const ChunkKernels& kernels, const Logits& logits, int64_t row) {
    const Largest found = kernels.largest(logits.data + row * logits.stride, logits.vocab);
    if (std::isnan(found.logit)) throw std::domain_error("holds a NaN in row " + std::to_string(row));
    if (std::isinf(found.logit))
        throw std::domain_error("has " + std::string(found.logit > 0 ? "inf" : "-inf") +
                                " as the largest value of row " + std::to_string(row));
    return found;
}

Cut find_cut(const Row& row, int64_t top_k, double top_p, double min_p) {
    thread_local std::vector<Candidate> found;
    Cut cut = kNoCut;
    if (top_k > 0 && top_k < row.vocab) {
        select_top_k(row, top_k, found);
        cut = top_p < 1 ? top_p_of(found, top_p) : *std::max_element(found.begin(), found.end(), before);
    } else if (top_p < 1) {
        cut = top_p_of(row, top_p, found);
    }
    const float floor = static_cast<float>(std::log(min_p));  // -infinity for 0
    return floor > cut.score ? Cut{floor, kNoCut.token} : cut;
}

/// The kept token with the largest sum of score and noise.
class Draw {
public:
    Draw(const Row& row, const Cut& cut, uint64_t state) : row_(row), cut_(cut), state_(state) {}

    int64_t token() {
        // The likeliest first, so that the others have something to beat.
        consider({0.0f, row_.largest.token});
        row_.each_chunk([&](int64_t first, int64_t n, const float* scores, float most) {
            if (most < cut_.score) return;
            uint8_t marks[kChunk];
            const float best = static_cast<float>(best_);
            if (!row_.kernels.contenders(scores, n, state_, first, best, marks)) return;
            for (int64_t i = 0; i < n; ++i)
                if (marks[i]) consider({scores[i], first + i});
        });
        return token_;
    }

private:
    void consider(const Candidate& candidate) {
        if (!keeps(cut_, candidate)) return;
        const double sum = candidate.score + gumbel(noise_bits(state_, candidate.token));
        if (sum < best_ || (sum == best_ && candidate.token >= token_)) return;
        best_ = sum;
        token_ = candidate.token;
    }

    const Row& row_;
    Cut cut_;
    uint64_t state_;
    double best_ = -std::numeric_limits<double>::infinity();
    int64_t token_ = std::numeric_limits<int64_t>::max();
};

int64_t sample_row(const ChunkKernels& kernels, const Sample& job, int64_t r) {
    const Largest largest = checked_largest(kernels, job.logits, r);
    if (job.temperature[r] == 0) return largest.token;
    const Row row{kernels, job.logits.data + r * job.logits.stride, job.logits.vocab, largest,
                  static_cast<float>(job.temperature[r])};
    const Cut cut = find_cut(row, job.top_k[r], job.top_p[r], job.min_p[r]);
    return Draw(row, cut, noise_state(job.seed[r], job.position[r])).token();
}

/// The sum of n numbers, in eight that run side by side.
double sum_of(const float* numbers, int64_t n) {
    constexpr int kChains = 8;
    double sums[kChains] = {};
    int64_t i = 0;
    for (; i + kChains <= n; i += kChains)
        for (int chain = 0; chain < kChains; ++chain) sums[chain] += numbers[i + chain];
    for (; i < n; ++i) sums[0] += numbers[i];
    double sum = 0.0;
    for (double part : sums) sum += part;
    return sum;
}

float log_probability(const ChunkKernels& kernels, const Logits& logits, int64_t r, int64_t token) {
    const Row row{kernels, logits.data + r * logits.stride, logits.vocab, checked_largest(kernels, logits, r),
                  1.0f};
    double total = 0.0;
    row.each_chunk([&](int64_t, int64_t n, const float* scores, float) {
        float masses[kChunk];
        kernels.masses(scores, n, masses);
        total += sum_of(masses, n);
    });
    const double lead = static_cast<double>(row.logits[token]) - row.largest.logit;
    return static_cast<float>(lead - std::log(total));
}

/// f(row) for every row. Few logits are left to the caller: waking another thread takes longer.
template <class F>
void each_row(const Logits& logits, const F& f) {
    constexpr int64_t kAlone = 16384;
    auto rows = [&](int64_t begin, int64_t end) {
        for (int64_t row = begin; row < end; ++row) f(row);
    };
    if (logits.rows * logits.vocab < kAlone)
        rows(0, logits.rows);
    else
        parallel_for(logits.rows, rows);
}

}  // namespace

void sample(const Sample& job) {
    const ChunkKernels& best = kernels();
    each_row(job.logits, [&](int64_t row) { job.tokens[row] = sample_row(best, job, row); });
}

void log_probabilities(const Logits& logits, const int64_t* tokens, float* out) {
    const ChunkKernels& best = kernels();
    each_row(logits, [&](int64_t row) { out[row] = log_probability(best, logits, row, tokens[row]); });
}

}  // namespace ridgeline
