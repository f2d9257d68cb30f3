"""Offsets of the members of a tar, from one walk over its headers; nothing is extracted.

Python's tarfile is three times slower, and accepts a file that was cut between two members as complete. This walk reads names,
offsets and sizes (ustar, GNU long names, pax) and reports a tar without its end mark. It does not know images or samples.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from typing import BinaryIO

from ...quantities import whole_number

BLOCK = 512
_REGULAR = (b"0", b"\0", b"7")
_GNU_LONG_NAME, _PAX, _SPARSE = b"L", b"x", b"S"
_END = bytes(BLOCK)


class DamagedTar(Exception):
    """Bytes that are no tar. `offset` is their position, `problem` a description."""

    def __init__(self, offset: int, problem: str) -> None:
        super().__init__(offset, problem)
        self.offset, self.problem = offset, problem


class CompressedTar(DamagedTar):
    """A tar that is compressed as a whole: its members have no places in the file."""


@dataclass(frozen=True, slots=True)
class Member:
    """A regular file in a tar."""

    name: str
    offset: int  # of its first data byte
    size: int  # bytes


def walk_tar(file: BinaryIO) -> Iterator[Member]:
    """Yield the regular files of an uncompressed tar, in order. The caller may seek in the file between two.

    Raises:
        DamagedTar: the file is cut, is not a tar, or a header fails its checksum; complete members were yielded before.
    """
    length = os.fstat(file.fileno()).st_size
    offset = 0
    long_name: str | None = None
    pax: dict[str, str] = {}
    while True:
        header = _header(file, offset, length)
        if header == _END:
            return
        kind = header[156:157]
        size = _pax_size(pax) or _number(header[124:136])
        data = offset + BLOCK
        offset = data + -(-size // BLOCK) * BLOCK
        if size < 0:
            raise DamagedTar(data - BLOCK, f"the size of {_name(header)} is no number")
        if data + size > length:
            raise DamagedTar(data, f"the file ends {data + size - length} bytes before the end of {_name(header)}")
        if kind == _GNU_LONG_NAME:
            long_name = file.read(size).rstrip(b"\0").decode(errors="surrogateescape")
        elif kind == _PAX:
            pax = _pax_records(file.read(size), data)
        else:
            if kind == _SPARSE:
                raise DamagedTar(data - BLOCK, f"{_name(header)} is stored sparse, which is not supported")
            if kind in _REGULAR:
                yield Member(pax.get("path") or long_name or _name(header), data, size)
            long_name, pax = None, {}


def has_more(file: BinaryIO) -> bool:
    """Whether anything but zeros follows the end mark, where a walk to the end has left the file: another tar, for example."""
    while part := file.read(1 << 20):
        if part.strip(b"\0"):
            return True
    return False


def _header(file: BinaryIO, offset: int, length: int) -> bytes:
    """The 512 bytes at `offset`, checked; the file then stands behind them."""
    file.seek(offset)
    header = file.read(BLOCK)
    if len(header) < BLOCK:
        raise DamagedTar(min(offset, length), "the file ends before the tar's end mark")
    if header == _END:
        return header
    if offset == 0 and header.startswith((b"\x1f\x8b", b"BZh", b"\xfd7zXZ", b"\x28\xb5\x2f\xfd")):
        raise CompressedTar(0, "the file is compressed")
    # the checksum counts its own eight bytes as blanks
    if sum(header) - sum(header[148:156]) + 8 * 32 != _number(header[148:156]):
        raise DamagedTar(offset, "a header fails its checksum" if offset else "the file is not a tar")
    return header


def _number(field: bytes) -> int:
    """Octal text, or GNU's base 256 for sizes from 8 GiB; -1 (no valid checksum) for anything else."""
    if field[0] & 0x80:
        return int.from_bytes(field[1:], "big")
    try:
        return int(field.strip(b" \0") or b"0", 8)
    except ValueError:
        return -1


def _name(header: bytes) -> str:
    name = header[:100].split(b"\0", 1)[0]
    prefix = header[345:500].split(b"\0", 1)[0] if header[257:263] == b"ustar\0" else b""  # GNU keeps times there
    return (prefix + b"/" + name if prefix else name).decode(errors="surrogateescape")


def _pax_records(data: bytes, offset: int) -> dict[str, str]:
    """`<length> <key>=<value>\\n` records; values may hold newlines, so lengths lead."""
    records = {}
    while data:
        length, blank, _ = data.partition(b" ")
        size = whole_number(length.decode("latin-1"))
        if size is None or not (blank and len(length) < size <= len(data)):
            raise DamagedTar(offset, "an extended header is damaged")
        key, _, value = data[len(length) + 1 : size].removesuffix(b"\n").partition(b"=")
        records[key.decode(errors="surrogateescape")] = value.decode(errors="surrogateescape")
        data = data[size:]
    return records


def _pax_size(records: dict[str, str]) -> int:
    """The size in an extended header; 0 without one, -1 for anything but a number."""
    size = whole_number(records.get("size", "0"))
    return -1 if size is None else size
