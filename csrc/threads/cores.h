#pragma once

namespace ridgeline {

/// Physical cores that this process may use: its affinity mask with hyper-threads of one core
/// counted once, and no more than its control group's CPU quota. At least 1.
int available_cores();

}  // namespace ridgeline
