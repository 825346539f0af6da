# SPDX-License-Identifier: Apache-2.0
"""Sites: every place in a module that can be patched, or the reason why not, and their choice.

Compilers leave two tables of NOPs. `__patchable_function_entries`
(-fpatchable-function-entry=N,M) holds the address of the first of N NOPs of each function, M of
which stand before its label. `__mcount_loc` (-pg -mfentry -mnop-mcount -mrecord-mcount) holds
the address of one 5-byte NOP at each function's entry.
"""

from __future__ import annotations

import collections
from typing import TYPE_CHECKING

from textpoke import elf
from textpoke._errors import NoSites, UnknownFunction
from textpoke.demangle import demangle
from textpoke.model import SiteKind, make_site
from textpoke.patterns import Pattern
from textpoke.symbols import Symbols

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from textpoke.model import Module, Site

BUILD_HINT = "build it with -fpatchable-function-entry=5 (GCC or clang)"

_TABLES = (("__patchable_function_entries", "patchable"), ("__mcount_loc", "mcount"))
_ENDBR64 = b"\xf3\x0f\x1e\xfa"
_SITE_BYTES = 5
_NOP_RUN = b"\x90" * _SITE_BYTES
_ENDBR64_NOP_RUN = _ENDBR64 + _NOP_RUN
_LONGEST_INSTRUCTION = 15
_WINDOW_BYTES = 2 * _LONGEST_INSTRUCTION + len(_ENDBR64)
_MAX_NOPS = 256
_WHY_NOT_MAPPED = "its address is not in the module's code as it is mapped"
_HIGHEST = 0x7FFF_FFFF_F000  # the end of user space
# Operand size, segments and branch hints; F3 is missing because F3 90 is PAUSE.
_NOP_PREFIXES = frozenset(b"\x66\x2e\x3e\x26\x36\x64\x65")

# A site before it has a name: ELF address, the function's ELF address, kind, old, source, reason.
_Found = tuple[int, int, SiteKind | None, bytes, str, str | None]


class _Code:
    """Bytes of the executable segments by ELF virtual address."""

    def __init__(self, image: elf.Image) -> None:
        self._parts = tuple((vaddr, vaddr + len(data), data) for vaddr, data in image.code)

    def at(self, vaddr: int, size: int) -> bytes:
        """Return `size` bytes, fewer at a segment's end, none outside of code."""
        for first, end, data in self._parts:
            if first <= vaddr < end:
                return data[vaddr - first : vaddr - first + size]
        return b""

    def holds(self, vaddr: int, wanted: bytes) -> bool:
        """Tell whether the bytes at `vaddr` are the wanted ones."""
        for first, end, data in self._parts:
            if first <= vaddr and vaddr + len(wanted) <= end:
                return data.startswith(wanted, vaddr - first)
        return False


def find_sites(image: elf.Image, module: Module) -> list[Site]:
    """Return the sites of one module, patchable or refused, by address, one for each function.

    Args:
        image: The module's file; it is read, never written.
        module: Gives the runtime addresses (`bias`) and the name.

    Raises:
        BadElf: A table in the file points outside of it.
    """
    tables = [(sorted(set(elf.pointers(image, name))), source) for name, source in _TABLES]
    if not any(addresses for addresses, _ in tables):
        return []
    symbols, code = Symbols(image, module.name), _Code(image)
    by_entry: dict[int, _Found] = {}
    for addresses, source in tables:
        for found in _examine_all(code, symbols.starts, addresses, source):
            other = by_entry.setdefault(found[1], found)
            if other[-1] and not found[-1]:
                by_entry[found[1]] = found
    # A label behind an endbr64 makes a second entry with the same site.
    by_address = {found[0]: found for found in by_entry.values()}
    return _named(sorted(by_address.values()), symbols, module)


class _MappedCode:
    """Where a module's code is mapped; anywhere in user space for one that no process has."""

    def __init__(self, module: Module) -> None:
        spans = sorted((m.start, m.end) for m in module.mappings if "x" in m.perms)
        self._spans = spans if module.mappings else [(0, _HIGHEST)]
        self._last = (0, 0)

    def holds(self, address: int, size: int) -> bool:
        """Tell whether the bytes lie in it."""
        start, end = self._last
        if start <= address and address + size <= end:
            return True
        for span in self._spans:
            if span[0] <= address and address + size <= span[1]:
                self._last = span
                return True
        return False


def _named(found: list[_Found], symbols: Symbols, module: Module) -> list[Site]:
    raw = symbols.names(site[1] for site in found)
    bias, name = module.bias, module.name
    sites: list[Site] = []
    inside = _MappedCode(module)
    for (vaddr, entry, kind, old, source, reason), symbol, function in zip(
        found, raw, demangle(raw), strict=True
    ):
        mapped = inside.holds(vaddr + bias, len(old))
        why = reason or (None if mapped else _WHY_NOT_MAPPED)
        site = make_site(
            vaddr + bias,
            len(old),
            kind if mapped else None,
            name,
            function,
            symbol,
            vaddr,
            old,
            source,
            why,
            entry + bias,
            b"",
            0,
        )
        sites.append(site)
    return sites


def _examine_all(
    code: _Code, starts: frozenset[int], addresses: list[int], source: str
) -> Iterator[_Found]:
    """Examine all addresses of one table, the two forms that nearly all have in short."""
    landing = len(_ENDBR64)
    for vaddr in addresses:
        plain = vaddr in starts
        entry = vaddr if plain else vaddr - landing
        if (
            (plain or entry in starts)
            and code.holds(entry, _NOP_RUN if plain else _ENDBR64_NOP_RUN)
            and starts.isdisjoint(range(vaddr + 1, vaddr + _SITE_BYTES))
        ):
            yield vaddr, entry, SiteKind.NOP_RUN, _NOP_RUN, source, None
        else:
            yield _examine(code, starts, vaddr, source)


def _examine(code: _Code, starts: frozenset[int], vaddr: int, source: str) -> _Found:
    """Decide what the table's entry `vaddr`, the address of a first NOP, is good for."""
    entry = _entry_of(code, starts, vaddr, source)
    if entry is None:
        old = code.at(vaddr, _SITE_BYTES)
        return vaddr, vaddr, None, old, source, _why_no_entry(old, source)
    start, content = entry, code.at(entry, _WINDOW_BYTES)
    if content.startswith(_ENDBR64):
        start, content = start + len(_ENDBR64), content[len(_ENDBR64) :]
    if content.startswith(_NOP_RUN):
        kind, old = SiteKind.NOP_RUN, _NOP_RUN
    else:
        length = nop_length(content)
        if length < _SITE_BYTES:
            reason = _why_not(content, source)
            return start, entry, None, content[:_SITE_BYTES], source, reason
        kind, old = SiteKind.NOP5, content[:length]
    if not starts.isdisjoint(range(start + 1, start + len(old))):
        return start, entry, None, old, source, "another function starts inside the NOPs"
    return start, entry, kind, old, source, None


def _entry_of(code: _Code, starts: frozenset[int], vaddr: int, source: str) -> int | None:
    """Return the first address of the function whose NOPs begin at `vaddr`.

    A wrong guess would put a CALL across a function's entry, so only a symbol or an unwind
    entry counts, never the look of the bytes alone: None when there is neither.
    """
    walk = _nops_up(code, vaddr) if source == "patchable" else _nops_down(code, vaddr)
    for place in walk:
        if place in starts:
            return place
        landing = place - len(_ENDBR64)
        if place <= vaddr and landing in starts and code.holds(landing, _ENDBR64):
            return landing
    return None


def _nops_up(code: _Code, vaddr: int) -> Iterator[int]:
    """Yield `vaddr` and the end of each NOP after it: M of N,M stand before the entry."""
    for _ in range(_MAX_NOPS):
        yield vaddr
        length = nop_length(code.at(vaddr, _LONGEST_INSTRUCTION))
        if not length:
            return
        vaddr += length


def _nops_down(code: _Code, vaddr: int) -> Iterator[int]:
    """Yield `vaddr` and the start of each NOP before it, which another table may speak of."""
    for place in range(vaddr, vaddr - _MAX_NOPS, -1):
        yield place
        if not code.holds(place - 1, _NOP_RUN[:1]):
            return


def _why_no_entry(old: bytes, source: str) -> str:
    if not old:
        return "the address is outside of the module's code"
    if source == "mcount":
        return "the call to mcount is not at the function's entry"
    return "the function's entry is unknown: neither a symbol nor an unwind entry"


def _why_not(content: bytes, source: str) -> str:
    if source == "mcount":
        return "call __fentry__: not a NOP"
    lengths: list[int] = []
    while length := nop_length(content[sum(lengths) :]):
        lengths.append(length)
    if not lengths:
        return f"no NOP after the entry but {content[:_SITE_BYTES].hex(' ')}"
    if sum(lengths) < _SITE_BYTES:
        return f"only {sum(lengths)} NOP bytes after the entry"
    return f"NOPs of {', '.join(map(str, lengths))} bytes, none of {_SITE_BYTES} or more in front"


def nop_length(code: bytes) -> int:
    """Return the length of the NOP instruction that `code` starts with, 0 when it is none.

    Known are 90 and 0F 1F /0 with prefixes (Intel SDM volume 2, NOP).
    """
    position, rex = 0, 0
    padded = code[:_LONGEST_INSTRUCTION] + bytes(_LONGEST_INSTRUCTION)
    while padded[position] in _NOP_PREFIXES:
        position += 1
    if padded[position] & 0xF0 == 0x40:
        rex = padded[position]
        position += 1
    if padded[position] == 0x90 and not rex & 1:  # with REX.B it is xchg r8, rax
        length = position + 1
    elif padded[position : position + 2] == b"\x0f\x1f" and not padded[position + 2] & 0x38:
        length = position + 2 + _modrm_length(padded[position + 2 :])
    else:
        return 0
    return length if length <= min(len(code), _LONGEST_INSTRUCTION) else 0


def _modrm_length(code: bytes) -> int:
    """Return the bytes that ModRM, SIB and displacement take (Intel SDM volume 2, 2.1.5)."""
    mode, register = code[0] >> 6, code[0] & 7
    if mode == 3:
        return 1
    length = 2 if register == 4 else 1
    base = code[1] & 7 if register == 4 else register
    return length + (0 if mode == 0 and base != 5 else (4, 1, 4)[mode])


def match(
    sites: Sequence[Site],
    include: Sequence[str],
    exclude: Sequence[str] = (),
    where: str = "the target",
) -> list[Site]:
    """Choose sites, refused ones too, by 'MODULE!GLOB' patterns (see `Pattern`); exclude wins.

    Args:
        sites: What is there.
        include: Patterns to choose by; none chooses everything.
        exclude: Patterns to drop from that.
        where: Names the place that was searched, for messages.

    Raises:
        NoSites: No site at all is patchable, or `exclude` leaves nothing.
        UnknownFunction: A pattern in `include` matches nothing.
    """
    if all(site.reason for site in sites):
        raise NoSites(where, _why_nothing(sites))
    picked = set() if include else set(range(len(sites)))
    for text in include:
        pattern = Pattern(text)
        hits = [i for i, site in enumerate(sites) if pattern.matches(site)]
        if not hits:
            raise UnknownFunction(text, pattern.close_names(sites))
        picked.update(hits)
    unwanted = [Pattern(text) for text in exclude]
    chosen = [sites[i] for i in sorted(picked)]
    chosen = [site for site in chosen if not any(p.matches(site) for p in unwanted)]
    if not chosen:
        raise NoSites(where, "the exclude patterns leave no function; drop one of them")
    return chosen


def _why_nothing(sites: Sequence[Site]) -> str:
    if not sites:
        return f"it has no compiler NOPs; {BUILD_HINT}"
    counts = collections.Counter(site.reason for site in sites)
    reasons = "; ".join(f"{reason} ({count})" for reason, count in counts.most_common(3))
    return f"all {len(sites)} sites are refused: {reasons}; {BUILD_HINT}"
