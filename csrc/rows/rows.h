#pragma once

#include <cstdint>

#include "linear/job.h"

// What lies between the matrix products: norms, sums, activations, rotations, rows of a table. Each function
// runs on all threads with the current instruction set, and computes an element from its own row alone: a
// row's bits depend neither on the other rows nor on the number of threads. Sums are float32; what is
// stored is rounded once. An output may be the input itself, but may not overlap it in another way.
namespace ridgeline {

/// Vectors of floats in rows: vector h of row r begins at r * row_stride + h * head_stride, in elements.
/// A matrix has one vector a row.
struct Vectors {
    void* data;
    int64_t row_stride;
    int64_t head_stride;
    Dtype dtype;
};

enum class NormKind { rms, layer };

/// Vectors of a row's sequence that scale and shift it, float32: x (1 + scale) + shift.
struct Modulation {
    const float* shift;  // [sequences, dim]; null: nothing is modulated
    const float* scale;
    int64_t shift_stride;
    int64_t scale_stride;
    const int64_t* sequences;  // the sequence of each row
};

/// out = (x - mean) / sqrt(variance + eps) * weight + bias over each vector, or, for rms,
/// x / sqrt(mean of x^2 + eps) * weight; then modulated, if there is a modulation.
struct Norm {
    NormKind kind;
    int64_t rows;
    int64_t heads;
    int64_t dim;
    Vectors x;
    Vectors residual;    // if there is one (data not null), residual += x first, which is then normalised
    const void* weight;  // [dim], or null for ones
    const void* bias;    // [dim], or null
    Dtype weight_dtype;  // of the bias too
    double eps;
    Vectors out;
    Modulation modulation{};  // of matrices alone
};
void norm(const Norm& job);

/// out = a + b.
struct Sum {
    int64_t rows;
    int64_t columns;
    Vectors a;
    Vectors b;
    Vectors out;
};
void add(const Sum& job);

/// out = x, in another dtype or elsewhere.
struct Copy {
    int64_t rows;
    int64_t columns;
    Vectors x;
    Vectors out;
};
void copy(const Copy& job);

/// out = residual + the sum over i of weights[row][i] times row places[row][i] of x, float32, term by term.
struct WeightedSum {
    int64_t rows;
    int64_t columns;
    int64_t terms;
    Vectors x;
    const int64_t* places;  // [rows][terms]
    const float* weights;
    int64_t weight_stride;
    Vectors residual;  // data null if there is none
    Vectors out;
};
void weighted_sum(const WeightedSum& job);

/// out = act(x), or, gated, act(first half of x's columns) * second half.
struct Activate {
    int64_t rows;
    int64_t columns;  // of out
    Activation activation;
    bool gated;
    Vectors x;
    Vectors out;
};
void activate(const Activate& job);

/// out = cap tanh(x / cap).
struct Softcap {
    int64_t rows;
    int64_t columns;
    float cap;
    Vectors x;
    Vectors out;
};
void softcap(const Softcap& job);

/// The first `dim` elements of every vector, x = (x1, x2), turned: out = (x1 cos1 - x2 sin1, x2 cos2 + x1
/// sin2). What comes after them is left alone.
struct Rotation {
    int64_t rows;
    int64_t heads;
    int64_t dim;  // even
    Vectors x;
    const float* cos;  // [angles, dim]
    const float* sin;
    int64_t angles;
    int64_t angle_stride;      // of cos and sin, in elements
    const int64_t* positions;  // the row of cos and sin that each row takes; null: its own index
    Vectors out;
};
/// Throws std::domain_error for a position without angles, before anything is written.
void rotate(const Rotation& job);

/// Row i of out is row ids[i] + offset of a table, times `scale`; out must be float32 if that isn't 1.
struct Gather {
    int64_t rows;
    int64_t columns;
    const int64_t* ids;
    int64_t offset;
    int64_t table_rows;
    Vectors out;
    float scale = 1.0f;
};
/// Both throw std::domain_error for an id without a row, before anything is written.
void gather(const Gather& job, const Vectors& table);
void gather(const Gather& job, const Layout& layout, const uint8_t* packed);

}  // namespace ridgeline
