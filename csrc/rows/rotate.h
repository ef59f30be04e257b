#pragma once

#include <cstdint>

#include "rows/elements.h"
#include "rows/rows.h"

namespace ridgeline {
namespace {

/// (x1, x2) -> (x1 cos1 - x2 sin1, x2 cos2 + x1 sin2), the halves of `dim` elements; out may be x.
template <class X, class O>
void rotate_vector(const typename X::T* x, const float* cos, const float* sin, int64_t dim,
                   typename O::T* out) {
    const int64_t half = dim / 2;
    each_vector(half, [&](int64_t i, auto part) {
        const Arch::F first = load<X>(x + i, part), second = load<X>(x + half + i, part);
        const Arch::F cos1 = load<Fp32Elements>(cos + i, part);
        const Arch::F sin1 = load<Fp32Elements>(sin + i, part);
        const Arch::F cos2 = load<Fp32Elements>(cos + half + i, part);
        const Arch::F sin2 = load<Fp32Elements>(sin + half + i, part);
        store<O>(out + i, Arch::sub(Arch::mul(first, cos1), Arch::mul(second, sin1)), part);
        store<O>(out + half + i, Arch::fma(first, sin2, Arch::mul(second, cos2)), part);
    });
}

void rotate_vectors(const Rotation& job, int64_t begin, int64_t end) {
    with_elements(job.x.dtype, [&](auto ex) {
        with_elements(job.out.dtype, [&](auto eo) {
            using X = decltype(ex);
            using O = decltype(eo);
            for (int64_t item = begin; item < end; ++item) {
                const int64_t row = item / job.heads, head = item % job.heads;
                const int64_t position = job.positions == nullptr ? row : job.positions[row];
                const int64_t angle = position * job.angle_stride;
                rotate_vector<X, O>(static_cast<const typename X::T*>(vector_at(job.x, row, head)),
                                    job.cos + angle, job.sin + angle, job.dim,
                                    static_cast<typename O::T*>(vector_at(job.out, row, head)));
            }
        });
    });
}

}  // namespace
}  // namespace ridgeline
