#pragma once

#include <cstdint>

#include "attention/job.h"
#include "attention/kernels.h"

// Attention on all threads with the current instruction set. A row's bits depend on its own query and on the
// keys and values that it sees, and on nothing else: not on the other rows, on where keys lie or on threads.
namespace ridgeline {

/// Throws std::domain_error for sequences that reach out of the memory that they were given: negative
/// lengths, tables that are too short or name what is not there. `units` blocks or pages of `tokens`.
void check_sequences(const Sequences& sequences, int64_t tokens, int64_t units);

void attention(const Attention& call);

/// Stores new keys and values.
void append(const Append& call);

void merge_states(const StateMerge& call);

}  // namespace ridgeline
