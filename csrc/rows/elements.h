#pragma once

#include <cstdint>

#include "linear/job.h"
#include "rows/rows.h"
#include "simd/half.h"

// Runs of float32 or bf16 in memory as float32 vectors.
namespace ridgeline {
namespace {

/// A vector's worth of elements, or the last few of a run: lanes beyond them are `fill`, and not stored.
struct Whole {};
struct Part {
    int64_t n;
    float fill = 0.0f;
};

struct Fp32Elements {
    using T = float;
    static Arch::F load(const T* p, Whole) { return Arch::load(p); }
    static void store(T* p, Arch::F x, Whole) { Arch::store(p, x); }
    static float get(T x) { return x; }
    static T put(float x) { return x; }
};

struct Bf16Elements {
    using T = uint16_t;
    static Arch::F load(const T* p, Whole) { return Arch::load_bf16(p); }
    static void store(T* p, Arch::F x, Whole) { Arch::store_bf16(p, x); }
    static float get(T x) { return from_bf16(x); }
    static T put(float x) { return to_bf16(x); }
};

template <class E>
Arch::F load(const typename E::T* p, Whole whole) {
    return E::load(p, whole);
}
template <class E>
Arch::F load(const typename E::T* p, Part part) {
    float lanes[Arch::kLanes];
    for (int64_t i = 0; i < Arch::kLanes; ++i) lanes[i] = i < part.n ? E::get(p[i]) : part.fill;
    return Arch::load(lanes);
}
template <class E>
void store(typename E::T* p, Arch::F x, Whole whole) {
    E::store(p, x, whole);
}
template <class E>
void store(typename E::T* p, Arch::F x, Part part) {
    float lanes[Arch::kLanes];
    Arch::store(lanes, x);
    for (int64_t i = 0; i < part.n; ++i) p[i] = E::put(lanes[i]);
}

/// Calls f(i, Whole or Part) for the vectors of a run of n elements.
template <class Function>
[[gnu::always_inline]] inline void each_vector(int64_t n, const Function& f) {
    int64_t i = 0;
    for (; i + Arch::kLanes <= n; i += Arch::kLanes) f(i, Whole{});
    if (i < n) f(i, Part{n - i});
}

/// Calls f with the elements' type.
template <class Function>
[[gnu::always_inline]] inline void with_elements(Dtype dtype, const Function& f) {
    if (dtype == Dtype::fp32)
        f(Fp32Elements{});
    else
        f(Bf16Elements{});
}

/// Where vector `head` of row `row` begins.
inline void* vector_at(const Vectors& v, int64_t row, int64_t head = 0) {
    const int64_t bytes = v.dtype == Dtype::fp32 ? 4 : 2;
    return static_cast<uint8_t*>(v.data) + (row * v.row_stride + head * v.head_stride) * bytes;
}

}  // namespace
}  // namespace ridgeline
