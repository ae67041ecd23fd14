"""The instruction set of a PE: numbers shared by the assembler and both engines.

`kernels/cpu/wafer/isa.h` holds the same numbers for the native engine; a test compares the two. The
instruction set is ours: the vendor's is not published. It follows what the SDK's language offers: scalar
instructions on 16 registers, and vector instructions whose operands are data-structure descriptors (DSDs).

An instruction is `WORDS` int32: op, mode, dst, a, b, c, imm, thread, then_activate, then_unblock.
"""

from __future__ import annotations

from enum import IntEnum

from wafergpt.wafer.arch import SIMULATED

WORDS = 10
N_REGISTERS = 16
N_THREADS = 9  # slot 0 runs the main thread's vector instruction, 1..8 are the microthreads
N_TASKS = 32
N_POSITIONS = 4
N_PORTS = 5  # NORTH, EAST, SOUTH, WEST, RAMP
RAMP = 4
CORE_QUEUE = 5  # the queue between router and core, beside the five of the router
N_QUEUES = 6
SPAN_WORDS = 4  # of a recorded span: start, end, tag, pc


class Word(IntEnum):
    """Positions within an instruction."""

    OP = 0
    MODE = 1
    DST = 2
    A = 3
    B = 4
    C = 5
    IMM = 6
    THREAD = 7
    ACTIVATE = 8
    UNBLOCK = 9


class Op(IntEnum):
    """Operations. `b | imm`: register b, or the immediate if b is -1."""

    LI = 0  # dst = imm
    IALU = 1  # dst = a (mode: Int) b | imm
    FALU = 2  # dst = a (mode: Alu) b, c; float32
    LOAD = 3  # dst = memory[a + imm] of type mode; a -1: imm alone
    STORE = 4  # memory[a + imm] of type mode = dst
    BRANCH = 5  # if a (mode: Cond) b | imm: go to c
    JUMP = 6  # go to imm
    COUNTER = 7  # dst = low 32 bits, dst + 1 = high 16 bits of the cycle counter
    ACTIVATE = 8  # task imm
    UNBLOCK = 9  # task imm
    BLOCK = 10  # task imm
    END = 11  # the task ends
    DONE = 12  # the task ends and the host is told that this PE is done
    DELAY = 13  # the main thread waits a | imm cycles
    DSET = 14  # field mode of DSD dst = a | imm
    DADD = 15  # base of DSD dst += (a | imm) elements
    VECTOR = 16  # dst = mode(a, b, c) elementwise, or a reduction into register dst


class Int(IntEnum):
    """Integer operations on 32-bit registers, wrapping; shifts take the low five bits."""

    ADD = 0
    SUB = 1
    MUL = 2
    AND = 3
    OR = 4
    XOR = 5
    SHL = 6
    SHR = 7
    DIV = 8  # towards minus infinity; by zero gives 0
    MOD = 9  # sign of the divisor; by zero gives 0
    MIN = 10
    MAX = 11


class Alu(IntEnum):
    """Sources become float32, each operation rounds to float32, the result to the target's type."""

    MOV = 0
    ADD = 1
    SUB = 2
    MUL = 3
    MAX = 4
    MIN = 5
    FMAC = 6  # a * b + c, the product rounded to float32
    DIV = 7
    SQRT = 8
    RSQRT = 9  # 1 / sqrt(a)
    EXP = 10
    TANH = 11
    ERF = 12
    GELU = 13  # the tanh form, as GPT-2 has it
    I2F = 14  # int32 to float32
    F2I = 15  # towards zero, saturating; NaN gives 0
    SUM = 16  # register += a[i], i ascending
    DOT = 17  # register += a[i] * b[i], i ascending
    RMAX = 18  # register = max(register, a[i])
    ARGMAX = 19  # register, register + 1 = a[i], i where a[i] > register


N_ALU = 20
FIRST_REDUCTION = Alu.SUM
N_SOURCES = {  # how many of a, b, c an operation reads
    **dict.fromkeys(Alu, 1),
    **dict.fromkeys((Alu.ADD, Alu.SUB, Alu.MUL, Alu.MAX, Alu.MIN, Alu.DIV, Alu.DOT), 2),
    Alu.FMAC: 3,
}


class Cond(IntEnum):
    """Conditions of a branch: on int32, then on float32 (false when either is NaN, but FNE)."""

    EQ = 0
    NE = 1
    LT = 2
    GE = 3
    FLT = 4
    FGE = 5


class Type(IntEnum):
    """Element types."""

    F32 = 0
    F16 = 1
    I32 = 2


TYPE_BYTES = {Type.F32: 4, Type.F16: 2, Type.I32: 4}


class Kind(IntEnum):
    """What an operand is. CONTROL sends each 32-bit element as a control wavelet."""

    NONE = 0
    MEMORY = 1
    RECEIVE = 2
    SEND = 3
    CONTROL = 4
    REGISTER = 5


class Field(IntEnum):
    """Of a DSD, eight int32. Element i is at base + (i % inner * stride + i // inner * outer) * its size."""

    KIND = 0
    TYPE = 1
    BASE = 2  # bytes
    LENGTH = 3  # elements
    STRIDE = 4  # elements
    INNER = 5  # elements of a row; 0: one row
    OUTER = 6  # elements from row to row
    COLOR = 7


DSD_WORDS = 8
DSD_BYTES = int(SIMULATED["descriptor_bytes"].value)
INSTRUCTION_BYTES = int(SIMULATED["instruction_bytes"].value)
MUTABLE_FIELDS = (Field.BASE, Field.LENGTH, Field.STRIDE, Field.INNER, Field.OUTER, Field.COLOR)

# A thread slot: eight words, then four operands (dst, a, b, c) of eight words each.
SLOT_OP, SLOT_I, SLOT_N, SLOT_ACTIVATE, SLOT_UNBLOCK, SLOT_STEP, SLOT_COST, SLOT_PC = range(8)
SLOT_OPERANDS = 8
SLOT_WORDS = 8 + 4 * DSD_WORDS

# Commands in a control wavelet, two bits each; every router that passes it on takes the lowest, but leaves
# RESET_ALL to those that follow. [assumed] The SDK's control wavelets hold eight commands of their own kind.
CONTROL_NOP, CONTROL_ADVANCE, CONTROL_RESET, CONTROL_RESET_ALL = 0, 1, 2, 3


class Fault(IntEnum):
    """Why a run stopped: `run.py` turns these into named errors."""

    NONE = 0
    UNKNOWN_OPERATION = 1
    MEMORY = 2  # address out of the program's memory or not aligned
    NO_ROUTE = 3  # a color that this PE's ramp has no route for
    OPERAND = 4  # kinds or types that the operation does not take


class Stop(IntEnum):
    """How an engine came back."""

    QUIET = 0  # nothing moves and nothing will
    LIMIT = 1  # the cycle limit
    FAULT = 2
    LEAK = 3  # debug check: wavelets sent are not wavelets received plus in flight
