"""The directory of an uncompressed zip archive, as torch writes it since 1.6; nothing is ever unpacked.

Field layouts are those of PKWARE's APPNOTE.TXT 6.3.10, sections 4.3.7 to 4.3.16 and 4.5.3. Accepted is only
what torch's writer (miniz) produces: stored records, one after the other from the first byte on, then the
directory, then its end. So a record is a range of the file, and no length in it can ask for more than that.
"""

from __future__ import annotations

import struct
import zlib
from dataclasses import dataclass
from typing import NoReturn

from wafergpt.errors import CheckpointError, shown
from wafergpt.units import MIB

LOCAL_MAGIC = b"PK\x03\x04"
MAX_RECORDS = 20_000  # one per tensor and a few; a 13B GPT-2 file has about 700
_MAX_DIRECTORY_BYTES = 8 * MIB
_PIECE_BYTES = 4 * MIB

_LOCAL = struct.Struct("<4sHHHHHIIIHH")
_CENTRAL = struct.Struct("<4sHHHHHHIIIHHHHHII")
_END = struct.Struct("<4sHHHHIIH")
_LOCATOR = struct.Struct("<4sIQI")  # of the zip64 end
_END64 = struct.Struct("<4sQHHIIQQQQ")
_ABSENT = 0xFFFFFFFF  # the value is in the zip64 extra field
_ZIP64 = 0x0001
# Bits 3 (lengths repeated after the data) and 11 (names are UTF-8). Bit 0 would be encryption.
_FLAGS = 0x0808
_FOLDER = 0x10  # MS-DOS attribute


@dataclass(frozen=True, kw_only=True)
class Record:
    """One stored stretch of numbers or text: bytes `begin` to `end` of the file."""

    begin: int
    end: int
    crc32: int | None  # None: none was written

    @property
    def size_bytes(self) -> int:
        """Its length."""
        return self.end - self.begin

    def check_crc(self, data: memoryview, name: str) -> None:
        """Raise CheckpointError unless the bytes have the checksum that was written with them."""
        crc32 = 0
        for start in range(self.begin, self.end if self.crc32 is not None else 0, _PIECE_BYTES):
            crc32 = zlib.crc32(data[start : min(start + _PIECE_BYTES, self.end)], crc32)
        if self.crc32 is not None and crc32 != self.crc32:
            refuse(f"is damaged: {shown(name)} does not match its CRC-32")


def read_directory(data: memoryview) -> dict[str, Record]:
    """Name -> record of a whole archive. Raises CheckpointError (without the file's name)."""
    begin, n_bytes, n_records = _end(data)
    if n_records > MAX_RECORDS or n_bytes > _MAX_DIRECTORY_BYTES:
        refuse(f"has {n_records} records in {n_bytes} bytes; the limits are {MAX_RECORDS} and 8 MiB")
    table = data[begin : begin + n_bytes]
    records: dict[str, Record] = {}
    position = used = 0
    for _ in range(n_records):
        name, offset, record_bytes, crc32, position = _central(table, position)
        if name in records:
            refuse(f"holds {shown(name)} twice")
        if offset < used:
            refuse(f"holds {shown(name)} inside another record")
        start = _data_start(data, offset, name)
        used = start + record_bytes
        if used > begin:
            refuse(f"says that {shown(name)} ends at byte {used}, where its records end at {begin}")
        records[name] = Record(begin=start, end=used, crc32=crc32)
    if position != n_bytes:
        refuse("has a directory of another length than it says")
    return records


def refuse(reason: str) -> NoReturn:
    """Raise CheckpointError about the archive."""
    raise CheckpointError(f"the archive {reason}")


def _end(data: memoryview) -> tuple[int, int, int]:
    """Where the directory begins, its length, and its number of entries."""
    tail = len(data) - _END.size
    if tail < 0 or bytes(data[tail : tail + 4]) != b"PK\x05\x06":
        refuse("is cut off, or carries something behind its end")
    _, disk, first_disk, n_here, n_records, n_bytes, begin, _ = _END.unpack_from(data, tail)
    parts = [disk, first_disk]
    locator = tail - _LOCATOR.size
    if locator >= 0 and bytes(data[locator : locator + 4]) == b"PK\x06\x07":
        _, disk64, end64, n_disks = _LOCATOR.unpack_from(data, locator)
        if disk64 or n_disks != 1 or not 0 <= end64 <= locator - _END64.size:
            refuse("has a zip64 end that is not in it")
        magic, size, _, _, disk, first_disk, n_here, n_records, n_bytes, begin = _END64.unpack_from(
            data, end64
        )
        if magic != b"PK\x06\x06" or size != _END64.size - 12 or end64 + _END64.size != locator:
            refuse("has a damaged zip64 end")
        tail = end64
    if any((*parts, disk, first_disk)) or n_here != n_records:
        refuse("is one of several parts")
    if begin + n_bytes != tail:
        refuse(f"says that its directory is at byte {begin}, {n_bytes} long, and it ends at {tail}")
    return begin, n_bytes, n_records


def _central(table: memoryview, position: int) -> tuple[str, int, int, int, int]:
    """Name, offset, length and checksum of one entry, and where the next one begins."""
    if position + _CENTRAL.size > len(table):
        refuse("has a directory that ends early")
    fields = _CENTRAL.unpack_from(table, position)
    magic, _, _, flags, method, _, _, crc32, n_packed, n_bytes, n_name, n_extra, n_comment = fields[:13]
    extra = position + _CENTRAL.size + n_name
    after = extra + n_extra + n_comment
    if magic != b"PK\x01\x02" or after > len(table):
        refuse("has a damaged directory")
    name = _decoded(table[position + _CENTRAL.size : extra])
    if method != 0:
        refuse(f"holds {shown(name)} compressed; torch never writes that")
    disk, _, attributes, offset = fields[13:]
    # Torch's own reader fills a record that is marked as a folder with whatever its memory holds.
    if disk or attributes & _FOLDER:
        refuse(f"holds {shown(name)} marked as a folder or as part of another archive")
    if flags & ~_FLAGS:
        refuse(f"holds {shown(name)} with flags {flags:#06x}; torch never writes those")
    n_bytes, n_packed, offset = _zip64(table[extra : extra + n_extra], [n_bytes, n_packed, offset])
    if n_bytes != n_packed:
        refuse(f"gives {shown(name)} two lengths")
    return name, offset, n_bytes, crc32, after


def _zip64(extra: memoryview, values: list[int]) -> list[int]:
    """The three values, those that 32 bits cannot hold taken from the zip64 extra field."""
    position = 0
    wide = b""
    while position + 4 <= len(extra):
        kind, n_bytes = struct.unpack_from("<HH", extra, position)
        if kind == _ZIP64:
            wide = bytes(extra[position + 4 : position + 4 + n_bytes])
        position += 4 + n_bytes
    taken = 0
    for index, value in enumerate(values):
        if value == _ABSENT:
            if taken + 8 > len(wide):
                refuse("lacks a 64-bit length")
            values[index] = int.from_bytes(wide[taken : taken + 8], "little")
            taken += 8
    return values


def _data_start(data: memoryview, offset: int, name: str) -> int:
    if offset + _LOCAL.size > len(data):
        refuse(f"says that {shown(name)} begins behind its end")
    fields = _LOCAL.unpack_from(data, offset)
    begin = offset + _LOCAL.size
    start: int = begin + fields[9] + fields[10]
    if fields[0] != LOCAL_MAGIC or start > len(data) or _decoded(data[begin : begin + fields[9]]) != name:
        refuse(f"does not have {shown(name)} where its directory says")
    return start


def _decoded(name: memoryview) -> str:
    try:
        return bytes(name).decode("utf-8")
    except UnicodeDecodeError:
        refuse("holds a name that is not UTF-8")
