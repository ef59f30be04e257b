#include "program/program.h"

#include <chrono>

namespace ridgeline {

void Program::run(const Frame& frame) const {
    for (const Call& call : calls_) call(frame);
}

std::vector<double> Program::profile(const Frame& frame) const {
    using Clock = std::chrono::steady_clock;
    std::vector<double> seconds;
    seconds.reserve(calls_.size());
    for (const Call& call : calls_) {
        const auto begin = Clock::now();
        call(frame);
        seconds.push_back(std::chrono::duration<double>(Clock::now() - begin).count());
    }
    return seconds;
}

}  // namespace ridgeline
