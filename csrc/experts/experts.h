#pragma once

#include <cstdint>

#include "linear/job.h"

// Mixtures of experts. A row's choice, its products and the order of its sum depend on that row alone: ties
// go to the lower number, and outputs are added in the order of the experts' numbers.
namespace ridgeline {

enum class Scoring { softmax, sigmoid };
enum class GroupScore { best, best_two };

/// Which experts rows take, and with which weights: int32 [rows][chosen] in ascending order, and float32.
struct Routes {
    int32_t* experts;
    float* weights;
    int64_t stride;  // of both, from row to row
    int64_t chosen;
};

/// Scores of the logits; of the open groups those experts are chosen whose score, plus the bias if there is
/// one, is highest. Their weights are the scores without it, divided by their sum if `normalised`, times
/// `scale`. Open are the groups whose best expert, or sum of the best two, is highest.
struct Routing {
    int64_t rows;
    int64_t experts;
    const float* logits;
    int64_t stride;
    Scoring scoring;
    const void* bias;  // [experts], or null
    Dtype bias_dtype;
    int64_t groups;
    int64_t open_groups;
    GroupScore group_score;
    bool normalised;
    float scale;
    Routes out;
};
void route(const Routing& job);

/// out = residual + the sum over a row's experts of weight * down(act(gate x) * (up x)).
struct Mixture {
    int64_t rows;
    int64_t experts;
    const float* x;
    int64_t x_stride;
    Routes routes;
    Layout gate_up;         // of every expert, gated
    const uint64_t* gates;  // addresses [experts]
    Layout down;
    const uint64_t* downs;  // addresses [experts]
    Activation activation;
    const float* residual;  // null if there is none; it may be `out`
    int64_t residual_stride;
    float* out;
    int64_t out_stride;
};
void mix(const Mixture& job);

}  // namespace ridgeline
