#include "threads/cores.h"

#include <algorithm>
#include <cmath>
#include <fstream>
#include <set>
#include <string>
#include <thread>

#if defined(__linux__)
#include <sched.h>
#endif

namespace ridgeline {
namespace {

#if defined(__linux__)
/// The hyper-threads that share a core with `cpu`, as the kernel writes them ("0,4"): a core's name.
std::string core_of(int cpu) {
    std::ifstream file("/sys/devices/system/cpu/cpu" + std::to_string(cpu) +
                       "/topology/thread_siblings_list");
    std::string siblings;
    if (!std::getline(file, siblings)) siblings = "cpu" + std::to_string(cpu);
    return siblings;
}

int cores_in_affinity_mask() {
    cpu_set_t mask;
    if (sched_getaffinity(0, sizeof mask, &mask) != 0)
        return static_cast<int>(std::thread::hardware_concurrency());
    std::set<std::string> cores;
    for (int cpu = 0; cpu < CPU_SETSIZE; ++cpu)
        if (CPU_ISSET(cpu, &mask)) cores.insert(core_of(cpu));
    return static_cast<int>(cores.size());
}

/// The quota of a container (cgroup v2, "max 100000" or "150000 100000"), rounded up.
int cores_in_quota(int unlimited) {
    std::ifstream file("/sys/fs/cgroup/cpu.max");
    double quota = 0, period = 0;
    if (!(file >> quota >> period) || quota <= 0 || period <= 0) return unlimited;
    return static_cast<int>(std::ceil(quota / period));
}
#endif

}  // namespace

int available_cores() {
#if defined(__linux__)
    const int cores = cores_in_affinity_mask();
    return std::max(1, std::min(cores, cores_in_quota(cores)));
#else
    return std::max(1, static_cast<int>(std::thread::hardware_concurrency()));
#endif
}

}  // namespace ridgeline
