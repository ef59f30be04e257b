#pragma once

#include <cmath>
#include <cstdint>

#include "rows/elements.h"
#include "rows/elementwise.h"
#include "rows/rows.h"
#include "simd/unroll.h"

namespace ridgeline {
namespace {

/// Sums that run side by side, since one alone would wait for each addition.
constexpr int kChains = 4;

/// acc + every term(acc, vector) of a run, in one order for a length; the rest of the last vector is `fill`.
template <class X, class Term>
[[gnu::always_inline]] inline double reduce(const typename X::T* x, int64_t n, float fill, const Term& term) {
    constexpr int64_t kStep = kChains * Arch::kLanes;
    Arch::F acc[kChains];
    unroll<kChains>([&](auto c) { acc[c] = Arch::zero(); });
    int64_t i = 0;
    for (; i + kStep <= n; i += kStep)
        unroll<kChains>([&](auto c) { acc[c] = term(acc[c], load<X>(x + i + c * Arch::kLanes, Whole{})); });
    for (; i + Arch::kLanes <= n; i += Arch::kLanes) acc[0] = term(acc[0], load<X>(x + i, Whole{}));
    if (i < n) acc[1] = term(acc[1], load<X>(x + i, Part{n - i, fill}));
    float lanes[kChains * Arch::kLanes];
    unroll<kChains>([&](auto c) { Arch::store(lanes + c * Arch::kLanes, acc[c]); });
    double sum = 0.0;
    for (float lane : lanes) sum += lane;
    return sum;
}

/// What is taken off x, and what the rest is multiplied with. The mean is in two parts: x less the first is
/// exact or nearly so where the mean is large beside the spread.
struct Moments {
    float mean;
    float rest;
    float scale;
};

template <class X>
Moments rms_moments(const typename X::T* x, const Norm& job) {
    const double squares =
        reduce<X>(x, job.dim, 0.0f, [](Arch::F acc, Arch::F v) { return Arch::fma(v, v, acc); });
    const double mean = squares / static_cast<double>(job.dim);
    return {0.0f, 0.0f, static_cast<float>(1.0 / std::sqrt(mean + job.eps))};
}

template <class X>
Moments layer_moments(const typename X::T* x, const Norm& job) {
    const double dim = static_cast<double>(job.dim);
    const double sum = reduce<X>(x, job.dim, 0.0f, [](Arch::F acc, Arch::F v) { return Arch::add(acc, v); });
    const float mean = static_cast<float>(sum / dim);
    const Arch::F means = Arch::set(mean);
    const double rest =
        reduce<X>(x, job.dim, mean,
                  [&](Arch::F acc, Arch::F v) { return Arch::add(acc, Arch::sub(v, means)); }) /
        dim;
    const double squares = reduce<X>(x, job.dim, mean, [&](Arch::F acc, Arch::F v) {
        const Arch::F centred = Arch::sub(v, means);
        return Arch::fma(centred, centred, acc);
    });
    const double variance = squares / dim - rest * rest;
    return {mean, static_cast<float>(rest), static_cast<float>(1.0 / std::sqrt(variance + job.eps))};
}

/// (x - mean) scale weight + bias, each vector of which is handed to `finish` before it is stored.
template <class X, class W, class O, class Finish>
[[gnu::always_inline]] inline void scale_vector(const typename X::T* x, const Moments& moments,
                                                const Norm& job, typename O::T* out, const Finish& finish) {
    const typename W::T* weight = static_cast<const typename W::T*>(job.weight);
    const typename W::T* bias = static_cast<const typename W::T*>(job.bias);
    const Arch::F mean = Arch::set(moments.mean), rest = Arch::set(moments.rest);
    const Arch::F scale = Arch::set(moments.scale), one = Arch::set(1.0f);
    each_vector(job.dim, [&](int64_t i, auto part) {
        const Arch::F centred = Arch::sub(Arch::sub(load<X>(x + i, part), mean), rest);
        const Arch::F scaled = Arch::mul(centred, scale);
        const Arch::F w = weight == nullptr ? one : load<W>(weight + i, part);
        const Arch::F y =
            bias == nullptr ? Arch::mul(scaled, w) : Arch::fma(scaled, w, load<W>(bias + i, part));
        store<O>(out + i, finish(i, y, part), part);
    });
}

template <class X, class W, class O>
void scale_vector(const typename X::T* x, const Moments& moments, const Norm& job, int64_t row,
                  typename O::T* out) {
    const Modulation& modulation = job.modulation;
    if (modulation.shift == nullptr)
        return scale_vector<X, W, O>(x, moments, job, out, [](int64_t, Arch::F y, auto) { return y; });
    const int64_t sequence = modulation.sequences[row];
    const float* shift = modulation.shift + sequence * modulation.shift_stride;
    const float* scale = modulation.scale + sequence * modulation.scale_stride;
    const Arch::F one = Arch::set(1.0f);
    scale_vector<X, W, O>(x, moments, job, out, [=](int64_t i, Arch::F y, auto part) {
        const Arch::F factor = Arch::add(one, load<Fp32Elements>(scale + i, part));
        return Arch::fma(y, factor, load<Fp32Elements>(shift + i, part));
    });
}

template <class X>
void norm_vector(const void* from, const Norm& job, int64_t row, void* to) {
    const typename X::T* x = static_cast<const typename X::T*>(from);
    const Moments moments = job.kind == NormKind::rms ? rms_moments<X>(x, job) : layer_moments<X>(x, job);
    with_elements(job.weight_dtype, [&](auto ew) {
        with_elements(job.out.dtype, [&](auto eo) {
            using O = decltype(eo);
            scale_vector<X, decltype(ew), O>(x, moments, job, row, static_cast<typename O::T*>(to));
        });
    });
}

void norm_vectors(const Norm& job, int64_t begin, int64_t end) {
    const bool adds = job.residual.data != nullptr;
    const Vectors& from = adds ? job.residual : job.x;
    for (int64_t item = begin; item < end; ++item) {
        const int64_t row = item / job.heads, head = item % job.heads;
        void* x = vector_at(from, row, head);
        if (adds) add_run(x, from.dtype, vector_at(job.x, row, head), job.x.dtype, x, from.dtype, job.dim);
        with_elements(from.dtype, [&](auto ex) {
            norm_vector<decltype(ex)>(x, job, row, vector_at(job.out, row, head));
        });
    }
}

}  // namespace
}  // namespace ridgeline
