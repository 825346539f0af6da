# SPDX-License-Identifier: Apache-2.0
"""Decoding: the columns equal a slow decoder's, in bounded pieces, with losses in their place."""

from __future__ import annotations

import itertools
import random
import struct
import time
from typing import TYPE_CHECKING

import captures
import numpy as np
import pytest
from captures import GET, INFLATE, SET, UNKNOWN, Recipe, Ring
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from textpoke import decode
from textpoke._site_lookup import SiteLookup
from textpoke.capture import Capture, CaptureWriter
from textpoke.decode import Decoder, Loss
from textpoke.packing import Packer
from textpoke.payload import Field, Layout, layouts_json

if TYPE_CHECKING:
    from pathlib import Path

SLOW_OK = settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
SITE = {SET: 0, GET: 1, INFLATE: 2}
TICKS_PER_NS = 3


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "x.tptrace"


@pytest.fixture(params=["as they are", "packed"], autouse=True)
def both_forms(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever is decoded is the same out of EVENTS and out of PACKED."""
    monkeypatch.setattr(captures, "packer", Packer() if request.param == "packed" else None)


@pytest.fixture(params=["whole", "pieces"])
def small_pieces(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Once as shipped, once with chunks so small that every seam is crossed."""
    if request.param == "pieces":
        monkeypatch.setattr(decode, "_CHUNK_EVENTS", 4)
        monkeypatch.setattr(decode, "_MIN_PIECE_EVENTS", 2)


def rows(events: decode.Events) -> list[tuple[int, int, int, int]]:
    columns = (events.ts_ns, events.tid, events.site, events.type)
    return list(zip(*(column.tolist() for column in columns), strict=True))


def merged(path: Path) -> tuple[list[tuple[int, int, int, int]], list[Loss]]:
    with Capture(path) as capture:
        chunks = list(Decoder(capture).merged())
    return [row for chunk in chunks for row in rows(chunk)], [x for c in chunks for x in c.losses]


def expected(ring: Ring) -> list[tuple[int, int, int, int]]:
    """The slow decoder."""
    return [
        (
            round(ticks / TICKS_PER_NS),
            ring.tid,
            SITE.get(address, -1) if (kind or (1,))[0] == 1 else -1,
            (kind or (1,))[0],
        )
        for ticks, address, *kind in ring.rows
    ]


def test_columns_have_the_promised_types(path: Path) -> None:
    with Capture(captures.write(path, captures.SMALL)) as capture:
        events = Decoder(capture).all()
    types = [c.dtype for c in (events.ts_ns, events.tid, events.site, events.type)]
    assert types == [np.int64, np.uint32, np.int32, np.uint8]
    assert len(events) == 5
    assert events.unknown == 0


@pytest.mark.usefixtures("small_pieces")
def test_threads_apart_and_together(path: Path) -> None:
    captures.write(path, captures.SMALL)
    with Capture(path) as capture:
        decoder = Decoder(capture)
        assert decoder.tids == (100, 101)
        first = [row for chunk in decoder.thread(100) for row in rows(chunk)]
    assert [row[0] for row in first] == [1_000, 2_000, 3_000, 1_000_000_000]
    assert [(row[0], row[2]) for row in merged(path)[0]] == [
        (1_000, 0),
        (1_500, 2),
        (2_000, 1),
        (3_000, 0),
        (1_000_000_000, 0),
    ]


@pytest.mark.usefixtures("small_pieces")
def test_unknown_addresses_and_types_are_counted(path: Path) -> None:
    ring = Ring([(0, SET), (3, UNKNOWN), (6, SET, 7), (9, 0), (12, (1 << 48) - 1)])
    captures.write(path, Recipe([ring]))
    with Capture(path) as capture:
        events = Decoder(capture).all()
    assert events.site.tolist() == [0, -1, -1, -1, -1]
    assert events.unknown == 4
    assert events.type.tolist() == [1, 1, 7, 1, 1]


def test_no_events_at_all(path: Path) -> None:
    captures.write(path, Recipe(meta=captures.meta(sites=[])))
    assert merged(path) == ([], [])
    with Capture(path) as capture:
        assert len(Decoder(capture).all()) == 0


def test_without_sites_every_event_is_unknown(path: Path) -> None:
    captures.write(path, Recipe([Ring([(0, SET)])], meta=captures.meta(sites=[])))
    assert merged(path)[0][0][2] == -1


@pytest.mark.usefixtures("small_pieces")
@pytest.mark.parametrize(("mode", "at_ns"), [("drop", 201), ("overwrite", 300)])
def test_a_loss_stands_where_the_events_are_missing(path: Path, mode: str, at_ns: int) -> None:
    lossy, after = Ring([(300, SET), (600, SET)]), Ring([(900, SET)], sequence=9)
    (lossy if mode == "drop" else after).lost = 7
    other = Ring([(0, GET), (3_000, GET)], tid=101, ring=1)
    captures.write(path, Recipe([lossy, other, after], meta=captures.meta(mode=mode)))
    events, losses = merged(path)
    assert losses == [Loss(at_ns, 100, 7)]
    assert [row[0] for row in events] == [0, 100, 200, 300, 1_000]


@pytest.mark.usefixtures("small_pieces")
@pytest.mark.parametrize("mode", ["drop", "overwrite"])
def test_a_loss_without_events_stays_behind_its_ring(path: Path, mode: str) -> None:
    rings = [
        Ring([(300, SET)]),
        Ring([], lost=5),
        Ring([], lost=4, tid=101, ring=1),
        Ring([(index * 3_000, GET) for index in range(9)], tid=102, ring=2),
    ]
    captures.write(path, Recipe(rings, meta=captures.meta(mode=mode)))
    assert merged(path)[1] == [Loss(0, 101, 4), Loss(101, 100, 5)]


EVENTS = st.lists(
    st.tuples(st.integers(0, 1 << 44), st.sampled_from([SET, GET, INFLATE, UNKNOWN])), max_size=12
).map(sorted)
RINGS = st.lists(
    st.builds(
        Ring,
        rows=EVENTS,
        tid=st.integers(100, 102),
        ring=st.integers(0, 3),
        lost=st.sampled_from([0, 0, 3]),
    ),
    max_size=8,
)


@SLOW_OK
@given(rings=RINGS, mode=st.sampled_from(["drop", "overwrite"]))
@pytest.mark.parametrize("chunk", [1, 3, 1 << 16])
def test_equals_the_slow_decoder(
    path: Path, monkeypatch: pytest.MonkeyPatch, chunk: int, rings: list[Ring], mode: str
) -> None:
    monkeypatch.setattr(decode, "_CHUNK_EVENTS", chunk)
    monkeypatch.setattr(decode, "_MIN_PIECE_EVENTS", 2)
    path.unlink(missing_ok=True)
    captures.write(path, Recipe(rings, meta=captures.meta(mode=mode)))
    wanted = [row for ring in rings for row in expected(ring)]
    found, losses = merged(path)
    assert sorted(found) == sorted(wanted)
    assert sum(loss.count for loss in losses) == sum(ring.lost for ring in rings)
    with Capture(path) as capture:
        decoder = Decoder(capture)
        for tid in decoder.tids:
            in_order = [row for ring in rings if ring.tid == tid for row in expected(ring)]
            assert [row for chunk in decoder.thread(tid) for row in rows(chunk)] == in_order


@SLOW_OK
@given(st.lists(st.lists(EVENTS.filter(bool), max_size=4), max_size=4))
@pytest.mark.parametrize("chunk", [1, 3, 1 << 16])
def test_merged_is_in_order_of_time(
    path: Path,
    monkeypatch: pytest.MonkeyPatch,
    chunk: int,
    threads: list[list[list[tuple[int, int]]]],
) -> None:
    monkeypatch.setattr(decode, "_CHUNK_EVENTS", chunk)
    monkeypatch.setattr(decode, "_MIN_PIECE_EVENTS", 2)
    rings = []
    for number, parts in enumerate(threads):  # a ring's events are in order across its blocks
        events = sorted(event for part in parts for event in part)
        for part in parts:
            rings.append(Ring(events[: len(part)], tid=number, ring=number))
            del events[: len(part)]
    random.Random(len(rings)).shuffle(blocks := [ring.ring for ring in rings])
    queues = {number: [r for r in rings if r.ring == number] for number in set(blocks)}
    path.unlink(missing_ok=True)
    captures.write(path, Recipe([queues[number].pop(0) for number in blocks]))
    times = [row[0] for row in merged(path)[0]]
    assert times == sorted(times)
    assert len(times) == sum(len(ring.rows) for ring in rings)


LAYOUTS = layouts_json({SET: Layout((Field("a", "u64"), Field("b", "u64")), ())})


@SLOW_OK
@given(
    threads=st.lists(
        st.tuples(EVENTS, st.lists(st.integers(1, 40), max_size=4)), min_size=1, max_size=4
    )
)
@pytest.mark.parametrize("chunk", [1, 3, 1 << 16])
def test_payloads_stay_with_their_events(
    path: Path,
    monkeypatch: pytest.MonkeyPatch,
    chunk: int,
    threads: list[tuple[list[tuple[int, int]], list[int]]],
) -> None:
    """Blocks end anywhere, also between an event and its payload."""
    monkeypatch.setattr(decode, "_CHUNK_EVENTS", chunk)
    monkeypatch.setattr(decode, "_MIN_PIECE_EVENTS", 2)
    rings: list[Ring] = []
    wanted: dict[int, list[tuple[int, int]]] = {}
    for number, (events, cuts) in enumerate(threads):
        made: list[tuple[int, ...]] = []
        wanted[number] = []
        for ticks, address in events:
            words = [ticks, number] if address == SET else []
            made += [(ticks, address), *captures.data(False, words)]
            at_ns = round(ticks / TICKS_PER_NS)
            wanted[number] += [(at_ns, 0), *((at_ns, word) for word in words)]
        bounds = sorted({0, *(cut for cut in cuts if cut < len(made)), len(made)})
        rings += [
            Ring(made[start:stop], tid=number, ring=number)
            for start, stop in itertools.pairwise(bounds)
        ]
    path.unlink(missing_ok=True)
    captures.write(path, Recipe(rings, meta=captures.meta(layouts=LAYOUTS)))
    found: dict[int, list[tuple[int, int]]] = {number: [] for number in wanted}
    times = []
    with Capture(path) as capture:
        for events in Decoder(capture).merged():
            words = events.words if events.has_data else np.zeros(len(events), np.uint64)
            columns = (events.tid, events.ts_ns, words)
            for tid, at_ns, word in zip(*(c.tolist() for c in columns), strict=True):
                found[tid].append((at_ns, word))
                times.append(at_ns)
            assert events.unknown == np.count_nonzero((events.site < 0) & (events.type == 1))
    assert found == wanted
    assert times == sorted(times)


def clock_of(path: Path, recipe: Recipe) -> decode.Clock:
    path.unlink(missing_ok=True)
    with Capture(captures.write(path, recipe)) as capture:
        return Decoder(capture).clock


def test_two_points_make_the_time_scale(path: Path) -> None:
    clock = clock_of(path, captures.SMALL)
    assert clock.known
    assert clock.ns_per_tick == pytest.approx(1 / 3)
    assert clock.end_ns == 2_000_000_000
    ticks = np.array([0, captures.START_TSC, captures.START_TSC + 6], dtype=np.uint64)
    assert clock.ns(ticks).tolist() == [-1_000_000_000, 0, 2]


def test_a_capture_cut_off_has_the_last_clock_block(path: Path) -> None:
    points = [captures.clock(3_000), captures.clock(6_000)]
    clock = clock_of(path, Recipe(clocks=points, end=None))
    assert clock.known
    assert clock.end_ns == 2_000


@pytest.mark.parametrize("point", [captures.clock(0), {**captures.clock(9), "monotonic_ns": 0}])
def test_without_a_second_point_ticks_stay_ticks(path: Path, point: dict[str, int]) -> None:
    clock = clock_of(path, Recipe(clocks=[point], end=None))
    assert not clock.known
    assert clock.ns(np.array([captures.START_TSC + 9], dtype=np.uint64)).tolist() == [9]


@settings(deadline=None)
@given(
    st.lists(st.integers(0, (1 << 48) - 1), max_size=50), st.lists(st.integers(0, (1 << 48) - 1))
)
def test_lookup_equals_a_dict(table: list[int], others: list[int]) -> None:
    wanted = {address: index for index, address in reversed(list(enumerate(table)))}
    asked = np.array(table + others, dtype=np.uint64)
    found = SiteLookup(table).find(asked).tolist()
    assert found == [wanted.get(address, -1) for address in asked.tolist()]


def test_lookup_where_many_sites_share_slots(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("textpoke._site_lookup._MAX_SLOT_BITS", 4)
    table = [0x401000 + 16 * index for index in range(1_000)]
    asked = np.array([*table, 0, 0x401001, (1 << 48) - 1], dtype=np.uint64)
    assert SiteLookup(table).find(asked).tolist() == [*range(1_000), -1, -1, -1]


def test_a_million_events_in_well_under_a_second(path: Path) -> None:
    """A smoke alarm, five times slower than what an idle machine does."""
    million = 1_000_000
    payload = captures.pack_events([(index, SET) for index in range(1_000)]) * (million // 1_000)
    header = captures.Block(captures.BlockType.EVENTS, 0, len(payload), tid=100).header()
    with CaptureWriter(path) as writer:
        writer.meta(captures.meta())
        with open(writer.fd, "wb", closefd=False) as file:
            file.write(header + payload)
        writer.end(captures.end())
    with Capture(path) as capture:
        times_s = []
        for _ in range(3):
            before = time.perf_counter()
            total = sum(len(events) for events in Decoder(capture).thread(100))
            times_s.append(time.perf_counter() - before)
            assert total == million
    assert min(times_s) < 0.25


def test_events_are_the_sixteen_bytes_of_the_format() -> None:
    packed = captures.pack_events([(5, 0x123456789ABC)])
    assert struct.unpack("<QQ", packed) == (captures.START_TSC + 5, 0x123456789ABC0001)
