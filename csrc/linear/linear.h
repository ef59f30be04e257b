#pragma once

#include "linear/job.h"

namespace ridgeline {

/// Computes the job on all threads with the current instruction set; its scratch fields are filled here.
/// Integer weights meet activations that are quantised to int8, row by row.
void linear(Job job);

/// The same with bf16 activations where the weight's format is an integer one.
void linear_weight_only(Job job);

}  // namespace ridgeline
