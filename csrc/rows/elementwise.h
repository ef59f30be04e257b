#pragma once

#include <cstdint>

#include "rows/elements.h"
#include "rows/rows.h"
#include "simd/activation.h"

namespace ridgeline {
namespace {

/// to = a + b, n elements; `to` may be a or b.
inline void add_run(const void* a, Dtype a_dtype, const void* b, Dtype b_dtype, void* to, Dtype to_dtype,
                    int64_t n) {
    with_elements(a_dtype, [&](auto ea) {
        with_elements(b_dtype, [&](auto eb) {
            with_elements(to_dtype, [&](auto eo) {
                using A = decltype(ea);
                using B = decltype(eb);
                using O = decltype(eo);
                each_vector(n, [&](int64_t i, auto part) {
                    const Arch::F x = load<A>(static_cast<const typename A::T*>(a) + i, part);
                    const Arch::F y = load<B>(static_cast<const typename B::T*>(b) + i, part);
                    store<O>(static_cast<typename O::T*>(to) + i, Arch::add(x, y), part);
                });
            });
        });
    });
}

void add_rows(const Sum& job, int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row)
        add_run(vector_at(job.a, row), job.a.dtype, vector_at(job.b, row), job.b.dtype,
                vector_at(job.out, row), job.out.dtype, job.columns);
}

/// Products are rounded before they are added.
void weighted_sum_rows(const WeightedSum& job, int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row) {
        const int64_t* places = job.places + row * job.terms;
        const float* weights = job.weights + row * job.weight_stride;
        const auto x = [&](int64_t i) { return static_cast<const float*>(vector_at(job.x, places[i])); };
        const auto residual =
            static_cast<const float*>(job.residual.data == nullptr ? nullptr : vector_at(job.residual, row));
        const auto out = static_cast<float*>(vector_at(job.out, row));
        each_vector(job.columns, [&](int64_t c, auto part) {
            Arch::F sum = Arch::mul(load<Fp32Elements>(x(0) + c, part), Arch::set(weights[0]));
            for (int64_t i = 1; i < job.terms; ++i)
                sum = Arch::add(sum, Arch::mul(load<Fp32Elements>(x(i) + c, part), Arch::set(weights[i])));
            if (residual != nullptr) sum = Arch::add(load<Fp32Elements>(residual + c, part), sum);
            store<Fp32Elements>(out + c, sum, part);
        });
    }
}

void softcap_rows(const Softcap& job, int64_t begin, int64_t end) {
    const Arch::F cap = Arch::set(job.cap), inverse = Arch::set(1.0f / job.cap);
    with_elements(job.x.dtype, [&](auto ex) {
        with_elements(job.out.dtype, [&](auto eo) {
            using X = decltype(ex);
            using O = decltype(eo);
            for (int64_t row = begin; row < end; ++row) {
                const auto x = static_cast<const typename X::T*>(vector_at(job.x, row));
                const auto out = static_cast<typename O::T*>(vector_at(job.out, row));
                each_vector(job.columns, [&](int64_t i, auto part) {
                    const Arch::F share = tanh(Arch::mul(load<X>(x + i, part), inverse));
                    store<O>(out + i, Arch::mul(cap, share), part);
                });
            }
        });
    });
}

void convert(const void* from, Dtype from_dtype, void* to, Dtype to_dtype, int64_t n) {
    with_elements(from_dtype, [&](auto ex) {
        with_elements(to_dtype, [&](auto eo) {
            using X = decltype(ex);
            using O = decltype(eo);
            each_vector(n, [&](int64_t i, auto part) {
                const Arch::F x = load<X>(static_cast<const typename X::T*>(from) + i, part);
                store<O>(static_cast<typename O::T*>(to) + i, x, part);
            });
        });
    });
}

template <class X, class O, class Function>
void activate_row(const Activate& job, int64_t row, const Function& act) {
    const typename X::T* x = static_cast<const typename X::T*>(vector_at(job.x, row));
    typename O::T* out = static_cast<typename O::T*>(vector_at(job.out, row));
    if (job.gated)
        each_vector(job.columns, [&](int64_t i, auto part) {
            const Arch::F gate = act(load<X>(x + i, part));
            store<O>(out + i, Arch::mul(gate, load<X>(x + job.columns + i, part)), part);
        });
    else
        each_vector(job.columns,
                    [&](int64_t i, auto part) { store<O>(out + i, act(load<X>(x + i, part)), part); });
}

void activate_rows(const Activate& job, int64_t begin, int64_t end) {
    with_elements(job.x.dtype, [&](auto ex) {
        with_elements(job.out.dtype, [&](auto eo) {
            with_activation(job.activation, [&](auto act) {
                for (int64_t row = begin; row < end; ++row)
                    activate_row<decltype(ex), decltype(eo)>(job, row, act);
            });
        });
    });
}

}  // namespace
}  // namespace ridgeline
