# SPDX-License-Identifier: Apache-2.0
"""Run the call frame programs of a stranger's .eh_frame. Pure functions of bytes.

Layouts and opcodes are from the DWARF standard, version 5, 6.4 and 7.24, and the LSB core
specification, 10.6. An entry that is damaged, or that says what we cannot say again at another
place, is "odd" and gives nothing.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

from textpoke.cfi import RETURN_ADDRESS, WORD_BYTES, Row, Rows

_MOST_REMEMBERED = 16
_MOST_LEB_BYTES = 10
_PCREL, _DATAREL_MASK = 0x10, 0xF0
_POINTER = {0x00: "<Q", 0x02: "<H", 0x03: "<I", 0x04: "<Q", 0x0A: "<h", 0x0B: "<i", 0x0C: "<q"}


class OddError(ValueError):
    """An entry that is damaged, or that we cannot say again."""


class _Reader:
    """Takes numbers off bytes; raises OddError at their end."""

    def __init__(self, data: bytes, at: int = 0) -> None:
        self.data = data
        self.at = at

    @property
    def more(self) -> bool:
        return self.at < len(self.data)

    def byte(self) -> int:
        if self.at >= len(self.data):
            raise OddError
        self.at += 1
        return self.data[self.at - 1]

    def number(self, layout: str) -> int:
        size = struct.calcsize(layout)
        if self.at + size > len(self.data):
            raise OddError
        self.at += size
        return int(struct.unpack_from(layout, self.data, self.at - size)[0])

    def uleb(self) -> int:
        value, _, _ = self._leb()
        return value

    def sleb(self) -> int:
        value, bits, negative = self._leb()
        return value - (1 << bits) if negative else value

    def _leb(self) -> tuple[int, int, bool]:
        value = 0
        for count in range(_MOST_LEB_BYTES):
            byte = self.byte()
            value |= (byte & 0x7F) << 7 * count
            if not byte & 0x80:
                return value, 7 * (count + 1), bool(byte & 0x40)
        raise OddError

    def text(self) -> bytes:
        end = self.data.find(b"\0", self.at)
        if end < 0:
            raise OddError
        start, self.at = self.at, end + 1
        return self.data[start:end]


@dataclass(frozen=True, slots=True)
class Common:
    """A common entry (CIE): what many entries share."""

    code_align: int
    data_align: int
    encoding: int  # of the addresses in its entries
    augmented: bool
    program: bytes


def read_common(body: bytes) -> Common:
    """The CIE whose bytes behind length and id are `body`.

    Raises OddError for signal frames, and for what compilers for x86-64 do not write.
    """
    reader = _Reader(body)
    version = reader.byte()
    letters = reader.text()
    if version not in (1, 3) or (letters and letters[:1] != b"z"):
        raise OddError
    code_align, data_align = reader.uleb(), reader.sleb()
    if (reader.byte() if version == 1 else reader.uleb()) != RETURN_ADDRESS:
        raise OddError
    encoding = 0
    if letters:
        encoding = _read_augmentation(reader, letters[1:])
    return Common(code_align, data_align, encoding, bool(letters), body[reader.at :])


def _read_augmentation(reader: _Reader, letters: bytes) -> int:
    size = reader.uleb()
    end = reader.at + size
    if end > len(reader.data):
        raise OddError
    encoding = 0
    for letter in letters:
        if letter == ord("R"):
            encoding = reader.byte()
        elif letter == ord("L"):
            reader.byte()
        elif letter == ord("P"):
            reader.number(_layout(reader.byte()))
        else:  # "S": a signal's frame; others: nobody knows
            raise OddError
    reader.at = end
    return encoding


def _layout(encoding: int) -> str:
    layout = _POINTER.get(encoding & 0x0F)
    if layout is None:
        raise OddError
    return layout


def read_entry(body: bytes, vaddr: int, common: Common) -> tuple[int, int, bytes]:
    """Address, size and program of the FDE whose bytes behind length and id are `body`, at `vaddr`.

    Raises OddError.
    """
    reader = _Reader(body)
    base = {0: 0, _PCREL: vaddr}.get(common.encoding & _DATAREL_MASK)
    if base is None:
        raise OddError
    start = reader.number(_layout(common.encoding)) + base
    size = reader.number(_layout(common.encoding & 0x07))
    if common.augmented:
        skip = reader.uleb()  # where the function's landing pads are listed
        reader.at += skip
        if reader.at > len(body):
            raise OddError
    return start & (1 << 64) - 1, size, body[reader.at :]


def run(common: Common, program: bytes, start: int, end: int) -> Rows:
    """Rows at the addresses of [start, end] of a function that begins at `start`.

    Raises OddError where a rule is an expression, or no compiler's.
    """
    machine = _Machine(common, start)
    machine.run(common.program, end)
    machine.initial = dict(machine.rules)
    machine.run(program, end)
    machine.note()
    return tuple(machine.rows)


class _Machine:
    """Runs call frame instructions; `rows` has what held where, once the location has moved on."""

    def __init__(self, common: Common, start: int) -> None:
        self.common = common
        self.location = start
        self.register = -1
        self.offset = 0
        self.rules: dict[int, tuple[str, int]] = {}
        self.initial: dict[int, tuple[str, int]] = {}
        self.remembered: list[tuple[int, int, dict[int, tuple[str, int]]]] = []
        self.rows: list[tuple[int, Row]] = []

    def note(self) -> None:
        """Keep the row that is done."""
        if self.register < 0 or self.offset < 0 or RETURN_ADDRESS not in self.rules:
            raise OddError
        row = Row(self.register, self.offset, dict(self.rules))
        if self.rows and self.rows[-1][0] == self.location:
            self.rows.pop()
        if not self.rows or self.rows[-1][1] != row:
            self.rows.append((self.location, row))

    def run(self, program: bytes, end: int) -> None:
        """Run a program until the location is behind `end`."""
        reader = _Reader(program)
        while reader.more:
            opcode = reader.byte()
            step = self._advance(opcode, reader)
            if step is None:
                self._define(opcode, reader)
            elif step:
                self.note()
                if self.location + step > end:
                    break
                self.location += step

    def _advance(self, opcode: int, reader: _Reader) -> int | None:
        if opcode & 0xC0 == 0x40:
            return (opcode & 0x3F) * self.common.code_align
        layout = {0x02: "<B", 0x03: "<H", 0x04: "<I"}.get(opcode)
        return None if layout is None else reader.number(layout) * self.common.code_align

    def _define(self, opcode: int, reader: _Reader) -> None:
        align = self.common.data_align
        if opcode & 0xC0 == 0x80:
            self._set(opcode & 0x3F, "offset", reader.uleb() * align)
        elif opcode & 0xC0 == 0xC0:
            self._restore(opcode & 0x3F)
        elif opcode in (0x05, 0x11):  # offset_extended, .._sf
            register = reader.uleb()
            factor = reader.uleb() if opcode == 0x05 else reader.sleb()
            self._set(register, "offset", factor * align)
        elif opcode in (0x14, 0x15):  # val_offset, .._sf
            register = reader.uleb()
            factor = reader.uleb() if opcode == 0x14 else reader.sleb()
            self._set(register, "val_offset", factor * align)
        elif opcode == 0x06:
            self._restore(reader.uleb())
        elif opcode == 0x07:
            self._set(reader.uleb(), "undefined", 0)
        elif opcode == 0x08:
            self._set(reader.uleb(), "same", 0)
        elif opcode == 0x09:
            self._set(reader.uleb(), "register", reader.uleb())
        else:
            self._define_cfa(opcode, reader)

    def _define_cfa(self, opcode: int, reader: _Reader) -> None:
        align = self.common.data_align
        if opcode in (0x0C, 0x12):  # def_cfa, .._sf
            self.register = reader.uleb()
            self.offset = reader.uleb() if opcode == 0x0C else reader.sleb() * align
        elif opcode == 0x0D:
            self.register = reader.uleb()
        elif opcode == 0x0E:
            self.offset = reader.uleb()
        elif opcode == 0x13:
            self.offset = reader.sleb() * align
        elif opcode == 0x0A and len(self.remembered) < _MOST_REMEMBERED:
            self.remembered.append((self.register, self.offset, dict(self.rules)))
        elif opcode == 0x0B and self.remembered:
            self.register, self.offset, self.rules = self.remembered.pop()
        elif opcode == 0x2E:  # GNU_args_size: for landing pads only
            reader.uleb()
        elif opcode:  # expressions, and what nobody knows
            raise OddError

    def _set(self, register: int, kind: str, value: int) -> None:
        if kind.endswith("offset") and value % WORD_BYTES:
            raise OddError
        self.rules[register] = kind, value

    def _restore(self, register: int) -> None:
        if register in self.initial:
            self.rules[register] = self.initial[register]
        else:
            self.rules.pop(register, None)
