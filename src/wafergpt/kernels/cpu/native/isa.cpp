#include "isa.h"

#include <string.h>

namespace wafergpt::native {
namespace {

bool has_avx2() { return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma"); }

bool has_avx512_vnni() {
    return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
           __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl") &&
           __builtin_cpu_supports("avx512vnni");
}

bool has_avx512() { return has_avx512_vnni() && __builtin_cpu_supports("avx512bf16"); }

constexpr Isa kIsas[] = {
    {"scalar", kernels_scalar, [] { return true; }},
    {"avx2", kernels_avx2, has_avx2},
    {"avx512_vnni", kernels_avx512_vnni, has_avx512_vnni},
    {"avx512", kernels_avx512, has_avx512},
};

}  // namespace

const Isa* find_isa(const char* name) {
    for (const Isa& isa : kIsas)
        if (strcmp(isa.name, name) == 0) return &isa;
    return nullptr;
}

}  // namespace wafergpt::native
