"""The stack machine: what pickles of weights use, the rest refused; no pickle makes it work for long."""

from __future__ import annotations

import datetime
import decimal
import pickle
import pickletools
from typing import Any

import pytest

from torch_bin_lab import pickled, text
from wafergpt.checkpoints.torch_bin.pickle_subset import _ACTIONS, MAX_INSTRUCTIONS, follow
from wafergpt.errors import CheckpointError


def value_of(data: bytes) -> object:
    names = {"collections.OrderedDict": lambda arguments: {}, "torch.FloatStorage": None}
    value, n_bytes = follow(memoryview(data), names, lambda key: ("persistent", key))
    assert n_bytes == len(data)
    return value


PLAIN: list[Any] = [
    None,
    True,
    False,
    [0, 255, 256, 65535, 65536, -1, 2**31 - 1, -(2**31), 2**31, 2**63, 2**1000, -(2**1000)],
    [0.0, -1.5, 1e300],
    ["", "a", "é" * 300, "\n"],
    [(), (1,), (1, 2), (1, 2, 3), (1, 2, 3, 4)],
    {"a": {"b": [1]}, "c": {}},
    list(range(3000)),
    {str(n): [str(n)] * 2 for n in range(300)},  # remembers more than 256 values
]


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
@pytest.mark.parametrize("value", PLAIN, ids=lambda value: str(value)[:20])
def test_plain_values_are_those_of_pickle(value: Any, protocol: int) -> None:
    data = pickle.dumps(value, protocol)
    assert value_of(data) == pickle.loads(data) == value


def test_the_slow_writer_of_pickles_is_read_too() -> None:
    assert all(value_of(pickle._dumps(value, 2)) == value for value in PLAIN)  # type: ignore[attr-defined]


# Every other instruction of pickle is refused by number, wherever it stands.
OTHERS = {op.code: op.name for op in pickletools.opcodes if ord(op.code) not in _ACTIONS and op.code != "."}


@pytest.mark.parametrize("code", OTHERS, ids=OTHERS.get)
def test_every_other_instruction_is_refused(code: str) -> None:
    with pytest.raises(CheckpointError, match=f"uses instruction {ord(code):#04x}, which"):
        value_of(pickled(b"N" + code.encode("latin-1")))


def test_the_instructions_are_those_that_were_meant() -> None:
    assert set(OTHERS.values()) >= {"INST", "OBJ", "NEWOBJ", "NEWOBJ_EX", "EXT1", "PERSID", "DUP", "POP"}
    assert len(OTHERS) + len(_ACTIONS) + 1 == len(pickletools.opcodes) == 68


@pytest.mark.parametrize(
    "value", [print, datetime.date(2020, 1, 1), decimal.Decimal(1), {1, 2}, b"x", 1j, object(), int]
)
@pytest.mark.parametrize("protocol", [2, 4])
def test_other_values_are_refused(value: Any, protocol: int) -> None:
    with pytest.raises(CheckpointError, match="which a file of weights does not need"):
        value_of(pickle.dumps(value, protocol))


EXPONENTIAL = b")q\0" + b"".join(b"h\0\x86q\0" for _ in range(60))  # 2^60 leaves in 60 tuples
BROKEN = {
    "empty": (b"", "ends early"),
    "protocol 0": (b"N.", "does not start as a pickle"),
    "protocol 6": (b"\x80\x06N.", "is of protocol 6"),
    "no end": (b"\x80\x02N", "ends early"),
    "nothing": (pickled(), "empty stack"),
    "left over": (pickled(b"NN"), "values left over"),
    "open mark": (pickled(b"(N"), "values left over"),
    "no mark": (pickled(b"]e"), "a mark that is not there"),
    "append to a tuple": (pickled(b")Na"), "not a list"),
    "append to nothing": (pickled(b"Na"), "not a list"),
    "key of a list": (pickled(b"]NNs"), "not a dict"),
    "odd items": (pickled(b"}(N", b"u"), "without a value"),
    "twice": (pickled(b"}", (text("a") + b"Ns") * 2), "gives the key 'a' twice"),
    "number as key": (pickled(b"}K\1Ns"), "not text but int"),
    "tuple as key": (pickled(b"}", EXPONENTIAL, b"Ns"), "not text but tuple"),
    "short tuple": (pickled(b"N\x87"), "empty stack"),
    "not remembered": (pickled(b"h\x05"), "recalls value 5"),
    "remember nothing": (pickled(b"q\0N"), "remembers a value of an empty stack"),
    "endless name": (pickled(b"c" + b"x" * 10_000), "without an end"),
    "long text": (pickled(b"X\xff\xff\xff\xff"), "over the limit of 1024"),
    "not UTF-8": (pickled(b"X\1\0\0\0\xff"), "not UTF-8"),
    "half a number": (b"\x80\x02J\0", "ends early"),
    "long number": (b"\x80\x02\x8a\xff\0", "ends early"),
    "long frame": (b"\x80\x04\x95" + b"\xff" * 8 + b".", "a frame that does not fit"),
    "call of a text": (pickled(text("a"), b")R"), "not a function of tensors"),
    "call of a class": (pickled(b"ctorch\nFloatStorage\n)R"), "not a function of tensors"),
    "call without tuple": (pickled(b"ccollections\nOrderedDict\nNR"), "not a function of tensors"),
    "attributes": (pickled(b"}}", text("__class__"), b"Nsb"), "sets attributes other than _metadata"),
    "attributes of a list": (pickled(b"]}", text("_metadata"), b"Nsb"), "not a dict"),
    "name by number": (b"\x80\x04K\1K\2\x93.", "by what is not text"),
    "name by text": (b"\x80\x04\x8c\2os\x8c\6system\x93.", "names 'os.system'"),
    "dotted name": (pickled(b"ctorch\nFloatStorage.__init__\n"), "names 'torch.FloatStorage.__init__'"),
    "persistent number": (pickled(b"K\1Q"), "persistent id that is not a tuple"),
    "many instructions": (pickled(b"]" * MAX_INSTRUCTIONS), "over 500000 instructions"),
}  # fmt: skip


@pytest.mark.parametrize("case", BROKEN)
def test_broken_and_hostile_pickles_are_refused(case: str) -> None:
    data, message = BROKEN[case]
    with pytest.raises(CheckpointError, match=message) as caught:
        value_of(data)
    assert "\n" not in str(caught.value)


def test_a_pickle_over_8_mib_is_refused() -> None:
    texts = (text("x" * 1024) + b"a") * (9 * 1024)
    with pytest.raises(CheckpointError, match="is over 8 MiB long"):
        value_of(pickled(b"]", texts))


def test_deep_and_shared_values_cost_what_they_are_long() -> None:
    value_of(pickled(b"(" * 50_000, b"t" * 50_000))  # no recursion, here or when it is freed
    value_of(pickled(EXPONENTIAL))
    value_of(pickled(b"]q\0h\0a"))  # a list within itself
    value_of(pickled(b"Nr\xff\xff\xff\xff"))  # a memo of four thousand million
