"""A process that turns texts into ids: frames on standard input, frames on standard output.

A frame is a count and that many lengths (unsigned 32-bit, little-endian) followed by that many byte
strings. The first frame holds the tokenizer and is answered by an empty one; every later frame holds UTF-8
texts and is answered by their id arrays. So there is no pickle, no fork of a process that has threads, and no
need of a guarded main module. The worker ends when its input does.
"""

from __future__ import annotations

import signal
import struct
import sys
from collections.abc import Sequence
from typing import IO

from wafergpt.tokenizer.bpe import Tokenizer
from wafergpt.tokenizer.encoder import Encoder


def write_frame(stream: IO[bytes], parts: Sequence[bytes]) -> None:
    """Send one frame."""
    stream.write(struct.pack(f"<I{len(parts)}I", len(parts), *map(len, parts)) + b"".join(parts))
    stream.flush()


def read_frame(stream: IO[bytes]) -> list[bytes] | None:
    """Receive one frame; None at a clean end. Raises EOFError if the other side died within a frame."""
    head = stream.read(4)
    if not head:
        return None
    (count,) = struct.unpack("<I", _exactly(stream, 4, head))
    lengths = struct.unpack(f"<{count}I", _exactly(stream, 4 * count))
    return [_exactly(stream, length) for length in lengths]


def _exactly(stream: IO[bytes], size: int, data: bytes = b"") -> bytes:
    data += stream.read(size - len(data))
    if len(data) != size:
        raise EOFError("the stream ended within a frame")
    return data


def main() -> None:
    """Serve until the input ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the parent decides
    received = read_frame(sys.stdin.buffer)
    if received is None:
        return
    encoder = Encoder(Tokenizer.from_bytes(received[0]))
    write_frame(sys.stdout.buffer, [])
    while (texts := read_frame(sys.stdin.buffer)) is not None:
        write_frame(sys.stdout.buffer, encoder.encode_many([text.decode() for text in texts]))


if __name__ == "__main__":
    main()
