#pragma once

#include <cstdint>

#include "attention/plan.h"

namespace ridgeline {

/// Partial results of the same rows over different keys: [states][rows][dim] and [states][rows].
struct StateMerge {
    int64_t states, rows, dim;
    const float* in;
    const float* lse;
    float* out;
    float* out_lse;
};

/// What an instruction set brings.
struct AttentionKernels {
    int64_t item_rows;   // rows of an item that are worth making panels of foreign keys for
    int64_t split_keys;  // keys of a split
    /// Bytes that a thread needs for the items of a plan.
    int64_t (*workspace_bytes)(const Attention& call, const Plan& plan);
    /// One item; `states` is where those of its splits are kept if they are merged later.
    void (*run)(const Attention& call, const Plan& plan, const Item& item, float* states, uint8_t* workspace);
    /// What the splits of a merge's item have left.
    void (*merge)(const Attention& call, const Plan& plan, const Merge& merge, float* states,
                  uint8_t* workspace);
    void (*append)(const Append& call, int64_t sequence, int64_t first_row, int64_t begin, int64_t end,
                   int64_t head);
    void (*merge_states)(const StateMerge& call, int64_t begin, int64_t end);
};

extern const AttentionKernels kPortableAttention;
#if defined(__x86_64__)
extern const AttentionKernels kAvx2Attention;
extern const AttentionKernels kAvx512Attention;
extern const AttentionKernels kAvx512Bf16Attention;
#endif

}  // namespace ridgeline
