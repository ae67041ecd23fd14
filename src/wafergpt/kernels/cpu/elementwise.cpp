// Fused elementwise and row-wise training kernels: LayerNorm, GELU, cross-entropy, AdamW, norms.
// Plain C ABI; rows are split statically over OpenMP threads, so a result depends on the thread count
// alone. Definitions: ops/reference.py. Shapes: N rows, D width, V vocabulary.
#include <omp.h>

#include <algorithm>
#include <vector>

#include "numeric.h"

using namespace wafergpt;

namespace {

template <typename Out>
void layer_norm_rows(const float* x, const float* weight, const float* bias, Out* y, float* mean, float* rstd,
                     int64_t n, int64_t d, float eps) {
#pragma omp parallel for schedule(static)
    for (int64_t row = 0; row < n; ++row) {
        const float* in = x + row * d;
        Out* out = y + row * d;
        float sum = 0.0f;
        for (int64_t i = 0; i < d; ++i) sum += in[i];
        const float mu = sum / d;
        float squares = 0.0f;
        for (int64_t i = 0; i < d; ++i) squares += (in[i] - mu) * (in[i] - mu);
        const float scale = 1.0f / std::sqrt(squares / d + eps);
        for (int64_t i = 0; i < d; ++i) store(out + i, (in[i] - mu) * scale * weight[i] + bias[i]);
        mean[row] = mu;
        rstd[row] = scale;
    }
}

template <typename Grad>
void layer_norm_backward_rows(const Grad* dy, const float* x, const float* weight, const float* mean,
                              const float* rstd, float* dx, float* dweight, float* dbias, int64_t n, int64_t d) {
    const int n_threads = omp_get_max_threads();
    std::vector<float> partial(static_cast<size_t>(n_threads) * 2 * d, 0.0f);
#pragma omp parallel
    {
        float* dw = partial.data() + static_cast<size_t>(omp_get_thread_num()) * 2 * d;
        float* db = dw + d;
#pragma omp for schedule(static)
        for (int64_t row = 0; row < n; ++row) {
            const float* in = x + row * d;
            const Grad* g = dy + row * d;
            const float mu = mean[row], scale = rstd[row];
            float sum_g = 0.0f, sum_gx = 0.0f;
            for (int64_t i = 0; i < d; ++i) {
                const float normed = (in[i] - mu) * scale, grad = to_float(g[i]);
                dw[i] += grad * normed;
                db[i] += grad;
                sum_g += grad * weight[i];
                sum_gx += grad * weight[i] * normed;
            }
            const float mean_g = sum_g / d, mean_gx = sum_gx / d;
            float* out = dx + row * d;
            for (int64_t i = 0; i < d; ++i) {
                const float normed = (in[i] - mu) * scale;
                out[i] = scale * (to_float(g[i]) * weight[i] - mean_g - normed * mean_gx);
            }
        }
    }
    for (int64_t i = 0; i < d; ++i) {
        float w = 0.0f, b = 0.0f;
        for (int thread = 0; thread < n_threads; ++thread) {
            w += partial[(static_cast<size_t>(thread) * 2) * d + i];
            b += partial[(static_cast<size_t>(thread) * 2 + 1) * d + i];
        }
        dweight[i] = w;
        dbias[i] = b;
    }
}

template <GeluParts (*gelu)(float)>
void gelu_block(const bf16* x, bf16* y, int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) y[i] = to_bf16(gelu(to_float(x[i])).value);
}

template <GeluParts (*gelu)(float)>
void gelu_backward_block(const bf16* dy, const bf16* x, bf16* dx, int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) dx[i] = to_bf16(to_float(dy[i]) * gelu(to_float(x[i])).slope);
}

constexpr int64_t kBlock = 1 << 14;  // elements a thread takes at a time; fits L1 with its result

template <typename Grad>
void adamw_block(float* master, const Grad* grad, float* m, float* v, int64_t begin, int64_t end,
                 float keep, float step_size, float beta1, float beta2, float root_correction, float eps,
                 float grad_scale) {
    for (int64_t i = begin; i < end; ++i) {
        const float g = to_float(grad[i]) * grad_scale;
        m[i] = beta1 * m[i] + (1.0f - beta1) * g;
        v[i] = beta2 * v[i] + (1.0f - beta2) * g * g;
        master[i] = master[i] * keep - step_size * m[i] / (std::sqrt(v[i]) * root_correction + eps);
    }
}

template <typename T>
double sum_of_squares(const T* x, int64_t count) {
    const int64_t n_blocks = (count + kBlock - 1) / kBlock;
    std::vector<double> partial(n_blocks);
#pragma omp parallel for schedule(static)
    for (int64_t block = 0; block < n_blocks; ++block) {
        float sum = 0.0f;
        for (int64_t i = block * kBlock; i < std::min(count, (block + 1) * kBlock); ++i)
            sum += to_float(x[i]) * to_float(x[i]);
        partial[block] = sum;
    }
    double total = 0.0;
    for (double part : partial) total += part;
    return total;
}

}  // namespace

extern "C" {

void wg_layer_norm_bf16(const float* x, const float* weight, const float* bias, bf16* y, float* mean, float* rstd,
                        int64_t n, int64_t d, float eps) {
    layer_norm_rows(x, weight, bias, y, mean, rstd, n, d, eps);
}

void wg_layer_norm_backward_bf16(const bf16* dy, const float* x, const float* weight, const float* mean,
                                 const float* rstd, float* dx, float* dweight, float* dbias, int64_t n, int64_t d) {
    layer_norm_backward_rows(dy, x, weight, mean, rstd, dx, dweight, dbias, n, d);
}

void wg_gelu_bf16(const bf16* x, bf16* y, int64_t count, int tanh_form) {
#pragma omp parallel for schedule(static)
    for (int64_t begin = 0; begin < count; begin += kBlock) {
        const int64_t end = std::min(count, begin + kBlock);
        tanh_form ? gelu_block<gelu_tanh>(x, y, begin, end) : gelu_block<gelu_erf>(x, y, begin, end);
    }
}

void wg_gelu_backward_bf16(const bf16* dy, const bf16* x, bf16* dx, int64_t count, int tanh_form) {
#pragma omp parallel for schedule(static)
    for (int64_t begin = 0; begin < count; begin += kBlock) {
        const int64_t end = std::min(count, begin + kBlock);
        tanh_form ? gelu_backward_block<gelu_tanh>(dy, x, dx, begin, end)
                  : gelu_backward_block<gelu_erf>(dy, x, dx, begin, end);
    }
}

// Loss of each row, and logits overwritten by d(sum of losses)/d(unscaled logits), i.e. times `scale`.
// labels < 0 are ignored: loss 0, gradient 0. The true logit is scale * logits.
void wg_cross_entropy_bf16(bf16* logits, const int64_t* labels, float* losses, int64_t n, int64_t v, float scale) {
#pragma omp parallel for schedule(static)
    for (int64_t row = 0; row < n; ++row) {
        bf16* z = logits + row * v;
        const int64_t label = labels[row];
        if (label < 0) {
            std::fill(z, z + v, bf16{0});
            losses[row] = 0.0f;
            continue;
        }
        const float target = to_float(z[label]) * scale;
        float largest = -INFINITY;
#pragma omp simd reduction(max : largest)
        for (int64_t i = 0; i < v; ++i) largest = std::max(largest, to_float(z[i]));
        const float shift = largest * scale;
        float total = 0.0f;
        for (int64_t i = 0; i < v; ++i) total += exp_fast(to_float(z[i]) * scale - shift);
        losses[row] = std::log(total) + shift - target;
        const float inverse = scale / total;
        for (int64_t i = 0; i < v; ++i) z[i] = to_bf16(exp_fast(to_float(z[i]) * scale - shift) * inverse);
        const float at_label = std::exp(target - shift) * inverse - scale;
        z[label] = to_bf16(at_label);
    }
}

// x[row, labels[row]] += value for labels >= 0; x [n, v].
void wg_add_at_labels_bf16(bf16* x, const int64_t* labels, int64_t n, int64_t v, float value) {
    for (int64_t row = 0; row < n; ++row)
        if (labels[row] >= 0) {
            bf16* at = x + row * v + labels[row];
            *at = to_bf16(to_float(*at) + value);
        }
}

// grad_is_bf16 selects the type behind `grad`.
void wg_adamw(float* master, const void* grad, int grad_is_bf16, float* m, float* v, int64_t count,
              float keep, float step_size, float beta1, float beta2, float root_correction, float eps,
              float grad_scale) {
#pragma omp parallel for schedule(static)
    for (int64_t begin = 0; begin < count; begin += kBlock) {
        const int64_t end = std::min(count, begin + kBlock);
        if (grad_is_bf16)
            adamw_block(master, static_cast<const bf16*>(grad), m, v, begin, end, keep, step_size, beta1,
                        beta2, root_correction, eps, grad_scale);
        else
            adamw_block(master, static_cast<const float*>(grad), m, v, begin, end, keep, step_size, beta1,
                        beta2, root_correction, eps, grad_scale);
    }
}

double wg_sum_of_squares(const void* x, int is_bf16, int64_t count) {
    return is_bf16 ? sum_of_squares(static_cast<const bf16*>(x), count)
                   : sum_of_squares(static_cast<const float*>(x), count);
}

// Column sums in float32 of a [n, d] bfloat16 matrix: the gradient of a bias.
void wg_column_sum_bf16(const bf16* x, float* sums, int64_t n, int64_t d) {
    const int n_threads = omp_get_max_threads();
    std::vector<float> partial(static_cast<size_t>(n_threads) * d, 0.0f);
#pragma omp parallel
    {
        float* mine = partial.data() + static_cast<size_t>(omp_get_thread_num()) * d;
#pragma omp for schedule(static)
        for (int64_t row = 0; row < n; ++row)
            for (int64_t i = 0; i < d; ++i) mine[i] += to_float(x[row * d + i]);
    }
    for (int64_t i = 0; i < d; ++i) {
        float sum = 0.0f;
        for (int thread = 0; thread < n_threads; ++thread) sum += partial[static_cast<size_t>(thread) * d + i];
        sums[i] = sum;
    }
}

// accumulator += x, bfloat16 into float32: micro-batch gradients.
void wg_accumulate_bf16(float* accumulator, const bf16* x, int64_t count) {
#pragma omp parallel for schedule(static)
    for (int64_t i = 0; i < count; ++i) accumulator[i] += to_float(x[i]);
}

}  // extern "C"
