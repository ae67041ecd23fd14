// The kernels for one instruction set; `kernels/native_build.py` holds the flags this file is compiled with.
#include "simd_avx2.h"

#include "attention.h"

namespace wafergpt::native {
const Kernels* kernels_avx2() { return table("avx2"); }
}  // namespace wafergpt::native
