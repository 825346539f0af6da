# SPDX-License-Identifier: Apache-2.0
"""What lies over the screen of `textpoke top`: its keys, and one function."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from textual.binding import Binding
from textual.containers import VerticalScroll
from textual.screen import ModalScreen
from textual.widgets import Static

from textpoke.top import details

if TYPE_CHECKING:
    from textual.app import ComposeResult
    from textual.binding import BindingType

    from textpoke.top.model import Model
    from textpoke.top.stretch import Neighbours

_HELP = """\
Up Down PgUp PgDn Home End   select a function; Home: whatever is first
Enter                        its histogram, its callers and callees
/                            search: part of module!function, or a glob;
                             Enter keeps it, Esc ends it
s  r                         sort by the next column; the other way round
1 2 3 4 5 6 7 8              sort by calls, total, self, avg, p50, p99,
                             function, module
space                        the numbers stand still, or go on
d  e                         switch the selected function off, on
t                            calls only (cheaper), or times, too
q  Ctrl-C                    undo everything and quit

TOTAL is time in a function as a share of one core, waiting included;
SELF is without the functions below it that are traced, too. AVG, P50
and P99 are of the last interval's calls. Calls that have not returned
are not counted yet. What was never called is listed by a search only.
"""
_REFRESH_S = 0.5
_WIDEST, _FRAME = 120, 6  # columns; with border, padding and scrollbar


class Dialog(ModalScreen[None]):
    """A box of text that scrolls; Esc closes it."""

    DEFAULT_CSS = """
    Dialog { align: center middle; }
    Dialog VerticalScroll {
        width: 100%; max-width: 120; height: auto; max-height: 100%;
        border: solid $primary; padding: 0 1;
    }
    Dialog Static { height: auto; }
    """
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("escape,q,enter,question_mark", "close"),
    ]

    def compose(self) -> ComposeResult:
        """The text, in a box."""
        with VerticalScroll() as box:
            box.border_subtitle = "Down: more  Esc: back"
            yield Static(self.text(), markup=False)

    def text(self) -> str:
        """What it says."""
        raise NotImplementedError

    def action_close(self) -> None:
        """Back to the functions."""
        self.dismiss()


class Help(Dialog):
    """The keys, and what the columns mean."""

    def text(self) -> str:
        """What it says."""
        return _HELP


class Details(Dialog):
    """One function.

    Args:
        model: Has its numbers.
        function: Its index.

    Attributes:
        found: Its neighbours, when they are known, or why they are not.
    """

    def __init__(self, model: Model, function: int) -> None:
        super().__init__()
        self.found: Neighbours | str | None = None
        self._model = model
        self._function = function

    def text(self) -> str:
        """What it says."""
        width = min(self.app.size.width, _WIDEST) - _FRAME
        return "\n".join(details.lines(self._model, self._function, width, self.found))

    def on_mount(self) -> None:
        """The numbers go on."""
        self.set_interval(_REFRESH_S, self.show)

    def show(self) -> None:
        """Draw it anew."""
        if self.is_mounted:
            self.query_one(Static).update(self.text())
