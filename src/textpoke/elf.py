# SPDX-License-Identifier: Apache-2.0
"""ELF images: headers, bytes by address, and bulk readers for the tables that sites need.

pyelftools is not used: its import alone costs 60 ms or more, twice the budget for the whole of
Redis. The headers below are the few that matter here; the layouts are from the System V ABI
(gABI 4.1, chapter 4) and its x86-64 supplement. Every offset and size is checked against the
file, so a damaged file raises BadElf and nothing else.
"""

from __future__ import annotations

import functools
import mmap
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
        data: The file's bytes; they are not copied.
        path: Used in messages only.

    Raises:
        BadElf: The bytes are not an x86-64 ELF image, or a header points outside of them.
    """

    def __init__(self, data: bytes | mmap.mmap, path: str = "") -> None:
        self.data = data
        self.path = path
        self.size = len(data)
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
        """Map the file at `path`.

        Raises:
            ModuleUnavailable: The file cannot be opened.
            BadElf: As for the constructor.
        """
        try:
            with open(path, "rb") as file:
                data = mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ)
        except ValueError:
            raise BadElf(path, 0, "the file is empty") from None
        except OSError as exc:
            raise ModuleUnavailable(path, f"cannot be read: {exc.strerror}") from exc
        try:
            return cls(data, path)
        except BadElf:
            data.close()
            raise

    def close(self) -> None:
        """Unmap the file; the image is not usable afterwards."""
        if isinstance(self.data, mmap.mmap):
            self.data.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_exc: object) -> None:
        self.close()

    def bytes_at(self, offset: int, size: int) -> bytes:
        """Return `size` bytes from a file offset; BadElf when they are not all there."""
        end = offset + size
        if end > self.size:
            raise BadElf(self.path, offset, f"{size} bytes wanted, the file has {self.size}")
        return self.data[offset:end]

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
        rows = self.bytes_at(offset, (count or first[5]) * _SECTION.size)
        fields = list(_SECTION.iter_unpack(rows))
        names = first[6] if strings == _SHN_XINDEX else strings
        if names >= len(fields):
            raise BadElf(self.path, offset, f"no section {names} to hold the section names")
        text = self.bytes_at(fields[names][4], fields[names][5])
        return tuple(
            Section(string_at(text, f[0]), f[1], f[2], f[3], f[4], f[5], f[6]) for f in fields
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
        rows = self.bytes_at(offset, count * _SEGMENT.size)
        return tuple(
            Segment(f[0], f[1], f[2], f[3], f[5], f[6]) for f in _SEGMENT.iter_unpack(rows)
        )


def string_at(table: bytes, offset: int) -> str:
    """Return the zero-terminated string at `offset`; odd bytes come out as backslash escapes."""
    end = table.find(b"\0", offset)
    return table[offset : end if end >= 0 else None].decode("utf-8", "backslashreplace")


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
