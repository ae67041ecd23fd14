// The tile instructions of AMX on a CPU without them: each traps as unknown, and is then carried out here, from its
// bytes, as Intel's manual (volume 2, TDPBF16PS, TDPBSUD, LDTILECFG, TILELOADD, ...) describes it. So the very
// code that runs on AMX is tested, encodings included; what the manual forbids ends the process.
#include <math.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <ucontext.h>

#include <atomic>

namespace {

struct Tile {
    uint8_t row[16][64];
};

struct Machine {
    bool configured = false;
    uint16_t row_bytes[16] = {};
    uint8_t rows[16] = {};
    Tile tile[8] = {};
};

thread_local Machine machine;
std::atomic<int64_t> carried_out{0};
std::atomic<int> plant{0};
struct sigaction before;

[[noreturn]] void fault(const char* what) {
    fprintf(stderr, "amx_machine: %s\n", what);
    abort();
}

void check(bool good, const char* what) {
    if (!good) fault(what);
}

void configure(const uint8_t* from) {
    uint8_t memory[64];
    memcpy(memory, from, 64);
    machine = Machine();
    if (memory[0] == 0) return;
    check(memory[0] == 1 && memory[1] == 0, "palette");
    for (int i = 2; i < 16; ++i) check(memory[i] == 0, "reserved bytes");
    for (int i = 0; i < 16; ++i) {
        memcpy(&machine.row_bytes[i], memory + 16 + 2 * i, 2);
        machine.rows[i] = memory[48 + i];
        check(machine.row_bytes[i] <= 64 && machine.rows[i] <= 16, "a tile too large");
        check((machine.row_bytes[i] == 0) == (machine.rows[i] == 0), "half a tile");
        check(i < 8 || machine.rows[i] == 0, "a ninth tile");
    }
    machine.configured = true;
}

void check_tile(int t) { check(machine.configured && t < 8 && machine.rows[t] > 0, "a tile without shape"); }

void load(int t, const uint8_t* from, int64_t stride) {
    check_tile(t);
    machine.tile[t] = Tile();
    for (int r = 0; r < machine.rows[t]; ++r) memcpy(machine.tile[t].row[r], from + r * stride, machine.row_bytes[t]);
}

void store(int t, uint8_t* to, int64_t stride) {
    check_tile(t);
    for (int r = 0; r < machine.rows[t]; ++r) memcpy(to + r * stride, machine.tile[t].row[r], machine.row_bytes[t]);
}

// Denormals are zero, as inputs and as results; the sign stays.
float flushed(float x) { return fabsf(x) < 0x1p-126f ? copysignf(0.0f, x) : x; }

float half(const uint8_t* p) {
    uint16_t bits;
    memcpy(&bits, p, 2);
    const uint32_t wide = static_cast<uint32_t>(bits) << 16;
    float x;
    memcpy(&x, &wide, 4);
    return flushed(x);
}

// Even and odd values have sums of their own over the whole tile; their sum is then added to the destination.
void dot_bf16_row(float* sums, const uint8_t* a, const Tile& b, int units, int columns, bool other_order) {
    float even[16] = {}, odd[16] = {};
    for (int k = 0; k < units; ++k)
        for (int n = 0; n < columns; ++n) {
            even[n] = flushed(fmaf(half(a + 4 * k), half(b.row[k] + 4 * n), even[n]));
            odd[n] = flushed(fmaf(half(a + 4 * k + 2), half(b.row[k] + 4 * n + 2), odd[n]));
        }
    for (int n = 0; n < columns; ++n)
        sums[n] = other_order ? sums[n] + even[n] + odd[n] : flushed(flushed(sums[n]) + flushed(even[n] + odd[n]));
}

void dot_int8_row(int32_t* sums, const uint8_t* a, const Tile& b, int units, int columns) {
    for (int k = 0; k < units; ++k)
        for (int n = 0; n < columns; ++n)
            for (int i = 0; i < 4; ++i) {
                const uint8_t byte = b.row[k][4 * n + i];
                const int32_t weight = plant == 2 ? static_cast<int8_t>(byte) : byte;
                const uint32_t term = static_cast<uint32_t>(static_cast<int8_t>(a[4 * k + i]) * weight);
                sums[n] = static_cast<int32_t>(static_cast<uint32_t>(sums[n]) + term);
            }
}

void dot(bool bytes, int c, int a, int b) {
    check_tile(a);
    check_tile(b);
    check_tile(c);
    check(a != b && a != c && b != c, "one tile twice");
    const int units = machine.row_bytes[a] / 4, columns = machine.row_bytes[c] / 4;
    check(units == machine.rows[b] && machine.rows[c] == machine.rows[a], "rows that do not fit");
    check(machine.row_bytes[c] == machine.row_bytes[b], "columns that do not fit");
    for (int m = 0; m < machine.rows[c]; ++m) {
        uint8_t* to = machine.tile[c].row[m];
        const bool other_order = plant == 4 && machine.rows[c] > 1, off = (plant == 1 && bytes) || (plant == 3 && !bytes);
        const uint8_t* from = machine.tile[a].row[off && m > 0 ? m - 1 : m];
        alignas(64) uint8_t sums[64];
        memcpy(sums, to, 64);
        if (bytes)
            dot_int8_row(reinterpret_cast<int32_t*>(sums), from, machine.tile[b], units, columns);
        else
            dot_bf16_row(reinterpret_cast<float*>(sums), from, machine.tile[b], units, columns, other_order);
        memcpy(to, sums, 64);
    }
}

// The general registers in the order of their numbers in an instruction.
constexpr int kRegisters[] = {REG_RAX, REG_RCX, REG_RDX, REG_RBX, REG_RSP, REG_RBP, REG_RSI, REG_RDI,
                              REG_R8,  REG_R9,  REG_R10, REG_R11, REG_R12, REG_R13, REG_R14, REG_R15};

struct Operand {
    uint8_t* base;
    int64_t index;  // times its scale
    int length;     // bytes of ModRM, SIB and displacement
};

// A memory operand; `extra` are the inverted R, X and B of the VEX prefix.
Operand memory_operand(const greg_t* registers, const uint8_t* modrm, bool x, bool b) {
    const int mod = *modrm >> 6;
    int rm = (*modrm & 7) | (b ? 8 : 0), length = 1;
    int64_t index = 0;
    if ((*modrm & 7) == 4) {
        const uint8_t sib = modrm[length++];
        const int number = (sib >> 3 & 7) | (x ? 8 : 0);
        if (number != 4) index = registers[kRegisters[number]] << (sib >> 6);
        rm = (sib & 7) | (b ? 8 : 0);
    }
    check(mod != 0 || (rm & 7) != 5, "an address that is not decoded");
    int64_t base = registers[kRegisters[rm]];
    if (mod == 1) base += static_cast<int8_t>(modrm[length++]);
    if (mod == 2) {
        int32_t far;
        memcpy(&far, modrm + length, 4);
        base += far;
        length += 4;
    }
    return {reinterpret_cast<uint8_t*>(base), index, length};
}

// Carries out the instruction at `at` and gives its length; 0 for one that is not AMX's.
int carry_out(const uint8_t* at, const greg_t* registers) {
    if (at[0] != 0xc4 || (at[1] & 31) != 2 || (at[2] & 0x84) != 0) return 0;  // VEX.128.0F38.W0
    const int prefix = at[2] & 3, other = ~(at[2] >> 3) & 15, reg = at[4] >> 3 & 7;
    const bool direct = at[4] >> 6 == 3;
    enum { kNone, k66, kF3, kF2 };
    if (at[3] == 0x5c && prefix == kF3 && direct) return dot(false, reg, at[4] & 7, other), 5;
    if (at[3] == 0x5e && prefix == kF3 && direct) return dot(true, reg, at[4] & 7, other), 5;
    if (at[3] == 0x49 && prefix == kNone && at[4] == 0xc0) return machine = Machine(), 5;
    if (at[3] == 0x49 && prefix == kF2 && direct) return check_tile(reg), machine.tile[reg] = Tile(), 5;
    if (direct || (at[3] != 0x49 && at[3] != 0x4b)) return 0;
    const Operand where = memory_operand(registers, at + 4, !(at[1] & 0x40), !(at[1] & 0x20));
    if (at[3] == 0x49 && prefix == kNone && reg == 0)
        configure(where.base + where.index);
    else if (at[3] == 0x4b && prefix == kF2)
        load(reg, where.base, where.index);
    else if (at[3] == 0x4b && prefix == kF3)
        store(reg, where.base, where.index);
    else
        return 0;
    return 4 + where.length;
}

void trapped(int, siginfo_t*, void* context) {
    greg_t* registers = static_cast<ucontext_t*>(context)->uc_mcontext.gregs;
    const int length = carry_out(reinterpret_cast<const uint8_t*>(registers[REG_RIP]), registers);
    if (length == 0) {
        sigaction(SIGILL, &before, nullptr);  // meets whoever was asked before
        return;
    }
    registers[REG_RIP] += length;
    ++carried_out;
}

}  // namespace

#pragma GCC visibility push(default)
extern "C" {

void amx_machine_start() {
    struct sigaction action = {};
    action.sa_sigaction = trapped;
    action.sa_flags = SA_SIGINFO | SA_NODEFER;
    sigaction(SIGILL, &action, &before);
}

// How many instructions have been carried out.
int64_t amx_machine_count() { return carried_out; }

// 0: as it should be; 1: rows of int8 one too low; 2: signed weights; 3: rows of bfloat16 one too low; 4: bfloat16
// in another order when there is more than one row.
void amx_machine_plant(int fault) { plant = fault; }

// Uses a tile that has no shape.
void amx_machine_misuse() { asm volatile("tilezero %tmm1"); }
}
#pragma GCC visibility pop
