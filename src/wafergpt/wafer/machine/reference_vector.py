"""Vector instructions of the NumPy reference: issue into thread slots, and steps of a few elements.

Everything works on arrays of PEs at once. `slot` arrays are [n, SLOT_WORDS]; an operand's words start at
`operand(s)`, s = 0 the target, 1..3 the sources a, b, c.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from wafergpt.wafer.machine import isa
from wafergpt.wafer.machine.alu import alu, as_bits, as_float, bits_to_half, half_to_bits, vector_int
from wafergpt.wafer.machine.image import Image
from wafergpt.wafer.machine.isa import Alu, Fault, Field, Kind, Type, Word
from wafergpt.wafer.machine.queues import Index, Mask, Queues, Words
from wafergpt.wafer.machine.spans import SpanKind, record
from wafergpt.wafer.machine.state import State

Slots = NDArray[np.int32]
Raise = Callable[[Fault, Index, Index, Index], None]  # fault, PEs, pcs, details

N_SOURCES = np.array([isa.N_SOURCES[mode] for mode in Alu])


def operand(s: int) -> int:
    """Where operand `s` starts in a slot."""
    return isa.SLOT_OPERANDS + s * isa.DSD_WORDS


def part(slot: Slots, s: int, field: Field) -> Index:
    """A field of operand `s` of every slot."""
    return slot[:, operand(s) + field].astype(np.int64)


def reads(slot: Slots, s: int) -> Mask:
    """Whether the slot's operation has source `s` (1..3)."""
    return N_SOURCES[slot[:, isa.SLOT_OP]] >= s


def is_fabric(kind: Index) -> Mask:
    """Whether operands of these kinds are in the fabric."""
    inside: Mask = (kind >= Kind.RECEIVE) & (kind <= Kind.CONTROL)
    return inside


def integer_operation(slot: Slots) -> Mask:
    """Whether the operation is on int32: its target is, or it moves int32 to a register."""
    mode = slot[:, isa.SLOT_OP]
    to, a = part(slot, 0, Field.KIND), part(slot, 1, Field.KIND)
    to_words = (to != Kind.REGISTER) & (part(slot, 0, Field.TYPE) == Type.I32)
    move = (to == Kind.REGISTER) & (mode == Alu.MOV) & (a != Kind.REGISTER)
    moves_words = move & (part(slot, 1, Field.TYPE) == Type.I32)
    whole: Mask = (to_words | moves_words) & (mode != Alu.I2F) & (mode != Alu.F2I)
    return whole


def fits(slot: Slots) -> Mask:
    """Whether each operation takes operands of these kinds and types."""
    mode, to, to_type = slot[:, isa.SLOT_OP], part(slot, 0, Field.KIND), part(slot, 0, Field.TYPE)
    whole = integer_operation(slot)
    good: Mask = (to != Kind.NONE) & (to != Kind.RECEIVE)
    good &= (mode < isa.FIRST_REDUCTION) | (to == Kind.REGISTER)
    good &= (to != Kind.CONTROL) | (to_type == Type.I32)
    last = part(slot, 0, Field.BASE) + 1 >= isa.N_REGISTERS
    good &= ~((to == Kind.REGISTER) & (mode == Alu.ARGMAX) & last)
    good &= ~(whole & (mode > Alu.MIN))
    good &= ~((mode == Alu.F2I) & (to != Kind.REGISTER) & (to_type != Type.I32))
    narrow = is_fabric(to) & (to_type == Type.F16)
    wide = is_fabric(to) & ~narrow
    for s in (1, 2, 3):
        used, kind, kind_type = reads(slot, s), part(slot, s, Field.KIND), part(slot, s, Field.TYPE)
        source = (kind == Kind.MEMORY) | (kind == Kind.RECEIVE) | (kind == Kind.REGISTER)
        typed = (kind_type == Type.I32) == (whole | (mode == Alu.I2F))
        good &= ~used | (source & ((kind == Kind.REGISTER) | typed))
        receives = used & (kind == Kind.RECEIVE)
        narrow |= receives & (kind_type == Type.F16)
        wide |= receives & (kind_type != Type.F16)
        for r in range(1, s):
            same = part(slot, r, Field.COLOR) == part(slot, s, Field.COLOR)
            good &= ~(receives & (part(slot, r, Field.KIND) == Kind.RECEIVE) & same)
    good &= ~(wide & narrow)
    return good


def set_pace(slot: Slots, alu_cycles: Index) -> None:
    """Elements and cycles per step: SIMD width by type; one wavelet per cycle and direction."""
    mode = slot[:, isa.SLOT_OP]
    none = np.zeros(len(slot), np.bool_)
    narrow_fabric, wide_fabric, wide_target, wide_source = none, none, none, none
    for s in range(4):
        used = N_SOURCES[mode] >= s
        kind, narrow = part(slot, s, Field.KIND), part(slot, s, Field.TYPE) == Type.F16
        narrow_fabric = narrow_fabric | (used & is_fabric(kind) & narrow)
        wide_fabric = wide_fabric | (used & is_fabric(kind) & ~narrow)
        wide = used & (kind != Kind.REGISTER) & ~narrow
        if s == 0:
            wide_target = wide | ((kind == Kind.REGISTER) & (mode >= isa.FIRST_REDUCTION))
        else:
            wide_source = wide_source | wide
    width = np.where(wide_source | (alu_cycles[mode] > 1), 1, np.where(wide_target, 2, 4))
    step = np.where(narrow_fabric, 2, np.where(wide_fabric, 1, width))
    slot[:, isa.SLOT_STEP] = step
    slot[:, isa.SLOT_COST] = (step + width - 1) // width * alu_cycles[mode]


def address(slot: Slots, s: int, i: Index) -> Index:
    """Byte address of element `i` of operand `s`."""
    inner, stride = part(slot, s, Field.INNER), part(slot, s, Field.STRIDE)
    row: Index = np.where(inner > 0, inner, 1)
    folded: Index = i % row * stride + i // row * part(slot, s, Field.OUTER)
    offset: Index = np.where(inner > 0, folded, i * stride)
    return part(slot, s, Field.BASE) + offset * type_bytes(part(slot, s, Field.TYPE))


def type_bytes(kind_type: Index) -> Index:
    """Bytes of an element."""
    return np.where(kind_type == Type.F16, 2, 4)


def conflict(slot: Slots, i: Index, count: Index) -> Index:
    """1 where two memory sources of a step share a bank (word address modulo 4), else 0."""
    masks, places = [], []
    for s in (1, 2, 3):
        used = reads(slot, s) & (part(slot, s, Field.KIND) == Kind.MEMORY)
        at = address(slot, s, i)
        bank = at >> 2 & 3
        two = count * type_bytes(part(slot, s, Field.TYPE)) > 4
        mask = (1 << bank) | np.where(two, 1 << (bank + 1 & 3), 0)
        masks.append(np.where(used, mask, 0))
        places.append(at)
    clash = np.zeros(len(slot), np.bool_)
    for x in range(3):
        for y in range(x):
            clash |= (masks[x] & masks[y] != 0) & (places[x] != places[y])
    return clash.astype(np.int64)


class Vectors:
    """Vector instructions of all PEs."""

    def __init__(self, image: Image, state: State, queues: Queues, fault: Raise) -> None:
        self._image, self._state, self._queues, self._fault = image, state, queues, fault
        self._alu_cycles = np.array(image.timing.alu_cycles(), np.int64)

    def ready(self, pe: Index, slot: Slots, cycle: int) -> Mask:
        """Whether the operation in each slot (in use) can take a step."""
        can = np.ones(len(pe), np.bool_)
        to, color = part(slot, 0, Field.KIND), part(slot, 0, Field.COLOR)
        sends = np.flatnonzero((to == Kind.SEND) | (to == Kind.CONTROL))
        q = self._queues.number(pe[sends], color[sends], isa.RAMP)
        can[sends] = self._queues.occupied(q, cycle) < self._image.timing.up_depth
        for s in (1, 2, 3):
            takes = np.flatnonzero(reads(slot, s) & (part(slot, s, Field.KIND) == Kind.RECEIVE))
            q = self._queues.number(pe[takes], part(slot, s, Field.COLOR)[takes], isa.CORE_QUEUE)
            there, control, _ = self._queues.peek(q, cycle)
            can[takes] &= there & ~control
        return can | (slot[:, isa.SLOT_N] <= 0)

    def issue(self, pe: Index, pc: Index) -> Mask:
        """Load the vector instructions at `pc` into their slots; False where that was a fault."""
        state, code = self._state, self._image.code[pc]
        thread = code[:, Word.THREAD].astype(np.int64)
        slot = state.slots[pe, thread]
        slot[:, isa.SLOT_OP] = code[:, Word.MODE]
        n = np.ones(len(pe), np.int32)
        counted = np.zeros(len(pe), np.bool_)
        good = np.ones(len(pe), np.bool_)
        for s in range(4):
            used = N_SOURCES[code[:, Word.MODE]] >= s
            word = code[:, Word.DST + s].astype(np.int64)
            loaded = state.dsd[pe, np.maximum(word - isa.N_REGISTERS, 0)].copy()
            register = np.zeros_like(loaded)
            register[:, Field.KIND] = Kind.REGISTER
            at = np.clip(word, 0, isa.N_REGISTERS - 1)
            register[:, Field.BASE] = at if s == 0 else state.regs[pe, at]
            in_register = word < isa.N_REGISTERS
            value = np.where(in_register[:, None], register, loaded)
            begin = operand(s)
            slot[used, begin : begin + isa.DSD_WORDS] = value[used]
            n = np.where(used & ~in_register & ~counted, loaded[:, Field.LENGTH], n)
            counted |= used & ~in_register
            good &= self._routed(pe, pc, value, used & ~in_register & good)
        good &= self._fitting(pe, pc, slot, good)
        slot[:, isa.SLOT_I] = 0
        slot[:, isa.SLOT_N] = n
        slot[:, isa.SLOT_ACTIVATE] = code[:, Word.ACTIVATE]
        slot[:, isa.SLOT_UNBLOCK] = code[:, Word.UNBLOCK]
        slot[:, isa.SLOT_PC] = pc
        set_pace(slot, self._alu_cycles)
        slot[~good, isa.SLOT_OP] = -1
        state.slots[pe, thread] = slot
        return good

    def _routed(self, pe: Index, pc: Index, value: Slots, asked: Mask) -> Mask:
        """False where a fabric operand's color has no route at this PE's ramp."""
        kind, color = value[:, Field.KIND].astype(np.int64), value[:, Field.COLOR].astype(np.int64)
        n_colors = len(self._image.color_names)
        inside = (color >= 0) & (color < n_colors)
        use = self._image.ramp_use[pe, np.where(inside, color, 0)]
        needed = np.where(kind == Kind.RECEIVE, 2, 1)
        lost: Mask = asked & is_fabric(kind) & ~(inside & (use & needed != 0))
        self._fault(Fault.NO_ROUTE, pe[lost], pc[lost], color[lost])
        return ~lost

    def _fitting(self, pe: Index, pc: Index, slot: Slots, asked: Mask) -> Mask:
        wrong = asked & ~fits(slot)
        self._fault(Fault.OPERAND, pe[wrong], pc[wrong], np.zeros(int(wrong.sum()), np.int64))
        return ~wrong

    def step(self, pe: Index, thread: Index, cycle: int) -> None:
        """Advance the operations of these threads by one step."""
        state = self._state
        slot = state.slots[pe, thread]
        i = slot[:, isa.SLOT_I].astype(np.int64)
        left = slot[:, isa.SLOT_N] - i
        count = np.minimum(left, slot[:, isa.SLOT_STEP])
        works = count > 0
        taken = self._take(pe, slot, works, cycle)
        out, alive = self._elements(pe, slot, i, np.maximum(count, 0), taken)
        cost = np.where(works, slot[:, isa.SLOT_COST] + conflict(slot, i, count), 1)
        self._send(pe, slot, out, works & alive, cycle + cost + self._image.timing.ramp_cycles)
        slot[:, isa.SLOT_I] = np.where(works, i + count, i)
        state.busy_until[pe[alive]] = (cycle + cost)[alive]
        state.busy_cycles[pe[alive]] += cost[alive]
        tag = SpanKind.STEP | thread << 4 | slot[:, isa.SLOT_OP].astype(np.int64) << 8
        record(state, pe[alive], cycle, cost[alive], tag[alive], slot[alive, isa.SLOT_PC])
        ended = alive & (slot[:, isa.SLOT_I] >= slot[:, isa.SLOT_N])
        for place, sets in ((isa.SLOT_ACTIVATE, True), (isa.SLOT_UNBLOCK, False)):
            told = np.flatnonzero(ended & (slot[:, place] >= 0))
            bit = np.uint32(1) << slot[told, place].astype(np.uint32)
            if sets:
                state.active[pe[told]] |= bit
            else:
                state.blocked[pe[told]] &= ~bit
        slot[ended, isa.SLOT_OP] = -1
        state.slots[pe[alive], thread[alive]] = slot[alive]

    def _take(self, pe: Index, slot: Slots, works: Mask, cycle: int) -> list[Words]:
        """Pop the wavelets that the step needs, by source."""
        taken = []
        for s in (1, 2, 3):
            word = np.zeros(len(pe), np.uint32)
            here = np.flatnonzero(works & reads(slot, s) & (part(slot, s, Field.KIND) == Kind.RECEIVE))
            q = self._queues.number(pe[here], part(slot, s, Field.COLOR)[here], isa.CORE_QUEUE)
            word[here] = self._queues.peek(q, cycle)[2]
            self._queues.pop(q, cycle)
            self._state.removed[pe[here]] += 1
            taken.append(word)
        return taken

    def _send(self, pe: Index, slot: Slots, out: Words, works: Mask, ready: Index) -> None:
        to = part(slot, 0, Field.KIND)
        here = np.flatnonzero(works & ((to == Kind.SEND) | (to == Kind.CONTROL)))
        q = self._queues.number(pe[here], part(slot, 0, Field.COLOR)[here], isa.RAMP)
        self._queues.push(q, out[here], ready[here], to[here] == Kind.CONTROL)
        self._state.latest[pe[here]] = np.maximum(self._state.latest[pe[here]], ready[here])
        self._state.created[pe[here]] += 1

    def _elements(
        self, pe: Index, slot: Slots, i: Index, count: Index, taken: list[Words]
    ) -> tuple[Words, Mask]:
        """Compute elements [i, i + count); the wavelet to send, and where no fault came up."""
        out = np.zeros(len(pe), np.uint32)
        alive = np.ones(len(pe), np.bool_)
        for lane in range(4):
            for mode in np.unique(slot[:, isa.SLOT_OP]):
                here = np.flatnonzero((slot[:, isa.SLOT_OP] == mode) & (lane < count) & alive)
                if len(here) == 0:
                    continue
                word = [each[here] for each in taken]
                sent, good = self._lane(Alu(int(mode)), pe[here], slot[here], (i[here] + lane, lane), word)
                out[here] |= sent
                alive[here] = good
        return out, alive

    def _lane(
        self, mode: Alu, pe: Index, slot: Slots, at: tuple[Index, int], taken: list[Words]
    ) -> tuple[Words, Mask]:
        """Element at[0] of operations of one mode, in SIMD lane at[1]."""
        i, lane = at
        good = np.ones(len(pe), np.bool_)
        values = [np.zeros(len(pe), np.uint32) for _ in range(3)]
        for s in range(1, isa.N_SOURCES[mode] + 1):
            values[s - 1] = self._load(pe, slot, s, i, (taken[s - 1], lane), good)
        a, b, c = values
        none = np.zeros(len(pe), np.uint32)
        if mode >= isa.FIRST_REDUCTION:
            self._reduce(mode, pe[good], part(slot, 0, Field.BASE)[good], i[good], (a[good], b[good]))
            return none, good
        value = np.where(integer_operation(slot), vector_int(mode, a, b), alu(mode, a, b, c))
        to = part(slot, 0, Field.KIND)
        register = np.flatnonzero(good & (to == Kind.REGISTER))
        self._state.regs[pe[register], part(slot, 0, Field.BASE)[register]] = value[register].view(np.int32)
        stores = good & (to == Kind.MEMORY)
        self._store(pe, slot, i, value, stores, good)
        half = part(slot, 0, Field.TYPE) == Type.F16
        packed = np.where(half, bits_to_half(value).astype(np.uint32) << np.uint32(16 * lane % 32), value)
        return np.where(good & ((to == Kind.SEND) | (to == Kind.CONTROL)), packed, none), good

    def _load(
        self, pe: Index, slot: Slots, s: int, i: Index, wavelet: tuple[Words, int], good: Mask
    ) -> Words:
        """Element `i` of source `s` as words; `good` loses the rows whose address is bad."""
        kind, kind_type = part(slot, s, Field.KIND), part(slot, s, Field.TYPE)
        word, lane = wavelet
        half = kind_type == Type.F16
        lane_half = (word >> np.uint32(16 * lane % 32)).astype(np.uint16)
        value = np.where(half, half_to_bits(lane_half), word)
        value = np.where(
            kind == Kind.REGISTER, part(slot, s, Field.BASE).astype(np.int32).view(np.uint32), value
        )
        at = address(slot, s, i)
        rows = self._valid(pe, slot, at, type_bytes(kind_type), good & (kind == Kind.MEMORY), good)
        wide, narrow = rows[~half[rows]], rows[half[rows]]
        value[wide] = self._words[pe[wide], at[wide] >> 2]
        value[narrow] = half_to_bits(self._halves[pe[narrow], at[narrow] >> 1])
        return value

    def _store(self, pe: Index, slot: Slots, i: Index, value: Words, asked: Mask, good: Mask) -> None:
        half = part(slot, 0, Field.TYPE) == Type.F16
        at = address(slot, 0, i)
        rows = self._valid(pe, slot, at, type_bytes(part(slot, 0, Field.TYPE)), asked, good)
        wide, narrow = rows[~half[rows]], rows[half[rows]]
        self._words[pe[wide], at[wide] >> 2] = value[wide]
        self._halves[pe[narrow], at[narrow] >> 1] = bits_to_half(value[narrow])

    def _valid(self, pe: Index, slot: Slots, at: Index, size: Index, asked: Mask, good: Mask) -> Index:
        """Rows of `asked` whose address is good; the others fault and are cleared in `good`."""
        bad = asked & ((at < 0) | (at + size > self._image.mem_bytes) | (at & (size - 1) != 0))
        self._fault(Fault.MEMORY, pe[bad], slot[bad, isa.SLOT_PC].astype(np.int64), at[bad])
        good &= ~bad
        return np.flatnonzero(asked & ~bad)

    @property
    def _words(self) -> Words:
        return self._state.mem.view(np.uint32)

    @property
    def _halves(self) -> NDArray[np.uint16]:
        return self._state.mem.view(np.uint16)

    def _reduce(self, mode: Alu, pe: Index, register: Index, i: Index, values: tuple[Words, Words]) -> None:
        regs = self._state.regs
        a, b = values
        total, x = as_float(regs[pe, register].view(np.uint32)), as_float(a)
        if mode in (Alu.SUM, Alu.DOT):
            added = x + total if mode == Alu.SUM else x * as_float(b) + total
            regs[pe, register] = as_bits(added).view(np.int32)
            return
        higher = x > total
        regs[pe[higher], register[higher]] = a[higher].view(np.int32)
        if mode == Alu.ARGMAX:
            regs[pe[higher], register[higher] + 1] = i[higher]
