# SPDX-License-Identifier: Apache-2.0
"""ELF images: headers, bytes by address, and bulk readers for the tables that sites need.

pyelftools is not used: its import alone costs 60 ms or more, twice the budget for the whole of
Redis. The headers below are the few that matter here; the layouts are from the System V ABI
(gABI 4.1, chapter 4) and its x86-64 supplement. Every offset and size is checked against the
file, so a damaged file raises BadElf and nothing else.
"""

from __future__ import annotations

import functools
import os
import stat
import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING

from textpoke._errors import BadElf, ModuleUnavailable

if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Self

ET_EXEC = 2
EM_X86_64 = 62
PT_LOAD, PT_NOTE, PT_GNU_EH_FRAME = 1, 4, 0x6474E550
PF_X = 1
SHT_SYMTAB, SHT_RELA, SHT_NOBITS, SHT_DYNSYM, SHT_RELR = 2, 4, 8, 11, 19
SHF_ALLOC, SHF_EXECINSTR = 2, 4
R_X86_64_RELATIVE = 8
NT_GNU_BUILD_ID = 3

_HEADER = struct.Struct("<16sHHIQQQIHHHHHH")
_SEGMENT = struct.Struct("<IIQQQQQQ")
_SECTION = struct.Struct("<IIQQQQIIQQ")
_RELA = struct.Struct("<QQq")
_NOTE = struct.Struct("<III")
_PN_XNUM = _SHN_XINDEX = 0xFFFF
# A file may say that one table lies in it a million times, or be a hole of a terabyte. Honest ones
# stay far below: the largest programs have 1 GiB with all their debug information.
_MOST_BYTES = 1 << 30
_MOST_BYTES_TOGETHER = 4 << 30
_MOST_TIMES = 8
_MOST_SECTIONS = 1 << 16
_LONGEST_SECTION_NAME = 256
MOST_ROWS = 1 << 23
"""Rows of one table: symbols, relocations, functions. Chromium has two million functions."""


@dataclass(frozen=True, slots=True)
class Segment:
    """One program header; sizes in bytes."""

    type: int
    flags: int
    offset: int
    vaddr: int
    file_size: int
    memory_size: int


@dataclass(frozen=True, slots=True)
class Section:
    """One section header; `link` is the index of the section that belongs to it."""

    name: str
    type: int
    flags: int
    vaddr: int
    offset: int
    size: int
    link: int


class Image:
    """An x86-64 ELF file, or the first bytes of one.

    Args:
        data: The bytes, or the descriptor of a regular file; it stays the caller's. A file is read
            and never mapped: who owns it may cut it off at any time, and a mapping would then
            raise SIGBUS.
        path: Used in messages only.

    Raises:
        BadElf: The bytes are not an x86-64 ELF image, or a header points outside of them.
    """

    def __init__(self, data: bytes | int, path: str = "") -> None:
        self._data = data
        self._owned_fd = -1
        self.path = path
        self.size = os.fstat(data).st_size if isinstance(data, int) else len(data)
        self._left = min(_MOST_TIMES * self.size + (1 << 20), _MOST_BYTES_TOGETHER)
        ident, self.type, machine, *_ = header = _HEADER.unpack(self.bytes_at(0, _HEADER.size))
        if ident[:4] != b"\x7fELF":
            raise BadElf(path, 0, "not an ELF file")
        if ident[4:6] != b"\x02\x01" or machine != EM_X86_64:
            raise BadElf(path, 4, f"not x86-64: class {ident[4]}, machine {machine}")
        self._header = header
        self.segments = self._read_segments()
        self.loads = tuple(s for s in self.segments if s.type == PT_LOAD)

    @classmethod
    def open(cls, path: str) -> Image:
        """Open the file at `path`.

        Raises:
            ModuleUnavailable: The file cannot be opened.
            BadElf: As for the constructor.
        """
        try:
            # Not waiting for a FIFO that has taken the file's place.
            fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY)
        except (OSError, ValueError) as exc:
            why = exc.strerror if isinstance(exc, OSError) else str(exc)
            raise ModuleUnavailable(path, f"cannot be read: {why}") from exc
        try:
            status = os.fstat(fd)
            if not stat.S_ISREG(status.st_mode):
                raise ModuleUnavailable(path, "cannot be read: a directory, device or pipe")
            if not status.st_size:
                raise BadElf(path, 0, "the file is empty")
            image = cls(fd, path)
        except BaseException:
            os.close(fd)
            raise
        image._owned_fd = fd
        return image

    def close(self) -> None:
        """Close the file; the image is not usable afterwards."""
        fd, self._owned_fd = self._owned_fd, -1
        if fd >= 0:
            os.close(fd)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_exc: object) -> None:
        self.close()

    def bytes_at(self, offset: int, size: int) -> bytes:
        """Return `size` bytes from a file offset; BadElf when they are not all there."""
        if offset + size > self.size:
            raise BadElf(self.path, offset, f"{size} bytes wanted, the file has {self.size}")
        self._left -= size
        if size > _MOST_BYTES or self._left < 0:
            raise BadElf(self.path, offset, f"{size} bytes are more than a program needs")
        if not isinstance(self._data, int):
            return self._data[offset : offset + size]
        try:
            data = os.pread(self._data, size, offset)
        except (OSError, OverflowError) as exc:
            raise BadElf(self.path, offset, f"cannot be read: {exc}") from None
        if len(data) != size:
            raise BadElf(self.path, offset, "the file became shorter while it was read")
        return data

    @functools.cached_property
    def code(self) -> tuple[tuple[int, bytes], ...]:
        """ELF address and bytes of every executable segment, as far as the file has them."""
        return tuple(
            (load.vaddr, self.bytes_at(load.offset, min(load.file_size, self.size - load.offset)))
            for load in self.loads
            if load.flags & PF_X and load.offset < self.size
        )

    def offset_of(self, vaddr: int) -> int:
        """Return the file offset of an ELF virtual address, -1 when no loaded byte is there."""
        for load in self.loads:
            if 0 <= vaddr - load.vaddr < load.file_size:
                return vaddr - load.vaddr + load.offset
        return -1

    @functools.cached_property
    def sections(self) -> tuple[Section, ...]:
        """All section headers; empty when they were stripped."""
        offset, entry_size, count, strings = (self._header[i] for i in (6, 11, 12, 13))
        if not offset:
            return ()
        if entry_size != _SECTION.size:
            raise BadElf(self.path, offset, f"section headers of {entry_size} bytes")
        first = _SECTION.unpack(self.bytes_at(offset, _SECTION.size))
        if (count or first[5]) > _MOST_SECTIONS:
            raise BadElf(self.path, offset, f"{count or first[5]} sections")
        rows = self.bytes_at(offset, (count or first[5]) * _SECTION.size)
        fields = list(_SECTION.iter_unpack(rows))
        names = first[6] if strings == _SHN_XINDEX else strings
        if names >= len(fields):
            raise BadElf(self.path, offset, f"no section {names} to hold the section names")
        text = self.bytes_at(fields[names][4], fields[names][5])
        return tuple(
            Section(
                string_at(text, f[0], _LONGEST_SECTION_NAME), f[1], f[2], f[3], f[4], f[5], f[6]
            )
            for f in fields
        )

    def contents(self, section: Section) -> bytes:
        """Return the bytes of a section, empty for one that has none in the file."""
        if section.type == SHT_NOBITS:
            return b""
        return self.bytes_at(section.offset, section.size)

    def _read_segments(self) -> tuple[Segment, ...]:
        offset, entry_size, count = (self._header[i] for i in (5, 9, 10))
        if not offset or not count:
            return ()
        if entry_size != _SEGMENT.size:
            raise BadElf(self.path, offset, f"program headers of {entry_size} bytes")
        if count == _PN_XNUM:
            count = _SECTION.unpack(self.bytes_at(self._header[6], _SECTION.size))[7]
            if count > _MOST_SECTIONS:
                raise BadElf(self.path, offset, f"{count} program headers")
        rows = self.bytes_at(offset, count * _SEGMENT.size)
        return tuple(
            Segment(f[0], f[1], f[2], f[3], f[5], f[6]) for f in _SEGMENT.iter_unpack(rows)
        )


def string_at(table: bytes, offset: int, most: int) -> str:
    """Return the zero-terminated string at `offset`, at most `most` bytes of it.

    Odd bytes come out as backslash escapes.
    """
    return table[offset : offset + most].partition(b"\0")[0].decode("utf-8", "backslashreplace")


def require_rows(image: Image, count: int, what: str) -> None:
    """Raise BadElf for a table with more rows than a program has."""
    if count > MOST_ROWS:
        raise BadElf(image.path, 0, f"{count} {what}")


def pointers(image: Image, name: str) -> list[int]:
    """Return the 8-byte addresses in all sections called `name`, as the loader would leave them.

    A slot with a relative relocation in .rela.dyn gets its addend, because lld and GNU ld may
    leave zeros in the file. RELR keeps the addend in the slot, so there is nothing to apply.
    Slots that are zero afterwards belong to discarded functions and are dropped.
    """
    found: list[int] = []
    for section in image.sections:
        if section.name != name or not section.size:
            continue
        content = image.contents(section)
        count = len(content) // 8
        require_rows(image, len(found) + count, "places to patch")
        values = struct.unpack_from(f"<{count}Q", content)
        addends = _relative_relocations(image, section.vaddr, section.vaddr + count * 8)
        if addends:
            slots = range(section.vaddr, section.vaddr + count * 8, 8)
            values = tuple(map(addends.get, slots, values))
        found += filter(None, values)
    return found


def _relative_relocations(image: Image, start: int, end: int) -> dict[int, int]:
    """Map each slot in [start, end) that has a relative relocation to its value."""
    addends: dict[int, int] = {}
    for section in image.sections:
        if section.type != SHT_RELA or not section.flags & SHF_ALLOC:
            continue
        content = image.contents(section)
        require_rows(image, len(content) // _RELA.size, "relocations")
        rows = _RELA.iter_unpack(content[: len(content) // _RELA.size * _RELA.size])
        addends |= {
            slot: addend
            for slot, info, addend in rows
            if start <= slot < end and info == R_X86_64_RELATIVE
        }
    return addends


def build_id(image: Image) -> bytes:
    """Return the GNU build id, empty when there is none within the image's bytes."""
    for segment in image.segments:
        if segment.type == PT_NOTE and segment.offset + segment.file_size <= image.size:
            notes = image.bytes_at(segment.offset, segment.file_size)
            for name, kind, content in _notes(notes):
                if name == b"GNU\0" and kind == NT_GNU_BUILD_ID:
                    return content
    return b""


def _notes(notes: bytes) -> Iterator[tuple[bytes, int, bytes]]:
    offset = 0
    while offset + _NOTE.size <= len(notes):
        name_size, size, kind = _NOTE.unpack_from(notes, offset)
        name = offset + _NOTE.size
        content = name + (name_size + 3 & ~3)
        yield notes[name : name + name_size], kind, notes[content : content + size]
        offset = content + (size + 3 & ~3)
