# SPDX-License-Identifier: Apache-2.0
"""The capture file: what is written comes back, and damage is told apart from being cut off."""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import os
import re
import resource
import stat
import struct
import subprocess
import sys
import tracemalloc
from typing import TYPE_CHECKING

import captures
import pytest
from captures import Recipe, Ring
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from textpoke._capture_format import HEADER_BYTES, Block, BlockType, fnv1a32
from textpoke._errors import CaptureError, CaptureExists, CaptureFormat, CaptureWrite
from textpoke.capture import Capture, CaptureWriter
from textpoke.decode import Decoder
from textpoke.report.counts import count
from textpoke.report.text import text

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

FILE_HEADER = b"TPTRACE\n" + struct.pack("<II", 2, 0)
SLOW_OK = settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "x.tptrace"


@pytest.fixture
def small(path: Path) -> Path:
    return captures.write(path, captures.SMALL)


def read_everything(path: Path) -> Capture:
    """Open, decode and report: nothing but CaptureError may come out."""
    with Capture(path) as capture:
        Decoder(capture).all()
        count(capture)
        for _ in text(capture):
            pass
    return capture


def problem(path: Path) -> tuple[str, int]:
    with pytest.raises(CaptureFormat) as caught:
        read_everything(path)
    assert caught.value.path == os.fspath(path)
    assert "\n" not in str(caught.value)
    return caught.value.problem, caught.value.offset


def block(kind: int, payload: bytes, **changes: int) -> bytes:
    """A block with a right check, whatever its fields say."""
    length = changes.get("payload_bytes", len(payload))
    magic = changes.get("magic", 0x4B425054)
    head = struct.pack("<IIQQIIQI", magic, kind, length, 0, changes.get("tid", 1), 1, 0, 0)
    return head + struct.pack("<I", fnv1a32(head)) + payload


def test_fnv_has_the_published_values() -> None:
    assert fnv1a32(b"") == 0x811C9DC5
    assert fnv1a32(b"a") == 0xE40C292C
    assert fnv1a32(b"foobar") == 0xBF9CF968


def test_bytes_of_the_format_are_those_of_version_2(path: Path) -> None:
    with CaptureWriter(path) as writer:
        writer.threads({7: "x"})
    head = struct.pack("<IIQQIIQI", 0x4B425054, 3, 9, 0, 0, 0, 0, 0)
    check = struct.pack("<I", fnv1a32(head))
    assert path.read_bytes() == FILE_HEADER + head + check + b'{"7":"x"}'
    full = Block(BlockType.EVENTS, 0, 32, lost=3, tid=4, generation=5, sequence=6, ring=7)
    fields = struct.unpack("<IIQQIIQII", full.header())
    assert fields[:-1] == (0x4B425054, 2, 32, 3, 4, 5, 6, 7)
    assert fields[-1] == fnv1a32(full.header()[:44])


def test_what_was_written_comes_back(small: Path) -> None:
    with Capture(small) as capture:
        assert capture.cut_off is None
        assert capture.meta.pid == 100
        assert capture.meta.command == ["redis-server", "--port", "7777"]
        assert capture.meta.raw["modules"] == [["redis-server", "/usr/bin/redis-server", 0]]
        assert [dataclasses.astuple(site) for site in capture.meta.sites] == [
            tuple(site) for site in captures.SITES
        ]
        assert capture.threads == captures.NAMES
        assert capture.end is not None
        assert capture.end.raw["on"] == {"syncs": 2}
        assert capture.end.hold_ns == 400_000
        blocks = [(b.tid, b.ring, b.sequence, b.payload_bytes) for b in capture.events]
        assert blocks == [(100, 0, 0, 48), (101, 1, 0, 16), (100, 0, 3, 16)]


@pytest.mark.parametrize(
    ("modules", "name"),
    [
        (
            [["libc.so.6", "/lib/libc.so.6", 0], ["redis-server", "/bin/redis-check-rdb", 0]],
            "redis-server",
        ),
        ([["x", "/bin/other", 0]], "redis-check-rdb"),
        ([["x"], [1, "/bin/redis-check-rdb"], "x", None], "redis-check-rdb"),
        ("x", "redis-check-rdb"),
        (None, "redis-check-rdb"),
    ],
)
def test_the_program_is_called_as_its_module(path: Path, modules: object, name: str) -> None:
    meta = captures.meta(exe="/bin/redis-check-rdb", modules=modules)
    with Capture(captures.write(path, Recipe(meta=meta))) as capture:
        assert capture.meta.program == name


def test_captures_of_version_1_are_read(small: Path) -> None:
    content = bytearray(small.read_bytes())
    content[8] = 1
    small.write_bytes(content)
    with Capture(small) as capture:
        assert len(capture.events) == 3


def test_odd_names_survive(path: Path) -> None:
    odd = "a\udcff\x1b\n\u202e"
    meta = captures.meta(sites=[[1, odd, odd]], exe=odd)
    captures.write(path, Recipe(meta=meta, threads={1: odd}))
    with Capture(path) as capture:
        assert capture.threads == {1: odd}
        assert capture.meta.sites[0].function == odd


def test_the_file_is_for_its_owner_only(small: Path) -> None:
    assert stat.S_IMODE(small.stat().st_mode) == 0o600


def test_an_existing_file_is_not_overwritten(small: Path) -> None:
    before = small.read_bytes()
    with pytest.raises(CaptureExists, match="-f"):
        CaptureWriter(small)
    assert small.read_bytes() == before


def test_force_replaces_a_link_and_not_what_it_points_to(path: Path, tmp_path: Path) -> None:
    precious = tmp_path / "precious"
    precious.write_text("keep")
    path.symlink_to(precious)
    CaptureWriter(path, force=True).close()
    assert precious.read_text() == "keep"
    assert path.read_bytes() == FILE_HEADER


def test_force_leaves_directories_and_devices_alone(tmp_path: Path) -> None:
    with pytest.raises(CaptureWrite, match="Is a directory"):
        CaptureWriter(tmp_path, force=True)
    os.mkfifo(tmp_path / "fifo")
    with pytest.raises(CaptureWrite):
        CaptureWriter(tmp_path / "fifo", force=True)
    assert (tmp_path / "fifo").exists()


def test_a_directory_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(CaptureWrite) as caught:
        CaptureWriter(tmp_path / "no" / "x.tptrace")
    assert caught.value.errno == errno.ENOENT


@contextlib.contextmanager
def small_disk() -> Iterator[None]:
    """No file may grow beyond 2,000 bytes: the kernel writes what fits, then says EFBIG.

    No fixture: pytest's own report, which may go to a longer file, is written before teardown.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2_000, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@small_disk()
def test_a_full_disk_leaves_whole_blocks(path: Path) -> None:
    writer = CaptureWriter(path)
    writer.meta(captures.meta())
    whole = os.fstat(writer.fd).st_size
    with pytest.raises(CaptureWrite, match="File too large") as caught:
        writer.threads(dict.fromkeys(range(200), "x" * 15))
    assert caught.value.errno == errno.EFBIG
    assert os.fstat(writer.fd).st_size == whole
    writer.threads({1: "fits"})
    writer.close()
    assert read_everything(path).threads == {1: "fits"}


@small_disk()
def test_a_full_disk_under_the_native_writer(path: Path) -> None:
    with CaptureWriter(path) as writer:
        writer.meta(captures.meta())
        block_bytes = captures.events_block(Ring([(index, captures.SET) for index in range(20)]))
        os.write(writer.fd, block_bytes)
        os.write(writer.fd, block_bytes)
        assert os.write(writer.fd, block_bytes * 3) % len(block_bytes)
        error = writer.failed(errno.ENOSPC)
        assert isinstance(error, CaptureWrite)
        assert "No space left" in str(error)
    capture = read_everything(path)
    assert {b.payload_bytes for b in capture.events} == {320}
    assert len(capture.events) >= 2
    assert "no END" in (capture.cut_off or "")


def test_a_capture_in_the_making_can_be_read(path: Path) -> None:
    writer = CaptureWriter(path)
    writer.meta(captures.meta())
    os.write(writer.fd, captures.events_block(captures.SMALL.rings[0]))
    assert len(read_everything(path).events) == 1
    writer.close()
    writer.close()


def test_cut_off_anywhere(small: Path) -> None:
    whole = small.read_bytes()
    first = HEADER_BYTES + struct.unpack_from("<Q", whole, 16 + 8)[0] + 16
    for size in range(len(whole)):
        os.truncate(small, size)
        if size < first:
            assert problem(small)
        else:
            assert "cut off" in (read_everything(small).cut_off or "")
        small.write_bytes(whole)


def test_a_capture_that_is_being_written_is_told_from_one_whose_writer_died(path: Path) -> None:
    program = (
        "import os, sys, captures\n"
        "from textpoke.capture import CaptureWriter\n"
        "writer = CaptureWriter(sys.argv[1])\n"
        "writer.meta(captures.meta())\n"
        "os.write(writer.fd, captures.events_block(captures.Ring([(3, captures.SET)]))[:-4])\n"
        "print(flush=True)\n"
        "sys.stdin.read()\n"
    )
    words = [sys.executable, "-c", program, path]
    env = {**os.environ, "PYTHONPATH": os.path.dirname(captures.__file__)}
    with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=env) as process:
        assert process.stdout.readline() == b"\n"
        written = read_everything(path).cut_off
        process.kill()
        process.wait()
    assert re.fullmatch(r"still being written, \d+ bytes so far", written)
    after = read_everything(path)
    assert after.cut_off.startswith("cut off within a block at byte ")
    assert after.events == []


def test_how_a_cut_off_capture_is_described(small: Path) -> None:
    whole = small.read_bytes()
    os.truncate(small, len(whole) - 1)
    assert (read_everything(small).cut_off or "").startswith("cut off within a block at byte ")
    os.truncate(small, 30)
    assert problem(small) == ("is cut off before its META block: nothing to read", 16)
    os.truncate(small, 10)
    assert problem(small) == ("is cut off within the file header: nothing to read", 10)


@pytest.mark.parametrize(
    ("content", "wanted"),
    [
        (b"", "is not a textpoke capture (it is empty)"),
        (b"\x7fELF\x02\x01\x01\0\0", "is not a textpoke capture (starts with b'\\x7fELF"),
        (b"TPTRACE\n" + struct.pack("<II", 3, 0), "is a capture of format version 3, this text"),
        (b"TPTRACE\n" + struct.pack("<II", 1, 9), "a damaged file header"),
        (FILE_HEADER + b"x" * 48, "no block starts here (found b'xxxx')"),
        (FILE_HEADER + block(1, b"{}", magic=1), "no block starts here"),
        (FILE_HEADER + block(9, b"{}"), "a block of unknown type 9"),
        (FILE_HEADER + block(2, b"", payload_bytes=1 << 62), "an impossible length of 4611686"),
        (FILE_HEADER + block(1, b"", payload_bytes=1 << 30), "an impossible length of 1073741824"),
        (FILE_HEADER + block(2, b"12345"), "5 bytes are not a whole number of events"),
        (FILE_HEADER + block(7, b"12345"), "a length of 5 bytes for a block of PACKED"),
        (FILE_HEADER + block(7, b"\x01\0\0\0\x02" + b"\0" * 19), "a damaged header of packed"),
        (FILE_HEADER + block(7, b"\0" * 24), "a damaged header of packed events (0, 0, 0)"),
        (FILE_HEADER + block(7, b"\xff\xff" + b"\0" * 22), "a damaged header of packed"),
        (FILE_HEADER + block(2, b""), "starts with EVENTS, not META"),
        (FILE_HEADER + block(1, b"{")[:47] + b"x{", "a damaged block header (check 0x"),
        (FILE_HEADER + block(1, b"{"), "unreadable JSON: "),
        (FILE_HEADER + block(1, b"\xff"), "unreadable JSON: "),
        (FILE_HEADER + block(1, b"[" * 100_000), "unreadable JSON: "),
        (FILE_HEADER + block(1, b'{"pid": NaN}'), "unreadable JSON: NaN is not JSON"),
        (FILE_HEADER + block(1, b'{"pid": 1' + b"0" * 9999 + b"}"), "unreadable JSON: "),
        (FILE_HEADER + block(1, b"[]"), "JSON holds a list, not an object"),
        (FILE_HEADER + block(1, b"{}"), "field 'clock' is not a dict"),
        (FILE_HEADER + block(1, b'{"pid": true}'), "field 'pid' is not a number that fits"),
        (FILE_HEADER + block(1, b'{"pid": -1}'), "field 'pid' is not a number that fits"),
    ],
)
def test_garbage(path: Path, content: bytes, wanted: str) -> None:
    path.write_bytes(content)
    assert problem(path)[0].startswith(wanted)


@pytest.mark.parametrize(
    ("changes", "wanted"),
    [
        ({"sites": {}}, "field 'sites' is not a list"),
        ({"sites": [[1, "a"]]}, "field 'sites' holds something else"),
        ({"sites": [[1.5, "a", "b"]]}, "field 'sites' holds something else"),
        ({"sites": [[1 << 64, "a", "b"]]}, "field 'sites' is not a number that fits"),
        ({"clock": {"tsc": 1}}, "field 'clock.monotonic_ns' is not a number that fits"),
        ({"command": [1]}, "field 'command' is not a str"),
        ({"tracer": 1}, "field 'tracer' is not a str"),
    ],
)
def test_absurd_meta(path: Path, changes: dict[str, object], wanted: str) -> None:
    captures.write(path, Recipe(meta=captures.meta(**changes)))
    found, offset = problem(path)
    assert found.startswith(wanted)
    assert offset == 64


def test_blocks_in_the_wrong_place(path: Path) -> None:
    with CaptureWriter(path) as writer:
        writer.meta(captures.meta())
        writer.meta(captures.meta())
    assert problem(path)[0] == "a second META block"
    with CaptureWriter(path, force=True) as writer:
        writer.meta(captures.meta())
        writer.end(captures.end())
        writer.threads({})
    assert problem(path)[0] == "there is a block after END"


def test_thread_names_with_absurd_ids(path: Path) -> None:
    with CaptureWriter(path) as writer:
        writer.meta(captures.meta())
        writer._block(BlockType.THREADS, {"1x": "a"})
    assert problem(path)[0] == "'1x' is not a thread id"


def test_what_is_no_regular_file(tmp_path: Path) -> None:
    assert problem(tmp_path)[0] == "is not a textpoke capture (not even a regular file)"
    os.mkfifo(tmp_path / "fifo")
    assert problem(tmp_path / "fifo")[0] == "is not a textpoke capture (not even a regular file)"


def test_a_file_that_shrinks_while_it_is_read(small: Path) -> None:
    with Capture(small) as capture:
        os.truncate(small, 100)
        with pytest.raises(CaptureFormat, match="became shorter"):
            Decoder(capture).all()


def test_absurd_lengths_take_no_memory(path: Path) -> None:
    tracemalloc.start()
    for kind in (1, 2, 3, 4, 5):
        path.write_bytes(FILE_HEADER + block(kind, b"", payload_bytes=(1 << 40) - 16))
        problem(path)
    assert tracemalloc.get_traced_memory()[1] < 1 << 20
    tracemalloc.stop()


@SLOW_OK
@given(st.binary(max_size=300))
def test_any_bytes_after_the_header(path: Path, content: bytes) -> None:
    path.write_bytes(FILE_HEADER + content)
    try_it(path)


@SLOW_OK
@given(st.data())
def test_any_change_of_a_capture(path: Path, data: st.DataObject) -> None:
    path.unlink(missing_ok=True)
    content = bytearray(captures.write(path, captures.SMALL).read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        place = data.draw(st.integers(0, len(content) - 1))
        content[place] = data.draw(st.integers(0, 255))
    path.write_bytes(content[: data.draw(st.integers(0, len(content)))])
    try_it(path)


@SLOW_OK
@given(st.data())
def test_any_fields_under_a_right_check(path: Path, data: st.DataObject) -> None:
    u32, u64 = st.integers(0, (1 << 32) - 1), st.integers(0, (1 << 64) - 1)
    path.unlink(missing_ok=True)
    captures.write(
        path,
        Recipe(
            meta=captures.meta(mode=data.draw(st.sampled_from(["drop", "overwrite"]))), end=None
        ),
    )
    content = path.read_bytes()
    for _ in range(data.draw(st.integers(1, 5))):
        events = data.draw(st.binary(max_size=20)).ljust(
            data.draw(st.sampled_from([0, 16, 48])), b"\xff"
        )
        payload = events[: len(events) & -16]
        head = struct.pack(
            "<IIQQIIQI",
            0x4B425054,
            data.draw(st.sampled_from([2, 2, 2, 3, 5])),
            len(payload),
            data.draw(u64),
            *(data.draw(u32) for _ in range(2)),
            data.draw(u64),
            data.draw(u32),
        )
        content += head + struct.pack("<I", fnv1a32(head)) + payload
    path.write_bytes(content)
    try_it(path)


JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=3)
    ),
    max_leaves=8,
)


@SLOW_OK
@given(st.data())
def test_any_json_in_the_place_of_a_field(path: Path, data: st.DataObject) -> None:
    fields, totals = captures.meta(), captures.end()
    victim = data.draw(st.sampled_from([fields, totals]))
    victim[data.draw(st.sampled_from(sorted(victim)))] = data.draw(JSON)
    path.unlink(missing_ok=True)
    captures.write(path, Recipe(captures.SMALL.rings, meta=fields, end=totals))
    try_it(path)


@SLOW_OK
@given(st.tuples(*[st.integers(0, (1 << 64) - 1)] * 6))
def test_any_clock(path: Path, numbers: tuple[int, ...]) -> None:
    names = ("tsc", "monotonic_ns", "realtime_ns")
    first, last = (dict(zip(names, part, strict=True)) for part in (numbers[:3], numbers[3:]))
    path.unlink(missing_ok=True)
    recipe = Recipe(
        captures.SMALL.rings, meta=captures.meta(clock=first), end=captures.end(clock=last)
    )
    try_it(captures.write(path, recipe))


def try_it(path: Path) -> None:
    try:
        read_everything(path)
    except CaptureError as exc:
        assert "\n" not in str(exc)  # noqa: PT017 - both outcomes are right
