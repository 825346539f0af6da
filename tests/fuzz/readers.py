# SPDX-License-Identifier: Apache-2.0
"""The fuzzers in Python: everything that reads bytes which a target or a stranger wrote."""

from __future__ import annotations

import functools
import os
import shutil
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import analyses
import files
import shared
import typed
from mutate import CONTROLS, mutate, number, text

from textpoke import branch_stubs, cfi, elf, functions, source_lines, stubs, unwind
from textpoke.branches import find_branches
from textpoke.cli import _needed
from textpoke.demangle import demangle_one, without_parameters
from textpoke.model import Module
from textpoke.report.names import escape
from textpoke.sites import find_sites, match, nop_length
from textpoke.unwind_tables import UnwindTable

if TYPE_CHECKING:
    import random
    from collections.abc import Callable

os.environ["TEXTPOKE_CACHE"] = "off"
SOURCE = """
int alpha(int a) { return a + 1; }
static int __attribute__((noinline, used)) beta(int a) { return a * 3 + alpha(a); }
int __attribute__((weak)) gamma_(int a) { return beta(a); }
int delta(int a) __attribute__((alias("alpha")));
void _start(void) { gamma_(1); for (;;); }
"""
BUILDS = (
    ("-fpatchable-function-entry=5", "-static", "-nostdlib"),
    ("-fpatchable-function-entry=10,3", "-fcf-protection=full", "-fPIE", "-pie", "-nostdlib"),
    ("-pg", "-mfentry", "-mnop-mcount", "-mrecord-mcount", "-fno-pie", "-no-pie", "-nostdlib"),
    ("-fpatchable-function-entry=5", "-fPIC", "-shared", "-nostdlib", "-Wl,-s"),
)


@dataclass(frozen=True)
class Fuzzer:
    """One fuzzer.

    Attributes:
        run: Runs one case.
        share: Of the cases asked for, how many are run where a case is dear.
        prepare: Builds the seeds, once, before processes are forked.
    """

    run: Callable[[random.Random], object]
    share: float = 1.0
    prepare: Callable[[], object] = lambda: None


@functools.cache
def programs() -> list[tuple[bytes, list[tuple[int, int]]]]:
    """Small ELF files of all kinds, each with the ranges in it that matter."""
    directory = Path(tempfile.mkdtemp())
    try:
        source = directory / "x.c"
        source.write_text(SOURCE)
        made = []
        for i, flags in enumerate(BUILDS):
            path = directory / str(i)
            words = ["gcc", "-O1", *flags, "-Wl,--build-id", "-Wl,-z,noseparate-code"]
            subprocess.run([*words, "-o", path, source], check=True)
            data = path.read_bytes()
            made.append((data, _hot_ranges(data)))
        return made
    finally:
        shutil.rmtree(directory)


def _hot_ranges(data: bytes) -> list[tuple[int, int]]:
    image = elf.Image(data)
    headers, table, entries = 64, image._header[6], len(image.sections)
    wanted = (".symtab", ".dynsym", "__patchable", "__mcount", ".eh_frame", ".rela", ".dynamic")
    hot = [(16, headers), (headers, headers + 56 * len(image.segments))]
    hot += [(table, table + 64 * entries)] * 3
    for section in image.sections:
        if section.name.startswith((*wanted, ".note", ".dynstr", ".strtab")):
            hot.append((section.offset, section.offset + section.size))
    return hot


def fuzz_elf(rng: random.Random) -> None:
    """Headers, tables, symbols and code of a damaged ELF file, as all of the tool reads them."""
    seed, hot = rng.choice(programs())
    image = elf.Image(bytes(mutate(rng, seed, hot)), "x")
    elf.build_id(image)
    for _ in _needed._dynamic(image):
        pass
    bias = rng.choice((0, 0x5555_5555_0000, number(rng)))
    found = find_sites(image, Module("x", "/x", bias, is_main=True, mappings=()))
    for site in found:
        escape(str(site))
    match(found, [rng.choice(("*", "alpha", "x!be*", "nope"))])


def fuzz_functions(rng: random.Random) -> None:
    """The same file, for every function in it, and the code that would be moved."""
    seed, hot = rng.choice(programs())
    image = elf.Image(bytes(mutate(rng, seed, hot)), "x")
    bias = rng.choice((0, 0x5555_5555_0000))
    found = functions.find_functions(image, Module("x", "/x", bias, is_main=True, mappings=()))
    sites = found.sites(found)
    assert len(sites) == len(found)
    measured, _ = stubs.measure([site for site in sites if site.displaced])
    assert all(0 < length <= 128 for _, length in measured)


def fuzz_branches(rng: random.Random) -> None:
    """The same file, for the branches of some of its functions, and their stubs."""
    seed, hot = rng.choice(programs())
    image = elf.Image(bytes(mutate(rng, seed, hot)), "x")
    module = Module("x", "/x", rng.choice((0, 0x5555_5555_0000)), is_main=True, mappings=())
    known = functions.find_functions(image, module)
    chosen = rng.sample(range(len(known)), rng.randrange(len(known) + 1))
    entries = {site.entry - module.bias: site for site in known.sites(chosen)}
    found = find_branches(image, module, entries)
    counted = [branch for site in found.sites for branch in site.branches]
    assert len(counted) == found.countable
    _, _, refused = branch_stubs.measure(found.sites)
    assert not refused
    source_lines.lines_of(image, "/nowhere", [branch.vaddr for branch in found.branches])


def fuzz_unwind(rng: random.Random) -> None:
    """A damaged .eh_frame, walked."""
    entry = bytes.fromhex("1400000000000000017a5200017810011b0c070890010000")
    rows = entry + bytes.fromhex("1000000018000000e0f0ffff0500000000000000") * 3
    list(unwind._walk(bytes(mutate(rng, rows)), number(rng)))


def fuzz_rows(rng: random.Random) -> None:
    """The unwind rows of a damaged file, said again."""
    seed, hot = rng.choice(programs())
    image = elf.Image(bytes(mutate(rng, seed, hot)), "x")
    table = UnwindTable(image)
    for place, code in image.code[:2]:
        table.rows(place + rng.randrange(len(code) + 1), rng.randrange(1, 20))
    assert len(cfi.write_section(list(table.frames()))) % 4 == 0


def fuzz_nops(rng: random.Random) -> None:
    """Any bytes as a NOP."""
    pool = b"\x90\x66\x0f\x1f\x44\x84\x00\x40\x48\x2e\x3e\xff\x80"
    code = bytes(rng.choice(pool) for _ in range(rng.randrange(34)))
    length = nop_length(code)
    assert 0 <= length <= min(len(code), 15)


MANGLED = (
    "_ZN4shop4CartIiSt6vectorIiSaIiEEE3addERKS3_PFviE",
    "_ZNSt8_Rb_treeINSt7__cxx1112basic_stringIcSt11char_traitsIcESaIcEEESt4pairIKS5_S5_EE5eraseEPS8_",
    "_Z1fI1aI1bIiEEEDTcl1gfp_EET_z",
    "_ZN3foo3barIJiifEEEvDpT_",
    "_RNvMs_NtCs5kB_4core3fmtINtB4_9Formatter7newKj1_E3abc",
    "_RINvNtC3std3mem8align_ofNtNtC3std3mem12DiscriminantE",
    "_RNCNvC4main4main0Cs1234_4main",
    "_RNvYFG_eT_aB1_NtC1a1b",
    "_RIC1aKc2202_Kb1_Knx_AhKj7_RL_eDG_NtC1a1bEL_E",
    "_ZN4core3fmt9Formatter7new_LT$u5b$T$u5d$$GT$17h0123456789abcdefE",
    "_ZN71_$LT$Test$u20$$u2b$$u20$$u27$static$u20$as$u20$foo..Bar$GT$3baz17h05af221e174051e9E",
)
_PIECES = "_NvCtIEBKRQTAFDGLSXYMZs0123456789abcdpijxS_T_S0_DpDtcvJ$ul._un"


def fuzz_demangle(rng: random.Random) -> None:
    """Damaged and made-up symbols of C++ and Rust."""
    name = rng.choice(MANGLED)
    for _ in range(rng.randrange(1, 8)):
        at = rng.randrange(2, len(name) + 1)
        kind = rng.randrange(4)
        if kind == 0:
            name = name[:at] + rng.choice(_PIECES) + name[at + 1 :]
        elif kind == 1:
            size = rng.randrange(1, 24)
            name = name[:at] + name[at : at + size] * rng.choice((0, 2, 3, 8)) + name[at + size :]
        elif kind == 2:
            other = rng.choice(MANGLED)
            name = name[:at] + other[rng.randrange(2, len(other)) :]
        else:
            name = name[:at] + rng.choice(CONTROLS + "é٣") + name[at:]
    result = demangle_one(name)
    assert len(result) <= 1 << 20, len(result)
    without_parameters(result)


def fuzz_escape(rng: random.Random) -> None:
    """What goes to a terminal prints, whatever the name."""
    line = escape(text(rng))
    assert line.isprintable()
    assert escape(line) == line


def fuzz_ld_cache(rng: random.Random) -> None:
    """A damaged ld.so.cache."""
    row = _needed._CACHE_ENTRY.pack(0x303, 48 + 24 * 2, 48 + 24 * 2 + 8, 0, 0)
    data = _needed._CACHE_MAGIC.ljust(20, b"\0") + b"\2\0\0\0" + bytes(24) + row * 2
    _needed.parse_cache(bytes(mutate(rng, data + b"libx.so\0/lib/libx.so\0")))


FUZZERS = {
    "elf": Fuzzer(fuzz_elf, prepare=programs),
    "functions": Fuzzer(fuzz_functions, prepare=programs),
    "branches": Fuzzer(fuzz_branches, prepare=programs),
    "unwind": Fuzzer(fuzz_unwind),
    "rows": Fuzzer(fuzz_rows, prepare=programs),
    "nops": Fuzzer(fuzz_nops),
    "demangle": Fuzzer(fuzz_demangle),
    "escape": Fuzzer(fuzz_escape),
    "ld_cache": Fuzzer(fuzz_ld_cache),
    "maps": Fuzzer(files.fuzz_maps),
    "capture": Fuzzer(files.fuzz_capture, prepare=files.seeds),
    "report": Fuzzer(files.fuzz_report, 0.05, files.seeds),
    "analyses": Fuzzer(analyses.fuzz_analyses, 0.05, analyses.seeds),
    "arguments": Fuzzer(typed.fuzz_arguments, 0.05, typed.programs),
    "shared": Fuzzer(shared.fuzz_shared),
    "image": Fuzzer(shared.fuzz_image),
    "outcome": Fuzzer(shared.fuzz_outcome),
}
