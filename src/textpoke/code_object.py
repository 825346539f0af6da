# SPDX-License-Identifier: Apache-2.0
"""An ELF file that describes code which no file holds: names and unwind rows at absolute addresses.

Debuggers read it (`add-symbol-file`, gdb's JIT interface). It has no bytes of the code, only
sections that say where it is. Pure functions. The layouts are from the System V gABI, chapter 4.
"""

from __future__ import annotations

import bisect
import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING

from textpoke import cfi

if TYPE_CHECKING:
    from collections.abc import Sequence

_HEADER_BYTES, _SECTION_BYTES = 64, 64
_ET_EXEC, _EM_X86_64 = 2, 62
_SHT_PROGBITS, _SHT_SYMTAB, _SHT_STRTAB, _SHT_NOBITS = 1, 2, 3, 8
_SHF_ALLOC, _SHF_EXECINSTR = 2, 4
_STB_LOCAL, _STT_FUNC = 0, 2
_MOST_REGIONS = 0xFE00  # sections have 16 bits, the last numbers are taken
_LONGEST_NAME = 500
_ELF = b"\x7fELF\x02\x01\x01" + bytes(9)


@dataclass(frozen=True, slots=True)
class Symbol:
    """A name for code; `size` in bytes."""

    address: int
    size: int
    name: str


def plain_name(text: str) -> str:
    """The text as a symbol's name: ASCII, one line, not too long."""
    shown = text[:_LONGEST_NAME].encode("ascii", "backslashreplace").decode()
    return "".join(c if c.isprintable() else f"\\x{ord(c):02x}" for c in shown)


def make_object(
    regions: Sequence[tuple[int, int]],
    symbols: Sequence[Symbol],
    frames: Sequence[cfi.Frame],
    frames_at: int,
) -> bytes:
    """The file.

    Args:
        regions: (start, bytes) of the mappings that hold the code, disjoint.
        symbols: All within them; their names as `plain_name` gives them.
        frames: Entries of .eh_frame, disjoint.
        frames_at: Address of that section: gdb reads only a section that has one, from this file.
    """
    regions = sorted(regions)[:_MOST_REGIONS]
    names = _Strings()
    first = len(regions) + 1
    rows = bytes(24) + b"".join(_symbol(symbol, regions, names) for symbol in symbols)
    parts = (
        (".eh_frame", _SHT_PROGBITS, cfi.write_section(frames), (_SHF_ALLOC, frames_at), (0, 0, 0)),
        (".symtab", _SHT_SYMTAB, rows, (0, 0), (first + 2, len(rows) // 24, 24)),
        (".strtab", _SHT_STRTAB, names.content, (0, 0), (0, 0, 0)),
    )
    titles = _Strings()
    headers = bytearray(_SECTION_BYTES)
    text = titles.add(".text")
    for start, size in regions:
        flags = _SHF_ALLOC | _SHF_EXECINSTR
        headers += _section(text, _SHT_NOBITS, flags, start, _HEADER_BYTES, size)
    content = bytearray()
    for name, kind, data, place, more in parts:
        at = _HEADER_BYTES + len(content)
        headers += _section(titles.add(name), kind, *place, at, len(data), *more)
        content += data + bytes(-len(data) % 8)
    title = titles.add(".shstrtab")
    at = _HEADER_BYTES + len(content)
    headers += _section(title, _SHT_STRTAB, 0, 0, at, len(titles.content))
    content += titles.content + bytes(-len(titles.content) % 8)
    return _header(_HEADER_BYTES + len(content), first + 4) + bytes(content) + bytes(headers)


class _Strings:
    """A string table."""

    def __init__(self) -> None:
        self._content = bytearray(1)

    @property
    def content(self) -> bytes:
        return bytes(self._content)

    def add(self, text: str) -> int:
        at = len(self._content)
        self._content += text.encode("ascii") + b"\0"
        return at


def _symbol(symbol: Symbol, regions: Sequence[tuple[int, int]], names: _Strings) -> bytes:
    index = bisect.bisect_right(regions, (symbol.address, 1 << 64))  # section 0 is none
    info = _STB_LOCAL << 4 | _STT_FUNC
    return struct.pack(
        "<IBBHQQ", names.add(symbol.name), info, 0, index, symbol.address, symbol.size
    )


def _section(name: int, kind: int, flags: int, *values: int) -> bytes:
    address, offset, size, link, info, entry = (*values, *(0,) * (6 - len(values)))
    align = 1 if kind == _SHT_STRTAB else 8
    return struct.pack(
        "<IIQQQQIIQQ", name, kind, flags, address, offset, size, link, info, align, entry
    )


def _header(sections: int, count: int) -> bytes:
    return _ELF + struct.pack(
        "<HHIQQQIHHHHHH",
        _ET_EXEC,
        _EM_X86_64,
        1,
        0,
        0,
        sections,
        0,
        _HEADER_BYTES,
        0,
        0,
        _SECTION_BYTES,
        count,
        count - 1,
    )
