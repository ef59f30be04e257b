#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <vector>

#include "sample/chunk.h"
#include "sample/exponential.h"

// Which tokens of a row may be drawn.
namespace ridgeline {

struct Candidate {
    float score;
    int64_t token;
};

/// The order of tokens: falling score, then rising id.
inline bool before(const Candidate& a, const Candidate& b) {
    return a.score != b.score ? a.score > b.score : a.token < b.token;
}

/// A row of logits with what makes scores of them.
struct Row {
    const ChunkKernels& kernels;
    const float* logits;
    int64_t vocab;
    Largest largest;
    float temperature;

    /// f(id of the first, how many, their scores, the greatest of these) for one chunk after another.
    template <class F>
    void each_chunk(const F& f) const {
        float scores[kChunk];
        for (int64_t first = 0; first < vocab; first += kChunk) {
            const int64_t n = std::min<int64_t>(kChunk, vocab - first);
            const float most = kernels.scores(logits + first, n, largest.logit, temperature, scores);
            f(first, n, scores, most);
        }
    }
};

/// The last token that may be drawn: tokens after it in the order may not.
using Cut = Candidate;
constexpr Cut kNoCut = {-std::numeric_limits<float>::infinity(), std::numeric_limits<int64_t>::max()};

inline bool keeps(const Cut& cut, const Candidate& token) { return !before(cut, token); }

/// The row's first k tokens, in no order, into `top`; those of score -infinity, which are never drawn, are
/// left out. A threshold that rises as tokens are found spares most of a row a second look.
void select_top_k(const Row& row, int64_t k, std::vector<Candidate>& top);

/// The last of `top` before which there is less than `p` of its mass; sorts it.
Cut top_p_of(std::vector<Candidate>& top, double p);

/// The same of the whole row, without sorting it; `found` is scratch.
Cut top_p_of(const Row& row, double p, std::vector<Candidate>& found);

}  // namespace ridgeline
