#pragma once

#include <cstdint>

#include "attention/layout.h"
#include "linear/job.h"

namespace ridgeline {

/// A sequence stride: the rows of a sequence follow those of the one before.
constexpr int64_t kPacked = -1;

/// Vectors of heads by sequence, row and head; strides in elements, the elements of a vector side by side.
struct HeadRows {
    void* data;
    Dtype dtype;
    int64_t sequence;
    int64_t row;
    int64_t head;
};

/// The sequences of a call, `count` of each array.
struct Sequences {
    int64_t count;
    const int64_t* rows;    // query rows
    const int64_t* past;    // keys before the first row's own; with fewer keys than rows below 0
    const int32_t* tables;  // [count][table_stride]: the blocks or pages of a sequence, or null
    int64_t table_stride;

    int64_t keys(int64_t sequence) const { return rows[sequence] + past[sequence]; }
    const int32_t* table(int64_t sequence) const { return tables + sequence * table_stride; }
};

/// Keys and values in a user's own layout. Paged ones (page_tokens > 0) have pages in the place of sequences.
struct PlainKv {
    HeadRows keys;
    HeadRows values;
    int64_t page_tokens;
};

/// Where keys and values are: blocks of our layout if `blocks` is not null, else `plain`.
struct KvSource {
    KvLayout layout;  // of blocks; for plain ones, of the panels that are made of them
    uint8_t* blocks;
    PlainKv plain;
};

/// Query i, at position p = past + i, sees key j if j <= p (causal) and p - left <= j <= p + right, or if
/// j < sinks (and j <= p where causal). -1 is unlimited.
struct Mask {
    bool causal;
    int64_t left;
    int64_t right;
    int64_t sinks;
};

/// cap(scale q k) - slope |p - j| + bias(j - p), where cap(s) = softcap tanh(s / softcap); a softcap of 0 is
/// none. The bias of a distance beyond `reach` is that of `reach`.
struct Score {
    float scale;
    float softcap;
    const float* alibi_slopes;  // [heads], or null
    const float* sinks;         // [heads], a logit that enlarges the denominator, or null
    const float* bias;          // [heads][2 reach + 1], from distance -reach on, or null
    int64_t reach;
};

/// Half-rotation of a head's first `dim` elements by tables of [.., dim] float32: x cos + (-x2, x1) sin,
/// x = (x1, x2).
struct Angles {
    const float* cos;  // null: no rotation
    const float* sin;
    int64_t dim;
    const int64_t* rows;  // the table's row for each row of the call; null: its own number

    int64_t row(int64_t i) const { return (rows == nullptr ? i : rows[i]) * dim; }
};

/// The order of the work. Scores of all keys in memory; or tiles of keys with a running softmax, whose
/// splits of the keys one thread takes in order (flash) or several take (split_kv), to the same bits.
enum class Schedule { automatic, naive, flash, split_kv };

/// One call of attention. Queries of `heads` heads read the source's heads in groups of equal size.
struct Attention {
    int64_t heads;
    Sequences sequences;
    HeadRows queries;
    Angles angles;  // of the queries
    KvSource source;
    Mask mask;
    Score score;
    HeadRows out;
    HeadRows lse;  // float32, vectors of 1; data null if not wanted
    Schedule schedule;

    int64_t group() const { return heads / source.layout.heads; }
};

/// New keys and values, one vector a row of the call, to be stored after each sequence's past.
struct Append {
    Sequences sequences;
    HeadRows keys;
    HeadRows values;
    Angles angles;  // of the keys
    KvLayout layout;
    uint8_t* blocks;
};

}  // namespace ridgeline
