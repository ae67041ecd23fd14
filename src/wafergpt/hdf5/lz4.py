"""The LZ4 filter of HDF5 (registered id 32004), decoded in Python: h5py brings none, and no plugin is loaded.

A chunk is: 8 bytes total size, 4 bytes block size, then per block 4 bytes stored size and the block, all
big-endian; a block stored at its full size is not compressed (github.com/HDFGroup/hdf5_plugins, LZ4). Blocks
have LZ4's own format (lz4.org, "LZ4 Block Format"). Float32 weights hardly compress: this mostly copies.
"""

from __future__ import annotations

_MIN_MATCH = 4


def decode_chunk(data: bytes, size_bytes: int) -> bytes:
    """The `size_bytes` bytes of one chunk, never more. Raises ValueError, whatever the input."""
    if len(data) < 12:
        raise ValueError("an LZ4 chunk ends in its header")
    total = int.from_bytes(data[:8], "big")
    block_bytes = int.from_bytes(data[8:12], "big")
    if total != size_bytes or (block_bytes == 0 and total > 0):
        raise ValueError(f"an LZ4 chunk says {total} bytes in blocks of {block_bytes}, not {size_bytes}")
    out = bytearray()
    position = 12
    while len(out) < total:
        wanted = min(block_bytes, total - len(out))
        stored = int.from_bytes(data[position : position + 4], "big")
        block = data[position + 4 : position + 4 + stored]
        position += 4 + stored
        if stored == 0 or len(block) != stored:
            raise ValueError("an LZ4 chunk ends early")
        out += block if stored == wanted else decode_block(block, wanted)
    if position != len(data):
        raise ValueError(f"an LZ4 chunk has {len(data) - position} bytes too many")
    return bytes(out)


def decode_block(block: bytes, size_bytes: int) -> bytes:
    """The `size_bytes` bytes of one block. Raises ValueError, whatever the input."""
    out = bytearray()
    position, end = 0, len(block)
    while position < end:
        token = block[position]
        n_literals, position = _length(block, position + 1, token >> 4)
        if n_literals > end - position or len(out) + n_literals > size_bytes:
            raise ValueError("an LZ4 block's literals run over its end")
        out += block[position : position + n_literals]
        position += n_literals
        if position == end:
            break  # the last sequence has no match
        if position + 2 > end:
            raise ValueError("an LZ4 block ends inside a sequence")
        offset = int.from_bytes(block[position : position + 2], "little")
        n_match, position = _length(block, position + 2, token & 15)
        n_match += _MIN_MATCH
        if not 0 < offset <= len(out) or len(out) + n_match > size_bytes:
            raise ValueError("an LZ4 block refers outside itself")
        if offset >= n_match:
            out += out[-offset : len(out) - offset + n_match]
        else:  # a match that overlaps itself repeats its first bytes
            pattern = bytes(out[-offset:])
            out += (pattern * (n_match // offset + 1))[:n_match]
    if len(out) != size_bytes:
        raise ValueError(f"an LZ4 block holds {len(out)} bytes, not {size_bytes}")
    return bytes(out)


def _length(block: bytes, position: int, nibble: int) -> tuple[int, int]:
    """A length and where its bytes end: 15 means that bytes follow, 255 that yet another follows."""
    length = nibble
    while nibble == 15:
        if position >= len(block):
            raise ValueError("an LZ4 block ends inside a length")
        more = block[position]
        position += 1
        length += more
        if more != 255:
            break
    return length, position
