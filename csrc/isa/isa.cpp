#include "isa/isa.h"

#include <atomic>
#include <cstdlib>
#include <stdexcept>

namespace ridgeline {
namespace {

#if defined(__x86_64__)
// Every processor with AVX2 has F16C, which older compilers can't ask for.
bool has_avx2() { return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma"); }
bool has_avx512() {
    return has_avx2() && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
           __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl") &&
           __builtin_cpu_supports("avx512vnni");
}
bool has_avx512_bf16() { return has_avx512() && __builtin_cpu_supports("avx512bf16"); }
#else
bool has_avx2() { return false; }
bool has_avx512() { return false; }
bool has_avx512_bf16() { return false; }
#endif
bool has_portable() { return true; }

struct Entry {
    Isa isa;
    const char* name;
    bool (*available)();
};

constexpr Entry kIsas[] = {
    {Isa::avx512_bf16, "avx512_bf16", has_avx512_bf16},
    {Isa::avx512, "avx512", has_avx512},
    {Isa::avx2, "avx2", has_avx2},
    {Isa::portable, "portable", has_portable},
};

std::string available_names() {
    std::string names;
    for (Isa isa : available_isas()) names += (names.empty() ? "" : ", ") + std::string(name(isa));
    return names;
}

Isa find(const std::string& wanted, const std::string& source) {
    for (const Entry& entry : kIsas) {
        if (wanted != entry.name) continue;
        if (entry.available()) return entry.isa;
        throw std::invalid_argument(source + " is '" + wanted +
                                    "', which this machine lacks; it has: " + available_names());
    }
    throw std::invalid_argument(source + " is '" + wanted +
                                "', which is unknown; this machine has: " + available_names());
}

Isa initial_isa() {
    const char* wanted = std::getenv("RIDGELINE_ISA");
    if (wanted != nullptr && *wanted != '\0') return find(wanted, "RIDGELINE_ISA");
    return available_isas().front();
}

std::atomic<int> chosen{-1};

}  // namespace

const char* name(Isa isa) {
    for (const Entry& entry : kIsas)
        if (entry.isa == isa) return entry.name;
    return "unknown";
}

std::vector<Isa> available_isas() {
    std::vector<Isa> found;
    for (const Entry& entry : kIsas)
        if (entry.available()) found.push_back(entry.isa);
    return found;
}

Isa current_isa() {
    int isa = chosen.load(std::memory_order_relaxed);
    if (isa < 0) {
        isa = static_cast<int>(initial_isa());
        chosen = isa;
    }
    return static_cast<Isa>(isa);
}

void choose_isa(const std::string& wanted) { chosen = static_cast<int>(find(wanted, "isa")); }

}  // namespace ridgeline
