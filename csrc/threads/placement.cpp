#include "threads/placement.h"

#include <algorithm>

#include "threads/cores.h"

#if defined(__linux__)
#include <sched.h>
#endif

namespace ridgeline {

Placement::Placement(int threads) : cores_(allowed_cores()), seats_(threads) {
    for (int core = 0; core < static_cast<int>(cores_.size()); ++core)
        for (int cpu : cores_[core]) {
            core_of_cpu_.resize(std::max<size_t>(core_of_cpu_.size(), cpu + 1), -1);
            core_of_cpu_[cpu] = core;
        }
}

void Placement::settle(int index) {
    int core = current_core();
    if (core < 0) return;
    if (index > 0 && taken(core, index)) {
        for (int other = 0; other < static_cast<int>(cores_.size()); ++other) {
            if (taken(other, static_cast<int>(seats_.size()))) continue;
            move_to(other);
            core = other;
            break;
        }
    }
    // Written only when it changes, so that the others' look at it stays in their caches.
    if (seats_[index].core.load(std::memory_order_relaxed) != core)
        seats_[index].core.store(core, std::memory_order_relaxed);
}

bool Placement::taken(int core, int by_fewer_than) const {
    return std::any_of(seats_.begin(), seats_.begin() + by_fewer_than, [core](const Seat& seat) {
        return seat.core.load(std::memory_order_relaxed) == core;
    });
}

#if defined(__linux__)
int Placement::current_core() const {
    const int cpu = sched_getcpu();
    return cpu >= 0 && cpu < static_cast<int>(core_of_cpu_.size()) ? core_of_cpu_[cpu] : -1;
}

void Placement::move_to(int core) {
    cpu_set_t there, anywhere;
    CPU_ZERO(&there);
    for (int cpu : cores_[core]) CPU_SET(cpu, &there);
    // Being allowed one core only moves the thread there at once; after that it may go anywhere again.
    if (sched_getaffinity(0, sizeof anywhere, &anywhere) != 0) return;
    if (sched_setaffinity(0, sizeof there, &there) != 0) return;
    (void)sched_setaffinity(0, sizeof anywhere, &anywhere);
}
#else
int Placement::current_core() const { return -1; }

void Placement::move_to(int) {}
#endif

}  // namespace ridgeline
