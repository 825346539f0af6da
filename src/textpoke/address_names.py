# SPDX-License-Identifier: Apache-2.0
"""Names for addresses in a capture, callers and locks: from the files of its modules.

The files are those on the machine that reads the capture. Where one is missing or is another one by
now the address stays a number, or has a wrong name: the capture holds no symbols but its sites'.
"""

from __future__ import annotations

import bisect
import struct
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from textpoke import elf
from textpoke._errors import BadElf, TextpokeError
from textpoke.demangle import demangle_one
from textpoke.symbols import Symbols

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

_SYMBOL = struct.Struct("<IBBHQQ")
_STT_OBJECT = 1
_LONGEST_NAME = 4096


@dataclass(frozen=True, slots=True)
class Place:
    """Where an address lies.

    Attributes:
        module: Name of the file.
        name: Of the function or variable, demangled; None when no symbol covers the address.
        offset: From its begin; without a name the ELF address.
    """

    module: str
    name: str | None
    offset: int

    def __str__(self) -> str:
        if self.name is None:
            return f"{self.module}+{self.offset:#x}"
        return f"{self.name}+{self.offset:#x}" if self.offset else self.name


@dataclass(slots=True)
class AddressNames:
    """Finds places; every file is read once, when it is first needed.

    Attributes:
        modules: Name, path and bias of each, as META has them.
    """

    modules: Sequence[tuple[str, str, int]]
    _files: dict[str, _File | None] = field(default_factory=dict)
    _known: dict[int, Place | None] = field(default_factory=dict)

    def place(self, address: int) -> Place | None:
        """Where an address lies; None outside of all files: heap, stack, code made at run time."""
        if address not in self._known:
            self._known[address] = self._find(address)
        return self._known[address]

    def text(self, address: int) -> str:
        """The address as people like it best: a name, or a number."""
        place = self.place(address)
        return str(place) if place else f"{address:#x}"

    def function(self, return_address: int) -> str:
        """The function that a return address is in, with its module where there is no name."""
        place = self.place(return_address - 1) if return_address else None
        if place is None:
            return f"{return_address:#x}" if return_address else "?"
        return place.name or str(place)

    def _find(self, address: int) -> Place | None:
        for name, path, bias in sorted(self.modules, key=lambda module: -module[2]):
            if bias <= address:
                if path not in self._files:
                    self._files[path] = _opened(path, name)
                file = self._files[path]
                if file and file.has(address - bias):
                    return file.place(address - bias)
        return None


class _File:
    def __init__(self, image: elf.Image, module: str) -> None:
        self._module = module
        self._image = image
        self._functions = Symbols(image, module)
        self._objects = sorted(_objects(image))

    def has(self, vaddr: int) -> bool:
        return any(s.vaddr <= vaddr < s.vaddr + s.memory_size for s in self._image.loads)

    def place(self, vaddr: int) -> Place:
        index = bisect.bisect_right(self._objects, (vaddr, 1 << 64, "")) - 1
        if index >= 0:
            start, size, name = self._objects[index]
            if vaddr < start + size:
                return Place(self._module, demangle_one(name), vaddr - start)
        name, plus, offset = self._functions.name(vaddr).rpartition("+")
        if not plus:
            return Place(self._module, demangle_one(offset), 0)
        if name == self._module:
            return Place(self._module, None, vaddr)
        return Place(self._module, demangle_one(name), int(offset, 16))


def _opened(path: str, module: str) -> _File | None:
    try:
        return _File(elf.Image.open(path), module)
    except (TextpokeError, OSError):
        return None  # a name less; the capture is what counts


def _objects(image: elf.Image) -> Iterator[tuple[int, int, str]]:
    for table in image.sections:
        if table.type not in (elf.SHT_SYMTAB, elf.SHT_DYNSYM) or table.link >= len(image.sections):
            continue
        strings, content = image.contents(image.sections[table.link]), image.contents(table)
        rows = len(content) // _SYMBOL.size
        elf.require_rows(image, rows, "symbols")
        for row in _SYMBOL.iter_unpack(content[: rows * _SYMBOL.size]):
            if row[1] & 15 == _STT_OBJECT and row[3] and row[5]:
                try:
                    name = elf.string_at(strings, row[0], _LONGEST_NAME)
                except BadElf:
                    continue
                yield row[4], row[5], name.partition("@")[0]
