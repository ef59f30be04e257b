#pragma once

#include <string>
#include <vector>

namespace ridgeline {

/// The instruction sets that kernels are written for, best last. A new one (NEON) is a value
/// here, a line in `kIsas` of isa.cpp, and a kernel file of its own.
enum class Isa { portable, avx2, avx512, avx512_bf16 };

const char* name(Isa isa);

/// What this machine can run, best first; the portable one is always there.
std::vector<Isa> available_isas();

/// The one in use: what the environment variable RIDGELINE_ISA or `choose_isa` names, or else the
/// best there is. Throws std::invalid_argument for an unknown or unavailable name.
Isa current_isa();

/// Uses the instruction set of that name from now on. Throws as `current_isa` does.
void choose_isa(const std::string& wanted);

}  // namespace ridgeline
