#include "forward.h"

#include <string.h>

#include <algorithm>

#include "pack.h"

namespace wafergpt::native {
namespace {

constexpr int64_t kMostRows = 512;  // computed together: longer prompts go in parts, which changes no bit
// Up to so many rows every thread makes ready for itself: it costs less than waiting for each other.
constexpr int64_t kRedundantRows = 4;
constexpr int64_t kKeepTogether = 16;  // rows whose keys and values go into the pages, head after head
constexpr int64_t kPhasesPerLayer = 5, kOtherPhases = 1;  // those whose work is shared by `share`
constexpr int64_t kAheadBytes = 96 * 1024;                 // of a thread's next weights, while it waits

// A row that another core may have written, while the one before it is worked on.
void fetch_row(const float* x, int64_t n) {
    for (int64_t i = 0; i < n; i += 16) __builtin_prefetch(x + i);
}

}  // namespace

Forward::Forward(Weights weights, Pages pages, const Kernels* kernels, int n_threads, std::vector<int> cpus)
    : w_(std::move(weights)), pages_(pages), kernels_(kernels), pool_(n_threads, std::move(cpus)) {
    const size_t threads = static_cast<size_t>(n_threads);
    slots_.resize(threads + 1);
    for (size_t i = 0; i < threads; ++i) reserve_slot(slots_[i], kRedundantRows);
    pauses_.assign(threads, Floats(static_cast<size_t>(kernels_->row_block * kPanel)));
    normal_.assign(threads, Floats(static_cast<size_t>(stride(w_.d_model))));
    const int64_t scratch = attention_scratch(kernels_->query_rows, w_.max_seq_len, w_.d_model / w_.n_heads);
    scratch_.assign(threads, Floats(static_cast<size_t>(scratch)));
    counters_.reset(new Counter[static_cast<size_t>(w_.n_layers * kPhasesPerLayer + kOtherPhases) * threads]);
    phase_.resize(threads);
}

void Forward::reserve_slot(Slot& slot, int64_t n_rows) {
    int64_t bytes = 0, sums = 1;
    for (const Matrix* m : {&w_.layers[0].qkv, &w_.layers[0].attention_out, &w_.layers[0].fc, &w_.layers[0].ffn_out, &w_.wte}) {
        bytes = std::max(bytes, kernels_->row_bytes(m->format, m->k));
        sums = std::max(sums, units_of(kInt4, m->k));
    }
    slot.data.resize(static_cast<size_t>(n_rows * bytes) + 64);
    slot.scale.resize(static_cast<size_t>(n_rows));
    slot.sums.resize(static_cast<size_t>(n_rows * sums));
    slot.rows = {slot.data.data(), bytes, slot.scale.data(), slot.sums.data(), sums};
}

void Forward::reserve(int64_t n_rows) {
    if (n_rows <= capacity_) return;
    const size_t rows = static_cast<size_t>(n_rows);
    x_.resize(rows * static_cast<size_t>(stride(w_.d_model)));
    mixed_.resize(x_.size());
    qkv_.resize(rows * static_cast<size_t>(stride(3 * w_.d_model)));
    ffn_.resize(rows * static_cast<size_t>(stride(w_.d_ffn)));
    reserve_slot(slots_.back(), n_rows);
    capacity_ = n_rows;
}

void Forward::run(const Chunk* chunks, int64_t n_chunks, float* logits, float* hidden) {
    clear();
    logits_ = logits;
    hidden_ = hidden;
    for (int64_t c = 0; c < n_chunks; ++c) {
        for (int64_t first = 0; first < chunks[c].n_tokens;) {
            const int64_t n = std::min(chunks[c].n_tokens - first, kMostRows - n_rows_);
            if (n == 0) {
                flush();
                continue;
            }
            add_rows(chunks[c], first, n);
            first += n;
        }
    }
    flush();
}

void Forward::add_rows(const Chunk& chunk, int64_t first, int64_t n_rows) {
    segments_.push_back({chunk.pages, n_rows_, n_rows, chunk.start + first});
    for (int64_t i = 0; i < n_rows; ++i) {
        const int64_t at = first + i;
        tokens_.push_back(chunk.token_ids[at]);
        positions_.push_back(chunk.start + at);
        if (at >= chunk.n_tokens - chunk.n_logits) logit_rows_.push_back(n_rows_ + i);
        if (chunk.want_hidden) hidden_rows_.push_back(n_rows_ + i);
    }
    for (int64_t i = 0; i < n_rows; i += kernels_->query_rows)
        tiles_.push_back({static_cast<int64_t>(segments_.size()) - 1, i});
    n_rows_ += n_rows;
}

void Forward::clear() {
    n_rows_ = 0;
    tokens_.clear();
    positions_.clear();
    segments_.clear();
    tiles_.clear();
    logit_rows_.clear();
    hidden_rows_.clear();
}

void Forward::flush() {
    if (n_rows_ == 0) return;
    reserve(n_rows_);
    const int64_t n_counters = (w_.n_layers * kPhasesPerLayer + kOtherPhases) * pool_.size();
    for (int64_t i = 0; i < n_counters; ++i) counters_[static_cast<size_t>(i)].taken = 0;
    std::fill(phase_.begin(), phase_.end(), 0);
    pool_.run([](void* self, int thread) { static_cast<Forward*>(self)->step(thread); }, this);
    logits_ += static_cast<int64_t>(logit_rows_.size()) * w_.vocab_size;
    hidden_ += static_cast<int64_t>(hidden_rows_.size()) * w_.d_model;
    clear();
}

// `task(unit)` for every unit, each once. A thread has a share of its own, the same at every step, so that what
// it needs is in its caches' neighbourhood; who is done early helps the others with theirs.
template <class Task> void Forward::share(int thread, int64_t n_units, int64_t grain, Task task) {
    const int64_t threads = pool_.size();
    Counter* counters = counters_.get() + phase_[static_cast<size_t>(thread)]++ * threads;
    for (int64_t i = 0; i < threads; ++i) {
        const int64_t owner = (thread + i) % threads;
        const int64_t begin = n_units * owner / threads, end = n_units * (owner + 1) / threads;
        for (;;) {
            const int64_t first = begin + counters[owner].taken.fetch_add(grain, std::memory_order_relaxed);
            if (first >= end) break;
            for (int64_t unit = first; unit < std::min(end, first + grain); ++unit) task(unit);
        }
    }
}

// The memory has nothing to do while few rows are normalised or attended: it brings the next weights.
void Forward::fetch_ahead(int thread, const Matrix& w) const {
    if (n_rows_ > kRedundantRows) return;
    const uint8_t* begin = w.panels + panels_of(w.n) * thread / pool_.size() * panel_bytes(w.format, w.k);
    const int64_t bytes = std::min(kAheadBytes, panels_of(w.n) / pool_.size() * panel_bytes(w.format, w.k));
    for (int64_t at = 0; at < bytes; at += 64) __builtin_prefetch(begin + at, 0, 2);
}

void Forward::step(int thread) {
    embed(thread);
    pool_.barrier();
    const int64_t d = w_.d_model, width = stride(d);
    for (int64_t l = 0; l < w_.n_layers; ++l) {
        const Layer& layer = w_.layers[static_cast<size_t>(l)];
        Product how{};
        how.alpha = 1.0f;

        const Rows normal = encode_norm(thread, layer.qkv.format, layer.ln_1_weight, layer.ln_1_bias);
        how.finish = kStore;
        how.out = qkv_.data();
        how.out_stride = stride(3 * d);
        how.out_columns = padded(3 * d);
        product(thread, layer.qkv, normal, n_rows_, how);
        pool_.barrier();
        if (!one_tile_each()) {
            keep(thread, l);
            pool_.barrier();
        }
        fetch_ahead(thread, layer.attention_out);
        attention(thread, l);
        pool_.barrier();

        const Rows mixed = encode_plain(thread, layer.attention_out.format, mixed_.data(), width, d);
        how.finish = kAddTo;
        how.out = x_.data();
        how.out_stride = width;
        how.out_columns = padded(d);
        product(thread, layer.attention_out, mixed, n_rows_, how);
        fetch_ahead(thread, layer.fc);
        pool_.barrier();

        const Rows second = encode_norm(thread, layer.fc.format, layer.ln_2_weight, layer.ln_2_bias);
        how.finish = w_.activation;
        how.out = ffn_.data();
        how.out_stride = stride(w_.d_ffn);
        how.out_columns = padded(w_.d_ffn);
        product(thread, layer.fc, second, n_rows_, how);
        fetch_ahead(thread, layer.ffn_out);
        pool_.barrier();

        const Rows active = encode_plain(thread, layer.ffn_out.format, ffn_.data(), stride(w_.d_ffn), w_.d_ffn);
        how.finish = kAddTo;
        how.out = x_.data();
        how.out_stride = width;
        how.out_columns = padded(d);
        product(thread, layer.ffn_out, active, n_rows_, how);
        fetch_ahead(thread, l + 1 < w_.n_layers ? w_.layers[static_cast<size_t>(l) + 1].qkv : w_.wte);
        pool_.barrier();
    }
    head(thread);
}

void Forward::embed(int thread) {
    const int64_t threads = pool_.size(), d = w_.d_model;
    for (int64_t row = n_rows_ * thread / threads; row < n_rows_ * (thread + 1) / threads; ++row) {
        float* x = x_.data() + row * stride(d);
        const float* position = w_.wpe + positions_[static_cast<size_t>(row)] * d;
        unpack_row(w_.wte, tokens_[static_cast<size_t>(row)], x);
        for (int64_t i = 0; i < d; ++i) x[i] = (x[i] + position[i]) * w_.embedding_multiplier;
    }
}

// Rows made ready for `format`: `source(row)` gives row `row` as float32 [k]. With few rows each thread has its
// own; with many they share the work and wait.
template <class Source>
Rows Forward::encode(int thread, Format format, int64_t k, int64_t n_rows, Source source) {
    const bool alone = n_rows <= kRedundantRows;
    Rows rows = (alone ? slots_[static_cast<size_t>(thread)] : slots_.back()).rows;
    rows.stride = kernels_->row_bytes(format, k);
    const int64_t threads = alone ? 1 : pool_.size(), mine = alone ? 0 : thread;
    for (int64_t row = n_rows * mine / threads; row < n_rows * (mine + 1) / threads; ++row)
        kernels_->encode(format, source(row), k, rows, row);
    if (!alone) pool_.barrier();
    return rows;
}

Rows Forward::encode_norm(int thread, Format format, const float* weight, const float* bias) {
    float* normal = normal_[static_cast<size_t>(thread)].data();
    return encode(thread, format, w_.d_model, n_rows_, [&](int64_t row) {
        const float* x = x_.data() + row * stride(w_.d_model);
        if (row + 1 < n_rows_) fetch_row(x + stride(w_.d_model), w_.d_model);
        kernels_->layer_norm(x, weight, bias, w_.eps, normal, w_.d_model);
        return normal;
    });
}

Rows Forward::encode_plain(int thread, Format format, const float* x, int64_t stride, int64_t k) {
    return encode(thread, format, k, n_rows_, [&](int64_t row) {
        if (row + 1 < n_rows_) fetch_row(x + (row + 1) * stride, k);
        return x + row * stride;
    });
}

void Forward::product(int thread, const Matrix& w, const Rows& x, int64_t n_rows, Product how) {
    how.w = w;
    how.x = x;
    how.pause = pauses_[static_cast<size_t>(thread)].data();
    const int64_t most = kernels_->row_block, panels = panels_of(w.n), units = (n_rows + most - 1) / most * panels;
    const int64_t grain = std::max<int64_t>(1, units / (pool_.size() * 12));
    share(thread, units, grain, [&](int64_t unit) {
        const int64_t row = unit / panels * most;
        kernels_->multiply(how, unit % panels, row, std::min(n_rows, row + most));
    });
}

HeadPages Forward::head_pages(const Segment& segment, int64_t layer, int64_t head) const {
    const int64_t d_head = w_.d_model / w_.n_heads, bytes = 2 * keys_bytes(pages_.format, d_head);
    uint8_t* base = pages_.data + (layer * w_.n_heads + head) * bytes;
    return {pages_.format, base, page_bytes(w_, pages_.format), segment.pages, d_head, head_padded(d_head)};
}

// Keys and values of the step's rows of one head into their pages.
void Forward::keep_head(const Segment& segment, int64_t layer, int64_t head) {
    const int64_t d_head = w_.d_model / w_.n_heads, width = stride(3 * w_.d_model);
    const HeadPages kv = head_pages(segment, layer, head);
    const float* qkv = qkv_.data() + segment.row * width + head * d_head;
    kernels_->keep(kv, segment.position, qkv + w_.d_model, qkv + 2 * w_.d_model, width, segment.n_rows);
}

void Forward::keep(int thread, int64_t layer) {
    const int64_t threads = pool_.size(), begin = n_rows_ * thread / threads, end = n_rows_ * (thread + 1) / threads;
    for (const Segment& segment : segments_) {
        const int64_t first = std::max(begin, segment.row), last = std::min(end, segment.row + segment.n_rows);
        if (first >= last) continue;
        for (int64_t row = first; row < last;) {
            const int64_t position = segment.position + row - segment.row;
            const int64_t n = std::min(kKeepTogether - position % kKeepTogether, last - row);
            for (int64_t head = 0; head < w_.n_heads; ++head) keep_head({segment.pages, row, n, position}, layer, head);
            row += n;
        }
    }
}

// A segment that is a single tile is kept here too: nobody else needs its keys and values in this step.
void Forward::attention(int thread, int64_t layer) {
    const int64_t d_head = w_.d_model / w_.n_heads, n_tiles = static_cast<int64_t>(tiles_.size());
    Attention a;
    a.stride = stride(3 * w_.d_model);
    a.out_stride = stride(w_.d_model);
    a.scale = w_.attention_scale;
    a.scratch = scratch_[static_cast<size_t>(thread)].data();
    share(thread, w_.n_heads * n_tiles, 1, [&](int64_t unit) {
        const int64_t head = unit % w_.n_heads;
        const Tile& tile = tiles_[static_cast<size_t>(unit / w_.n_heads)];
        const Segment& segment = segments_[static_cast<size_t>(tile.segment)];
        const int64_t row = segment.row + tile.first;
        if (one_tile_each()) {
            keep_head(segment, layer, head);
            fetch_keys(unit + 1, layer);
        }
        a.kv = head_pages(segment, layer, head);
        a.q = qkv_.data() + row * a.stride + head * d_head;
        a.out = mixed_.data() + row * a.out_stride + head * d_head;
        a.n_rows = std::min(kernels_->query_rows, segment.n_rows - tile.first);
        a.position = segment.position + tile.first;
        kernels_->attend(a);
    });
}

// The first keys of the next unit of attention, which lie in another sequence's page.
void Forward::fetch_keys(int64_t unit, int64_t layer) const {
    const int64_t n_tiles = static_cast<int64_t>(tiles_.size());
    if (unit >= w_.n_heads * n_tiles) return;
    const HeadPages kv = head_pages(segments_[static_cast<size_t>(unit / w_.n_heads)], layer, unit % w_.n_heads);
    const uint8_t* keys = kv.base + kv.pages[0] * kv.page_stride;
    for (int64_t at = 0; at < keys_bytes(kv.format, kv.d_head); at += 64) __builtin_prefetch(keys + at);
}

void Forward::head(int thread) {
    const int64_t d = w_.d_model, width = stride(d), threads = pool_.size();
    const int64_t n_hidden = static_cast<int64_t>(hidden_rows_.size()), n_logits = static_cast<int64_t>(logit_rows_.size());
    for (int64_t i = n_hidden * thread / threads; i < n_hidden * (thread + 1) / threads; ++i)
        kernels_->layer_norm(x_.data() + hidden_rows_[static_cast<size_t>(i)] * width, w_.ln_f_weight, w_.ln_f_bias, w_.eps,
                             hidden_ + i * d, d);
    if (n_logits == 0) return;
    float* normal = normal_[static_cast<size_t>(thread)].data();
    const Rows last = encode(thread, w_.wte.format, d, n_logits, [&](int64_t i) {
        kernels_->layer_norm(x_.data() + logit_rows_[static_cast<size_t>(i)] * width, w_.ln_f_weight, w_.ln_f_bias, w_.eps,
                             normal, d);
        return normal;
    });
    Product how{};
    how.finish = kStore;
    how.alpha = w_.logit_multiplier;
    how.out = logits_;
    how.out_stride = how.out_columns = w_.vocab_size;
    product(thread, w_.wte, last, n_logits, how);
}

}  // namespace wafergpt::native
