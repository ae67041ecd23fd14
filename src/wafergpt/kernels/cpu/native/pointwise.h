// Row by row: LayerNorm, and making a row ready for the products of a format. After one of simd_*.h.
// The order of every sum depends on the row's length only.
#pragma once
#include "ends.h"

namespace wafergpt::native {
namespace {

inline float sum_lanes(F x) {
    float lanes[kLanes];
    store(lanes, x);
    float total = 0.0f;
    for (int i = 0; i < kLanes; ++i) total += lanes[i];
    return total;
}

inline int32_t largest_lane(I x) {
    int32_t lanes[kLanes];
    istore(lanes, x);
    int32_t top = lanes[0];
    for (int i = 1; i < kLanes; ++i) top = lanes[i] > top ? lanes[i] : top;
    return top;
}

void layer_norm(const float* x, const float* weight, const float* bias, float eps, float* y, int64_t d) {
    F sum = zero();
    for (int64_t i = 0; i < d; i += kLanes) sum = add(sum, load_first(x + i, d - i));
    const F mean = set1(sum_lanes(sum) / static_cast<float>(d));
    F squares = zero();
    for (int64_t i = 0; i < d; i += kLanes) {
        const F from_mean = first_lanes(sub(load_first(x + i, d - i), mean), d - i, 0.0f);
        squares = fma(from_mean, from_mean, squares);
    }
    const F scale = set1(1.0f / __builtin_sqrtf(sum_lanes(squares) / static_cast<float>(d) + eps));
    for (int64_t i = 0; i < d; i += kLanes) {
        const int64_t n = d - i;
        const F normal = mul(sub(load_first(x + i, n), mean), scale);
        store_first(y + i, fma(normal, load_first(weight + i, n), load_first(bias + i, n)), n);
    }
}

inline void to_halves(const float* x, float* out, int64_t n, int64_t padded) {
    memcpy(out, x, static_cast<size_t>(n) * 4);
    for (int64_t i = n; i < padded; ++i) out[i] = 0.0f;
}

inline void to_halves(const float* x, uint16_t* out, int64_t n, int64_t padded) {
    int64_t i = 0;
    for (; i + kLanes <= n; i += kLanes) store_bf16(out + i, load(x + i));
    if (i < n) {
        uint16_t lanes[kLanes];
        store_bf16(lanes, load_first(x + i, n - i));
        memcpy(out + i, lanes, static_cast<size_t>(n - i) * 2);
    }
    for (i = n; i < padded; ++i) out[i] = 0;
}

// The bits of the largest |x|: an infinity or a NaN is above every number.
int32_t largest_magnitude(const float* x, int64_t n) {
    const I magnitude = iset1(0x7fffffff);
    I top[4] = {iset1(0), iset1(0), iset1(0), iset1(0)};
    int64_t i = 0;
    for (; i + 4 * kLanes <= n; i += 4 * kLanes)
#pragma GCC unroll 4
        for (int part = 0; part < 4; ++part)
            top[part] = imax(top[part], iand(float_to_bits(load(x + i + part * kLanes)), magnitude));
    for (; i < n; i += kLanes) top[0] = imax(top[0], iand(float_to_bits(load_first(x + i, n - i)), magnitude));
    return largest_lane(imax(imax(top[0], top[1]), imax(top[2], top[3])));
}

struct Bytes {
    float scale;
    int32_t sum;  // of q, if every x is finite
};

// q = rint(x * 127 / max |x|). An infinity or a NaN becomes the scale and spreads to the whole row's product.
// Below 2^-121 the factor would overflow: zeros.
Bytes to_bytes(const float* x, int8_t* q, int64_t n, int64_t padded) {
    const int32_t bits = largest_magnitude(x, n);
    float largest;
    memcpy(&largest, &bits, 4);
    const bool counts = bits >= 0x03000000;  // 2^-121
    const F factor = set1(counts ? 127.0f / largest : 0.0f);
    I sum = iset1(0);
    int64_t i = 0;
    for (; i + kLanes <= n; i += kLanes) {
        const I rounded = to_int(mul(load(x + i), factor));
        sum = iadd(sum, rounded);
        store_bytes(q + i, rounded);
    }
    if (i < n) {
        const I rounded = to_int(mul(load_first(x + i, n - i), factor));
        sum = iadd(sum, rounded);
        int8_t lanes[kLanes];
        store_bytes(lanes, rounded);
        memcpy(q + i, lanes, static_cast<size_t>(n - i));
        i = n;
    }
    for (; i < padded; ++i) q[i] = 0;
    int32_t lanes[kLanes];
    uint32_t total = 0;
    istore(lanes, sum);
    for (int lane = 0; lane < kLanes; ++lane) total += static_cast<uint32_t>(lanes[lane]);
    return {counts ? largest / 127.0f : 0.0f, static_cast<int32_t>(total)};
}

// The sums of groups of int4, `times` each. Reads whole vectors: rows end at a multiple of 64 bytes.
void group_sums(const int8_t* q, int64_t padded, int32_t times, int32_t* sums) {
    constexpr int64_t kQuads = kGroup / 4;
    int32_t lanes[kLanes > kQuads ? kLanes : kQuads];
    for (int64_t first = 0; first < padded; first += kGroup) {
        const int64_t quad = first / 4 % kLanes;
        for (int64_t i = 0; i < kQuads && quad == 0; i += kLanes) istore(lanes + i, sum_quads(q + first + 4 * i));
        int32_t total = 0;
        for (int64_t i = 0; i < kQuads; ++i) total += lanes[quad + i];
        sums[first / kGroup] = times * total;
    }
}

int64_t row_bytes(Format format, int64_t k) {
    const int64_t padded = units_of(format, k) * unit_values(format);
    const int64_t size = format == kF32 ? 4 : format == kBf16 ? static_cast<int64_t>(sizeof(Half)) : 1;
    const int64_t bytes = round_up(padded * size, 64);
    return bytes % 1024 == 0 ? bytes + 64 : bytes;  // a power of two would send all rows to the same cache sets
}

void encode(Format format, const float* x, int64_t k, const Rows& rows, int64_t row) {
    uint8_t* out = rows.data + row * rows.stride;
    const int64_t padded = units_of(format, k) * unit_values(format);
    if (format == kF32) {
        memcpy(out, x, static_cast<size_t>(k) * 4);
    } else if (format == kBf16) {
        to_halves(x, reinterpret_cast<Half*>(out), k, padded);
    } else {
        int8_t* q = reinterpret_cast<int8_t*>(out);
        int32_t* sums = rows.sums + row * rows.sums_stride;
        const Bytes bytes = to_bytes(x, q, k, padded);
        rows.scale[row] = bytes.scale;
        if (format == kInt8)
            sums[0] = static_cast<int32_t>(128 * static_cast<uint32_t>(bytes.sum));
        else
            group_sums(q, padded, 8, sums);
    }
}

}  // namespace
}  // namespace wafergpt::native
