// Sixteen lanes of AVX-512 (F, BW, DQ, VL, VNNI; BF16 when the file is compiled for it). Everything has
// internal linkage: no function compiled for this instruction set may be shared with another one's file.
#pragma once
#include <immintrin.h>
#include <stdint.h>
#include <string.h>

namespace wafergpt::native {
namespace {

constexpr int kLanes = 16;
constexpr int kRowsDense = 6, kColumnsDense = 4, kColumnsOneRow = 4;  // 24 sums of 32 registers
constexpr int kRowsInt4 = 6, kColumnsInt4 = 2, kColumnsInt4OneRow = 4;

using F = __m512;
using I = __m512i;

inline F set1(float x) { return _mm512_set1_ps(x); }
inline F load(const float* p) { return _mm512_loadu_ps(p); }
inline void store(float* p, F x) { _mm512_storeu_ps(p, x); }
inline F fma(F a, F b, F c) { return _mm512_fmadd_ps(a, b, c); }
inline F add(F a, F b) { return _mm512_add_ps(a, b); }
inline F sub(F a, F b) { return _mm512_sub_ps(a, b); }
inline F mul(F a, F b) { return _mm512_mul_ps(a, b); }
// 1 / x, relative error below 2^-22 (an estimate to 2^-14 and a step of Newton's); x normal, at most 2^126.
inline F reciprocal(F x) {
    const F guess = _mm512_rcp14_ps(x);
    return _mm512_fnmadd_ps(_mm512_fmsub_ps(x, guess, set1(1.0f)), guess, guess);
}
// The second operand when either is a NaN, as x86's max and min do.
inline F max_or_second(F a, F b) { return _mm512_max_ps(a, b); }
inline F min_or_second(F a, F b) { return _mm512_min_ps(a, b); }
inline F rint(F x) { return _mm512_roundscale_ps(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }
inline F if_negative(F x, F yes, F no) {
    return _mm512_mask_blend_ps(_mm512_cmp_ps_mask(x, _mm512_setzero_ps(), _CMP_LT_OQ), no, yes);
}
// Lanes i with i < n of x, the others `other`.
inline F first_lanes(F x, int64_t n, float other) {
    const __mmask16 mask = n >= kLanes ? 0xffff : static_cast<__mmask16>((1u << n) - 1u);
    return _mm512_mask_blend_ps(mask, _mm512_set1_ps(other), x);
}

inline I iset1(int32_t x) { return _mm512_set1_epi32(x); }
inline I iload(const void* p) { return _mm512_loadu_si512(p); }
inline void istore(void* p, I x) { _mm512_storeu_si512(p, x); }
inline I iadd(I a, I b) { return _mm512_add_epi32(a, b); }
inline I isub(I a, I b) { return _mm512_sub_epi32(a, b); }
inline I iand(I a, I b) { return _mm512_and_si512(a, b); }
inline I imax(I a, I b) { return _mm512_max_epi32(a, b); }
template <int N> inline I shift_left(I a) { return _mm512_slli_epi32(a, N); }
template <int N> inline I shift_right(I a) { return _mm512_srli_epi32(a, N); }
inline F bits_to_float(I x) { return _mm512_castsi512_ps(x); }
inline I float_to_bits(F x) { return _mm512_castps_si512(x); }
inline F to_float(I x) { return _mm512_cvtepi32_ps(x); }
// x 2^n, n a whole number; x a NaN stays one.
inline F times_power_of_2(F x, F n) { return _mm512_scalef_ps(x, n); }
inline I to_int(F x) { return _mm512_cvtps_epi32(x); }  // to nearest even

// Rounds to nearest even; a NaN stays one. With BF16, denormals become zero, as in its products.
inline void store_bf16(uint16_t* p, F x) {
#if defined(__AVX512BF16__)
    const __m256bh half = _mm512_cvtneps_pbh(x);
    memcpy(p, &half, 32);
#else
    const I bits = float_to_bits(x);
    const I rounded = shift_right<16>(iadd(iadd(bits, iset1(0x7fff)), iand(shift_right<16>(bits), iset1(1))));
    const __mmask16 nan = _mm512_cmp_ps_mask(x, x, _CMP_UNORD_Q);
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), _mm512_cvtepi32_epi16(_mm512_mask_mov_epi32(rounded, nan, iset1(0x7fff))));
#endif
}
inline F load_bf16(const uint16_t* p) {
    const __m256i half = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
    return bits_to_float(shift_left<16>(_mm512_cvtepu16_epi32(half)));
}
inline void store_bytes(int8_t* p, I x) {
    _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm512_cvtsepi32_epi8(x));
}

struct Quad {
    I all;
};
inline Quad quad(const int8_t* p) {
    int32_t four;
    memcpy(&four, p, 4);
    return {_mm512_set1_epi32(four)};
}
// As assembly, because GCC 12 keeps the intrinsic's sums in memory when there are 24 of them.
inline I dot_quad(I sum, I w, const Quad& x) {
    asm("vpdpbusd %2, %1, %0" : "+v"(sum) : "v"(w), "v"(x.all));
    return sum;
}
inline I dot_nibbles(I sum, I w, const Quad& x) { return dot_quad(sum, w, x); }

// The sums of each four bytes, which are signed.
inline I sum_quads(const int8_t* p) {
    I sum = iset1(0);
    asm("vpdpbusd %2, %1, %0" : "+v"(sum) : "v"(iset1(0x01010101)), "v"(iload(p)));
    return sum;
}

#if defined(__AVX512BF16__)
// vdpbf16ps takes denormal inputs as zero and adds the pair before it adds the sum.
using Half = uint16_t;
struct Pair {
    I both;
};
inline Pair pair(const Half* p) {
    int32_t two;
    memcpy(&two, p, 4);
    return {_mm512_set1_epi32(two)};
}
inline F dot_pair(F sum, I w, const Pair& x) {
    asm("vdpbf16ps %2, %1, %0" : "+v"(sum) : "v"(w), "v"(x.both));
    return sum;
}
#else
using Half = float;
struct Pair {
    F even, odd;
};
inline Pair pair(const Half* p) { return {set1(p[0]), set1(p[1])}; }
inline F dot_pair(F sum, I w, const Pair& x) {
    sum = fma(bits_to_float(shift_left<16>(w)), x.even, sum);
    return fma(bits_to_float(iand(w, iset1(static_cast<int32_t>(0xffff0000u)))), x.odd, sum);
}
#endif

inline void prefetch_to_write(float* p) { asm volatile("prefetchw %0" : : "m"(*p)); }
// As assembly: GCC 12 takes two functions that differ in nothing but prefetches for the same.
inline void prefetch(const uint8_t* p) { asm volatile("prefetcht0 %0" : : "m"(*p)); }

}  // namespace
}  // namespace wafergpt::native
