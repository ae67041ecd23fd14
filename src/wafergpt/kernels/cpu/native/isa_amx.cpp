// AMX for products of bfloat16 and int8 and for attention; AVX-512, which every CPU with AMX has, for the rest.
#include "simd_avx512.h"

#include "attention_tiles.h"
#include "product_tiles.h"

namespace wafergpt::native {

const Kernels* kernels_amx() {
    static const Kernels kernels = [] {
        Kernels k = *kernels_avx512();
        k.name = "amx";
        k.query_rows = kTileRows;
        k.row_block = 256;  // tiles take so little time that reading the panel again counts
        k.multiply = multiply_by_tiles;
        k.attend = attend_by_tiles;
        return k;
    }();
    return &kernels;
}

}  // namespace wafergpt::native
