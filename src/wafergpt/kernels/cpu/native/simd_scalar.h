// One lane of portable C++: the readable reference of the vector files, with the same names.
#pragma once
#include <math.h>
#include <stdint.h>
#include <string.h>

namespace wafergpt::native {
namespace {

constexpr int kLanes = 1;
constexpr int kRowsDense = 2, kColumnsDense = 8, kColumnsOneRow = 8;
constexpr int kRowsInt4 = 2, kColumnsInt4 = 4, kColumnsInt4OneRow = 4;

using F = float;
using I = int32_t;

inline F set1(float x) { return x; }
inline F load(const float* p) { return *p; }
inline void store(float* p, F x) { *p = x; }
inline F fma(F a, F b, F c) { return a * b + c; }  // rounded twice: fused only where hardware does it
inline F add(F a, F b) { return a + b; }
inline F sub(F a, F b) { return a - b; }
inline F mul(F a, F b) { return a * b; }
inline F reciprocal(F x) { return 1.0f / x; }
inline F max_or_second(F a, F b) { return a > b ? a : b; }  // the second when either is a NaN
inline F min_or_second(F a, F b) { return a < b ? a : b; }
inline F rint(F x) { return ::rintf(x); }
inline F if_negative(F x, F yes, F no) { return x < 0.0f ? yes : no; }
inline F first_lanes(F x, int64_t n, float other) { return n > 0 ? x : other; }

inline I iset1(int32_t x) { return x; }
inline I iload(const void* p) {
    I x;
    memcpy(&x, p, 4);
    return x;
}
inline void istore(void* p, I x) { memcpy(p, &x, 4); }
inline I iadd(I a, I b) { return static_cast<I>(static_cast<uint32_t>(a) + static_cast<uint32_t>(b)); }
inline I isub(I a, I b) { return static_cast<I>(static_cast<uint32_t>(a) - static_cast<uint32_t>(b)); }
inline I iand(I a, I b) { return a & b; }
inline I imax(I a, I b) { return a > b ? a : b; }
template <int N> inline I shift_left(I a) { return static_cast<I>(static_cast<uint32_t>(a) << N); }
template <int N> inline I shift_right(I a) { return static_cast<I>(static_cast<uint32_t>(a) >> N); }
inline F bits_to_float(I x) {
    F out;
    memcpy(&out, &x, 4);
    return out;
}
inline I float_to_bits(F x) {
    I out;
    memcpy(&out, &x, 4);
    return out;
}
inline F to_float(I x) { return static_cast<float>(x); }
// To nearest even; what does not fit becomes the smallest int, as on x86.
inline I to_int(F x) { return x >= -2147483648.0f && x < 2147483648.0f ? static_cast<I>(::rintf(x)) : INT32_MIN; }
// x 2^n, n a whole number from -126 to 127; x a NaN stays one.
inline F times_power_of_2(F x, F n) { return mul(x, bits_to_float(shift_left<23>(iadd(to_int(n), iset1(127))))); }

inline F load_bf16(const uint16_t* p) { return bits_to_float(static_cast<I>(static_cast<uint32_t>(*p) << 16)); }
// Rounds to nearest even; a NaN becomes the quiet NaN 0x7fff.
inline void store_bf16(uint16_t* p, F x) {
    const uint32_t bits = static_cast<uint32_t>(float_to_bits(x));
    *p = static_cast<uint16_t>(x != x ? 0x7fffu : (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16);
}
inline void store_bytes(int8_t* p, I x) { *p = static_cast<int8_t>(x > 127 ? 127 : x < -128 ? -128 : x); }

struct Quad {
    int32_t value[4];
};
inline Quad quad(const int8_t* p) { return {{p[0], p[1], p[2], p[3]}}; }
inline I dot_quad(I sum, I w, const Quad& x) {
    for (int i = 0; i < 4; ++i) sum = iadd(sum, ((w >> (8 * i)) & 255) * x.value[i]);
    return sum;
}
inline I dot_nibbles(I sum, I w, const Quad& x) { return dot_quad(sum, w, x); }

// The sum of four bytes, which are signed.
inline I sum_quads(const int8_t* p) { return p[0] + p[1] + p[2] + p[3]; }

using Half = float;
struct Pair {
    F even, odd;
};
inline Pair pair(const Half* p) { return {p[0], p[1]}; }
inline F dot_pair(F sum, I w, const Pair& x) {
    sum = fma(bits_to_float(shift_left<16>(w)), x.even, sum);
    return fma(bits_to_float(iand(w, static_cast<I>(0xffff0000u))), x.odd, sum);
}

inline void prefetch(const uint8_t*) {}
inline void prefetch_to_write(float*) {}

}  // namespace
}  // namespace wafergpt::native
