# SPDX-License-Identifier: Apache-2.0
"""Packed events from Python's side; native/tests/test_pack.c has the bytes."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import captures
import numpy as np
import pytest
from captures import GET, SET, Recipe, Ring

from textpoke._capture_format import MOST_PACKED_EVENTS
from textpoke._errors import CaptureFormat
from textpoke.capture import Capture
from textpoke.decode import Decoder
from textpoke.packing import MOST_EVENTS, Packer, Unpacker

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture
def packed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(captures, "packer", Packer())
    ring = Ring([(i * 30, (SET, GET)[i % 2]) for i in range(5_000)])
    return captures.write(tmp_path / "x.tptrace", Recipe([ring]))


def test_the_format_and_the_native_side_agree() -> None:
    assert MOST_EVENTS == MOST_PACKED_EVENTS


def test_a_loop_takes_a_seventh(packed: Path) -> None:
    with Capture(packed) as capture:
        (block,) = capture.events
        assert (block.events, block.rest) == (5_000, 0)
        assert block.first_tsc == captures.START_TSC
        assert block.payload_bytes < 5_000 * 16 / 7
        assert Decoder(capture).all().ts_ns.tolist() == [i * 10 for i in range(5_000)]


def test_a_damaged_byte_is_told_with_its_place(packed: Path) -> None:
    with Capture(packed) as capture:
        (block,) = capture.events
    with open(packed, "r+b") as file:
        os.pwrite(file.fileno(), b"\xff", block.offset + 1000)
    with Capture(packed) as capture, pytest.raises(CaptureFormat) as caught:
        Decoder(capture).all()
    assert caught.value.offset == block.offset
    assert "5,000 packed events are damaged" in str(caught.value)


def test_room_is_looked_at_before_it_is_used() -> None:
    packer, unpacker = Packer(), Unpacker()
    events = memoryview(bytes(32))
    with pytest.raises(ValueError, match="3"):
        packer.pack(events, 3)
    with pytest.raises(ValueError, match="16385"):
        packer.pack(memoryview(bytes(16385 * 16)), 16385)
    payload = packer.pack(events, 2)
    unpacker.payload(len(payload))[:] = payload
    with pytest.raises(ValueError, match="2"):
        unpacker.unpack(len(payload), memoryview(bytearray(16)), 2)
    assert packer.pack(events, 0) == b""
    assert unpacker.unpack(0, memoryview(bytearray(0)), 0)


def test_other_columns_than_those_of_the_format_are_refused() -> None:
    rows = np.zeros((4, 2), np.uint64)[:, :1]  # not contiguous
    with pytest.raises((BufferError, TypeError, ValueError)):
        Packer().pack(rows.data, 4)
