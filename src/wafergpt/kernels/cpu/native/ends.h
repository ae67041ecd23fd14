// What is done to finished sums: bias, GELU, residual; and the few vectors' functions that everything shares.
// After one of simd_*.h.
#pragma once
#include "kernel.h"

namespace wafergpt::native {
namespace {

inline F zero() { return set1(0.0f); }

// The first n of kLanes values at p, 0 for the others; reads nothing beyond them.
inline F load_first(const float* p, int64_t n) {
    if (n >= kLanes) return load(p);
    float lanes[kLanes] = {};
    memcpy(lanes, p, static_cast<size_t>(n) * 4);
    return load(lanes);
}

inline void store_first(float* p, F x, int64_t n) {
    if (n >= kLanes) return store(p, x);
    float lanes[kLanes];
    store(lanes, x);
    memcpy(p, lanes, static_cast<size_t>(n) * 4);
}

// exp(x) for x <= 88, relative error below 2e-7 (degree-6 polynomial on [-ln2/2, ln2/2]); stays at
// exp(-87.3) = 1.2e-38 below; a NaN stays one.
inline F exp_fast(F x) {
    const F clamped = max_or_second(set1(-87.3f), x);
    const F n = rint(mul(clamped, set1(1.44269504f)));
    const F r = fma(n, set1(2.12194440e-4f), sub(clamped, mul(n, set1(0.693359375f))));
    F p = set1(1.0f / 720.0f);
    p = fma(p, r, set1(1.0f / 120.0f));
    p = fma(p, r, set1(1.0f / 24.0f));
    p = fma(p, r, set1(1.0f / 6.0f));
    p = fma(p, r, set1(0.5f));
    p = fma(p, r, set1(1.0f));
    p = fma(p, r, set1(1.0f));
    return mul(p, bits_to_float(shift_left<23>(iadd(to_int(n), iset1(127)))));
}

// x Phi(x); erf by Abramowitz & Stegun 7.1.26, absolute error below 1.5e-7.
inline F gelu_erf(F x) {
    const F z = mul(max_or_second(x, sub(zero(), x)), set1(0.70710678f));
    const F t = div(set1(1.0f), fma(z, set1(0.3275911f), set1(1.0f)));
    F poly = set1(1.061405429f);
    poly = fma(poly, t, set1(-1.453152027f));
    poly = fma(poly, t, set1(1.421413741f));
    poly = fma(poly, t, set1(-0.284496736f));
    poly = fma(poly, t, set1(0.254829592f));
    const F tail = mul(mul(mul(poly, t), set1(0.5f)), exp_fast(sub(zero(), mul(z, z))));  // 1 - Phi(|x|)
    return mul(x, if_negative(x, tail, sub(set1(1.0f), tail)));
}

// GPT-2's gelu_new.
inline F gelu_tanh(F x) {
    const F inner = mul(set1(0.79788456f), fma(mul(mul(x, x), x), set1(0.044715f), x));
    const F bounded = min_or_second(set1(20.0f), max_or_second(set1(-20.0f), inner));
    const F tanh_inner = sub(set1(1.0f), div(set1(2.0f), add(exp_fast(add(bounded, bounded)), set1(1.0f))));
    return mul(mul(x, set1(0.5f)), add(tanh_inner, set1(1.0f)));
}

// The end of some sums, y [rows][width], which have their scales: bias, GELU or residual, and out. One function
// for all tiles: inlined, it would be most of the library. `column` is within the matrix.
__attribute__((noinline)) void finish(const Product& p, int64_t row, int64_t rows, int64_t column, int64_t width,
                                      const float* y) {
    const F alpha = set1(p.alpha);
    for (int64_t r = 0; r < rows; ++r)
        for (int64_t c = 0; c < width; c += kLanes) {
            const int64_t at = column + c, n = p.out_columns - at;
            if (n <= 0) break;
            float* out = p.out + (row + r) * p.out_stride + at;
            F value = mul(load(y + r * width + c), alpha);
            if (p.w.bias != nullptr) value = add(value, load(p.w.bias + at));
            if (p.finish == kGeluErf) value = gelu_erf(value);
            if (p.finish == kGeluTanh) value = gelu_tanh(value);
            if (p.finish == kAddTo) value = add(load_first(out, n), value);
            store_first(out, value, n);
        }
}

}  // namespace
}  // namespace wafergpt::native
