# SPDX-License-Identifier: Apache-2.0
"""Plain columns of text; never cut to a terminal's width, so that names survive a pipe."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence


def columns(
    header: Sequence[str], rows: Sequence[Sequence[str]], *, left: Sequence[str] = ()
) -> Iterator[str]:
    """The header line, then a line per row, columns two blanks apart.

    Args:
        header: Titles.
        rows: Cells, as many as titles in each.
        left: Titles of the columns that are aligned left; numbers are aligned right. The last
            column is not padded.
    """
    widths = [max(map(len, cells)) for cells in zip(header, *rows, strict=True)]
    aligned = [title in left for title in header]
    for row in (header, *rows):
        cells = [
            cell.ljust(width) if is_left else cell.rjust(width)
            for cell, width, is_left in zip(row, widths, aligned, strict=True)
        ]
        yield "  ".join(cells).rstrip()


def time_text(ns: float, *, known: bool = True) -> str:
    """A time for a person, in the unit that suits it; a plain number when it is ticks.

    Args:
        ns: Nanoseconds, or ticks.
        known: Whether it is nanoseconds.
    """
    if not known:
        return f"{ns:,.0f}"
    for unit_ns, unit in ((1_000_000_000, "s"), (1_000_000, "ms")):
        if abs(ns) >= unit_ns:
            return f"{ns / unit_ns:,.3f} {unit}"
    return f"{ns / 1000:.3f} us"
