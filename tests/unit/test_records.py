# SPDX-License-Identifier: Apache-2.0
"""Who wants what at a site, and what is in place: with an engine that does as the test says."""

from __future__ import annotations

import errno
from dataclasses import replace
from typing import TYPE_CHECKING, cast

import pytest

from textpoke import records
from textpoke._errors import AgentFailed, BatchFailed
from textpoke.agent_image import Probe
from textpoke.hooks import hook_of
from textpoke.model import Site, SiteKind
from textpoke.plan import CALL, CELL, PAD_DISTANCE, Method, SitePlan
from textpoke.poke import Outcome, Request
from textpoke.records import CLOSED, INSIDE, NO_PROBE, Records, Wanted, Wants

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from textpoke.agent import Agent

NOPS = b"\x90" * 5
ISLAND, CELLS, SITES = 0x9000_0000, 0x8000_0000, 0x1_0000_0000
DEFAULT, GRAPH = Probe(0), Probe(1)
COUNT = 4
FAILED = BatchFailed("look", 0, SITES, recovered=True)


class Target:
    """Memory, and an engine that pokes it; what it shall do instead stands in `script`."""

    def __init__(self) -> None:
        self.memory: dict[int, int] = {}
        self.requests: list[Request] = []
        # What is left out, failures, and failures behind pokes that stay.
        self.script: list[Exception | Sequence[int] | type[BatchFailed]] = []
        self.stores: list[int] = []
        self.asked: list[object] = []  # the ways to be looked at, by batch
        self.outlasted = False  # nobody is there
        self.lasting: tuple[tuple[int, int], ...] = ((0, 1 << 63),)  # nothing is ever closed

    def read(self, address: int, size: int) -> bytes:
        return bytes(self.memory[address + i] for i in range(size))

    def fill_code(self, content: Iterable[tuple[int, bytes]]) -> None:
        for start, data in content:
            self.memory.update(enumerate(data, start))

    def store_words(self, address: int, old: bytes, new: bytes) -> None:
        if self.read(address, len(old)) != old:
            raise AgentFailed("a store", errno.EILSEQ)
        self.fill_code([(address, new)])
        self.stores.append(len(new))

    def run(self, _agent: object, request: Request, **how: object) -> Outcome:
        self.requests.append(request)
        self.asked.append(how.get("ways"))
        does = self.script.pop(0) if self.script else ()
        if isinstance(does, Exception):
            raise does
        fails = isinstance(does, type)
        for i, poke in enumerate(request.pokes):
            if fails or i not in does:
                assert self.read(poke.address, len(poke.old or b"")) == poke.old
                self.fill_code([(poke.address, poke.new or b"")])
        if fails:
            raise FAILED
        outlasted = self.outlasted and bool(how.get("ways"))
        return Outcome(sites=len(request.pokes), left=tuple(does), outlasted=outlasted)


def planned(i: int) -> SitePlan:
    at = SITES + 64 * i
    site = Site(at, 5, SiteKind.NOP_RUN, "m", f"f{i}", f"f{i}", at, NOPS, "patchable", None, at)
    on = bytes([CALL]) + NOPS[1:]
    return SitePlan(site, Method.FLIP, NOPS, on, at + 5, lead=ISLAND, cell=CELLS + 8 * i)


PLANS = [planned(i) for i in range(COUNT)]


def called(i: int) -> SitePlan:
    """A site whose CALL is written whole."""
    plan = planned(i)
    site = replace(plan.site, kind=SiteKind.NOP5)
    plan = replace(plan, site=site, method=Method.CALL, cell=0)
    return replace(plan, on=hook_of(plan).code(ISLAND))


CALLS = [called(i) for i in range(COUNT)]


def wants(probe: Probe, plans: Iterable[SitePlan] = PLANS) -> Wants:
    return Wants((p.site.address, Wanted(p, probe)) for p in plans)


@pytest.fixture
def target(monkeypatch: pytest.MonkeyPatch) -> Target:
    made = Target()
    for plan in PLANS:
        made.fill_code([(plan.site.address, NOPS), (plan.cell, CELL.pack(ISLAND))])
    monkeypatch.setattr(records, "run_request", made.run)
    monkeypatch.setattr(records, "_BUSY_PAUSE_S", 0)
    return made


class Places:
    """Where probes are; notes who was waited for."""

    def __init__(self) -> None:
        self.waited: list[list[int]] = []

    def probes(self, wanted: Sequence[tuple[SitePlan, tuple[Probe, ...]]]) -> list[int]:
        return [ISLAND + 0x1000 * sum(p.kind + 1 for p in chain) for _, chain in wanted]

    def outlast(self, gone: Sequence[SitePlan]) -> None:
        self.waited.append([p.site.address for p in gone])

    def ways(self, gone: Sequence[SitePlan]) -> bytes:
        return bytes(len(gone))


@pytest.fixture
def places() -> Places:
    return Places()


@pytest.fixture
def kept(target: Target, places: Places) -> Records:
    return Records(cast("Agent", target), places, DEFAULT)


def on(target: Target) -> list[bool]:
    return [target.read(p.site.address, 1)[0] == CALL for p in PLANS]


def cells(target: Target) -> list[int]:
    return [CELL.unpack(target.read(p.cell, CELL.size))[0] for p in PLANS]


def test_the_pads_are_where_the_calls_go() -> None:
    call = PLANS[0].on
    displacement = int.from_bytes(call[1:], "little", signed=True)
    assert PLANS[0].return_address + displacement == PLANS[0].site.address - PAD_DISTANCE


def test_from_one_probe_to_another_is_a_store_of_data(target: Target, kept: Records) -> None:
    kept.switch("a", wants(DEFAULT))
    assert on(target) == [True] * COUNT
    assert len(target.requests) == 1
    done = kept.switch("a", wants(GRAPH))
    assert done.outcome is None
    assert cells(target) == [ISLAND + 0x2000] * COUNT
    assert on(target) == [True] * COUNT
    assert len(target.requests) == 1
    kept.switch("a", wants(DEFAULT))
    assert cells(target) == [ISLAND] * COUNT


def test_pads_without_cells_are_poked(target: Target, kept: Records) -> None:
    plans = [replace(plan, cell=0) for plan in PLANS]
    hooks = [hook_of(plan) for plan in plans]
    target.fill_code([(hook.address, hook.code(ISLAND)) for hook in hooks])
    kept.switch("a", wants(DEFAULT, plans))
    kept.switch("a", wants(GRAPH, plans))
    assert [len(r.pokes) for r in target.requests] == [COUNT, COUNT]
    for hook in hooks:
        assert hook.address == plans[hooks.index(hook)].site.address - PAD_DISTANCE
        assert target.read(hook.address, 5) == hook.code(ISLAND + 0x2000)
    assert target.stores == []


def test_sites_that_are_off_are_led_before_they_are_on(target: Target, kept: Records) -> None:
    seen: list[list[int]] = []
    usual = target.run

    def run(agent: object, request: Request, **how: object) -> Outcome:
        seen.append(cells(target))
        return usual(agent, request, **how)

    records.run_request = run  # type: ignore[assignment]
    kept.switch("a", wants(GRAPH))
    assert seen == [[ISLAND + 0x2000] * COUNT]
    assert on(target) == [True] * COUNT


def test_two_users_share_a_site(target: Target, kept: Records) -> None:
    kept.switch("a", wants(DEFAULT))
    kept.switch("b", wants(GRAPH, PLANS[:2]))
    assert cells(target) == [ISLAND + 0x3000] * 2 + [ISLAND] * 2
    kept.switch("a", Wants())
    assert on(target) == [True, True, False, False]
    assert cells(target)[:2] == [ISLAND + 0x2000] * 2
    kept.switch("b", Wants())
    assert on(target) == [False] * COUNT
    assert kept.count == 0


def test_back_and_forth_is_the_same_each_time(target: Target, kept: Records) -> None:
    both = {"function": wants(DEFAULT), "graph": wants(GRAPH), "nop": Wants()}
    states: dict[str, set[tuple[object, ...]]] = {name: set() for name in both}
    for _ in range(4):
        for name in ("function", "graph", "nop", "graph", "function", "nop"):
            kept.switch("a", both[name])
            led = tuple(cells(target)) if name != "nop" else ()
            states[name].add((tuple(on(target)), led, kept.count))
    assert all(len(found) == 1 for found in states.values())


def test_a_change_is_known_once_it_was_made(target: Target, kept: Records) -> None:
    graph = wants(GRAPH)
    assert not kept.knows("a", None)
    for _ in range(2):
        assert not kept.knows("b", graph)
        before = kept.knows("a", graph)
        kept.switch("a", graph)
        kept.switch("a", Wants())
    assert not before
    assert on(target) == [False] * COUNT


def test_a_change_that_was_made_often_and_fails_leaves_what_is_known_right(
    target: Target, kept: Records
) -> None:
    function, graph, nothing = wants(DEFAULT), wants(GRAPH), Wants()
    for _ in range(3):
        for wanted in (function, nothing, graph, nothing):
            kept.switch("a", wanted)
    assert kept.knows("a", function)
    target.script = [AgentFailed("a test", 5)]  # behind the cells, which lead to it by now
    with pytest.raises(AgentFailed):
        kept.switch("a", function)
    assert cells(target) == [ISLAND] * COUNT
    assert on(target) == [False] * COUNT
    for _ in range(2):
        kept.switch("a", graph)
        assert cells(target) == [ISLAND + 0x2000] * COUNT
        assert on(target) == [True] * COUNT
        kept.switch("a", nothing)
    assert on(target) == [False] * COUNT


def test_one_by_one_is_a_store_for_each(target: Target, kept: Records) -> None:
    kept.switch("a", wants(DEFAULT))
    kept.switch("a", wants(GRAPH))
    kept.one_by_one = True
    kept.switch("a", wants(DEFAULT))
    assert target.stores == [CELL.size * COUNT] + [CELL.size] * COUNT


def test_a_cell_that_somebody_has_changed_is_left_alone(target: Target, kept: Records) -> None:
    kept.switch("a", wants(DEFAULT))
    target.fill_code([(PLANS[1].cell, CELL.pack(0x1234))])
    with pytest.raises(AgentFailed):
        kept.switch("a", wants(GRAPH))
    assert cells(target) == [ISLAND, 0x1234, ISLAND, ISLAND]


def test_where_a_shared_site_cannot_be_led_the_others_are_taken_back(
    target: Target, kept: Records
) -> None:
    kept.switch("a", wants(DEFAULT, PLANS[:1]))
    target.fill_code([(PLANS[0].cell, CELL.pack(0x1234))])
    with pytest.raises(AgentFailed):
        kept.switch("b", wants(GRAPH))
    assert on(target) == [True, False, False, False]
    assert kept.count == 1
    kept.switch("a", Wants())
    assert on(target) == [False] * COUNT


def test_what_went_off_is_on_again_when_the_change_fails(target: Target, kept: Records) -> None:
    kept.switch("a", wants(DEFAULT, PLANS[:2]))
    target.fill_code([(PLANS[1].cell, CELL.pack(0x1234))])
    chosen = Wants((p.site.address, Wanted(p, GRAPH)) for p in PLANS[1:])
    with pytest.raises(AgentFailed):
        kept.switch("a", chosen)
    assert on(target) == [True, True, False, False]
    assert kept.count == 2
    kept.switch("a", Wants())
    assert on(target) == [False] * COUNT


def test_a_retry_that_fails_is_one_more_try(target: Target, kept: Records) -> None:
    target.script = [(2,), FAILED, FAILED, ()]
    done = kept.switch("a", wants(DEFAULT))
    assert done.refused == []
    assert on(target) == [True] * COUNT
    assert [len(r.pokes) for r in target.requests] == [COUNT, 1, 1, 1]


def test_a_retry_that_fails_may_have_written(target: Target, kept: Records) -> None:
    target.script = [(2,), BatchFailed]
    done = kept.switch("a", wants(DEFAULT))
    assert done.refused == []
    assert kept.count == COUNT
    kept.switch("a", Wants())
    assert on(target) == [False] * COUNT


def test_what_is_taken_back_leaves_the_others_as_they_were(target: Target, kept: Records) -> None:
    kept.switch("a", wants(DEFAULT, CALLS[:2]))
    before = [target.read(p.site.address, 5) for p in CALLS]
    target.script = [(3,), AgentFailed("a test", 5)]
    with pytest.raises(AgentFailed):
        kept.switch("b", wants(GRAPH, CALLS))
    assert [target.read(p.site.address, 5) for p in CALLS] == before
    assert kept.count == 2
    kept.switch("a", Wants())
    assert on(target) == [False] * COUNT


def test_retries_that_all_fail_leave_the_site_out(target: Target, kept: Records) -> None:
    target.script = [(2,), *[FAILED] * 20]
    done = kept.switch("a", wants(DEFAULT))
    assert done.refused == [(PLANS[2].site, INSIDE)]
    assert on(target) == [True, True, False, True]
    kept.switch("a", Wants())
    assert on(target) == [False] * COUNT


def test_what_cannot_go_on_is_taken_back(target: Target, kept: Records) -> None:
    target.script = [(2,), AgentFailed("a test", 5)]
    with pytest.raises(AgentFailed):
        kept.switch("a", wants(DEFAULT))
    assert on(target) == [False] * COUNT
    assert kept.count == 0


def test_who_measures_is_told(target: Target, kept: Records) -> None:
    told: list[Outcome] = []
    kept.tell = told.append
    kept.switch("a", wants(DEFAULT))
    kept.switch("a", Wants())
    assert [outcome.sites for outcome in told] == [COUNT, COUNT]
    assert on(target) == [False] * COUNT


def test_sites_of_a_library_that_was_closed_are_left_out(target: Target, kept: Records) -> None:
    """They go on without it, and say so; a module that stays is a failure as ever."""
    target.fill_code([(PLANS[1].site.address, b"other")])
    target.script = [FAILED]
    with pytest.raises(BatchFailed):
        kept.switch("a", wants(DEFAULT))
    target.lasting = ((SITES, SITES + 64),)
    target.script = [FAILED]
    done = kept.switch("a", wants(DEFAULT))
    assert done.refused == [(PLANS[1].site, CLOSED)]
    assert on(target) == [True, False, True, True]
    assert done.outcome is not None
    assert done.outcome.sites == COUNT - 1
    kept.switch("a", Wants())
    assert on(target) == [False] * COUNT


def branch(i: int) -> SitePlan:
    """A branch among the first bytes of function i."""
    plan = called(i)
    plan = replace(plan, site=replace(plan.site, address=plan.site.address + 2))
    return replace(plan, on=hook_of(plan).code(ISLAND))


BRANCHES = [branch(i) for i in range(2)]
OVER = [p.site.address for p in PLANS[:2]]
UNDER = [p.site.address for p in BRANCHES]


@pytest.mark.parametrize("outlasted", [True, False])
def test_who_is_on_the_way_is_looked_for_where_threads_are_held(
    outlasted: bool, target: Target, places: Places, kept: Records
) -> None:
    functions, branches = wants(DEFAULT), wants(NO_PROBE, BRANCHES)
    for plan in BRANCHES:
        target.fill_code([(plan.site.address + 3, NOPS)])
    kept.switch("a", functions)
    target.outlasted = outlasted
    for _ in range(3):
        kept.switch("a", Wants())
        target.fill_code([(p.site.address, p.off) for p in BRANCHES])
        kept.switch("a", branches)
        kept.switch("a", Wants())
        target.fill_code([(p.site.address, p.off) for p in PLANS])
        kept.switch("a", functions)
    assert places.waited == [OVER, UNDER] * (1 if outlasted else 3)
    assert [len(a) for a in target.asked if isinstance(a, bytes) and a] == [2] * 4


def test_sites_that_stay_on_for_a_while_are_waited_for(
    target: Target, places: Places, kept: Records
) -> None:
    functions, branches = wants(DEFAULT), wants(NO_PROBE, BRANCHES)
    target.outlasted = True
    for _ in range(2):
        kept.switch("a", functions)
        if places.waited:
            target.script.append((0,))  # a thread stands inside of the first one
        kept.switch("a", Wants())
        target.fill_code([(p.site.address, p.off) for p in BRANCHES])
        kept.switch("a", branches)
        kept.switch("a", Wants())
        target.fill_code([(p.site.address, p.off) for p in PLANS])
    assert places.waited.count(OVER) == 2
