// What the machine can do, measured beside the engines: reading a buffer, and products in registers. AVX-512.
#include <immintrin.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <atomic>
#include <chrono>
#include <thread>
#include <vector>

namespace {

double now() { return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count(); }

template <class Work> double on_threads(int n_threads, Work work) {
    const double start = now();
    std::vector<std::thread> others;
    for (int thread = 1; thread < n_threads; ++thread) others.emplace_back(work, thread);
    work(0);
    for (std::thread& other : others) other.join();
    return now() - start;
}

// Twelve sums by name: an array of them would live in memory.
#define TWELVE(X) X(0) X(1) X(2) X(3) X(4) X(5) X(6) X(7) X(8) X(9) X(10) X(11)

template <int Kind> void products(long n) {
    const __m512i one = _mm512_set1_epi32(0x01010101);
#define DECLARE(i) __m512i sum##i = _mm512_setzero_si512();
    TWELVE(DECLARE)
    for (long i = 0; i < n; ++i) {
#define ADD(i)                                                                             \
    if (Kind == 0) asm volatile("vfmadd231ps %1, %1, %0" : "+v"(sum##i) : "v"(one));       \
    if (Kind == 1) asm volatile("vdpbf16ps %1, %1, %0" : "+v"(sum##i) : "v"(one));         \
    if (Kind == 2) asm volatile("vpdpbusd %1, %1, %0" : "+v"(sum##i) : "v"(one));
        TWELVE(ADD)
    }
}

}  // namespace

// Operations per second: kind 0 float32, 1 bfloat16, 2 int8; a multiply and an add are two.
extern "C" double limits_products(int kind, int n_threads) {
    const long n = 3000000;
    const double seconds = on_threads(n_threads, [=](int) {
        if (kind == 0) products<0>(n);
        if (kind == 1) products<1>(n);
        if (kind == 2) products<2>(n);
    });
    return 2.0 * 12 * (16L << kind) * n * n_threads / seconds;
}

#if defined(__AMX_TILE__) && defined(__AMX_BF16__) && defined(__AMX_INT8__)
namespace {

struct alignas(64) TileShapes {
    unsigned char palette = 1, rest[15] = {};
    unsigned short row_bytes[16] = {};
    unsigned char rows[16] = {};
};

template <int Kind> void tile_products(long n) {
    TileShapes shapes;
    for (int tile = 0; tile < 8; ++tile) shapes.row_bytes[tile] = 64, shapes.rows[tile] = 16;
    asm volatile("ldtilecfg %0" : : "m"(shapes));  // GCC 12's own function reads 8 bytes only
    for (long i = 0; i < n; ++i) {
        if (Kind == 1) {
            _tile_dpbf16ps(0, 4, 6);
            _tile_dpbf16ps(1, 4, 7);
            _tile_dpbf16ps(2, 5, 6);
            _tile_dpbf16ps(3, 5, 7);
        } else {
            _tile_dpbsud(0, 4, 6);
            _tile_dpbsud(1, 4, 7);
            _tile_dpbsud(2, 5, 6);
            _tile_dpbsud(3, 5, 7);
        }
    }
    _tile_release();
}

}  // namespace

// The same of AMX tiles that stay in their registers; 0 where they may not be used.
extern "C" double limits_tiles(int kind, int n_threads) {
    if (kind == 0 || syscall(SYS_arch_prctl, 0x1023, 18) != 0) return 0;
    const long n = 1000000;
    const double seconds = on_threads(n_threads, [=](int) { kind == 1 ? tile_products<1>(n) : tile_products<2>(n); });
    return 2.0 * 4 * 16 * 16 * (kind == 1 ? 32 : 64) * n * n_threads / seconds;
}
#else
extern "C" double limits_tiles(int, int) { return 0; }
#endif

// Bytes per second of reading `bytes` in huge pages, the best of `n_rounds`; 0 if there is no memory.
extern "C" double limits_read(long bytes, int n_threads, int n_rounds) {
    void* memory = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (memory == MAP_FAILED) return 0;
    madvise(memory, bytes, MADV_HUGEPAGE);
    char* data = static_cast<char*>(memory);
    for (long i = 0; i < bytes; i += 64) data[i] = 1;
    std::vector<double> seconds(n_rounds);
    std::atomic<int> arrived{0};
    auto wait = [&](int goal) {
        arrived.fetch_add(1);
        while (arrived.load() < goal) _mm_pause();
    };
    on_threads(n_threads, [&](int thread) {
        const char* begin = data + bytes / n_threads / 256 * 256 * thread;
        const char* end = begin + bytes / n_threads / 256 * 256;
        for (int round = 0; round < n_rounds; ++round) {
            wait(n_threads * (2 * round + 1));
            const double start = now();
            __m512i sum[4] = {};
            for (const char* p = begin; p < end; p += 256)
                for (int line = 0; line < 4; ++line) {
                    _mm_prefetch(p + 4096 + 64 * line, _MM_HINT_T0);
                    sum[line] = _mm512_xor_si512(sum[line], _mm512_loadu_si512(p + 64 * line));
                }
            volatile int keep = _mm512_reduce_add_epi32(
                _mm512_xor_si512(_mm512_xor_si512(sum[0], sum[1]), _mm512_xor_si512(sum[2], sum[3])));
            (void)keep;
            wait(n_threads * (2 * round + 2));
            if (thread == 0) seconds[round] = now() - start;
        }
    });
    munmap(memory, bytes);
    double best = seconds[0];
    for (double s : seconds) best = s < best ? s : best;
    return bytes / best;
}
