#pragma once

// Elementary functions of float32 vectors, to a few units in the last place. NaN gives NaN.
namespace ridgeline {
namespace {

using F = Arch::F;

template <class... C>
[[gnu::always_inline]] inline F polynomial(F x, float highest, C... lower) {
    F y = Arch::set(highest);
    ((y = Arch::fma(y, x, Arch::set(lower))), ...);
    return y;
}

/// 2^n and e^r - 1, where x = n ln 2 + r and |r| <= ln 2 / 2; the Taylor series to r^7 is exact to 1e-8.
struct Exponent {
    F n;
    F rest;
};

inline Exponent split_exponent(F x) {
    // Beyond these limits e^x is infinity or 0 anyway.
    x = Arch::min(Arch::set(89.0f), Arch::max(Arch::set(-104.0f), x));
    const F n = Arch::round(Arch::mul(x, Arch::set(0x1.715476p0f)));
    // ln 2 in two parts, the first with few enough bits for n times it to be exact.
    F r = Arch::fma(n, Arch::set(-0x1.62e4p-1f), x);
    r = Arch::fma(n, Arch::set(-0x1.7f7d1cp-20f), r);
    const F series = polynomial(r, 1.0f / 5040, 1.0f / 720, 1.0f / 120, 1.0f / 24, 1.0f / 6, 0.5f, 1.0f);
    return {n, Arch::mul(r, series)};
}

inline F exp(F x) {
    const Exponent e = split_exponent(x);
    return Arch::scale(Arch::add(e.rest, Arch::set(1.0f)), e.n);
}

/// 2^x for x <= 0, to 1.6e-7; exactly 1 at 0, and exactly 0 at -infinity. The polynomial is the minimax fit
/// to 2^r over |r| <= 1/2 among those that are 1 at 0.
inline F exp2_below_zero(F x) {
    x = Arch::max(Arch::set(Arch::kPowerUnderflow), x);
    const F n = Arch::round(x);
    const F power = polynomial(Arch::sub(x, n), 0x1.5bba14p-10f, 0x1.3cea88p-7f, 0x1.c6b752p-5f,
                               0x1.ebf9bcp-3f, 0x1.62e42ap-1f, 1.0f);
    return Arch::scale(power, n);
}

/// 1 / (1 + e^-x), times x: x comes first so that it is not lost where e^-x overflows.
inline F x_times_logistic(F x, F at) {
    return Arch::div(x, Arch::add(Arch::set(1.0f), exp(Arch::sub(Arch::zero(), at))));
}

/// From e^2|x| - 1, which keeps its accuracy near 0.
inline F tanh(F x) {
    // tanh 10 is 1 in float32.
    const F twice = Arch::mul(Arch::set(2.0f), Arch::min(Arch::set(10.0f), Arch::abs(x)));
    const Exponent e = split_exponent(twice);
    const F power = Arch::scale(Arch::set(1.0f), e.n);
    const F m = Arch::fma(power, e.rest, Arch::sub(power, Arch::set(1.0f)));
    return Arch::with_sign_of(Arch::div(m, Arch::add(m, Arch::set(2.0f))), x);
}

/// erfcx(t) = e^(t^2) erfc(t) for t >= 0, as k p(k) with k = 1 / (1 + 0.4 t). The polynomial p is a weighted
/// least-squares fit to erfcx(t) / k over t <= 10 at Chebyshev nodes; relative error 1e-8 before rounding.
inline F erfcx(F t) {
    const F k = Arch::div(Arch::set(1.0f), Arch::fma(t, Arch::set(0.4f), Arch::set(1.0f)));
    const F p = polynomial(k, -0.0295958463f, 0.19802101f, -0.498828888f, 0.547457278f, -0.284383774f,
                           0.272074789f, 0.129676849f, 0.214919642f, 0.224951968f, 0.225706905f);
    return Arch::mul(k, p);
}

inline F silu(F x) { return x_times_logistic(x, x); }

/// x Phi(x), with Phi from its tail, erfc(|x| / sqrt 2) / 2, so that it keeps its accuracy for negative x.
inline F gelu(F x) {
    const F scaled = erfcx(Arch::mul(Arch::abs(x), Arch::set(0x1.6a09e6p-1f)));
    const F tail =
        Arch::mul(Arch::mul(Arch::set(0.5f), scaled), exp(Arch::mul(Arch::mul(x, x), Arch::set(-0.5f))));
    return Arch::mul(x, Arch::negative(x, tail, Arch::sub(Arch::set(1.0f), tail)));
}

/// 0.5 x (1 + tanh u) = x / (1 + e^-2u), u = sqrt(2 / pi) (x + 0.044715 x^3).
inline F gelu_tanh(F x) {
    const F cubic = Arch::fma(Arch::mul(Arch::mul(x, x), x), Arch::set(0.044715f), x);
    return x_times_logistic(x, Arch::mul(cubic, Arch::set(1.595769122f)));
}

inline F relu(F x) { return Arch::max(Arch::zero(), x); }

}  // namespace
}  // namespace ridgeline
