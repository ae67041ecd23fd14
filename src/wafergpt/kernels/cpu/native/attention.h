// Causal attention of a few queries of one head over its pages. Keys are visited in order from the first
// one, a query's sums never meet another query's: a row depends on nothing but its own keys and values.
// After one of simd_*.h.
#pragma once
#include "keep.h"
#include "product.h"

namespace wafergpt::native {
namespace {

// The unit that the last visible position shares with one that is not: the other's bits are cleared, so
// that whatever they hold (an infinity times 0 would be a NaN) stays out.
inline F half_unit(F w) { return w; }
inline I half_unit_bits(I w) { return iand(w, iset1(0x0000ffff)); }
template <class Format> auto first_half(const uint8_t* p) {
    if constexpr (Format::kUnit == 1)
        return half_unit(Format::weight(p));
    else
        return half_unit_bits(Format::weight(p));
}

// scores[r][keys of one page] for R queries.
template <class Format, int R>
void page_scores(const uint8_t* keys, const uint8_t* q, int64_t q_stride, int64_t units, float* scores, int64_t stride) {
    constexpr int kAll = kPageTokens / kLanes, C = kAll < kColumnsDense ? kAll : kColumnsDense;
    for (int64_t offset = 0; offset < kPageTokens; offset += C * kLanes) {
        F sum[R][C];
#pragma GCC unroll 8
        for (int r = 0; r < R; ++r)
#pragma GCC unroll 8
            for (int c = 0; c < C; ++c) sum[r][c] = zero();
        pass<Format, R, C, false>(keys + offset * 4, kPageTokens * 4, q, q_stride, 0, units, sum);
#pragma GCC unroll 8
        for (int r = 0; r < R; ++r)
#pragma GCC unroll 8
            for (int c = 0; c < C; ++c) store(scores + r * stride + offset + c * kLanes, sum[r][c]);
    }
}

// scores [n] -> weights exp(score - largest), rounded as they are stored, zeros up to a whole unit; their sum.
template <class Format> float to_weights(float* scores, typename Format::Value* weights, int64_t n) {
    F top = set1(-__builtin_inff());
    for (int64_t i = 0; i < n; i += kLanes)
        top = max_or_second(top, first_lanes(load(scores + i), n - i, -__builtin_inff()));
    float lanes[kLanes];
    store(lanes, top);
    float largest = lanes[0];
    for (int i = 1; i < kLanes; ++i) largest = lanes[i] > largest || lanes[i] != lanes[i] ? lanes[i] : largest;
    F sum = zero();
    for (int64_t i = 0; i < n; i += kLanes) {
        F weight = exp_fast(sub(load(scores + i), set1(largest)));
        weight = first_lanes(weight, n - i, 0.0f);
        if constexpr (sizeof(typename Format::Value) == 2) {
            store_bf16(reinterpret_cast<uint16_t*>(weights) + i, weight);
            weight = load_bf16(reinterpret_cast<uint16_t*>(weights) + i);
        } else {
            store(reinterpret_cast<float*>(weights) + i, weight);
        }
        sum = add(sum, weight);
    }
    if (n % kLanes == 0) weights[n] = 0;  // the other half of a unit, when n is odd and lanes are few
    return sum_lanes(sum);
}

struct Mixture {
    const Attention* attention;
    const uint8_t* weights;  // [rows][stride]
    int64_t stride;          // bytes
    const float* sums;       // [rows]
};

// out[r][offset ..] = sum over keys of weight * value, for R queries and C vectors of the head.
template <class Format, int R, int C> void mix(const Mixture& m, int64_t offset) {
    constexpr int64_t kUnit = Format::kUnit, kUnitsPerPage = kPageTokens / kUnit;
    const Attention& a = *m.attention;
    const int64_t step_bytes = a.kv.d_padded * 4;
    const int64_t common = (a.position + 1) / kUnit;  // units that every query sees whole
    F sum[R][C];
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r)
#pragma GCC unroll 8
        for (int c = 0; c < C; ++c) sum[r][c] = zero();
    for (int64_t unit = 0; unit < common; unit += kUnitsPerPage) {
        const int64_t n = common - unit < kUnitsPerPage ? common - unit : kUnitsPerPage;
        const uint8_t* values = values_of(a.kv, unit / kUnitsPerPage) + offset * 4;
        pass<Format, R, C, false>(values, step_bytes, m.weights + unit * kUnit * sizeof(typename Format::Value),
                                  m.stride, 0, n, sum);
    }
    float partial[R][C * kLanes];
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r)
#pragma GCC unroll 8
        for (int c = 0; c < C; ++c) store(partial[r] + c * kLanes, sum[r][c]);
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r) {
        const int64_t seen = a.position + r + 1, whole = seen / kUnit;
        F row[C];
#pragma GCC unroll 8
        for (int c = 0; c < C; ++c) row[c] = load(partial[r] + c * kLanes);
        for (int64_t unit = common; unit * kUnit < seen; ++unit) {
            const auto weight = Format::broadcast(m.weights + r * m.stride, unit);
            const uint8_t* values = values_of(a.kv, unit / kUnitsPerPage) +
                                    unit % kUnitsPerPage * step_bytes + offset * 4;
#pragma GCC unroll 8
            for (int c = 0; c < C; ++c) {
                const uint8_t* at = values + c * kLanes * 4;
                row[c] = Format::step(row[c], unit < whole ? Format::weight(at) : first_half<Format>(at), weight);
            }
        }
        const F inverse = set1(1.0f / m.sums[r]);
#pragma GCC unroll 8
        for (int c = 0; c < C; ++c) {
            const int64_t at = offset + c * kLanes;
            if (at < a.kv.d_head) store_first(a.out + r * a.out_stride + at, mul(row[c], inverse), a.kv.d_head - at);
        }
    }
}

template <class Format, int R, int C> void mix_from(const Mixture& m, int64_t offset) {
    for (; offset + C * kLanes <= m.attention->kv.d_padded; offset += C * kLanes) mix<Format, R, C>(m, offset);
    if constexpr (C > 1)
        if (offset < m.attention->kv.d_padded) mix_from<Format, R, C / 2>(m, offset);
}

// The values of a page up to position `last`, and the keys of the next page: pages lie apart, which hardware does
// not foresee.
inline void fetch_page(const HeadPages& kv, int64_t page, int64_t last) {
    const int64_t after = last + 1 - (page + 1) * kPageTokens, bytes = keys_bytes(kv.format, kv.d_head);
    const int64_t seen = after >= 0 ? kPageTokens : kPageTokens + after;
    const uint8_t *values = values_of(kv, page), *keys = after > 0 ? keys_of(kv, page + 1) : values;
    for (int64_t at = 0; at < bytes; at += 64) {
        if (at < round_up(seen, 2) * kv.d_padded * kv_value_bytes(kv.format)) prefetch(values + at);
        if (after > 0) prefetch(keys + at);
    }
}

template <class Format, int R> void attend_rows(const Attention& a) {
    using Value = typename Format::Value;
    const int64_t keys = round_up(a.position + R, kPageTokens), units = a.kv.d_padded / Format::kUnit;
    const int64_t q_stride = a.kv.d_padded * static_cast<int64_t>(sizeof(Value)), stride = keys + kLanes;
    float* scores = a.scratch;                                         // [R][stride]
    Value* weights = reinterpret_cast<Value*>(scores + R * stride);    // [R][stride]
    Value* q = weights + R * stride;                                   // [R][d_padded]
    float scaled[kPanel];
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r)
        for (int64_t d = 0; d < a.kv.d_padded; d += kPanel) {
            const int64_t n = a.kv.d_head - d < kPanel ? a.kv.d_head - d : kPanel;
            const int64_t padded = a.kv.d_padded - d < kPanel ? a.kv.d_padded - d : kPanel;
            for (int64_t i = 0; i < n; ++i) scaled[i] = a.q[r * a.stride + d + i] * a.scale;
            to_halves(scaled, q + r * a.kv.d_padded + d, n > 0 ? n : 0, padded);
        }
    for (int64_t key = 0; key < keys; key += kPageTokens) {
        if (R == 1) fetch_page(a.kv, key / kPageTokens, a.position);
        page_scores<Format, R>(keys_of(a.kv, key / kPageTokens), reinterpret_cast<uint8_t*>(q), q_stride,
                               units, scores + key, stride);
    }
    float sums[R];
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r)
        sums[r] = to_weights<Format>(scores + r * stride, weights + r * stride, a.position + r + 1);
    const Mixture m = {&a, reinterpret_cast<const uint8_t*>(weights), stride * static_cast<int64_t>(sizeof(Value)), sums};
    mix_from<Format, R, R == 1 && kColumnsDense < 4 ? 4 : kColumnsDense>(m, 0);
}

template <class Format, int Most> void attend_some(const Attention& a) {
    if (a.n_rows == Most) return attend_rows<Format, Most>(a);
    if constexpr (Most > 1) attend_some<Format, Most - 1>(a);
}

void attend(const Attention& a) {
    if (a.kv.format == kF32)
        attend_some<Float32, kRowsDense>(a);
    else
        attend_some<Bfloat16, kRowsDense>(a);
}

constexpr int64_t kRowBlock = 96;  // rows that go over a panel's part while it is in the first-level cache

[[maybe_unused]] const Kernels* table(const char* name) {
    static const Kernels kernels = {name, kRowsDense, kRowBlock, layer_norm, row_bytes, encode, multiply, keep, attend};
    return &kernels;
}

}  // namespace
}  // namespace wafergpt::native
