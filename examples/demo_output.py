# SPDX-License-Identifier: Apache-2.0
"""What the demo prints: steps as they happen, the hottest functions, figures, the proof."""

from __future__ import annotations

import contextlib
import statistics
from typing import TYPE_CHECKING

from rich.console import Console
from rich.text import Text

import textpoke
from textpoke.report.counts import count
from textpoke.report.layout import columns

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from textpoke import Outcome

HOTTEST = 10


class Story:
    """The demo on a terminal: a line per step, with a spinner while it lasts."""

    def __init__(self) -> None:
        self.console = Console(highlight=False, soft_wrap=True)
        self._number = 0

    @contextlib.contextmanager
    def step(self, title: str) -> Iterator[list[str]]:
        """Run one step; what its body appends to the list is said behind and below the title."""
        self._number += 1
        said: list[str] = []
        with contextlib.ExitStack() as stack:
            if self.console.is_terminal:
                stack.enter_context(self.console.status(f"{title} ...", spinner_style="cyan"))
            yield said
        first, *rest = said
        number = Text(f"{self._number:>2}  ", style="bold cyan")
        self.console.print(number, Text(f"{title}: "), Text(first, style="bold"), sep="")
        for line in rest:
            self.console.print(Text(f"    {line}", style="dim"))

    def title(self, text: str) -> None:
        """A heading."""
        self.console.print(Text(f"\n{text}\n", style="bold"))

    def hottest(self, capture: Path) -> None:
        """The functions of a capture that were called most, with a column per thread."""
        self.title(f"The {HOTTEST} hottest functions")
        with textpoke.Capture(capture) as opened:
            counts = count(opened)
            threads = sorted(thread.tid for thread in counts.threads if thread.calls.total)
            per_thread = {thread.tid: thread.calls.by_site() for thread in counts.threads}
            names = [opened.threads.get(tid, str(tid)) for tid in threads]
            rows = [
                [
                    f"{calls:,}",
                    f"{calls / counts.calls:.1%}",
                    *(f"{per_thread[tid].get(site, 0):,}" for tid in threads),
                    opened.meta.sites[site].function.partition(".")[0],  # gcc's .constprop.0
                ]
                for site, calls, _, _ in counts.everyone.rows(HOTTEST)
            ]
        self._columns(["CALLS", "SHARE", *names, "FUNCTION"], rows, left=["FUNCTION"])

    def figures(self, rows: Sequence[Sequence[str]]) -> None:
        """Measured figures: a name, a figure, a remark in each row."""
        self.title("What it cost")
        self._columns(["WHAT", "", " "], rows, left=["WHAT"])

    def _columns(
        self, header: Sequence[str], rows: Sequence[Sequence[str]], left: Sequence[str]
    ) -> None:
        first, *rest = columns(header, rows, left=left)
        if first != header[0]:
            self.console.print(Text(f"    {first}", style="dim"))
        for line in rest:
            self.console.print(Text(f"    {line}"))

    def proof(self, checks: Sequence[tuple[bool, str]]) -> bool:
        """The checks after the detach, one line each; returns whether all hold."""
        self.title("The proof")
        for holds, text in checks:
            mark = Text("ok  ", "bold green") if holds else Text("NO  ", "bold red")
            self.console.print("    ", mark, Text(text), sep="")
        return all(holds for holds, _ in checks)


def in_words(outcome: Outcome) -> str:
    """What one batch did."""
    return (
        f"in {us(outcome.total_ns)} us: {outcome.syncs} syncs, "
        f"{outcome.writes:,} writes on {outcome.pages:,} pages, {outcome.traps:,} traps"
    )


def toggle_time(name: str, outcomes: Sequence[Outcome]) -> tuple[str, str, str]:
    """A row of `figures`: the median time of batches, as a whole and per site."""
    batch_ns = statistics.median(outcome.total_ns for outcome in outcomes)
    site_ns = statistics.median(outcome.ns_per_site for outcome in outcomes)
    return name, f"{us(batch_ns)} us a batch", f"{site_ns:,.0f} ns a site"


def us(ns: float) -> str:
    """Nanoseconds as whole microseconds."""
    return f"{ns / 1e3:,.0f}"
