// Rows times panels of packed weights, in the four formats; what is done to a finished sum is fused in.
// After one of simd_*.h and pointwise.h.
#pragma once
#include "pointwise.h"

namespace wafergpt::native {
namespace {

// What a pass over k needs to know of a format whose columns take 4 bytes a unit.
struct Float32 {
    using Sum = F;
    using Value = float;
    static constexpr int64_t kUnit = 1;
    static F weight(const uint8_t* p) { return load(reinterpret_cast<const float*>(p)); }
    static F broadcast(const uint8_t* row, int64_t unit) { return set1(reinterpret_cast<const float*>(row)[unit]); }
    static F step(F sum, F w, F x) { return fma(w, x, sum); }
};

struct Bfloat16 {
    using Sum = F;
    using Value = Half;
    static constexpr int64_t kUnit = 2;
    static I weight(const uint8_t* p) { return iload(p); }
    static Pair broadcast(const uint8_t* row, int64_t unit) {
        return pair(reinterpret_cast<const Half*>(row) + 2 * unit);
    }
    static F step(F sum, I w, const Pair& x) { return dot_pair(sum, w, x); }
};

struct Int8 {
    using Sum = I;
    using Value = int8_t;
    static constexpr int64_t kUnit = 4;
    static I weight(const uint8_t* p) { return iload(p); }
    static Quad broadcast(const uint8_t* row, int64_t unit) {
        return quad(reinterpret_cast<const int8_t*>(row) + 4 * unit);
    }
    static I step(I sum, I w, const Quad& x) { return dot_quad(sum, w, x); }
};

inline F zero_like(F) { return zero(); }
inline F as_float(F x) { return x; }
inline F from_float(F, F stored) { return stored; }
#if defined(__AVX2__)
inline I zero_like(I) { return iset1(0); }
inline F as_float(I x) { return bits_to_float(x); }
inline I from_float(I, F stored) { return float_to_bits(stored); }
#else
inline I zero_like(I) { return 0; }
inline F as_float(I x) { return bits_to_float(x); }
inline I from_float(I, F stored) { return float_to_bits(stored); }
#endif

// sum[r][c] += x[r, units first..last) . w, for R rows and C vectors of columns. `w` is at the first unit's
// first column, `step_bytes` lies between units.
template <class Format, int R, int C, bool Ahead>
inline __attribute__((always_inline)) void pass(const uint8_t* w, int64_t step_bytes, const uint8_t* x,
                                                int64_t x_stride, int64_t first, int64_t last,
                                                typename Format::Sum (&sum)[R][C]) {
    for (int64_t unit = first; unit < last; ++unit, w += step_bytes) {
        decltype(Format::weight(w)) column[C];
#pragma GCC unroll 8
        for (int c = 0; c < C; ++c) column[c] = Format::weight(w + c * kLanes * 4);
        if (Ahead) {
            // 8 KiB ahead: the hardware's prefetcher stops at every page.
#pragma GCC unroll 8
            for (int line = 0; line < C * kLanes * 4; line += 64) prefetch(w + 8192 + line);
        }
#pragma GCC unroll 8
        for (int r = 0; r < R; ++r) {
            const auto value = Format::broadcast(x + r * x_stride, unit);
#pragma GCC unroll 8
            for (int c = 0; c < C; ++c) sum[r][c] = Format::step(sum[r][c], column[c], value);
        }
    }
}

struct Depth {
    int64_t first, last, all;  // units of this pass, and of the whole product
    bool cold;                 // no row has been over them just now
};

template <int R, int C> inline void finish_tile(const Product& p, int64_t row, int64_t column, const F (&y)[R][C]) {
    alignas(64) float block[R][C * kLanes];
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r)
#pragma GCC unroll 8
        for (int c = 0; c < C; ++c) store(block[r] + c * kLanes, y[r][c]);
    finish(p, row, R, column, C * kLanes, block[0]);
}

// The lines that the tile's sums go to, which another core may hold.
template <int R, int C> inline void prefetch_out(const Product& p, int64_t row, int64_t column) {
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r)
        for (int c = 0; c < C * kLanes && column + c < p.out_columns; c += 16)
            prefetch_to_write(p.out + (row + r) * p.out_stride + column + c);
}

template <class Format, int R, int C, bool Ahead>
void tile(const Product& p, int64_t panel, int64_t row, float* pause, int64_t offset, const Depth& depth) {
    typename Format::Sum sum[R][C];
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r)
#pragma GCC unroll 8
        for (int c = 0; c < C; ++c)
            sum[r][c] = depth.first == 0 ? zero_like(sum[r][c])
                                         : from_float(sum[r][c], load(pause + r * kPanel + offset + c * kLanes));
    if (R > 1 && depth.last == depth.all) prefetch_out<R, C>(p, row, panel * kPanel + offset);
    const uint8_t* w = p.w.panels + (panel * depth.all + depth.first) * kPanel * 4 + offset * 4;
    pass<Format, R, C, Ahead>(w, kPanel * 4, p.x.data + row * p.x.stride, p.x.stride, depth.first, depth.last, sum);
    F y[R][C];
    const int64_t column = panel * kPanel + offset;
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r)
#pragma GCC unroll 8
        for (int c = 0; c < C; ++c) y[r][c] = as_float(sum[r][c]);
    if (depth.last < depth.all) {
#pragma GCC unroll 8
        for (int r = 0; r < R; ++r)
#pragma GCC unroll 8
            for (int c = 0; c < C; ++c) store(pause + r * kPanel + offset + c * kLanes, y[r][c]);
        return;
    }
    if constexpr (Format::kUnit == 4) {
#pragma GCC unroll 8
        for (int r = 0; r < R; ++r) {
            const F scale = set1(p.x.scale[row + r]);
            const I excess = iset1(p.x.sums[(row + r) * p.x.sums_stride]);
#pragma GCC unroll 8
            for (int c = 0; c < C; ++c) {
                const F exact = to_float(isub(float_to_bits(y[r][c]), excess));
                y[r][c] = mul(exact, mul(scale, load(p.w.scales + column + c * kLanes)));
            }
        }
    }
    finish_tile<R, C>(p, row, column, y);
}

// int4: integer sums within a group, floating ones across groups.
template <int R, int C, bool Ahead>
void tile_int4(const Product& p, int64_t panel, int64_t row, float* pause, int64_t offset, const Depth& depth) {
    constexpr int64_t kScaleBytes = kPanel * 2, kOctetBytes = kPanel * 4;
    F total[R][C];
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r)
#pragma GCC unroll 8
        for (int c = 0; c < C; ++c)
            total[r][c] = depth.first == 0 ? zero() : load(pause + r * kPanel + offset + c * kLanes);
    if (R > 1 && depth.last == depth.all) prefetch_out<R, C>(p, row, panel * kPanel + offset);
    const uint8_t* w = p.w.panels + (panel * depth.all + depth.first) * unit_bytes(kInt4);
    const I nibble = iset1(0x0f0f0f0f);
    constexpr int64_t kAhead = 8 * unit_bytes(kInt4);
    for (int64_t unit = depth.first; unit < depth.last; ++unit, w += unit_bytes(kInt4)) {
        if (Ahead)
            for (int64_t line = offset * 2; line < (offset + C * kLanes) * 2; line += 64) prefetch(w + kAhead + line);
        I sum[R][C];
#pragma GCC unroll 8
        for (int r = 0; r < R; ++r)
#pragma GCC unroll 8
            for (int c = 0; c < C; ++c) sum[r][c] = isub(iset1(0), iset1(p.x.sums[(row + r) * p.x.sums_stride + unit]));
#pragma GCC unroll 8
        for (int octet = 0; octet < kGroup / 8; ++octet) {
            const uint8_t* bytes = w + kScaleBytes + octet * kOctetBytes + offset * 4;
            I low[C], high[C];
#pragma GCC unroll 8
            for (int c = 0; c < C; ++c) {
                const I both = iload(bytes + c * kLanes * 4);
                if (Ahead) prefetch(bytes + kAhead + c * kLanes * 4);
                low[c] = iand(both, nibble);
                high[c] = iand(shift_right<4>(both), nibble);
            }
#pragma GCC unroll 8
            for (int r = 0; r < R; ++r) {
                const int8_t* x = reinterpret_cast<const int8_t*>(p.x.data + (row + r) * p.x.stride);
                const Quad first = quad(x + unit * kGroup + octet * 8), second = quad(x + unit * kGroup + octet * 8 + 4);
#pragma GCC unroll 8
                for (int c = 0; c < C; ++c) sum[r][c] = dot_nibbles(dot_nibbles(sum[r][c], low[c], first), high[c], second);
            }
        }
#pragma GCC unroll 8
        for (int c = 0; c < C; ++c) {
            const F scale = load_bf16(reinterpret_cast<const uint16_t*>(w) + offset + c * kLanes);
#pragma GCC unroll 8
            for (int r = 0; r < R; ++r) total[r][c] = fma(to_float(sum[r][c]), scale, total[r][c]);
        }
    }
    if (depth.last < depth.all) {
#pragma GCC unroll 8
        for (int r = 0; r < R; ++r)
#pragma GCC unroll 8
            for (int c = 0; c < C; ++c) store(pause + r * kPanel + offset + c * kLanes, total[r][c]);
        return;
    }
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r)
#pragma GCC unroll 8
        for (int c = 0; c < C; ++c) total[r][c] = mul(total[r][c], set1(p.x.scale[row + r]));
    finish_tile<R, C>(p, row, panel * kPanel + offset, total);
}

// The first rows that go over a part of a panel bring what follows; those after them find it in the cache. Rows
// that do not fill a tile are few, and cost nothing more.
template <class Format, int R>
void rows_dense(const Product& p, int64_t panel, int64_t row, float* pause, const Depth& depth) {
    constexpr int C = R == 1 ? kColumnsOneRow : kColumnsDense;
    for (int64_t offset = 0; offset < kPanel; offset += C * kLanes)
        if (R < kRowsDense || depth.cold)
            tile<Format, R, C, true>(p, panel, row, pause, offset, depth);
        else
            tile<Format, R, C, false>(p, panel, row, pause, offset, depth);
}

template <int R>
void rows_int4(const Product& p, int64_t panel, int64_t row, float* pause, const Depth& depth) {
    constexpr int C = R == 1 ? kColumnsInt4OneRow : kColumnsInt4;
    for (int64_t offset = 0; offset < kPanel; offset += C * kLanes)
        if (R < kRowsInt4 || depth.cold)
            tile_int4<R, C, true>(p, panel, row, pause, offset, depth);
        else
            tile_int4<R, C, false>(p, panel, row, pause, offset, depth);
}

// `n` rows at once, n <= Most: the template for exactly n.
template <class Format, int Most>
void some_rows(int64_t n, const Product& p, int64_t panel, int64_t row, float* pause, const Depth& depth) {
    if (n == Most) return rows_dense<Format, Most>(p, panel, row, pause, depth);
    if constexpr (Most > 1) some_rows<Format, Most - 1>(n, p, panel, row, pause, depth);
}

template <int Most>
void some_rows_int4(int64_t n, const Product& p, int64_t panel, int64_t row, float* pause, const Depth& depth) {
    if (n == Most) return rows_int4<Most>(p, panel, row, pause, depth);
    if constexpr (Most > 1) some_rows_int4<Most - 1>(n, p, panel, row, pause, depth);
}

// A panel's part of one pass stays in the first-level cache while the rows go over it. One tile of rows
// makes one pass: nothing would be used twice.
constexpr int64_t kPassBytes = 24 * 1024;

void multiply(const Product& p, int64_t panel, int64_t first, int64_t last) {
    const Format format = p.w.format;
    const int64_t most = format == kInt4 ? kRowsInt4 : kRowsDense;
    const int64_t all = units_of(format, p.w.k);
    const int64_t step = last - first <= most ? all : kPassBytes / unit_bytes(format);
    for (int64_t from = 0; from < all; from += step) {
        Depth depth = {from, from + step < all ? from + step : all, all, true};
        for (int64_t row = first; row < last; row += most, depth.cold = false) {
            const int64_t n = last - row < most ? last - row : most;
            float* pause = p.pause + (row - first) * kPanel;
            switch (format) {
                case kF32: some_rows<Float32, kRowsDense>(n, p, panel, row, pause, depth); break;
                case kBf16: some_rows<Bfloat16, kRowsDense>(n, p, panel, row, pause, depth); break;
                case kInt8: some_rows<Int8, kRowsDense>(n, p, panel, row, pause, depth); break;
                case kInt4: some_rows_int4<kRowsInt4>(n, p, panel, row, pause, depth); break;
            }
        }
    }
}

}  // namespace
}  // namespace wafergpt::native
