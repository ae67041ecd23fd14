"""The scalar half of the assembler: registers, integers, control flow and tasks of one role."""

from __future__ import annotations

import operator
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from wafergpt.wafer.machine import isa
from wafergpt.wafer.machine.errors import ProgramError
from wafergpt.wafer.machine.isa import Cond, Int, Op, Type
from wafergpt.wafer.machine.operands import Array, Color, Reg

_ARGUMENT = 0  # a data or control task finds its wavelet in r0
SCRATCH = (14, 15)  # constants of vector instructions
_CONDITIONS = {  # on int32; f<, f>= on float32
    "==": Cond.EQ,
    "!=": Cond.NE,
    "<": Cond.LT,
    ">=": Cond.GE,
    "f<": Cond.FLT,
    "f>=": Cond.FGE,
}
_OPPOSITE = {"==": "!=", "!=": "==", "<": ">=", ">=": "<", "f<": "f>=", "f>=": "f<"}


@dataclass(frozen=True)
class Task:
    """A task of a role: local (`color` None), or fired by a data or control wavelet of its color."""

    index: int
    name: str
    color: Color | None
    control: bool
    blocked: bool


def bits_of(value: float | int) -> int:
    """A constant as the int32 that holds it: an int (NumPy's too) as it is, a float as float32."""
    if hasattr(value, "__index__"):
        whole = operator.index(value)
        if not -(2**31) <= whole < 2**32:
            raise ProgramError(f"constant {whole} does not fit 32 bits")
        return whole - 2**32 if whole >= 2**31 else whole
    try:
        return int(struct.unpack("<i", struct.pack("<f", value))[0])
    except (struct.error, OverflowError):
        raise ProgramError(f"neither an operand nor a number of 32 bits: {value!r:.60}") from None


class Scalars:
    """Scalar instructions, one cycle each unless `timing` says otherwise."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.words: list[list[int]] = []
        self.phase = ""  # what the instructions written from now on are part of, for the timeline
        self.phases: list[str] = []
        self.tasks: dict[str, Task] = {}
        self.entries: dict[str, int] = {}
        self._free = list(range(13, _ARGUMENT, -1))
        self._writing = ""  # the task whose block is open

    # Registers -------------------------------------------------------------------------------------------

    @property
    def argument(self) -> Reg:
        """Register 0: the wavelet that fired a data or control task."""
        return Reg(_ARGUMENT)

    def reg(self) -> Reg:
        """A register of the 13 for the program's own use; kept until `release`."""
        if not self._free:
            raise ProgramError(f"role '{self.name}' needs more than 13 registers at once")
        return Reg(self._free.pop())

    def pair(self) -> tuple[Reg, Reg]:
        """Two registers that follow each other, as `counter` and `argmax` need them."""
        for low in sorted(self._free):
            if low + 1 in self._free:
                self._free.remove(low)
                self._free.remove(low + 1)
                return Reg(low), Reg(low + 1)
        raise ProgramError(f"role '{self.name}' has no pair of free registers")

    def release(self, *registers: Reg) -> None:
        """Give registers back."""
        for register in registers:
            if register.index in self._free:
                raise ProgramError(f"register {register.index} is free already")
            self._free.append(register.index)

    @contextmanager
    def regs(self, n: int) -> Iterator[list[Reg]]:
        """`n` registers within a `with` block."""
        taken = [self.reg() for _ in range(n)]
        yield taken
        self.release(*taken)

    # Integers and control --------------------------------------------------------------------------------

    def emit(self, op: Op, **fields: int) -> int:
        """Append an instruction (mode, dst, a, b, c, imm, thread, activate, unblock); returns its place."""
        if not self._writing:
            raise ProgramError(f"role '{self.name}': an instruction outside of `with code.task(...)`")
        given = {isa.Word[name.upper()]: value for name, value in fields.items()}
        word = [int(op), 0, -1, -1, -1, -1, 0, 0, -1, -1]
        for place, value in given.items():
            word[place] = int(value)
        self.words.append(word)
        self.phases.append(self.phase)
        return len(self.words) - 1

    def li(self, dst: Reg, value: float | int) -> None:
        """dst = a constant: an int as int32, a float as float32."""
        self.emit(Op.LI, dst=dst.index, imm=bits_of(value))

    def _integer(self, mode: Int, dst: Reg, a: Reg, b: Reg | int) -> None:
        if isinstance(b, Reg):
            self.emit(Op.IALU, mode=mode, dst=dst.index, a=a.index, b=b.index)
        else:
            self.emit(Op.IALU, mode=mode, dst=dst.index, a=a.index, imm=bits_of(b))

    def iadd(self, dst: Reg, a: Reg, b: Reg | int) -> None:
        """dst = a + b on int32, as are the ten that follow."""
        self._integer(Int.ADD, dst, a, b)

    def isub(self, dst: Reg, a: Reg, b: Reg | int) -> None:
        """dst = a - b."""
        self._integer(Int.SUB, dst, a, b)

    def imul(self, dst: Reg, a: Reg, b: Reg | int) -> None:
        """dst = a * b."""
        self._integer(Int.MUL, dst, a, b)

    def idiv(self, dst: Reg, a: Reg, b: Reg | int) -> None:
        """dst = floor(a / b); 0 if b is 0."""
        self._integer(Int.DIV, dst, a, b)

    def imod(self, dst: Reg, a: Reg, b: Reg | int) -> None:
        """dst = a - floor(a / b) * b; 0 if b is 0."""
        self._integer(Int.MOD, dst, a, b)

    def iand(self, dst: Reg, a: Reg, b: Reg | int) -> None:
        """dst = a & b; the other operations by name through `integer`."""
        self._integer(Int.AND, dst, a, b)

    def integer(self, operation: str, dst: Reg, a: Reg, b: Reg | int) -> None:
        """Any of `isa.Int` by name: "or", "xor", "shl", "shr", "min", "max", ..."""
        try:
            mode = Int[operation.upper()]
        except KeyError:
            raise ProgramError(f"unknown integer operation '{operation}'") from None
        self._integer(mode, dst, a, b)

    def copy(self, dst: Reg, a: Reg) -> None:
        """dst = a, all 32 bits."""
        self._integer(Int.ADD, dst, a, 0)

    def load(self, dst: Reg, array: Array, index: Reg | int = 0) -> None:
        """dst = array[index] (float16 becomes float32). A register index costs a shift before the load."""
        self._access(Op.LOAD, dst, array, index)

    def load_at(self, dst: Reg, address: Reg, type: Type) -> None:
        """dst = the element of that type at the byte address in a register."""
        self.emit(Op.LOAD, mode=type, dst=dst.index, a=address.index, imm=0)

    def store(self, array: Array, value: Reg, index: Reg | int = 0) -> None:
        """array[index] = value."""
        self._access(Op.STORE, value, array, index)

    def _access(self, op: Op, dst: Reg, array: Array, index: Reg | int) -> None:
        if isinstance(index, int):
            if not 0 <= index < array.length:
                raise ProgramError(f"index {index} is outside array '{array.name}' of {array.length}")
            at = array.address + index * isa.TYPE_BYTES[array.type]
            self.emit(op, mode=array.type, dst=dst.index, imm=at)
            return
        scratch = Reg(SCRATCH[0])
        self._integer(Int.SHL, scratch, index, 1 if array.type == Type.F16 else 2)
        self.emit(op, mode=array.type, dst=dst.index, a=scratch.index, imm=array.address)

    def counter(self, low: Reg) -> None:
        """low, and the register after it, = the 48-bit cycle counter's low 32 and high 16 bits."""
        if low.index + 1 >= isa.N_REGISTERS:
            raise ProgramError("the counter needs a pair of registers")
        self.emit(Op.COUNTER, dst=low.index)

    def delay(self, cycles: Reg | int) -> None:
        """The main thread does nothing for `cycles` cycles: time of software that is not spelled out."""
        if isinstance(cycles, Reg):
            self.emit(Op.DELAY, a=cycles.index)
        else:
            self.emit(Op.DELAY, imm=cycles)

    # Flow ------------------------------------------------------------------------------------------------

    def _branch(self, condition: str, a: Reg, b: Reg | int | float) -> int:
        if condition not in _CONDITIONS:
            raise ProgramError(f"unknown condition '{condition}': {', '.join(_CONDITIONS)}")
        mode = _CONDITIONS[condition]
        if isinstance(b, Reg):
            return self.emit(Op.BRANCH, mode=mode, a=a.index, b=b.index)
        return self.emit(Op.BRANCH, mode=mode, a=a.index, imm=bits_of(b))

    @contextmanager
    def loop(self, n: Reg | int) -> Iterator[Reg]:
        """Repeat the block `n` times; yields the counter, from 0. Two cycles at the start, two per round."""
        counter = self.reg()
        self.li(counter, 0)
        out = self._branch(">=", counter, n)
        start = len(self.words)
        yield counter
        self.iadd(counter, counter, 1)
        self.words[self._branch("<", counter, n)][isa.Word.C] = start
        self.words[out][isa.Word.C] = len(self.words)
        self.release(counter)

    @contextmanager
    def while_(self, a: Reg, condition: str, b: Reg | int | float) -> Iterator[None]:
        """Repeat the block while `a condition b` (==, !=, <, >= on int32; f<, f>= on float32)."""
        start = len(self.words)
        out = self._branch(_OPPOSITE.get(condition, condition), a, b)
        yield
        self.emit(Op.JUMP, imm=start)
        self.words[out][isa.Word.C] = len(self.words)

    @contextmanager
    def if_(self, a: Reg, condition: str, b: Reg | int | float) -> Iterator[None]:
        """Run the block if `a condition b`. With a NaN, `f<` and `f>=` are each other's opposite."""
        out = self._branch(_OPPOSITE.get(condition, condition), a, b)
        yield
        self.words[out][isa.Word.C] = len(self.words)

    # Tasks -----------------------------------------------------------------------------------------------

    def declare(
        self, name: str, *, color: Color | None = None, control: bool = False, blocked: bool = False
    ) -> Task:
        """A task that is written later with `task(name)`, so that earlier code may activate it."""
        if name in self.tasks:
            raise ProgramError(f"role '{self.name}' has a task '{name}' already")
        if len(self.tasks) == isa.N_TASKS:
            raise ProgramError(f"role '{self.name}' has more than {isa.N_TASKS} tasks")
        task = Task(len(self.tasks), name, color, control, blocked)
        self.tasks[name] = task
        return task

    @contextmanager
    def task(
        self, name: str, *, color: Color | None = None, control: bool = False, blocked: bool = False
    ) -> Iterator[Task]:
        """Write a task: local unless a `color` is given. It ends with the block (or `end`, `done`)."""
        task = self.tasks.get(name) or self.declare(name, color=color, control=control, blocked=blocked)
        if name in self.entries:
            raise ProgramError(f"task '{name}' is written twice")
        if self._writing:
            raise ProgramError(f"task '{name}' is written within task '{self._writing}'")
        self.entries[name] = len(self.words)
        self._writing = name
        yield task
        self.end()
        self._writing = ""

    def activate(self, task: Task) -> None:
        """Let a local task run when the main thread is free."""
        self.emit(Op.ACTIVATE, imm=task.index)

    def unblock(self, task: Task) -> None:
        """Let a blocked task run."""
        self.emit(Op.UNBLOCK, imm=task.index)

    def block(self, task: Task) -> None:
        """Keep a task from running until it is unblocked."""
        self.emit(Op.BLOCK, imm=task.index)

    def end(self) -> None:
        """The task ends here."""
        self.emit(Op.END)

    def done(self) -> None:
        """The task ends, and this PE has finished what the host launched."""
        self.emit(Op.DONE)
