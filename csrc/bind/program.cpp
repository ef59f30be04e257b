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

/// A step as Python gives it, addresses as numbers.
///
/// - `rows`: how many there are of each kind; `regions`: where those of a kind begin in the workspace, bytes.
/// - `cuts`: of each 6 numbers: sequences, the addresses of their rows (int64), of their past (int64) and of
///   their block tables (int32), the tables' columns, and the cache's blocks, 0 where there is none.
/// - `angles`: of each rotation 5 numbers: the addresses of cosines and sines, their rows and columns, and
/// the
///   address of the numbers by which rows take them, 0 for their own.
///
/// Throws std::domain_error for blocks that a cache lacks.
Frame frame_of(std::vector<int64_t> rows, const std::vector<uint64_t>& indices,
               const std::vector<int64_t>& cuts, const std::vector<int64_t>& angles, uintptr_t workspace,
               std::vector<int64_t> regions, uintptr_t weights, uintptr_t caches,
               std::vector<uint64_t> inputs, std::vector<uint64_t> outputs) {
    Frame frame{};
    frame.step.rows = std::move(rows);
    for (const uint64_t index : indices) frame.step.indices.push_back(pointer<const int64_t>(index));
    for (auto cut = cuts.begin(); cut != cuts.end(); cut += 6) {
        const Sequences sequences{cut[0], pointer<const int64_t>(cut[1]), pointer<const int64_t>(cut[2]),
                                  pointer<const int32_t>(cut[3]), cut[4]};
        if (cut[5] > 0) check_sequences(sequences, kBlockKeys, cut[5]);
        frame.step.cuts.push_back(sequences);
    }
    for (auto table = angles.begin(); table != angles.end(); table += 5)
        frame.step.angles.push_back({pointer<const float>(table[0]), pointer<const float>(table[1]), table[2],
                                     table[3], pointer<const int64_t>(table[4])});
    frame.workspace = pointer<uint8_t>(workspace);
    frame.regions = std::move(regions);
    frame.weights = pointer<const uint64_t>(weights);
    frame.caches = pointer<const uint64_t>(caches);
    frame.inputs = std::move(inputs);
    frame.outputs = std::move(outputs);
    return frame;
}

/// A method of Program that takes what `frame_of` does, the interpreter's lock released.
template <auto method>
auto with_frame() {
    return [](const Program& p, std::vector<int64_t> rows, const std::vector<uint64_t>& indices,
              const std::vector<int64_t>& cuts, const std::vector<int64_t>& angles, uintptr_t workspace,
              std::vector<int64_t> regions, uintptr_t weights, uintptr_t caches, std::vector<uint64_t> inputs,
              std::vector<uint64_t> outputs) {
        nb::gil_scoped_release released;
        return (p.*method)(frame_of(std::move(rows), indices, cuts, angles, workspace, std::move(regions),
                                    weights, caches, std::move(inputs), std::move(outputs)));
    };
}

void bind_rows_calls(nb::class_<Program>& program) {
    program
        .def(
            "embed",
            [](Program& p, int64_t index, int64_t offset, int64_t table, Dtype dtype, int64_t rows,
               Operand out,
               float scale) { p.add(embed_call(index, offset, {table, dtype}, rows, out, scale)); },
            "index"_a, "offset"_a, "table"_a, "dtype"_a, "rows"_a, "out"_a, "scale"_a = 1.0f)
        .def(
            "embed_packed",
            [](Program& p, int64_t index, int64_t offset, int64_t packed, const Layout& layout, Operand out,
               float scale) { p.add(embed_call(index, offset, packed, layout, out, scale)); },
            "index"_a, "offset"_a, "packed"_a, "layout"_a, "out"_a, "scale"_a = 1.0f)
        .def(
            "norm",
            [](Program& p, Operand x, NormKind kind, int64_t heads, int64_t weight, Dtype weight_dtype,
               int64_t bias, Dtype bias_dtype, double eps, std::optional<ShiftAndScale> modulation,
               Operand out) {
                p.add(norm_call(x, kind, heads, {weight, weight_dtype}, {bias, bias_dtype}, eps, modulation,
                                out));
            },
            "x"_a, "kind"_a, "heads"_a, "weight"_a, "weight_dtype"_a, "bias"_a, "bias_dtype"_a, "eps"_a,
            "modulation"_a.none(), "out"_a)
        .def("softcap",
             [](Program& p, Operand x, float cap, Operand out) { p.add(softcap_call(x, cap, out)); })
        .def("activate", [](Program& p, Operand x, Activation activation,
                            Operand out) { p.add(activate_call(x, activation, out)); })
        .def("add", [](Program& p, Operand a, Operand b, Operand out) { p.add(add_call(a, b, out)); })
        .def("add_vector", [](Program& p, Operand x, int64_t vector, Dtype dtype, int64_t parts,
                              Operand out) { p.add(add_vector_call(x, {vector, dtype}, parts, out)); })
        .def("take_rows",
             [](Program& p, Operand x, int64_t index, Operand out) { p.add(take_rows_call(x, index, out)); })
        .def("join_columns",
             [](Program& p, Operand a, Operand b, Operand out) { p.add(join_columns_call(a, b, out)); })
        .def("join_rows", [](Program& p, Operand a, Operand b, int64_t first, int64_t second,
                             Operand out) { p.add(join_rows_call(a, b, {first, second}, out)); })
        .def("split_rows", [](Program& p, Operand x, int64_t first, int64_t second, Operand a, Operand b) {
            p.add(split_rows_call(x, {first, second}, a, b));
        });
}

void bind_calls(nb::class_<Program>& program) {
    program
        .def(
            "linear",
            [](Program& p, Operand x, const Layout& layout, int64_t packed, int64_t bias, Dtype bias_dtype,
               Activation activation, std::optional<Operand> residual, std::optional<OfSequences> gate,
               Operand out) {
                p.add(linear_call(x, layout, packed, {bias, bias_dtype}, activation, residual, gate, out));
            },
            "x"_a, "layout"_a, "packed"_a, "bias"_a, "bias_dtype"_a, "activation"_a, "residual"_a.none(),
            "gate"_a.none(), "out"_a)
        .def(
            "attend",
            [](Program& p, Operand q, std::optional<Operand> k, std::optional<Operand> v,
               const Attended& attended, Operand out) { p.add(attend_call(q, k, v, attended, out)); },
            "q"_a, "k"_a.none(), "v"_a.none(), "attended"_a, "out"_a)
        .def("store", [](Program& p, Operand k, Operand v, const KvLayout& layout, int64_t cache,
                         int64_t cut) { p.add(store_call(k, v, layout, cache, cut)); });
}

void bind_experts_calls(nb::class_<Program>& program) {
    program
        .def("route",
             [](Program& p, Operand logits, int64_t chosen, Scoring scoring, int64_t bias, Dtype bias_dtype,
                int64_t groups, int64_t open_groups, GroupScore group_score, bool normalised, float scale,
                Operand routes) {
                 p.add(route_call(logits,
                                  {chosen,
                                   scoring,
                                   {bias, bias_dtype},
                                   groups,
                                   open_groups,
                                   group_score,
                                   normalised,
                                   scale},
                                  routes));
             })
        .def(
            "experts",
            [](Program& p, Operand x, Operand routes, int64_t experts, int64_t chosen, const Layout& gate_up,
               int64_t first_gate_up, const Layout& down, int64_t first_down, Activation activation,
               std::optional<Operand> residual, Operand out) {
                p.add(experts_call(x, routes,
                                   {experts, chosen, gate_up, first_gate_up, down, first_down, activation},
                                   residual, out));
            },
            "x"_a, "routes"_a, "experts"_a, "chosen"_a, "gate_up"_a, "first_gate_up"_a, "down"_a,
            "first_down"_a, "activation"_a, "residual"_a.none(), "out"_a);
}

void bind_latents(nb::module_& m, nb::class_<Program>& program) {
    nb::class_<LatentHeads>(m, "LatentHeads")
        .def("__init__", [](LatentHeads* x, int64_t count, int64_t rank, int64_t content, int64_t rotated,
                            int64_t value) { new (x) LatentHeads{count, rank, content, rotated, value}; });
    nb::class_<LatentCache>(m, "LatentCache")
        .def("__init__", [](LatentCache* x, Dtype dtype, int64_t columns, int64_t block) {
            new (x) LatentCache{dtype, columns, block};
        });
    nb::class_<LatentCall>(m, "LatentCall")
        .def("__init__", [](LatentCall* x, const LatentHeads& heads, NormKind norm, int64_t weight,
                            Dtype weight_dtype, double eps, const Layout& up, int64_t up_number,
                            KvFormat format, int64_t cache, const LatentCache& stored, int64_t cut,
                            int64_t rotation, bool interleaved, const Mask& mask, const Score& score) {
            new (x) LatentCall{heads,  norm,     {weight, weight_dtype},
                               eps,    up,       up_number,
                               format, cache,    stored,
                               cut,    rotation, interleaved,
                               mask,   score};
        });
    program.def("attend_latent", [](Program& p, Operand q, Operand kv, const LatentCall& call, Operand out) {
        p.add(attend_latent_call(q, kv, call, out));
    });
}

void bind_records(nb::module_& m) {
    nb::enum_<Place>(m, "Place")
        .value("workspace", Place::workspace)
        .value("input", Place::input)
        .value("output", Place::output);
    nb::class_<Operand>(m, "Operand")
        .def("__init__", [](Operand* x, Place place, int64_t region, int64_t offset, int64_t stride,
                            int64_t column, int64_t columns, int64_t rows) {
            new (x) Operand{place, region, offset, stride, column, columns, rows};
        });
    nb::class_<OfSequences>(m, "OfSequences")
        .def("__init__",
             [](OfSequences* x, Operand vectors, int64_t index) { new (x) OfSequences{vectors, index}; });
    nb::class_<ShiftAndScale>(m, "ShiftAndScale")
        .def("__init__", [](ShiftAndScale* x, Operand shift, Operand scale, int64_t index) {
            new (x) ShiftAndScale{shift, scale, index};
        });
    nb::class_<Attended>(m, "Attended")
        .def(
            "__init__",
            [](Attended* x, const KvLayout& layout, int64_t cache, int64_t cut, int64_t rotation,
               const Mask& mask, const Score& score, int64_t bias,
               int64_t reach) { new (x) Attended{layout, cache, cut, rotation, mask, {score, bias, reach}}; },
            "layout"_a, "cache"_a, "cut"_a, "rotation"_a, "mask"_a, "score"_a, "bias"_a, "reach"_a);
}

}  // namespace

void bind_program(nb::module_& m) {
    bind_records(m);
    auto program = nb::class_<Program>(m, "Program").def(nb::init<>());
    bind_rows_calls(program);
    bind_calls(program);
    bind_experts_calls(program);
    bind_latents(m, program);
    program.def("run", with_frame<&Program::run>()).def("profile", with_frame<&Program::profile>());
}

}  // namespace ridgeline
