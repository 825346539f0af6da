# SPDX-License-Identifier: Apache-2.0
"""What fuzzing and review of a target that lies have found, each as the case that showed it."""

from __future__ import annotations

import errno
import os
import struct
import sys
from pathlib import Path

import pytest

from textpoke import agent, elf, inject, unload, wire
from textpoke._errors import AgentFailed, BadElf, ModuleUnavailable
from textpoke._native import ffi, lib
from textpoke.model import Mapping, Module
from textpoke.ring import Drained, RingReader
from textpoke.sites import find_sites
from textpoke.symbols import Symbols

sys.path.insert(0, str(Path(__file__).parent.parent / "fuzz"))

import readers
import shared


def header(**changes: int) -> bytes:
    raw = ffi.new("struct tp_wire *")
    ffi.memmove(raw, shared.honest_header(), ffi.sizeof("struct tp_wire"))
    for name, value in changes.items():
        setattr(raw, name, value)
    return bytes(ffi.buffer(raw))


def image(**changes: int) -> bytes:
    raw = ffi.new("struct tp_image *")
    ffi.memmove(raw, shared.honest_image(), ffi.sizeof("struct tp_image"))
    for name, value in changes.items():
        setattr(raw, name, value)
    return bytes(ffi.buffer(raw))


def test_an_honest_layout_and_image_are_taken() -> None:
    assert wire.read_layout(header(), shared.SIZE).ring_count == shared.RINGS
    assert wire.read_image(image(), shared.IMAGE_BASE).region_count == 2


@pytest.mark.parametrize(
    "changes",
    [
        {"ring_bytes": 0, "ring_stride": 4096},
        {"ring_bytes": 3 * 4096, "ring_stride": 4 * 4096},
        {"ring_count": 0xFFFFFFFF},
        {"ring_count": 3},
        {"request_bytes": 1 << 63},
        {"request_bytes": (1 << 64) - 4096, "ring_offset": 0},
        {"ring_offset": (1 << 64) - 8},
        {"request_offset": 8192},
        {"magic": 1},
    ],
)
def test_a_layout_that_leads_out_of_the_object_is_refused(changes: dict[str, int]) -> None:
    with pytest.raises(AgentFailed, match="overwritten") as caught:
        wire.read_layout(header(**changes), shared.SIZE)
    assert caught.value.errno == errno.EBADMSG


@pytest.mark.parametrize(
    "changes",
    [
        {"region_count": lib.TP_MAX_REGIONS + 1},
        {"region_count": 1 << 63},
        {"base": 4096},
        {"shared_base": (1 << 64) - 1},
        {"slots_bytes": 1 << 63},
        {"magic": 0},
    ],
)
def test_an_image_head_with_impossible_ranges_is_refused(changes: dict[str, int]) -> None:
    with pytest.raises(AgentFailed, match="overwritten"):
        wire.read_image(image(**changes), shared.IMAGE_BASE)


@pytest.mark.parametrize(
    "changes",
    [
        {"known_count": 1 << 40},
        {"known_count": 1 << 63},
        {"known_base": 1 << 63},
        {"known_bytes": 0},
    ],
)
def test_a_table_of_sites_that_cannot_be_is_refused(changes: dict[str, int]) -> None:
    with pytest.raises(AgentFailed, match="overwritten"):
        wire.known_range(wire.read_image(image(**changes), shared.IMAGE_BASE))


def test_a_layout_changed_after_the_check_is_not_read_again() -> None:
    fd = shared.shared_object()
    os.pwrite(fd, header(), 0)
    connection = agent.Agent(os.getpid(), -1, -1, -1)
    agent.connect(connection, 1, os.dup(fd), shared.IMAGE_BASE)
    try:
        os.pwrite(fd, header(ring_count=1 << 31, ring_bytes=1 << 31), 0)
        reader = RingReader(connection, -1)
        assert reader.count == shared.RINGS
        assert reader.capacity == shared.RING_BYTES // 16
    finally:
        connection.close()


def test_losses_that_no_capture_can_hold_are_cut() -> None:
    totals = Drained(lost=1 << 61)
    totals.add(Drained(lost=1 << 62))
    assert totals.lost == 1 << 61


def test_a_thread_id_of_another_namespace_is_never_taken_for_the_agents() -> None:
    stranger = 1  # init: a process, and no thread of ours
    with pytest.raises(AgentFailed, match="the agent's thread"):
        inject.target_tid(os.getpid(), stranger)


def test_a_syscall_instruction_is_looked_for_in_pieces_and_not_for_ever(tmp_path: Path) -> None:
    path = tmp_path / "code"
    with path.open("wb") as file:
        file.truncate(1 << 40)
        file.seek((1 << 20) - 1)
        file.write(b"\x0f\x05")
    with path.open("rb") as file:
        maps = [Mapping(0, 1 << 40, "r-xp", 0, "", 1, "/x")]
        assert unload.find_syscall(file.fileno(), maps) == (1 << 20) - 1
        beyond = [Mapping(1 << 21, 1 << 40, "r-xp", 0, "", 1, "/x")]
        with pytest.raises(AgentFailed):
            unload.find_syscall(file.fileno(), beyond)


@pytest.mark.parametrize("code", [-(1 << 31), -1, 0, 1 << 16, 1 << 31, 1 << 63])
def test_error_codes_out_of_nowhere_have_a_text(code: int) -> None:
    assert str(code) in agent.error_text(code)
    assert str(code) in str(AgentFailed("x", code)) or code in errno.errorcode or code == 0


def test_a_file_cut_off_while_it_is_read_is_a_clean_error(tmp_path: Path) -> None:
    path = tmp_path / "x"
    path.write_bytes(readers.programs()[0][0])
    with elf.Image.open(str(path)) as program:
        os.truncate(path, 64)
        with pytest.raises(BadElf, match="shorter"):
            find_sites(program, Module("x", "/x", 0, is_main=True, mappings=()))


def test_a_fifo_in_a_files_place_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "x")
    with pytest.raises(ModuleUnavailable, match="pipe"):
        elf.Image.open(str(tmp_path / "x"))


def test_tables_that_lie_over_each_other_are_read_a_few_times_only() -> None:
    program = elf.Image(readers.programs()[0][0])
    for _ in range(elf._MOST_TIMES):
        program.bytes_at(0, program.size)
    program.bytes_at(0, 1 << 10)
    left = program._left // program.size
    for _ in range(left):
        program.bytes_at(0, program.size)
    with pytest.raises(BadElf, match="more than a program needs"):
        program.bytes_at(0, program.size)


def test_symbols_that_share_a_long_string_do_not_fill_the_memory(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    data = readers.programs()[0][0]
    monkeypatch.setattr("textpoke.symbols._MOST_NAME_BYTES", 3)
    with pytest.raises(BadElf, match="bytes of names"):
        find_sites(elf.Image(data), Module("x", "/x", 0, is_main=True, mappings=()))
    monkeypatch.undo()
    monkeypatch.setattr("textpoke.symbols._LONGEST_NAME", 3)
    names = Symbols(elf.Image(data), "x")
    assert set(names.names(sorted(names.starts))) >= {"alp", "bet"}


def test_a_site_outside_of_the_modules_mapped_code_is_refused() -> None:
    mappings = (Mapping(0x1000, 0x2000, "r-xp", 0, "", 1, "/x"),)
    data = readers.programs()[0][0]
    for bias in (-(1 << 63), 0, 1 << 63):
        module = Module("x", "/x", bias, is_main=True, mappings=mappings)
        found = find_sites(elf.Image(data), module)
        assert found
        assert all(site.reason and "mapped" in site.reason for site in found)


def test_section_headers_without_end_are_refused() -> None:
    data = bytearray(readers.programs()[0][0])
    (table,) = struct.unpack_from("<Q", data, 40)
    struct.pack_into("<H", data, 60, 0)
    struct.pack_into("<Q", data, table + 32, 1 << 40)
    with pytest.raises(BadElf, match="sections"):
        _ = elf.Image(bytes(data)).sections
