# SPDX-License-Identifier: Apache-2.0
"""Calls: pairs, self times, parents and payloads equal a slow pairing's, whatever is missing."""

from __future__ import annotations

import struct
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import captures
import numpy as np
import pytest
from captures import GET, INFLATE, SET, UNKNOWN, Recipe, Ring
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from textpoke import decode
from textpoke._errors import CaptureFormat
from textpoke.calls import UNFINISHED, Calls, Pairing, all_calls, calls_of, has_exits
from textpoke.capture import Capture, CaptureWriter
from textpoke.payload import Field, Layout, layouts_json
from textpoke.report.times import times

if TYPE_CHECKING:
    from pathlib import Path

IN, OUT = 1, 2
SITE = {SET: 0, GET: 1, INFLATE: 2}
LAYOUTS = {
    SET: Layout((Field("key", "str:2"), Field("id", "u32")), (Field("ret", "i32"),)),
    INFLATE: Layout((), (Field("took", "duration"), Field("ret", "ptr"))),
}
SLOW_OK = settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "x.tptrace"


def meta(layouts: dict[int, Layout] | None = None, **changes: object) -> dict[str, object]:
    found = captures.meta(tracer="function_graph", **changes)
    return {**found, "layouts": layouts_json(layouts)} if layouts else found


def calls(path: Path, *rings: Ring, layouts: dict[int, Layout] | None = None) -> Calls:
    path.unlink(missing_ok=True)
    with Capture(captures.write(path, Recipe(rings, meta=meta(layouts)))) as capture:
        return all_calls(capture)


def columns(found: Calls, *names: str) -> list[tuple[int, ...]]:
    return list(zip(*(getattr(found, name).tolist() for name in names), strict=True))


def test_nested_calls(path: Path) -> None:
    found = calls(
        path,
        Ring([(0, SET, IN), (30, GET, IN), (90, GET, OUT), (120, GET, IN), (150, GET, OUT),
              (300, SET, OUT)]),
    )  # fmt: skip
    names = ("tid", "site", "start_ns", "end_ns", "self_ns", "depth", "parent")
    assert columns(found, *names) == [
        (100, 0, 0, 100, 70, 0, -1),
        (100, 1, 10, 30, 20, 1, 0),
        (100, 1, 40, 50, 10, 1, 0),
    ]
    types = ["uint32", "int32", "int64", "int64", "int64", "uint32", "int64", "int64", "int64"]
    held = ("tid", "site", "start_ns", "end_ns", "self_ns", "depth", "parent", "entry_data",
            "exit_data")  # fmt: skip
    assert [getattr(found, name).dtype.name for name in held] == types
    assert found.duration_ns().tolist() == [100, 20, 10]
    assert found.of(1).tolist() == [1, 2]
    assert found.of(0, 1).tolist() == [0, 1, 2]
    assert [found.name(0), found.name(-1)] == ["redis-server!setCommand", "[unknown]"]
    assert found.sites_named("inflate", "setCommand") == [0, 2]
    assert found.counts.finished == 3


def test_calls_left_by_longjmp_are_unfinished_and_closed_with_their_caller(path: Path) -> None:
    found = calls(
        path,
        Ring([(0, SET, IN), (30, GET, IN), (60, INFLATE, IN), (90, INFLATE, OUT), (300, SET, OUT),
              (303, GET, OUT), (306, SET, IN)]),
    )  # fmt: skip
    assert columns(found, "site", "end_ns", "self_ns", "depth", "parent") == [
        (0, 100, 90, 0, -1),
        (1, UNFINISHED, 0, 1, 0),
        (2, 30, 10, 2, 1),
        (0, UNFINISHED, 0, 0, -1),
    ]
    assert (found.counts.unfinished, found.counts.orphans) == (2, 1)


def test_what_was_open_stays_open_over_a_loss(path: Path) -> None:
    found = calls(
        path,
        Ring([(0, SET, IN), (30, GET, IN)], lost=5),
        Ring([(90, GET, OUT), (93, INFLATE, OUT), (300, SET, OUT)], sequence=7),
    )
    assert columns(found, "site", "end_ns") == [(0, 100), (1, 30)]
    assert (found.counts.orphans, found.counts.lost) == (1, 5)


def test_no_call_reaches_over_what_was_not_kept(path: Path) -> None:
    rings = [
        Ring([(0, SET, IN)]),
        Ring([(90, SET, OUT), (120, SET, IN), (150, SET, OUT)], sequence=7),
    ]
    recipe = Recipe(rings, meta=meta(mode="kept"))
    with Capture(captures.write(path, recipe)) as capture:
        found = all_calls(capture)
        assert decode.Decoder(capture).stretch_starts_ns(100) == [30]
    assert columns(found, "end_ns", "depth") == [(UNFINISHED, 0), (50, 0)]
    assert found.counts.orphans == 1


def test_no_call_reaches_over_a_pause(path: Path) -> None:
    at = {"traceoff": captures.START_TSC + 60, "traceon": captures.START_TSC + 120}
    notes = [{"command": command, "tsc": tsc} for command, tsc in at.items()]
    rows = [(0, SET, IN), (30, GET, IN), (60, GET, OUT), (120, SET, IN), (150, SET, OUT)]
    recipe = Recipe([Ring(rows), Ring(rows, tid=101, ring=1)], meta=meta(notes=notes))
    with Capture(captures.write(path, recipe)) as capture:
        found = all_calls(capture)
        sums = times(capture)
    assert columns(found, "site", "end_ns", "depth") == 2 * [
        (0, UNFINISHED, 0),
        (1, 20, 1),
        (0, 50, 0),
    ]
    assert [(f.site, f.unfinished, f.total_ns) for f in sums.functions] == [(0, 2, 20), (1, 0, 20)]


def test_unknown_addresses_are_paired_by_address(path: Path) -> None:
    found = calls(
        path, Ring([(0, UNKNOWN, IN), (3, UNKNOWN + 1, IN), (6, UNKNOWN, OUT), (9, UNKNOWN, OUT)])
    )
    assert columns(found, "site", "end_ns") == [(-1, 2), (-1, UNFINISHED)]
    assert found.counts.orphans == 1


def test_threads_are_paired_apart_and_follow_each_other(path: Path) -> None:
    rings = [
        Ring([(0, SET, IN), (30, GET, IN)]),
        Ring([(0, SET, IN), (300, SET, OUT)], tid=101, ring=1),
        Ring([(90, GET, OUT), (120, SET, OUT)]),
    ]
    found = calls(path, *rings)
    assert columns(found, "tid", "site", "end_ns", "parent") == [
        (100, 0, 40, -1),
        (100, 1, 30, 0),
        (101, 0, 100, -1),
    ]
    with Capture(path) as capture:
        one = calls_of(capture, 101)
        with pytest.raises(KeyError):
            calls_of(capture, 7)
    assert columns(one, "tid", "site", "parent") == [(101, 0, -1)]


def key(text: str) -> list[int]:
    return list(struct.unpack("<2Q", text.encode().ljust(16, b"\0")))


PAYLOAD = Ring(
    [
        (0, SET, IN),
        *captures.data(False, [*key("hello, world"), 7]),
        (30, GET, IN),
        (60, GET, OUT),
        (90, SET, OUT),
        *captures.data(True, [(1 << 64) - 1]),
        (120, SET, IN),
    ]
)


@pytest.mark.parametrize("cut", [None, *range(1, len(PAYLOAD.rows))])
@pytest.mark.parametrize("chunk", [1, 2, 1 << 16])
def test_payloads_across_blocks_and_chunks(
    path: Path, monkeypatch: pytest.MonkeyPatch, chunk: int, cut: int | None
) -> None:
    monkeypatch.setattr(decode, "_CHUNK_EVENTS", chunk)
    rings = [PAYLOAD] if cut is None else [Ring(PAYLOAD.rows[:cut]), Ring(PAYLOAD.rows[cut:])]
    found = calls(path, *rings, layouts=LAYOUTS)
    assert found.entry_words(0) == [*key("hello, world"), 7]
    assert found.exit_words(0) == [(1 << 64) - 1]
    assert columns(found, "entry_data", "exit_data") == [(0, 3), (-1, -1), (-1, -1)]
    assert found.entry_words(1) == found.exit_words(2) == []
    rows = found.of(0, 1)
    assert found.entry_column(rows, "id").tolist() == [7, 0, 0]
    assert found.exit_column(rows, "ret").tolist() == [(1 << 64) - 1, 0, 0]
    assert found.counts.stray_data == found.counts.short_payloads == 0


def test_payloads_that_are_not_whole_are_dropped(path: Path) -> None:
    whole = captures.data(False, [1, 2, 3])
    rows = [
        *whole[2:],  # of nobody
        (0, SET, IN), *whole[:2],
        (3, SET, IN), *whole[1:],
        (6, SET, IN), *captures.data(False, [1, 2]),
        (9, SET, IN), *captures.data(True, [1, 2, 3]),
        (12, GET, IN), *captures.data(False, [1]),
        (15, SET, IN), *whole, *whole[2:],
    ]  # fmt: skip
    found = calls(path, Ring(rows), layouts=LAYOUTS)
    assert found.entry_data.tolist() == [-1, -1, -1, -1, -1, 0]
    assert found.words.tolist() == [1, 2, 3]
    assert found.counts.stray_data == 10
    assert found.counts.short_payloads == 4


def late(end: int, ticks: int, returned: int = 0) -> list[tuple[int, ...]]:
    return [(end, INFLATE, OUT), *captures.data(True, [ticks, returned])]


def test_long_calls_are_a_tree_in_order_of_start(path: Path) -> None:
    rows = [*late(60, 30), *late(180, 60), *late(300, 300, 9), *late(600, 30)]
    found = calls(path, Ring(rows), layouts=LAYOUTS)
    assert columns(found, "start_ns", "end_ns", "self_ns", "depth", "parent") == [
        (0, 100, 70, 0, -1),
        (10, 20, 10, 1, 0),
        (40, 60, 20, 1, 0),
        (190, 200, 10, 0, -1),
    ]
    assert found.exit_column(np.arange(4), "ret").tolist() == [9, 0, 0, 0]
    assert (found.counts.long_calls, found.counts.orphans) == (4, 0)


def test_long_calls_of_the_same_moment_have_the_last_one_outside(path: Path) -> None:
    found = calls(
        path, Ring([*late(30, 30, 1), *late(30, 30, 2), *late(30, 30, 3)]), layouts=LAYOUTS
    )
    assert found.parent.tolist() == [-1, 0, 1]
    assert found.exit_column(np.arange(3), "ret").tolist() == [3, 2, 1]


def sums(path: Path, *rings: Ring, layouts: dict[int, Layout] | None = None) -> dict[int, tuple]:
    path.unlink(missing_ok=True)
    with Capture(captures.write(path, Recipe(rings, meta=meta(layouts)))) as capture:
        ended: list[tuple[int, int]] = []
        pairing = Pairing(
            capture,
            with_sums=True,
            ended=lambda site, ns: ended.extend(zip(site.tolist(), ns.tolist(), strict=True)),
        )
        for tid in pairing.decoder.tids:
            pairing.take_thread(tid)
        found = pairing.sums()
    names = ("calls", "unfinished", "total_ns", "self_ns", "min_ns", "max_ns", "sum_ns", "squares")
    rows = zip(*(getattr(found, name).tolist() for name in names), strict=True)
    for site, calls, sum_ns in zip(found.site, found.calls, found.sum_ns, strict=True):
        mine = [ns for of, ns in ended if of == site]
        assert (len(mine), sum(mine)) == (calls, pytest.approx(sum_ns))
    return dict(zip(found.site.tolist(), rows, strict=True))


def test_total_counts_recursion_once(path: Path) -> None:
    ring = Ring([(0, SET, IN), (30, SET, IN), (60, GET, IN), (90, GET, OUT), (120, SET, OUT),
                 (150, SET, OUT), (180, SET, IN)])  # fmt: skip
    assert sums(path, ring) == {
        0: (2, 1, 50, 40, 30, 50, 80.0, 3400.0),
        1: (1, 0, 10, 10, 10, 10, 10.0, 100.0),
    }


def test_total_of_long_calls_counts_recursion_once(path: Path) -> None:
    rows = [*late(60, 30), *late(180, 60), *late(210, 180), *late(300, 300), *late(600, 30)]
    assert sums(path, Ring(rows), layouts=LAYOUTS)[2][:4] == (5, 0, 110, 110)


@dataclass
class Model:
    """The slow pairing."""

    rows: list[dict[str, int]] = field(default_factory=list)
    stack: list[dict[str, int]] = field(default_factory=list)
    orphans: int = 0

    def take(self, ticks: int, address: int, kind: int) -> None:
        now = round(ticks / 3)
        if kind == IN:
            parent = self.stack[-1]["row"] if self.stack else -1
            row = {"row": len(self.rows), "site": SITE[address], "start_ns": now,
                   "end_ns": UNFINISHED, "children": 0, "self_ns": 0,
                   "depth": len(self.stack), "parent": parent}  # fmt: skip
            self.rows.append(row)
            self.stack.append(row)
            return
        if all(call["site"] != SITE[address] for call in self.stack):
            self.orphans += 1
            return
        while True:
            call = self.stack.pop()
            took = call["children"]
            if call["site"] == SITE[address]:
                took = now - call["start_ns"]
                call["end_ns"], call["self_ns"] = now, took - call["children"]
            if self.stack:
                self.stack[-1]["children"] += took
            if call["site"] == SITE[address]:
                return


EVENTS = st.lists(
    st.tuples(
        st.integers(0, 1 << 20), st.sampled_from([SET, GET, INFLATE]), st.sampled_from([IN, OUT])
    ),
    max_size=60,
)


@SLOW_OK
@given(events=EVENTS)
@pytest.mark.parametrize("chunk", [3, 1 << 16])
def test_equals_the_slow_pairing(
    path: Path, monkeypatch: pytest.MonkeyPatch, chunk: int, events: list[tuple[int, int, int]]
) -> None:
    monkeypatch.setattr(decode, "_CHUNK_EVENTS", chunk)
    times = sorted(ticks for ticks, _, _ in events)
    rows = [(ticks, *row[1:]) for ticks, row in zip(times, events, strict=True)]
    model = Model()
    for row in rows:
        model.take(*row)
    found = calls(path, Ring(rows))
    names = ("site", "start_ns", "end_ns", "self_ns", "depth", "parent")
    assert columns(found, *names) == [tuple(row[name] for name in names) for row in model.rows]
    assert found.counts.orphans == model.orphans
    finished = [row for row in model.rows if row["end_ns"] != UNFINISHED]
    assert found.counts.finished == len(finished)
    assert found.counts.unfinished == len(model.rows) - len(finished)
    for site, row in sums(path, Ring(rows)).items():
        mine = [row for row in finished if row["site"] == site]
        outermost = [row for row in mine if not inside_its_own(model.rows, row)]
        took = [row["end_ns"] - row["start_ns"] for row in mine]
        assert row[0] == len(mine)
        assert row[2] == sum(row["end_ns"] - row["start_ns"] for row in outermost)
        assert row[3] == sum(row["self_ns"] for row in mine)
        assert row[6] == sum(took)


def inside_its_own(rows: list[dict[str, int]], row: dict[str, int]) -> bool:
    parent = row["parent"]
    while parent >= 0:
        if rows[parent]["site"] == row["site"]:
            return True
        parent = rows[parent]["parent"]
    return False


def test_recursion_a_hundred_thousand_deep(path: Path) -> None:
    deep = 100_000
    rows = [(i, SET, IN) for i in range(deep)] + [(deep + i, SET, OUT) for i in range(deep)]
    found = calls(path, Ring(rows))
    assert found.depth.tolist() == list(range(deep))
    assert found.counts.finished == deep
    assert int(found.self_ns.sum()) == found.end_ns[0]


def test_entries_whose_exits_never_come_do_not_pile_up(path: Path) -> None:
    many = (1 << 20) + 5
    payload = captures.pack_events([(0, SET, IN)]) * many
    tail = captures.pack_events([(0, SET, OUT)])
    header = captures.Block(captures.BlockType.EVENTS, 0, len(payload + tail), tid=100).header()
    with CaptureWriter(path) as writer:
        writer.meta(meta())
        with open(writer.fd, "wb", closefd=False) as file:
            file.write(header + payload + tail)
        writer.end(captures.end())
    with Capture(path) as capture:
        found = calls_of(capture, 100)
    assert found.depth[-1] == many - 1
    assert (found.counts.finished, found.counts.unfinished) == (1, many - 1)


def test_captures_without_exits_are_told(path: Path) -> None:
    for tracer, rows, wanted in [
        ("function", [(0, SET, IN), (3, SET, OUT)], False),
        ("blk", [(0, SET, IN), (3, SET, OUT)], True),
        ("blk", [(0, SET, IN)], False),
    ]:
        path.unlink(missing_ok=True)
        recipe = Recipe([Ring(rows)], meta=captures.meta(tracer=tracer))
        with Capture(captures.write(path, recipe)) as capture:
            assert has_exits(capture) is wanted


def test_later_sites_bring_layouts_and_enums(path: Path) -> None:
    first = {**meta({SET: LAYOUTS[SET]}), "enums": {"color": {"0": "RED", "-1": "NONE"}}}
    with CaptureWriter(path) as writer:
        writer.meta(first)
        later = {"layouts": layouts_json({UNKNOWN: LAYOUTS[INFLATE]}), "enums": {"e": {"1": "A"}}}
        writer.sites([[UNKNOWN, "late.so", "f"]], later)
    with Capture(path) as capture:
        assert capture.meta.layouts == {SET: LAYOUTS[SET], UNKNOWN: LAYOUTS[INFLATE]}
        assert capture.meta.enums == {"color": {0: "RED", -1: "NONE"}, "e": {1: "A"}}
        assert Pairing(capture).layouts == {0: LAYOUTS[SET], 3: LAYOUTS[INFLATE]}


@pytest.mark.parametrize(
    "bad",
    [
        {"layouts": []},
        {"layouts": {"x": {}}},
        {"layouts": {"-1": {}}},
        {"layouts": {"1": []}},
        {"layouts": {"1": {"entry": {}}}},
        {"layouts": {"1": {"entry": ["u32"]}}},
        {"layouts": {"1": {"entry": [["a", "u33"]]}}},
        {"layouts": {"1": {"exit": [["a", 7]]}}},
        {"layouts": {"1": {"exit": [["a", "str:200"], ["b", "str:56"]]}}},
        {"layouts": {"18446744073709551616": {}}},
        {"enums": 3},
        {"enums": {"e": {"x": "A"}}},
        {"enums": {"e": {"1": 2}}},
    ],
)
def test_bad_layouts_are_refused(path: Path, bad: dict[str, object]) -> None:
    captures.write(path, Recipe(meta={**captures.meta(), **bad}))
    with pytest.raises(CaptureFormat, match=next(iter(bad))):
        Capture(path)
