"""Loaders with one fault each, to show that the runner sees it."""

from __future__ import annotations

import json
import os
import pickle
import socket
from collections.abc import Callable
from pathlib import Path

from wafergpt.errors import CheckpointError

WEIGHTS = "model.safetensors"


def unpickles(path: str) -> None:
    handle = os.open(path, os.O_RDONLY)
    data = os.fdopen(os.open(WEIGHTS, os.O_RDONLY, dir_fd=handle), "rb").read()
    pickle.loads(data)


def believes_lengths(path: str) -> None:
    bytearray(1 << 30)


def touches_memory(path: str) -> None:
    bytearray(b"x") * (80 << 20)  # within the limit on address space, not within the bar


def never_ends(path: str) -> None:
    while True:
        pass


def follows_links(path: str) -> None:
    (Path(path) / "config.json").read_bytes()
    raise CheckpointError("config.json: symbolic link")


def runs_code(path: str) -> None:
    exec("1")
    raise CheckpointError("x")


def connects(path: str) -> None:
    socket.socket().close()
    raise CheckpointError("x")


def imports(path: str) -> None:
    import colorsys  # noqa: F401

    raise CheckpointError("x")


def writes(path: str) -> None:
    handle = os.open(path, os.O_RDONLY)
    os.close(os.open("note", os.O_CREAT | os.O_WRONLY, dir_fd=handle))


def accepts_everything(path: str) -> None:
    return None


def lets_errors_through(path: str) -> None:
    json.loads("{")


def speaks_of_nothing(path: str) -> None:
    raise CheckpointError("cannot be loaded")


def speaks_in_lines(path: str) -> None:
    raise CheckpointError("config.json: symbolic link\nsecond line")


LOADERS: dict[str, Callable[[str], None]] = {
    function.__name__: function
    for function in (
        unpickles,
        believes_lengths,
        touches_memory,
        never_ends,
        follows_links,
        runs_code,
        connects,
        imports,
        writes,
        accepts_everything,
        lets_errors_through,
        speaks_of_nothing,
        speaks_in_lines,
    )
}
