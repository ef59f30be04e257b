#pragma once

#include <vector>

namespace ridgeline {

/// The physical cores that this process may use, by its affinity mask: of each, the numbers of its
/// hyper-threads. Empty where the system doesn't say.
std::vector<std::vector<int>> allowed_cores();

/// How many threads fit this process: its physical cores, and no more than its control group's CPU
/// quota. At least 1.
int available_cores();

}  // namespace ridgeline
