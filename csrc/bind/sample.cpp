#include "sample/sample.h"

#include <nanobind/nanobind.h>

#include "bind/bind.h"

namespace nb = nanobind;

namespace ridgeline {

void bind_sample(nb::module_& m) {
    const auto unlocked = nb::call_guard<nb::gil_scoped_release>();
    m.def(
        "sample",
        [](int64_t rows, int64_t vocab, uintptr_t logits, int64_t stride, uintptr_t temperature,
           uintptr_t top_k, uintptr_t top_p, uintptr_t min_p, uintptr_t seed, uintptr_t position,
           uintptr_t tokens) {
            sample({{rows, vocab, pointer<const float>(logits), stride},
                    pointer<const double>(temperature),
                    pointer<const int64_t>(top_k),
                    pointer<const double>(top_p),
                    pointer<const double>(min_p),
                    pointer<const int64_t>(seed),
                    pointer<const int64_t>(position),
                    pointer<int64_t>(tokens)});
        },
        unlocked);
    m.def(
        "log_probabilities",
        [](int64_t rows, int64_t vocab, uintptr_t logits, int64_t stride, uintptr_t tokens, uintptr_t out) {
            log_probabilities({rows, vocab, pointer<const float>(logits), stride},
                              pointer<const int64_t>(tokens), pointer<float>(out));
        },
        unlocked);
}

}  // namespace ridgeline
