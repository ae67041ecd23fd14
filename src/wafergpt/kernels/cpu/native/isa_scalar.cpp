// The kernels for one instruction set; `kernels/native_build.py` holds the flags this file is compiled with.
#include "simd_scalar.h"

#include "attention.h"

namespace wafergpt::native {
const Kernels* kernels_scalar() { return table("scalar"); }
}  // namespace wafergpt::native
