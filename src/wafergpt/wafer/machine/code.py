"""The assembler: a `Code` object collects the tasks, arrays and instructions of one role.

Every PE of a role runs the same instructions on its own memory. See `program` for a complete example.
"""

from __future__ import annotations

from typing import Any

from wafergpt.wafer.machine import isa
from wafergpt.wafer.machine.errors import ProgramError
from wafergpt.wafer.machine.isa import Alu, Field, Kind, Op, Type
from wafergpt.wafer.machine.operands import Array, Color, Dsd, Operand, Reg, Target, type_of
from wafergpt.wafer.machine.scalar_code import SCRATCH, Scalars, Task, bits_of

_FIELDS = {
    "base": Field.BASE,
    "length": Field.LENGTH,
    "stride": Field.STRIDE,
    "inner": Field.INNER,
    "outer": Field.OUTER,
    "color": Field.COLOR,
}


class Code(Scalars):
    """Arrays, descriptors and vector instructions of a role, on top of the scalar ones."""

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.arrays: dict[str, Array] = {}
        self.dsds: list[list[int]] = []
        self.data_bytes = 0
        self._views: dict[tuple[int, ...], Dsd] = {}

    # Memory ----------------------------------------------------------------------------------------------

    def array(self, name: str, length: int, type: str = "f32", *, bank: int | None = None) -> Array:
        """A new array, zero at first. `bank` (0..3) is the word, modulo 4, that it starts at: two operands of
        one instruction should differ by 2. Without it arrays alternate between 0 and 2."""
        if name in self.arrays:
            raise ProgramError(f"role '{self.name}' has an array '{name}' already")
        if length < 1:
            raise ProgramError(f"array '{name}' has {length} elements")
        start = 2 * (len(self.arrays) % 2) if bank is None else bank % 4
        address = self.data_bytes + (4 * start - self.data_bytes) % 16
        array = Array(self, name, type_of(type), length, address)
        self.arrays[name] = array
        self.data_bytes = address + array.n_bytes
        return array

    def param(self, name: str) -> Array:
        """One int32 word that the host sets per PE."""
        return self.array(name, 1, "i32")

    # Descriptors -----------------------------------------------------------------------------------------

    def _descriptor(self, type: Type, **fields: int) -> Dsd:
        word = [0] * isa.DSD_WORDS
        word[Field.TYPE] = int(type)
        word[Field.STRIDE] = 1
        for name, value in fields.items():
            word[Field[name.upper()]] = int(value)
        self.dsds.append(word)
        return Dsd(len(self.dsds) - 1, type)

    def view(
        self,
        array: Array,
        start: int = 0,
        length: int | None = None,
        stride: int = 1,
        *,
        inner: int = 0,
        outer: int = 0,
    ) -> Dsd:
        """A descriptor of its own: element i is array[start + i % inner * stride + i // inner * outer]
        (inner 0: array[start + i * stride])."""
        n = array.length - start if length is None else length
        size = isa.TYPE_BYTES[array.type]
        return self._descriptor(
            array.type,
            kind=Kind.MEMORY,
            base=array.address + start * size,
            length=n,
            stride=stride,
            inner=inner,
            outer=outer,
        )

    def shared_view(self, array: Array, start: int, length: int, stride: int) -> Dsd:
        """As `view`, one descriptor for all equal ones; not to be changed."""
        key = (array.address, int(array.type), start, length, stride)
        if key not in self._views:
            self._views[key] = self.view(array, start, length, stride)
        return self._views[key]

    def recv(self, color: Color, length: int, type: str = "f32") -> Dsd:
        """`length` elements from the fabric; float16 comes two to a wavelet."""
        return self._descriptor(type_of(type), kind=Kind.RECEIVE, length=length, color=color.index)

    def send(self, color: Color, length: int, type: str = "f32") -> Dsd:
        """`length` elements to the fabric; float16 goes two to a wavelet."""
        return self._descriptor(type_of(type), kind=Kind.SEND, length=length, color=color.index)

    def set(self, dsd: Dsd, field: str, value: Reg | int) -> None:
        """Change "base" (bytes), "length", "stride", "inner", "outer" or "color" of a descriptor."""
        if field not in _FIELDS:
            raise ProgramError(f"a descriptor has no field '{field}': {', '.join(_FIELDS)}")
        if isinstance(value, Reg):
            self.emit(Op.DSET, mode=_FIELDS[field], dst=dsd.index, a=value.index)
        else:
            self.emit(Op.DSET, mode=_FIELDS[field], dst=dsd.index, imm=bits_of(value))

    def advance(self, dsd: Dsd, elements: Reg | int) -> None:
        """Move the base of a descriptor by a number of elements."""
        if isinstance(elements, Reg):
            self.emit(Op.DADD, dst=dsd.index, a=elements.index)
        else:
            self.emit(Op.DADD, dst=dsd.index, imm=bits_of(elements))

    def control(self, color: Color, *commands: int, thread: int = 0) -> None:
        """Send one control wavelet; the first router takes the first command (`isa.CONTROL_*`), and so on."""
        if len(commands) > 16:
            raise ProgramError("a control wavelet holds at most 16 commands")
        word = sum(command << 2 * place for place, command in enumerate(commands))
        out = self._descriptor(Type.I32, kind=Kind.CONTROL, length=1, color=color.index)
        self.vector(Alu.MOV, out, word - 2**32 if word >= 2**31 else word, thread=thread)

    # Vector instructions ---------------------------------------------------------------------------------

    def _operand(self, operand: Operand, constants: list[Reg]) -> int:
        """The instruction's word for an operand; a constant goes through a scratch register."""
        if isinstance(operand, Reg):
            return operand.index
        if isinstance(operand, Array):
            if operand.code is not self:
                raise ProgramError(f"array '{operand.name}' belongs to role '{operand.code.name}'")
            operand = operand[:]
        if isinstance(operand, Dsd):
            return isa.N_REGISTERS + operand.index
        if len(constants) == len(SCRATCH):
            raise ProgramError("an instruction takes at most two constants")
        register = Reg(SCRATCH[len(constants)])
        constants.append(register)
        self.li(register, operand)
        return register.index

    def vector(
        self,
        mode: Alu,
        dst: Target,
        *sources: Operand,
        thread: int = 0,
        activate: Task | None = None,
        unblock: Task | None = None,
    ) -> None:
        """Any operation of `isa.Alu`. `thread` 1..8 makes it asynchronous on that microthread (the main
        thread waits if it is in use); on completion task `activate` is activated and task `unblock`
        unblocked. On registers and constants alone it is one scalar instruction."""
        if len(sources) != isa.N_SOURCES[mode]:
            raise ProgramError(f"{mode.name} takes {isa.N_SOURCES[mode]} sources, not {len(sources)}")
        if not 0 <= thread < isa.N_THREADS:
            raise ProgramError(f"there is no microthread {thread}: 1..8, or 0 to wait for the result")
        for source in sources:
            if isinstance(dst, Array) and isinstance(source, Array) and source.length < dst.length:
                raise ProgramError(
                    f"'{source.name}' has {source.length} elements, '{dst.name}' takes {dst.length}"
                )
        scalar = isinstance(dst, Reg) and not any(isinstance(s, (Array, Dsd)) for s in sources)
        constants: list[Reg] = []
        words = [self._operand(operand, constants) for operand in sources]
        words += [-1] * (3 - len(words))
        fields = {"mode": int(mode), "a": words[0], "b": words[1], "c": words[2]}
        if scalar and mode < isa.FIRST_REDUCTION:
            self.emit(Op.FALU, dst=self._operand(dst, []), **fields)
            return
        fields["activate"] = -1 if activate is None else activate.index
        fields["unblock"] = -1 if unblock is None else unblock.index
        self.emit(Op.VECTOR, dst=self._operand(dst, []), thread=thread, **fields)

    def wait(self, thread: int) -> None:
        """The main thread waits until the microthread's instruction has ended; one cycle."""
        scratch = SCRATCH[0]
        self.emit(Op.VECTOR, mode=Alu.MOV, dst=scratch, a=scratch, thread=thread)

    def mov(self, dst: Target, a: Operand, **how: Any) -> None:
        """dst = a, converted to dst's type. `how` as in `vector`, here and below."""
        self.vector(Alu.MOV, dst, a, **how)

    def add(self, dst: Target, a: Operand, b: Operand, **how: Any) -> None:
        """dst = a + b."""
        self.vector(Alu.ADD, dst, a, b, **how)

    def sub(self, dst: Target, a: Operand, b: Operand, **how: Any) -> None:
        """dst = a - b."""
        self.vector(Alu.SUB, dst, a, b, **how)

    def mul(self, dst: Target, a: Operand, b: Operand, **how: Any) -> None:
        """dst = a * b."""
        self.vector(Alu.MUL, dst, a, b, **how)

    def max(self, dst: Target, a: Operand, b: Operand, **how: Any) -> None:
        """dst = a if a > b else b."""
        self.vector(Alu.MAX, dst, a, b, **how)

    def fmac(self, dst: Target, a: Operand, b: Operand, c: Operand, **how: Any) -> None:
        """dst = a * b + c: product and sum each rounded to float32, the result to dst's type."""
        self.vector(Alu.FMAC, dst, a, b, c, **how)

    def apply(self, function: str, dst: Target, a: Operand, **how: Any) -> None:
        """dst = function(a): "exp", "rsqrt", "sqrt", "tanh", "erf", "gelu" (tanh form), "i2f", "f2i"."""
        mode = Alu.__members__.get(function.upper())
        if mode is None or isa.N_SOURCES[mode] != 1 or mode >= isa.FIRST_REDUCTION:
            raise ProgramError(f"unknown function '{function}'")
        self.vector(mode, dst, a, **how)

    def div(self, dst: Target, a: Operand, b: Operand, **how: Any) -> None:
        """dst = a / b."""
        self.vector(Alu.DIV, dst, a, b, **how)

    def sum(self, register: Reg, a: Operand, **how: Any) -> None:
        """register += a[0], then a[1], ... in float32."""
        self.vector(Alu.SUM, register, a, **how)

    def dot(self, register: Reg, a: Operand, b: Operand, **how: Any) -> None:
        """register += a[0] * b[0], then a[1] * b[1], ... in float32."""
        self.vector(Alu.DOT, register, a, b, **how)

    def top(self, register: Reg, a: Operand, **how: Any) -> None:
        """register = the largest of itself and the elements of a."""
        self.vector(Alu.RMAX, register, a, **how)

    def argmax(self, register: Reg, a: Operand, **how: Any) -> None:
        """Where a[i] exceeds `register`: it becomes a[i] and the register after it i (so the first wins)."""
        self.vector(Alu.ARGMAX, register, a, **how)
