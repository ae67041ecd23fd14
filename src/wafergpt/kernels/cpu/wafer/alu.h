// Arithmetic of a PE, the same to the last bit as `wafergpt/wafer/machine/alu.py`. Compiled with -ffp-contract=off.
#pragma once
#include <math.h>
#include <string.h>

#include "isa.h"

namespace wafergpt::wafer {

inline float as_float(uint32_t bits) {
    float value;
    memcpy(&value, &bits, 4);
    return value;
}

// A NaN has one pattern, so that no engine's operand order shows.
inline uint32_t as_bits(float value) {
    if (value != value) return 0x7fc00000u;
    uint32_t bits;
    memcpy(&bits, &value, 4);
    return bits;
}

inline float half_to_float(uint16_t half) {
    const uint32_t sign = (half & 0x8000u) << 16, rest = half & 0x7fffu;
    if (rest >= 0x7c00u) return as_float(sign | (rest > 0x7c00u ? 0x7fc00000u : 0x7f800000u));
    if (rest >= 0x0400u) return as_float(sign | ((rest << 13) + 0x38000000u));
    const float value = static_cast<float>(rest) * 5.9604644775390625e-8f;  // 2^-24
    return sign ? -value : value;
}

// Round to nearest, ties to even.
inline uint16_t float_to_half(float value) {
    if (value != value) return 0x7e00u;
    uint32_t bits;
    memcpy(&bits, &value, 4);
    const uint32_t sign = (bits >> 16) & 0x8000u;
    bits &= 0x7fffffffu;
    if (bits >= 0x477ff000u) return static_cast<uint16_t>(sign | 0x7c00u);
    if (bits < 0x38800000u) {  // subnormal: the addition rounds
        const float shifted = as_float(bits) + 0.5f;
        uint32_t raw;
        memcpy(&raw, &shifted, 4);
        return static_cast<uint16_t>(sign | (raw - 0x3f000000u));
    }
    bits += 0xc8000fffu + ((bits >> 13) & 1u);
    return static_cast<uint16_t>(sign | (bits >> 13));
}

inline float power_of_two(int k) { return as_float(static_cast<uint32_t>(k + 127) << 23); }

// Cephes expf: |relative error| below 2e-7 where the result is normal.
inline float exp_f32(float x) {
    if (x != x) return x;
    if (x > 88.72283f) return as_float(0x7f800000u);
    if (x < -103.97208f) return 0.0f;
    const float k = rintf(x * 1.44269504f);
    float r = x - k * 0.693359375f;
    r = r - k * -2.12194440e-4f;
    float y = 1.9875691500e-4f * r + 1.3981999507e-3f;
    y = y * r + 8.3334519073e-3f;
    y = y * r + 4.1665795894e-2f;
    y = y * r + 1.6666665459e-1f;
    y = y * r + 5.0000001201e-1f;
    y = y * (r * r);
    y = y + r;
    y = y + 1.0f;
    const int whole = static_cast<int>(k), half = whole >> 1;
    return y * power_of_two(half) * power_of_two(whole - half);
}

// Cephes tanhf.
inline float tanh_f32(float x) {
    const float size = fabsf(x);
    if (size >= 0.625f) {
        const float y = 1.0f - 2.0f / (exp_f32(size + size) + 1.0f);
        return x < 0.0f ? -y : y;
    }
    const float z = x * x;
    float y = -5.70498872745e-3f * z + 2.06390887954e-2f;
    y = y * z + -5.37397155531e-2f;
    y = y * z + 1.33314422036e-1f;
    y = y * z + -3.33332819422e-1f;
    y = y * z;
    return y * x + x;
}

// Abramowitz and Stegun 7.1.26: absolute error below 1.5e-7 before rounding.
inline float erf_f32(float x) {
    const float size = fabsf(x);
    const float t = 1.0f / (1.0f + 0.3275911f * size);
    float y = 1.061405429f * t + -1.453152027f;
    y = y * t + 1.421413741f;
    y = y * t + -0.284496736f;
    y = y * t + 0.254829592f;
    y = y * t;
    y = 1.0f - y * exp_f32(-(size * size));
    return x < 0.0f ? -y : y;
}

inline float gelu_f32(float x) {
    const float inner = 0.7978845608f * (x + 0.044715f * (x * x * x));
    return 0.5f * x * (1.0f + tanh_f32(inner));
}

inline uint32_t float_to_int(float x) {
    if (x != x) return 0;
    if (x >= 2147483648.0f) return 0x7fffffffu;
    if (x <= -2147483648.0f) return 0x80000000u;
    return static_cast<uint32_t>(static_cast<int32_t>(x));
}

// Elementwise operations on raw 32-bit words that hold float32 (I2F: int32).
inline uint32_t alu(int mode, uint32_t ra, uint32_t rb, uint32_t rc) {
    const float a = as_float(ra), b = as_float(rb);
    switch (mode) {
        case ALU_MOV: return ra;
        case ALU_ADD: return as_bits(a + b);
        case ALU_SUB: return as_bits(a - b);
        case ALU_MUL: return as_bits(a * b);
        case ALU_MAX: return a > b ? ra : rb;
        case ALU_MIN: return a < b ? ra : rb;
        case ALU_FMAC: return as_bits(a * b + as_float(rc));
        case ALU_DIV: return as_bits(a / b);
        case ALU_SQRT: return as_bits(sqrtf(a));
        case ALU_RSQRT: return as_bits(1.0f / sqrtf(a));
        case ALU_EXP: return as_bits(exp_f32(a));
        case ALU_TANH: return as_bits(tanh_f32(a));
        case ALU_ERF: return as_bits(erf_f32(a));
        case ALU_GELU: return as_bits(gelu_f32(a));
        case ALU_I2F: return as_bits(static_cast<float>(static_cast<int32_t>(ra)));
        case ALU_F2I: return float_to_int(a);
        default: return 0;
    }
}

inline int32_t floor_div(int32_t a, int32_t b) {
    if (b == 0) return 0;
    const int64_t x = a, y = b, q = x / y;
    return static_cast<int32_t>(q - ((x % y != 0) && ((x < 0) != (y < 0))));
}

inline int32_t int_alu(int mode, int32_t a, int32_t b) {
    const uint32_t x = static_cast<uint32_t>(a), y = static_cast<uint32_t>(b);
    switch (mode) {
        case INT_ADD: return static_cast<int32_t>(x + y);
        case INT_SUB: return static_cast<int32_t>(x - y);
        case INT_MUL: return static_cast<int32_t>(x * y);
        case INT_AND: return static_cast<int32_t>(x & y);
        case INT_OR: return static_cast<int32_t>(x | y);
        case INT_XOR: return static_cast<int32_t>(x ^ y);
        case INT_SHL: return static_cast<int32_t>(x << (y & 31u));
        case INT_SHR: return a >> (y & 31u);
        case INT_DIV: return floor_div(a, b);
        case INT_MOD: return b == 0 ? 0 : static_cast<int32_t>(static_cast<int64_t>(a) - static_cast<int64_t>(floor_div(a, b)) * b);
        case INT_MIN: return a < b ? a : b;
        default: return a > b ? a : b;
    }
}

// Elementwise operations whose target is int32.
inline uint32_t vector_int(int mode, uint32_t a, uint32_t b) {
    const int32_t x = static_cast<int32_t>(a), y = static_cast<int32_t>(b);
    switch (mode) {
        case ALU_ADD: return a + b;
        case ALU_SUB: return a - b;
        case ALU_MUL: return a * b;
        case ALU_MAX: return x > y ? a : b;
        case ALU_MIN: return x < y ? a : b;
        default: return a;
    }
}

inline bool condition(int mode, uint32_t a, uint32_t b) {
    const int32_t x = static_cast<int32_t>(a), y = static_cast<int32_t>(b);
    switch (mode) {
        case COND_EQ: return x == y;
        case COND_NE: return x != y;
        case COND_LT: return x < y;
        case COND_GE: return x >= y;
        case COND_FLT: return as_float(a) < as_float(b);
        default: return as_float(a) >= as_float(b);
    }
}

}  // namespace wafergpt::wafer
