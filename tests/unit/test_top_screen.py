# SPDX-License-Identifier: Apache-2.0
"""textpoke top: its keys, by textual's own pilot, on a source that is made up."""

from __future__ import annotations

import asyncio
import threading
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import pytest
from textual.events import Key
from top_samples import FakeSource, sample, until

from textpoke.top.dialogs import Details, Help
from textpoke.top.model import Function, Model, Sample
from textpoke.top.screen import Rows, TopApp
from textpoke.top.view import View

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from textual.pilot import Pilot


def drive(
    act: Callable[[TopApp, Pilot[None]], Awaitable[None]],
    source: FakeSource | None = None,
    size: tuple[int, int] = (80, 24),
) -> TopApp:
    """Run the screen, act on it once it shows rates, let it end."""
    app = TopApp(source or FakeSource(), Model(1.0, 0.1), View(sort="calls"), threading.Event())

    async def run() -> None:
        async with app.run_test(size=size) as pilot:
            await until(pilot, lambda: bool(app.table.rate.any()))
            await act(app, pilot)

    asyncio.run(run())
    return app


def shown(app: TopApp) -> list[str]:
    """The lines of functions, titles first."""
    rows = app.screen_stack[0].query_one(Rows)
    return [rows.render_line(y).text.rstrip() for y in range(rows.size.height)]


def text(app: TopApp) -> str:
    return str(app.screen_stack[0].query_one("#state").render())


@pytest.mark.parametrize("size", [(80, 24), (200, 60), (60, 10)])
def test_functions_that_were_called_are_shown(size: tuple[int, int]) -> None:
    async def act(app: TopApp, _pilot: Pilot[None]) -> None:
        lines = shown(app)
        others = (
            app.query_one(name).size.height for name in ("#title", "#facts", "#state", "#foot")
        )
        assert len(lines) == size[1] - sum(others)
        assert "CALLSv" in lines[0]
        assert ["malloc" in lines[1], "getCommand" in lines[2]] == [True, True]
        assert "setCommand" in lines[3]
        assert not any(lines[4:])
        assert all(len(line) <= size[0] for line in lines)

    drive(act, size=size)


def test_arrows_and_sort_keys_move_and_sort() -> None:
    async def act(app: TopApp, pilot: Pilot[None]) -> None:
        await pilot.press("down")
        assert app.view.selected == 1
        await pilot.press("end")
        assert app.view.selected == 0
        await pilot.press("home")
        assert app.view.selected == 2
        await pilot.press("7")
        assert app.view.sort == "function"
        assert "getCommand" in shown(app)[1]
        await pilot.press("r")
        assert "setCommand" in shown(app)[1]
        await pilot.press("s")
        assert (app.view.sort, app.view.backwards) == ("module", False)
        await pilot.press("pagedown", "pageup", "1")
        assert (app.view.sort, app.view.cursor) == ("calls", 0)

    drive(act)


def test_search_filters_while_typing_and_escape_ends_it() -> None:
    async def act(app: TopApp, pilot: Pilot[None]) -> None:
        await pilot.press("slash", *"free")
        assert [line.split()[-2] for line in shown(app)[1:] if line] == ["free"]
        await pilot.press("enter")
        assert "search: free" in text(app)
        await pilot.press("d")  # a key again, not a letter of the search
        await until(pilot, lambda: app.source.off == {3})
        await pilot.press("slash", *"xyz")
        assert "nothing matches 'xyz'" in "".join(shown(app))
        await pilot.press("escape")
        assert app.view.search == ""
        assert "malloc" in shown(app)[1]

    drive(act)


def test_what_is_typed_in_one_go_is_text_from_the_slash_on() -> None:
    source = FakeSource()

    async def act(app: TopApp, pilot: Pilot[None]) -> None:
        for key in ("slash", *"dest", "slash", "enter", "d"):  # as a slow line brings it
            app.post_message(Key(key, {"slash": "/", "enter": "\r"}.get(key, key)))
        await until(pilot, lambda: app._search.value == "dest/" and not app._search.display)
        for key in ("escape", "slash", *"getc", "enter", "d"):
            app.post_message(Key(key, {"slash": "/", "enter": "\r", "escape": None}.get(key, key)))
        await until(pilot, lambda: source.off)
        assert (app.view.search, app.view.selected, source.off) == ("getc", 1, {1})
        await pilot.press("enter", "slash", "escape", "slash", *"f")
        assert app.view.search == "f"

    drive(act, source)


def test_d_and_e_switch_the_selected_function() -> None:
    source = FakeSource()

    async def act(app: TopApp, pilot: Pilot[None]) -> None:
        await pilot.press("down", "d")
        await until(pilot, lambda: source.off == {1})
        await until(pilot, lambda: " off " in shown(app)[2])
        await pilot.press("e")
        await until(pilot, lambda: not source.off)
        source.refuses = True
        await pilot.press("d")
        foot = app.query_one("#foot")
        await until(pilot, lambda: "somebody else has changed it" in str(foot.render()))
        assert not source.off

    drive(act, source)


@dataclass
class Switchable(FakeSource):
    """What is off is not called."""

    at: dict[int, int] = field(default_factory=dict)

    def sample(self) -> Sample:
        self.samples += 1
        for function, calls in self.calls.items():
            if function not in self.off:
                self.at[function] = self.at.get(function, 0) + calls
        return sample(time.monotonic(), self.at)


def test_the_cursor_stays_on_the_function_that_is_switched_and_on_every_sort() -> None:
    functions = [Function("prog", f"f{i:02}") for i in range(60)]
    source = Switchable(functions=functions, calls={i: 1000 - i for i in range(60)})

    async def act(app: TopApp, pilot: Pilot[None]) -> None:
        assert app.view.selected == 0
        await pilot.press("d")  # with nothing moved: as the screen begins
        await until(pilot, lambda: app.table.rate[0] == 0)
        assert (app.view.selected, app.view.cursor) == (0, 59)
        assert " off " in shown(app)[-1]
        for key in "12345678r":
            await pilot.press(key)
            assert app.view.selected == 0
        await pilot.press("1", "e")
        await until(pilot, lambda: app.table.rate[0] > 0)
        await until(pilot, lambda: app.view.cursor == 0)
        assert app.view.selected == 0

    drive(act, source)


def test_pause_lets_the_numbers_stand() -> None:
    source = FakeSource()

    async def act(app: TopApp, pilot: Pilot[None]) -> None:
        await pilot.press("space")
        table, samples = app.table, source.samples
        await until(pilot, lambda: source.samples > samples + 2)
        assert app.table is table
        assert "PAUSED" in text(app)
        await pilot.press("space")
        assert app.table is not table
        assert "PAUSED" not in text(app)

    drive(act, source)


def test_t_goes_over_to_calls_and_back() -> None:
    async def act(app: TopApp, pilot: Pilot[None]) -> None:
        await pilot.press("t")
        await until(pilot, lambda: "calls only" in text(app))
        await pilot.press("t")
        await until(pilot, lambda: "calls only" not in text(app))

    drive(act)


def test_enter_shows_details_and_escape_closes_them() -> None:
    async def act(app: TopApp, pilot: Pilot[None]) -> None:
        await pilot.press("enter")
        assert isinstance(app.screen, Details)
        await until(pilot, lambda: "caller_of_malloc" in app.screen.text())
        await pilot.press("down", "d", "escape")
        assert not isinstance(app.screen, Details)
        assert not app.source.off
        await pilot.press("question_mark")
        assert isinstance(app.screen, Help)
        await pilot.press("q")
        assert app.is_running

    drive(act)


@pytest.mark.parametrize(
    "keys", [["q"], ["ctrl+c"], ["question_mark", "ctrl+c"], ["slash", "q", "ctrl+c"]]
)
def test_it_quits(keys: list[str]) -> None:
    async def act(app: TopApp, pilot: Pilot[None]) -> None:
        await pilot.press(*keys)
        await until(pilot, lambda: not app.is_running)

    assert drive(act).failure is None


def test_the_stop_event_ends_it() -> None:
    async def act(app: TopApp, pilot: Pilot[None]) -> None:
        app._stop.set()
        await until(pilot, lambda: not app.is_running)

    drive(act)


def test_a_target_that_ends_leaves_the_last_screen() -> None:
    source = FakeSource()

    async def act(app: TopApp, pilot: Pilot[None]) -> None:
        source.gone.set()
        await until(pilot, lambda: "HAS ENDED" in text(app))
        assert "malloc" in shown(app)[1]
        await pilot.press("d", "t", "down", "2")
        assert "getCommand" in shown(app)[2]
        assert not source.off
        assert source.with_times
        await pilot.press("q")

    app = drive(act, source)
    assert app.ended


def test_a_hundred_thousand_functions_are_no_hundred_thousand_widgets() -> None:
    many = [Function("big", f"f{i:06}") for i in range(100_000)]
    source = FakeSource(functions=many, calls=dict.fromkeys(range(50_000), 1))

    async def act(app: TopApp, pilot: Pilot[None]) -> None:
        assert "50,000 of 100,000 functions" in text(app)
        await pilot.press("end")
        assert "f049999" in shown(app)[-1]
        await pilot.press("slash", *"f099999")
        assert "f099999" in shown(app)[1]
        assert len(app.query("*")) < 20

    drive(act, source)


def test_without_colours_the_selected_row_is_still_marked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_COLOR", "1")

    async def act(app: TopApp, _pilot: Pilot[None]) -> None:
        assert app.no_color
        styles = [next(iter(app.query_one(Rows).render_line(y))).style for y in (1, 2)]
        assert [bool(style and style.reverse) for style in styles] == [True, False]

    drive(act)
