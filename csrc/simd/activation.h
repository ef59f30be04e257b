#pragma once

#include "linear/job.h"
#include "simd/math.h"

namespace ridgeline {
namespace {

/// Calls use(f) with the function f of a vector that `activation` names; not for none.
template <class Use>
[[gnu::always_inline]] inline void with_activation(Activation activation, const Use& use) {
    switch (activation) {
        case Activation::none: return;
        case Activation::silu: return use([](F x) { return silu(x); });
        case Activation::gelu: return use([](F x) { return gelu(x); });
        case Activation::gelu_tanh: return use([](F x) { return gelu_tanh(x); });
        case Activation::relu: return use([](F x) { return relu(x); });
        case Activation::tanh: return use([](F x) { return tanh(x); });
    }
}

}  // namespace
}  // namespace ridgeline
