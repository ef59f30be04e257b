#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>

#include "attention/mask.h"
#include "attention/plan.h"
#include "attention/softmax.h"

// What happens to a product of query and key before the softmax: scale, softcap, ALiBi, bias, mask, in this
// order.
namespace ridgeline {
namespace {

/// What products are multiplied by as they are stored: scores in units of log 2, or what tanh is taken of.
inline float score_multiplier(const Score& score) {
    return score.softcap > 0.0f ? score.scale / score.softcap : score.scale * kLog2E;
}

inline void softcap(float* scores, int64_t begin, int64_t end, float cap) {
    const Arch::F size = Arch::set(cap * kLog2E);
    for (int64_t i = begin; i < end; i += Arch::kLanes)
        Arch::store(scores + i, Arch::mul(size, tanh(Arch::load(scores + i))));
}

/// score - slope |position - key|, key 0 of the tile being `first_key`.
inline void add_alibi(float* scores, int64_t begin, int64_t end, float slope, int64_t position,
                      int64_t first_key) {
    float lane_numbers[Arch::kLanes];
    for (int i = 0; i < Arch::kLanes; ++i) lane_numbers[i] = static_cast<float>(i);
    const Arch::F lanes = Arch::load(lane_numbers), weight = Arch::set(-slope * kLog2E);
    for (int64_t i = begin; i < end; i += Arch::kLanes) {
        const Arch::F start = Arch::set(static_cast<float>(first_key + i - position));
        const Arch::F distance = Arch::abs(Arch::add(start, lanes));
        Arch::store(scores + i, Arch::fma(weight, distance, Arch::load(scores + i)));
    }
}

/// score + bias of the key's distance, key 0 of the tile being `first_key`; `bias` is that of distance 0.
inline void add_bias(float* scores, int64_t begin, int64_t end, const float* bias, int64_t reach,
                     int64_t position, int64_t first_key) {
    const int64_t shift = first_key - position;  // of key 0
    const int64_t near = std::clamp(-reach - shift, begin, end);
    const int64_t far = std::clamp(reach + 1 - shift, begin, end);
    for (int64_t i = begin; i < near; ++i) scores[i] += bias[-reach] * kLog2E;
    for (int64_t i = near; i < far; ++i) scores[i] += bias[i + shift] * kLog2E;
    for (int64_t i = far; i < end; ++i) scores[i] += bias[reach] * kLog2E;
}

/// Scores of keys that a row doesn't see become -infinity.
inline void hide(float* scores, int64_t begin, int64_t end, int64_t first_key, const Seen& seen) {
    const auto place = [&](int64_t key) { return std::clamp(key - first_key, begin, end); };
    const int64_t sinks = place(seen.sinks), window = std::max(sinks, place(seen.begin));
    const int64_t after = std::max(sinks, place(seen.end));
    std::fill(scores + sinks, scores + window, kNoScore);
    std::fill(scores + std::max(window, after), scores + end, kNoScore);
}

/// All of it for the rows of a block, which begins at `first_row` of its item, and the keys of a view.
inline void finish_scores(const Attention& call, const QueryRows& rows, int64_t first_row, int count,
                          const TileView& view, int64_t first_key, float* scores) {
    const int64_t begin = view.begin - first_key, end = view.end - first_key;
    for (int r = 0; r < count; ++r) {
        const int64_t position = rows.position(first_row + r);
        float* row = scores + r * kTileKeys;
        if (call.score.softcap > 0.0f) softcap(row, begin, end, call.score.softcap);
        if (call.score.alibi_slopes != nullptr)
            add_alibi(row, begin, end, call.score.alibi_slopes[rows.head(first_row + r)], position,
                      first_key);
        if (call.score.bias != nullptr) {
            const int64_t reach = call.score.reach, head = rows.head(first_row + r);
            add_bias(row, begin, end, call.score.bias + head * (2 * reach + 1) + reach, reach, position,
                     first_key);
        }
        if (!view.full) hide(row, begin, end, first_key, seen_at(call.mask, position, rows.keys));
    }
}

}  // namespace
}  // namespace ridgeline
