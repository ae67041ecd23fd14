// The whole forward pass of one mixed step: parts of prompts and single tokens of many sequences together.
#pragma once
#include <atomic>
#include <memory>
#include <new>
#include <vector>

#include "kernel.h"
#include "threads.h"

namespace wafergpt::native {

// Vectors that begin where a line of the caches does: what crosses two lines costs twice.
template <class T> struct LineAllocator {
    using value_type = T;
    static constexpr std::align_val_t kLine{64};
    LineAllocator() = default;
    template <class U> LineAllocator(const LineAllocator<U>&) {}
    T* allocate(size_t n) { return static_cast<T*>(::operator new(n * sizeof(T), kLine)); }
    void deallocate(T* memory, size_t) { ::operator delete(memory, kLine); }
    template <class U> bool operator==(const LineAllocator<U>&) const { return true; }
    template <class U> bool operator!=(const LineAllocator<U>&) const { return false; }
};
using Floats = std::vector<float, LineAllocator<float>>;

struct Layer {
    const float *ln_1_weight, *ln_1_bias, *ln_2_weight, *ln_2_bias;
    Matrix qkv, attention_out, fc, ffn_out;
};

struct Weights {
    int64_t d_model, n_layers, n_heads, d_ffn, vocab_size, max_seq_len;
    Finish activation;  // kGeluErf or kGeluTanh
    float eps, embedding_multiplier, attention_scale, logit_multiplier;
    Matrix wte;        // embedding and tied head
    const float* wpe;  // [max_seq_len, d_model]
    const float *ln_f_weight, *ln_f_bias;
    std::vector<Layer> layers;
};

// Keys and values of every sequence: [n_pages][n_layers][n_heads][keys, values].
struct Pages {
    Format format;
    uint8_t* data;
    int64_t n_pages;
};

struct Chunk {
    const int32_t* token_ids;
    const int32_t* pages;  // of the sequence, enough for start + n_tokens positions
    int64_t n_tokens;
    int64_t start;     // positions that the pages hold already
    int64_t n_logits;  // for the last so many of the chunk's positions
    int64_t want_hidden;
};

inline int64_t page_bytes(const Weights& w, Format format) {
    return w.n_layers * w.n_heads * 2 * keys_bytes(format, w.d_model / w.n_heads);
}

class Forward {
  public:
    Forward(Weights weights, Pages pages, const Kernels* kernels, int n_threads, std::vector<int> cpus);
    // logits [sum of n_logits][vocab_size], hidden [sum of wanted tokens][d_model], in the order of the chunks.
    void run(const Chunk* chunks, int64_t n_chunks, float* logits, float* hidden);

  private:
    // A chunk's positions within the rows that are computed together.
    struct Segment {
        const int32_t* pages;
        int64_t row, n_rows, position;
    };
    struct Tile {
        int64_t segment, first;  // queries of a segment from `first` on
    };
    struct alignas(64) Counter {
        std::atomic<int64_t> taken{0};
    };
    struct Slot {
        Rows rows;
        std::vector<uint8_t, LineAllocator<uint8_t>> data;
        std::vector<float> scale;
        std::vector<int32_t> sums;
    };

    void add_rows(const Chunk& chunk, int64_t first, int64_t n_rows);
    void flush();
    void clear();
    void reserve(int64_t n_rows);
    void reserve_slot(Slot& slot, int64_t n_rows);
    void step(int thread);
    void embed(int thread);
    void attention(int thread, int64_t layer);
    void keep(int thread, int64_t layer);
    void fetch_keys(int64_t unit, int64_t layer) const;
    void keep_head(const Segment& segment, int64_t layer, int64_t head);
    void head(int thread);
    HeadPages head_pages(const Segment& segment, int64_t layer, int64_t head) const;
    template <class Source> Rows encode(int thread, Format format, int64_t k, int64_t n_rows, Source source);
    Rows encode_norm(int thread, Format format, const float* weight, const float* bias);
    Rows encode_plain(int thread, Format format, const float* x, int64_t stride, int64_t k);
    void product(int thread, const Matrix& w, const Rows& x, int64_t n_rows, Product how);
    template <class Task> void share(int thread, int64_t n_units, int64_t grain, Task task);
    void fetch_ahead(int thread, const Matrix& w) const;
    // Of rows of floats. Not a multiple of 1 KiB, which would send all rows to a few sets of the caches.
    static int64_t stride(int64_t width) { return padded(width) + (padded(width) % 256 == 0 ? 16 : 0); }
    static int64_t padded(int64_t width) { return round_up(width, kPanel); }

    Weights w_;
    Pages pages_;
    const Kernels* kernels_;
    Pool pool_;
    std::vector<Slot> slots_;  // one per thread, the last one shared
    std::vector<Floats> pauses_, scratch_, normal_;
    std::unique_ptr<Counter[]> counters_;  // [phases of a step][threads]: units taken of each thread's share
    std::vector<int64_t> phase_;           // per thread: phases it has been through

    int64_t capacity_ = 0;  // rows that the buffers hold
    Floats x_, qkv_, mixed_, ffn_;

    // The rows of this step.
    int64_t n_rows_ = 0;
    std::vector<int32_t> tokens_;
    std::vector<int64_t> positions_;
    std::vector<Segment> segments_;
    std::vector<Tile> tiles_;
    bool one_tile_each() const { return tiles_.size() == segments_.size(); }
    std::vector<int64_t> logit_rows_, hidden_rows_;
    float *logits_ = nullptr, *hidden_ = nullptr;
};

}  // namespace wafergpt::native
