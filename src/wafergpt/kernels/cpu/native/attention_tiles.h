// Attention over bfloat16 pages through AMX tiles. Pages already are tiles of weights: a row per unit of what is
// summed over, 4 bytes a column. Every number of queries takes this way, all of a page or nothing of it, so a
// query's bits do not depend on its company. After simd_avx512.h.
#pragma once
#include "attention.h"
#include "tiles.h"

namespace wafergpt::native {
namespace {

constexpr int64_t kPageUnits = kPageTokens / 2;  // of values; also the most units of a tile

// Scores: sums of a page's halves in 0 and 1, queries and keys of 16 units in 4, 6 and 7, of the 8 units that may
// be left in 5, 2 and 3. Mixing: sums in 0 to 3, weights in 4, values in 6 and 7.
inline void shape_attention_tiles(int64_t queries, bool scores) {
    TileShapes shapes;
    for (int tile = 0; tile < 8; ++tile) {
        const bool rest = scores && (tile == 2 || tile == 3), whole = tile >= 6;
        shapes.row_bytes[tile] = static_cast<uint16_t>(tile == 5 ? kTileBytes / 2 : kTileBytes);
        shapes.rows[tile] = static_cast<uint8_t>(whole ? kTileRows : rest ? kTileRows / 2 : queries);
    }
    set_tile_shapes(shapes);
}

// scores[query][32 keys of a page]; strides in bytes.
inline void score_page(const uint8_t* keys, const uint8_t* q, int64_t q_stride, int64_t units, float* scores, int64_t stride) {
    constexpr int64_t kUnitBytes = kPageTokens * 4, kHalf = kTileBytes;
    tile_zero<0>();
    tile_zero<1>();
    int64_t unit = 0;
    for (; unit + kTileRows <= units; unit += kTileRows) {
        tile_load<4>(q + unit * 4, q_stride);
        tile_load<6>(keys + unit * kUnitBytes, kUnitBytes);
        tile_load<7>(keys + unit * kUnitBytes + kHalf, kUnitBytes);
        tile_dot_bf16<0, 4, 6>();
        tile_dot_bf16<1, 4, 7>();
    }
    if (unit < units) {
        tile_load<5>(q + unit * 4, q_stride);
        tile_load<2>(keys + unit * kUnitBytes, kUnitBytes);
        tile_load<3>(keys + unit * kUnitBytes + kHalf, kUnitBytes);
        tile_dot_bf16<0, 5, 2>();
        tile_dot_bf16<1, 5, 3>();
    }
    tile_store<0>(scores, stride);
    tile_store<1>(scores + kTileRows, stride);
}

struct TileMixture {
    const Attention* attention;
    const uint8_t* weights;  // [queries][weights_stride]
    int64_t weights_stride;  // bytes
    const float* sums;       // [queries]
    int64_t n_pages;
    const uint8_t* last;  // the last page's values, zeros where no query sees
    float* partial;       // [queries][64]
};

// out[query][offset .. offset + 16 C) = sum over keys of weight * value.
template <int C> void mix_tiles(const TileMixture& m, int64_t offset) {
    const Attention& a = *m.attention;
    const int64_t step = a.kv.d_padded * 4;
    tile_zero<0>();
    if constexpr (C > 1) tile_zero<1>();
    if constexpr (C > 2) tile_zero<2>(), tile_zero<3>();
    for (int64_t page = 0; page < m.n_pages; ++page) {
        const uint8_t* values = (page + 1 < m.n_pages ? values_of(a.kv, page) : m.last) + offset * 4;
        tile_load<4>(m.weights + page * kTileBytes, m.weights_stride);
        tile_load<6>(values, step);
        tile_dot_bf16<0, 4, 6>();
        if constexpr (C > 1) {
            tile_load<7>(values + kTileBytes, step);
            tile_dot_bf16<1, 4, 7>();
        }
        if constexpr (C > 2) {
            tile_load<6>(values + 2 * kTileBytes, step);
            tile_load<7>(values + 3 * kTileBytes, step);
            tile_dot_bf16<2, 4, 6>();
            tile_dot_bf16<3, 4, 7>();
        }
    }
    constexpr int64_t kStride = kPanel * 4;
    tile_store<0>(m.partial, kStride);
    if constexpr (C > 1) tile_store<1>(m.partial + kTileRows, kStride);
    if constexpr (C > 2) tile_store<2>(m.partial + 2 * kTileRows, kStride), tile_store<3>(m.partial + 3 * kTileRows, kStride);
    for (int64_t r = 0; r < a.n_rows; ++r) {
        const F inverse = set1(1.0f / m.sums[r]);
        for (int64_t c = 0; c < C * kLanes && offset + c < a.kv.d_head; c += kLanes)
            store_first(a.out + r * a.out_stride + offset + c, mul(load(m.partial + r * kPanel + c), inverse),
                        a.kv.d_head - offset - c);
    }
}

// Whether no value of the positions [first, last] is an infinity or a NaN. It looks at whole units.
inline bool finite_values(const HeadPages& kv, int64_t first, int64_t last) {
    const I exponent = iset1(0x7f807f80);
    __mmask32 found = 0;
    for (int64_t unit = first / 2; unit <= last / 2; ++unit) {
        const uint8_t* values = values_of(kv, unit / kPageUnits) + unit % kPageUnits * kv.d_padded * 4;
        for (int64_t d = 0; d < kv.d_padded; d += kLanes)
            found |= _mm512_cmpeq_epi16_mask(iand(iload(values + d * 4), exponent), exponent);
    }
    return found == 0;
}

// The values of the page that holds position `last`, zeros after it: 0 times whatever lies there could be a NaN.
inline const uint8_t* values_until(const HeadPages& kv, int64_t last, uint8_t* copy) {
    const uint8_t* values = values_of(kv, last / kPageTokens);
    const int64_t seen = last % kPageTokens + 1, step = kv.d_padded * 4;
    if (seen == kPageTokens) return values;
    memcpy(copy, values, static_cast<size_t>((seen + 1) / 2 * step));
    for (int64_t i = 0; i < step && seen % 2 != 0; i += 64) {
        uint8_t* unit = copy + seen / 2 * step + i;
        istore(unit, half_unit_bits(iload(unit)));
    }
    memset(copy + (seen + 1) / 2 * step, 0, static_cast<size_t>((kPageUnits - (seen + 1) / 2) * step));
    return copy;
}

// At most 16 queries, of which none may see an infinity that another may not.
inline void attend_tile(const Attention& a) {
    const int64_t last = a.position + a.n_rows - 1, n_pages = last / kPageTokens + 1, keys = n_pages * kPageTokens;
    const int64_t stride = keys + kLanes, weights_stride = keys + 2 * kLanes;  // no power of two
    const uintptr_t scratch = reinterpret_cast<uintptr_t>(a.scratch);
    float* scores = a.scratch + (64 - scratch % 64) % 64 / 4;                   // [queries][stride]
    uint16_t* weights = reinterpret_cast<uint16_t*>(scores + a.n_rows * stride);  // [queries][weights_stride]
    uint16_t* q = weights + a.n_rows * weights_stride;                          // [queries][d_padded]
    uint8_t* copy = reinterpret_cast<uint8_t*>(q + round_up(a.n_rows * a.kv.d_padded, 2 * kLanes));
    float* partial = reinterpret_cast<float*>(copy + kPageUnits * a.kv.d_padded * 4);
    for (int64_t r = 0; r < a.n_rows; ++r)
        for (int64_t d = 0; d < a.kv.d_padded; d += kLanes) {
            const int64_t n = a.kv.d_head - d;
            store_bf16(q + r * a.kv.d_padded + d, n > 0 ? mul(load_first(a.q + r * a.stride + d, n), set1(a.scale)) : zero());
        }
    shape_attention_tiles(a.n_rows, true);
    for (int64_t page = 0; page < n_pages; ++page) {
        if (a.n_rows == 1) fetch_page(a.kv, page, last);
        score_page(keys_of(a.kv, page), reinterpret_cast<uint8_t*>(q), a.kv.d_padded * 2, a.kv.d_padded / 2,
                   scores + page * kPageTokens, stride * 4);
    }
    float sums[kTileRows];
    for (int64_t r = 0; r < a.n_rows; ++r) {
        const int64_t n = a.position + r + 1, whole = round_up(n, kLanes);
        sums[r] = to_weights<Bfloat16>(scores + r * stride, weights + r * weights_stride, n);
        memset(weights + r * weights_stride + whole, 0, static_cast<size_t>(keys - whole) * 2);
    }
    const TileMixture m = {&a, reinterpret_cast<uint8_t*>(weights), weights_stride * 2, sums, n_pages,
                           values_until(a.kv, last, copy), partial};
    shape_attention_tiles(a.n_rows, false);
    int64_t offset = 0;
    for (; offset + 4 * kLanes <= a.kv.d_padded; offset += 4 * kLanes) mix_tiles<4>(m, offset);
    for (; offset + 2 * kLanes <= a.kv.d_padded; offset += 2 * kLanes) mix_tiles<2>(m, offset);
    if (offset < a.kv.d_padded) mix_tiles<1>(m, offset);
}

// Kernels::attend, at most 16 queries.
void attend_by_tiles(const Attention& a) {
    const bool tiles = a.kv.format == kBf16, together = tiles && finite_values(a.kv, a.position + 1, a.position + a.n_rows - 1);
    const int64_t most = together ? kTileRows : tiles ? 1 : kRowsDense;
    for (int64_t first = 0; first < a.n_rows; first += most) {
        Attention part = a;
        part.q += first * a.stride;
        part.out += first * a.out_stride;
        part.position += first;
        part.n_rows = a.n_rows - first < most ? a.n_rows - first : most;
        tiles ? attend_tile(part) : kernels_avx512()->attend(part);
    }
    if (tiles) release_tiles();
}

}  // namespace
}  // namespace wafergpt::native
