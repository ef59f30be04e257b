#include "threads/cores.h"

#include <algorithm>
#include <cmath>
#include <fstream>
#include <map>
#include <string>
#include <thread>

#if defined(__linux__)
#include <sched.h>
#endif

namespace ridgeline {

#if defined(__linux__)
namespace {

/// The hyper-threads that share a core with `cpu`, as the kernel writes them ("0,4"): a core's name.
std::string core_of(int cpu) {
    std::ifstream file("/sys/devices/system/cpu/cpu" + std::to_string(cpu) +
                       "/topology/thread_siblings_list");
    std::string siblings;
    if (!std::getline(file, siblings)) siblings = "cpu" + std::to_string(cpu);
    return siblings;
}

/// The quota of a container (cgroup v2, "max 100000" or "150000 100000"), rounded up.
int cores_in_quota(int unlimited) {
    std::ifstream file("/sys/fs/cgroup/cpu.max");
    double quota = 0, period = 0;
    if (!(file >> quota >> period) || quota <= 0 || period <= 0) return unlimited;
    return static_cast<int>(std::ceil(quota / period));
}

}  // namespace

std::vector<std::vector<int>> allowed_cores() {
    cpu_set_t mask;
    if (sched_getaffinity(0, sizeof mask, &mask) != 0) return {};
    std::map<std::string, std::vector<int>> by_name;
    for (int cpu = 0; cpu < CPU_SETSIZE; ++cpu)
        if (CPU_ISSET(cpu, &mask)) by_name[core_of(cpu)].push_back(cpu);
    std::vector<std::vector<int>> cores;
    for (auto& [name, cpus] : by_name) cores.push_back(cpus);
    return cores;
}

int available_cores() {
    const int cores = static_cast<int>(allowed_cores().size());
    if (cores == 0) return std::max(1, static_cast<int>(std::thread::hardware_concurrency()));
    return std::max(1, std::min(cores, cores_in_quota(cores)));
}
#else
std::vector<std::vector<int>> allowed_cores() { return {}; }

int available_cores() { return std::max(1, static_cast<int>(std::thread::hardware_concurrency())); }
#endif

}  // namespace ridgeline
