// A few small products and one head's attention before an instruction set is trusted with a model.
#include <math.h>
#include <string.h>

#include <vector>

#include "isa.h"
#include "pack.h"

namespace wafergpt::native {
namespace {

// Ragged everywhere: rows of two tiles and a part, a panel and a part, units of one tile and a part.
constexpr int64_t kRows = 37, kColumns = 70, kMostUnits = 21;

struct Case {
    Format format;
    int64_t k;
    std::vector<float> x, w, scales;
    std::vector<uint8_t> panels;
};

Case make_case(Format format) {
    Case c;
    c.format = format;
    c.k = kMostUnits * unit_values(format) - 1;
    uint32_t state = 12345;
    const auto next = [&] {  // values of bfloat16 of many sizes, so that their sums round
        state = state * 1664525u + 1013904223u;
        return ldexpf(static_cast<float>(static_cast<int32_t>(state >> 24) - 128), -7 - static_cast<int>(state >> 12 & 7));
    };
    c.x.resize(static_cast<size_t>(kRows * c.k));
    c.w.resize(static_cast<size_t>(kColumns * c.k));
    for (float& value : c.x) value = next();
    for (float& value : c.w) value = next();
    c.scales.resize(static_cast<size_t>(panels_of(kColumns) * kPanel));
    c.panels.resize(static_cast<size_t>(panels_of(kColumns) * panel_bytes(format, c.k)));
    pack_panels(format, c.w.data(), nullptr, kColumns, c.k, 0, panels_of(kColumns), c.panels.data(), c.scales.data());
    return c;
}

// Rows [first, last) of the case, [kRows][kColumns]; the others stay 0.
std::vector<float> product_of(const Case& c, const Kernels& kernels, int64_t first, int64_t last) {
    const int64_t stride = kernels.row_bytes(c.format, c.k), sums = units_of(kInt4, c.k);
    std::vector<uint8_t> data(static_cast<size_t>(kRows * stride));
    std::vector<float> scale(kRows), pause(kRows * kPanel), out(kRows * kColumns);
    std::vector<int32_t> row_sums(static_cast<size_t>(kRows * sums));
    Product p{};
    p.w = {c.format, kColumns, c.k, c.panels.data(), c.scales.data(), nullptr};
    p.x = {data.data(), stride, scale.data(), row_sums.data(), sums};
    p.alpha = 1.0f;
    p.out = out.data();
    p.out_stride = p.out_columns = kColumns;
    p.pause = pause.data();
    for (int64_t row = first; row < last; ++row) kernels.encode(c.format, c.x.data() + row * c.k, c.k, p.x, row);
    for (int64_t panel = 0; panel < panels_of(kColumns); ++panel) kernels.multiply(p, panel, first, last);
    return out;
}

bool same(const std::vector<float>& a, const std::vector<float>& b) {
    return memcmp(a.data(), b.data(), a.size() * sizeof(float)) == 0;
}

// Every value is one of bfloat16, so only additions round: at most k + 2 of them, each by 2^-24 of the sum of
// magnitudes.
bool near_exact(const Case& c, const std::vector<float>& found) {
    for (int64_t row = 0; row < kRows; ++row)
        for (int64_t column = 0; column < kColumns; ++column) {
            double exact = 0.0, magnitude = 0.0;
            for (int64_t i = 0; i < c.k; ++i) {
                const double term = static_cast<double>(c.x[static_cast<size_t>(row * c.k + i)]) *
                                    static_cast<double>(c.w[static_cast<size_t>(column * c.k + i)]);
                exact += term;
                magnitude += fabs(term);
            }
            const double error = fabs(static_cast<double>(found[static_cast<size_t>(row * kColumns + column)]) - exact);
            if (!(error <= static_cast<double>(c.k + 2) * 0x1p-24 * magnitude)) return false;
        }
    return true;
}

// A head of 48 over two pages and a part, in tiles of the instruction set's size or one by one, [positions][48].
constexpr int64_t kPositions = 77, kHead = 48;

std::vector<float> attention_of(const Case& c, const Kernels& kernels, int64_t most) {
    constexpr int64_t kPages = (kPositions + kPageTokens - 1) / kPageTokens;
    const int64_t bytes = 2 * keys_bytes(kBf16, kHead);
    std::vector<uint8_t> memory(static_cast<size_t>(kPages * bytes), 0xff);  // NaNs where nothing was kept
    const int32_t pages[kPages] = {2, 0, 1};
    std::vector<float> scratch(static_cast<size_t>(attention_scratch(kernels.query_rows, kPositions, kHead)));
    std::vector<float> qkv(kPositions * 3 * kHead), out(kPositions * kHead);
    for (size_t i = 0; i < qkv.size(); ++i) qkv[i] = c.x[i * 7 % c.x.size()];
    Attention a{};
    a.kv = {kBf16, memory.data(), bytes, pages, kHead, head_padded(kHead)};
    a.stride = 3 * kHead;
    a.out_stride = kHead;
    a.scale = 0.5f;
    a.scratch = scratch.data();
    for (int64_t at = 0; at < kPositions; at += a.n_rows) {
        a.n_rows = most < kPositions - at ? most : kPositions - at;
        a.position = at;
        a.q = qkv.data() + at * a.stride;
        a.out = out.data() + at * kHead;
        kernels.keep(a.kv, at, a.q + kHead, a.q + 2 * kHead, a.stride, a.n_rows);
        kernels.attend(a);
    }
    return out;
}

// Queries, weights and results are rounded to bfloat16 (2^-9) in between, on values of at most 1; scores reach
// 0.5 * 48, so that one of them moves by at most 24 * 2^-8.
bool near(const std::vector<float>& a, const std::vector<float>& b) {
    for (size_t i = 0; i < a.size(); ++i)
        if (!(fabsf(a[i] - b[i]) <= 2.0f * 24.0f * 0x1p-8f)) return false;
    return true;
}

}  // namespace

const char* wrong_products(const Kernels& kernels, const Kernels& trusted) {
    const Case bytes = make_case(kInt8), halves = make_case(kBf16);
    if (!same(product_of(bytes, kernels, 0, kRows), product_of(bytes, trusted, 0, kRows)))
        return "its int8 products are wrong";
    const std::vector<float> all = product_of(halves, kernels, 0, kRows);
    if (!near_exact(halves, all)) return "its bfloat16 products are wrong";
    std::vector<float> one = product_of(halves, kernels, 20, 21);
    memcpy(one.data(), all.data(), 20 * kColumns * sizeof(float));
    memcpy(one.data() + 21 * kColumns, all.data() + 21 * kColumns, (kRows - 21) * kColumns * sizeof(float));
    if (!same(one, all)) return "its bfloat16 rows depend on how many there are";
    const std::vector<float> tiles = attention_of(halves, kernels, kernels.query_rows);
    if (!near(tiles, attention_of(halves, trusted, 1))) return "its attention is wrong";
    return same(tiles, attention_of(halves, kernels, 1)) ? "" : "its attention depends on how many queries there are";
}

}  // namespace wafergpt::native
