#include "experts/experts.h"

#include <nanobind/nanobind.h>

#include "bind/bind.h"

namespace nb = nanobind;

namespace ridgeline {

void bind_experts(nb::module_& m) {
    const auto unlocked = nb::call_guard<nb::gil_scoped_release>();
    nb::enum_<Scoring>(m, "Scoring").value("softmax", Scoring::softmax).value("sigmoid", Scoring::sigmoid);
    nb::enum_<GroupScore>(m, "GroupScore").value("max", GroupScore::best).value("top2", GroupScore::best_two);
    m.def(
        "route",
        [](int64_t rows, int64_t experts, uintptr_t logits, int64_t stride, Scoring scoring, uintptr_t bias,
           Dtype bias_dtype, int64_t groups, int64_t open_groups, GroupScore group_score, bool normalised,
           float scale, int64_t chosen, uintptr_t numbers, uintptr_t weights) {
            route({rows, experts, pointer<const float>(logits), stride, scoring, pointer<const void>(bias),
                   bias_dtype, groups, open_groups, group_score, normalised, scale,
                   Routes{pointer<int32_t>(numbers), pointer<float>(weights), chosen, chosen}});
        },
        unlocked);
    m.def(
        "mix",
        [](int64_t rows, int64_t experts, uintptr_t x, int64_t x_stride, int64_t chosen, uintptr_t numbers,
           uintptr_t weights, const Layout& gate_up, uintptr_t gates, const Layout& down, uintptr_t downs,
           Activation activation, uintptr_t residual, int64_t residual_stride, uintptr_t out,
           int64_t out_stride) {
            mix({rows, experts, pointer<const float>(x), x_stride,
                 Routes{pointer<int32_t>(numbers), pointer<float>(weights), chosen, chosen}, gate_up,
                 pointer<const uint64_t>(gates), down, pointer<const uint64_t>(downs), activation,
                 pointer<const float>(residual), residual_stride, pointer<float>(out), out_stride});
        },
        unlocked);
}

}  // namespace ridgeline
