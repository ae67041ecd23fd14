"""Tokenising on all cores, in order: batches of texts in, batches of id arrays out."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from queue import SimpleQueue
from types import TracebackType

import numpy as np

from wafergpt.data.encode_worker import read_frame, write_frame
from wafergpt.errors import WaferGPTError
from wafergpt.tokenizer.bpe import Tokenizer
from wafergpt.tokenizer.encoder import Encoder, TokenArray
from wafergpt.units import MIB

Batch = Sequence[bytes]
"""UTF-8 texts."""

_INLINE_BYTES = MIB  # less text is encoded before a process has started


def available_cores() -> int:
    """Cores this process may use."""
    if hasattr(os, "sched_getaffinity"):  # Linux: containers and taskset limit it
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


class EncodePool:
    """Encodes batches with `n_workers` processes, which start once the input proves large enough."""

    def __init__(self, tokenizer: Tokenizer, n_workers: int | None = None) -> None:
        self._tokenizer = tokenizer
        self._encoder = Encoder(tokenizer)
        self._n_workers = n_workers or available_cores()
        self._threads = ThreadPoolExecutor(self._n_workers)
        self._children: list[subprocess.Popen[bytes]] = []
        self._idle: SimpleQueue[subprocess.Popen[bytes]] = SimpleQueue()

    def encode(self, batches: Iterable[Batch]) -> Iterator[list[TokenArray]]:
        """The ids of every text of every batch, in order; a few batches are in flight at any time.

        Raises WaferGPTError if a process dies.
        """
        remaining = iter(batches)
        inline_bytes = 0
        for batch in remaining:
            yield self._arrays(self._encoder.encode_many([text.decode() for text in batch]))
            inline_bytes += sum(map(len, batch))
            if inline_bytes > _INLINE_BYTES and self._n_workers > 1 and not self._children:
                self._start()
            if not self._idle.empty():  # the first process is ready
                break
        in_flight: deque[Future[list[TokenArray]]] = deque()
        for batch in remaining:
            in_flight.append(self._threads.submit(self._ask, batch))
            if len(in_flight) > 2 * self._n_workers:
                yield in_flight.popleft().result()
        while in_flight:
            yield in_flight.popleft().result()

    def __enter__(self) -> EncodePool:
        return self

    def __exit__(self, kind: type[BaseException] | None, value: object, trace: TracebackType | None) -> None:
        if kind is not None:
            for child in self._children:
                child.kill()  # which also ends the waiting of the threads
        self._threads.shutdown(cancel_futures=True)
        for child in self._children:
            for stream in (child.stdin, child.stdout):
                assert stream is not None
                with contextlib.suppress(OSError):  # what a killed process did not read
                    stream.close()
            child.wait()

    def _start(self) -> None:
        # One thread each: the processes are the parallelism.
        environment = {**os.environ, "TOKENIZERS_PARALLELISM": "false", "RAYON_NUM_THREADS": "1"}
        environment["OPENBLAS_NUM_THREADS"] = environment["OMP_NUM_THREADS"] = "1"
        # The package this process runs, whatever lies in the current folder (-P leaves that out).
        paths = [str(Path(__file__).parents[2]), os.environ.get("PYTHONPATH", "")]
        environment["PYTHONPATH"] = os.pathsep.join(filter(None, paths))
        command = [sys.executable, "-P", "-m", "wafergpt.data.encode_worker"]
        tokenizer = self._tokenizer.to_bytes()
        for _ in range(self._n_workers):
            child = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment)
            self._children.append(child)
            self._threads.submit(self._introduce, child, tokenizer)

    def _introduce(self, child: subprocess.Popen[bytes], tokenizer: bytes) -> None:
        """Hand over the tokenizer and wait until the process has read it."""
        _exchange(child, [tokenizer])
        self._idle.put(child)  # also a dead one: the first question to it says so

    def _ask(self, batch: Batch) -> list[TokenArray]:
        child = self._idle.get()
        answer = _exchange(child, batch)
        self._idle.put(child)
        if answer is None:
            child.wait()
            raise WaferGPTError(
                f"tokenising process {child.pid} ended with code {child.returncode}; nothing was written "
                f"(-9 usually means that memory ran out: try --workers 1)"
            )
        return self._arrays(answer)

    def _arrays(self, encoded: Sequence[bytes]) -> list[TokenArray]:
        return [np.frombuffer(ids, self._encoder.dtype) for ids in encoded]


def _exchange(child: subprocess.Popen[bytes], parts: Sequence[bytes]) -> list[bytes] | None:
    """Send a frame and receive the answer; None if the process is gone."""
    assert child.stdin is not None
    assert child.stdout is not None
    try:
        write_frame(child.stdin, parts)
        return read_frame(child.stdout)
    except (OSError, EOFError):
        return None
