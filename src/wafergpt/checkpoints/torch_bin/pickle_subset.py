"""The few instructions of a pickle that describe weights, followed by our own stack machine.

A pickle is a program for a small stack machine (docs.python.org/3/library/pickletools.html). Of its 68
instructions a file of weights needs 35 (`_ACTIONS` and STOP); anything else is refused by number. There is no
unpickler here that something could be smuggled past: names are looked up in the caller's table and nowhere
else, nothing is imported, no attribute is set, and only functions of that table are called.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Mapping
from typing import Any, NoReturn

from wafergpt.errors import CheckpointError, shown
from wafergpt.units import MIB

MAX_PICKLE_BYTES = 8 * MIB  # the table of a 13B GPT-2 (about 700 tensors) has 0.1 MiB
# Each instruction makes at most one object of about 100 bytes: 50 MiB. A tensor takes about 25.
MAX_INSTRUCTIONS = 500_000
MAX_TEXT_BYTES = 1024  # names, keys and devices; the longest name of ours has 35
_MAX_MODULE_BYTES = 200
_PROTOCOLS = range(2, 6)  # torch.save writes 2 unless told otherwise


class Name:
    """A global name the file may use; what it stands for is up to the table it came from."""

    def __init__(self, text: str) -> None:
        self.text = text


Builder = Callable[[tuple[Any, ...]], object]


def follow(data: memoryview, names: Mapping[str, Builder | None], persistent: Builder) -> tuple[object, int]:
    """The value that the pickle at the start of `data` describes, and how many bytes it has.

    `names` maps `module.name` to what makes a value of the arguments (None: it is only named); `persistent`
    makes one of a persistent id. Raises CheckpointError (without the file's name) for anything else.
    """
    return _Machine(data[:MAX_PICKLE_BYTES], names, persistent).run()


class _Machine:
    """One run. Values are None, bool, int, float, str, tuple, list, dict, Name and what the table makes."""

    def __init__(self, data: memoryview, names: Mapping[str, Builder | None], persistent: Builder) -> None:
        self._data = data
        self._names = names
        self._persistent = persistent
        self._position = 0
        self._stack: list[Any] = []
        self._marks: list[list[Any]] = []  # the stacks below each open mark
        self._memo: dict[int, Any] = {}

    def run(self) -> tuple[object, int]:
        if self._byte() != 0x80:
            self._refuse("does not start as a pickle of protocol 2 or later")
        self._protocol()
        for _ in range(MAX_INSTRUCTIONS):
            code = self._byte()
            if code == ord("."):
                value = self._pop()
                if self._stack or self._marks:
                    self._refuse("ends with values left over")
                return value, self._position
            action = _ACTIONS.get(code)
            if action is None:
                self._refuse(f"uses instruction {code:#04x}, which a file of weights does not need")
            action(self)
        self._refuse(f"has over {MAX_INSTRUCTIONS} instructions")

    def _refuse(self, reason: str) -> NoReturn:
        raise CheckpointError(f"its pickle {reason} (byte {self._position})")

    # Reading

    def _take(self, n_bytes: int) -> bytes:
        end = self._position + n_bytes
        if end > len(self._data):
            self._refuse("ends early" if len(self._data) < MAX_PICKLE_BYTES else "is over 8 MiB long")
        taken = self._data[self._position : end].tobytes()
        self._position = end
        return taken

    def _byte(self) -> int:
        return self._take(1)[0]

    def _unsigned(self, n_bytes: int) -> int:
        return int.from_bytes(self._take(n_bytes), "little")

    def _signed(self, n_bytes: int) -> int:
        return int.from_bytes(self._take(n_bytes), "little", signed=True)

    def _line(self) -> str:
        window = self._data[self._position : self._position + _MAX_MODULE_BYTES].tobytes()
        length = window.find(b"\n")
        if length < 0:
            self._refuse("names something without an end")
        return self._text(length + 1)[:-1]

    def _text(self, n_bytes: int) -> str:
        if n_bytes > MAX_TEXT_BYTES:
            self._refuse(f"holds a text of {n_bytes} bytes, over the limit of {MAX_TEXT_BYTES}")
        try:
            return self._take(n_bytes).decode("utf-8")
        except UnicodeDecodeError:
            self._refuse("holds a text that is not UTF-8")

    # The stack

    def _pop(self) -> Any:
        if not self._stack:
            self._refuse("takes a value from an empty stack")
        return self._stack.pop()

    def _pop_to_mark(self) -> list[Any]:
        if not self._marks:
            self._refuse("refers to a mark that is not there")
        values, self._stack = self._stack, self._marks.pop()
        return values

    def _top(self, kind: type) -> Any:
        if not self._stack or type(self._stack[-1]) is not kind:
            self._refuse(f"changes something that is not a {kind.__name__}")
        return self._stack[-1]

    def _push(self, value: object) -> None:
        self._stack.append(value)

    # Instructions

    def _protocol(self) -> None:
        version = self._byte()
        if version not in _PROTOCOLS:
            self._refuse(f"is of protocol {version}; known: 2 to 5")

    def _mark(self) -> None:
        self._marks.append(self._stack)
        self._stack = []

    def _tuple(self, n: int) -> None:
        if len(self._stack) < n:
            self._refuse("takes a value from an empty stack")
        values = tuple(self._stack[-n:])
        self._stack[-n:] = [values]

    def _marked_tuple(self) -> None:
        values = self._pop_to_mark()
        self._push(tuple(values))

    def _extend(self, values: list[Any]) -> None:
        self._top(list).extend(values)

    def _set_items(self, values: list[Any]) -> None:
        table = self._top(dict)
        if len(values) % 2:
            self._refuse("gives a dict a key without a value")
        for key, value in zip(values[::2], values[1::2], strict=True):
            # Text alone: the hash of a tuple of tuples of ... costs its author nothing, and us everything.
            if type(key) is not str:
                self._refuse(f"has a key that is not text but {type(key).__name__}")
            if key in table:
                self._refuse(f"gives the key {shown(key)} twice")
            table[key] = value

    def _set_item(self) -> None:
        value, key = self._pop(), self._pop()
        self._set_items([key, value])

    def _name(self, module: str, name: str) -> None:
        text = f"{module}.{name}"
        if text not in self._names:
            self._refuse(f"names {shown(text)}, which a file of weights does not need; nothing of it was run")
        self._push(Name(text))

    def _stack_name(self) -> None:
        name, module = self._pop(), self._pop()
        if type(name) is not str or type(module) is not str:
            self._refuse("names something by what is not text")
        self._name(module, name)

    def _call(self) -> None:
        arguments, name = self._pop(), self._pop()
        make = self._names[name.text] if type(name) is Name else None
        if make is None or type(arguments) is not tuple:
            self._refuse("calls something that is not a function of tensors")
        self._push(make(arguments))

    def _build(self) -> None:
        """Attributes of a state dict: torch keeps versions of modules there. They are not kept."""
        state = self._pop()
        if type(state) is not dict or set(state) != {"_metadata"}:
            self._refuse("sets attributes other than _metadata")
        self._top(dict)

    def _persistent_id(self) -> None:
        key = self._pop()
        if type(key) is not tuple:
            self._refuse("has a persistent id that is not a tuple")
        self._push(self._persistent(key))

    def _put(self, index: int) -> None:
        if not self._stack:
            self._refuse("remembers a value of an empty stack")
        self._memo[index] = self._stack[-1]

    def _get(self, index: int) -> None:
        if index not in self._memo:
            self._refuse(f"recalls value {index}, which it did not remember")
        self._push(self._memo[index])

    def _frame(self) -> None:
        length = self._unsigned(8)
        if length > len(self._data) - self._position:
            self._refuse("has a frame that does not fit")


# Names and numbers as in Python's Lib/pickletools.py.
_ACTIONS: dict[int, Callable[[_Machine], None]] = {
    ord("("): _Machine._mark,  # MARK
    ord(")"): lambda m: m._push(()),  # EMPTY_TUPLE
    ord("t"): _Machine._marked_tuple,  # TUPLE
    0x85: lambda m: m._tuple(1),  # TUPLE1
    0x86: lambda m: m._tuple(2),  # TUPLE2
    0x87: lambda m: m._tuple(3),  # TUPLE3
    ord("]"): lambda m: m._push([]),  # EMPTY_LIST
    ord("a"): lambda m: m._extend([m._pop()]),  # APPEND
    ord("e"): lambda m: m._extend(m._pop_to_mark()),  # APPENDS
    ord("}"): lambda m: m._push({}),  # EMPTY_DICT
    ord("s"): _Machine._set_item,  # SETITEM
    ord("u"): lambda m: m._set_items(m._pop_to_mark()),  # SETITEMS
    ord("N"): lambda m: m._push(None),  # NONE
    0x88: lambda m: m._push(True),  # NEWTRUE
    0x89: lambda m: m._push(False),  # NEWFALSE
    ord("J"): lambda m: m._push(m._signed(4)),  # BININT
    ord("K"): lambda m: m._push(m._unsigned(1)),  # BININT1
    ord("M"): lambda m: m._push(m._unsigned(2)),  # BININT2
    0x8A: lambda m: m._push(m._signed(m._byte())),  # LONG1
    ord("G"): lambda m: m._push(struct.unpack(">d", m._take(8))[0]),  # BINFLOAT
    ord("X"): lambda m: m._push(m._text(m._unsigned(4))),  # BINUNICODE
    0x8C: lambda m: m._push(m._text(m._byte())),  # SHORT_BINUNICODE
    ord("c"): lambda m: m._name(m._line(), m._line()),  # GLOBAL
    0x93: _Machine._stack_name,  # STACK_GLOBAL
    ord("R"): _Machine._call,  # REDUCE
    ord("b"): _Machine._build,  # BUILD
    ord("Q"): _Machine._persistent_id,  # BINPERSID
    ord("q"): lambda m: m._put(m._unsigned(1)),  # BINPUT
    ord("r"): lambda m: m._put(m._unsigned(4)),  # LONG_BINPUT
    0x94: lambda m: m._put(len(m._memo)),  # MEMOIZE
    ord("h"): lambda m: m._get(m._unsigned(1)),  # BINGET
    ord("j"): lambda m: m._get(m._unsigned(4)),  # LONG_BINGET
    0x95: _Machine._frame,  # FRAME
    0x80: _Machine._protocol,  # PROTO
}
