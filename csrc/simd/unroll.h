#pragma once

#include <utility>

namespace ridgeline {
namespace {

/// Calls f with the constants 0 .. N - 1, unrolled, so that arrays indexed by them stay in registers.
template <int N, class F>
[[gnu::always_inline]] inline void unroll(F&& f) {
    [&]<int... i>(std::integer_sequence<int, i...>) __attribute__((always_inline)) {
        (f(std::integral_constant<int, i>{}), ...);
    }(std::make_integer_sequence<int, N>{});
}

}  // namespace
}  // namespace ridgeline
