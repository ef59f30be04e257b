#include "program/program.h"

#include <nanobind/nanobind.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/vector.h>

#include "attention/attention.h"
#include "bind/bind.h"
#include "program/calls.h"

namespace nb = nanobind;
using namespace nb::literals;

namespace ridgeline {
namespace {

/// Throws std::domain_error for blocks that a cache of that many lacks.
void check_step(const Step& step, int64_t blocks) {
    if (blocks > 0)
        check_sequences({step.sequences, step.lengths, step.past, step.tables, step.table_stride}, kBlockKeys,
                        blocks);
}

/// A step as Python gives it: its numbers and block tables, the workspace, the weights' and the caches'
/// addresses; the outputs' addresses; the tables of rotary embedding and their rows; the cache's blocks, 0 if
/// there is none.
Frame frame_of(uintptr_t numbers, uintptr_t tables, int64_t table_stride, uintptr_t workspace,
               uintptr_t weights, uintptr_t caches, const std::vector<uint64_t>& outputs, uintptr_t cosines,
               uintptr_t sines, int64_t angles, int64_t blocks) {
    Frame frame{};
    frame.step = Step::read(pointer<const int64_t>(numbers), pointer<const int32_t>(tables), table_stride);
    frame.workspace = pointer<uint8_t>(workspace);
    frame.weights = pointer<const uint64_t>(weights);
    frame.caches = pointer<const uint64_t>(caches);
    frame.outputs = outputs.data();
    frame.cosines = pointer<const float>(cosines);
    frame.sines = pointer<const float>(sines);
    frame.angles = angles;
    check_step(frame.step, blocks);
    return frame;
}

/// A method of Program that takes what `frame_of` does, the interpreter's lock released.
template <auto method>
auto with_frame() {
    return [](const Program& p, uintptr_t numbers, uintptr_t tables, int64_t table_stride,
              uintptr_t workspace, uintptr_t weights, uintptr_t caches, const std::vector<uint64_t>& outputs,
              uintptr_t cosines, uintptr_t sines, int64_t angles, int64_t blocks) {
        nb::gil_scoped_release released;
        return (p.*method)(frame_of(numbers, tables, table_stride, workspace, weights, caches, outputs,
                                    cosines, sines, angles, blocks));
    };
}

void bind_calls(nb::class_<Program>& program) {
    program
        .def(
            "embed",
            [](Program& p, Source source, int64_t offset, int64_t table, Dtype dtype, int64_t rows,
               Operand out, float scale) {
                p.add(embed_call(source, offset, {table, dtype}, rows, out, scale));
            },
            "source"_a, "offset"_a, "table"_a, "dtype"_a, "rows"_a, "out"_a, "scale"_a = 1.0f)
        .def(
            "embed_packed",
            [](Program& p, Source source, int64_t offset, int64_t packed, const Layout& layout, Operand out,
               float scale) { p.add(embed_call(source, offset, packed, layout, out, scale)); },
            "source"_a, "offset"_a, "packed"_a, "layout"_a, "out"_a, "scale"_a = 1.0f)
        .def("norm",
             [](Program& p, Operand x, NormKind kind, int64_t heads, int64_t weight, Dtype weight_dtype,
                int64_t bias, Dtype bias_dtype, double eps, Operand out) {
                 p.add(norm_call(x, kind, heads, {weight, weight_dtype}, {bias, bias_dtype}, eps, out));
             })
        .def(
            "linear",
            [](Program& p, Operand x, const Layout& layout, int64_t packed, int64_t bias, Dtype bias_dtype,
               Activation activation, std::optional<Operand> residual, Operand out) {
                p.add(linear_call(x, layout, packed, {bias, bias_dtype}, activation, residual, out));
            },
            "x"_a, "layout"_a, "packed"_a, "bias"_a, "bias_dtype"_a, "activation"_a, "residual"_a.none(),
            "out"_a)
        .def("attend",
             [](Program& p, Operand q, Operand k, Operand v, const KvLayout& layout, int64_t cache,
                const Mask& mask, const Score& score, int64_t rotation,
                Operand out) { p.add(attend_call(q, k, v, layout, cache, mask, score, rotation, out)); })
        .def("softcap", [](Program& p, Operand x, float cap,
                           Operand out) { p.add(softcap_call(x, cap, out)); })
        .def("add", [](Program& p, Operand a, Operand b, Operand out) { p.add(add_call(a, b, out)); })
        .def("take_rows", [](Program& p, Operand x, Operand out) { p.add(take_rows_call(x, out)); });
}

}  // namespace

void bind_program(nb::module_& m) {
    nb::enum_<Rows>(m, "Rows")
        .value("all", Rows::all)
        .value("wanted", Rows::wanted)
        .value("first", Rows::first);
    nb::enum_<Source>(m, "Source")
        .value("ids", Source::ids)
        .value("positions", Source::positions)
        .value("segments", Source::segments)
        .value("wanted", Source::wanted)
        .value("first", Source::first);
    nb::class_<Operand>(m, "Operand")
        .def("__init__", [](Operand* x, int64_t offset, int64_t stride, int64_t column, int64_t columns,
                            Rows rows) { new (x) Operand{offset, stride, column, columns, rows}; });
    auto program = nb::class_<Program>(m, "Program").def(nb::init<>());
    bind_calls(program);
    program.def("run", with_frame<&Program::run>()).def("profile", with_frame<&Program::profile>());
}

}  // namespace ridgeline
