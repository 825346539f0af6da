# SPDX-License-Identifier: Apache-2.0
"""Names for addresses: the function symbols of an image, one name for each address."""

from __future__ import annotations

import bisect
import functools
import struct
from typing import TYPE_CHECKING

from textpoke import elf, unwind
from textpoke._errors import BadElf

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable

_SYMBOL = struct.Struct("<IBBHQQ")
# Name offset, binding << 4 | type, visibility, section index, address, size.
_Row = tuple[int, int, int, int, int, int]

_LONGEST_NAME = 16 * 1024
_MOST_NAME_BYTES = 256 << 20
_STT_NOTYPE, _STT_FUNC, _STT_GNU_IFUNC = 0, 2, 10
_STB_LOCAL, _STB_GLOBAL = 0, 1
# Type and binding bytes that make a function. Assembly often leaves its global functions without
# a type; a local label without one is no function: clang puts `.Ltmp0` on leading NOPs.
_FUNCTION_INFO = frozenset(
    binding << 4 | kind
    for binding in range(16)
    for kind in (_STT_FUNC, _STT_GNU_IFUNC, _STT_NOTYPE)
    if kind != _STT_NOTYPE or binding != _STB_LOCAL
)


def addresses(image: elf.Image, names: Collection[str], *, hidden: bool = False) -> dict[str, int]:
    """Return the ELF addresses of some exported symbols, functions or data; those that there are.

    Args:
        image: Where to look.
        names: Of the symbols.
        hidden: Also those that are not exported, as far as the program was not stripped.

    Raises:
        BadElf: A table points outside of the file.
    """
    found: dict[str, int] = {}
    for table in image.sections:
        wanted = table.type == elf.SHT_DYNSYM or (hidden and table.type == elf.SHT_SYMTAB)
        if not wanted or table.link >= len(image.sections):
            continue
        strings = image.contents(image.sections[table.link])
        if not any(name.encode() in strings for name in names):
            continue
        content = image.contents(table)
        elf.require_rows(image, len(content) // _SYMBOL.size, "symbols")
        for row in _SYMBOL.iter_unpack(content[: len(content) // _SYMBOL.size * _SYMBOL.size]):
            name = elf.string_at(strings, row[0], _LONGEST_NAME)
            if name in names and row[3]:
                found[name] = row[4]
    return found


class Symbols:
    """The functions of one image by ELF virtual address; names are decoded when asked for.

    .symtab comes first, .dynsym fills in what it lacks. Functions without a symbol (stripped
    programs) still count as functions when the unwind table lists their start.

    Args:
        image: Must stay open as long as this object is used.
        module: Name for addresses that no symbol covers.

    Raises:
        BadElf: A table points outside of the file.
    """

    def __init__(self, image: elf.Image, module: str) -> None:
        self._image = image
        self._module = module
        tables = sorted(image.sections, key=lambda section: section.type)
        self._tables = [
            _Table(image, table)
            for table in tables
            if table.type in (elf.SHT_SYMTAB, elf.SHT_DYNSYM) and table.link < len(tables)
        ]

    @functools.cached_property
    def starts(self) -> frozenset[int]:
        """The first address of every function, by its symbol or its unwind entry."""
        return frozenset(unwind.function_starts(self._image)).union(*(t.rows for t in self._tables))

    def names(self, vaddrs: Iterable[int]) -> list[str]:
        """Return the raw names for many addresses; see `name`."""
        if not self._tables:
            return [self.name(vaddr) for vaddr in vaddrs]
        names = self._tables[0].names(vaddrs, self.name)
        if names is None:
            raise BadElf(self._image.path, 0, f"more than {_MOST_NAME_BYTES} bytes of names")
        return names

    def name(self, vaddr: int) -> str:
        """Return the raw name for an address.

        It is "function" at a function's start, "function+0x12" inside one, and
        "module+0x1234" elsewhere. The last number is the ELF virtual address, which is what
        objdump and addr2line take.
        """
        for table in self._tables:
            name = table.name(vaddr)
            if name:
                return name
        for table in self._tables:
            start = table.start_of_function_around(vaddr)
            if start is not None:
                return f"{table.name(start)}+{vaddr - start:#x}"
        return f"{self._module}+{vaddr:#x}"


class _Table:
    """The functions in one symbol table."""

    def __init__(self, image: elf.Image, table: elf.Section) -> None:
        sections = image.sections
        code = {i for i, section in enumerate(sections) if section.flags & elf.SHF_EXECINSTR}
        content = image.contents(table)
        elf.require_rows(image, len(content) // _SYMBOL.size, "symbols")
        whole = len(content) // _SYMBOL.size * _SYMBOL.size
        found: list[_Row] = [
            row
            for row in _SYMBOL.iter_unpack(content[:whole])
            if row[1] in _FUNCTION_INFO and row[3] in code and row[0]
        ]
        self.rows = {row[4]: row for row in found}
        # One character for one byte, so that offsets stay right.
        self._strings = image.contents(sections[table.link]).decode("latin-1") + "\0"
        self._aliases: dict[int, list[_Row]] = {}
        if len(self.rows) < len(found):
            self._note_aliases(found)

    def names(self, vaddrs: Iterable[int], otherwise: Callable[[int], str]) -> list[str] | None:
        """Return the names at many addresses; `otherwise` is asked where not one fits.

        None when they are too long: symbols may share a string of a gigabyte.
        """
        left = _MOST_NAME_BYTES
        strings, find, rows, aliases = self._strings, self._strings.find, self.rows, self._aliases
        names: list[str] = []
        for vaddr in vaddrs:
            row = rows.get(vaddr)
            if row is None or vaddr in aliases:
                names.append(otherwise(vaddr))
                continue
            start = row[0]
            end = find("\0", start, start + _LONGEST_NAME)
            name = strings[start : end if end >= 0 else start + _LONGEST_NAME]
            left -= len(name)
            if left < 0:
                return None
            names.append(name if name.isascii() and "@" not in name else _tidy(name))
        return names

    def name(self, vaddr: int) -> str:
        """Return the best of the names at exactly this address, "" when there is none."""
        aliases = self._aliases.get(vaddr)
        if aliases:
            return min(map(self._preference, aliases))[-1]
        row = self.rows.get(vaddr)
        return "" if row is None else self._text(row)

    def start_of_function_around(self, vaddr: int) -> int | None:
        """Return the start of the function that covers `vaddr` by its symbol's size."""
        index = bisect.bisect_right(self._sorted, vaddr) - 1
        if index < 0:
            return None
        start = self._sorted[index]
        return start if vaddr - start < self.rows[start][5] else None

    @functools.cached_property
    def _sorted(self) -> list[int]:
        return sorted(self.rows)

    def _note_aliases(self, found: list[_Row]) -> None:
        for row in found:
            if self.rows[row[4]] is not row:
                self._aliases.setdefault(row[4], [self.rows[row[4]]]).append(row)

    def _text(self, row: _Row) -> str:
        return _tidy(self._strings[row[0] : row[0] + _LONGEST_NAME].partition("\0")[0])

    def _preference(self, row: _Row) -> tuple[bool, bool, int, bool, int, str]:
        """Order aliases: typed, not local, few underscores in front, not weak, short, by name.

        So people find `read`, not `__read` or `__GI___libc_read`.
        """
        name, kind, binding = self._text(row), row[1] & 15, row[1] >> 4
        return (
            kind == _STT_NOTYPE,
            binding == _STB_LOCAL,
            len(name) - len(name.lstrip("_")),
            binding != _STB_GLOBAL,
            len(name),
            name,
        )


def _tidy(name: str) -> str:
    name = name.encode("latin-1").decode("utf-8", "backslashreplace")
    # A symbol version ("read@@GLIBC_2.2.5") is not part of the name.
    return name.partition("@")[0]
