// Causal self-attention for training, forward and backward, with AVX-512 BF16 dot products.
//
// qkv is [B, T, 3D] bfloat16 as the fused projection leaves it; each (batch, head) is one task of one
// thread, which works on blocks of 64 queries against the keys up to the block's end. Scores, softmax and
// sums are float32; probabilities and score gradients are rounded to bfloat16 before they are multiplied.
// The backward pass recomputes the probabilities from the saved log-sum-exp. Definition:
// ops/reference.py causal_attention_packed. Letters: T positions, K d_head, D = heads * K.
#include <omp.h>

#include <algorithm>
#include <vector>

#include "numeric.h"

#if defined(__AVX512BF16__) && defined(__AVX512BW__) && defined(__AVX512F__)
#include <immintrin.h>
#define WAFERGPT_BF16 1
#else
#define WAFERGPT_BF16 0
#endif

using namespace wafergpt;

#if WAFERGPT_BF16
namespace {

constexpr int64_t kBlock = 64;  // queries a block, columns a panel
constexpr int64_t kRows = 6;

inline int64_t round_up(int64_t x, int64_t unit) { return (x + unit - 1) / unit * unit; }

// B panels: [panel][depth / 2][64][2]. `pack_rows`: columns are rows of the source (scores: keys by depth K).
void pack_rows(const bf16* source, int64_t stride, int64_t n, int64_t depth, bf16* panels) {
    const int64_t padded = round_up(depth, 2);
    std::memset(panels, 0, sizeof(bf16) * round_up(n, kBlock) * padded);
    for (int64_t row = 0; row < n; ++row) {
        bf16* target = panels + row / kBlock * kBlock * padded + row % kBlock * 2;
        const bf16* in = source + row * stride;
        for (int64_t k = 0; k < depth; k += 2) std::memcpy(target + k * kBlock, in + k, 2 * sizeof(bf16));
    }
}

// `pack_depth`: the depth runs over rows of the source (values: depth over keys, columns over K).
void pack_depth(const bf16* source, int64_t stride, int64_t depth, int64_t n, bf16* panels) {
    const int64_t padded = round_up(depth, 2);
    std::memset(panels, 0, sizeof(bf16) * round_up(n, kBlock) * padded);
    for (int64_t k = 0; k < depth; k += 2) {
        const bf16 *even = source + k * stride, *odd = k + 1 < depth ? even + stride : nullptr;
        for (int64_t first = 0; first < n; first += kBlock) {
            bf16* pairs = panels + first * padded + k * kBlock;
            const int64_t count = std::min(kBlock, n - first);
            if (odd == nullptr)
                for (int64_t i = 0; i < count; ++i) pairs[2 * i] = even[first + i];
            else
                for (int64_t i = 0; i < count; ++i) {
                    pairs[2 * i] = even[first + i];
                    pairs[2 * i + 1] = odd[first + i];
                }
        }
    }
}

template <int R>
inline void tile(const bf16* a, int64_t lda, const bf16* panel, int64_t depth, float* c, int64_t ldc, bool add) {
    __m512 acc[R][4];
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r) acc[r][0] = acc[r][1] = acc[r][2] = acc[r][3] = _mm512_setzero_ps();
    for (int64_t k = 0; k < depth; k += 2) {
        const bf16* b = panel + k * kBlock;
        const __m512bh b0 = (__m512bh)_mm512_loadu_si512(b), b1 = (__m512bh)_mm512_loadu_si512(b + 32);
        const __m512bh b2 = (__m512bh)_mm512_loadu_si512(b + 64), b3 = (__m512bh)_mm512_loadu_si512(b + 96);
#pragma GCC unroll 8
        for (int r = 0; r < R; ++r) {
            int32_t pair;  // copied: an int32 read of bfloat16 memory could be moved before its writes
            std::memcpy(&pair, a + r * lda + k, sizeof pair);
            const __m512bh x = (__m512bh)_mm512_set1_epi32(pair);
            acc[r][0] = _mm512_dpbf16_ps(acc[r][0], x, b0);
            acc[r][1] = _mm512_dpbf16_ps(acc[r][1], x, b1);
            acc[r][2] = _mm512_dpbf16_ps(acc[r][2], x, b2);
            acc[r][3] = _mm512_dpbf16_ps(acc[r][3], x, b3);
        }
    }
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r) {
        float* out = c + r * ldc;
        if (add) {
            acc[r][0] = _mm512_add_ps(acc[r][0], _mm512_loadu_ps(out));
            acc[r][1] = _mm512_add_ps(acc[r][1], _mm512_loadu_ps(out + 16));
            acc[r][2] = _mm512_add_ps(acc[r][2], _mm512_loadu_ps(out + 32));
            acc[r][3] = _mm512_add_ps(acc[r][3], _mm512_loadu_ps(out + 48));
        }
        _mm512_storeu_ps(out, acc[r][0]);
        _mm512_storeu_ps(out + 16, acc[r][1]);
        _mm512_storeu_ps(out + 32, acc[r][2]);
        _mm512_storeu_ps(out + 48, acc[r][3]);
    }
}

// C[m, n] (+)= A[m, depth] . B; depth even; n counts whole panels of 64; ldc >= n.
void multiply(const bf16* a, int64_t lda, const bf16* panels, int64_t m, int64_t n, int64_t depth, float* c,
              int64_t ldc, bool add) {
    for (int64_t panel = 0; panel < n / kBlock; ++panel) {
        const bf16* b = panels + panel * kBlock * depth;
        float* out = c + panel * kBlock;
        int64_t row = 0;
        for (; row + kRows <= m; row += kRows) tile<6>(a + row * lda, lda, b, depth, out + row * ldc, ldc, add);
        switch (m - row) {
            case 5: tile<5>(a + row * lda, lda, b, depth, out + row * ldc, ldc, add); break;
            case 4: tile<4>(a + row * lda, lda, b, depth, out + row * ldc, ldc, add); break;
            case 3: tile<3>(a + row * lda, lda, b, depth, out + row * ldc, ldc, add); break;
            case 2: tile<2>(a + row * lda, lda, b, depth, out + row * ldc, ldc, add); break;
            case 1: tile<1>(a + row * lda, lda, b, depth, out + row * ldc, ldc, add); break;
            default: break;
        }
    }
}

struct Shape {
    int64_t t, heads, k;      // positions, heads, d_head
    int64_t stride;           // 3D: elements from one position's qkv to the next
    int64_t t64, k64;         // t and k rounded up to whole panels
    float scale;
};

struct Scratch {
    std::vector<bf16> q, keys, values, keys_depth, other, p, p_t, ds_t;
    std::vector<float> s, dp, o, dk, dv;
    explicit Scratch(const Shape& n)
        : q(kBlock * n.k64), keys(n.t64 * n.k64), values(n.t64 * n.k64), keys_depth(n.t64 * n.k64),
          other(kBlock * n.k64), p(kBlock * n.t64), p_t(kBlock * n.t64), ds_t(kBlock * n.t64),
          s(kBlock * n.t64), dp(kBlock * n.t64), o(kBlock * n.k64), dk(n.t64 * n.k64), dv(n.t64 * n.k64) {}
};

void forward_head(const Shape& n, const bf16* qkv, int64_t head, bf16* out, float* lse, Scratch& w) {
    const int64_t d = n.heads * n.k, depth = round_up(n.k, 2);
    const bf16 *q = qkv + head * n.k, *k = q + d, *v = q + 2 * d;
    pack_rows(k, n.stride, n.t, n.k, w.keys.data());
    pack_depth(v, n.stride, n.t, n.k, w.values.data());
    const int64_t v_depth = round_up(n.t, 2);
    const float scale = n.scale;  // local: a float behind a reference could change with every store to s
    for (int64_t begin = 0; begin < n.t; begin += kBlock) {
        const int64_t rows = std::min(kBlock, n.t - begin), seen = begin + rows, width = round_up(seen, kBlock);
        multiply(q + begin * n.stride, n.stride, w.keys.data(), rows, width, depth, w.s.data(), width, false);
        for (int64_t r = 0; r < rows; ++r) {
            float* s = w.s.data() + r * width;
            bf16* p = w.p.data() + r * width;
            const int64_t count = begin + r + 1;
            float largest = -INFINITY, total = 0.0f;
#pragma omp simd reduction(max : largest)
            for (int64_t i = 0; i < count; ++i) largest = std::max(largest, s[i]);
            const float shift = largest * scale;
            for (int64_t i = 0; i < count; ++i) s[i] = exp_fast(s[i] * scale - shift);
            for (int64_t i = 0; i < count; ++i) total += s[i];
            const float inverse = 1.0f / total;
            for (int64_t i = 0; i < count; ++i) p[i] = to_bf16(s[i] * inverse);
            std::fill(p + count, p + width, bf16{0});
            lse[begin + r] = shift + std::log(total);
        }
        for (int64_t panel = 0; panel < n.k64 / kBlock; ++panel)  // depth stops at the last visible key
            multiply(w.p.data(), width, w.values.data() + panel * kBlock * v_depth, rows, kBlock,
                     round_up(seen, 2), w.o.data() + panel * kBlock, n.k64, false);
        for (int64_t r = 0; r < rows; ++r)
            for (int64_t i = 0; i < n.k; ++i)
                out[(begin + r) * d + head * n.k + i] = to_bf16(w.o[r * n.k64 + i]);
    }
}

// source [rows, width] -> target [count, 64], rows beyond `rows` zero: 8 x 8 squares, each by three rounds of
// interleaving. width and count are multiples of 8; source has 64 rows of memory, whatever is in the last ones.
void transpose_block(const bf16* source, int64_t rows, int64_t width, int64_t count, bf16* target) {
    for (int64_t r = 0; r < kBlock; r += 8)
        for (int64_t column = 0; column < count; column += 8) {
            __m128i a[8], b[8];
            for (int i = 0; i < 8; ++i)
                a[i] = r + i < rows
                           ? _mm_loadu_si128(reinterpret_cast<const __m128i*>(source + (r + i) * width + column))
                           : _mm_setzero_si128();
#pragma GCC unroll 3
            for (int round = 0; round < 3; ++round) {
                for (int i = 0; i < 4; ++i) {
                    b[2 * i] = _mm_unpacklo_epi16(a[i], a[i + 4]);
                    b[2 * i + 1] = _mm_unpackhi_epi16(a[i], a[i + 4]);
                }
                for (int i = 0; i < 8; ++i) a[i] = b[i];
            }
            for (int i = 0; i < 8; ++i)
                _mm_storeu_si128(reinterpret_cast<__m128i*>(target + (column + i) * kBlock + r), a[i]);
        }
}

void backward_head(const Shape& n, const bf16* qkv, const bf16* out, const bf16* dout, const float* lse,
                   int64_t head, bf16* dqkv, Scratch& w) {
    const int64_t d = n.heads * n.k, depth = round_up(n.k, 2), t_depth = round_up(n.t, 2);
    const float scale = n.scale;
    const bf16 *q = qkv + head * n.k, *k = q + d, *v = q + 2 * d;
    pack_rows(k, n.stride, n.t, n.k, w.keys.data());          // for scores
    pack_rows(v, n.stride, n.t, n.k, w.values.data());        // for dP = dO V^T
    pack_depth(k, n.stride, n.t, n.k, w.keys_depth.data());   // for dQ = dS K
    std::fill(w.dk.begin(), w.dk.end(), 0.0f);
    std::fill(w.dv.begin(), w.dv.end(), 0.0f);
    for (int64_t begin = 0; begin < n.t; begin += kBlock) {
        const int64_t rows = std::min(kBlock, n.t - begin), seen = begin + rows, width = round_up(seen, kBlock);
        const bf16 *g = dout + begin * d + head * n.k, *o = out + begin * d + head * n.k;
        multiply(q + begin * n.stride, n.stride, w.keys.data(), rows, width, depth, w.s.data(), width, false);
        multiply(g, d, w.values.data(), rows, width, depth, w.dp.data(), width, false);
        for (int64_t r = 0; r < rows; ++r) {
            float *s = w.s.data() + r * width, *dp = w.dp.data() + r * width;
            bf16* p = w.p.data() + r * width;
            const int64_t count = begin + r + 1;
            const float log_sum = lse[begin + r];
            float delta = 0.0f;
            for (int64_t i = 0; i < n.k; ++i) delta += to_float(g[r * d + i]) * to_float(o[r * d + i]);
            for (int64_t i = 0; i < count; ++i) s[i] = exp_fast(s[i] * scale - log_sum);
            for (int64_t i = 0; i < count; ++i) p[i] = to_bf16(s[i]);
            for (int64_t i = 0; i < count; ++i) dp[i] = s[i] * (dp[i] - delta) * scale;
            std::fill(p + count, p + width, bf16{0});
            std::fill(dp + count, dp + width, 0.0f);
        }
        transpose_block(w.p.data(), rows, width, width, w.p_t.data());
        for (int64_t i = 0; i < rows * width; ++i) w.p[i] = to_bf16(w.dp[i]);  // now dS
        transpose_block(w.p.data(), rows, width, width, w.ds_t.data());
        for (int64_t panel = 0; panel < n.k64 / kBlock; ++panel)
            multiply(w.p.data(), width, w.keys_depth.data() + panel * kBlock * t_depth, rows, kBlock,
                     round_up(seen, 2), w.o.data() + panel * kBlock, n.k64, false);
        for (int64_t r = 0; r < rows; ++r)
            for (int64_t i = 0; i < n.k; ++i)
                dqkv[(begin + r) * n.stride + head * n.k + i] = to_bf16(w.o[r * n.k64 + i]);
        const int64_t inner = round_up(rows, 2);
        pack_depth(q + begin * n.stride, n.stride, rows, n.k, w.q.data());
        multiply(w.ds_t.data(), kBlock, w.q.data(), seen, n.k64, inner, w.dk.data(), n.k64, true);
        pack_depth(g, d, rows, n.k, w.other.data());
        multiply(w.p_t.data(), kBlock, w.other.data(), seen, n.k64, inner, w.dv.data(), n.k64, true);
    }
    for (int64_t t = 0; t < n.t; ++t)
        for (int64_t i = 0; i < n.k; ++i) {
            dqkv[t * n.stride + d + head * n.k + i] = to_bf16(w.dk[t * n.k64 + i]);
            dqkv[t * n.stride + 2 * d + head * n.k + i] = to_bf16(w.dv[t * n.k64 + i]);
        }
}

Shape shape_of(int64_t t, int64_t heads, int64_t k, float scale) {
    return {t, heads, k, 3 * heads * k, round_up(t, kBlock), round_up(k, kBlock), scale};
}

}  // namespace
#endif

extern "C" {

int wg_attention_supported() { return WAFERGPT_BF16; }

// qkv [b, t, 3 heads k] -> out [b, t, heads k], lse [b, heads, t]. k even.
void wg_attention(const bf16* qkv, bf16* out, float* lse, int64_t b, int64_t t, int64_t heads, int64_t k,
                  float scale) {
#if WAFERGPT_BF16
    const Shape n = shape_of(t, heads, k, scale);
#pragma omp parallel
    {
        Scratch scratch(n);
#pragma omp for schedule(static)
        for (int64_t task = 0; task < b * heads; ++task) {
            const int64_t batch = task / heads, head = task % heads;
            forward_head(n, qkv + batch * t * n.stride, head, out + batch * t * heads * k, lse + task * t, scratch);
        }
    }
#endif
}

void wg_attention_backward(const bf16* qkv, const bf16* out, const bf16* dout, const float* lse, bf16* dqkv,
                           int64_t b, int64_t t, int64_t heads, int64_t k, float scale) {
#if WAFERGPT_BF16
    const Shape n = shape_of(t, heads, k, scale);
#pragma omp parallel
    {
        Scratch scratch(n);
#pragma omp for schedule(static)
        for (int64_t task = 0; task < b * heads; ++task) {
            const int64_t batch = task / heads, head = task % heads, at = batch * t * heads * k;
            backward_head(n, qkv + batch * t * n.stride, out + at, dout + at, lse + task * t, head,
                          dqkv + batch * t * n.stride, scratch);
        }
    }
#endif
}

}  // extern "C"
