// The instruction sets that were compiled, and which of them run here.
#pragma once
#include "kernel.h"

namespace wafergpt::native {

enum class Use { kReady, kNotHere, kBroken };  // broken: the CPU has it, yet it cannot be used

struct Fitness {
    Use use;
    const char* why;  // not, in words; empty if ready
};

struct Isa {
    const char* name;
    const Kernels* (*kernels)();  // null if the compiler could not make them
    Fitness (*fitness)();
};

// Null for a name that is not one.
const Isa* find_isa(const char* name);

// What is wrong with the products and the attention of these kernels, found by a few small ones in under 5 ms;
// empty if nothing. int8 must be equal in every bit to `trusted`, bfloat16 within what rounding each addition allows.
const char* wrong_products(const Kernels& kernels, const Kernels& trusted);

}  // namespace wafergpt::native
