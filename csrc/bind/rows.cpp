#include "rows/rows.h"

#include <nanobind/nanobind.h>

#include "bind/bind.h"

namespace nb = nanobind;

namespace ridgeline {

void bind_rows(nb::module_& m) {
    const auto unlocked = nb::call_guard<nb::gil_scoped_release>();
    nb::enum_<NormKind>(m, "NormKind").value("rms", NormKind::rms).value("layer", NormKind::layer);
    nb::class_<Vectors>(m, "Vectors")
        .def("__init__",
             [](Vectors* vectors, uintptr_t data, int64_t row_stride, int64_t head_stride, Dtype dtype) {
                 new (vectors) Vectors{pointer<void>(data), row_stride, head_stride, dtype};
             })
        .def_static("none", [] { return Vectors{}; });
    nb::class_<Modulation>(m, "Modulation")
        .def("__init__",
             [](Modulation* modulation, uintptr_t shift, int64_t shift_stride, uintptr_t scale,
                int64_t scale_stride, uintptr_t sequences) {
                 new (modulation) Modulation{pointer<const float>(shift), pointer<const float>(scale),
                                             shift_stride, scale_stride, pointer<const int64_t>(sequences)};
             })
        .def_static("none", [] { return Modulation{}; });
    m.def(
        "norm",
        [](NormKind kind, int64_t rows, int64_t heads, int64_t dim, const Vectors& x, const Vectors& residual,
           uintptr_t weight, uintptr_t bias, Dtype weight_dtype, double eps, const Vectors& out,
           const Modulation& modulation) {
            norm({kind, rows, heads, dim, x, residual, pointer<const void>(weight), pointer<const void>(bias),
                  weight_dtype, eps, out, modulation});
        },
        unlocked);
    m.def(
        "add",
        [](int64_t rows, int64_t columns, const Vectors& a, const Vectors& b, const Vectors& out) {
            add({rows, columns, a, b, out});
        },
        unlocked);
    m.def(
        "activate",
        [](int64_t rows, int64_t columns, Activation activation, bool gated, const Vectors& x,
           const Vectors& out) { activate({rows, columns, activation, gated, x, out}); },
        unlocked);
    m.def(
        "softcap",
        [](int64_t rows, int64_t columns, float cap, const Vectors& x, const Vectors& out) {
            softcap({rows, columns, cap, x, out});
        },
        unlocked);
    m.def(
        "rotate",
        [](int64_t rows, int64_t heads, int64_t dim, const Vectors& x, uintptr_t cos, uintptr_t sin,
           int64_t angles, int64_t angle_stride, uintptr_t positions, const Vectors& out) {
            rotate({rows, heads, dim, x, pointer<const float>(cos), pointer<const float>(sin), angles,
                    angle_stride, pointer<const int64_t>(positions), out});
        },
        unlocked);
    m.def(
        "gather",
        [](int64_t rows, int64_t columns, uintptr_t ids, int64_t offset, int64_t table_rows,
           const Vectors& table, const Vectors& out) {
            gather({rows, columns, pointer<const int64_t>(ids), offset, table_rows, out}, table);
        },
        unlocked);
    m.def(
        "gather_packed",
        [](int64_t rows, int64_t columns, uintptr_t ids, int64_t offset, const Layout& layout,
           uintptr_t packed, const Vectors& out) {
            gather({rows, columns, pointer<const int64_t>(ids), offset, layout.out, out}, layout,
                   pointer<const uint8_t>(packed));
        },
        unlocked);
}

}  // namespace ridgeline
