// int8 matrix product with AVX-512 VNNI: C[M, N] = scale_a[m] * scale_b[n] * (A[M, K] . B[N, K]) + bias[n].
//
// A is int8, row major, one scale a row. B is stored as unsigned bytes (int8 + 128) in panels of 64
// columns: [panel][K / 4][64][4], so that vpdpbusd (unsigned x signed) applies; the excess
// 128 * sum_k A[m, k] is taken off with the row sums made when A is quantised. K is padded to a multiple
// of 4 (0 in A, so B's padding is free), N to a multiple of 64. Proven in tests/parity/test_ops_int8.py.
// Sums are exact in int32 up to K = 66,000: 127 * 255 * K < 2^31.
#include <omp.h>

#include <algorithm>
#include <vector>

#include "numeric.h"

#include <immintrin.h>

#if defined(__AVX512VNNI__) && defined(__AVX512BW__) && defined(__AVX512F__)
#define WAFERGPT_VNNI 1
#else
#define WAFERGPT_VNNI 0
#endif

using namespace wafergpt;

namespace {

constexpr int64_t kPanel = 64;    // columns of B in a panel: four 16-lane accumulators
constexpr int64_t kRows = 6;      // rows of A in the register tile: 24 accumulators of 32 registers
constexpr int64_t kGroup = 512;   // columns transposed together: 1 KiB of each row a page visit
constexpr int64_t kDepth = 8192;  // K per pass: a panel block of 512 KiB stays in a 1 MiB L2

// A counter-based uniform in [0, 1) for dithering: the same (seed, index) always rounds the same way.
inline float uniform(uint32_t seed, uint32_t index) {
    uint32_t x = index * 0x9E3779B9u + seed;
    x ^= x >> 15;
    x *= 0x2c1b3c6du;
    x ^= x >> 13;
    return static_cast<float>(x >> 8) * 0x1p-24f;
}

// A seed out of the values themselves: no generator state exists, so a resumed run rounds as the first did.
uint32_t content_seed(const bf16* x, int64_t count) {
    uint32_t hash = 2166136261u;
    for (int64_t i = 0; i < 256; ++i) hash = (hash ^ x[count * i / 256]) * 16777619u;
    return hash | 1u;
}

// |x| as its bits: ordered like the values, and an infinity or a NaN is above every number, so that it
// becomes the scale and spreads to the whole product instead of vanishing in a rounding.
inline uint16_t magnitude(bf16 x) { return x & 0x7fffu; }

// 127 / the largest magnitude; 0, so that the row counts as zero, below 2^-121, where it would overflow.
inline float steps_per_unit(uint16_t top) { return top >= 0x0300 ? 127.0f / to_float(top) : 0.0f; }

float quantize_row(const bf16* x, int8_t* q, int64_t k, int64_t padded, int32_t* sum, uint32_t seed) {
    uint16_t top = 0;
    for (int64_t i = 0; i < k; ++i) top = std::max(top, magnitude(x[i]));
    const float largest = to_float(top);
    const float inverse = steps_per_unit(top);
    int32_t total = 0;
    if (seed == 0) {
        for (int64_t i = 0; i < k; ++i) {
            const int32_t value = static_cast<int32_t>(std::rint(to_float(x[i]) * inverse));
            q[i] = static_cast<int8_t>(value);
            total += value;
        }
    } else {
        for (int64_t i = 0; i < k; ++i) {
            const float raised = to_float(x[i]) * inverse + uniform(seed, static_cast<uint32_t>(i));
            const int32_t value = static_cast<int32_t>(std::min(std::floor(raised), 127.0f));
            q[i] = static_cast<int8_t>(value);
            total += value;
        }
    }
    for (int64_t i = k; i < padded; ++i) q[i] = 0;
    *sum = total;
    return largest / 127.0f;
}

// 64 x 64 bytes in 16 x 16 squares, each by four rounds of interleaving (SSE2, so any x86-64).
void transpose_block(const int8_t (&source)[kPanel][kPanel], int8_t (&target)[kPanel][kPanel]) {
    for (int64_t row = 0; row < kPanel; row += 16)
        for (int64_t column = 0; column < kPanel; column += 16) {
            __m128i a[16], b[16];
            for (int i = 0; i < 16; ++i)
                a[i] = _mm_loadu_si128(reinterpret_cast<const __m128i*>(&source[row + i][column]));
            // One round sends element (i, j) a bit of its row index into its column index; four do all of it.
            for (int round = 0; round < 4; ++round) {
                for (int i = 0; i < 8; ++i) {
                    b[2 * i] = _mm_unpacklo_epi8(a[i], a[i + 8]);
                    b[2 * i + 1] = _mm_unpackhi_epi8(a[i], a[i + 8]);
                }
                for (int i = 0; i < 16; ++i) a[i] = b[i];
            }
            for (int i = 0; i < 16; ++i)
                _mm_storeu_si128(reinterpret_cast<__m128i*>(&target[column + i][row]), a[i]);
        }
}

// One 64 x 64 square of x [m, k] at (row0, column0), quantised and transposed into q [k, padded].
void quantize_square(const bf16* x, int8_t* q, int32_t* sums, const float* inverse, int64_t m, int64_t stride,
                     int64_t padded, int64_t row0, int64_t column0, int64_t columns, uint32_t seed) {
    const int64_t rows = std::min(kPanel, padded - row0), real = std::max<int64_t>(0, std::min(rows, m - row0));
    int8_t block[kPanel][kPanel], turned[kPanel][kPanel];
    int32_t totals[kPanel] = {};  // local, as are the factors: bytes may alias anything behind a pointer
    float factors[kPanel];
    for (int64_t i = 0; i < columns; ++i) factors[i] = inverse[i];
    for (int64_t r = 0; r < real; ++r) {
        const bf16* in = x + (row0 + r) * stride + column0;
        const uint32_t row_seed = seed + static_cast<uint32_t>(row0 + r) * 0x85ebca6bu;
        for (int64_t i = 0; i < columns; ++i) {
            const float raised = to_float(in[i]) * factors[i] + uniform(row_seed, static_cast<uint32_t>(column0 + i));
            const int32_t value = static_cast<int32_t>(std::min(std::floor(raised), 127.0f));
            block[r][i] = static_cast<int8_t>(value);
            totals[i] += value;
        }
    }
    for (int64_t i = 0; i < columns; ++i) sums[i] += totals[i];
    if (real < rows) std::memset(block[real], 0, kPanel * (rows - real));
    transpose_block(block, turned);
    for (int64_t i = 0; i < columns; ++i) std::memcpy(q + (column0 + i) * padded + row0, turned[i], rows);
}

#if WAFERGPT_VNNI

struct Product {
    const int8_t* a;
    const float* scale_a;
    const int32_t* sum_a;
    const uint8_t* b;
    const float* scale_b;
    const float* bias;  // may be null
    bf16* c;
    int64_t m, n, k;   // k is the padded depth
    int32_t* partial;  // [m, panels * 64] sums of the passes before the last; null with one pass
};

template <int R>
void finish(const Product& p, int64_t row, int64_t panel, const int32_t (&sums)[R][kPanel]) {
    const int64_t first = panel * kPanel, count = std::min(kPanel, p.n - first);
    const float* scale_b = p.scale_b + first;
    for (int r = 0; r < R; ++r) {
        const int32_t excess = 128 * p.sum_a[row + r];
        const float scale = p.scale_a[row + r];
        bf16* out = p.c + (row + r) * p.n + first;
        if (p.bias != nullptr) {
            const float* bias = p.bias + first;
            for (int64_t i = 0; i < count; ++i)
                out[i] = to_bf16(scale * static_cast<float>(sums[r][i] - excess) * scale_b[i] + bias[i]);
        } else {
            for (int64_t i = 0; i < count; ++i)
                out[i] = to_bf16(scale * static_cast<float>(sums[r][i] - excess) * scale_b[i]);
        }
    }
}

template <int R>
void rows_times_panel(const Product& p, int64_t row, int64_t panel, int64_t k0, int64_t k1) {
    const uint8_t* block = p.b + panel * p.k * kPanel;
    const int8_t* a = p.a + row * p.k;
    const int64_t stride = (p.n + kPanel - 1) / kPanel * kPanel;
    int32_t* partial = p.partial + (p.partial ? row * stride + panel * kPanel : 0);
    __m512i acc[R][4];
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r) acc[r][0] = acc[r][1] = acc[r][2] = acc[r][3] = _mm512_setzero_si512();
    if (k0 > 0) {
#pragma GCC unroll 8
        for (int r = 0; r < R; ++r) {
            acc[r][0] = _mm512_loadu_si512(partial + r * stride);
            acc[r][1] = _mm512_loadu_si512(partial + r * stride + 16);
            acc[r][2] = _mm512_loadu_si512(partial + r * stride + 32);
            acc[r][3] = _mm512_loadu_si512(partial + r * stride + 48);
        }
    }
    for (int64_t k = k0; k < k1; k += 4) {
        const uint8_t* b = block + k * kPanel;
        const __m512i b0 = _mm512_loadu_si512(b), b1 = _mm512_loadu_si512(b + 64);
        const __m512i b2 = _mm512_loadu_si512(b + 128), b3 = _mm512_loadu_si512(b + 192);
#pragma GCC unroll 8
        for (int r = 0; r < R; ++r) {
            const __m512i x = _mm512_set1_epi32(*reinterpret_cast<const int32_t*>(a + r * p.k + k));
            acc[r][0] = _mm512_dpbusd_epi32(acc[r][0], b0, x);
            acc[r][1] = _mm512_dpbusd_epi32(acc[r][1], b1, x);
            acc[r][2] = _mm512_dpbusd_epi32(acc[r][2], b2, x);
            acc[r][3] = _mm512_dpbusd_epi32(acc[r][3], b3, x);
        }
    }
    if (k1 < p.k) {
#pragma GCC unroll 8
        for (int r = 0; r < R; ++r) {
            _mm512_storeu_si512(partial + r * stride, acc[r][0]);
            _mm512_storeu_si512(partial + r * stride + 16, acc[r][1]);
            _mm512_storeu_si512(partial + r * stride + 32, acc[r][2]);
            _mm512_storeu_si512(partial + r * stride + 48, acc[r][3]);
        }
        return;
    }
    // Through memory: indexing `acc` by a variable would keep all of it out of registers above.
    alignas(64) int32_t sums[R][kPanel];
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r) {
        _mm512_store_si512(sums[r], acc[r][0]);
        _mm512_store_si512(sums[r] + 16, acc[r][1]);
        _mm512_store_si512(sums[r] + 32, acc[r][2]);
        _mm512_store_si512(sums[r] + 48, acc[r][3]);
    }
    finish<R>(p, row, panel, sums);
}

void multiply(const Product& p) {
    const int64_t panels = (p.n + kPanel - 1) / kPanel, tiles = (p.m + kRows - 1) / kRows;
#pragma omp parallel
    {
        // Threads split the rows; a panel block stays in L2 while the thread's rows pass over it.
        const int64_t thread = omp_get_thread_num(), threads = omp_get_num_threads();
        const int64_t first = tiles * thread / threads, last = tiles * (thread + 1) / threads;
        for (int64_t k0 = 0; k0 < p.k; k0 += kDepth) {
            const int64_t k1 = std::min(p.k, k0 + kDepth);
            for (int64_t panel = 0; panel < panels; ++panel) {
                for (int64_t t = first; t < last; ++t) {
                    const int64_t row = t * kRows;
                    switch (std::min(kRows, p.m - row)) {
                        case 6: rows_times_panel<6>(p, row, panel, k0, k1); break;
                        case 5: rows_times_panel<5>(p, row, panel, k0, k1); break;
                        case 4: rows_times_panel<4>(p, row, panel, k0, k1); break;
                        case 3: rows_times_panel<3>(p, row, panel, k0, k1); break;
                        case 2: rows_times_panel<2>(p, row, panel, k0, k1); break;
                        default: rows_times_panel<1>(p, row, panel, k0, k1); break;
                    }
                }
            }
        }
    }
}
#endif

}  // namespace

extern "C" {

int wg_int8_supported() { return WAFERGPT_VNNI; }

// x [m, k] bfloat16 -> q [m, padded] int8, scales [m], sums [m]; rounds to nearest or stochastically.
void wg_int8_quantize_rows(const bf16* x, int8_t* q, float* scales, int32_t* sums, int64_t m, int64_t k,
                           int64_t padded, int stochastic) {
    const uint32_t seed = stochastic ? content_seed(x, m * k) : 0u;
#pragma omp parallel for schedule(static)
    for (int64_t row = 0; row < m; ++row)
        scales[row] = quantize_row(x + row * k, q + row * padded, k, padded, sums + row,
                                   seed == 0 ? 0u : (seed + static_cast<uint32_t>(row) * 0x85ebca6bu) | 1u);
}

// x [m, k] bfloat16, rows `stride` apart -> its transpose q [k, padded] int8, padded >= m, one scale a column
// of x; stochastic.
void wg_int8_quantize_transposed(const bf16* x, int8_t* q, float* scales, int32_t* sums, int64_t m, int64_t k,
                                 int64_t stride, int64_t padded) {
    const uint32_t seed = content_seed(x, (m - 1) * stride + k);
    const int n_threads = omp_get_max_threads();
    std::vector<uint16_t> largest(static_cast<size_t>(n_threads) * k, 0);
#pragma omp parallel
    {
        uint16_t* mine = largest.data() + static_cast<size_t>(omp_get_thread_num()) * k;
#pragma omp for schedule(static)
        for (int64_t row = 0; row < m; ++row)
            for (int64_t i = 0; i < k; ++i) mine[i] = std::max(mine[i], magnitude(x[row * stride + i]));
#pragma omp for schedule(static)
        for (int64_t first = 0; first < k; first += kGroup) {
            const int64_t columns = std::min(kGroup, k - first);
            float inverse[kGroup];
            for (int64_t i = 0; i < columns; ++i) {
                uint16_t top = 0;
                for (int thread = 0; thread < n_threads; ++thread)
                    top = std::max(top, largest[static_cast<size_t>(thread) * k + first + i]);
                scales[first + i] = to_float(top) / 127.0f;
                inverse[i] = steps_per_unit(top);
                sums[first + i] = 0;
            }
            for (int64_t begin = 0; begin < padded; begin += kPanel)
                for (int64_t c = 0; c < columns; c += kPanel)
                    quantize_square(x, q, sums + first + c, inverse + c, m, stride, padded, begin, first + c,
                                    std::min(kPanel, columns - c), seed);
        }
    }
}

// weight [n, k] -> B of the forward product (columns n, depth k): panels, one scale a row of weight.
void wg_int8_pack(const bf16* weight, uint8_t* panels, float* scales, int64_t n, int64_t k, int64_t padded) {
#pragma omp parallel
    {
        std::vector<int8_t> row(padded);
#pragma omp for schedule(static)
        for (int64_t panel = 0; panel < (n + kPanel - 1) / kPanel; ++panel) {
            uint8_t* target = panels + panel * padded * kPanel;
            for (int64_t column = 0; column < kPanel; ++column) {
                const int64_t at = panel * kPanel + column;
                int32_t sum;
                if (at < n)
                    scales[at] = quantize_row(weight + at * k, row.data(), k, padded, &sum, 0);
                else
                    std::fill(row.begin(), row.end(), int8_t{0});
                for (int64_t quad = 0; quad < padded / 4; ++quad) {
                    uint32_t four;
                    std::memcpy(&four, row.data() + quad * 4, 4);
                    four ^= 0x80808080u;  // int8 + 128
                    std::memcpy(target + quad * 256 + column * 4, &four, 4);
                }
            }
        }
    }
}

// weight [n, k] -> B of the input-gradient product (columns k, depth n): one scale a column of weight.
void wg_int8_pack_transposed(const bf16* weight, uint8_t* panels, float* scales, int64_t n, int64_t k,
                             int64_t padded) {
#pragma omp parallel for schedule(static)
    for (int64_t panel = 0; panel < (k + kPanel - 1) / kPanel; ++panel) {
        const int64_t first = panel * kPanel, count = std::min(kPanel, k - first);
        uint8_t* target = panels + panel * padded * kPanel;
        uint16_t top[kPanel] = {};
        float inverse[kPanel] = {};
        for (int64_t row = 0; row < n; ++row)
            for (int64_t i = 0; i < count; ++i) top[i] = std::max(top[i], magnitude(weight[row * k + first + i]));
        for (int64_t i = 0; i < count; ++i) {
            scales[first + i] = to_float(top[i]) / 127.0f;
            inverse[i] = steps_per_unit(top[i]);
        }
        for (int64_t quad = 0; quad < padded / 4; ++quad) {
            uint8_t* out = target + quad * 256;
            std::memset(out, 128, 256);
            for (int64_t j = 0; j < std::min<int64_t>(4, n - quad * 4); ++j) {
                const bf16* row = weight + (quad * 4 + j) * k + first;
                for (int64_t i = 0; i < count; ++i)
                    out[i * 4 + j] =
                        static_cast<uint8_t>(static_cast<int32_t>(std::rint(to_float(row[i]) * inverse[i])) + 128);
            }
        }
    }
}

void wg_int8_gemm(const int8_t* a, const float* scale_a, const int32_t* sum_a, const uint8_t* b,
                  const float* scale_b, const float* bias, bf16* c, int64_t m, int64_t n, int64_t k) {
#if WAFERGPT_VNNI
    std::vector<int32_t> partial;
    if (k > kDepth) partial.resize(static_cast<size_t>(m) * ((n + kPanel - 1) / kPanel * kPanel));
    multiply({a, scale_a, sum_a, b, scale_b, bias, c, m, n, k, partial.empty() ? nullptr : partial.data()});
#endif
}

}  // extern "C"
