# SPDX-License-Identifier: Apache-2.0
"""ELF files are read as binutils reads them, and damaged ones are refused cleanly."""

from __future__ import annotations

import contextlib
import os
import struct
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from targets import LINKS, PACK_RELATIVE, PATCHABLE, module_of, nm, sites_of, supports_relr

from textpoke import elf
from textpoke._errors import BadElf, ModuleUnavailable
from textpoke.sites import find_sites
from textpoke.symbols import Symbols
from textpoke.unwind import function_starts

if TYPE_CHECKING:
    from pathlib import Path

    from conftest import Compile

TABLE = "__patchable_function_entries"


def readelf(path: Path, *flags: str) -> str:
    """Return what binutils says about a file."""
    return subprocess.check_output(["readelf", "-W", *flags, str(path)], text=True)


@pytest.fixture(scope="module")
def program(compile_target: Compile) -> Path:
    return compile_target("nops.c", f"{PATCHABLE}5")


def test_headers_are_what_readelf_says(program: Path) -> None:
    with elf.Image.open(str(program)) as image:
        rows = [
            line[line.index("]") + 1 :].split()
            for line in readelf(program, "-S").splitlines()
            if line.strip().startswith("[") and "[Nr]" not in line
        ]
        assert [section.name for section in image.sections[1:]] == [row[0] for row in rows[1:]]
        assert [section.vaddr for section in image.sections[1:]] == [
            int(r[2], 16) for r in rows[1:]
        ]
        assert [section.size for section in image.sections[1:]] == [int(r[4], 16) for r in rows[1:]]
        loads = [line.split() for line in readelf(program, "-l").splitlines() if " LOAD " in line]
        assert [load.vaddr for load in image.loads] == [int(row[2], 16) for row in loads]
        assert [load.memory_size for load in image.loads] == [int(row[5], 16) for row in loads]


def test_bytes_are_found_by_address(program: Path) -> None:
    with elf.Image.open(str(program)) as image:
        for name, vaddr in nm(program).items():
            if name == "alpha":
                offset = image.offset_of(vaddr)
                assert image.bytes_at(offset, 5) == b"\x90" * 5
        assert image.offset_of(1 << 60) == -1


@pytest.mark.parametrize("link", LINKS)
def test_pointers_hold_the_linked_addresses(link: str, compile_target: Compile) -> None:
    if link == "relr" and not supports_relr():
        pytest.fail("this linker has no -z pack-relative-relocs: GNU ld 2.38 or lld is needed")
    program = compile_target("nops.c", f"{PATCHABLE}5", *LINKS[link])
    with elf.Image.open(str(program)) as image:
        found = elf.pointers(image, TABLE)
        assert len(found) == len(set(found)) >= 6
        assert all(image.bytes_at(image.offset_of(vaddr), 5) == b"\x90" * 5 for vaddr in found)
        assert elf.pointers(image, ".no_such_section") == []


def test_slots_left_zero_get_their_addend(program: Path) -> None:
    content = bytearray(program.read_bytes())
    with elf.Image.open(str(program)) as image:
        wanted = elf.pointers(image, TABLE)
        (table,) = (section for section in image.sections if section.name == TABLE)
    content[table.offset : table.offset + table.size] = bytes(table.size)  # as lld leaves it
    assert elf.pointers(elf.Image(bytes(content)), TABLE) == wanted


def test_discarded_functions_leave_no_pointer(compile_target: Compile) -> None:
    program = compile_target("nops.c", f"{PATCHABLE}5", "-no-pie", "-fno-pie")
    content = bytearray(program.read_bytes())
    with elf.Image.open(str(program)) as image:
        wanted = elf.pointers(image, TABLE)
        (table,) = (section for section in image.sections if section.name == TABLE)
    content[table.offset : table.offset + 8] = bytes(8)
    assert elf.pointers(elf.Image(bytes(content)), TABLE) == wanted[1:]


@pytest.mark.parametrize("link", ["pie", "non-pie", "static", "static-pie"])
def test_unwind_tables_name_every_function(link: str, compile_target: Compile) -> None:
    program = compile_target("nops.c", *LINKS[link])
    stripped = compile_target("nops.c", *LINKS[link], "-s")
    ours = {"alpha", "beta", "gamma_hidden", "delta_weak", "bare", "report", "main"}
    with elf.Image.open(str(program)) as image, elf.Image.open(str(stripped)) as bare:
        starts = function_starts(image)
        assert {name for name, vaddr in nm(program).items() if vaddr in starts} >= ours
        assert function_starts(bare) == starts


def test_frames_with_personality_routines_are_walked(compile_target: Compile) -> None:
    # Without .eh_frame_hdr, as in static programs; C++ adds "P" and "L" to the augmentation.
    program = compile_target("names.cc", "-fexceptions", "-Wl,--no-eh-frame-hdr")
    with elf.Image.open(str(program)) as image:
        assert not [s for s in image.segments if s.type == elf.PT_GNU_EH_FRAME]
        starts = function_starts(image)
        assert {v for name, v in nm(program).items() if "shop" in name} <= set(starts)


def test_build_id_is_the_one_in_the_notes(program: Path, compile_target: Compile) -> None:
    with elf.Image.open(str(program)) as image:
        assert f"Build ID: {elf.build_id(image).hex()}" in readelf(program, "-n")
        head = elf.Image(image.bytes_at(0, 4096))
        assert elf.build_id(head) == elf.build_id(image)
    with elf.Image.open(str(compile_target("nops.c", "-Wl,--build-id=none"))) as image:
        assert elf.build_id(image) == b""


def test_section_counts_beyond_16_bits_are_read() -> None:
    names = b"\0.names\0"
    count = 3
    header = struct.pack(
        "<16sHHIQQQIHHHHHH", b"\x7fELF\x02\x01\x01", 3, 62, 1, 0, 0, 64, 0, 64, 56, 0, 64, 0, 0xFFFF
    )
    body = 64 + 64 * count
    first = struct.pack("<IIQQQQIIQQ", 0, 0, 0, 0, 0, count, 2, 0, 0, 0)
    empty = struct.pack("<IIQQQQIIQQ", 0, 0, 0, 0, 0, 0, 0, 0, 0, 0)
    strings = struct.pack("<IIQQQQIIQQ", 1, 3, 0, 0, body, len(names), 0, 0, 1, 0)
    image = elf.Image(header + first + empty + strings + names)
    assert [section.name for section in image.sections] == ["", "", ".names"]


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (b"", "0 bytes"),
        (b"\x7fELF", "64 bytes wanted"),
        (b"#!/bin/sh\n" * 20, "not an ELF file"),
        (b"\x7fELF\x01\x01\x01" + bytes(100), "not x86-64: class 1"),
        (b"\x7fELF\x02\x01\x01" + bytes(9) + b"\x02\0\xb7\0" + bytes(100), "machine 183"),
    ],
)
def test_what_is_not_an_image_is_refused(content: bytes, problem: str, tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(content)
    with pytest.raises(BadElf) as caught:
        elf.Image.open(str(path))
    assert caught.value.path == str(path)
    assert str(path) in str(caught.value)
    if content:
        assert problem in str(caught.value)
    assert isinstance(caught.value, ValueError)


def test_a_missing_file_is_a_clean_error(tmp_path: Path) -> None:
    with pytest.raises(ModuleUnavailable, match="No such file"):
        elf.Image.open(str(tmp_path / "none"))
    with pytest.raises(ModuleUnavailable, match="directory"):
        elf.Image.open(str(tmp_path))


def use_everything(content: bytes) -> None:
    """Run all readers over some bytes; the only error that may come out is BadElf."""
    with contextlib.suppress(BadElf):
        image = elf.Image(content)
        elf.build_id(image)
        sites = find_sites(image, module_of("damaged"))
        symbols = Symbols(image, "damaged")
        symbols.names([*(site.entry for site in sites), *sorted(symbols.starts), 0, 1 << 64])


DAMAGE = settings(
    max_examples=400,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)


@pytest.fixture(scope="module", params=["pie", "static stripped"])
def original(request: pytest.FixtureRequest, compile_target: Compile) -> bytes:
    if request.param == "pie":
        return compile_target("nops.c", "-g0", f"{PATCHABLE}5,1").read_bytes()
    return compile_target("entries.S", "-g0", "-nostdlib", "-static", "-Wl,-emain").read_bytes()


@DAMAGE
@given(data=st.data())
def test_damaged_bytes_raise_nothing_but_our_errors(data: st.DataObject, original: bytes) -> None:
    content = bytearray(original)
    section_headers = struct.unpack_from("<Q", content, 40)[0]
    anywhere = st.integers(0, len(content) - 8)
    headers = st.integers(0, 64 + 56 * 13) | st.integers(section_headers, len(content) - 8)
    values = st.sampled_from([0, 1, 0xFF, 0xFFFF, 0xFFFFFFFF, (1 << 63) - 1, (1 << 64) - 1])
    edits = st.tuples(
        headers | anywhere, values | st.integers(0, len(content)), st.sampled_from([1, 2, 4, 8])
    )
    for offset, value, size in data.draw(st.lists(edits, min_size=1, max_size=6)):
        content[offset : offset + size] = (value & (1 << 8 * size) - 1).to_bytes(size, "little")
    use_everything(bytes(content))


@DAMAGE
@given(data=st.data())
def test_truncated_files_raise_nothing_but_our_errors(data: st.DataObject, original: bytes) -> None:
    length = data.draw(st.integers(0, len(original)))
    use_everything(original[:length])


@given(st.binary(max_size=400))
def test_random_headers_raise_nothing_but_our_errors(tail: bytes) -> None:
    use_everything(b"\x7fELF\x02\x01\x01" + bytes(9) + b"\x02\0\x3e\0" + tail)


def test_reading_is_cheap_to_import() -> None:
    heavy = "elftools", "numpy", "ctypes", "rich", "difflib"
    code = f"import sys, textpoke.sites, textpoke.target; print(*set({heavy}) & set(sys.modules))"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    found = subprocess.check_output([sys.executable, "-S", "-c", code], text=True, env=environment)
    assert found.split() == []


def test_symbols_agree_with_nm(program: Path) -> None:
    with elf.Image.open(str(program)) as image:
        symbols = Symbols(image, "nops")
        for name, vaddr in nm(program, "--defined-only").items():
            if vaddr in symbols.starts:
                assert symbols.name(vaddr) in {n for n, v in nm(program).items() if v == vaddr}, (
                    name
                )
    assert {s.symbol for s in sites_of(program)} < nm(program).keys()


def test_relr_is_used_by_the_linker(compile_target: Compile) -> None:
    program = compile_target("nops.c", f"{PATCHABLE}5", "-pie", "-fPIE", PACK_RELATIVE)
    assert ".relr.dyn" in readelf(program, "-S")
