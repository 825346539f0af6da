# SPDX-License-Identifier: Apache-2.0
"""The screen of `textpoke top`, with textual: it shows what a `View` chooses and passes keys on."""

from __future__ import annotations

import asyncio
import os
import time
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, ClassVar

from rich.segment import Segment
from rich.style import Style
from textual.app import App
from textual.binding import Binding
from textual.events import Key
from textual.strip import Strip
from textual.widget import Widget
from textual.widgets import Input, Static

from textpoke._errors import NoSuchTarget, TargetExited, TextpokeError
from textpoke.top import cells, plain
from textpoke.top.dialogs import Details, Help
from textpoke.top.terminal import Terminal
from textpoke.top.view import SORTS

if TYPE_CHECKING:
    import threading
    from collections.abc import Callable, Coroutine
    from typing import TypeVar

    from textual import events
    from textual.app import ComposeResult
    from textual.binding import BindingType

    from textpoke.top.model import Model, Table
    from textpoke.top.source import Source
    from textpoke.top.stretch import Neighbours
    from textpoke.top.view import View

    T = TypeVar("T")

GONE = (TargetExited, NoSuchTarget)
_SLICE_S = 0.1
"""A question to the source waits for so long at most."""
_FIRST_S = 0.5
_MESSAGE_S = 5.0
_HINTS = "q quit  ? help  / search  s sort  Enter details  d off e on  t times  Spc pause"
_SEARCH_HINTS = "Enter keep  Esc end  part of module!function, or a glob"
_PLAIN, _DIM, _SPARK = Style(), Style(dim=True), Style(color="cyan", dim=True)
_NO_PART = slice(0, 0)
_TITLE, _SELECTED = Style(bold=True, underline=True), Style(reverse=True)


class Rows(Widget, can_focus=True):
    """The functions: as many lines as there is room for, made when they are drawn."""

    def __init__(self, owner: TopApp) -> None:
        super().__init__()
        self.owner = owner

    def on_resize(self, event: events.Resize) -> None:
        """Room for other rows."""
        self.owner.view.resize(event.size.height - 1)

    def render_line(self, y: int) -> Strip:
        """The titles, or a function."""
        owner, view, columns = self.owner, self.owner.view, self.size.width
        width = cells.widths(columns)
        if y == 0:
            text, style = cells.header(width, view, owner.model.history_s), _TITLE
            return self._strip(text, style)
        place = view.top + y - 1
        if place >= len(view.rows):
            return self._strip(owner.empty_text if y == 2 else "", _DIM)
        function = int(view.rows[place])
        on = function not in owner.source.off
        text = cells.line(owner.table, function, owner.model.functions[function], width, on=on)
        if place == view.cursor or not on:
            return self._strip(text, _SELECTED if place == view.cursor else _DIM)
        return self._strip(text, _PLAIN, width.past)

    def _strip(self, text: str, style: Style, past: slice = _NO_PART) -> Strip:
        """A line; what `past` takes of it in another colour, so that numbers stand out."""
        whole = self.rich_style + style
        colour = whole if self.app.no_color else whole + _SPARK
        parts = ((text[: past.start], whole), (text[past], colour), (text[past.stop :], whole))
        line = Strip([Segment(part, look) for part, look in parts if part])
        return line.adjust_cell_length(self.size.width, whole)


class TopApp(App[None]):
    """The screen.

    Args:
        source: Running; nobody else may ask it meanwhile.
        model: Gets its samples.
        view: What is shown.
        stop: When it is set, the screen ends.

    Attributes:
        table: What is shown: the model's latest table, or an older one while paused.
        failure: What ended it, or ended the watch: one of GONE when the process has ended.
    """

    ENABLE_COMMAND_PALETTE = False
    CSS = """
    #title, #facts, #state { height: auto; max-height: 2; }
    #foot { height: auto; max-height: 3; }
    #title { text-style: bold; }
    #search { display: none; height: 1; border: none; padding: 0; }
    Rows { height: 1fr; }
    """
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("ctrl+c", "leave", priority=True),  # in a search and in a box, too
        Binding("q", "leave"),
        Binding("up,k", "move(-1)"),
        Binding("down,j", "move(1)"),
        Binding("pageup", "page(-1)"),
        Binding("pagedown", "page(1)"),
        Binding("home,g", "first"),
        Binding("end,G", "last"),
        Binding("s", "sort"),
        Binding("r", "backwards"),
        *(Binding(str(i), f"sort('{name}')") for i, name in enumerate(SORTS, 1)),
        # Before the next key is sent anywhere: what is typed in one go behind a slash is text.
        Binding("slash", "search", priority=True),
        Binding("escape", "all", priority=True),
        Binding("enter", "enter", priority=True),
        Binding("space", "pause"),
        Binding("t", "times"),
        Binding("d", "switch(False)"),
        Binding("e", "switch(True)"),
        Binding("question_mark,h", "help"),
    ]

    def __init__(self, source: Source, model: Model, view: View, stop: threading.Event) -> None:
        # Without colours textual has greys, but for the terminal's own.
        super().__init__(driver_class=Terminal, ansi_color=bool(os.environ.get("NO_COLOR")))
        self.source, self.model, self.view = source, model, view
        self.table: Table = model.table
        self.failure: TextpokeError | None = None
        self.paused = False
        self._stop = stop
        self._asker = ThreadPoolExecutor(1, "textpoke-top")  # a source has one thread at a time
        self._message, self._message_until = "", 0.0
        self._title, self._facts, self._state, self._foot = (
            Static(id=name, markup=False) for name in ("title", "facts", "state", "foot")
        )
        self._rows = Rows(self)
        hint = "part of module!function, or a glob"
        self._search = Input(id="search", placeholder=hint, compact=True)

    @property
    def ended(self) -> bool:
        """The process has gone."""
        return self.failure is not None

    @property
    def empty_text(self) -> str:
        """What stands where no function is listed."""
        if len(self.view.rows):
            return ""
        if self.view.search:
            return f"  nothing matches {self.view.search!r}"
        return "  no function has been called yet"

    def compose(self) -> ComposeResult:
        """Three lines, the functions, a line for keys."""
        yield from (self._title, self._facts, self._state, self._rows, self._search, self._foot)

    def on_mount(self) -> None:
        """Begin to watch."""
        self._rows.focus()
        self.show()
        self.run_worker(self._watch(), name="watch")

    def on_unmount(self) -> None:
        """Nothing is asked any more."""
        self._asker.shutdown()

    def show(self) -> None:
        """Draw everything anew."""
        self.view.update(self.table, self.model.functions, self.source.off)
        self._title.update(plain.title(self.source))
        self._facts.update(plain.facts(self.table))
        self._state.update(self._state_text())
        with_message = time.monotonic() < self._message_until
        hints = _SEARCH_HINTS if self._search.display else _HINTS
        self._foot.update(self._message if with_message else hints)
        self._rows.refresh()

    def say(self, text: str) -> None:
        """A line for a few seconds."""
        self._message, self._message_until = text, time.monotonic() + _MESSAGE_S
        self.show()

    def _state_text(self) -> str:
        view = self.view
        parts = [
            "THE PROCESS HAS ENDED, q quits" if self.ended else "",
            "PAUSED" if self.paused else "",
            "" if self.source.with_times else "calls only",
            f"{len(view.rows):,} of {len(self.model.functions):,} functions",
            f"search: {view.search}" if view.search else "",
            f"by {view.sort}{', backwards' if view.backwards else ''}",
            f"every {self.model.interval_s:g} s",
        ]
        return "  ".join(part for part in parts if part)

    async def _ask(self, question: Callable[..., T], *args: object) -> T:
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._asker, question, *args)

    def _next_table(self) -> Table:
        return self.model.step(self.source.sample(), self.source.functions)

    async def _watch(self) -> None:
        """Take samples until the end."""
        self.set_interval(_SLICE_S, self._look_for_stop)
        interval_s = self.model.interval_s
        try:
            while True:
                table = await self._ask(self._next_table)
                if not self.paused:
                    self.table = table
                self.show()
                first = not table.seconds
                due = time.monotonic() + (min(interval_s, _FIRST_S) if first else interval_s)
                while (left_s := due - time.monotonic()) > 0:
                    await self._ask(self.source.wait, min(left_s, _SLICE_S))
        except TextpokeError as exc:
            self._fail(exc)

    def _look_for_stop(self) -> None:
        if self._stop.is_set() or Terminal.gone.is_set():
            self.exit()

    def _fail(self, exc: TextpokeError) -> None:
        """The last screen stays where the process has gone; else this is the end."""
        self.failure = self.failure or exc
        if not isinstance(exc, GONE):
            self.exit()
        self.show()

    async def _change(self, what: str, change: Callable[..., None], *args: object) -> None:
        """Have the source do something; what it says against it is shown."""
        try:
            await self._ask(change, *args)
        except TextpokeError as exc:
            self.say(f"{what}: {exc}")
            return
        self.say(what)

    async def on_event(self, event: events.Event) -> None:
        """Take text of a search at once, so that a key behind it acts on what was found."""
        if isinstance(event, Key) and not event.is_forwarded and self._takes(event):
            self._search.replace(event.character or "", *self._search.selection)
            self._look_for(self._search.value)
        else:
            await super().on_event(event)

    def _takes(self, key: Key) -> bool:
        """Is it text of a search? The line hears a while later that it has the focus."""
        return self.focused is self._search and key.is_printable

    def check_action(self, action: str, parameters: tuple[object, ...]) -> bool | None:
        """A box has its own keys."""
        del parameters
        return action not in ("search", "all", "enter") or len(self.screen_stack) == 1

    def action_leave(self) -> None:
        """Quit."""
        self.exit()

    def action_move(self, rows: int) -> None:
        """Select another function."""
        self.view.move(rows)
        self.show()

    def action_page(self, pages: int) -> None:
        """A screen up or down."""
        self.action_move(pages * self.view.height)

    def action_first(self) -> None:
        """Select whatever is first."""
        self.view.home()
        self.show()

    def action_last(self) -> None:
        """Select the last function."""
        self.view.end()
        self.show()

    def action_sort(self, name: str = "") -> None:
        """Sort by a column, or by the next one."""
        self.view.sort_by(name) if name else self.view.next_sort()
        self.show()

    def action_backwards(self) -> None:
        """Turn the order round."""
        self.view.sort_by(self.view.sort)
        self.show()

    def action_pause(self) -> None:
        """Let the numbers stand still, or go on."""
        self.paused = not self.paused
        if not self.paused:
            self.table = self.model.table
        self.show()

    def action_search(self) -> None:
        """Open the line for the search."""
        self._search.display = True
        self.screen.set_focus(self._search)
        self.show()

    def action_all(self) -> None:
        """End the search: show all functions that were called."""
        self._search.value = ""
        self.view.look_for("")
        self._close_search()

    def on_input_changed(self, event: Input.Changed) -> None:
        """Search while it is typed."""
        self._look_for(event.value)

    def _look_for(self, text: str) -> None:
        self.view.look_for(text.strip())
        self.show()

    def action_enter(self) -> None:
        """Keep the search; where none is typed, show what is known of the selected function."""
        if self._search.display:
            self._close_search()
        else:
            self._details()

    def _close_search(self) -> None:
        self._search.display = False
        self.screen.set_focus(self._rows)
        self.show()

    def action_times(self) -> None:
        """Go over from times to calls alone, or back."""
        what = "calls only: a third of the cost" if self.source.with_times else "times, too"
        self._begin(self._change(what, self.source.switch_times))

    def action_switch(self, on: bool) -> None:  # noqa: FBT001 - as a binding gives it
        """Trace the selected function, or do not."""
        chosen = self.view.selected
        if chosen >= 0:
            self.view.hold()  # its numbers change, and so does its place
            what = f"{self.model.functions[chosen]} {'on' if on else 'off'}"
            self._begin(self._change(what, lambda: self.source.switch(chosen, on=on)))

    def _details(self) -> None:
        chosen = self.view.selected
        if chosen < 0:
            return
        self.view.hold()  # it is still selected when the box is closed
        details = Details(self.model, chosen)
        self.push_screen(details)
        self.run_worker(self._look_into(chosen, details))

    def action_help(self) -> None:
        """Show the keys."""
        self.push_screen(Help())

    def _begin(self, change: Coroutine[None, None, None]) -> None:
        if self.ended:
            change.close()
            self.say("the process has ended")
            return
        self.run_worker(change)

    async def _look_into(self, function: int, details: Details) -> None:
        found: Neighbours | str
        try:
            found = await self._ask(self.source.look_into, function)
        except (TextpokeError, OSError) as exc:  # the stretch needs a file for a while
            found = str(exc)
        details.found = found
        details.show()
