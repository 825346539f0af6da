# SPDX-License-Identifier: Apache-2.0
"""Which line of which source file an address comes from: .debug_line, DWARF 2 to 5.

Units and headers are read with pyelftools, which is imported when somebody asks; the programs of
the line tables, a million steps in a large module, are run here. Where a module is stripped, its
separate debug file is used (`_debug_files`). What cannot be read gives no lines: they are a help to
readers, and nothing depends on them.
"""

from __future__ import annotations

import bisect
import io
import os
import zlib
from typing import TYPE_CHECKING, Any

from textpoke import _debug_files, elf
from textpoke._errors import BadElf

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    Line = tuple[str, int]
    """Source file, line."""
    _Hit = tuple[int, int, int]
    """ELF virtual address, index of the file, line."""

MOST_BYTES = 512 << 20
"""Of debug information that is read of one module; what has more has no lines here."""
_SECTIONS = (
    *("info", "abbrev", "str", "line", "line_str", "str_offsets", "addr", "ranges", "rnglists"),
)
_OTHERS = (
    *("debug_aranges_sec", "debug_frame_sec", "eh_frame_sec", "debug_loc_sec"),
    *("debug_pubtypes_sec", "debug_pubnames_sec", "debug_loclists_sec", "debug_sup_sec"),
    *("gnu_debugaltlink_sec", "debug_types_sec"),
)
_SHF_COMPRESSED, _ZLIB, _COMPRESSED_HEADER_BYTES = 0x800, 1, 24
_LONGEST_LEB = 10
# Opcodes of the standard set that a line depends on.
_EXTENDED, _COPY, _ADVANCE_PC, _ADVANCE_LINE, _SET_FILE = 0, 1, 2, 3, 4
_CONST_ADD_PC, _FIXED_ADVANCE_PC = 8, 9
_END_SEQUENCE, _SET_ADDRESS = 1, 2


def lines_of(image: elf.Image, path: str, vaddrs: Iterable[int]) -> dict[int, Line]:
    """Source file and line of the instructions at some ELF virtual addresses.

    Args:
        image: The module's file.
        path: Where the module lies, as the target sees it: for separate debug files.
        vaddrs: The addresses; those of which nothing is known are left out of the result.
    """
    wanted = sorted(set(vaddrs))
    if not wanted:
        return {}
    try:
        if _has_lines(image):
            return _lines(image, wanted)
        separate = _debug_files.debug_file(image, path, elf.build_id(image))
    except BadElf:
        return {}
    if separate is None:
        return {}
    with separate:
        try:
            return _lines(separate, wanted)
        except BadElf:
            return {}


def files_of(image: elf.Image, path: str, vaddrs: Iterable[int]) -> dict[int, str]:
    """The source files of the functions that begin at some virtual addresses; see `lines_of`."""
    return {vaddr: file for vaddr, (file, _) in lines_of(image, path, vaddrs).items()}


def _has_lines(image: elf.Image) -> bool:
    return any(section.name == ".debug_line" and section.size for section in image.sections)


def _lines(image: elf.Image, wanted: Sequence[int]) -> dict[int, Line]:
    found: dict[int, Line] = {}
    dwarf = _dwarf_of(image)
    if dwarf is None:
        return found
    for unit in _units(dwarf):
        # A stranger's file, read by a library that was written for honest ones: any error means
        # that this unit has no lines.
        try:
            _add_unit(dwarf, unit, wanted, found)
        except Exception:  # noqa: BLE001, S112
            continue
    return found


def _units(dwarf: Any) -> Iterator[Any]:  # noqa: ANN401 - pyelftools has no types
    units = dwarf.iter_CUs()
    while True:
        try:
            unit = next(units)
        except Exception:  # noqa: BLE001 - StopIteration among them
            return
        yield unit


def _dwarf_of(image: elf.Image) -> Any:  # noqa: ANN401 - pyelftools has no types
    from elftools.dwarf.dwarfinfo import DebugSectionDescriptor, DwarfConfig, DWARFInfo

    left = MOST_BYTES
    sections: dict[str, Any] = dict.fromkeys(f"debug_{name}_sec" for name in _SECTIONS)
    for section in image.sections:
        key = f"{section.name.removeprefix('.')}_sec"
        if key not in sections or sections[key] is not None:
            continue
        content = _contents(image, section, left)
        if content is None:
            return None
        left -= len(content)
        sections[key] = DebugSectionDescriptor(
            io.BytesIO(content), section.name, section.offset, len(content), section.vaddr
        )
    if any(sections[f"debug_{name}_sec"] is None for name in ("info", "abbrev", "line")):
        return None
    config = DwarfConfig(little_endian=True, machine_arch="x64", default_address_size=8)
    return DWARFInfo(config=config, **sections, **dict.fromkeys(_OTHERS))


def _contents(image: elf.Image, section: elf.Section, most: int) -> bytes | None:
    """The bytes of a section, unpacked; None when they are too many, or packed in another way."""
    if section.size > most:
        return None
    content = image.contents(section)
    if not section.flags & _SHF_COMPRESSED:
        return content
    if int.from_bytes(content[:4], "little") != _ZLIB:
        return None
    unpacker = zlib.decompressobj()
    try:
        unpacked = unpacker.decompress(content[_COMPRESSED_HEADER_BYTES:], most)
    except zlib.error:
        return None
    return unpacked if unpacker.eof else None


def _add_unit(
    dwarf: Any,  # noqa: ANN401 - pyelftools has no types
    unit: Any,  # noqa: ANN401 - likewise
    wanted: Sequence[int],
    found: dict[int, Line],
) -> None:
    top = unit.get_top_DIE()
    program = dwarf.line_program_for_CU(unit) if _may_hold(dwarf, unit, top, wanted) else None
    if program is None:
        return
    header = program.header
    stream = dwarf.debug_line_sec.stream
    stream.seek(program.program_start_offset)
    steps = stream.read(program.program_end_offset - program.program_start_offset)
    names = _file_names(header, _text(top, "DW_AT_comp_dir"), _text(top, "DW_AT_name"))
    for vaddr, file, line in _run(steps, header, wanted):
        if line and 0 <= file < len(names):
            found[vaddr] = names[file], line


def _may_hold(
    dwarf: Any,  # noqa: ANN401 - pyelftools has no types
    unit: Any,  # noqa: ANN401 - likewise
    top: Any,  # noqa: ANN401 - likewise
    wanted: Sequence[int],
) -> bool:
    """Whether a unit may hold one of the addresses: its ranges say so, or nothing of them."""
    low, high = top.attributes.get("DW_AT_low_pc"), top.attributes.get("DW_AT_high_pc")
    if low is None or high is None or "DW_AT_ranges" in top.attributes:
        return _ranges_may_hold(dwarf, unit, top, wanted)
    end = high.value if high.form == "DW_FORM_addr" else low.value + high.value
    return _any_in(wanted, low.value, end)


def _ranges_may_hold(
    dwarf: Any,  # noqa: ANN401 - pyelftools has no types
    unit: Any,  # noqa: ANN401 - likewise
    top: Any,  # noqa: ANN401 - likewise
    wanted: Sequence[int],
) -> bool:
    from elftools.dwarf.ranges import BaseAddressEntry

    where = top.attributes.get("DW_AT_ranges")
    lists = dwarf.range_lists()
    if where is None or lists is None or where.form == "DW_FORM_rnglistx":
        return True
    low = top.attributes.get("DW_AT_low_pc")
    base = low.value if low is not None else 0
    for entry in lists.get_range_list_at_offset(where.value, unit):
        if isinstance(entry, BaseAddressEntry):
            base = entry.base_address
        elif _any_in(
            wanted,
            entry.begin_offset + (0 if entry.is_absolute else base),
            entry.end_offset + (0 if entry.is_absolute else base),
        ):
            return True
    return False


def _any_in(wanted: Sequence[int], low: int, high: int) -> bool:
    i = bisect.bisect_left(wanted, low)
    return i < len(wanted) and wanted[i] < high


def _text(top: Any, name: str) -> str:  # noqa: ANN401 - pyelftools has no types
    attribute = top.attributes.get(name)
    value = attribute.value if attribute is not None else b""
    return os.fsdecode(value) if isinstance(value, bytes) else ""


def _file_names(header: Any, directory: str, name: str) -> list[str]:  # noqa: ANN401
    """The paths that a program's file numbers mean."""
    folders = [os.path.join(directory, os.fsdecode(d)) for d in header["include_directory"]]
    entries = [(os.fsdecode(e.name), e.dir_index) for e in header["file_entry"]]
    if header["version"] < 5:  # numbers from 1 on; folder 0 is the unit's
        folders = [directory, *folders]
        entries = [(name, 0), *entries]
    paths = []
    for file, folder in entries:
        place = folders[folder] if folder < len(folders) else ""
        paths.append(os.path.normpath(os.path.join(directory, place, file)))
    return paths


class _Hits:
    """Which file and line the wanted addresses have; fed with the rows of sequences, in order."""

    def __init__(self, wanted: Sequence[int]) -> None:
        self._wanted = wanted
        self.found: list[_Hit] = []
        self._next = -1  # of `wanted`; -1: the sequence has no row yet

    def pass_row(self, start: int, end: int, file: int, line: int) -> int:
        """A row is in force from `start` to `end`. Returns the next wanted address."""
        wanted = self._wanted
        i = self._next
        if i < 0 or (i and wanted[i - 1] >= start):
            i = bisect.bisect_left(wanted, start)
        while i < len(wanted) and wanted[i] < end:
            if wanted[i] >= start:
                self.found.append((wanted[i], file, line))
            i += 1
        self._next = i
        return wanted[i] if i < len(wanted) else 1 << 64

    def end_sequence(self) -> None:
        """The next row may be anywhere."""
        self._next = -1


def _leb(steps: bytes, at: int, *, signed: bool = False) -> tuple[int, int]:
    """A LEB128 number, and where the next byte is. Raises IndexError, ValueError."""
    value = shift = 0
    for i in range(at, at + _LONGEST_LEB):
        byte = steps[i]
        value |= (byte & 0x7F) << shift
        shift += 7
        if byte < 0x80:
            return (value - (1 << shift) if signed and byte & 0x40 else value), i + 1
    raise ValueError(at)


def _run(steps: bytes, header: Any, wanted: Sequence[int]) -> list[_Hit]:  # noqa: ANN401, C901, PLR0912, PLR0915
    """Run a line program (DWARF 5, section 6.2): one loop, since it takes a step for every row."""
    hits = _Hits(wanted)
    first, line_base = header["opcode_base"], header["line_base"]
    line_range, unit = header["line_range"], header["minimum_instruction_length"]
    operands = header["standard_opcode_lengths"]
    advances = [(op - first) // line_range * unit for op in range(256)]
    changes = [(op - first) % line_range + line_base for op in range(256)]
    address, file, line = 0, 1, 1
    row = (0, 1, 1)  # the last one of this sequence: address, file, line
    has_row = False
    due = 0  # no wanted address below this one is left for the row in force
    at, end = 0, len(steps)
    while at < end:
        op = steps[at]
        at += 1
        if op >= first:
            address += advances[op]
            line += changes[op]
        elif op == _ADVANCE_PC:
            value, at = _leb(steps, at)
            address += value * unit
            continue
        elif op == _ADVANCE_LINE:
            value, at = _leb(steps, at, signed=True)
            line += value
            continue
        elif op == _SET_FILE:
            file, at = _leb(steps, at)
            continue
        elif op == _CONST_ADD_PC:
            address += advances[255]
            continue
        elif op == _FIXED_ADVANCE_PC:
            address += int.from_bytes(steps[at : at + 2], "little")
            at += 2
            continue
        elif op == _EXTENDED:
            size, at = _leb(steps, at)
            code = steps[at] if size else 0
            if code == _SET_ADDRESS:
                address = int.from_bytes(steps[at + 1 : at + size], "little")
            at += size
            if code != _END_SEQUENCE:
                continue
            if has_row:
                hits.pass_row(row[0], address, row[1], row[2])
            hits.end_sequence()
            address, file, line, has_row, due = 0, 1, 1, False, 0
            continue
        elif op != _COPY:
            for _ in range(operands[op - 1]):
                _, at = _leb(steps, at)
            continue
        if has_row and address > due:
            due = hits.pass_row(row[0], address, row[1], row[2])
        row = (address, file, line)
        has_row = True
    return hits.found
