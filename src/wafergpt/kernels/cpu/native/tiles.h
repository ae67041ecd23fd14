// The tile instructions of AMX, one function each. A tile is at most 16 rows of 64 bytes; how many of both is set
// for all tiles at once. Assembly, because GCC's own macros take no template parameter as a tile's number.
#pragma once
#include <stdint.h>

namespace wafergpt::native {
namespace {

constexpr int64_t kTileRows = 16, kTileBytes = 64;

// What ldtilecfg reads (Intel's manual, volume 1, "Palette and tile configuration").
struct alignas(64) TileShapes {
    uint8_t palette = 1, start_row = 0, reserved[14] = {};
    uint16_t row_bytes[16] = {};
    uint8_t rows[16] = {};
};
static_assert(sizeof(TileShapes) == 64, "the instruction reads 64 bytes");

// Clears every tile.
inline void set_tile_shapes(const TileShapes& shapes) { asm volatile("ldtilecfg %0" : : "m"(shapes)); }
// Gives the tiles back: a thread that holds none is switched faster.
inline void release_tiles() { asm volatile("tilerelease"); }
template <int T> inline void tile_zero() { asm volatile("tilezero %%tmm%c0" : : "i"(T)); }
template <int T> inline void tile_load(const void* from, int64_t stride) {
    asm volatile("tileloadd (%0,%1,1), %%tmm%c2" : : "r"(from), "r"(stride), "i"(T) : "memory");
}
template <int T> inline void tile_store(void* to, int64_t stride) {
    asm volatile("tilestored %%tmm%c2, (%0,%1,1)" : : "r"(to), "r"(stride), "i"(T) : "memory");
}
// C[m][n] += sum over pairs of A[m][k] B[k][n], bfloat16 (Intel's order of the sum: tests/amx_machine.cpp).
template <int C, int A, int B> inline void tile_dot_bf16() {
    asm volatile("tdpbf16ps %%tmm%c2, %%tmm%c1, %%tmm%c0" : : "i"(C), "i"(A), "i"(B));
}
// The same of quadruples of bytes, A signed and B unsigned: exact.
template <int C, int A, int B> inline void tile_dot_int8() {
    asm volatile("tdpbsud %%tmm%c2, %%tmm%c1, %%tmm%c0" : : "i"(C), "i"(A), "i"(B));
}

}  // namespace
}  // namespace wafergpt::native
