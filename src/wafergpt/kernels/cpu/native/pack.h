// Weights into panels and back: portable, the same bytes on every machine.
#pragma once
#include "kernel.h"

namespace wafergpt::native {

// weight [n, k] float32 -> panels [panels_of(n) * panel_bytes(k)], scales [panels * 64] (int8). `importance` [k] or
// null weighs the errors of int4 (how large the inputs are). Panels [first, last) only.
void pack_panels(Format format, const float* weight, const float* importance, int64_t n, int64_t k, int64_t first,
                 int64_t last, uint8_t* panels, float* scales);

// Row `row` of the matrix as float32 [k]: an embedding's look-up.
void unpack_row(const Matrix& matrix, int64_t row, float* out);

}  // namespace wafergpt::native
