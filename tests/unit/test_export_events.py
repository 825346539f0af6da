# SPDX-License-Identifier: Apache-2.0
"""Formats of single calls, read back by those who made them: nesting, times, names, losses."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import captures
import exports
import numpy as np
import pytest
from perfetto.protos.perfetto.trace import perfetto_trace_pb2 as pb
from read_back import Perfetto

from textpoke.export import protobuf
from textpoke.export import source as source_module

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "x.tptrace"


def chrome(path: Path) -> dict:
    return json.loads(exports.exported(path, "chrome"))


def test_chrome_has_all_calls_as_complete_events(path: Path) -> None:
    rows = [row for row in chrome(exports.graph(path))["traceEvents"] if row["ph"] == "X"]
    assert [
        (r["tid"], r["name"], r["ts"] * 1_000, (r["ts"] + r["dur"]) * 1_000) for r in rows
    ] == exports.NESTED
    assert {row["pid"] for row in rows} == {100}
    assert [row.get("args") for row in rows].count({"unfinished": True}) == 1


def test_chrome_names_threads_and_process(path: Path) -> None:
    rows = [row for row in chrome(exports.graph(path))["traceEvents"] if row["ph"] == "M"]
    assert [(row["name"], row["tid"], row["args"]["name"]) for row in rows] == [
        ("process_name", 100, "redis-server"),
        ("thread_name", 100, "redis-server"),
        ("thread_name", 101, "bio"),
    ]


def test_chrome_tells_of_losses(path: Path) -> None:
    found = chrome(exports.graph(path, exports.WITH_LOSS))
    assert found["otherData"]["events_lost"] == 7
    lost = [row for row in found["traceEvents"] if row["ph"] == "i"]
    assert [(row["name"], row["ts"]) for row in lost] == [("7 events lost", 2.001)]


def test_chrome_without_exits_has_instants(path: Path) -> None:
    rows = chrome(exports.function(path))["traceEvents"]
    assert [(row["name"], row["ts"]) for row in rows if row["ph"] == "i"] == [
        ("setCommand", 1), ("getCommand", 2), ("setCommand", 3), ("setCommand", 1e6),
        ("inflate [libz.so.1]", 1.5),
    ]  # fmt: skip
    assert not [row for row in rows if row["ph"] == "X"]


def test_chrome_with_a_hostile_name(path: Path) -> None:
    names = {row["name"] for row in chrome(exports.hostile(path))["traceEvents"]}
    assert exports.HOSTILE.replace("\u2028", "\\u2028").replace("\n", "\\x0a") in names


def perfetto(path: Path) -> Perfetto:
    return Perfetto(exports.exported(path, "perfetto"), captures.START_NS)


@pytest.mark.parametrize("part", exports.PARTS)
def test_perfetto_has_all_calls_as_slices(
    path: Path, part: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(source_module, "PART", part)
    monkeypatch.setattr(source_module, "PIECE", part)
    found = perfetto(exports.graph(path))
    assert found.calls() == exports.NESTED
    notes = [event.debug_annotations for _, event in found.events if event.debug_annotations]
    assert [(note[0].name, note[0].bool_value) for note in notes] == [("unfinished", True)]


def test_perfetto_tracks(path: Path) -> None:
    found = perfetto(exports.graph(path))
    process = found.tracks[1].process
    assert (process.pid, process.process_name) == (100, "redis-server")
    assert list(process.cmdline) == ["redis-server", "--port", "7777"]
    threads = [t.thread for t in found.tracks.values() if t.HasField("thread")]
    assert [(t.pid, t.tid, t.thread_name) for t in threads] == [
        (100, 100, "redis-server"), (100, 101, "bio"),
    ]  # fmt: skip
    assert {t.parent_uuid for t in found.tracks.values() if t.uuid != 1} == {1}


def test_perfetto_counts_calls_and_losses(path: Path) -> None:
    found = perfetto(exports.graph(path))
    assert found.counter("calls") == [(0, 7), (1_000_000, 0)]
    assert found.counter("events lost") == [(0, 0)]
    path.unlink()
    assert perfetto(exports.graph(path, exports.WITH_LOSS)).counter("events lost") == [
        (0, 0), (2_001, 7),
    ]  # fmt: skip


def test_perfetto_without_exits_has_instants(path: Path) -> None:
    found = perfetto(exports.function(path))
    assert found.calls() == []
    assert [
        (ts, found.names[event.name_iid])
        for ts, event in found.events
        if event.type == pb.TrackEvent.TYPE_INSTANT
    ] == [
        (1_000, "setCommand"), (2_000, "getCommand"), (3_000, "setCommand"),
        (1_000_000_000, "setCommand"), (1_500, "inflate [libz.so.1]"),
    ]  # fmt: skip


def test_an_address_without_a_site_is_unknown(path: Path) -> None:
    rows = [(0, captures.UNKNOWN, 1), (3, captures.UNKNOWN, 2)]
    exports.graph(path, [captures.Ring(rows)])
    assert [call[1] for call in perfetto(path).calls()] == ["[unknown]"]
    assert chrome(path)["traceEvents"][-1]["name"] == "[unknown]"


@pytest.mark.parametrize("value", [0, 1, 127, 128, (1 << 28) - 1, (1 << 63) - 1])
def test_padded_varints_are_varints(value: int) -> None:
    width = 4 if value < 1 << 28 else 9
    data = b"\x40" + protobuf.padded(np.array([value]), width).tobytes()
    assert pb.TracePacket.FromString(data).timestamp == value
    assert pb.TracePacket.FromString(protobuf.number(8, value)).timestamp == value
