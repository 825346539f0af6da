# SPDX-License-Identifier: Apache-2.0
"""Which functions are shown, in which order, and which one is selected; pure."""

from __future__ import annotations

import fnmatch
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence

    from numpy.typing import NDArray

    from textpoke.top.model import Function, Table

NUMBERS = ("calls", "total", "self", "avg", "p50", "p99")
NAMES = ("function", "module")
SORTS = NUMBERS + NAMES
"""What rows can be sorted by; numbers begin with the largest, names with a."""


@dataclass(slots=True)
class View:
    """What a user looks at: moves, sorts and searches; `update` makes the rows.

    Attributes:
        sort: One of SORTS.
        backwards: The other way round than the sort's own.
        search: Part of "module!function", or a glob; "" for none.
        rows: int64, indices of functions in the order in which they are shown.
        cursor: Row that is selected.
        top: Row that is shown first.
        height: Rows that are shown at a time.
    """

    sort: str = "total"
    backwards: bool = False
    search: str = ""
    rows: NDArray[np.int64] = field(default_factory=lambda: np.empty(0, np.int64))
    cursor: int = 0
    top: int = 0
    height: int = 20
    _follows: int = -1  # the function that stays selected; -1: whatever is first
    _at_home: bool = True  # the screen stays at its top, and follows nothing out of sight
    _lower: list[str] = field(default_factory=list)
    _ranks: dict[str, NDArray[np.int64]] = field(
        default_factory=lambda: {name: np.empty(0, np.int64) for name in NAMES}
    )

    @property
    def selected(self) -> int:
        """Index of the function that is selected; -1 for none."""
        return int(self.rows[self.cursor]) if len(self.rows) else -1

    @property
    def shown(self) -> NDArray[np.int64]:
        """The functions on the screen."""
        return self.rows[self.top : self.top + self.height]

    def update(
        self, table: Table, functions: Sequence[Function], keep: Collection[int] = ()
    ) -> None:
        """Choose and order the rows anew.

        Args:
            table: Its rows are the first ones of `functions`.
            functions: All of them.
            keep: Functions that are listed although they were never called.
        """
        count = len(table.calls)
        self._learn(functions[:count])
        chosen = table.calls > 0
        chosen[[number for number in keep if number < count]] = True
        if self.search:
            chosen = self._matching()
        rows = np.flatnonzero(chosen)
        self.rows = rows[self._order(table, rows)]
        self._follow()
        self._keep_in_sight()
        if self._at_home and table.seconds:  # else the order means nothing yet
            self._follows = self.selected

    def _follow(self) -> None:
        found = np.flatnonzero(self.rows == self._follows)
        place = int(found[0]) if len(found) else -1
        if self._at_home:
            self.cursor = place if 0 <= place < self.height else 0
        elif place >= 0:
            self.cursor = place

    def move(self, rows: int) -> None:
        """Select another row; that function then stays selected."""
        self.cursor += rows
        self._keep_in_sight()
        self.hold()

    def hold(self) -> None:
        """The function that is selected stays selected, wherever it goes."""
        self._follows, self._at_home = self.selected, False

    def home(self) -> None:
        """Select the first function; when it leaves the first screen, again the first."""
        self.cursor, self._follows, self._at_home = 0, -1, True
        self._keep_in_sight()

    def end(self) -> None:
        """Select the last row."""
        self.move(len(self.rows))

    def resize(self, height: int) -> None:
        """So many rows are shown at a time."""
        self.height = max(height, 1)
        self._keep_in_sight()

    def sort_by(self, name: str) -> None:
        """Sort by another column; by the same one: the other way round."""
        self.backwards = not self.backwards if name == self.sort else False
        self.sort = name

    def next_sort(self) -> None:
        """Sort by the next column."""
        self.sort_by(SORTS[(SORTS.index(self.sort) + 1) % len(SORTS)])

    def look_for(self, text: str) -> None:
        """Show what matches alone; "" for what was called."""
        if text != self.search:
            self.search = text
            self.home()

    def _keep_in_sight(self) -> None:
        self.cursor = min(max(self.cursor, 0), max(len(self.rows) - 1, 0))
        last = max(len(self.rows) - self.height, 0)
        self.top = min(self.top, self.cursor, last)
        self.top = max(self.top, self.cursor - self.height + 1)

    def _learn(self, functions: Sequence[Function]) -> None:
        if len(functions) != len(self._lower):
            self._lower = [str(function).lower() for function in functions]
            self._ranks = {
                "function": _ranks([(f.name.lower(), f.module) for f in functions]),
                "module": _ranks([(f.module.lower(), f.name) for f in functions]),
            }

    def _matching(self) -> NDArray[np.bool_]:
        text = self.search.lower()
        if any(char in text for char in "*?["):
            whole = text if "!" in text else f"*!{text}"
            found = set(fnmatch.filter(self._lower, whole))
            return np.array([name in found for name in self._lower], np.bool_)
        return np.array([text in name for name in self._lower], np.bool_)

    def _order(self, table: Table, rows: NDArray[np.int64]) -> NDArray[np.intp]:
        tie = self._ranks["function"][rows]
        if self.sort in NAMES:
            key = self._ranks[self.sort][rows].astype(np.float64)
            return np.lexsort((tie, -key if self.backwards else key))
        attribute = {"calls": "rate", "avg": "average"}.get(self.sort, self.sort)
        values = np.nan_to_num(getattr(table, attribute)[rows], nan=-1.0)
        if not self.backwards:
            return np.lexsort((tie, -table.calls[rows], -values))
        values[values < 0] = np.inf  # what is not known stays below
        return np.lexsort((tie, values))


def _ranks(names: list[tuple[str, str]]) -> NDArray[np.int64]:
    order = sorted(range(len(names)), key=names.__getitem__)
    ranks = np.empty(len(names), np.int64)
    ranks[order] = np.arange(len(names))
    return ranks
