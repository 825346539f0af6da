# SPDX-License-Identifier: Apache-2.0
"""What perf and gdb are told of our code: names, unwind rows, and nothing left behind."""

from __future__ import annotations

import os
import re
import subprocess
import time
from pathlib import Path
from typing import TYPE_CHECKING

import programs
import pytest
from elftools.dwarf.callframe import FDE
from elftools.elf.elffile import ELFFile
from observe import (
    ask,
    hear,
    is_one_error_line,
    maps,
    recording,
    status,
    tasks,
    tell,
    textpoke,
    untouched,
    wait_until,
)

import textpoke as tp
from textpoke import ViewError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from conftest import Compile, Start

TRACED = ["peek", "peek_with_frame"]
FAULTS = {
    "displaced": ("-fPIE", "-pie"),
    "behind pads": programs.PIE,
    "non-pie": ("-fno-pie", "-no-pie"),
}
NAME = re.compile(r"[0-9a-f]+ [0-9a-f]+ textpoke [ -~]+")
ROUNDS = 30
NOBODY = 65534


@pytest.fixture
def program(compile_target: Compile) -> Path:
    return compile_target("unwound.c", *FAULTS["displaced"])


@pytest.fixture
def process(program: Path, start_target: Start) -> subprocess.Popen[str]:
    return start_target(program)


@pytest.fixture
def perf_map(process: subprocess.Popen[str]) -> Iterator[Path]:
    path = Path(f"/tmp/perf-{process.pid}.map")
    yield path
    path.unlink(missing_ok=True)


def rows_of(path: Path, address: int) -> tuple[int, int]:
    """CFA register and offset at an address, as pyelftools finds them in the object."""
    with ELFFile.load_from_path(str(path)) as image:
        entries = [e for e in image.get_dwarf_info().EH_CFI_entries() if isinstance(e, FDE)]
    [entry] = [
        e
        for e in entries
        if e["initial_location"] <= address < e["initial_location"] + e["address_range"]
    ]
    row = [row for row in entry.get_decoded().table if row["pc"] <= address][-1]
    return row["cfa"].reg, row["cfa"].offset


def word_at(pid: int, address: int) -> int:
    with Path(f"/proc/{pid}/mem").open("rb", buffering=0) as memory:
        return int.from_bytes(os.pread(memory.fileno(), 8, address), "little")


def span_of(path: Path, name: str, pid: int) -> range:
    """Where a function of a program runs."""
    with ELFFile.load_from_path(str(path)) as image:
        [symbol] = image.get_section_by_name(".symtab").get_symbol_by_name(name)
        pie = image["e_type"] == "ET_DYN"
    start = symbol["st_value"]
    if pie:
        start += int(next(line for line in maps(pid) if str(path) in line).split("-")[0], 16)
    return range(start, start + symbol["st_size"])


@pytest.mark.parametrize("build", FAULTS)
def test_a_fault_in_a_traced_function_leads_to_its_caller(
    compile_target: Compile, start_target: Start, tmp_path: Path, build: str
) -> None:
    program = compile_target("unwound.c", *FAULTS[build])
    process, made = start_target(program), tmp_path / "our.o"
    with untouched(process), tp.attach(process.pid) as target:
        target.describe_code(gdb=made)
        with target.trace(TRACED):
            rip, rsp, rbp = (int(word, 16) for word in ask(process, "fault").split())
            if build == "behind pads":  # the function stands where it was
                assert rip in span_of(program, "peek", process.pid)
            else:
                register, offset = rows_of(made, rip)
                cfa = {7: rsp, 6: rbp}[register] + offset
                caller = word_at(process.pid, cfa - 8)
                assert caller in span_of(program, "ask_peek", process.pid)
            tell(process, "on")
            assert ask(process, "call") == "7"


def test_perf_finds_names_in_a_map_of_the_programs_user(
    process: subprocess.Popen[str], perf_map: Path
) -> None:
    with untouched(process), tp.attach(process.pid) as target:
        views = target.describe_code(perf_map=True)
        with target.trace("peek"):
            first = perf_map.read_text().splitlines()
        with target.trace(TRACED):
            lines = perf_map.read_text().splitlines()
    assert views.perf_map == str(perf_map)
    assert lines[: len(first)] == first
    assert len(lines) == len(set(lines)) == views.names
    assert all(NAME.fullmatch(line) for line in lines)
    named = [line.split(maxsplit=2)[2] for line in lines]
    assert sorted(set(named)) == [
        "textpoke agent",
        "textpoke stub of peek",
        "textpoke stub of peek_with_frame",
        "textpoke thunk",
    ]
    found = perf_map.stat()
    assert (found.st_uid, found.st_mode & 0o777) == (os.getuid(), 0o644)


def test_pads_are_named_one_by_one(
    compile_target: Compile, start_target: Start, tmp_path: Path
) -> None:
    process = start_target(compile_target("unwound.c", *programs.PIE))
    made = tmp_path / "our.o"
    with untouched(process), tp.attach(process.pid) as target:
        target.describe_code(gdb=made)
        with target.trace(TRACED) as trace:
            assert trace.plan is not None
            pads = {p.site.function: p.site.address - 0x6F6F6F6B for p in trace.plan.sites}
            for pad in pads.values():
                assert rows_of(made, pad) == (7, 8)
    with ELFFile.load_from_path(str(made)) as image:
        table = image.get_section_by_name(".symtab")
        named = {s.name: s["st_value"] for s in table.iter_symbols() if s.name}
    assert {name: named[f"textpoke pad of {name}"] for name in pads} == pads


@pytest.mark.skipif(os.getuid() != 0, reason="needs another user")
def test_a_map_belongs_to_the_user_that_the_program_is(
    process: subprocess.Popen[str], perf_map: Path
) -> None:
    perf_map.write_text("1 1 the program's own\n")
    os.chown(perf_map, NOBODY, NOBODY)
    with tp.attach(process.pid) as target, pytest.raises(ViewError, match="no plain file"):
        target.describe_code(perf_map=True)
    assert perf_map.read_text() == "1 1 the program's own\n"
    os.chown(perf_map, 0, 0)
    with tp.attach(process.pid) as target:
        target.describe_code(perf_map=True)
    assert perf_map.read_text().startswith("1 1 the program's own\n")
    assert "textpoke agent" in perf_map.read_text()


@pytest.mark.parametrize("trap", ["symbolic link", "hard link", "fifo", "directory"])
def test_nothing_but_a_plain_file_is_written(
    process: subprocess.Popen[str], perf_map: Path, tmp_path: Path, trap: str
) -> None:
    victim = Path(f"/tmp/textpoke-victim-{process.pid}")  # on one file system with the map
    victim.write_text("precious")
    try:
        if trap == "symbolic link":
            perf_map.symlink_to(victim)
        elif trap == "hard link":
            perf_map.hardlink_to(victim)
        elif trap == "fifo":
            os.mkfifo(perf_map)
        else:
            perf_map.mkdir()
        output = tmp_path / "x.tptrace"
        result = textpoke("record", "-p", process.pid, "--perf-map", "-d", "1s", "-o", output)
        is_one_error_line(result, 1, str(perf_map))
        assert victim.read_text() == "precious"
        assert not output.exists()
    finally:
        victim.unlink()
        if perf_map.is_dir() and not perf_map.is_symlink():
            perf_map.rmdir()
    assert len(tasks(process.pid)) == 1


def test_our_entry_is_in_the_programs_list_and_leaves_it(
    process: subprocess.Popen[str], tmp_path: Path
) -> None:
    with untouched(process), tp.attach(process.pid) as target:
        views = target.describe_code(gdb=tmp_path / "our.o")
        assert views.jit_module == Path(target.exe).name
        assert ask(process, "list") == "-1 end"
        with target.trace("peek"):
            assert ask(process, "add") == "0 -1 end"
        assert ask(process, "add") == "1 0 -1 end"
        assert ask(process, "remove") == "0 -1 end"
        with target.trace(TRACED):
            assert ask(process, "list") == "0 -1 end"
            assert ask(process, "remove") == "-1 end"
        assert ask(process, "add") == "0 -1 end"
    assert views.problems == []
    assert ask(process, "list") == "0 end"
    with untouched(process), tp.attach(process.pid) as target:
        target.describe_code(gdb=tmp_path / "2.o")
        assert ask(process, "add") == "1 0 -1 end"
    assert ask(process, "remove") == "0 end"


def test_the_list_survives_while_the_program_changes_it_at_full_speed(
    process: subprocess.Popen[str], tmp_path: Path
) -> None:
    ask(process, "storm")
    linked = 0
    for _ in range(ROUNDS):
        with tp.attach(process.pid) as target:
            views = target.describe_code(gdb=tmp_path / "our.o", force=True)
            linked += bool(views.jit_module)
            time.sleep(0.01)
        assert target.report is not None
        assert target.report.residue == []
    tell(process, "calm")
    assert int(hear(process)) > 1000
    assert "broken" not in ask(process, "list")
    assert "-1" not in ask(process, "list")
    assert linked > ROUNDS / 2


def test_another_tool_takes_the_entry_of_a_killed_one_out(
    process: subprocess.Popen[str], tmp_path: Path
) -> None:
    words = ("-p", process.pid, "-o", tmp_path / "x.tptrace", "--gdb", tmp_path / "our.o")
    with untouched(process):
        with recording(*words, "-i", "peek*") as record:
            assert ask(process, "add") == "0 -1 end"
            record.kill()
        assert textpoke("detach", "-p", process.pid).code == 0
        assert ask(process, "list") == "0 end"


def test_record_says_what_it_wrote(
    process: subprocess.Popen[str], perf_map: Path, tmp_path: Path
) -> None:
    made = tmp_path / "our.o"
    words = ("record", "-p", process.pid, "-d", "100ms", "-i", "peek*", "--perf-map", "--gdb", made)
    result = textpoke(*words, "-o", tmp_path / "x.tptrace")
    assert result.code == 0
    assert f"for perf: 4 names in {perf_map} of the target; it stays" in result.err
    assert f"for gdb: add-symbol-file {made}" in result.err
    assert "JIT interface" in result.err
    is_one_error_line(textpoke(*words, "-o", tmp_path / "y.tptrace"), 1, str(made), "-f")
    assert textpoke(*words, "-f", "-o", tmp_path / "y.tptrace").code == 0


def test_a_command_is_described_from_its_start(program: Path, tmp_path: Path) -> None:
    made = tmp_path / "our.o"
    words = ("-o", tmp_path / "x.tptrace", "--gdb", made, "--perf-map", "-i", "peek*")
    with recording(*words, "--", program) as record:
        wait_until(made.exists, "the object is there")
        record.tell("list")
        record.tell("call")
        record.tell("quit")
        result = record.end()
    assert result.out.split("\n")[:3] == ["ready", "-1 end", "7"]
    [path] = re.findall(r"names in (/tmp/perf-\d+\.map)", result.err)
    assert "textpoke stub of peek" in Path(path).read_text()
    Path(path).unlink()


def test_stubs_that_count_branches_have_names_and_rows(
    compile_target: Compile, start_target: Start, tmp_path: Path
) -> None:
    process, made = start_target(compile_target("branches.c", "-O2")), tmp_path / "our.o"
    with untouched(process), tp.attach(process.pid) as target:
        views = target.describe_code(perf_map=True, gdb=made)
        with target.trace("choose", tracer="branch") as trace:
            lines = Path(views.perf_map).read_text().splitlines()
            sites = len({row.address for row in trace.branch_counts(lines=False)})
    Path(views.perf_map).unlink()
    assert views.problems == []
    named = [line.split(maxsplit=2) for line in lines if "textpoke branches of choose" in line]
    assert 0 < len(named) <= sites
    stubs = {int(address, 16): int(size, 16) for address, size, _ in named}
    with ELFFile.load_from_path(str(made)) as image:
        entries = [e for e in image.get_dwarf_info().EH_CFI_entries() if isinstance(e, FDE)]
    rows = {entry["initial_location"]: entry["address_range"] for entry in entries}
    assert stubs.items() <= rows.items()


def test_this_process_has_no_entry_and_says_why(tmp_path: Path) -> None:
    with tp.this_process() as target:
        views = target.describe_code(gdb=tmp_path / "our.o")
        assert views.jit_module == ""
    assert (tmp_path / "our.o").read_bytes()[:4] == b"\x7fELF"


@pytest.mark.skipif(os.getuid() != 0, reason="needs namespaces")
def test_the_map_is_where_and_what_the_program_itself_would_call_it(
    program: Path, tmp_path: Path
) -> None:
    words = "exec 3<$0; mount -t tmpfs none /tmp && exec /proc/self/fd/3"
    with subprocess.Popen(
        ["unshare", "--fork", "--pid", "--kill-child", "--mount", "sh", "-c", words, program],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as parent:
        try:
            assert hear(parent) == "ready"
            children = Path(f"/proc/{parent.pid}/task/{parent.pid}/children").read_text()
            pid = int(children)
            assert status(pid)["NSpid"].split() == [str(pid), "1"]
            with tp.attach(pid) as target:
                views = target.describe_code(perf_map=True, gdb=tmp_path / "our.o")
                with target.trace("peek"):
                    assert ask(parent, "list") == "-1 end"
            assert views.perf_map == "/tmp/perf-1.map"
            inside = Path(f"/proc/{pid}/root/tmp")
            assert "textpoke stub of peek" in (inside / "perf-1.map").read_text()
            assert [path.name for path in inside.iterdir()] == ["perf-1.map"]
            assert ask(parent, "list") == "end"
        finally:
            parent.kill()


def test_a_forked_child_is_cleaned_of_our_entry_too(
    process: subprocess.Popen[str], tmp_path: Path
) -> None:
    with tp.attach(process.pid) as target:
        target.describe_code(gdb=tmp_path / "our.o")
        child = int(ask(process, "fork"))
        assert ask(process, "list") == "-1 end"
        assert textpoke("detach", "-p", child).code == 0
        tell(process, "ask")
        assert hear(process) == "child: end"
    assert ask(process, "list") == "end"
