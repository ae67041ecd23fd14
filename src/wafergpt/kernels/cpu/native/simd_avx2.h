// Eight lanes of AVX2 with FMA. Everything has internal linkage: no function compiled for this instruction
// set may be shared with another one's file.
#pragma once
#include <immintrin.h>
#include <stdint.h>
#include <string.h>

namespace wafergpt::native {
namespace {

constexpr int kLanes = 8;
constexpr int kRowsDense = 4, kColumnsDense = 2, kColumnsOneRow = 8;  // 8 sums of 16 registers
constexpr int kRowsInt4 = 4, kColumnsInt4 = 1, kColumnsInt4OneRow = 4;

using F = __m256;
using I = __m256i;

inline F set1(float x) { return _mm256_set1_ps(x); }
inline F load(const float* p) { return _mm256_loadu_ps(p); }
inline void store(float* p, F x) { _mm256_storeu_ps(p, x); }
inline F fma(F a, F b, F c) { return _mm256_fmadd_ps(a, b, c); }
inline F add(F a, F b) { return _mm256_add_ps(a, b); }
inline F sub(F a, F b) { return _mm256_sub_ps(a, b); }
inline F mul(F a, F b) { return _mm256_mul_ps(a, b); }
inline F reciprocal(F x) { return _mm256_div_ps(set1(1.0f), x); }
// The second operand when either is a NaN, as x86's max and min do.
inline F max_or_second(F a, F b) { return _mm256_max_ps(a, b); }
inline F min_or_second(F a, F b) { return _mm256_min_ps(a, b); }
inline F rint(F x) { return _mm256_round_ps(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }
inline F if_negative(F x, F yes, F no) {
    return _mm256_blendv_ps(no, yes, _mm256_cmp_ps(x, _mm256_setzero_ps(), _CMP_LT_OQ));
}
// Lanes i with i < n of x, the others `other`.
inline F first_lanes(F x, int64_t n, float other) {
    const I lanes = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
    const I inside = _mm256_cmpgt_epi32(_mm256_set1_epi32(n >= kLanes ? kLanes : static_cast<int32_t>(n)), lanes);
    return _mm256_blendv_ps(_mm256_set1_ps(other), x, _mm256_castsi256_ps(inside));
}

inline I iset1(int32_t x) { return _mm256_set1_epi32(x); }
inline I iload(const void* p) { return _mm256_loadu_si256(static_cast<const __m256i*>(p)); }
inline void istore(void* p, I x) { _mm256_storeu_si256(static_cast<__m256i*>(p), x); }
inline I iadd(I a, I b) { return _mm256_add_epi32(a, b); }
inline I isub(I a, I b) { return _mm256_sub_epi32(a, b); }
inline I iand(I a, I b) { return _mm256_and_si256(a, b); }
inline I imax(I a, I b) { return _mm256_max_epi32(a, b); }
template <int N> inline I shift_left(I a) { return _mm256_slli_epi32(a, N); }
template <int N> inline I shift_right(I a) { return _mm256_srli_epi32(a, N); }
inline F bits_to_float(I x) { return _mm256_castsi256_ps(x); }
inline I float_to_bits(F x) { return _mm256_castps_si256(x); }
inline F to_float(I x) { return _mm256_cvtepi32_ps(x); }
inline I to_int(F x) { return _mm256_cvtps_epi32(x); }  // to nearest even
// x 2^n, n a whole number from -126 to 127; x a NaN stays one.
inline F times_power_of_2(F x, F n) { return mul(x, bits_to_float(shift_left<23>(iadd(to_int(n), iset1(127))))); }

inline F load_bf16(const uint16_t* p) {
    const __m128i half = _mm_loadu_si128(reinterpret_cast<const __m128i*>(p));
    return bits_to_float(shift_left<16>(_mm256_cvtepu16_epi32(half)));
}
// Rounds to nearest even; a NaN becomes the quiet NaN 0x7fff.
inline void store_bf16(uint16_t* p, F x) {
    const I bits = float_to_bits(x);
    const I rounded = shift_right<16>(iadd(iadd(bits, iset1(0x7fff)), iand(shift_right<16>(bits), iset1(1))));
    const F nan = _mm256_cmp_ps(x, x, _CMP_UNORD_Q);
    const I halves = float_to_bits(_mm256_blendv_ps(bits_to_float(rounded), bits_to_float(iset1(0x7fff)), nan));
    const __m128i words = _mm_packus_epi32(_mm256_castsi256_si128(halves), _mm256_extracti128_si256(halves, 1));
    _mm_storeu_si128(reinterpret_cast<__m128i*>(p), words);
}
inline void store_bytes(int8_t* p, I x) {
    const __m128i words = _mm_packs_epi32(_mm256_castsi256_si128(x), _mm256_extracti128_si256(x, 1));
    _mm_storel_epi64(reinterpret_cast<__m128i*>(p), _mm_packs_epi16(words, words));
}

// Sixteen-bit halves, because vpmaddubsw would saturate on 255 * 127 * 2.
struct Quad {
    I all, even, odd;
};
inline Quad quad(const int8_t* p) {
    int32_t four;
    memcpy(&four, p, 4);
    const I all = _mm256_set1_epi32(four);
    return {all, _mm256_srai_epi16(_mm256_slli_epi16(all, 8), 8), _mm256_srai_epi16(all, 8)};
}
inline I dot_quad(I sum, I w, const Quad& x) {
    const I even = _mm256_and_si256(w, _mm256_set1_epi16(0x00ff)), odd = _mm256_srli_epi16(w, 8);
    return iadd(iadd(sum, _mm256_madd_epi16(even, x.even)), _mm256_madd_epi16(odd, x.odd));
}
// Up to 15 * 127 * 2 fits in sixteen bits.
inline I dot_nibbles(I sum, I w, const Quad& x) {
    return iadd(sum, _mm256_madd_epi16(_mm256_maddubs_epi16(w, x.all), _mm256_set1_epi16(1)));
}

// The sums of each four bytes, which are signed.
inline I sum_quads(const int8_t* p) {
    const I ones = _mm256_set1_epi8(1);
    return _mm256_madd_epi16(_mm256_maddubs_epi16(ones, iload(p)), _mm256_set1_epi16(1));
}

using Half = float;
struct Pair {
    F even, odd;
};
inline Pair pair(const Half* p) { return {set1(p[0]), set1(p[1])}; }
inline F dot_pair(F sum, I w, const Pair& x) {
    sum = fma(bits_to_float(shift_left<16>(w)), x.even, sum);
    return fma(bits_to_float(iand(w, iset1(static_cast<int32_t>(0xffff0000u)))), x.odd, sum);
}

inline void prefetch_to_write(float* p) { asm volatile("prefetchw %0" : : "m"(*p)); }
// As assembly: GCC 12 takes two functions that differ in nothing but prefetches for the same.
inline void prefetch(const uint8_t* p) { asm volatile("prefetcht0 %0" : : "m"(*p)); }

}  // namespace
}  // namespace wafergpt::native
