#include "pack.h"

#include <math.h>
#include <string.h>

#include <algorithm>
#include <vector>

namespace wafergpt::native {
namespace {

float bf16_to_float(uint16_t half) {
    const uint32_t bits = static_cast<uint32_t>(half) << 16;
    float out;
    memcpy(&out, &bits, 4);
    return out;
}

uint16_t float_to_bf16(float value) {
    uint32_t bits;
    memcpy(&bits, &value, 4);
    if ((bits & 0x7fffffffu) > 0x7f800000u) return static_cast<uint16_t>((bits >> 16) | 0x40u);
    return static_cast<uint16_t>((bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16);
}

float largest_magnitude(const float* x, int64_t n) {
    float top = 0.0f;
    for (int64_t i = 0; i < n; ++i) {
        if (!(fabsf(x[i]) <= top)) top = fabsf(x[i]);
        if (top != top) return top;  // a NaN spreads to its whole row
    }
    return top;
}

int nearest(float x, int low, int high) { return std::min(std::max(static_cast<int>(rintf(x)), low), high); }

void pack_float(const float* w, int64_t k, int64_t column, uint8_t* panel) {
    for (int64_t i = 0; i < k; ++i) memcpy(panel + (i * kPanel + column) * 4, w + i, 4);
}

void pack_bf16(const float* w, int64_t k, int64_t column, uint8_t* panel) {
    for (int64_t i = 0; i < k; ++i) {
        const uint16_t half = float_to_bf16(w[i]);
        memcpy(panel + (i / 2 * kPanel + column) * 4 + i % 2 * 2, &half, 2);
    }
}

float pack_int8(const float* w, int64_t k, int64_t column, uint8_t* panel) {
    const float top = largest_magnitude(w, k);
    const bool counts = top >= 0x1p-121f && top <= 3.4e38f;  // else 127 / top is no number to work with
    const float factor = counts ? 127.0f / top : 0.0f;
    for (int64_t i = 0; i < k; ++i)
        panel[(i / 4 * kPanel + column) * 4 + i % 4] = static_cast<uint8_t>(128 + (counts ? nearest(w[i] * factor, -127, 127) : 0));
    return top < 0x1p-121f ? 0.0f : top / 127.0f;
}

constexpr int kLanes = 16;

// What is left of the squared error sum_i h (w - s q)^2 with q = round(w * factor) within -8..7 and the best
// s: sum h w^2 - numerator^2 / denominator. Lanes, because a sum in order would not become vector code.
struct Fit {
    float numerator, denominator;  // s = numerator / denominator
};

Fit fit(const float* w, const float* h, float factor) {
    float numerators[kLanes] = {}, denominators[kLanes] = {};
    for (int64_t i = 0; i < kGroup; i += kLanes)
        for (int lane = 0; lane < kLanes; ++lane) {
            // Adding and taking 1.5 * 2^23 rounds to nearest even.
            const float scaled = w[i + lane] * factor;
            const float clipped = scaled < -8.0f ? -8.0f : scaled > 7.0f ? 7.0f : scaled;
            const float q = (clipped + 12582912.0f) - 12582912.0f;
            const float weighted = h[i + lane] * q;
            numerators[lane] += weighted * w[i + lane];
            denominators[lane] += weighted * q;
        }
    Fit sums = {0.0f, 0.0f};
    for (int lane = 0; lane < kLanes; ++lane) {
        sums.numerator += numerators[lane];
        sums.denominator += denominators[lane];
    }
    return sums;
}

// The scale of one group: the best of a row of candidates that put the largest value on -8 .. -5 or 5 .. 7.
float int4_scale(const float* w, const float* h) {
    const float top = largest_magnitude(w, kGroup);
    if (!(top >= 0x1p-100f && top <= 3.4e38f)) return top >= 0x1p-100f || top != top ? top : 0.0f;
    float best_gain = 0.0f, scale = top / 7.0f;
    for (float sign = -1.0f; sign <= 1.0f; sign += 2.0f)
        for (float target = 5.0f; target <= 8.6f; target += 0.2f) {
            const Fit sums = fit(w, h, sign * target / top);
            const float gain = sums.denominator > 0.0f ? sums.numerator * sums.numerator / sums.denominator : 0.0f;
            if (gain > best_gain) {
                best_gain = gain;
                scale = sums.numerator / sums.denominator;
            }
        }
    return scale;
}

void pack_int4(const float* w, const float* importance, int64_t k, int64_t column, uint8_t* panel) {
    for (int64_t first = 0; first < k; first += kGroup, panel += unit_bytes(kInt4)) {
        const int64_t n = std::min(kGroup, k - first);
        float values[kGroup] = {}, weight[kGroup] = {};
        float total = 0.0f;
        for (int64_t i = 0; i < n; ++i) {
            values[i] = w[first + i];
            weight[i] = importance != nullptr ? importance[first + i] : 1.0f;
            total += weight[i];
        }
        // Of a group whose inputs are all zero, or not finite, every value counts the same.
        if (!(total > 1e-30f && total < 1e30f)) std::fill(weight, weight + n, 1.0f);
        const uint16_t half = float_to_bf16(int4_scale(values, weight));
        const float scale = bf16_to_float(half);
        const bool counts = scale != 0.0f && fabsf(scale) <= 3.4e38f;
        memcpy(panel + column * 2, &half, 2);
        for (int64_t i = 0; i < kGroup; ++i) {
            const int q = counts ? nearest(values[i] / scale, -8, 7) : 0;
            uint8_t& byte = panel[kPanel * 2 + (i / 8 * kPanel + column) * 4 + i % 4];
            byte = static_cast<uint8_t>(byte | (q + 8) << (i % 8 < 4 ? 0 : 4));
        }
    }
}

}  // namespace

void pack_panels(Format format, const float* weight, const float* importance, int64_t n, int64_t k, int64_t first,
                 int64_t last, uint8_t* panels, float* scales) {
    const std::vector<float> nothing(static_cast<size_t>(k), 0.0f);  // the columns beyond n
    for (int64_t panel = first; panel < last; ++panel) {
        uint8_t* target = panels + panel * panel_bytes(format, k);
        memset(target, 0, static_cast<size_t>(panel_bytes(format, k)));
        for (int64_t column = 0; column < kPanel; ++column) {
            const int64_t at = panel * kPanel + column;
            const float* w = at < n ? weight + at * k : nothing.data();
            switch (format) {
                case kF32: pack_float(w, k, column, target); break;
                case kBf16: pack_bf16(w, k, column, target); break;
                case kInt8: scales[at] = pack_int8(w, k, column, target); break;
                case kInt4: pack_int4(w, importance, k, column, target); break;
            }
        }
    }
}

void unpack_row(const Matrix& matrix, int64_t row, float* out) {
    const uint8_t* panel = matrix.panels + row / kPanel * panel_bytes(matrix.format, matrix.k);
    const int64_t column = row % kPanel;
    for (int64_t i = 0; i < matrix.k; ++i) {
        if (matrix.format == kF32) {
            memcpy(out + i, panel + (i * kPanel + column) * 4, 4);
        } else if (matrix.format == kBf16) {
            uint16_t half;
            memcpy(&half, panel + (i / 2 * kPanel + column) * 4 + i % 2 * 2, 2);
            out[i] = bf16_to_float(half);
        } else if (matrix.format == kInt8) {
            out[i] = static_cast<float>(panel[(i / 4 * kPanel + column) * 4 + i % 4] - 128) * matrix.scales[row];
        } else {
            const uint8_t* group = panel + i / kGroup * unit_bytes(kInt4);
            const int64_t at = i % kGroup;
            uint16_t half;
            memcpy(&half, group + column * 2, 2);
            const int byte = group[kPanel * 2 + (at / 8 * kPanel + column) * 4 + at % 4];
            out[i] = static_cast<float>((at % 8 < 4 ? byte & 15 : byte >> 4) - 8) * bf16_to_float(half);
        }
    }
}

}  // namespace wafergpt::native
