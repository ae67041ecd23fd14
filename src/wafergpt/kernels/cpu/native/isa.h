// The instruction sets that were compiled, and which of them run here.
#pragma once
#include "kernel.h"

namespace wafergpt::native {

struct Isa {
    const char* name;
    const Kernels* (*kernels)();
    bool (*runs_here)();
};

// Null for a name that is not one.
const Isa* find_isa(const char* name);

}  // namespace wafergpt::native
