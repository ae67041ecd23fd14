// Vector instructions: issued into a thread slot, then advanced by one step of a few elements at a time.
#include "alu.h"
#include "machine.h"

namespace wafergpt::wafer {

namespace {

inline int type_bytes(int type) { return type == TYPE_F16 ? 2 : 4; }

inline bool is_fabric(int kind) { return kind == KIND_RECEIVE || kind == KIND_SEND || kind == KIND_CONTROL; }

bool integer_operation(const int32_t* slot, int mode) {
    if (mode == ALU_I2F || mode == ALU_F2I) return false;
    const int32_t* dst = slot + kSlotOperands;
    if (dst[FIELD_KIND] != KIND_REGISTER) return dst[FIELD_TYPE] == TYPE_I32;
    const int32_t* a = dst + kDsdWords;
    return mode == ALU_MOV && a[FIELD_KIND] != KIND_REGISTER && a[FIELD_TYPE] == TYPE_I32;
}

// Whether the operation takes operands of these kinds and types.
bool fits(const int32_t* slot, int mode) {
    const int32_t* dst = slot + kSlotOperands;
    const int to = dst[FIELD_KIND];
    if (to == KIND_NONE || to == KIND_RECEIVE || (is_reduction(mode) && to != KIND_REGISTER)) return false;
    if (to == KIND_CONTROL && dst[FIELD_TYPE] != TYPE_I32) return false;
    if (to == KIND_REGISTER && mode == ALU_ARGMAX && dst[FIELD_BASE] + 1 >= kRegisters) return false;
    const bool whole = integer_operation(slot, mode);
    if (whole && mode > ALU_MIN) return false;
    if (mode == ALU_F2I && to != KIND_REGISTER && dst[FIELD_TYPE] != TYPE_I32) return false;
    bool wide = is_fabric(to) && dst[FIELD_TYPE] != TYPE_F16, narrow = is_fabric(to) && !wide;
    for (int s = 1; s <= n_sources(mode); s++) {
        const int32_t* from = dst + s * kDsdWords;
        const int kind = from[FIELD_KIND];
        if (kind != KIND_MEMORY && kind != KIND_RECEIVE && kind != KIND_REGISTER) return false;
        if (kind == KIND_REGISTER) continue;
        if ((from[FIELD_TYPE] == TYPE_I32) != (whole || mode == ALU_I2F)) return false;
        if (kind != KIND_RECEIVE) continue;
        (from[FIELD_TYPE] == TYPE_F16 ? narrow : wide) = true;
        for (int r = 1; r < s; r++) {
            const int32_t* other = dst + r * kDsdWords;
            if (other[FIELD_KIND] == KIND_RECEIVE && other[FIELD_COLOR] == from[FIELD_COLOR]) return false;
        }
    }
    return !(wide && narrow);
}

// Elements per step and cycles per step: SIMD width by type, one wavelet per cycle and direction.
void set_pace(const Machine& m, int32_t* slot, int mode) {
    int width = 4, fabric_wide = 0, fabric_narrow = 0;
    bool target_wide = false, sources_wide = false;
    for (int s = 0; s <= n_sources(mode); s++) {
        const int32_t* operand = slot + kSlotOperands + s * kDsdWords;
        const int kind = operand[FIELD_KIND];
        const bool narrow = operand[FIELD_TYPE] == TYPE_F16;
        if (is_fabric(kind)) (narrow ? fabric_narrow : fabric_wide) = 1;
        if (kind == KIND_REGISTER) {
            if (s == 0 && is_reduction(mode)) target_wide = true;
        } else if (!narrow) {
            (s == 0 ? target_wide : sources_wide) = true;
        }
    }
    if (sources_wide || m.alu_cycles[mode] > 1) width = 1;
    else if (target_wide) width = 2;
    const int step = fabric_narrow ? 2 : fabric_wide ? 1 : width;
    slot[SLOT_STEP] = step;
    slot[SLOT_COST] = static_cast<int32_t>((step + width - 1) / width * m.alu_cycles[mode]);
}

inline int64_t address(const int32_t* operand, int64_t i) {
    const int64_t inner = operand[FIELD_INNER];
    int64_t offset = 0;
    if (inner > 0) offset = (i % inner) * operand[FIELD_STRIDE] + (i / inner) * operand[FIELD_OUTER];
    else offset = i * operand[FIELD_STRIDE];
    return operand[FIELD_BASE] + offset * type_bytes(operand[FIELD_TYPE]);
}

inline bool in_memory(const Machine& m, int64_t at, int size) {
    return at >= 0 && at + size <= m.mem_bytes && (at & (size - 1)) == 0;
}

// Two sources meet in a bank (of four pairs): one more cycle. SDK documentation: bank0 % 4 == bank1 % 4.
int conflict(const int32_t* slot, int mode, int64_t i, int64_t count) {
    int64_t at[3];
    int mask[3], n = 0;
    for (int s = 1; s <= n_sources(mode); s++) {
        const int32_t* operand = slot + kSlotOperands + s * kDsdWords;
        if (operand[FIELD_KIND] != KIND_MEMORY) continue;
        at[n] = address(operand, i);
        const int bank = static_cast<int>(at[n] >> 2) & 3;
        mask[n] = 1 << bank;
        if (count * type_bytes(operand[FIELD_TYPE]) > 4) mask[n] |= 1 << ((bank + 1) & 3);
        n++;
    }
    for (int x = 0; x < n; x++)
        for (int y = 0; y < x; y++)
            if ((mask[x] & mask[y]) && at[x] != at[y]) return 1;
    return 0;
}

}  // namespace

// Whether the operation in `slot` can take a step; else `next` may be lowered to when to look again.
bool vector_ready(const Machine& m, int64_t pe, const int32_t* slot, int32_t cycle, int32_t* next) {
    if (slot[SLOT_N] <= 0) return true;
    const int mode = slot[SLOT_OP];
    const int32_t* operand = slot + kSlotOperands;
    const int to = operand[FIELD_KIND];
    if (to == KIND_SEND || to == KIND_CONTROL)
        if (occupied(m, queue(m, pe, operand[FIELD_COLOR], kRamp), cycle) >= m.up_depth) return false;
    for (int s = 1; s <= n_sources(mode); s++) {
        operand += kDsdWords;
        if (operand[FIELD_KIND] != KIND_RECEIVE) continue;
        const Head head = peek(m, queue(m, pe, operand[FIELD_COLOR], kCoreQueue), cycle);
        if (head.there && !head.control) continue;
        if (!head.there && head.ready < *next) *next = head.ready;
        return false;
    }
    return true;
}

// Load the instruction into thread `thread`; false after a fault.
bool vector_issue(const Machine& m, Watch* watch, int64_t pe, int32_t pc, int thread) {
    const int32_t* code = m.code + static_cast<size_t>(pc) * kWords;
    int32_t* slot = m.slots + (pe * kThreads + thread) * kSlotWords;
    const int mode = code[W_MODE];
    const int words[4] = {code[W_DST], code[W_A], code[W_B], code[W_C]};
    int32_t n = 1;
    bool counted = false;
    for (int s = 0; s <= n_sources(mode); s++) {
        int32_t* operand = slot + kSlotOperands + s * kDsdWords;
        if (words[s] < kRegisters) {  // a register: its number if target, else its value now
            memset(operand, 0, kDsdWords * sizeof(int32_t));
            operand[FIELD_KIND] = words[s] < 0 ? KIND_NONE : KIND_REGISTER;
            if (words[s] >= 0) operand[FIELD_BASE] = s == 0 ? words[s] : m.regs[pe * kRegisters + words[s]];
            continue;
        }
        memcpy(operand, m.dsd + (pe * m.n_dsd + words[s] - kRegisters) * kDsdWords, kDsdWords * sizeof(int32_t));
        if (!counted) n = operand[FIELD_LENGTH];
        counted = true;
        if (!is_fabric(operand[FIELD_KIND])) continue;
        const int32_t color = operand[FIELD_COLOR];
        const int need = operand[FIELD_KIND] == KIND_RECEIVE ? 2 : 1;
        if (color < 0 || color >= m.n_colors || !(m.ramp_use[pe * m.n_colors + color] & need)) {
            raise(m, FAULT_NO_ROUTE, pe, pc, color);
            return false;
        }
    }
    if (!fits(slot, mode)) {
        raise(m, FAULT_OPERAND, pe, pc, 0);
        return false;
    }
    slot[SLOT_OP] = mode;
    slot[SLOT_I] = 0;
    slot[SLOT_N] = n;
    slot[SLOT_ACTIVATE] = code[W_ACTIVATE];
    slot[SLOT_UNBLOCK] = code[W_UNBLOCK];
    slot[SLOT_PC] = pc;
    set_pace(m, slot, mode);
    watch[pe].threads |= 1u << thread;
    return true;
}

namespace {

struct Step {
    const Machine& m;
    int32_t* slot;
    int64_t pe;
    int32_t cycle;
    uint32_t wavelet[4];  // taken from the fabric by source
};

// Element i of source s as a raw 32-bit word; false if its address is bad.
inline bool load(const Step& step, int s, int64_t i, int lane, uint32_t* value) {
    const int32_t* operand = step.slot + kSlotOperands + s * kDsdWords;
    const int type = operand[FIELD_TYPE];
    if (operand[FIELD_KIND] == KIND_REGISTER) {
        *value = static_cast<uint32_t>(operand[FIELD_BASE]);
        return true;
    }
    if (operand[FIELD_KIND] == KIND_RECEIVE) {
        const uint32_t word = step.wavelet[s];
        *value = type == TYPE_F16 ? as_bits(half_to_float(static_cast<uint16_t>(word >> (16 * lane)))) : word;
        return true;
    }
    const int64_t at = address(operand, i);
    if (!in_memory(step.m, at, type_bytes(type))) {
        raise(step.m, FAULT_MEMORY, step.pe, step.slot[SLOT_PC], at);
        return false;
    }
    const uint8_t* from = step.m.mem + step.pe * step.m.mem_bytes + at;
    if (type == TYPE_F16) {
        uint16_t half;
        memcpy(&half, from, 2);
        *value = as_bits(half_to_float(half));
    } else {
        memcpy(value, from, 4);
    }
    return true;
}

inline bool store(const Step& step, int64_t i, uint32_t value) {
    const int32_t* operand = step.slot + kSlotOperands;
    const int type = operand[FIELD_TYPE];
    const int64_t at = address(operand, i);
    if (!in_memory(step.m, at, type_bytes(type))) {
        raise(step.m, FAULT_MEMORY, step.pe, step.slot[SLOT_PC], at);
        return false;
    }
    uint8_t* to = step.m.mem + step.pe * step.m.mem_bytes + at;
    if (type == TYPE_F16) {
        const uint16_t half = float_to_half(as_float(value));
        memcpy(to, &half, 2);
    } else {
        memcpy(to, &value, 4);
    }
    return true;
}

inline void reduce(int32_t* target, int mode, int64_t i, uint32_t a, uint32_t b) {
    const float total = as_float(static_cast<uint32_t>(target[0])), x = as_float(a);
    switch (mode) {
        case ALU_SUM: target[0] = static_cast<int32_t>(as_bits(total + x)); break;
        case ALU_DOT: target[0] = static_cast<int32_t>(as_bits(x * as_float(b) + total)); break;
        case ALU_RMAX: target[0] = x > total ? static_cast<int32_t>(a) : target[0]; break;
        default:
            if (x > total) {
                target[0] = static_cast<int32_t>(a);
                target[1] = static_cast<int32_t>(i);
            }
    }
}

// The elements [i, i + count); `out` collects the wavelet to send. False after a fault.
inline bool elements(Step& step, int mode, int64_t i, int64_t count, uint32_t* out) {
    const int32_t* dst = step.slot + kSlotOperands;
    const int to = dst[FIELD_KIND], sources = n_sources(mode);
    const bool whole = integer_operation(step.slot, mode);
    for (int lane = 0; lane < count; lane++) {
        uint32_t v[3] = {0, 0, 0};
        for (int s = 1; s <= sources; s++)
            if (!load(step, s, i + lane, lane, &v[s - 1])) return false;
        if (is_reduction(mode)) {
            reduce(step.m.regs + step.pe * kRegisters + dst[FIELD_BASE], mode, i + lane, v[0], v[1]);
            continue;
        }
        const uint32_t value = whole ? vector_int(mode, v[0], v[1]) : alu(mode, v[0], v[1], v[2]);
        if (to == KIND_REGISTER) {
            step.m.regs[step.pe * kRegisters + dst[FIELD_BASE]] = static_cast<int32_t>(value);
        } else if (to == KIND_MEMORY) {
            if (!store(step, i + lane, value)) return false;
        } else {
            *out |= dst[FIELD_TYPE] == TYPE_F16
                        ? static_cast<uint32_t>(float_to_half(as_float(value))) << (16 * lane)
                        : value;
        }
    }
    return true;
}

}  // namespace

// Advance the operation of a thread by one step: `vector_ready` has said that it can.
void vector_step(const Machine& m, Watch* watch, int64_t pe, int thread, int32_t cycle) {
    int32_t* slot = m.slots + (pe * kThreads + thread) * kSlotWords;
    const int mode = slot[SLOT_OP];
    const int64_t i = slot[SLOT_I], left = slot[SLOT_N] - i;
    const int64_t count = left < slot[SLOT_STEP] ? left : slot[SLOT_STEP];
    int32_t cost = 1;
    if (count > 0) {
        Step step{m, slot, pe, cycle, {0, 0, 0, 0}};
        for (int s = 1; s <= n_sources(mode); s++) {
            const int32_t* operand = slot + kSlotOperands + s * kDsdWords;
            if (operand[FIELD_KIND] != KIND_RECEIVE) continue;
            const size_t q = queue(m, pe, operand[FIELD_COLOR], kCoreQueue);
            step.wavelet[s] = peek(m, q, cycle).value;
            pop(m, q, cycle);
            m.removed[pe]++;
            if (watch[pe].router > cycle + 1) watch[pe].router = cycle + 1;
        }
        uint32_t out = 0;
        if (!elements(step, mode, i, count, &out)) return;
        cost = slot[SLOT_COST] + conflict(slot, mode, i, count);
        const int32_t* dst = slot + kSlotOperands;
        if (dst[FIELD_KIND] == KIND_SEND || dst[FIELD_KIND] == KIND_CONTROL) {
            const int32_t ready = cycle + cost + static_cast<int32_t>(m.ramp_cycles);
            push(m, queue(m, pe, dst[FIELD_COLOR], kRamp), out, ready, dst[FIELD_KIND] == KIND_CONTROL);
            if (ready > m.latest[pe]) m.latest[pe] = ready;
            watch[pe].pushed[kRamp] = cycle;
            m.created[pe]++;
        }
        slot[SLOT_I] = static_cast<int32_t>(i + count);
    }
    m.busy_until[pe] = cycle + cost;
    m.busy_cycles[pe] += cost;
    record(m, pe, cycle, cost, SPAN_STEP | thread << 4 | mode << 8, slot[SLOT_PC]);
    if (slot[SLOT_I] >= slot[SLOT_N]) {
        if (slot[SLOT_ACTIVATE] >= 0) m.active[pe] |= 1u << slot[SLOT_ACTIVATE];
        if (slot[SLOT_UNBLOCK] >= 0) m.blocked[pe] &= ~(1u << slot[SLOT_UNBLOCK]);
        slot[SLOT_OP] = -1;
        watch[pe].threads &= ~(1u << thread);
    }
}

}  // namespace wafergpt::wafer
