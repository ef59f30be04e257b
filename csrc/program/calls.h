#pragma once

#include <cstdint>
#include <optional>

#include "attention/job.h"
#include "experts/experts.h"
#include "linear/job.h"
#include "program/program.h"
#include "rows/rows.h"

// The calls that a program is made of. Each takes the matrices' places and the numbers of weights, indices,
// cuts and rotations, and finds the addresses in the frame of the step that it runs in.
namespace ridgeline {

/// A vector or table among the frame's weights; number -1 is none.
struct Stored {
    int64_t number;
    Dtype dtype;
};

/// Vectors of sequences, and the number of the index that says which of them a row takes.
struct OfSequences {
    Operand vectors;
    int64_t index;
};

/// Of a norm: what shifts and scales each row.
struct ShiftAndScale {
    Operand shift;
    Operand scale;
    int64_t index;
};

/// Scores of the heads, with the number of the weight that holds biases by distance, -1 for none.
struct BiasedScore {
    Score score;
    int64_t bias;
    int64_t reach;
};

/// What attention reads and how its heads are laid out. With `cache` -1 keys and values are rows of the step;
/// otherwise they lie in that cache of the frame, in which new ones are stored first if there are any.
/// `rotation` is the number of the angles by which queries and keys are turned, -1 for none.
struct Attended {
    KvLayout layout;
    int64_t cache;
    int64_t cut;
    int64_t rotation;
    Mask mask;
    BiasedScore score;
};

/// How rows choose experts.
struct RouterCall {
    int64_t chosen;
    Scoring scoring;
    Stored bias;
    int64_t groups;
    int64_t open_groups;
    GroupScore group_score;
    bool normalised;
    float scale;
};

/// Experts whose weights have numbers that follow each other.
struct ExpertsCall {
    int64_t experts;
    int64_t chosen;
    Layout gate_up;
    int64_t first_gate_up;
    Layout down;
    int64_t first_down;
    Activation activation;
};

/// Heads whose keys of `content` elements and values are made of latents of `rank`; `rotated` further
/// elements of every key are shared by all heads.
struct LatentHeads {
    int64_t count;
    int64_t rank;
    int64_t content;
    int64_t rotated;
    int64_t value;
};

/// How a cache of latents is kept: [blocks][block][columns].
struct LatentCache {
    Dtype dtype;
    int64_t columns;
    int64_t block;  // tokens
};

/// Attention to latents: their norm, the matrix that makes keys and values of them, what these are multiplied
/// in, and numbers as in `Attended`. Where angles are `interleaved`, neighbours turn together.
struct LatentCall {
    LatentHeads heads;
    NormKind norm;
    Stored norm_weight;
    double eps;
    Layout up;
    int64_t up_number;
    KvFormat format;
    int64_t cache;
    LatentCache stored;
    int64_t cut;
    int64_t rotation;
    bool interleaved;
    Mask mask;
    Score score;
};

/// Two kinds of rows, sequence by sequence.
struct TwoCuts {
    int64_t first;
    int64_t second;
};

Program::Call embed_call(int64_t index, int64_t offset, Stored table, int64_t table_rows, Operand out,
                         float scale);
Program::Call embed_call(int64_t index, int64_t offset, int64_t packed, const Layout& layout, Operand out,
                         float scale);
Program::Call norm_call(Operand x, NormKind kind, int64_t heads, Stored weight, Stored bias, double eps,
                        std::optional<ShiftAndScale> modulation, Operand out);
Program::Call linear_call(Operand x, const Layout& layout, int64_t packed, Stored bias, Activation activation,
                          std::optional<Operand> residual, std::optional<OfSequences> gate, Operand out);
Program::Call attend_call(Operand q, std::optional<Operand> k, std::optional<Operand> v,
                          const Attended& attended, Operand out);
/// Stores keys and values where `attend_call` finds them later.
Program::Call store_call(Operand k, Operand v, const KvLayout& layout, int64_t cache, int64_t cut);
Program::Call softcap_call(Operand x, float cap, Operand out);
Program::Call activate_call(Operand x, Activation activation, Operand out);
Program::Call add_call(Operand a, Operand b, Operand out);
/// Adds the vector to every row; rows of `parts` times fewer columns stand side by side that often.
Program::Call add_vector_call(Operand x, Stored vector, int64_t parts, Operand out);
/// Row i of `out` is row number i of the index of x.
Program::Call take_rows_call(Operand x, int64_t index, Operand out);
Program::Call join_columns_call(Operand a, Operand b, Operand out);
/// Of each sequence its rows in a, then those in b; and taken apart again.
Program::Call join_rows_call(Operand a, Operand b, const TwoCuts& cuts, Operand out);
Program::Call split_rows_call(Operand x, const TwoCuts& cuts, Operand a, Operand b);
/// A row of `routes` holds the numbers of its experts, int32, and then their weights.
Program::Call route_call(Operand logits, const RouterCall& router, Operand routes);
Program::Call experts_call(Operand x, Operand routes, const ExpertsCall& experts,
                           std::optional<Operand> residual, Operand out);
/// Rotates q and the keys that all heads share, normalises latents, stores both, and attends.
Program::Call attend_latent_call(Operand q, Operand kv, const LatentCall& call, Operand out);

}  // namespace ridgeline
