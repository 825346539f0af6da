# SPDX-License-Identifier: Apache-2.0
"""The unwind rows of a function's first instructions, from its module's tables or from its bytes.

Pure functions of an ELF image and of bytes. `cfi_read` runs the programs; this finds them.
"""

from __future__ import annotations

import bisect
import struct
from array import array
from typing import TYPE_CHECKING

from textpoke import cfi, cfi_read, elf
from textpoke._errors import BadElf

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

_HEADER_BYTES = 12
_UDATA4, _DATAREL_SDATA4 = 0x03, 0x3B
_EXTENDED_LENGTH = 0xFFFFFFFF
_MOST_ENTRY_BYTES = 1 << 16  # of a function's program; no compiler writes a tenth of that
_SECTION = ".eh_frame"
_MASK = (1 << 64) - 1


class UnwindTable:
    """The entries of one image's .eh_frame, by ELF address.

    Args:
        image: Must stay open as long as this object is used.

    Raises:
        BadElf: A table points outside of the file.
    """

    def __init__(self, image: elf.Image) -> None:
        self._image = image
        self._sections = [s for s in image.sections if s.name == _SECTION]
        self._commons: dict[int, cfi_read.Common | None] = {}
        found = self._from_header()
        self._starts, self._places = found if found is not None else self._from_section()

    def rows(self, start: int, size: int) -> cfi.Rows | None:
        """Rows at the addresses of [start, start + size] of the function that covers `start`.

        None where there is no entry, or one that cannot be said again elsewhere.
        """
        entry = self._entry_of(start)
        if entry is None:
            return None
        common, first, length, program = entry
        if start + size > first + length:
            return None
        try:
            rows = cfi_read.run(common, program, first, start + size)
        except cfi_read.OddError:
            return None
        # What holds at the first byte, and what changes behind it.
        at = bisect.bisect_right([address for address, _ in rows], start) - 1
        return ((start, rows[at][1]), *rows[at + 1 :]) if at >= 0 else None

    def frames(self) -> Iterator[cfi.Frame]:
        """All entries that can be said again; their rows count from their starts."""
        for start in self._starts:
            entry = self._entry_of(start)
            if entry is None:
                continue
            common, first, size, program = entry
            try:
                rows = cfi_read.run(common, program, first, first + size - 1)
            except cfi_read.OddError:
                continue
            yield cfi.Frame(first, size, tuple((at - first, row) for at, row in rows))

    def _entry_of(self, address: int) -> tuple[cfi_read.Common, int, int, bytes] | None:
        at = bisect.bisect_right(self._starts, address) - 1
        if at < 0:
            return None
        try:
            entry = self._read(self._places[at])
        except (cfi_read.OddError, BadElf):
            return None
        if entry is None or not entry[1] <= address < entry[1] + entry[2]:
            return None
        return entry

    def _from_header(self) -> tuple[Sequence[int], Sequence[int]] | None:
        """Starts and entries' addresses, from .eh_frame_hdr; None where there is none."""
        for segment in self._image.segments:
            if segment.type != elf.PT_GNU_EH_FRAME:
                continue
            header = self._image.bytes_at(segment.offset, _HEADER_BYTES)
            if header[0] != 1 or header[2:4] != bytes((_UDATA4, _DATAREL_SDATA4)):
                continue
            count = int.from_bytes(header[8:12], "little")
            elf.require_rows(self._image, count, "functions in .eh_frame_hdr")
            offset = segment.offset + _HEADER_BYTES
            words = array("i", self._image.bytes_at(offset, 8 * count))
            places = array("Q", (segment.vaddr + word & _MASK for word in words))
            return places[::2], places[1::2]
        return None

    def _from_section(self) -> tuple[Sequence[int], Sequence[int]]:
        found = sorted(self._walk())
        return [start for start, _ in found], [place for _, place in found]

    def _walk(self) -> Iterator[tuple[int, int]]:
        """Start of the function and place of each entry of .eh_frame."""
        for section in self._sections:
            content, at = self._image.contents(section), 0
            while at + 8 <= len(content):
                length = int.from_bytes(content[at : at + 4], "little")
                if length == _EXTENDED_LENGTH:
                    break
                try:
                    entry = self._read(section.vaddr + at)
                except cfi_read.OddError:
                    entry = None
                if entry is not None:
                    yield entry[1], section.vaddr + at
                at += 4 + length

    def _read(self, place: int) -> tuple[cfi_read.Common, int, int, bytes] | None:
        """CIE, start, size and program of the entry at an address; None for what is no FDE."""
        identity, body = self._body(place)
        if not identity:
            return None
        common = self._common(place + 4 - identity)
        return None if common is None else (common, *cfi_read.read_entry(body, place + 8, common))

    def _common(self, place: int) -> cfi_read.Common | None:
        if place not in self._commons:
            common = None
            try:
                identity, body = self._body(place)
                common = None if identity else cfi_read.read_common(body)
            except cfi_read.OddError:
                pass
            self._commons[place] = common
        return self._commons[place]

    def _body(self, place: int) -> tuple[int, bytes]:
        offset = self._offset_of(place)
        length, identity = struct.unpack("<II", self._image.bytes_at(offset, 8))
        if not 4 <= length <= _MOST_ENTRY_BYTES:
            raise cfi_read.OddError
        return identity, self._image.bytes_at(offset + 8, length - 4)

    def _offset_of(self, place: int) -> int:
        for section in self._sections:  # first: our agent's is not loaded
            if 0 <= place - section.vaddr < section.size:
                return section.offset + place - section.vaddr
        offset = self._image.offset_of(place)
        if offset < 0:
            raise cfi_read.OddError
        return offset


def rows_of_prologue(window: bytes, heads: Sequence[int]) -> tuple[cfi.Rows, int]:
    """Rows of a function without an entry, as far as its first instructions are plain.

    Those are endbr64, PUSH of a register, `sub $n, %rsp` and `mov %rsp, %rbp`.

    Args:
        window: Whole instructions, the function's first ones.
        heads: Where they begin, the first at 0.

    Returns:
        Rows by offset, and where they end: behind the instruction that is not plain, or at the
        window's end.
    """
    row, rows = cfi.AT_ENTRY, [(0, cfi.AT_ENTRY)]
    for head, end in zip(heads, [*heads[1:], len(window)], strict=True):
        after = _after(window[head:end], row)
        if after is None:
            return tuple(rows), end
        if after != row:
            rows.append((end, after))
        row = after
    return tuple(rows), len(window) + 1  # what comes behind the window is known too


def _after(code: bytes, row: cfi.Row) -> cfi.Row | None:
    """The row behind an instruction; None when we cannot tell."""
    if code == b"\xf3\x0f\x1e\xfa":
        return row
    if code in (b"\x48\x89\xe5", b"\x48\x8b\xec"):  # mov %rsp, %rbp
        return cfi.Row(_RBP, row.offset, row.rules) if row.register == cfi.RSP else None
    extended = code[:1] == b"\x41"
    if len(code) == 1 + extended and code[-1] & 0xF8 == 0x50:
        return _pushed(code[-1] & 7 | extended << 3, row)
    if len(code) in (4, 7) and code[:3] in (b"\x48\x83\xec", b"\x48\x81\xec"):
        return row.lowered(int.from_bytes(code[3:], "little", signed=True))
    return None


_RBP = 6
_SAVED = {
    3: 3,
    5: 6,
    12: 12,
    13: 13,
    14: 14,
    15: 15,
}  # the ABI's, from the CPU's to DWARF's numbers


def _pushed(register: int, row: cfi.Row) -> cfi.Row | None:
    lowered = row.lowered(8)
    if row.register != cfi.RSP:
        return lowered
    number = _SAVED.get(register)
    if number is None or number in row.rules:
        return lowered
    return cfi.Row(
        lowered.register, lowered.offset, {**row.rules, number: ("offset", -lowered.offset)}
    )
