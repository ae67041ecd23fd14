#include "isa.h"

#include <cpuid.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

namespace wafergpt::native {

// Left out of the library when the compiler does not know AMX (`kernels/native_build.py`); then null.
__attribute__((weak)) const Kernels* kernels_amx();

namespace {

constexpr Fitness kReady = {Use::kReady, ""};

Fitness here_if(bool has) { return has ? kReady : Fitness{Use::kNotHere, "this CPU does not have it"}; }

Fitness always() { return kReady; }

Fitness avx2() { return here_if(__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")); }

bool has_avx512_vnni() {
    return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
           __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl") &&
           __builtin_cpu_supports("avx512vnni");
}

bool has_avx512() { return has_avx512_vnni() && __builtin_cpu_supports("avx512bf16"); }

// CPUID leaf 7, EDX: bit 22 AMX-BF16, 24 AMX-TILE, 25 AMX-INT8.
bool has_amx() {
    unsigned a, b, c, d;
    constexpr unsigned kWanted = 1u << 22 | 1u << 24 | 1u << 25;
    return has_avx512() && __get_cpuid_count(7, 0, &a, &b, &c, &d) && (d & kWanted) == kWanted;
}

// XCR0 bits 17 and 18: the system saves tiles when it switches threads.
bool system_keeps_tiles() {
    unsigned low, high;
    asm volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
    return (low >> 17 & 3) == 3;
}

// Tiles are 8 KiB of state a thread: Linux wants to be asked, once for a process (arch_prctl(2),
// ARCH_REQ_XCOMP_PERM for XFEATURE_XTILEDATA).
bool system_allows_tiles() { return syscall(SYS_arch_prctl, 0x1023, 18) == 0; }

Fitness try_amx() {
    if (!has_amx()) return here_if(false);
    if (kernels_amx == nullptr) return {Use::kBroken, "the library was built by a compiler that does not know AMX"};
    if (!system_keeps_tiles() || !system_allows_tiles()) return {Use::kBroken, "the system does not allow it"};
    const char* wrong = wrong_products(*kernels_amx(), *kernels_avx512_vnni());
    return *wrong == '\0' ? kReady : Fitness{Use::kBroken, wrong};
}

Fitness amx() {
    static const Fitness found = try_amx();
    return found;
}

const Isa kIsas[] = {
    {"scalar", kernels_scalar, always},
    {"avx2", kernels_avx2, avx2},
    {"avx512_vnni", kernels_avx512_vnni, [] { return here_if(has_avx512_vnni()); }},
    {"avx512", kernels_avx512, [] { return here_if(has_avx512()); }},
    {"amx", kernels_amx, amx},
};

}  // namespace

const Isa* find_isa(const char* name) {
    for (const Isa& isa : kIsas)
        if (strcmp(isa.name, name) == 0) return &isa;
    return nullptr;
}

}  // namespace wafergpt::native
