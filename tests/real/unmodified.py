# SPDX-License-Identifier: Apache-2.0
"""What the tests on unmodified programs want of textpoke, all of it here, and an opinion on ELF.

If a name of the API changes, this file alone changes: `EVERYTHING` is the keyword that chooses
functions without compiler NOPs, `trace_everything` one recording of them, `Toggling` switches them
on and off, `sites_of_module` is what the toggler of the suites asks for every file.
"""

from __future__ import annotations

import struct
import threading
import time
from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Self

from elftools.elf.elffile import ELFFile
from toggler import Switch

import textpoke
from textpoke import process_sites
from textpoke.ring import OVERWRITE

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from textpoke.model import Module, Site

EVERYTHING = {"everything": True}
RING_BYTES = 1 << 20
SMALL_BYTES = 6  # the requirement counts functions of at least so many
PART = "part of a function"  # in the reason of what has an unwind entry and is no function
_PCREL_SDATA4 = 0x1B
_EXTENDED = 0xFFFFFFFF


@dataclass
class Row:
    """What became of the functions of a program: one row of the table.

    Attributes:
        found: Functions that textpoke lists; PLT slots and parts of functions are none.
        small: Those of fewer than SMALL_BYTES bytes.
        patched: Sites that the batch has switched on, by method.
        refused: Functions that were not patched, by reason.
        large, large_patched: Functions of at least SMALL_BYTES bytes, and how many were patched.
        without_reason: Functions that were not patched and say no reason.
        unlisted: Functions with a symbol and at least SMALL_BYTES bytes that are not listed.
        parts: What is listed as a part of a function (its cold part, mostly) with an unwind entry.
        named_parts: Those of them that have a name of their own, and so are functions after all.
        frames: Unwind entries that are not listed.
        attach_ms, batch_ms, hold_ms: Attach; the batch that switched on; all threads held in it.
        held_ms: One thread held at attach.
        functions: Names in the capture.
        report: Of the detach.
    """

    found: int = 0
    small: int = 0
    patched: Counter[str] = field(default_factory=Counter)
    refused: Counter[str] = field(default_factory=Counter)
    large: int = 0
    large_patched: int = 0
    without_reason: list[str] = field(default_factory=list)
    unlisted: list[str] = field(default_factory=list)
    parts: int = 0
    named_parts: list[str] = field(default_factory=list)
    frames: int = 0
    attach_ms: float = 0.0
    plan_ms: float = 0.0
    batch_ms: float = 0.0
    hold_ms: float = 0.0
    held_ms: float = 0.0
    events: int = 0
    lost: int = 0
    modules: tuple[str, ...] = ()
    modes: Counter[str] = field(default_factory=Counter)
    report: textpoke.DetachReport | None = None

    @property
    def coverage(self) -> float:
        """Patched functions among those of at least SMALL_BYTES bytes."""
        return self.large_patched / self.large if self.large else 0.0

    def cells(self) -> dict[str, str]:
        """For the table."""
        return {
            "found": f"{self.found:,}",
            "of 6 B": f"{self.large:,}",
            "patched": f"{sum(self.patched.values()):,}",
            "%": f"{100 * self.coverage:.2f}",
            "attach ms": f"{self.attach_ms:,.0f}",
            "plan ms": f"{self.plan_ms:,.0f}",
            "batch ms": f"{self.batch_ms:,.1f}",
            "hold ms": f"{self.hold_ms:,.1f}",
            "events": f"{self.events:,}",
            "lost": f"{self.lost:,}",
        }

    def details(self) -> list[str]:
        """What does not fit into the table."""
        by_method = ", ".join(f"{n:,} {method}" for method, n in self.patched.most_common())
        by_mode = ", ".join(f"{n:,} {mode}" for mode, n in self.modes.most_common())
        why = "; ".join(f"{n:,} {reason}" for reason, n in self.refused.most_common())
        besides = f"{self.parts:,} parts of functions, {self.frames:,} unwind entries not listed"
        return [
            f"patched: {by_method} (written: {by_mode}); one thread held {self.held_ms:.2f} ms",
            f"refused: {why or 'none'}",
            f"{self.small:,} are below {SMALL_BYTES} B; besides, {besides}",
        ]


def trace_everything(pid: int, capture: Path, seconds: float, libraries: Sequence[str] = ()) -> Row:
    """Attach, switch on all patchable functions of the main program and libc, record, let go.

    One batch, whatever modes the sites take; the recording is a flight recorder's, so the capture
    stays small, and what was overwritten counts as lost.

    Args:
        pid: The process.
        capture: The file to record to; it must not exist.
        seconds: How long to record.
        libraries: Patterns of modules besides ("libz"), each of which must be there.

    Needs of the API: `Finder.choose` lists every function, refused ones with their reason,
    `Target.trace(patterns, everything=True)` chooses the patchable ones of them, and
    `Trace.refused` has those for which no room was found or that a thread did not leave.
    `Trace.plan`, if there is one, tells the method of each (`Plan.sites[i].method`).
    """
    row = Row()
    began_s = time.perf_counter()
    with textpoke.attach(pid, ring_bytes=RING_BYTES) as target:
        row.attach_ms = (time.perf_counter() - began_s) * 1e3
        row.held_ms = target.hold_ns / 1e6
        main = next(module for module in target.modules if module.is_main)
        patterns = [f"{name}!*" for name in (main.name, "libc", *libraries)]
        trace = target.trace(patterns, output=capture, overwrite=True, **EVERYTHING)
        finder = process_sites.of_process(pid, **EVERYTHING)
        listed = finder.choose(target.modules, patterns)
        modules = [m for m in target.modules if m.name in {site.module for site in listed}]
        with trace:
            trace.run(seconds=seconds)
    row.report = target.report
    row.plan_ms = trace.timings_ms["plan"]
    row.batch_ms = trace.timings_ms["batch"]
    row.hold_ms = trace.on.hold_ns / 1e6
    row.events, row.lost = trace.events, trace.lost
    row.modules = tuple(module.name for module in modules)
    assert not trace.left_alone
    for choice in trace.on.choices:
        row.modes[str(choice.mode)] += len(choice.indexes)
    _judge(row, listed, modules, trace)
    return row


def _judge(row: Row, listed: list[Site], modules: list[Module], trace: textpoke.Trace) -> None:
    no_room = {site.address: reason for site, reason in trace.refused}
    chosen = {site.address for site in trace.chosen}
    plan = getattr(trace, "plan", None)
    methods = {p.site.address: p.method.value for p in plan.sites} if plan is not None else {}
    functions = [site for site in listed if site.source != "plt"]
    sizes, named = {}, {}
    for module in modules:
        known = known_functions(f"/proc/{trace.target.pid}/root{module.path}")
        sizes.update({start + module.bias: size for start, size in known.sizes.items()})
        named.update({start + module.bias: name for start, name in known.names.items()})
    for site in listed:
        reason = site.reason or no_room.get(site.address)
        if reason is None and site.address in chosen:
            row.patched[methods.get(site.address) or (site.kind.value if site.kind else "?")] += 1
    for site in functions:
        reason = site.reason or no_room.get(site.address)
        patched = reason is None and site.address in chosen
        size = sizes.get(site.entry)
        if reason and PART in reason:
            row.parts += 1
            if ".cold" not in (name := named.get(site.entry, ".cold")):
                row.named_parts.append(name)
            continue
        row.found += 1
        if size is not None and size < SMALL_BYTES:
            row.small += 1
        else:
            row.large += 1
            row.large_patched += patched
        if not patched:
            row.refused[_without_numbers(reason or "no reason")] += 1
            if not reason:
                row.without_reason.append(str(site))
    entries = {site.entry for site in listed}
    row.unlisted = sorted(
        name
        for start, name in named.items()
        if start not in entries and sizes[start] >= SMALL_BYTES and ".cold" not in name
    )
    row.frames = len(sizes.keys() - entries - named.keys())


def _without_numbers(text: str) -> str:
    return " ".join("N" if any(c.isdigit() for c in w) else w for w in text.split())[:100]


class Toggling(threading.Thread):
    """Switches all patchable functions of some modules of a process on and off meanwhile.

    A context manager. It attaches once, plans once, and then toggles `hz` times a second: on and
    off again is one time. It does so by the means of the suites' toggler (toggler.py).

    Args:
        pid: The process.
        modules: Patterns of modules ("libc"); "" is the main program. Empty for all.
        hz: How often a second.

    Attributes:
        toggles: How often it was on and off again.
        sites: How many there are.
        entries: Module and ELF address of the functions that they belong to.
        traps: How many threads met an int3.
        left: How many sites were left out of a turn because a thread stood inside.
        failure: What ended it before its time.
        report: Of the detach.
    """

    def __init__(self, pid: int, modules: Sequence[str], hz: float = 10.0) -> None:
        super().__init__(name=f"toggling-{pid}")
        self.pid, self.modules, self.half_s = pid, modules, 0.5 / hz
        self.toggles = self.sites = self.traps = self.left = 0
        self.entries: set[tuple[str, int]] = set()
        self.seconds = 0.0
        self.by_module: Counter[str] = Counter()
        self.failure: BaseException | None = None
        self.report: textpoke.DetachReport | None = None
        self._stop_it = threading.Event()
        self._begun = threading.Event()

    def __enter__(self) -> Self:
        self.start()
        self._begun.wait()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop_it.set()
        self.join()

    def require_no_failure(self) -> None:
        if self.failure is not None:
            raise self.failure
        assert self.toggles > 0

    def run(self) -> None:
        try:
            with textpoke.attach(self.pid, ring_bytes=64 << 10) as target:
                self._toggle(target)
            self.report = target.report
        except BaseException as failure:  # noqa: BLE001 - the test that owns us looks at it
            self.failure = failure
        finally:
            self._begun.set()

    def _toggle(self, target: textpoke.Target) -> None:
        main = next(module.name for module in target.modules if module.is_main)
        patterns = [f"{name or main}!*" for name in self.modules]
        plan = target.prepare(target.sites(patterns, **EVERYTHING))
        target.merge(plan)
        target.agent.record(on=True, waiting=OVERWRITE)
        self.sites = len(plan.sites)
        sites = [planned.site for planned in plan.sites]
        self.by_module = Counter(site.module for site in sites)
        self.entries = {(s.module, s.vaddr - (s.address - s.entry)) for s in sites}
        switch = Switch(target, plan)
        began_s = next_s = time.monotonic()
        while not self._stop_it.is_set() or switch.is_on:
            outcome = switch.flip()
            self.traps += outcome.traps
            self.left += len(outcome.left)
            self.toggles += not switch.is_on
            self.seconds = time.monotonic() - began_s
            next_s = max(next_s + self.half_s, time.monotonic())
            self._begun.set()
            self._sleep(next_s)

    def _sleep(self, until_s: float) -> None:
        self._stop_it.wait(max(until_s - time.monotonic(), 0.0))


def sites_of_module(pid: int, module: Module) -> list[Site]:
    """Every site of the main program and of libc: what the suites' toggler asks for, by module."""
    if not module.is_main and not module.name.startswith("libc.so"):
        return []
    return process_sites.of_process(pid, **EVERYTHING).of_module(module)


def sites_of_any_module(pid: int, module: Module) -> list[Site]:
    """The same for every module."""
    return process_sites.of_process(pid, **EVERYTHING).of_module(module)


# An opinion on ELF that is not ours: where functions begin and how long they are.


@dataclass
class Known:
    """Functions of a file by ELF virtual address: their sizes, and the names of those with one."""

    sizes: dict[int, int] = field(default_factory=dict)
    names: dict[int, str] = field(default_factory=dict)


def known_functions(path: str) -> Known:
    """Functions by their symbols and unwind entries, as pyelftools reads the sections."""
    known = Known()
    with open(path, "rb") as file:
        elf = ELFFile(file)
        code = [
            (section["sh_addr"], section["sh_addr"] + section["sh_size"])
            for section in elf.iter_sections()
            if section["sh_flags"] & 4 and not section.name.startswith((".plt", ".init", ".fini"))
        ]
        frames = elf.get_section_by_name(".eh_frame")
        starts = dict(_frames(frames.data(), frames["sh_addr"])) if frames is not None else {}
        for name in (".symtab", ".dynsym"):
            table = elf.get_section_by_name(name)
            for symbol in table.iter_symbols() if table is not None else ():
                is_function = symbol["st_info"]["type"] in ("STT_FUNC", "STT_GNU_IFUNC", "STT_LOOS")
                if is_function and symbol["st_value"] and symbol["st_size"]:
                    starts.setdefault(symbol["st_value"], symbol["st_size"])
                    known.names[symbol["st_value"]] = symbol.name
    known.sizes = {
        start: size for start, size in starts.items() if any(a <= start < b for a, b in code)
    }
    known.names = {start: name for start, name in known.names.items() if start in known.sizes}
    return known


def _frames(data: bytes, address: int):
    """(first address, bytes) of the entries of .eh_frame; only the usual encoding is known."""
    place, encodings = 0, {}
    while place + 4 <= len(data):
        (length,) = struct.unpack_from("<I", data, place)
        if not length:
            place += 4
            continue
        assert length != _EXTENDED
        at = place + 4
        (back,) = struct.unpack_from("<I", data, at)
        if not back:
            encodings[place] = _encoding(data, at + 4)
        else:
            assert encodings[at - back] == _PCREL_SDATA4, hex(encodings[at - back])
            first, size = struct.unpack_from("<iI", data, at + 4)
            yield address + at + 4 + first, size
        place = at + length


def _encoding(data: bytes, at: int) -> int:
    """How the entries of a common information entry tell their addresses."""
    end = data.index(b"\0", at + 1)
    letters = data[at + 1 : end].decode()
    at = end + 1
    for _ in range(2):  # alignment factors
        at = _after_leb128(data, at)
    at = _after_leb128(data, at)  # return address register
    if not letters.startswith("z"):
        return 0
    at = _after_leb128(data, at)
    for letter in letters[1:]:
        if letter == "R":
            return data[at]
        at += {"L": 1, "P": 5, "S": 0}[letter]  # a personality has four bytes as a rule
    return 0


def _after_leb128(data: bytes, at: int) -> int:
    while data[at] & 0x80:
        at += 1
    return at + 1
