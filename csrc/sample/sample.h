#pragma once

#include <cstdint>

// Choosing tokens from logits. Whatever decides is computed alike on every instruction set, in one order, by
// operations that IEEE 754 defines to the bit and the C library's logarithm: every instruction set and every
// number of threads picks the same token.
namespace ridgeline {

/// Rows of float32 logits; `stride` is in elements, from one row to the next.
struct Logits {
    int64_t rows;
    int64_t vocab;
    const float* data;
    int64_t stride;
};

/// The next token of each row. A score is (logit - the row's largest) / temperature, in float32. Of the
/// tokens, ordered by falling score and, where equal, by rising id, stay
///   - the first top_k, if top_k is not 0;
///   - those before which the others' probabilities sum to less than top_p, among what is left;
///   - those with a score of log(min_p) at least;
/// and of these the token is drawn with the largest sum of score and Gumbel noise (see noise.h).
/// A temperature of 0 takes the token of largest logit, the lowest id if several have it.
struct Sample {
    Logits logits;
    const double* temperature;  // [rows], and so are the others
    const int64_t* top_k;
    const double* top_p;
    const double* min_p;
    const int64_t* seed;
    const int64_t* position;
    int64_t* tokens;
};

/// Throws std::domain_error for a row that holds a NaN, or whose largest logit is infinite.
void sample(const Sample& job);

/// log softmax(row)[tokens[row]] of each row into `out`, summed in double. Tokens are from 0 to vocab - 1.
/// Throws as `sample` does.
void log_probabilities(const Logits& logits, const int64_t* tokens, float* out);

}  // namespace ridgeline
