#pragma once

#include <atomic>
#include <cstdint>
#include <vector>

#include "attention/job.h"

namespace ridgeline {

/// A part of the work of a call: some rows of the query heads that share one head of keys, against all splits
/// of the keys or some. A row of it is a token and a head, all heads of a token one after another.
struct Item {
    int64_t sequence;
    int64_t kv_head;
    int64_t first_row;  // of the sequence, in the call
    int64_t first_key;  // of the sequence, where keys are packed
    int64_t row_begin, row_end;
    int64_t split_begin, split_end;
    int64_t merge;  // index of the merge that it takes part in, or -1
};

/// Rows whose splits are computed apart.
struct Merge {
    Item item;         // with all splits
    int64_t state_at;  // floats before its states in the call's scratch, split by split
};

/// What the rows of an item are.
struct QueryRows {
    int64_t begin, end;
    int64_t group;
    int64_t first_head;
    int64_t past;
    int64_t keys;

    QueryRows(const Attention& call, const Item& item)
        : begin(item.row_begin),
          end(item.row_end),
          group(call.group()),
          first_head(item.kv_head * call.group()),
          past(call.sequences.past[item.sequence]),
          keys(call.sequences.keys(item.sequence)) {}

    int64_t count() const { return end - begin; }
    int64_t token(int64_t row) const { return (begin + row) / group; }
    int64_t head(int64_t row) const { return first_head + (begin + row) % group; }
    int64_t position(int64_t row) const { return past + token(row); }
};

/// The work of a call in items that threads may take in any order.
struct Plan {
    std::vector<Item> items;
    std::vector<Merge> merges;
    int64_t state_floats = 0;  // of all states to be merged
    int64_t most_rows = 0;     // of an item
    int64_t most_keys = 0;     // of a sequence
};

/// The limits that a plan keeps to.
struct PlanLimits {
    int64_t item_rows;   // rows of an item
    int64_t split_keys;  // keys of a split
    int threads;
};

void make_plan(const Attention& call, const PlanLimits& limits, Plan& plan);

}  // namespace ridgeline
