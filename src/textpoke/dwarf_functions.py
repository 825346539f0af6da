# SPDX-License-Identifier: Apache-2.0
"""The functions of a module, with their parameters, from its DWARF.

It lies in the module's file or in its separate debug file. pyelftools reads it; its import costs
100 ms, so that stands where the first module is opened. Only the units whose addresses hold a
wanted function are read, and of these the outermost entries: a program of hundreds of units
answers within a second.
"""

from __future__ import annotations

import bisect
import functools
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from textpoke import _debug_files, elf
from textpoke._errors import BadElf
from textpoke.dwarf_types import (
    MOST_STEPS,
    RECORDS,
    Type,
    children,
    follow,
    guarded,
    name_of,
    number,
    type_of,
)

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    Die = Any
    Unit = Any
    _Ranges = tuple[list[int], list[tuple[int, int, int]]]
    """First addresses; first address, end, and offset of the unit, of every stretch of code."""

_MOST_BYTES = 1 << 30
_SHF_COMPRESSED = 0x800
_COMPRESSED_SIZE = slice(8, 16)  # of Elf64_Chdr
_MOST_PARAMETERS = 256
_NEAR = 8
_MOST_UNITS = 200_000
_SEARCH_S = 5.0
"""A struct that a unit only declares is looked for in the others for so long."""

# DW_AT_language of those that pass arguments as C does: C and C++ of all years,
# Objective-C, UPC.
_LIKE_C = frozenset(bytes.fromhex("01 02 04 0c 10 11 12 19 1a 1d 21 2a 2b 2c 3a 3e"))
_CC_NOCALL = 3
_CLONES = (".isra.", ".constprop.", ".part.")
_SCOPES = frozenset((*RECORDS, "DW_TAG_namespace", "DW_TAG_module"))
_OP_REG0, _OP_REG31, _OP_REGX = 0x50, 0x6F, 0x90


@dataclass(frozen=True, slots=True)
class Parameter:
    """One parameter; `register` is where a location puts it at the entry, counted as by DWARF."""

    name: str
    type: Type
    register: int | None = None


@dataclass(frozen=True, slots=True)
class Function:
    """One function.

    Attributes:
        name: Without namespace and class.
        parameters: In order, `this` first where there is one.
        returns: Kind.VOID for none.
        changed: The compiler gave it a calling convention of its own (.isra, .constprop): only
            parameters with a register are known.
        like_c: Its language passes arguments by the System V ABI.
    """

    name: str
    parameters: tuple[Parameter, ...]
    returns: Type
    changed: bool
    like_c: bool


class Functions:
    """The functions of one module.

    Args:
        path: Where the module's file can be read.
        shown_path: Where the module lies, as the target sees it.

    Attributes:
        problem: Why there is nothing to find; "" when there is DWARF.

    Raises:
        ModuleUnavailable, BadElf: The file cannot be read.
    """

    def __init__(self, path: str, shown_path: str = "") -> None:
        self.path = shown_path or path
        self.problem = ""
        self._dwarf: Any = None
        self._outermost: dict[int, dict[int, Die]] = {}
        self._all: dict[int, dict[int, Die]] = {}
        self._definitions: dict[tuple[str, str], Die | None] = {}
        self._open(path)

    def at(self, vaddr: int, symbol: str = "") -> Function | None:
        """The function whose first byte has this ELF address; None when no unit speaks of it.

        Args:
            vaddr: Of the first byte.
            symbol: Its raw name, which tells of clones.

        Raises:
            BadElf: The DWARF makes no sense.
        """
        if self._dwarf is None or ".cold" in symbol:  # a part of a function is none
            return None
        return guarded(lambda: self._find(vaddr, symbol), self.path)

    def definition(self, tag: str, name: str) -> Die | None:
        """The entry that defines a record which some unit only declares."""
        key = tag, name
        if key not in self._definitions:
            self._definitions[key] = self._search(name) if self._dwarf else None
        return self._definitions[key]

    def _open(self, path: str) -> None:
        with elf.Image.open(path) as image:
            if _has_dwarf(image):
                self._load(image)
                return
            other = _debug_files.debug_file(image, self.path, elf.build_id(image))
        if other is None:
            self.problem = "it has no debug information"
            return
        with other:
            if _has_dwarf(other):
                self._load(other)
            else:
                self.problem = "its debug file has no debug information"

    def _load(self, image: elf.Image) -> None:
        self._dwarf = guarded(lambda: self._read(image), self.path)
        other = _debug_files.supplement(image)
        if other:
            with other:
                self._dwarf.supplementary_dwarfinfo = guarded(lambda: self._read(other), self.path)

    def _read(self, image: elf.Image) -> Any:  # noqa: ANN401 - pyelftools has no types
        from elftools.elf.elffile import ELFFile

        _require_sane_sections(image)
        with open(image.path, "rb") as file:
            # Reads all sections; links to other files are not for it to follow.
            return ELFFile(file).get_dwarf_info(relocate_dwarf_sections=False, follow_links=False)

    def _find(self, vaddr: int, symbol: str) -> Function | None:
        for unit in self._units_at(vaddr):
            die = self._functions_of(unit).get(vaddr) or self._all_of(unit).get(vaddr)
            if die is not None:
                return self._function(die, vaddr, symbol)
        return None

    def _units_at(self, vaddr: int) -> Iterator[Unit]:
        """The units that may have a function; the compiler's own table of them is asked first."""
        seen = set()
        for ranges in ("_listed_ranges", "_ranges"):
            starts, rows = getattr(self, ranges)
            index = bisect.bisect_right(starts, vaddr)
            # Ranges of units do not overlap, but nothing says that none is empty.
            for first, end, offset in reversed(rows[max(0, index - _NEAR) : index]):
                if first <= vaddr < end and offset not in seen:
                    seen.add(offset)
                    yield self._dwarf.get_CU_at(offset)

    @functools.cached_property
    def _listed_ranges(self) -> _Ranges:
        table = self._dwarf.get_aranges()
        entries = table.entries if table else []
        return _sorted((e.begin_addr, e.begin_addr + e.length, e.info_offset) for e in entries)

    @functools.cached_property
    def _ranges(self) -> _Ranges:
        units = [(unit.get_top_DIE(), unit.cu_offset) for unit in self._all_units()]
        if any(_is_split(top) for top, _ in units):
            self.problem = "its debug information lies in .dwo files, which are not read"
        return _sorted((a, z, offset) for top, offset in units for a, z in _ranges_of(top))

    def _functions_of(self, unit: Unit) -> dict[int, Die]:
        """Functions of a unit by address, without those inside of others."""
        known = self._outermost.get(unit.cu_offset)
        if known is None:
            known = {}
            for die in _outermost_of(unit):
                if die.tag == "DW_TAG_subprogram":
                    start = _start_of(die)
                    if start is not None:
                        known.setdefault(start, die)
            self._outermost[unit.cu_offset] = known
        return known

    def _all_of(self, unit: Unit) -> dict[int, Die]:
        """With those within others: lambdas, methods of local classes, GNU C's own."""
        known = self._all.get(unit.cu_offset)
        if known is None:
            known = self._all[unit.cu_offset] = {}
            offset, end = unit.cu_die_offset, unit.cu_offset + unit.size
            while offset < end:
                die = unit.get_DIE_from_refaddr(offset)
                offset += die.size
                start = _start_of(die) if die.tag == "DW_TAG_subprogram" else None
                if start is not None:
                    known.setdefault(start, die)
        return known

    def _all_units(self) -> Iterator[Unit]:
        """Every unit; raises ValueError where a damaged file makes millions of them."""
        for count, unit in enumerate(self._dwarf.iter_CUs()):
            if count == _MOST_UNITS:
                raise ValueError(f"more than {_MOST_UNITS} units")
            yield unit

    def _search(self, name: str) -> Die | None:
        end_s = time.monotonic() + _SEARCH_S
        for unit in self._all_units():
            for die in _outermost_of(unit):
                if (
                    die.tag in RECORDS
                    and "DW_AT_declaration" not in die.attributes
                    and name_of(die) == name
                ):
                    return die
            if time.monotonic() > end_s:
                break
        return None

    def _function(self, die: Die, vaddr: int, symbol: str) -> Function:
        chain = list(_chain_of(die))
        changed = any(mark in symbol for mark in _CLONES) or any(
            number(part, "DW_AT_calling_convention") == _CC_NOCALL for part in chain
        )
        typed = next((part for part in chain if "DW_AT_type" in part.attributes), None)
        language = number(die.cu.get_top_DIE(), "DW_AT_language")
        return Function(
            next((name_of(part) for part in chain if name_of(part)), symbol),
            tuple(self._parameters(chain, vaddr if changed else None)),
            type_of(typed, self),
            changed,
            language in _LIKE_C,
        )

    def _parameters(self, chain: list[Die], vaddr: int | None) -> Iterator[Parameter]:
        """Parameters in their order; with `vaddr`, where locations put them at that address."""
        lists = [list(_parameters_of(part)) for part in chain]
        # An out-of-line copy may leave some out; what it is a copy of has them all, named. The
        # declaration that a definition specifies has them without names.
        origin = 0
        while origin + 1 < len(chain) and "DW_AT_abstract_origin" in chain[origin].attributes:
            origin += 1
        if not lists[origin]:
            origin = next((i for i, found in enumerate(lists) if found), origin)
        concrete = {
            follow(part, "DW_AT_abstract_origin").offset: part
            for part in lists[0]
            if "DW_AT_abstract_origin" in part.attributes
        }
        for index, part in enumerate(lists[origin]):
            here = part if not origin else concrete.get(part.offset)
            name = name_of(part)
            # A constructor's hidden parameters: the one is never passed, the other not always.
            if name == "__in_chrg" or (name == "__vtt_parm" and origin and here is None):
                continue
            register = None
            if vaddr is not None and here is not None:
                register = _register_at(here, vaddr)
            yield Parameter(name or f"_{index + 1}", type_of(part, self), register)


def _has_dwarf(image: elf.Image) -> bool:
    return any(
        section.name in (".debug_info", ".zdebug_info")
        and section.size
        and section.type != elf.SHT_NOBITS
        for section in image.sections
    )


def _require_sane_sections(image: elf.Image) -> None:
    """Raise BadElf before memory is asked for that no debug information needs."""
    total = 0
    for section in image.sections:
        if not section.name.startswith((".debug", ".zdebug", ".eh_frame", ".gnu_debug")):
            continue
        total += section.size
        if section.type != elf.SHT_NOBITS and section.name.startswith((".debug", ".zdebug")):
            head = image.bytes_at(section.offset, min(section.size, 24))
            if section.flags & _SHF_COMPRESSED:
                total += int.from_bytes(head[_COMPRESSED_SIZE], "little")
            elif head[:4] == b"ZLIB":
                total += int.from_bytes(head[4:12], "big")
    if total > _MOST_BYTES:
        raise BadElf(image.path, 0, f"{total} bytes of debug information are more than is read")


def _sorted(rows: Iterable[tuple[int, int, int]]) -> _Ranges:
    ordered = sorted(rows)
    return [row[0] for row in ordered], ordered


def _is_split(top: Die) -> bool:
    return not {"DW_AT_GNU_dwo_name", "DW_AT_dwo_name"}.isdisjoint(top.attributes)


def _outermost_of(unit: Unit) -> Iterator[Die]:
    """The entries of a unit that stand in no function."""
    scopes = [unit.get_top_DIE()]
    while scopes:
        for die in children(scopes.pop()):
            yield die
            if die.tag in _SCOPES:
                scopes.append(die)


def _chain_of(die: Die) -> Iterator[Die]:
    """An entry, what it is a copy of, and what that specifies."""
    for _ in range(MOST_STEPS):
        yield die
        link = next(
            (n for n in ("DW_AT_abstract_origin", "DW_AT_specification") if n in die.attributes),
            None,
        )
        if link is None:
            return
        die = follow(die, link)
    raise ValueError("a function that specifies itself")


def _parameters_of(die: Die) -> Iterator[Die]:
    for index, child in enumerate(children(die)):
        if index > _MOST_PARAMETERS * MOST_STEPS:
            raise ValueError("a function without end")
        if child.tag == "DW_TAG_formal_parameter":
            yield child
        elif child.tag == "DW_TAG_GNU_formal_parameter_pack":
            yield from (c for c in children(child) if c.tag == "DW_TAG_formal_parameter")


def _start_of(die: Die) -> int | None:
    """Where a function begins, when it has code."""
    if "DW_AT_low_pc" in die.attributes:
        return number(die, "DW_AT_low_pc")
    if "DW_AT_ranges" not in die.attributes:
        return None
    entry = die.attributes.get("DW_AT_entry_pc")
    if entry is not None and entry.form == "DW_FORM_addr":
        return number(die, "DW_AT_entry_pc")
    # Of a function with a cold part the hot one comes first.
    return next((first for first, _ in _ranges_of(die)), None)


def _ranges_of(die: Die) -> list[tuple[int, int]]:
    """First and end address of every piece of code that an entry covers, in its order."""
    attributes = die.attributes
    if "DW_AT_ranges" not in attributes:
        first = number(die, "DW_AT_low_pc")
        high = attributes.get("DW_AT_high_pc")
        if high is None or "DW_AT_low_pc" not in attributes:
            return []
        return [(first, high.value if high.form == "DW_FORM_addr" else first + high.value)]
    lists = die.dwarfinfo.range_lists()
    if lists is None:
        return []
    base = number(die.cu.get_top_DIE(), "DW_AT_low_pc")
    found = []
    for entry in lists.get_range_list_at_offset(number(die, "DW_AT_ranges"), die.cu):
        if hasattr(entry, "base_address"):
            base = entry.base_address
            continue
        shift = 0 if entry.is_absolute else base
        if entry.end_offset > entry.begin_offset:
            found.append((entry.begin_offset + shift, entry.end_offset + shift))
    return found


def _register_at(die: Die, vaddr: int) -> int | None:
    """The register that holds a parameter when its function begins, by its location."""
    from elftools.dwarf.locationlists import LocationExpr, LocationParser

    attribute = die.attributes.get("DW_AT_location")
    version = die.cu["version"]
    if attribute is None or not LocationParser.attribute_has_location(attribute, version):
        return None
    parser = LocationParser(die.dwarfinfo.location_lists())
    try:
        location: Any = parser.parse_from_attribute(attribute, version, die)
    except NotImplementedError:  # of clang's split addresses
        return None
    if isinstance(location, LocationExpr):
        return _register_of(location.loc_expr)
    base = number(die.cu.get_top_DIE(), "DW_AT_low_pc")
    for entry in location:
        if hasattr(entry, "base_address"):
            base = entry.base_address
        elif hasattr(entry, "loc_expr"):
            shift = 0 if entry.is_absolute else base
            if entry.begin_offset + shift <= vaddr < entry.end_offset + shift:
                return _register_of(entry.loc_expr)
    return None


def _register_of(expression: list[int]) -> int | None:
    if len(expression) == 1 and _OP_REG0 <= expression[0] <= _OP_REG31:
        return expression[0] - _OP_REG0
    if len(expression) == 2 and expression[0] == _OP_REGX and expression[1] < 0x80:
        return expression[1]
    return None
