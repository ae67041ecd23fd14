// The kernels for one instruction set; `kernels/native_build.py` holds the flags this file is compiled with.
#include "simd_avx512.h"

#include "attention.h"

namespace wafergpt::native {
const Kernels* kernels_avx512_vnni() { return table("avx512_vnni"); }
}  // namespace wafergpt::native
