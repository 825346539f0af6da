# SPDX-License-Identifier: Apache-2.0
"""Names for addresses in payloads: functions that call, variables that calls are about.

They come from the files of the modules that a capture names.
"""

from __future__ import annotations

import bisect
import contextlib
import os
import struct
from typing import TYPE_CHECKING

from textpoke import elf
from textpoke._errors import BadElf, ModuleUnavailable
from textpoke.demangle import demangle
from textpoke.symbols import Symbols

if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import TracebackType
    from typing import Self

    from textpoke.capture import Capture

_MOST_NAMES = 1 << 16
"""Answers that are kept; the places that call a function are few."""
_SYMBOL = struct.Struct("<IBBHQQ")
_STT_OBJECT = 1
_LONGEST_NAME = 4096


class Callers:
    """Finds the function around an address; a context manager that closes the files.

    A file that has changed since the recording is not asked: its names would be wrong ones.

    Args:
        capture: Its META names modules and where they were.
    """

    def __init__(self, capture: Capture) -> None:
        self._recorded_ns = capture.meta.clock.realtime_ns
        self._known: dict[int, str | None] = {}
        self._images: list[elf.Image] = []
        self._ranges: list[tuple[int, int, int]] = []  # start, end, index of the module
        self._modules: list[tuple[str, int, Symbols]] = []
        self._variables: dict[int, list[tuple[int, int, str]]] = {}  # by module, by address
        self._rows = capture.meta.raw.get("modules")
        self._is_open = False

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for image in self._images:
            image.close()
        self._images.clear()
        self._ranges.clear()

    def function(self, address: int) -> str | None:
        """The function that a return address is in, without the offset."""
        name = self.name(address)
        return name.rpartition("+")[0] if name else None

    def variable(self, address: int) -> str | None:
        """`variable` or `variable+0x12` for an address in a module's data, if a symbol has it."""
        index = self._module_at(address)
        if index is None:
            return None
        if index not in self._variables:
            self._variables[index] = []
            with contextlib.suppress(BadElf):
                self._variables[index] = sorted(_variables(self._images[index]))
        vaddr = address - self._modules[index][1]
        rows = self._variables[index]
        place = bisect.bisect_right(rows, (vaddr, 1 << 64, "")) - 1
        if place < 0 or vaddr >= rows[place][0] + rows[place][1]:
            return None
        start, _, name = rows[place]
        (readable,) = demangle([name])
        return f"{readable}+{vaddr - start:#x}" if vaddr > start else readable

    def name(self, address: int) -> str | None:
        """`function+0x12` for a return address, or None where no function is known."""
        if address not in self._known:
            if len(self._known) >= _MOST_NAMES:
                self._known.clear()
            self._known[address] = self._find(address)
        return self._known[address]

    def place(self, address: int) -> str | None:
        """`module+0x12`, in ELF addresses; None where no module is."""
        index = self._module_at(address)
        if index is None:
            return None
        module, bias, _ = self._modules[index]
        return f"{module}+{address - bias:#x}"

    def _find(self, address: int) -> str | None:
        index = self._module_at(address)
        if index is None:
            return None
        module, bias, symbols = self._modules[index]
        # A call may be the last instruction of its function: what it returns to is another.
        vaddr = address - bias
        function, plus, offset = symbols.name(vaddr - 1).rpartition("+")
        if not plus:
            function, offset = symbols.name(vaddr - 1), "0x0"
        if function == module:
            return None
        (readable,) = demangle([function])
        return f"{readable}+{int(offset, 16) + 1:#x}"

    def _module_at(self, address: int) -> int | None:
        if not self._is_open:  # most captures hold no addresses
            self._is_open = True
            self._open_all()
        place = bisect.bisect_right(self._ranges, (address, 1 << 64, 0)) - 1
        if place < 0 or address >= self._ranges[place][1]:
            return None
        return self._ranges[place][2]

    def _open_all(self) -> None:
        for row in self._rows if isinstance(self._rows, list) else []:
            if isinstance(row, list) and [type(item) for item in row] == [str, str, int]:
                self._open(*row)
        self._ranges.sort()

    def _open(self, name: str, path: str, bias: int) -> None:
        try:
            facts = os.stat(path)
            if max(facts.st_mtime_ns, facts.st_ctime_ns) > self._recorded_ns:
                return
            image = elf.Image.open(path)
        except (OSError, BadElf, ModuleUnavailable, ValueError):
            return
        try:
            symbols = Symbols(image, name)
        except BadElf:
            image.close()
            return
        self._images.append(image)
        for segment in image.segments:
            if segment.type == elf.PT_LOAD:
                start = bias + segment.vaddr
                self._ranges.append((start, start + segment.memory_size, len(self._modules)))
        self._modules.append((name, bias, symbols))


def _variables(image: elf.Image) -> Iterator[tuple[int, int, str]]:
    # Address, size and name; tables that make no sense name nothing.
    sections = image.sections
    for table in sections:
        if table.type not in (elf.SHT_SYMTAB, elf.SHT_DYNSYM) or table.link >= len(sections):
            continue
        strings, content = image.contents(sections[table.link]), image.contents(table)
        for row in _SYMBOL.iter_unpack(content[: len(content) // _SYMBOL.size * _SYMBOL.size]):
            if row[1] & 15 == _STT_OBJECT and row[3] and row[5]:
                name = elf.string_at(strings, row[0], _LONGEST_NAME)
                yield row[4], row[5], name.partition("@")[0]
