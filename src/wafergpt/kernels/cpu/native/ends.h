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
    return times_power_of_2(p, n);
}

// x Phi(x); erf by Abramowitz & Stegun 7.1.26, absolute error below 1.5e-7.
inline F gelu_erf(F x) {
    const F z = min_or_second(set1(1e18f), mul(max_or_second(x, sub(zero(), x)), set1(0.70710678f)));
    const F t = reciprocal(fma(z, set1(0.3275911f), set1(1.0f)));
    F poly = set1(1.061405429f);
    poly = fma(poly, t, set1(-1.453152027f));
    poly = fma(poly, t, set1(1.421413741f));
    poly = fma(poly, t, set1(-0.284496736f));
    poly = fma(poly, t, set1(0.254829592f));
    const F tail = mul(mul(mul(poly, t), set1(0.5f)), exp_fast(sub(zero(), mul(z, z))));  // 1 - Phi(|x|)
    return mul(x, if_negative(x, tail, sub(set1(1.0f), tail)));
}

// GPT-2's gelu_new, x (1 + tanh(y)) / 2, as x / (1 + exp(-2 y)); from -9.75 down it is -3e-35 and less.
inline F gelu_tanh(F x) {
    const F bounded = max_or_second(set1(-9.75f), x);
    const F slope = fma(mul(bounded, bounded), set1(-2.0f * 0.79788456f * 0.044715f), set1(-2.0f * 0.79788456f));
    return mul(bounded, reciprocal(add(exp_fast(mul(bounded, slope)), set1(1.0f))));
}

// The integer sums of one row as floats, with the row's scale and the columns'.
struct IntegerSums {
    F scale;
    I excess;
    F operator()(const float* y, const float* column_scale) const {
        return mul(to_float(isub(iload(y), excess)), mul(scale, load(column_scale)));
    }
};

template <Finish Kind, class Row> inline void finish_vector(const Product& p, const Row& scaled, const float* y, float* out, int64_t at) {
    F value = mul(scaled(y, at), set1(p.alpha));
    if (p.w.bias != nullptr) value = add(value, load(p.w.bias + at));
    if (Kind == kGeluErf) value = gelu_erf(value);
    if (Kind == kGeluTanh) value = gelu_tanh(value);
    const int64_t n = p.out_columns - at;
    if (Kind == kAddTo) value = add(load_first(out, n), value);
    store_first(out, value, n);
}

template <Finish Kind, bool Integers>
void finish_rows(const Product& p, int64_t row, int64_t rows, int64_t column, int64_t width, const float* y) {
    const int64_t end = p.out_columns - column < width ? p.out_columns - column : width;
    for (int64_t r = 0; r < rows; ++r) {
        float* out = p.out + (row + r) * p.out_stride + column;
        const IntegerSums sums = {set1(Integers ? p.x.scale[row + r] : 0.0f), iset1(Integers ? p.x.sums[(row + r) * p.x.sums_stride] : 0)};
        const auto scaled = [&](const float* at_y, int64_t at) { return Integers ? sums(at_y, p.w.scales + at) : load(at_y); };
        for (int64_t c = 0; c < end; c += kLanes)
            finish_vector<Kind>(p, scaled, y + r * width + c, out + c, column + c);
    }
}

template <bool Integers>
inline void finish_as(const Product& p, int64_t row, int64_t rows, int64_t column, int64_t width, const float* y) {
    switch (p.finish) {
        case kStore: return finish_rows<kStore, Integers>(p, row, rows, column, width, y);
        case kGeluErf: return finish_rows<kGeluErf, Integers>(p, row, rows, column, width, y);
        case kGeluTanh: return finish_rows<kGeluTanh, Integers>(p, row, rows, column, width, y);
        case kAddTo: return finish_rows<kAddTo, Integers>(p, row, rows, column, width, y);
    }
}

// The end of some sums, y [rows][width], which have their scales: bias, GELU or residual, and out. One function
// for all tiles: inlined, it would be most of the library. `column` is within the matrix.
__attribute__((noinline)) void finish(const Product& p, int64_t row, int64_t rows, int64_t column, int64_t width,
                                      const float* y) {
    finish_as<false>(p, row, rows, column, width, y);
}

}  // namespace
}  // namespace wafergpt::native
