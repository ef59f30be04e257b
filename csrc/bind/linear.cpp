#include "linear/linear.h"

#include <nanobind/nanobind.h>

#include "bind/bind.h"
#include "linear/pack.h"

namespace nb = nanobind;

namespace ridgeline {
namespace {

Job make_job(const Layout& layout, uintptr_t weight, uintptr_t x, int64_t x_stride, Dtype x_dtype,
             int64_t rows, uintptr_t bias, Dtype bias_dtype, Activation activation, uintptr_t residual,
             int64_t residual_stride, uintptr_t out, int64_t out_stride, Dtype out_dtype,
             const SequenceGate& gate) {
    Job job{};
    job.layout = layout;
    job.weight = pointer<const uint8_t>(weight);
    job.x = {pointer<const void>(x), x_stride, x_dtype};
    job.rows = rows;
    job.bias = pointer<const void>(bias);
    job.bias_dtype = bias_dtype;
    job.activation = activation;
    job.sequence_gate = gate;
    job.residual = {pointer<const void>(residual), residual_stride, out_dtype};
    job.out = pointer<void>(out);
    job.out_stride = out_stride;
    job.out_dtype = out_dtype;
    return job;
}

/// A product as Python calls it: addresses, strides in elements, the lock of the interpreter released.
template <void (*run)(Job)>
void call(const Layout& layout, uintptr_t weight, uintptr_t x, int64_t x_stride, Dtype x_dtype, int64_t rows,
          uintptr_t bias, Dtype bias_dtype, Activation activation, uintptr_t residual,
          int64_t residual_stride, uintptr_t out, int64_t out_stride, Dtype out_dtype,
          const SequenceGate& gate) {
    run(make_job(layout, weight, x, x_stride, x_dtype, rows, bias, bias_dtype, activation, residual,
                 residual_stride, out, out_stride, out_dtype, gate));
}

}  // namespace

void bind_linear(nb::module_& m) {
    nb::enum_<Format>(m, "Format")
        .value("fp32", Format::fp32)
        .value("bf16", Format::bf16)
        .value("int8", Format::int8)
        .value("int4", Format::int4);
    nb::enum_<Dtype>(m, "Dtype").value("fp32", Dtype::fp32).value("bf16", Dtype::bf16);
    nb::enum_<Activation>(m, "Activation")
        .value("none", Activation::none)
        .value("silu", Activation::silu)
        .value("gelu", Activation::gelu)
        .value("gelu_tanh", Activation::gelu_tanh)
        .value("relu", Activation::relu)
        .value("tanh", Activation::tanh);
    nb::class_<SequenceGate>(m, "SequenceGate")
        .def("__init__",
             [](SequenceGate* gate, uintptr_t data, int64_t stride, uintptr_t sequences) {
                 new (gate)
                     SequenceGate{pointer<const float>(data), stride, pointer<const int64_t>(sequences)};
             })
        .def_static("none", [] { return SequenceGate{}; });
    nb::class_<Layout>(m, "Layout")
        .def("__init__",
             [](Layout* layout, Format format, int64_t out, int64_t in, int64_t group, bool zero_points,
                bool gated) { new (layout) Layout{format, out, in, group, zero_points, gated}; })
        .def_prop_ro("bytes", &Layout::bytes)
        .def_prop_ro("panels", &Layout::panels)
        .def_prop_ro("product_columns", &Layout::product_columns);
    m.def("advise_large_pages",
          [](uintptr_t at, int64_t bytes) { advise_large_pages(pointer<uint8_t>(at), bytes); });
    m.def(
        "pack",
        [](const Layout& layout, uintptr_t weight, int64_t stride, Dtype dtype, uintptr_t packed,
           int64_t begin, int64_t end) {
            pack(layout, {pointer<const void>(weight), stride, dtype}, pointer<uint8_t>(packed), begin, end);
        },
        nb::call_guard<nb::gil_scoped_release>());
    m.def(
        "unpack",
        [](const Layout& layout, uintptr_t packed, uintptr_t weight) {
            unpack(layout, pointer<const uint8_t>(packed), pointer<float>(weight));
        },
        nb::call_guard<nb::gil_scoped_release>());
    m.def("linear", call<linear>, nb::call_guard<nb::gil_scoped_release>());
    m.def("linear_weight_only", call<linear_weight_only>, nb::call_guard<nb::gil_scoped_release>());
}

}  // namespace ridgeline
