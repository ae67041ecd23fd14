// Scalar building blocks that the compiler vectorises: bfloat16, exp, and the two forms of GELU.
// Included by every kernel file; no state, no allocation.
#pragma once
#include <cmath>
#include <cstdint>
#include <cstring>

namespace wafergpt {

using bf16 = uint16_t;

static inline float to_float(bf16 value) {
    uint32_t bits = static_cast<uint32_t>(value) << 16;
    float out;
    std::memcpy(&out, &bits, 4);
    return out;
}

static inline float to_float(float value) { return value; }

// Round to nearest even; a NaN stays a NaN.
static inline bf16 to_bf16(float value) {
    uint32_t bits;
    std::memcpy(&bits, &value, 4);
    uint32_t rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
    uint32_t quiet = (bits >> 16) | 0x40u;
    return static_cast<bf16>((bits & 0x7fffffffu) > 0x7f800000u ? quiet : rounded);
}

static inline void store(bf16* target, float value) { *target = to_bf16(value); }
static inline void store(float* target, float value) { *target = value; }

// exp(x) for x <= 88; relative error below 2e-7 (degree-6 polynomial on [-ln2/2, ln2/2]). Below -87.3 it
// stays at exp(-87.3) = 1.2e-38, next to nothing, and free of branches, so that loops over it vectorise.
static inline float exp_fast(float x) {
    const float clamped = x < -87.3f ? -87.3f : x;
    const float n = std::rint(clamped * 1.44269504f);
    const float r = (clamped - n * 0.693359375f) + n * 2.12194440e-4f;
    float p = 1.0f / 720.0f;
    p = p * r + 1.0f / 120.0f;
    p = p * r + 1.0f / 24.0f;
    p = p * r + 1.0f / 6.0f;
    p = p * r + 0.5f;
    p = p * r + 1.0f;
    p = p * r + 1.0f;
    const int32_t exponent = (static_cast<int32_t>(n) + 127) << 23;
    float scale;
    std::memcpy(&scale, &exponent, 4);
    return p * scale;
}

struct GeluParts {
    float value;  // gelu(x)
    float slope;  // d gelu / dx
};

// erf form. erf by Abramowitz & Stegun 7.1.26, absolute error below 1.5e-7.
static inline GeluParts gelu_erf(float x) {
    const float z = std::fabs(x) * 0.70710678f;
    const float t = 1.0f / (1.0f + 0.3275911f * z);
    const float gaussian = exp_fast(-z * z);  // exp(-x^2 / 2)
    const float poly =
        ((((1.061405429f * t - 1.453152027f) * t + 1.421413741f) * t - 0.284496736f) * t + 0.254829592f) * t;
    const float tail = 0.5f * poly * gaussian;  // 1 - Phi(|x|)
    const float cdf = x < 0.0f ? tail : 1.0f - tail;
    const float near = x > 99.0f ? 99.0f : (x < -99.0f ? -99.0f : x);  // 1e38 times exp_fast's floor is not 0
    return {x * cdf, cdf + near * 0.39894228f * gaussian};
}

// tanh form (GPT-2's gelu_new).
static inline GeluParts gelu_tanh(float x) {
    const float inner = 0.79788456f * (x + 0.044715f * x * x * x);
    const float bounded = inner > 20.0f ? 20.0f : (inner < -20.0f ? -20.0f : inner);
    const float tanh_inner = 1.0f - 2.0f / (exp_fast(2.0f * bounded) + 1.0f);
    const float slope_inner = 0.79788456f * (1.0f + 3.0f * 0.044715f * x * x);
    return {0.5f * x * (1.0f + tanh_inner),
            0.5f * (1.0f + tanh_inner) + 0.5f * x * (1.0f - tanh_inner * tanh_inner) * slope_inner};
}

}  // namespace wafergpt
