#pragma once

#include <cstdint>
#include <vector>

#include "attention/job.h"

namespace ridgeline {

/// Cosines and sines of a rotation, float32 [count, dim]. A row takes those of its number among `rows`, or,
/// if that is null, of its own number in the step.
struct AngleTable {
    const float* cosines;
    const float* sines;
    int64_t count;
    int64_t dim;
    const int64_t* rows;
};

/// What varies from step to step. All of it goes by numbers that were given out when the pass was recorded:
///
///     rows      how many rows there are of each kind: all, those that want logits, texts' rows, ...
///     indices   int64, one a row of some kind: token ids, positions, the sequence of each row, ...
///     cuts      ways of cutting rows into sequences, with the cache's blocks of each
///     angles    the tables of each rotation
struct Step {
    std::vector<int64_t> rows;
    std::vector<const int64_t*> indices;
    std::vector<Sequences> cuts;
    std::vector<AngleTable> angles;
};

}  // namespace ridgeline
