# SPDX-License-Identifier: Apache-2.0
"""What a capture tells of pokes, true or damaged."""

from __future__ import annotations

import json
import zlib
from typing import TYPE_CHECKING

import captures
import pytest

from textpoke import pokes
from textpoke._capture_format import POKES_HEADER, BlockType
from textpoke._errors import CaptureFormat
from textpoke.capture import Capture, CaptureWriter
from textpoke.cli import main
from textpoke.poke import Poke, Poked, Request

if TYPE_CHECKING:
    from pathlib import Path

NOP, CALL = bytes.fromhex("0f1f440000"), bytes.fromhex("e8fb0e0000")
SITE = captures.SET - 5
PAD = 0x7F00_0000_1000
BATCH = Request.of(
    [Poke(SITE, NOP, CALL), Poke(captures.GET - 5, NOP, CALL), Poke(PAD, b"\x90" * 5, CALL)]
)


def write(path: Path, *batches: Poked) -> Path:
    with CaptureWriter(path) as writer:
        writer.meta(captures.meta())
        for one in batches:
            rows = one.rows()
            ticks = one.from_tsc, one.to_tsc
            writer.pokes(ticks, rows, len(rows) // 64, failed=one.failed)
        writer.end(captures.end())
    return path


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "x.tptrace"


def at(ticks: int, *left: int, failed: bool = False) -> Poked:
    start = captures.START_TSC + ticks
    return Poked(BATCH, start, start + 300, failed, left)


def test_they_come_back(path: Path) -> None:
    with Capture(write(path, at(0), at(3_000, 1, failed=True))) as capture:
        assert pokes.count(capture) == 5
        first, second = pokes.read(capture)
    assert [(p.address, p.old, p.new) for p in first.pokes] == [
        (SITE, NOP, CALL),
        (captures.GET - 5, NOP, CALL),
        (PAD, b"\x90" * 5, CALL),
    ]
    assert (first.from_tsc, first.to_tsc) == (captures.START_TSC, captures.START_TSC + 300)
    assert not first.failed
    assert second.failed
    assert [p.address for p in second.pokes] == [SITE, PAD]


def test_a_poke_of_what_nobody_looked_at_has_no_old_bytes(path: Path) -> None:
    request = Request.of([Poke(SITE, None, CALL)])
    with Capture(write(path, Poked(request, 1, 2, False, ()))) as capture:
        (batch,) = pokes.read(capture)
    assert [(p.old, p.new) for p in batch.pokes] == [(b"", CALL)]


def test_the_report(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(path, at(0), at(3_000, 1, failed=True))
    assert main(["report", "--pokes", "-n", "2", str(path)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "5 pokes of code in 2 batches"
    assert lines[2] == "at 0.000 us: 3 pokes in 0.100 us"
    assert lines[4].split("  ")[-1] == "redis-server!setCommand"
    assert lines[4].split("  ")[1:3] == ["0f 1f 44 00 00", "e8 fb 0e 00 00"]
    assert lines[6] == "... and 1 more"
    assert "given up: some may not have been written" in lines[8]
    assert main(["report", "--pokes", "--json", str(path)]) == 0
    found = json.loads(capsys.readouterr().out)
    assert [batch["count"] for batch in found["batches"]] == [3, 2]
    assert found["batches"][0]["pokes"][2]["function"] is None
    assert found["batches"][1]["start_ns"] == 1_000


def test_captures_without(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(path)
    assert main(["report", "--pokes", str(path)]) == 0
    assert capsys.readouterr().out.strip() == "0 pokes of code in 0 batches"


GOOD = BATCH.data
HEAD = (captures.START_TSC, captures.START_TSC + 1)


@pytest.mark.parametrize(
    "payload",
    [
        b"",
        POKES_HEADER.pack(*HEAD, 3, 0),
        POKES_HEADER.pack(*HEAD, 3, 0) + b"no zlib",
        POKES_HEADER.pack(*HEAD, 2, 0) + zlib.compress(GOOD),
        POKES_HEADER.pack(*HEAD, 4, 0) + zlib.compress(GOOD),
        POKES_HEADER.pack(*HEAD, 3, 2) + zlib.compress(GOOD),
        POKES_HEADER.pack(*HEAD, 3, 0) + zlib.compress(GOOD)[:-6],
        POKES_HEADER.pack(*HEAD, 1 << 31, 0) + zlib.compress(bytes(1 << 20)),
        POKES_HEADER.pack(*HEAD, 3, 0) + zlib.compress(b"\xff" * len(GOOD)),
    ],
)
def test_what_is_damaged_is_told(path: Path, payload: bytes) -> None:
    with CaptureWriter(path) as writer:
        writer.meta(captures.meta())
        writer._write(BlockType.POKES, payload)
        writer.end(captures.end())
    with Capture(path) as capture, pytest.raises(CaptureFormat, match="a damaged block of pokes"):
        list(pokes.read(capture))
