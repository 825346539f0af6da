# SPDX-License-Identifier: Apache-2.0
"""The calls of libc's functions among all calls, with their recorded words as columns."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

import numpy as np

from textpoke.libc_calls import OTHER, is_inner

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Sequence

    from numpy.typing import NDArray

    from textpoke.calls import Calls
    from textpoke.libc_calls import Function

_Word = TypeVar("_Word", np.uint64, np.int64)
_NARROW = {"i32": np.int32, "u32": np.uint32}
UNFINISHED = -1
"""End of a call that never returned, or had not yet when the capture ended."""
OWNER_DEAD = 130
"""EOWNERDEAD: a robust mutex was acquired."""


@dataclass(frozen=True, slots=True)
class CallRows:
    """Some of the calls, a row each.

    Attributes:
        calls: All calls.
        row: int64, indexes into `calls`.
        function: int64, indexes into `functions`.
        functions: The functions that occur.
    """

    calls: Calls
    row: NDArray[np.int64]
    function: NDArray[np.int64]
    functions: tuple[Function, ...]

    def __len__(self) -> int:
        return len(self.row)

    @property
    def tid(self) -> NDArray[np.int64]:
        """int64, thread ids."""
        return self.calls.tid[self.row].astype(np.int64)

    @property
    def start_ns(self) -> NDArray[np.int64]:
        """int64, when they were entered."""
        return self.calls.start_ns[self.row]

    @property
    def end_ns(self) -> NDArray[np.int64]:
        """int64, when they returned; `UNFINISHED` for those that did not."""
        return self.calls.end_ns[self.row]

    @property
    def is_finished(self) -> NDArray[np.bool_]:
        """Which of them returned."""
        returned: NDArray[np.bool_] = self.end_ns != UNFINISHED
        return returned

    def which(self, test: Callable[[Function], bool]) -> NDArray[np.bool_]:
        """The rows whose function passes a test, as a mask."""
        passes = np.array([test(function) for function in self.functions], dtype=bool)
        return passes[self.function] if len(self) else np.zeros(0, dtype=bool)

    def of(self, family: str, roles: Collection[str]) -> CallRows:
        """Those of a family and of some roles."""
        return self.take(self.which(lambda f: f.family == family and f.role in roles))

    def take(self, mask: NDArray[np.bool_]) -> CallRows:
        """Those that a mask tells."""
        return CallRows(self.calls, self.row[mask], self.function[mask], self.functions)

    def addresses(self, name: str) -> NDArray[np.uint64]:
        """uint64, a word of the entry; 0 where it was not recorded."""
        found = np.zeros(len(self), dtype=np.uint64)
        self._fill(found, name, at_exit=False)
        return found

    def numbers(self, name: str, otherwise: int = 0) -> NDArray[np.int64]:
        """int64, a signed word of the entry; `otherwise` where it was not recorded."""
        found = np.full(len(self), otherwise, dtype=np.int64)
        self._fill(found, name, at_exit=False)
        return found

    def results(self, otherwise: int = UNFINISHED) -> NDArray[np.int64]:
        """int64, what the calls returned; `otherwise` for those that did not."""
        found = np.full(len(self), otherwise, dtype=np.int64)
        self._fill(found, "result", at_exit=True)
        return found

    @property
    def succeeded(self) -> NDArray[np.bool_]:
        """Which of them returned 0, or got a mutex whose last owner has died."""
        result = self.results()
        fine: NDArray[np.bool_] = self.is_finished & ((result == 0) | (result == OWNER_DEAD))
        return fine

    def texts(self, name: str) -> list[str | None]:
        """A string of each entry; None where it was not recorded or could not be read."""
        found: list[str | None] = [None] * len(self)
        for site, rows in self._by_site():
            place = self._place(site, name, at_exit=False)
            start = self.calls.entry_data[self.row[rows]]
            for row, first in zip(rows.tolist(), start.tolist(), strict=True):
                if place and first >= 0 and place[1].startswith("str:"):
                    at, kind = place
                    words = int(kind.removeprefix("str:"))
                    found[row] = _text(self.calls.words[first + at : first + at + words])
        return found

    def _fill(self, found: NDArray[_Word], name: str, *, at_exit: bool) -> None:
        data = self.calls.exit_data if at_exit else self.calls.entry_data
        for site, rows in self._by_site():
            place = self._place(site, name, at_exit=at_exit)
            if place is None:
                continue
            at, kind = place
            start = data[self.row[rows]]
            words = self.calls.words[start[start >= 0] + at]
            narrow = _NARROW.get(kind)
            signed = words.astype(narrow) if narrow else words
            found[rows[start >= 0]] = signed.astype(found.dtype)

    def _by_site(self) -> Iterable[tuple[int, NDArray[np.int64]]]:
        sites = self.calls.site[self.row]
        order = np.argsort(sites, kind="stable")
        distinct, first = np.unique(sites[order], return_index=True)
        return zip(distinct.tolist(), np.split(order, first[1:]), strict=False)

    def _place(self, site: int, name: str, *, at_exit: bool) -> tuple[int, str] | None:
        layout = self.calls.layouts.get(site)
        if layout is None:
            return None
        at = layout.exit_at(name) if at_exit else layout.entry_at(name)
        fields = layout.exit if at_exit else layout.entry
        if at is None:
            return None
        return at, next(field.kind for field in fields if field.name == name)


def rows_of(calls: Calls, functions: Sequence[Function]) -> CallRows:
    """The calls of known functions; those that are only a part of another one are left out.

    Args:
        calls: All calls.
        functions: The function of each site, `OTHER` for unknown ones.
    """
    distinct = tuple(dict.fromkeys([OTHER, *functions]))
    number = {function: index for index, function in enumerate(distinct)}
    of_site = np.array([*(number[f] for f in functions), 0], dtype=np.int64)  # -1 finds the last
    function = of_site[calls.site]
    keep = function > 0
    inner = np.array([[is_inner(o, i) for i in distinct] for o in distinct], dtype=bool)
    has_parent = keep & (calls.parent >= 0)
    children = np.flatnonzero(has_parent)
    outer = function[calls.parent[children]]
    keep[children[inner[outer, function[children]]]] = False
    row = np.flatnonzero(keep)
    return CallRows(calls, row, function[row], distinct)


def open_calls(calls: Calls, row: int) -> list[int]:
    """A call and all that were open around it in its thread, outermost first."""
    found = [row]
    while (row := int(calls.parent[row])) >= 0:
        found.append(row)
    return found[::-1]


def _text(words: NDArray[np.uint64]) -> str | None:
    text, nul, _ = words.astype("<u8").tobytes().partition(b"\0")
    decoded = text.decode("utf-8", "backslashreplace")
    if decoded == "<fault>":
        return None
    return decoded if nul else f"{decoded}..."
