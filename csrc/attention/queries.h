#pragma once

#include <cstdint>
#include <cstring>

#include "attention/elements.h"
#include "attention/plan.h"
#include "attention/tile.h"

namespace ridgeline {
namespace {

/// Bytes of a query's words, whole registers.
constexpr int64_t kQueryBytes = (kMostDim + Arch::kLanes) * 4;

/// The rows of an item in blocks of like size, each of which the tile products take at once.
struct RowBlocks {
    int64_t rows;
    int64_t count;

    explicit RowBlocks(int64_t rows) : rows(rows), count((rows + Arch::kMaxRows - 1) / Arch::kMaxRows) {}
    int64_t begin(int64_t block) const { return rows * block / count; }
    int size(int64_t block) const { return static_cast<int>(begin(block + 1) - begin(block)); }
};

/// A query as words: rotated if the call says so, rounded, and padded with zeros to whole registers.
template <class Number>
void query_words(const Attention& call, const Item& item, int64_t token, int64_t head, uint8_t* words) {
    const int64_t dim = call.source.layout.dim;
    const void* query = vector_at(call.queries, item.sequence, item.first_row, token, head);
    const bool as_stored = (call.queries.dtype == Dtype::fp32) == (Number::kStep == 1);
    if (call.angles.cos == nullptr && as_stored) {
        const int64_t bytes = dim * 4 / Number::kStep;
        std::memcpy(words, query, bytes);
        std::memset(words + bytes, 0, kQueryBytes - bytes);
        return;
    }
    Vector vector;
    read_vector(call.queries, query, dim, call.angles, item.first_row + token, vector);
    for (int64_t i = 0; i < dim; i += Arch::kLanes) Number::store(words, i, Arch::load(vector + i));
}

/// Lays the queries of an item out as the products read them: block by block [steps][rows of the block]
/// words. Writes up to a register beyond them.
template <class Number>
void pack_queries(const Attention& call, const Item& item, const QueryRows& rows, uint8_t* to) {
    constexpr int lanes = Arch::kLanes;
    static_assert(Arch::kMaxRows <= lanes);
    const int64_t steps = call.source.layout.padded_dim() / Number::kStep;
    const RowBlocks blocks(rows.count());
    alignas(64) uint8_t words[Arch::kMaxRows][kQueryBytes];
    for (int64_t block = 0; block < blocks.count; ++block) {
        const int R = blocks.size(block);
        for (int r = 0; r < R; ++r) {
            const int64_t row = blocks.begin(block) + r;
            query_words<Number>(call, item, rows.token(row), rows.head(row), words[r]);
        }
        for (int64_t k = 0; k < steps; k += lanes) {
            Arch::I square[lanes];
            for (int r = 0; r < lanes; ++r)
                square[r] = r < R ? Arch::load_int(words[r] + k * 4) : Arch::set_int(0);
            Arch::transpose(square);
            // What a store writes beyond the block's rows, the next one writes over.
            for (int64_t i = 0; i < std::min<int64_t>(lanes, steps - k); ++i, to += R * 4)
                Arch::store_int(to, square[i]);
        }
    }
}

}  // namespace
}  // namespace ridgeline
