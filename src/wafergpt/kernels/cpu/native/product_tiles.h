// Rows times panels of bfloat16 and int8 weights through AMX tiles. A panel already is what a tile of weights
// must look like: a row per unit of k, 4 bytes a column, so 16 units of 16 columns are loaded where they lie.
//
// bfloat16: every number of rows takes this way, k in the same blocks of 16 units, so a row's bits do not depend
// on its company. int8 is exact, so few rows take the vectors. After simd_avx512.h.
#pragma once
#include "ends.h"
#include "tiles.h"

namespace wafergpt::native {
namespace {

constexpr int64_t kTileUnits = 16;    // of k in one tile of weights
constexpr int64_t kTileColumns = 16;  // of a panel
// Units of one pass: 32 KiB of a panel stay in the first-level cache (48 KiB on every CPU with AMX) while the
// rows go over them.
constexpr int64_t kTilePassUnits = 8 * kTileUnits;
constexpr int64_t kFewRows = 6;  // of int8: one set of vector sums

struct Bfloat16Tiles {
    template <int C, int A, int B> static void dot() { tile_dot_bf16<C, A, B>(); }
};
struct Int8Tiles {
    template <int C, int A, int B> static void dot() { tile_dot_int8<C, A, B>(); }
};

// Sums are tiles 0 to 3, rows 4 and 5, weights 6 and 7. `top` rows in 0, 1 and 4, `bottom` in 2, 3 and 5.
inline void shape_tiles(int64_t top, int64_t bottom, int64_t units) {
    TileShapes shapes;
    for (int tile = 0; tile < 8; ++tile) {
        const bool weights = tile >= 6, rows = tile == 4 || tile == 5, upper = tile == 0 || tile == 1 || tile == 4;
        shapes.row_bytes[tile] = static_cast<uint16_t>(rows ? units * 4 : kTileBytes);
        shapes.rows[tile] = static_cast<uint8_t>(weights ? units : upper ? top : bottom);
    }
    set_tile_shapes(shapes);
}

struct TilePass {
    const uint8_t* w;  // the panel at the pass's first unit
    const uint8_t* x;  // the rows there
    int64_t x_stride;
    float* sums;  // [rows][64], the bits of int32 for int8
    int64_t first, last, units;  // units of k: of this pass, and in one tile of it
    bool cold;                   // no row has been over them just now
};

constexpr int64_t kSumsStride = kPanel * 4;

template <int T> inline void start_sums(bool from_zero, float* sums) {
    from_zero ? tile_zero<T>() : tile_load<T>(sums, kSumsStride);
}

// 8 KiB ahead, all columns of as many units as a tile takes: the hardware's prefetcher stops at every page.
inline void prefetch_units(const uint8_t* w, int64_t units) {
    for (int64_t line = 0; line < units * kPanel * 4; line += 64) prefetch(w + 8192 + line);
}

// Up to 16 rows, the panel's 64 columns at once.
template <class Tiles> void upper_tile(const TilePass& p) {
    const bool from_zero = p.first == 0;
    start_sums<0>(from_zero, p.sums);
    start_sums<1>(from_zero, p.sums + kTileColumns);
    start_sums<2>(from_zero, p.sums + 2 * kTileColumns);
    start_sums<3>(from_zero, p.sums + 3 * kTileColumns);
    const uint8_t *w = p.w, *x = p.x;
    for (int64_t unit = p.first; unit < p.last; unit += p.units, w += p.units * kPanel * 4, x += p.units * 4) {
        tile_load<4>(x, p.x_stride);
        if (p.cold) prefetch_units(w, p.units);
        tile_load<6>(w, kPanel * 4);
        tile_load<7>(w + kTileBytes, kPanel * 4);
        Tiles::template dot<0, 4, 6>();
        Tiles::template dot<1, 4, 7>();
        tile_load<6>(w + 2 * kTileBytes, kPanel * 4);
        tile_load<7>(w + 3 * kTileBytes, kPanel * 4);
        Tiles::template dot<2, 4, 6>();
        Tiles::template dot<3, 4, 7>();
    }
    tile_store<0>(p.sums, kSumsStride);
    tile_store<1>(p.sums + kTileColumns, kSumsStride);
    tile_store<2>(p.sums + 2 * kTileColumns, kSumsStride);
    tile_store<3>(p.sums + 3 * kTileColumns, kSumsStride);
}

// 17 to 32 rows, 32 columns at a time: every tile that is loaded is used twice.
template <class Tiles> void both_tiles(const TilePass& p) {
    const bool from_zero = p.first == 0;
    for (int64_t column = 0; column < kPanel; column += 2 * kTileColumns) {
        float *upper = p.sums + column, *lower = upper + kTileRows * kPanel;
        start_sums<0>(from_zero, upper);
        start_sums<1>(from_zero, upper + kTileColumns);
        start_sums<2>(from_zero, lower);
        start_sums<3>(from_zero, lower + kTileColumns);
        const uint8_t *w = p.w + column * 4, *x = p.x;
        for (int64_t unit = p.first; unit < p.last; unit += p.units, w += p.units * kPanel * 4, x += p.units * 4) {
            if (p.cold && column == 0) prefetch_units(w, p.units);
            tile_load<4>(x, p.x_stride);
            tile_load<6>(w, kPanel * 4);
            tile_load<7>(w + kTileBytes, kPanel * 4);
            tile_load<5>(x + kTileRows * p.x_stride, p.x_stride);
            Tiles::template dot<0, 4, 6>();
            Tiles::template dot<1, 4, 7>();
            Tiles::template dot<2, 5, 6>();
            Tiles::template dot<3, 5, 7>();
        }
        tile_store<0>(upper, kSumsStride);
        tile_store<1>(upper + kTileColumns, kSumsStride);
        tile_store<2>(lower, kSumsStride);
        tile_store<3>(lower + kTileColumns, kSumsStride);
    }
}

// Every row over the units [first, last), `units` of them in a tile. Shapes are set anew at each change only.
template <class Tiles>
void tile_pass(const Product& p, int64_t panel, int64_t begin, int64_t end, int64_t first, int64_t last, int64_t units) {
    const int64_t all = units_of(p.w.format, p.w.k);
    int64_t shaped_top = 0, shaped_bottom = 0;
    for (int64_t row = begin; row < end; row += 2 * kTileRows) {
        const int64_t n = end - row, top = n < kTileRows ? n : kTileRows;
        const int64_t below = n - top < kTileRows ? n - top : kTileRows, bottom = below > 0 ? below : top;
        if (top != shaped_top || bottom != shaped_bottom) shape_tiles(top, bottom, units);
        shaped_top = top, shaped_bottom = bottom;
        const TilePass pass = {p.w.panels + (panel * all + first) * kPanel * 4, p.x.data + row * p.x.stride + first * 4,
                               p.x.stride, p.pause + (row - begin) * kPanel, first, last, units, row == begin};
        below > 0 ? both_tiles<Tiles>(pass) : upper_tile<Tiles>(pass);
    }
}

template <class Tiles> void sums_by_tiles(const Product& p, int64_t panel, int64_t begin, int64_t end) {
    const int64_t all = units_of(p.w.format, p.w.k), whole = all / kTileUnits * kTileUnits;
    const int64_t step = end - begin <= 2 * kTileRows ? all : kTilePassUnits;
    for (int64_t row = begin; row < end && end - begin <= 2 * kTileRows; ++row)  // another core may hold them
        for (int64_t c = panel * kPanel; c < (panel + 1) * kPanel && c < p.out_columns; c += 16)
            prefetch_to_write(p.out + row * p.out_stride + c);
    for (int64_t first = 0; first < whole; first += step)
        tile_pass<Tiles>(p, panel, begin, end, first, first + step < whole ? first + step : whole, kTileUnits);
    if (whole < all) tile_pass<Tiles>(p, panel, begin, end, whole, all, all - whole);
    release_tiles();
}

// Rows [begin, end) times one panel: Kernels::multiply.
void multiply_by_tiles(const Product& p, int64_t panel, int64_t begin, int64_t end) {
    if (p.w.format == kBf16) {
        sums_by_tiles<Bfloat16Tiles>(p, panel, begin, end);
        finish_as<false>(p, begin, end - begin, panel * kPanel, kPanel, p.pause);
    } else if (p.w.format == kInt8 && end - begin > kFewRows) {
        sums_by_tiles<Int8Tiles>(p, panel, begin, end);
        finish_as<true>(p, begin, end - begin, panel * kPanel, kPanel, p.pause);
    } else {
        kernels_avx512()->multiply(p, panel, begin, end);
    }
}

}  // namespace
}  // namespace wafergpt::native
