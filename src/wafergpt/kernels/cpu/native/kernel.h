// What the forward pass asks of an instruction set: one table of functions, filled once per ISA.
//
// Every product is C[row, n] = x[row, :] . W[n, :]. W is packed in panels of 64 columns, k in units:
//   f32   unit 1 value:   [64] float                              256 bytes
//   bf16  unit 2 values:  [64][2] bfloat16                        256 bytes
//   int8  unit 4 values:  [64][4] unsigned bytes (value + 128)    256 bytes, one scale a column
//   int4  unit 32 values: [64] bfloat16 scales, then [4][64][4] bytes: the low nibbles hold values 0..3 of
//         an octet, the high ones 4..7, each value + 8            1152 bytes
// A column's sum runs through its units in order, in one lane, however many rows there are: the result of a
// row depends on nothing but the row. Sums may pause in memory between passes, which does not round.
#pragma once
#include <stdint.h>

namespace wafergpt::native {

enum Format : int32_t { kF32 = 0, kBf16 = 1, kInt8 = 2, kInt4 = 3 };
enum Finish : int32_t { kStore = 0, kGeluErf = 1, kGeluTanh = 2, kAddTo = 3 };

constexpr int64_t kPanel = 64;       // columns in a panel
constexpr int64_t kPageTokens = 32;  // positions in a page of keys and values
constexpr int64_t kGroup = 32;       // values of int4 that share a scale

static inline constexpr int64_t round_up(int64_t value, int64_t to) { return (value + to - 1) / to * to; }
static inline constexpr int64_t unit_values(Format f) { return f == kF32 ? 1 : f == kBf16 ? 2 : f == kInt8 ? 4 : kGroup; }
static inline constexpr int64_t unit_bytes(Format f) { return f == kInt4 ? kPanel * 2 + kPanel * kGroup / 2 : kPanel * 4; }
static inline constexpr int64_t units_of(Format f, int64_t k) { return (k + unit_values(f) - 1) / unit_values(f); }
static inline constexpr int64_t panel_bytes(Format f, int64_t k) { return units_of(f, k) * unit_bytes(f); }
static inline constexpr int64_t panels_of(int64_t n) { return (n + kPanel - 1) / kPanel; }

struct Matrix {
    Format format;
    int64_t n, k;
    const uint8_t* panels;
    const float* scales;  // [panels * 64], int8 only
    const float* bias;    // [panels * 64] or null
};

// Rows made ready for products of one format. `sums` are of the quantised values: one per row for int8,
// one per group for int4; they take off the excess of the unsigned weights.
struct Rows {
    uint8_t* data;
    int64_t stride;  // bytes
    float* scale;    // [rows]
    int32_t* sums;   // [rows][sums_stride]
    int64_t sums_stride;
};

struct Product {
    Matrix w;
    Rows x;
    Finish finish;
    float alpha;          // on the sums, before the bias
    float* out;           // [rows][out_stride]
    int64_t out_stride;   // floats
    int64_t out_columns;  // how many may be written
    float* pause;         // [rows of one call][64] sums between passes over k
};

// Keys and values of one head in a page. Keys lie [d / unit][32 positions][unit], values
// [32 / unit positions][d_padded][unit], unit 1 for float32 and 2 for bfloat16, so that scores and mixtures
// are the same kind of product as the layers'.
struct HeadPages {
    Format format;         // kF32 or kBf16
    uint8_t* base;         // start of page 0, layer and head applied: keys, then values
    int64_t page_stride;   // bytes
    const int32_t* pages;  // page numbers of the sequence, in order
    int64_t d_head, d_padded;
};

static inline constexpr int64_t kv_value_bytes(Format f) { return f == kF32 ? 4 : 2; }
static inline constexpr int64_t head_padded(int64_t d_head) { return round_up(d_head, 16); }
static inline constexpr int64_t keys_bytes(Format f, int64_t d_head) {
    return head_padded(d_head) * kPageTokens * kv_value_bytes(f);
}

// Some consecutive queries of one head of one sequence.
struct Attention {
    HeadPages kv;
    const float* q;  // [n_rows][stride]
    float* out;      // [n_rows][out_stride]
    int64_t stride, out_stride;
    int64_t n_rows;    // at most Kernels::query_rows
    int64_t position;  // of the first query; it sees the keys 0 .. position
    float scale;
    float* scratch;  // attention_scratch(...) floats
};

struct Kernels {
    const char* name;
    int64_t query_rows;  // the most queries of one `attend`
    int64_t row_block;   // the most rows of one `multiply`
    // y = (x - mean) / sqrt(variance + eps) * weight + bias over d values
    void (*layer_norm)(const float* x, const float* weight, const float* bias, float eps, float* y, int64_t d);
    // Bytes of a row of k values made ready for `format`.
    int64_t (*row_bytes)(Format format, int64_t k);
    // x [k] -> row `row` of `rows`
    void (*encode)(Format format, const float* x, int64_t k, const Rows& rows, int64_t row);
    // Rows [first, last) times one panel.
    void (*multiply)(const Product& product, int64_t panel, int64_t first, int64_t last);
    // Keys and values [n][stride] of one head, of consecutive positions, into their pages.
    void (*keep)(const HeadPages& kv, int64_t position, const float* key, const float* value, int64_t stride, int64_t n);
    void (*attend)(const Attention& attention);
};

static inline constexpr int64_t attention_scratch(int64_t query_rows, int64_t max_seq_len, int64_t d_head) {
    const int64_t keys = round_up(max_seq_len, kPageTokens), d = head_padded(d_head);
    return query_rows * (2 * keys + 2 * d + 128) + 64;
}

const Kernels* kernels_scalar();
const Kernels* kernels_avx2();
const Kernels* kernels_avx512_vnni();
const Kernels* kernels_avx512();

}  // namespace wafergpt::native
