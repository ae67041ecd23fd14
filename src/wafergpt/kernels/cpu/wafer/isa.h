// The numbers of `wafergpt/wafer/machine/isa.py`, which documents them; a test compares the two files.
#pragma once
#include <stdint.h>

namespace wafergpt::wafer {

constexpr int kWords = 10, kRegisters = 16, kThreads = 9, kTasks = 32, kPositions = 4, kPorts = 5, kRamp = 4;
constexpr int kCoreQueue = 5, kQueues = 6, kDsdWords = 8, kSlotOperands = 8, kSlotWords = 40;

enum Word { W_OP, W_MODE, W_DST, W_A, W_B, W_C, W_IMM, W_THREAD, W_ACTIVATE, W_UNBLOCK };
enum Op {
    OP_LI, OP_IALU, OP_FALU, OP_LOAD, OP_STORE, OP_BRANCH, OP_JUMP, OP_COUNTER, OP_ACTIVATE, OP_UNBLOCK,
    OP_BLOCK, OP_END, OP_DONE, OP_DELAY, OP_DSET, OP_DADD, OP_VECTOR
};
enum Int {
    INT_ADD, INT_SUB, INT_MUL, INT_AND, INT_OR, INT_XOR, INT_SHL, INT_SHR, INT_DIV, INT_MOD, INT_MIN, INT_MAX
};
enum Alu {
    ALU_MOV, ALU_ADD, ALU_SUB, ALU_MUL, ALU_MAX, ALU_MIN, ALU_FMAC, ALU_DIV, ALU_SQRT, ALU_RSQRT, ALU_EXP,
    ALU_TANH, ALU_ERF, ALU_GELU, ALU_I2F, ALU_F2I, ALU_SUM, ALU_DOT, ALU_RMAX, ALU_ARGMAX, N_ALU
};
enum Cond { COND_EQ, COND_NE, COND_LT, COND_GE, COND_FLT, COND_FGE };
enum Type { TYPE_F32, TYPE_F16, TYPE_I32 };
enum Kind { KIND_NONE, KIND_MEMORY, KIND_RECEIVE, KIND_SEND, KIND_CONTROL, KIND_REGISTER };
enum Field { FIELD_KIND, FIELD_TYPE, FIELD_BASE, FIELD_LENGTH, FIELD_STRIDE, FIELD_INNER, FIELD_OUTER, FIELD_COLOR };
enum Slot { SLOT_OP, SLOT_I, SLOT_N, SLOT_ACTIVATE, SLOT_UNBLOCK, SLOT_STEP, SLOT_COST, SLOT_PC };
enum Control { CONTROL_NOP, CONTROL_ADVANCE, CONTROL_RESET, CONTROL_RESET_ALL };
enum Fault { FAULT_NONE, FAULT_UNKNOWN_OPERATION, FAULT_MEMORY, FAULT_NO_ROUTE, FAULT_OPERAND };
enum Stop { STOP_QUIET, STOP_LIMIT, STOP_FAULT, STOP_LEAK };

inline int n_sources(int mode) {
    if (mode == ALU_FMAC) return 3;
    return (mode >= ALU_ADD && mode <= ALU_DIV) || mode == ALU_DOT ? 2 : 1;
}
inline bool is_reduction(int mode) { return mode >= ALU_SUM; }

}  // namespace wafergpt::wafer
