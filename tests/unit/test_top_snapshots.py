# SPDX-License-Identifier: Apache-2.0
"""textpoke top: its screens, as pictures; CONTRIBUTING.md says how to draw them anew.

pytest-textual-snapshot is not used: with syrupy 5 and later it keeps pictures as `.raw` and with
their random ids, and it leaves a report in the working directory.
"""

from __future__ import annotations

import asyncio
import os
import re
import threading
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING

import pytest
from textual.widgets import Static
from top_samples import BUSY, Day, FakeSource, Work, until

from textpoke.top import screen
from textpoke.top.model import Function, Model, Sample
from textpoke.top.stretch import OUTERMOST, Neighbours, Share
from textpoke.top.view import SORTS, View

if TYPE_CHECKING:
    from collections.abc import Callable

    from textual.pilot import Pilot

SNAPSHOTS = Path(__file__).with_name("snapshots")
DIFFERING = Path(__file__).parents[2] / "build" / "snapshots"
RENEW = "SNAPSHOTS=renew"
SMALL, LARGE = (80, 24), (200, 60)
PAST_S = 75
"""Seconds that are over when the screen begins: sparklines are full."""


@dataclass
class StillSource(FakeSource):
    """A source of a made-up day on which it is always the same second."""

    day: Day = field(default_factory=lambda: Day(BUSY))
    program: str = "redis-server"
    patched: int = 3935
    refused: int = 17
    seconds: int = 60
    """As many samples there were before."""

    def __post_init__(self) -> None:
        self.functions = list(self.day.work)

    def sample(self) -> Sample:
        return self.day.sample(PAST_S)

    def look_into(self, function: int) -> Neighbours:  # noqa: ARG002 - of any function
        callers = [Share("processCommand", 4_210, 9_000_000), Share(OUTERMOST, 3, 0)]
        callees = [Share(f"callee_{i}", 9_000 - 7 * i, 310_000 * i + 70) for i in range(14)]
        return Neighbours(0.3, 4_213, callers, callees, 12)


@pytest.fixture(autouse=True)
def clocks_stand_still(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(screen, "time", SimpleNamespace(monotonic=lambda: 0.0))
    for name in ("NO_COLOR", "TEXTUAL_THEME"):
        monkeypatch.delenv(name, raising=False)


def picture(
    *keys: str,
    source: StillSource | None = None,
    size: tuple[int, int] = SMALL,
    when: Callable[[screen.TopApp], object] = lambda _app: True,
) -> str:
    """Press keys, wait; returns the screen as SVG, without the ids that are random."""
    source = source or StillSource()
    model = Model(source.ns_per_tick)
    for second in range(PAST_S - source.seconds, PAST_S):
        model.step(source.day.sample(second), source.functions)
    before = model.table
    app = screen.TopApp(source, model, View(), threading.Event())

    async def run() -> str:
        async with app.run_test(size=size) as pilot:
            await until(pilot, lambda: app.table is not before)
            await pilot.press(*keys)
            await until(pilot, lambda: when(app))
            return await settled(pilot)

    return re.sub(r"\bterminal-\d+-", "terminal-", asyncio.run(run()))


async def settled(pilot: Pilot[None]) -> str:
    """The picture, once it changes no more: a scrollbar comes some turns after its text."""
    before, shown = "", pilot.app.export_screenshot(title="textpoke top")
    while shown != before:
        await pilot.pause(0.15)
        before, shown = shown, pilot.app.export_screenshot(title="textpoke top")
    return shown


def compare(name: str, shown: str) -> None:
    """Is a picture the one that is kept? Keeps it instead when that is wished."""
    kept = SNAPSHOTS / f"{name}.svg"
    if os.environ.get("SNAPSHOTS") == "renew":
        kept.write_text(shown)
        return
    if not kept.exists() or kept.read_text() != shown:
        DIFFERING.mkdir(parents=True, exist_ok=True)
        (DIFFERING / kept.name).write_text(shown)
        pytest.fail(f"{kept} differs from build/snapshots/{kept.name}: look at both; {RENEW}")


def foot_says(text: str) -> Callable[[screen.TopApp], object]:
    return lambda app: text in str(app.query_one("#foot").render())


def callees_are_shown(app: screen.TopApp) -> bool:
    return any("callee_0" in str(box.render()) for box in app.screen.query(Static))


@pytest.mark.parametrize("size", [SMALL, LARGE], ids=lambda size: f"{size[0]}x{size[1]}")
def test_the_functions(size: tuple[int, int]) -> None:
    compare(f"functions-{size[0]}x{size[1]}", picture(size=size))


@pytest.mark.parametrize("place", range(len(SORTS)), ids=SORTS)
def test_sorted_by(place: int) -> None:
    # Away from "total", with which it begins: by the same column again it were turned round.
    keys = ("7" if SORTS[place] != "function" else "1", str(place + 1))
    compare(f"sorted-by-{SORTS[place]}", picture(*keys))


def test_sorted_the_other_way_round() -> None:
    compare("sorted-backwards", picture("6", "r"))


def test_a_search_while_it_is_typed() -> None:
    compare("search-typed", picture("slash", *"comm"))


def test_a_search_that_is_kept_lists_what_was_never_called() -> None:
    compare("search-kept", picture("slash", *"redis*!*c*", "enter", "down", "down"))


def test_a_search_that_finds_nothing() -> None:
    compare("search-nothing", picture("slash", *"xyzzy"))


def test_paused() -> None:
    compare("paused", picture("space"))


def test_a_function_that_is_off() -> None:
    shown = picture("down", "down", "d", when=foot_says(" off"))
    compare("function-off", shown)


def test_a_message() -> None:
    source = StillSource(refuses=True)
    compare("message", picture("d", source=source, when=foot_says("somebody else")))


def test_what_was_lost_and_what_has_no_time() -> None:
    day = Day(BUSY, {"lost": 1_234_567, "missed": 89_012})
    compare("lost", picture(source=StillSource(day=day)))


def test_calls_only() -> None:
    day = Day({function: replace(work, timed=False) for function, work in BUSY.items()})
    compare("calls-only", picture("s", source=StillSource(day=day, with_times=False)))


@pytest.mark.parametrize("size", [SMALL, LARGE], ids=lambda size: f"{size[0]}x{size[1]}")
def test_the_selected_function_with_its_callers_and_callees(size: tuple[int, int]) -> None:
    shown = picture(*["down"] * 3, "enter", size=size, when=callees_are_shown)
    compare(f"details-{size[0]}x{size[1]}", shown)


def test_help() -> None:
    compare("help", picture("question_mark"))


def test_no_calls_yet() -> None:
    day = Day(dict.fromkeys(BUSY, Work(0, 0)))
    compare("no-calls-yet", picture(source=StillSource(day=day)))


def test_the_process_has_ended() -> None:
    source = StillSource()
    source.gone.set()
    compare("ended", picture(source=source, when=lambda app: app.ended))


def test_a_hundred_thousand_functions() -> None:
    work = {
        Function("big.so", f"function_{i:06}"): Work(i % 977 if i % 2 else 0, 200 + i % 4_000)
        for i in range(100_000)
    }
    source = StillSource(day=Day(work), seconds=2, patched=99_990, refused=10)
    compare("hundred-thousand", picture("end", source=source))
