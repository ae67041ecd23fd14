"""Tokenising on all cores, in order: batches of texts in, batches of id arrays out."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
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

_INLINE_BYTES = 4 * MIB  # starting processes costs as much as encoding about this much text


def available_cores() -> int:
    """Cores this process may use."""
    if hasattr(os, "sched_getaffinity"):  # Linux: containers and taskset limit it
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


class EncodePool:
    """Encodes batches with `n_workers` processes, started once the input proves large enough."""

    def __init__(self, tokenizer: Tokenizer, n_workers: int | None = None) -> None:
        self._tokenizer = tokenizer
        self._encoder = Encoder(tokenizer)
        self._n_workers = n_workers or available_cores()
        self._children: list[subprocess.Popen[bytes]] = []
        self._idle: SimpleQueue[subprocess.Popen[bytes]] = SimpleQueue()

    def encode(self, batches: Iterable[Batch]) -> Iterator[list[TokenArray]]:
        """The ids of every text of every batch, in order; a few batches are in flight at any time."""
        remaining = iter(batches)
        inline_bytes = 0
        for batch in remaining:
            yield [self._encoder.encode(text.decode()) for text in batch]
            inline_bytes += sum(map(len, batch))
            if inline_bytes > _INLINE_BYTES and self._n_workers > 1:
                break
        else:
            return
        self._start()
        in_flight: deque[Future[list[TokenArray]]] = deque()
        with ThreadPoolExecutor(self._n_workers) as threads:
            try:
                for batch in remaining:
                    in_flight.append(threads.submit(self._ask, batch))
                    if len(in_flight) > 2 * self._n_workers:
                        yield in_flight.popleft().result()
                while in_flight:
                    yield in_flight.popleft().result()
            finally:
                for future in in_flight:
                    future.cancel()

    def __enter__(self) -> EncodePool:
        return self

    def __exit__(self, kind: type[BaseException] | None, value: object, trace: TracebackType | None) -> None:
        for child in self._children:
            if kind is not None:
                child.kill()
            for stream in (child.stdin, child.stdout):
                assert stream is not None
                with contextlib.suppress(OSError):  # what a killed worker did not read
                    stream.close()
            child.wait()

    def _start(self) -> None:
        # One thread each: the processes are the parallelism.
        environment = {**os.environ, "TOKENIZERS_PARALLELISM": "false", "RAYON_NUM_THREADS": "1"}
        environment["OPENBLAS_NUM_THREADS"] = environment["OMP_NUM_THREADS"] = "1"
        command = [sys.executable, "-m", "wafergpt.data.encode_worker"]
        for _ in range(self._n_workers):
            child = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment)
            self._children.append(child)
            assert child.stdin is not None
            write_frame(child.stdin, [self._tokenizer.to_bytes()])
            self._idle.put(child)

    def _ask(self, batch: Batch) -> list[TokenArray]:
        child = self._idle.get()
        assert child.stdin is not None
        assert child.stdout is not None
        try:
            write_frame(child.stdin, batch)
            answer = read_frame(child.stdout)
        except (OSError, EOFError):
            answer = None
        self._idle.put(child)
        if answer is None:
            child.wait()
            raise WaferGPTError(
                f"tokenising process {child.pid} ended with code {child.returncode}; nothing was written "
                f"(-9 usually means that memory ran out: try --workers 1)"
            )
        return [np.frombuffer(ids, self._encoder.dtype) for ids in answer]
