# SPDX-License-Identifier: Apache-2.0
"""Unwind rows of our own code: said as they were read, and true at every instruction."""

from __future__ import annotations

import io
import struct
import subprocess
from typing import TYPE_CHECKING

import hypothesis.strategies as st
import pytest
from elftools.dwarf.callframe import FDE
from elftools.elf.elffile import ELFFile
from hypothesis import HealthCheck, given, settings
from iced_x86 import Code, Decoder, FlowControl, Mnemonic, OpKind, Register
from targets import module_of

from textpoke import branch_stubs, cfi, cfi_read, elf, placed, stubs
from textpoke._native import ffi, lib
from textpoke.agent_image import Probe, load_image
from textpoke.branches import find_branches
from textpoke.cfi import Frame, Row
from textpoke.code_object import Symbol, make_object, plain_name
from textpoke.functions import find_functions
from textpoke.model import BranchSite, Site, SiteKind
from textpoke.perf_map import lines_of
from textpoke.unwind_tables import UnwindTable, rows_of_prologue

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from conftest import Compile

FAR = 1 << 30
AT, THUNK_AT = 0x5555_5560_0000, 0x5555_5560_8000
BUILDS = {
    "usual": ("-O2",),
    "frames": ("-O0", "-fno-omit-frame-pointer"),
    "size": ("-Os",),
    "static": ("-O2", "-static"),
    "no header": ("-O2", "-Wl,--no-eh-frame-hdr"),
}
CXX = ("-Wl,--no-as-needed", "-lstdc++", "-Wl,--as-needed")
KINDS = {"OFFSET": "offset", "VAL_OFFSET": "val_offset", "UNDEFINED": "undefined"}
KINDS |= {"SAME_VALUE": "same", "REGISTER": "register"}
SP = {Register.RSP}

registers = st.integers(0, 16)
words = st.integers(-500, 500).map(lambda word: 8 * word)
rules = st.one_of(
    st.tuples(st.sampled_from(["offset", "val_offset"]), words),
    st.tuples(st.just("register"), registers),
    st.tuples(st.sampled_from(["same", "undefined"]), st.just(0)),
)
rows = st.builds(
    lambda register, offset, more: Row(register, offset, {16: ("offset", -8), **more}),
    registers,
    st.integers(0, 5000),
    st.dictionaries(st.integers(0, 15), rules, max_size=4),
)


@st.composite
def frames(draw: st.DrawFn) -> Frame:
    offsets = sorted(draw(st.sets(st.integers(1, 5000), max_size=6)))
    size = draw(st.integers(5001, 1 << 31))
    return Frame(
        draw(st.integers(0, 1 << 47)), size, tuple((at, draw(rows)) for at in [0, *offsets])
    )


def decoded(image: bytes) -> dict[int, tuple[int, dict[int, Row]]]:
    """By start: size, and rows by address; as pyelftools reads .eh_frame."""
    found = {}
    for entry in ELFFile(io.BytesIO(image)).get_dwarf_info().EH_CFI_entries():
        if isinstance(entry, FDE):
            table = entry.get_decoded().table
            start = entry["initial_location"]
            found[start] = entry["address_range"], {row["pc"]: row_of(row) for row in table}
    return found


def row_of(row: dict) -> Row | None:
    if row["cfa"].reg is None or any("EXPRESSION" in row[r].type for r in row if type(r) is int):
        return None
    saved = {r: (KINDS[row[r].type], row[r].arg or 0) for r in row if type(r) is int}
    return Row(row["cfa"].reg, row["cfa"].offset, saved)


@settings(max_examples=150, deadline=None)
@given(st.lists(frames(), max_size=3, unique_by=lambda frame: frame.start))
def test_what_is_written_is_what_others_read(made: list[Frame]) -> None:
    read = decoded(make_object([], [], made, 0x1000))
    assert read.keys() == {frame.start for frame in made}
    for frame in made:
        size, found = read[frame.start]
        assert size == frame.size
        for at, row in frame.rows:
            assert found[frame.start + at] == row


@pytest.mark.parametrize("build", BUILDS)
def test_rows_are_read_as_others_read_them(compile_target: Compile, build: str) -> None:
    source = ("counter.c",) if build == "static" else ("exceptions.cc", *CXX)
    path = compile_target(*source, *BUILDS[build])
    others = decoded(path.read_bytes())
    with elf.Image.open(str(path)) as image:
        ours = list(UnwindTable(image).frames())
    for frame in ours:
        size, table = others[frame.start]
        assert frame.size == size
        known = {frame.start + at: row for at, row in frame.rows}
        assert known.items() <= table.items()
        for at, row in table.items():
            assert row == row_at(frame.rows, at - frame.start)
    odd = [start for start, (_, table) in others.items() if None in table.values()]
    assert len(ours) >= len(others) - len(odd) - 10  # signal frames, other return registers


def row_at(table: cfi.Rows, offset: int) -> Row:
    return next(row for at, row in reversed(table) if at <= offset)


def entries_of(path: Path | str) -> Iterator[tuple[Site, UnwindTable]]:
    """All sites of a file that give way to a JMP, each with the table of the file."""
    with elf.Image.open(str(path)) as image:
        table = UnwindTable(image)
        functions = find_functions(image, module_of(path))
        for site in functions.sites(functions.displaceable_indexes()):
            if site.kind is SiteKind.ENTRY and site.patchable:
                yield site, table


def moved_by(instruction) -> int | None:
    """How far rsp goes down; None when it goes to where nobody can tell."""
    if instruction.mnemonic in (Mnemonic.SUB, Mnemonic.ADD) and instruction.op0_register in SP:
        if instruction.op1_kind == OpKind.REGISTER:
            return None
        amount = instruction.immediate(1)
        amount -= (amount & 1 << 63) << 1
        return amount if instruction.mnemonic == Mnemonic.SUB else -amount
    if instruction.mnemonic == Mnemonic.LEA and instruction.op0_register in SP:
        amount = instruction.memory_displacement
        return -(amount - ((amount & 1 << 63) << 1)) if instruction.memory_base in SP else None
    if instruction.flow_control in (FlowControl.CALL, FlowControl.INDIRECT_CALL):
        return 0
    if instruction.is_stack_instruction:
        increment = instruction.stack_pointer_increment
        return None if instruction.mnemonic in (Mnemonic.LEAVE, Mnemonic.ENTER) else -increment
    writes = instruction.op_count and instruction.op0_kind == OpKind.REGISTER
    return None if writes and instruction.op0_register in SP else 0


def check_straight(code: bytes, frame: Frame) -> int:
    """Follow code downwards and hold the rows against what it does; how many held."""
    depth, based, checked = 8, -1, 0
    for instruction in Decoder(64, code, ip=0):
        if instruction.ip >= frame.size:
            break
        row = row_at(frame.rows, instruction.ip)
        if row.register == cfi.RSP:
            assert row.offset == depth, f"{instruction} at {instruction.ip:#x}"
            checked += 1
        elif row.register == 6 and based >= 0:
            assert row.offset == based, f"{instruction} at {instruction.ip:#x}"
            checked += 1
        moved = moved_by(instruction)
        if instruction.code in (Code.MOV_RM64_R64, Code.MOV_R64_RM64):
            operands = instruction.op0_register, instruction.op1_register
            based = depth if operands == (Register.RBP, Register.RSP) else based
        if moved is None:
            break
        depth += moved
    return checked


WRONG_IN_LIBC = "__mpn_"  # written by hand: glibc's own rows leave out the pushes
LIBC = "/lib/x86_64-linux-gnu/libc.so.6"


@pytest.mark.parametrize("program", ["exceptions.cc", "entries.c", LIBC])
@pytest.mark.parametrize("tables", ["with tables", "without"])
def test_rows_of_a_stub_hold_at_every_instruction(
    compile_target: Compile, program: str, tables: str
) -> None:
    path = program if program == LIBC else compile_target(program, "-O2", *CXX)
    count = checked = 0
    for site, table in entries_of(path):
        if site.function.startswith(WRONG_IN_LIBC):
            continue
        code, [(_, stub)], _ = stubs.place([site], site.address, site.address)
        frame = placed.stub_frame(stub.address, site, table if tables == "with tables" else None)
        assert 27 <= frame.size <= len(code)
        checked += check_straight(code, frame)
        count += 1
        if count == 3000:
            break
    assert count > 30
    assert checked > 5 * count


def branch_sites_of(path: Path | str) -> Iterator[tuple[BranchSite, UnwindTable]]:
    """Where the branches of a file's functions are counted, each with the table of the file."""
    module = module_of(path)
    with elf.Image.open(str(path)) as image:
        table, functions = UnwindTable(image), find_functions(image, module)
        every = [s for s in functions.sites(functions) if not s.function.startswith(WRONG_IN_LIBC)]
        entries = {s.entry - module.bias: s for s in every if s.source != "plt"}
        for site in find_branches(image, module, entries).sites:
            yield site, table


def check_ways(code: bytes, frame: Frame, site: BranchSite, table: UnwindTable) -> int:
    """Follow code on all of its ways, to where they leave it; how many instructions held."""
    instructions = {i.ip: i for i in Decoder(64, code, ip=frame.start)}
    first = row_at(frame.rows, 0)
    ways, seen = [(frame.start, first.offset)], set()
    while ways:
        at, depth = ways.pop()
        if at in seen:
            continue
        if not frame.start <= at < frame.start + frame.size:  # in a function
            there = table.rows(at - (site.address - site.vaddr), 0)
            if there and there[0][1].register == cfi.RSP:
                assert there[0][1].offset in (depth, 8)  # 8: the entry of what is called
            continue
        seen.add(at)
        instruction, row = instructions[at], row_at(frame.rows, at - frame.start)
        if row.register != cfi.RSP:
            return len(seen)
        assert row.offset == depth, f"{instruction} at {at:#x}"
        flow, moved = instruction.flow_control, moved_by(instruction)
        if flow in (FlowControl.CONDITIONAL_BRANCH, FlowControl.UNCONDITIONAL_BRANCH):
            ways.append((instruction.near_branch_target, depth))
        if flow in (FlowControl.NEXT, FlowControl.CONDITIONAL_BRANCH) and moved is not None:
            ways.append((instruction.next_ip, depth + moved))
    return len(seen)


@pytest.mark.parametrize("program", ["exceptions.cc", "branches.c", LIBC])
def test_rows_of_a_stub_that_counts_branches_hold_on_every_way(
    compile_target: Compile, program: str
) -> None:
    path = program if program == LIBC else compile_target(program, "-O2", *CXX)
    count = checked = with_flags = 0
    for site, table in branch_sites_of(path):
        [good], size, _ = branch_stubs.measure([site])
        at = site.address + FAR  # so ways that leave the stub are seen to
        code, [(_, stub)], _ = branch_stubs.place([good], at, size, at)
        [frame] = placed.branch_frames(stub.address, site, table) or [None]
        if frame is None or row_at(frame.rows, 0).register != cfi.RSP:
            continue
        assert frame.size <= len(code)
        checked += check_ways(code, frame, site, table)
        with_flags += any(row.offset >= 128 + 8 for _, row in frame.rows)
        count += 1
        if count == 3000:
            break
    assert count > 10
    assert checked > 5 * count
    assert with_flags or program != LIBC  # some keep the flags, below the red zone


PROBES = {
    "function": lib.TP_PROBE_FUNCTION,
    "graph": lib.TP_PROBE_GRAPH,
    "profile": lib.TP_PROBE_PROFILE,
    "unwind": lib.TP_PROBE_UNWIND,
    "rich": lib.TP_PROBE_RICH,
}


@pytest.mark.parametrize("kind", PROBES)
def test_rows_of_a_probe_hold_on_every_way_through_it(kind: str) -> None:
    image = load_image()
    words = ffi.sizeof("struct tp_probe_words")
    raw, frame = image.probe(0, Probe(PROBES[kind]), 0), image.probe_frame(PROBES[kind])
    code = raw[:-words]
    filled = ffi.new("struct tp_probe_words *")
    ffi.memmove(filled, raw[-words:], words)
    decoder = {i.ip: i for i in Decoder(64, code, ip=0)}
    seen: set[int] = set()
    ways = [(0, 8, 0)]
    if filled.exit:
        ways.append((filled.exit, 56, 0))
    while ways:
        at, depth, based = ways.pop()
        if at in seen:
            continue
        seen.add(at)
        instruction, row = decoder[at], row_at(frame.rows, at)
        assert (row.register, row.offset) == ((6, based) if based else (cfi.RSP, depth))
        if instruction.mnemonic == Mnemonic.RET:
            assert depth == 8
            continue
        if instruction.flow_control == FlowControl.INDIRECT_BRANCH:
            assert depth == 0  # the return address is taken from below
            continue
        if instruction.mnemonic == Mnemonic.MOV and Register.RSP in (
            instruction.op0_register,
            instruction.op1_register,
        ):
            based = depth if instruction.op0_register == Register.RBP else 0
        elif not based:
            moved = moved_by(instruction)
            assert moved is not None
            depth += moved
        jumps = instruction.flow_control
        if jumps in (FlowControl.CONDITIONAL_BRANCH, FlowControl.UNCONDITIONAL_BRANCH):
            ways.append((instruction.near_branch_target, depth, based))
        if jumps != FlowControl.UNCONDITIONAL_BRANCH:
            ways.append((instruction.next_ip, depth, based))
    assert len(seen) > 40


def entry(window: bytes, heads: tuple[int, ...]) -> Site:
    mask = sum(1 << head for head in heads)
    old = window[:5]
    return Site(AT, 5, SiteKind.ENTRY, "m", "f", "f", AT, old, "symtab", None, AT, window, mask)


def test_a_stub_without_a_table_ends_where_nobody_can_tell() -> None:
    # push %rbp; leave (mov %rbp, %rsp; pop); nop; nop; nop
    site = entry(bytes.fromhex("55c9909090"), (1, 2, 3, 4))
    frame = placed.stub_frame(AT, site, None)
    assert frame.size == stubs.layout(site).heads[2][1]
    assert row_at(frame.rows, frame.size - 1).offset == 16


def test_a_plain_prologue_is_understood_without_a_table() -> None:
    # endbr64; push %rbp; mov %rsp, %rbp; push %rbx; sub $24, %rsp
    window = bytes.fromhex("f30f1efa554889e5534883ec18")
    found, end = rows_of_prologue(window, [0, 4, 5, 8, 9])
    assert end > len(window)
    assert [(at, row.register, row.offset) for at, row in found] == [
        (0, 7, 8),
        (5, 7, 16),
        (8, 6, 16),
    ]
    assert found[-1][1].rules == {16: ("offset", -8), 6: ("offset", -16)}


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.filter_too_much])
@given(st.binary(max_size=60), st.binary(max_size=60))
def test_damaged_entries_give_nothing_or_rows(common: bytes, program: bytes) -> None:
    for head in (b"", b"\1zR\0\1\x78\x10\1\x1b", b"\1\0\1\x78\x10"):
        try:
            read = cfi_read.read_common(head + common)
            _, size, rest = cfi_read.read_entry(program, 0x1000, read)
            cfi_read.run(read, rest, 0, size)
        except cfi_read.OddError:
            pass


def test_names_are_ascii_and_one_line() -> None:
    assert plain_name("f\nö\x1b") == "f\\x0a\\xf6\\x1b"
    assert len(plain_name("x" * 5000)) == 500
    assert lines_of([Symbol(0x1000, 30, "textpoke thunk")]) == b"1000 1e textpoke thunk\n"


def test_an_object_is_one_that_binutils_reads(tmp_path: Path) -> None:
    path = tmp_path / "x.o"
    symbols = [Symbol(AT + 16, 5, "textpoke pad of f"), Symbol(THUNK_AT, 9, "textpoke thunk")]
    regions = [(THUNK_AT, 4096), (AT, 4096)]
    made = [Frame(AT, 64, ((0, cfi.AT_ENTRY),))]
    path.write_bytes(make_object(regions, symbols, made, AT + 8192))
    read = subprocess.run(["readelf", "-aW", path], capture_output=True, text=True, check=True)
    assert read.stderr == ""
    with ELFFile.load_from_path(str(path)) as image:
        table = image.get_section_by_name(".symtab")
        named = [s for s in table.iter_symbols() if s.name]
        assert [(s.name, s["st_value"], s["st_size"]) for s in named] == [
            (s.name, s.address, s.size) for s in symbols
        ]
        for symbol in named:
            section = image.get_section(symbol["st_shndx"])
            assert section["sh_addr"] <= symbol["st_value"] < section["sh_addr"] + 4096
    assert struct.unpack_from("<H", path.read_bytes(), 16) == (2,)
