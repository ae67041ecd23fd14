// The state of a mesh as arrays over its PEs. Python owns the arrays (`wafergpt/wafer/machine/state.py`, field by
// field in this order); this library advances them.
#pragma once
#include <stddef.h>

#include "isa.h"

namespace wafergpt::wafer {

struct Machine {
    // Shape, all int64.
    int64_t width, height, n_colors, mem_bytes, n_code, n_dsd, ring, link_depth, core_depth, up_depth;
    int64_t ramp_cycles, launch_cycles, div_cycles, check, span_capacity;
    const int64_t* alu_cycles;  // [N_ALU]
    // Program.
    const int32_t* code;         // [n_code][kWords]
    const int32_t* task_entry;   // [P][kTasks], -1: no such task
    const int32_t* task_color;   // [P][kTasks], -1: local
    const uint8_t* task_control; // [P][kTasks]
    const uint8_t* route_rx;     // [P][C][kPositions], bit per port
    const uint8_t* route_tx;
    const uint8_t* n_positions;  // [P][C]
    const uint8_t* ring_mode;    // [P][C]: after the last position the first
    const uint8_t* ramp_use;     // [P][C]: 1 the core may send, 2 may receive, 4 a control task is bound
    const int32_t* order;        // [P]: the order in which PEs are visited
    // State.
    uint8_t* mem;           // [P][mem_bytes]
    int32_t* regs;          // [P][kRegisters]
    int32_t* dsd;           // [P][n_dsd][kDsdWords]
    int32_t* slots;         // [P][kThreads][kSlotWords]
    int32_t* pc;            // [P], -1: no task runs
    int32_t* last_thread;   // [P]
    uint32_t* active;       // [P]: tasks
    uint32_t* blocked;      // [P]
    int64_t* done_cycle;    // [P], -1: not done
    int64_t* busy_until;    // [P]
    int64_t* main_ready;    // [P]
    uint32_t* q_value;      // [P][C][kQueues][ring]
    int32_t* q_ready;       // same: cycle << 1 | control
    uint64_t* q_head;       // [P][C][kQueues]: head | (cycle of the last pop + 1) << 32
    uint32_t* q_tail;
    uint8_t* position;      // [P][C]
    int32_t* latest;        // [P]: when the last of the wavelets that the PE has pushed is ready
    // Counters.
    uint64_t* trace;        // [P]
    int64_t* created;       // [P]: wavelets sent by cores plus copies made
    int64_t* removed;       // [P]: wavelets received by cores or taken up by routers
    int64_t* busy_cycles;   // [P]
    int64_t* link_wavelets; // [P][kPorts]: wavelets that left through the port
    int64_t* fault;         // [5]: kind, PE, pc, detail, lock
    int64_t* clock;         // [4]: cycle, skipped cycles, cycle of the last event, cycles in which nothing moved
    int32_t* span_slot;     // [P]: row of `spans`, -1: not recorded
    int32_t* spans;         // [recorded][span_capacity][kSpanWords]: start, end, kind | thread << 4 | mode or task << 8, pc
    int64_t* n_spans;       // [recorded]: those that found no room count too
};

enum SpanKind { SPAN_LAUNCH = 1, SPAN_SCALAR = 2, SPAN_STEP = 3, SPAN_END = 4 };
constexpr int kSpanWords = 4;

// Record busy cycles of a core (`spans.py` says what a span is); one that goes on is made longer.
inline void record(const Machine& m, int64_t pe, int32_t cycle, int64_t cost, int32_t tag, int32_t pc) {
    if (m.span_capacity == 0 || m.span_slot[pe] < 0 || cost <= 0) return;
    const int64_t slot = m.span_slot[pe];
    int64_t& n = m.n_spans[slot];
    int32_t* row = m.spans + slot * m.span_capacity * kSpanWords;
    const int kind = tag & 15;
    if (n > 0 && n <= m.span_capacity) {
        int32_t* last = row + (n - 1) * kSpanWords;
        const bool goes_on = kind == SPAN_SCALAR || (kind == SPAN_STEP && last[3] == pc);
        if (goes_on && last[1] == cycle && last[2] == tag) {
            last[1] = cycle + static_cast<int32_t>(cost);
            return;
        }
    }
    if (n < m.span_capacity) {
        int32_t* next = row + n * kSpanWords;
        next[0] = cycle;
        next[1] = cycle + static_cast<int32_t>(cost);
        next[2] = tag;
        next[3] = pc;
    }
    n++;
}

inline void mix(uint64_t& hash, uint64_t event) {
    hash = (hash ^ event) * 0x9E3779B97F4A7C15ull;
    hash ^= hash >> 29;
}

// One PE's view, and what only the engine needs: when to look at core and router again.
struct Watch {
    int32_t core;            // the core is not looked at before this cycle
    int32_t router;          // nor the router, unless something was pushed
    int32_t looked;          // cycle in which the router was looked at last
    int32_t pushed[kPorts];  // cycle of the last push per router port
    uint32_t threads;        // bit per thread slot in use
};
constexpr int32_t kNever = 0x7fffffff;

inline size_t queue(const Machine& m, int64_t pe, int64_t color, int port) {
    return static_cast<size_t>((pe * m.n_colors + color) * kQueues + port);
}

// Entries in the queue at the start of `cycle`, seen by its writer.
inline uint32_t occupied(const Machine& m, size_t q, int32_t cycle) {
    const uint64_t head = __atomic_load_n(&m.q_head[q], __ATOMIC_RELAXED);
    const uint32_t popped_now = (head >> 32) == static_cast<uint64_t>(cycle) + 1 ? 1u : 0u;
    return m.q_tail[q] - static_cast<uint32_t>(head) + popped_now;
}

inline void push(const Machine& m, size_t q, uint32_t value, int32_t ready, bool control) {
    const uint32_t tail = m.q_tail[q];
    const size_t at = q * static_cast<size_t>(m.ring) + (tail & static_cast<uint32_t>(m.ring - 1));
    m.q_value[at] = value;
    m.q_ready[at] = ready * 2 + (control ? 1 : 0);
    __atomic_store_n(&m.q_tail[q], tail + 1, __ATOMIC_RELEASE);
}

struct Head {
    bool there;  // an entry that is ready
    bool control;
    uint32_t value;
    int32_t ready;  // of an entry that is not yet ready; kNever if there is none
};

inline Head peek(const Machine& m, size_t q, int32_t cycle) {
    const uint32_t head = static_cast<uint32_t>(m.q_head[q]);
    if (__atomic_load_n(&m.q_tail[q], __ATOMIC_ACQUIRE) == head) return {false, false, 0, kNever};
    const size_t at = q * static_cast<size_t>(m.ring) + (head & static_cast<uint32_t>(m.ring - 1));
    const int32_t word = m.q_ready[at];
    return {(word >> 1) <= cycle, (word & 1) != 0, m.q_value[at], word >> 1};
}

inline void pop(const Machine& m, size_t q, int32_t cycle) {
    const uint32_t head = static_cast<uint32_t>(m.q_head[q]) + 1;
    __atomic_store_n(&m.q_head[q], head | (static_cast<uint64_t>(cycle) + 1) << 32, __ATOMIC_RELAXED);
}

extern thread_local bool raised_here;

inline void raise(const Machine& m, Fault fault, int64_t pe, int64_t pc, int64_t detail) {
    // The PE of the lowest number in a cycle is named, whatever the order: see `machine.cpp`.
    raised_here = true;
    while (__atomic_test_and_set(reinterpret_cast<bool*>(&m.fault[4]), __ATOMIC_ACQUIRE)) {
    }
    if (m.fault[0] == FAULT_NONE || pe < m.fault[1]) {
        m.fault[0] = fault;
        m.fault[1] = pe;
        m.fault[2] = pc;
        m.fault[3] = detail;
    }
    __atomic_clear(reinterpret_cast<bool*>(&m.fault[4]), __ATOMIC_RELEASE);
}

bool core_step(const Machine& m, Watch* watch, int64_t pe, int32_t cycle);    // core.cpp; whether it did anything
bool vector_ready(const Machine& m, int64_t pe, const int32_t* slot, int32_t cycle, int32_t* next);  // vector.cpp
bool vector_issue(const Machine& m, Watch* watch, int64_t pe, int32_t pc, int thread);
void vector_step(const Machine& m, Watch* watch, int64_t pe, int thread, int32_t cycle);
bool router_step(const Machine& m, Watch* watch, int64_t pe, int32_t cycle);  // router.cpp

}  // namespace wafergpt::wafer
