// The core of a PE: one thread issues per cycle, in turns; a scalar instruction, a vector step or a task launch.
#include "alu.h"
#include "machine.h"

namespace wafergpt::wafer {

namespace {

constexpr int64_t kCharged = -1;

enum Event { EVENT_LAUNCH = 1, EVENT_SCALAR = 2, EVENT_STEP = 3 };

inline const int32_t* slot_of(const Machine& m, int64_t pe, int thread) {
    return m.slots + (pe * kThreads + thread) * kSlotWords;
}

// The ready task of the lowest number, or -1. `next` is lowered to when a wavelet for one will have arrived.
int ready_task(const Machine& m, int64_t pe, int32_t cycle, int32_t* next) {
    const int32_t* entry = m.task_entry + pe * kTasks;
    for (int task = 0; task < kTasks; task++) {
        if (entry[task] < 0 || (m.blocked[pe] >> task & 1u)) continue;
        const int32_t color = m.task_color[pe * kTasks + task];
        if (color < 0) {
            if (m.active[pe] >> task & 1u) return task;
            continue;
        }
        const Head head = peek(m, queue(m, pe, color, kCoreQueue), cycle);
        if (head.there && head.control == (m.task_control[pe * kTasks + task] != 0)) return task;
        if (!head.there && head.ready < *next) *next = head.ready;
    }
    return -1;
}

void launch(const Machine& m, int64_t pe, int task, int32_t cycle) {
    const int32_t color = m.task_color[pe * kTasks + task];
    if (color < 0) {
        m.active[pe] &= ~(1u << task);
    } else {
        const size_t q = queue(m, pe, color, kCoreQueue);
        m.regs[pe * kRegisters] = static_cast<int32_t>(peek(m, q, cycle).value);
        pop(m, q, cycle);
        m.removed[pe]++;
    }
    m.pc[pe] = m.task_entry[pe * kTasks + task];
    m.main_ready[pe] = cycle + 1 + m.launch_cycles;
    m.busy_until[pe] = cycle + 1;
    m.busy_cycles[pe]++;
    record(m, pe, cycle, 1, SPAN_LAUNCH | task << 8, m.pc[pe]);
}

// Memory access of LOAD and STORE; false after a fault.
bool access(const Machine& m, int64_t pe, const int32_t* code, int32_t pc) {
    int32_t* regs = m.regs + pe * kRegisters;
    const int64_t at = static_cast<int64_t>(code[W_A] < 0 ? 0 : regs[code[W_A]]) + code[W_IMM];
    const int size = code[W_MODE] == TYPE_F16 ? 2 : 4;
    if (at < 0 || at + size > m.mem_bytes || (at & (size - 1))) {
        raise(m, FAULT_MEMORY, pe, pc, at);
        return false;
    }
    uint8_t* where = m.mem + pe * m.mem_bytes + at;
    int32_t* reg = regs + code[W_DST];
    uint16_t half;
    if (code[W_OP] == OP_LOAD) {
        if (size == 4) {
            memcpy(reg, where, 4);
        } else {
            memcpy(&half, where, 2);
            *reg = static_cast<int32_t>(as_bits(half_to_float(half)));
        }
    } else if (size == 4) {
        memcpy(where, reg, 4);
    } else {
        half = float_to_half(as_float(static_cast<uint32_t>(*reg)));
        memcpy(where, &half, 2);
    }
    return true;
}

void float_operation(int32_t* regs, const int32_t* code) {
    uint32_t v[3];
    for (int s = 0; s < 3; s++) {
        const int32_t reg = code[W_A + s];
        v[s] = static_cast<uint32_t>(reg < 0 ? code[W_IMM] : regs[reg]);
    }
    regs[code[W_DST]] = static_cast<int32_t>(alu(code[W_MODE], v[0], v[1], v[2]));
}

// A vector instruction takes its first step in the cycle in which it is issued, if it can.
int64_t issue(const Machine& m, Watch* watch, int64_t pe, int32_t pc, int32_t cycle) {
    const int thread = m.code[static_cast<size_t>(pc) * kWords + W_THREAD];
    if (!vector_issue(m, watch, pe, pc, thread)) return 0;
    int32_t next = kNever;
    if (!vector_ready(m, pe, slot_of(m, pe, thread), cycle, &next)) return 1;
    vector_step(m, watch, pe, thread, cycle);
    return kCharged;
}

// Execute the scalar instruction at pc; its cost in cycles, 0 after a fault, kCharged if busy already.
int64_t scalar(const Machine& m, Watch* watch, int64_t pe, int32_t cycle) {
    const int32_t pc = m.pc[pe];
    if (pc >= m.n_code) {
        raise(m, FAULT_UNKNOWN_OPERATION, pe, pc, -1);
        return 0;
    }
    const int32_t* code = m.code + static_cast<size_t>(pc) * kWords;
    int32_t* regs = m.regs + pe * kRegisters;
    const int32_t imm = code[W_IMM];
    const auto a_or_imm = [&] { return code[W_A] < 0 ? imm : regs[code[W_A]]; };
    const auto b_or_imm = [&] { return code[W_B] < 0 ? imm : regs[code[W_B]]; };
    m.pc[pe] = pc + 1;
    switch (code[W_OP]) {
        case OP_LI: regs[code[W_DST]] = imm; return 1;
        case OP_IALU:
            regs[code[W_DST]] = int_alu(code[W_MODE], regs[code[W_A]], b_or_imm());
            return code[W_MODE] == INT_DIV || code[W_MODE] == INT_MOD ? m.div_cycles : 1;
        case OP_FALU: float_operation(regs, code); return m.alu_cycles[code[W_MODE]];
        case OP_LOAD:
        case OP_STORE: return access(m, pe, code, pc) ? 1 : 0;
        case OP_BRANCH:
            if (condition(code[W_MODE], static_cast<uint32_t>(regs[code[W_A]]), static_cast<uint32_t>(b_or_imm())))
                m.pc[pe] = code[W_C];
            return 1;
        case OP_JUMP: m.pc[pe] = imm; return 1;
        case OP_COUNTER:
            regs[code[W_DST]] = cycle;
            regs[code[W_DST] + 1] = 0;
            return 1;
        case OP_ACTIVATE: m.active[pe] |= 1u << imm; return 1;
        case OP_UNBLOCK: m.blocked[pe] &= ~(1u << imm); return 1;
        case OP_BLOCK: m.blocked[pe] |= 1u << imm; return 1;
        case OP_DONE: m.done_cycle[pe] = cycle; m.pc[pe] = -1; return 1;
        case OP_END: m.pc[pe] = -1; return 1;
        case OP_DELAY: {
            const int32_t wait = a_or_imm();
            m.main_ready[pe] = static_cast<int64_t>(cycle) + (wait > 1 ? wait : 1);
            return 1;
        }
        case OP_DSET: m.dsd[(pe * m.n_dsd + code[W_DST]) * kDsdWords + code[W_MODE]] = a_or_imm(); return 1;
        case OP_DADD: {
            int32_t* dsd = m.dsd + (pe * m.n_dsd + code[W_DST]) * kDsdWords;
            const uint32_t size = dsd[FIELD_TYPE] == TYPE_F16 ? 2 : 4;
            dsd[FIELD_BASE] = static_cast<int32_t>(static_cast<uint32_t>(dsd[FIELD_BASE]) + static_cast<uint32_t>(a_or_imm()) * size);
            return 1;
        }
        case OP_VECTOR: return issue(m, watch, pe, pc, cycle);
        default: raise(m, FAULT_UNKNOWN_OPERATION, pe, pc, code[W_OP]); return 0;
    }
}

// Whether the main thread can do something; `task` is what it would launch if none runs.
bool main_ready(const Machine& m, const Watch* watch, int64_t pe, int32_t cycle, int32_t* next, int* task) {
    if (watch[pe].threads & 1u) return vector_ready(m, pe, slot_of(m, pe, 0), cycle, next);
    if (m.pc[pe] < 0) {
        *task = ready_task(m, pe, cycle, next);
        return *task >= 0;
    }
    if (m.pc[pe] >= m.n_code) return true;  // off the end of the program: a fault
    if (m.main_ready[pe] > cycle) {
        if (m.main_ready[pe] < *next) *next = static_cast<int32_t>(m.main_ready[pe]);
        return false;
    }
    const int32_t* code = m.code + static_cast<size_t>(m.pc[pe]) * kWords;
    return code[W_OP] != OP_VECTOR || !(watch[pe].threads >> code[W_THREAD] & 1u);
}

void act(const Machine& m, Watch* watch, int64_t pe, int thread, int task, int32_t cycle) {
    const uint64_t event = static_cast<uint64_t>(cycle) << 8 | static_cast<uint64_t>(thread) << 4;
    const uint64_t pc = static_cast<uint64_t>(static_cast<uint32_t>(m.pc[pe])) << 40;
    m.last_thread[pe] = thread;
    if (watch[pe].threads >> thread & 1u) {
        mix(m.trace[pe], event | EVENT_STEP);
        vector_step(m, watch, pe, thread, cycle);
    } else if (task >= 0) {
        mix(m.trace[pe], (event | EVENT_LAUNCH) ^ static_cast<uint64_t>(task) << 40);
        launch(m, pe, task, cycle);
    } else {
        mix(m.trace[pe], (event | EVENT_SCALAR) ^ pc);
        const int32_t at = m.pc[pe];
        const int64_t cost = scalar(m, watch, pe, cycle);
        if (cost == kCharged) return;
        m.busy_until[pe] = cycle + cost;
        m.busy_cycles[pe] += cost;
        record(m, pe, cycle, cost, m.pc[pe] < 0 ? SPAN_END : SPAN_SCALAR, at);
    }
}

}  // namespace

// Let the core act in `cycle` if it can; whether it did.
bool core_step(const Machine& m, Watch* watch, int64_t pe, int32_t cycle) {
    if (m.busy_until[pe] > cycle) {
        watch[pe].core = static_cast<int32_t>(m.busy_until[pe]);
        return false;
    }
    int32_t next = kNever;
    const uint32_t asking = watch[pe].threads | 1u, after = ~0u << (m.last_thread[pe] + 1);
    const uint32_t turns[2] = {asking & after, asking & ~after};
    for (uint32_t left : turns) {
        for (; left != 0; left &= left - 1) {
            const int thread = __builtin_ctz(left);
            int task = -1;
            const bool can = thread == 0 ? main_ready(m, watch, pe, cycle, &next, &task)
                                         : vector_ready(m, pe, slot_of(m, pe, thread), cycle, &next);
            if (!can) continue;
            act(m, watch, pe, thread, task, cycle);
            watch[pe].core = m.busy_until[pe] > cycle ? static_cast<int32_t>(m.busy_until[pe]) : cycle + 1;
            return true;
        }
    }
    watch[pe].core = next;
    return false;
}

}  // namespace wafergpt::wafer
