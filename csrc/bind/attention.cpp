#include "attention/attention.h"

#include <nanobind/nanobind.h>

#include "bind/bind.h"

namespace nb = nanobind;
using namespace nb::literals;

namespace ridgeline {
namespace {

void bind_records(nb::module_& m) {
    nb::enum_<KvFormat>(m, "KvFormat")
        .value("fp32", KvFormat::fp32)
        .value("bf16", KvFormat::bf16)
        .value("int8", KvFormat::int8);
    nb::enum_<Schedule>(m, "Schedule")
        .value("automatic", Schedule::automatic)
        .value("naive", Schedule::naive)
        .value("flash", Schedule::flash)
        .value("split_kv", Schedule::split_kv);
    nb::class_<KvLayout>(m, "KvLayout")
        .def("__init__", [](KvLayout* layout, KvFormat format, int64_t heads, int64_t dim,
                            int64_t value_dim) { new (layout) KvLayout{format, heads, dim, value_dim}; })
        .def_prop_ro("block_bytes", &KvLayout::block_bytes);
    nb::class_<HeadRows>(m, "HeadRows")
        .def("__init__",
             [](HeadRows* x, uintptr_t data, Dtype dtype, int64_t sequence, int64_t row, int64_t head) {
                 new (x) HeadRows{pointer<void>(data), dtype, sequence, row, head};
             });
    nb::class_<Sequences>(m, "Sequences")
        .def("__init__",
             [](Sequences* s, int64_t count, uintptr_t rows, uintptr_t past, uintptr_t tables,
                int64_t table_stride) {
                 new (s) Sequences{count, pointer<const int64_t>(rows), pointer<const int64_t>(past),
                                   pointer<const int32_t>(tables), table_stride};
             })
        .def("check", &check_sequences);
    nb::class_<Mask>(m, "AttentionMask")
        .def("__init__", [](Mask* mask, bool causal, int64_t left, int64_t right, int64_t sinks) {
            new (mask) Mask{causal, left, right, sinks};
        });
    nb::class_<Score>(m, "AttentionScore")
        .def(
            "__init__",
            [](Score* score, float scale, float softcap, uintptr_t alibi_slopes, uintptr_t sinks,
               uintptr_t bias, int64_t reach) {
                new (score) Score{scale,
                                  softcap,
                                  pointer<const float>(alibi_slopes),
                                  pointer<const float>(sinks),
                                  pointer<const float>(bias),
                                  reach};
            },
            "scale"_a, "softcap"_a, "alibi_slopes"_a, "sinks"_a, "bias"_a = 0, "reach"_a = 0);
    nb::class_<Angles>(m, "Angles")
        .def("__init__", [](Angles* angles, uintptr_t cos, uintptr_t sin, int64_t dim, uintptr_t rows) {
            new (angles) Angles{pointer<const float>(cos), pointer<const float>(sin), dim,
                                pointer<const int64_t>(rows)};
        });
    nb::class_<KvSource>(m, "KvSource")
        .def_static("blocks", [](const KvLayout& layout,
                                 uintptr_t blocks) { return KvSource{layout, pointer<uint8_t>(blocks), {}}; })
        .def_static("plain", [](const KvLayout& layout, const HeadRows& keys, const HeadRows& values,
                                int64_t page_tokens) {
            return KvSource{layout, nullptr, {keys, values, page_tokens}};
        });
}

}  // namespace

void bind_attention(nb::module_& m) {
    bind_records(m);
    m.attr("kv_panel_keys") = kPanelKeys;
    m.attr("kv_block_keys") = kBlockKeys;
    m.attr("most_head_dim") = kMostDim;
    m.attr("packed") = kPacked;
    m.def(
        "attention",
        [](int64_t heads, const Sequences& sequences, const HeadRows& queries, const Angles& angles,
           const KvSource& source, const Mask& mask, const Score& score, const HeadRows& out,
           const HeadRows& lse, Schedule schedule) {
            attention({heads, sequences, queries, angles, source, mask, score, out, lse, schedule});
        },
        nb::call_guard<nb::gil_scoped_release>());
    m.def(
        "append",
        [](const Sequences& sequences, const HeadRows& keys, const HeadRows& values, const Angles& angles,
           const KvLayout& layout,
           uintptr_t blocks) { append({sequences, keys, values, angles, layout, pointer<uint8_t>(blocks)}); },
        nb::call_guard<nb::gil_scoped_release>());
    m.def(
        "merge_states",
        [](int64_t states, int64_t rows, int64_t dim, uintptr_t in, uintptr_t lse, uintptr_t out,
           uintptr_t out_lse) {
            merge_states({states, rows, dim, pointer<const float>(in), pointer<const float>(lse),
                          pointer<float>(out), pointer<float>(out_lse)});
        },
        nb::call_guard<nb::gil_scoped_release>());
}

}  // namespace ridgeline
