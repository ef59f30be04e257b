#pragma once

#include <cstdint>

#include "attention/kv_tile.h"
#include "attention/softmax.h"
#include "threads/scratch.h"

namespace ridgeline {
namespace {

/// Takes pieces of a run of memory, each on a cache line of its own; of null, only counts.
class Cutter {
public:
    explicit Cutter(uint8_t* memory) : memory_(memory) {}

    template <class T>
    T* take(int64_t n) {
        uint8_t* at = memory_ == nullptr ? nullptr : memory_ + used_;
        used_ += aligned(n * static_cast<int64_t>(sizeof(T)));
        return reinterpret_cast<T*>(at);
    }
    int64_t used() const { return used_; }

private:
    uint8_t* memory_;
    int64_t used_ = 0;
};

/// What a thread computes an item in.
template <class Number>
struct Workspace {
    uint8_t* queries;
    RunningState running;
    State total;
    float* scores;         // [kMaxRows][kTileKeys]
    uint8_t* weights;      // [kMaxRows][kWeightBytes]
    float* rescale;        // [kMaxRows]
    uint8_t* seen_values;  // a panel's values without those that a row doesn't see
    KvTile* tile;
    float* all_scores;  // the naive schedule's, [rows][keys]
    int64_t bytes;

    /// For items of up to `rows` rows; `keys` of all_scores, whole tiles.
    Workspace(const Attention& call, int64_t rows, int64_t keys, uint8_t* memory) {
        const KvLayout& layout = call.source.layout;
        const int64_t width = layout.padded_value_dim();
        Cutter cut(memory);
        queries = cut.take<uint8_t>(rows * layout.padded_dim() / Number::kStep * 4 + 4 * Arch::kLanes);
        running = {cut.take<float>(rows), cut.take<float>(rows * Arch::kLanes),
                   cut.take<float>(rows * width)};
        total = {cut.take<float>(rows), cut.take<float>(rows), cut.take<float>(rows * width)};
        scores = cut.take<float>(Arch::kMaxRows * kTileKeys);
        weights = cut.take<uint8_t>(Arch::kMaxRows * kWeightBytes<Number>);
        rescale = cut.take<float>(Arch::kMaxRows);
        seen_values = cut.take<uint8_t>(kTilePanels * made_value_bytes<Number>(layout));
        tile = cut.take<KvTile>(1);
        uint8_t* made_keys = cut.take<uint8_t>(kTilePanels * made_key_bytes<Number>(layout));
        uint8_t* made_values = cut.take<uint8_t>(kTilePanels * made_value_bytes<Number>(layout));
        all_scores = cut.take<float>(rows * keys);
        bytes = cut.used();
        if (memory == nullptr) return;
        tile->keys = made_keys;
        tile->values = made_values;
    }
};

}  // namespace
}  // namespace ridgeline
