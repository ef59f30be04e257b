#pragma once

#include <cstdint>

#include "linear/layout.h"

namespace ridgeline {

enum class Dtype { fp32, bf16 };
enum class Activation { none, silu, gelu, gelu_tanh, relu, tanh };

/// A row-major matrix of floats; `stride` is in elements, from one row to the next.
struct Matrix {
    const void* data;
    int64_t stride;
    Dtype dtype;
};

/// What a row's product is multiplied with before the residual is added: the vector of its sequence.
struct SequenceGate {
    const float* data;  // [sequences, product columns]; null if there is none
    int64_t stride;
    const int64_t* sequences;  // the sequence of each row
};

/// One product: out = residual + sequence gate * gate(activation(x weight^T + bias)), for `rows` rows.
struct Job {
    Layout layout;
    const uint8_t* weight;
    Matrix x;
    const void* bias;  // [layout.out], or null
    Dtype bias_dtype;
    SequenceGate sequence_gate;
    Matrix residual;  // of the product's shape, data null if there is none
    void* out;
    int64_t out_stride;
    Dtype out_dtype;
    Activation activation;
    int64_t rows;

    // Scratch: the rows as the kernels read them, in tiles of a few rows (see prepare.h).
    int64_t tiles;
    uint8_t* activations;
    float* row_scales;    // int8 activations: x is about row_scale q
    int32_t* group_sums;  // int8 activations: the sum of a group's q, [groups][rows of the tile]

    int64_t tile_begin(int64_t tile) const { return rows * tile / tiles; }
    int tile_rows(int64_t tile) const { return static_cast<int>(tile_begin(tile + 1) - tile_begin(tile)); }
};

/// One way to multiply: how rows are prepared, and panels and tiles multiplied.
struct Product {
    int max_rows;          // of a tile
    int activation_bytes;  // of one prepared element
    void (*prepare)(const Job& job, int64_t tile);
    /// Items [begin, end) of panels x tiles, panel by panel, with the epilogue.
    void (*multiply)(const Job& job, int64_t begin, int64_t end);
};

/// The products that an instruction set brings.
struct Products {
    Product fp32;
    Product bf16;
    Product int8;  // int8 weights and activations
    Product int4;  // 4-bit weights, int8 activations
    Product int4_zero_points;
    Product int8_weight_only;  // int8 weights, bf16 activations
    Product int4_weight_only;
};

extern const Products kPortableProducts;
#if defined(__x86_64__)
extern const Products kAvx2Products;
extern const Products kAvx512Products;
extern const Products kAvx512Bf16Products;
#endif

}  // namespace ridgeline
