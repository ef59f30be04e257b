#pragma once

#include <cstdint>
#include <cstring>

#include "attention/elements.h"
#include "attention/plan.h"
#include "attention/tile.h"

namespace ridgeline {
namespace {

/// The rows of an item in blocks of like size, each of which the tile products take at once.
struct RowBlocks {
    int64_t rows;
    int64_t count;

    explicit RowBlocks(int64_t rows) : rows(rows), count((rows + Arch::kMaxRows - 1) / Arch::kMaxRows) {}
    int64_t begin(int64_t block) const { return rows * block / count; }
    int size(int64_t block) const { return static_cast<int>(begin(block + 1) - begin(block)); }
};

/// Lays the queries of an item out as the products read them, rotated if the call says so: block by block
/// [steps][rows of the block] words.
template <class Number>
void pack_queries(const Attention& call, const Item& item, const QueryRows& rows, uint8_t* words) {
    const int64_t dim = call.source.layout.dim, steps = call.source.layout.padded_dim() / Number::kStep;
    const RowBlocks blocks(rows.count());
    for (int64_t block = 0; block < blocks.count; ++block) {
        const int R = blocks.size(block);
        for (int r = 0; r < R; ++r) {
            const int64_t row = blocks.begin(block) + r, token = rows.token(row);
            alignas(64) float vector[kMostDim + Arch::kLanes] = {};
            alignas(64) uint8_t rounded[(kMostDim + Arch::kLanes) * 4];
            read_floats(vector_at(call.queries, item.sequence, item.first_row, token, rows.head(row)),
                        call.queries.dtype, dim, vector);
            if (call.angles.cos != nullptr) {
                const int64_t angle = call.angles.row(item.first_row + token);
                rotate_half(vector, call.angles.cos + angle, call.angles.sin + angle, dim);
            }
            for (int64_t i = 0; i < dim; i += Arch::kLanes)
                Number::store(rounded, i, Arch::load(vector + i));
            for (int64_t k = 0; k < steps; ++k) std::memcpy(words + (k * R + r) * 4, rounded + k * 4, 4);
        }
        words += steps * R * 4;
    }
}

}  // namespace
}  // namespace ridgeline
