// Single kernels for the tests (tests/native_lab.py), each through the same table as the forward pass.
#include <string.h>

#include <numeric>
#include <vector>

#include "isa.h"

using namespace wafergpt::native;

#pragma GCC visibility push(default)
extern "C" {

struct wn_product {
    int64_t format, finish, n, k, n_rows;
    float alpha;
    const uint8_t* panels;
    const float *scales, *bias, *x;  // x [n_rows, k]
    float* out;                      // [n_rows, n]; read too when the finish adds to it
};

// Rows [first, last) of the product, made ready and multiplied as one call of the forward pass would.
void wn_probe_product(const char* isa, const wn_product* p, int64_t first, int64_t last) {
    const Kernels* kernels = find_isa(isa)->kernels();
    const Format format = static_cast<Format>(p->format);
    const int64_t rows = last - first, stride = kernels->row_bytes(format, p->k), sums = units_of(kInt4, p->k);
    std::vector<uint8_t> data(static_cast<size_t>(rows * stride));
    std::vector<float> scale(static_cast<size_t>(rows)), pause(static_cast<size_t>(rows * kPanel));
    std::vector<int32_t> row_sums(static_cast<size_t>(rows * sums));
    Product product{};
    product.w = {format, p->n, p->k, p->panels, p->scales, p->bias};
    product.x = {data.data(), stride, scale.data(), row_sums.data(), sums};
    product.finish = static_cast<Finish>(p->finish);
    product.alpha = p->alpha;
    product.out = p->out + first * p->n;
    product.out_stride = product.out_columns = p->n;
    product.pause = pause.data();
    for (int64_t row = 0; row < rows; ++row) kernels->encode(format, p->x + (first + row) * p->k, p->k, product.x, row);
    for (int64_t panel = 0; panel < panels_of(p->n); ++panel) kernels->multiply(product, panel, 0, rows);
}

// What the check that precedes the use of AMX says of an instruction set's kernels.
const char* wn_probe_wrong_products(const char* isa) {
    return wrong_products(*find_isa(isa)->kernels(), *kernels_scalar());
}

// 1 if the library holds the kernels, whether or not they run here.
int wn_probe_has(const char* isa) { return find_isa(isa)->kernels != nullptr; }

void wn_probe_layer_norm(const char* isa, const float* x, const float* weight, const float* bias, float eps, float* y,
                         int64_t n_rows, int64_t d) {
    const Kernels* kernels = find_isa(isa)->kernels();
    for (int64_t row = 0; row < n_rows; ++row) kernels->layer_norm(x + row * d, weight, bias, eps, y + row * d, d);
}

struct wn_attention {
    int64_t kv_format, n_positions, d_head;
    float scale;
    const float *q, *k, *v;  // [n_positions, d_head]
    float* out;              // [n_positions, d_head]
};

// One head over a sequence whose pages lie in reverse; pages start full of NaNs, as released ones might be.
void wn_probe_attention(const char* isa, const wn_attention* p, int64_t n_first) {
    const Kernels* kernels = find_isa(isa)->kernels();
    const Format format = static_cast<Format>(p->kv_format);
    const int64_t n_pages = (p->n_positions + kPageTokens - 1) / kPageTokens, bytes = 2 * keys_bytes(format, p->d_head);
    std::vector<uint8_t> memory(static_cast<size_t>(n_pages * bytes), 0xff);
    std::vector<int32_t> pages(static_cast<size_t>(n_pages));
    std::iota(pages.rbegin(), pages.rend(), 0);
    std::vector<float> scratch(static_cast<size_t>(attention_scratch(kernels->query_rows, p->n_positions, p->d_head)));
    Attention a{};
    a.kv = {format, memory.data(), bytes, pages.data(), p->d_head, head_padded(p->d_head)};
    a.stride = a.out_stride = p->d_head;
    a.scale = p->scale;
    a.scratch = scratch.data();
    // Some positions one by one, as decoding does, then the rest in tiles, as a prompt goes.
    for (int64_t at = 0; at < p->n_positions; at += a.n_rows) {
        a.n_rows = at < n_first ? 1 : kernels->query_rows < p->n_positions - at ? kernels->query_rows : p->n_positions - at;
        kernels->keep(a.kv, at, p->k + at * p->d_head, p->v + at * p->d_head, p->d_head, a.n_rows);
        a.position = at;
        a.q = p->q + at * p->d_head;
        a.out = p->out + at * p->d_head;
        kernels->attend(a);
    }
}
}
#pragma GCC visibility pop
