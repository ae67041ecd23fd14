// Keys and values of new positions into their pages. After one of simd_*.h and pointwise.h.
#pragma once
#include "pointwise.h"

namespace wafergpt::native {
namespace {

inline uint8_t* keys_of(const HeadPages& kv, int64_t page) {
    return kv.base + kv.pages[page] * kv.page_stride;
}

inline uint8_t* values_of(const HeadPages& kv, int64_t page) {
    return keys_of(kv, page) + keys_bytes(kv.format, kv.d_head);
}

inline void keep_floats(const HeadPages& kv, int64_t position, const float* key, const float* value) {
    const int64_t at = position % kPageTokens;
    float* keys = reinterpret_cast<float*>(keys_of(kv, position / kPageTokens)) + at;
    float* values = reinterpret_cast<float*>(values_of(kv, position / kPageTokens)) + at * kv.d_padded;
    for (int64_t d = 0; d < kv.d_padded; ++d) {
        keys[d * kPageTokens] = d < kv.d_head ? key[d] : 0.0f;
        values[d] = d < kv.d_head ? value[d] : 0.0f;
    }
}

inline void keep_halves(const HeadPages& kv, int64_t position, const float* key, const float* value) {
    const int64_t at = position % kPageTokens;
    uint8_t* keys = keys_of(kv, position / kPageTokens) + at * 4;
    uint8_t* values = values_of(kv, position / kPageTokens) + at / 2 * kv.d_padded * 4 + at % 2 * 2;
    for (int64_t d = 0; d < kv.d_padded; d += 16) {
        uint16_t key_halves[16], value_halves[16];
        for (int64_t i = 0; i < 16; i += kLanes) {
            const int64_t n = kv.d_head - d - i;
            store_bf16(key_halves + i, n > 0 ? load_first(key + d + i, n) : zero());
            store_bf16(value_halves + i, n > 0 ? load_first(value + d + i, n) : zero());
        }
        for (int64_t i = 0; i < 16; i += 2) memcpy(keys + (d + i) / 2 * kPageTokens * 4, key_halves + i, 4);
        for (int64_t i = 0; i < 16; ++i) memcpy(values + (d + i) * 4, value_halves + i, 2);
    }
}

#if defined(__AVX512BF16__)
// Element [r][c] of sixteen vectors to [c][r].
inline void transpose(I (&x)[16]) {
    I y[16];
#pragma GCC unroll 8
    for (int i = 0; i < 16; i += 2) {
        y[i] = _mm512_unpacklo_epi32(x[i], x[i + 1]);
        y[i + 1] = _mm512_unpackhi_epi32(x[i], x[i + 1]);
    }
#pragma GCC unroll 4
    for (int i = 0; i < 16; i += 4)
#pragma GCC unroll 2
        for (int half = 0; half < 2; ++half) {
            x[i + 2 * half] = _mm512_unpacklo_epi64(y[i + half], y[i + 2 + half]);
            x[i + 2 * half + 1] = _mm512_unpackhi_epi64(y[i + half], y[i + 2 + half]);
        }
#pragma GCC unroll 2
    for (int part = 0; part < 2; ++part)
#pragma GCC unroll 4
        for (int i = 0; i < 4; ++i) {
            y[8 * part + i] = _mm512_shuffle_i32x4(x[8 * part + i], x[8 * part + 4 + i], 0x88);
            y[8 * part + 4 + i] = _mm512_shuffle_i32x4(x[8 * part + i], x[8 * part + 4 + i], 0xdd);
        }
#pragma GCC unroll 4
    for (int i = 0; i < 4; ++i) {
        x[i] = _mm512_shuffle_i32x4(y[i], y[8 + i], 0x88);
        x[8 + i] = _mm512_shuffle_i32x4(y[i], y[8 + i], 0xdd);
        x[4 + i] = _mm512_shuffle_i32x4(y[4 + i], y[12 + i], 0x88);
        x[12 + i] = _mm512_shuffle_i32x4(y[4 + i], y[12 + i], 0xdd);
    }
}

inline F some(const float* p, int64_t n) { return n > 0 ? load_first(p, n) : zero(); }

inline I wide_halves(F x) {
    return _mm512_cvtepu16_epi32(reinterpret_cast<__m256i>(_mm512_cvtneps_pbh(x)));
}

// Sixteen positions from a multiple of sixteen on: the same bits as one by one.
inline void keep_sixteen(const HeadPages& kv, int64_t position, const float* key, const float* value, int64_t stride) {
    const int64_t at = position % kPageTokens, units = kv.d_padded / 2;
    uint8_t* keys = keys_of(kv, position / kPageTokens) + at * 4;
    uint8_t* values = values_of(kv, position / kPageTokens) + at / 2 * kv.d_padded * 4;
    for (int64_t d = 0; d < kv.d_padded; d += 32) {
        I pairs[16];
        for (int64_t i = 0; i < 16; ++i) {
            const float* from = key + i * stride + d;
            const int64_t n = kv.d_head - d;
            pairs[i] = reinterpret_cast<__m512i>(_mm512_cvtne2ps_pbh(some(from + kLanes, n - kLanes), some(from, n)));
        }
        transpose(pairs);
        for (int64_t unit = 0; unit < 16 && d / 2 + unit < units; ++unit)
            istore(keys + (d / 2 + unit) * kPageTokens * 4, pairs[unit]);
    }
    for (int64_t i = 0; i < 16; i += 2)
        for (int64_t d = 0; d < kv.d_padded; d += kLanes) {
            const float* from = value + i * stride + d;
            const I even = wide_halves(some(from, kv.d_head - d)), odd = wide_halves(some(from + stride, kv.d_head - d));
            istore(values + i / 2 * kv.d_padded * 4 + d * 4, _mm512_or_si512(even, shift_left<16>(odd)));
        }
}
#endif

// Kernels::keep.
inline void keep(const HeadPages& kv, int64_t position, const float* key, const float* value, int64_t stride, int64_t n) {
    for (int64_t i = 0; i < n;) {
        const float *its_key = key + i * stride, *its_value = value + i * stride;
#if defined(__AVX512BF16__)
        if (kv.format == kBf16 && (position + i) % 16 == 0 && i + 16 <= n) {
            keep_sixteen(kv, position + i, its_key, its_value, stride);
            i += 16;
            continue;
        }
#endif
        kv.format == kF32 ? keep_floats(kv, position + i, its_key, its_value) : keep_halves(kv, position + i, its_key, its_value);
        ++i;
    }
}

}  // namespace
}  // namespace wafergpt::native
