#include <nanobind/nanobind.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include <cstdint>

#include "bind/bind.h"
#include "isa/isa.h"
#include "threads/cores.h"
#include "threads/pool.h"

namespace nb = nanobind;
using namespace ridgeline;

namespace {

std::vector<std::string> isa_names() {
    std::vector<std::string> names;
    for (Isa isa : available_isas()) names.emplace_back(name(isa));
    return names;
}

void bind_threads(nb::module_& m) {
    m.def("available_cores", available_cores);
    m.def("threads", [] { return pool().threads(); });
    m.def(
        "set_threads", [](int threads) { pool().resize(threads); }, nb::call_guard<nb::gil_scoped_release>());
    m.def("use_own_pool", use_own_pool, nb::call_guard<nb::gil_scoped_release>());
    m.attr("max_threads") = static_cast<int>(Pool::kMaxThreads);
    // Python functions under the interpreter's lock, for the tests of the pool: each share takes it in turn.
    m.def("share_loop", [](int64_t items, const nb::callable& body) {
        nb::gil_scoped_release released;
        parallel_for(items, [&](int64_t begin, int64_t end) {
            nb::gil_scoped_acquire held;
            body(begin, end);
        });
    });
}

void bind_isa(nb::module_& m) {
    m.def("available_isas", isa_names);
    m.def("isa", [] { return std::string(name(current_isa())); });
    m.def("choose_isa", choose_isa);
}

}  // namespace

NB_MODULE(_native, m) {
    m.doc() = "Ridgeline's CPU kernels; use them through ridgeline.kernels.";
    nb::set_leak_warnings(false);  // a weight in a global variable outlives the module, and may
    bind_threads(m);
    bind_isa(m);
    bind_linear(m);
    bind_experts(m);
    bind_attention(m);
    bind_rows(m);
    bind_program(m);
    bind_sample(m);
}
