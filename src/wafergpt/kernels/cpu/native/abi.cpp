// The C face of the library: what `kernels/native.py` calls through ctypes. Nothing throws across it; a
// function that can fail writes one line to `error` and returns null or -1.
#include <stdio.h>

#include <exception>

#include "forward.h"
#include "isa.h"
#include "pack.h"

using namespace wafergpt::native;

#pragma GCC visibility push(default)
extern "C" {

// What a matrix is in the packed file: offsets from its base, -1 where there is none.
struct wn_matrix {
    int64_t format, panels, scales, bias;
};

struct wn_layer {
    int64_t ln_1_weight, ln_1_bias, ln_2_weight, ln_2_bias;
    wn_matrix qkv, attention_out, fc, ffn_out;
};

struct wn_model {
    int64_t d_model, n_layers, n_heads, d_ffn, vocab_size, max_seq_len;
    int64_t tanh_activation, kv_format, n_pages, n_threads, n_cpus;
    float eps, embedding_multiplier, attention_scale, logit_multiplier;
    const uint8_t* base;
    const wn_layer* layers;
    wn_matrix wte;
    int64_t wpe, ln_f_weight, ln_f_bias;
    uint8_t* pages;
    const int32_t* cpus;
    const char* isa;
};

// 1 if the instruction set runs here, 0 if the CPU does not have it, -1 if it is not known, -2 if the CPU has it
// and yet it cannot be used; `why` then says why not.
int wn_isa(const char* name, char* why, int64_t why_bytes) {
    const Isa* isa = find_isa(name);
    if (isa == nullptr) return -1;
    const Fitness fitness = isa->fitness();
    snprintf(why, static_cast<size_t>(why_bytes), "%s", fitness.why);
    return fitness.use == Use::kReady ? 1 : fitness.use == Use::kNotHere ? 0 : -2;
}

int64_t wn_page_tokens() { return kPageTokens; }

int64_t wn_page_bytes(int64_t kv_format, int64_t n_layers, int64_t n_heads, int64_t d_head) {
    return n_layers * n_heads * 2 * keys_bytes(static_cast<Format>(kv_format), d_head);
}

int64_t wn_panels_bytes(int64_t format, int64_t n, int64_t k) {
    return panels_of(n) * panel_bytes(static_cast<Format>(format), k);
}

void wn_pack(int64_t format, const float* weight, const float* importance, int64_t n, int64_t k, int64_t first,
             int64_t last, uint8_t* panels, float* scales) {
    pack_panels(static_cast<Format>(format), weight, importance, n, k, first, last, panels, scales);
}

void wn_unpack(int64_t format, const uint8_t* panels, const float* scales, int64_t n, int64_t k, float* out) {
    const Matrix matrix = {static_cast<Format>(format), n, k, panels, scales, nullptr};
    for (int64_t row = 0; row < n; ++row) unpack_row(matrix, row, out + row * k);
}

void* wn_open(const wn_model* m, char* error, int64_t error_bytes) {
    const auto floats = [&](int64_t offset) {
        return offset < 0 ? nullptr : reinterpret_cast<const float*>(m->base + offset);
    };
    const auto matrix = [&](const wn_matrix& at, int64_t n, int64_t k) {
        return Matrix{static_cast<Format>(at.format), n, k, m->base + at.panels, floats(at.scales), floats(at.bias)};
    };
    try {
        Weights w{};
        w.d_model = m->d_model, w.n_layers = m->n_layers, w.n_heads = m->n_heads;
        w.d_ffn = m->d_ffn, w.vocab_size = m->vocab_size, w.max_seq_len = m->max_seq_len;
        w.activation = m->tanh_activation ? kGeluTanh : kGeluErf;
        w.eps = m->eps, w.embedding_multiplier = m->embedding_multiplier;
        w.attention_scale = m->attention_scale, w.logit_multiplier = m->logit_multiplier;
        w.wte = matrix(m->wte, m->vocab_size, m->d_model);
        w.wpe = floats(m->wpe), w.ln_f_weight = floats(m->ln_f_weight), w.ln_f_bias = floats(m->ln_f_bias);
        for (int64_t l = 0; l < m->n_layers; ++l) {
            const wn_layer& at = m->layers[l];
            w.layers.push_back({floats(at.ln_1_weight), floats(at.ln_1_bias), floats(at.ln_2_weight),
                                floats(at.ln_2_bias), matrix(at.qkv, 3 * m->d_model, m->d_model),
                                matrix(at.attention_out, m->d_model, m->d_model), matrix(at.fc, m->d_ffn, m->d_model),
                                matrix(at.ffn_out, m->d_model, m->d_ffn)});
        }
        const Pages pages = {static_cast<Format>(m->kv_format), m->pages, m->n_pages};
        return new Forward(std::move(w), pages, find_isa(m->isa)->kernels(), static_cast<int>(m->n_threads),
                           std::vector<int>(m->cpus, m->cpus + m->n_cpus));
    } catch (const std::exception& failure) {
        snprintf(error, static_cast<size_t>(error_bytes), "%s", failure.what());
        return nullptr;
    }
}

void wn_close(void* forward) { delete static_cast<Forward*>(forward); }

int wn_run(void* forward, const Chunk* chunks, int64_t n_chunks, float* logits, float* hidden, char* error,
           int64_t error_bytes) {
    try {
        static_cast<Forward*>(forward)->run(chunks, n_chunks, logits, hidden);
        return 0;
    } catch (const std::exception& failure) {
        snprintf(error, static_cast<size_t>(error_bytes), "%s", failure.what());
        return -1;
    }
}
}
#pragma GCC visibility pop
