# SPDX-License-Identifier: Apache-2.0
"""One function: its numbers, its histogram, who calls it and whom it calls, as lines; pure."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from textpoke.profile_rows import BUCKETS
from textpoke.top import cells

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from numpy.typing import NDArray

    from textpoke.top.model import Model
    from textpoke.top.stretch import Neighbours, Share

_PARTS = 4  # buckets of an octave
_MOST_SHARES = 12
_EIGHTHS = " ▏▎▍▌▋▊▉█"


def lines(
    model: Model, function: int, width: int, found: Neighbours | str | None = None
) -> list[str]:
    """Everything that is known.

    Args:
        model: Has the numbers.
        function: Index of the function.
        width: Characters of a line.
        found: Its neighbours; a text says why there are none; None: they come.
    """
    table, known = model.table, function < len(model.table.calls)
    rows = [cells.cut(str(model.functions[function]), width), ""]
    if known:
        rows.append(
            f"{int(table.calls[function]):,} calls since the start, "
            f"{cells.number(table.rate[function])}/s in the last interval"
        )
        rows.append(
            f"total {cells.share(table.total[function])}, self {cells.share(table.self[function])} "
            f"of a core; avg {cells.time(table.average[function])}, "
            f"p50 {cells.time(table.p50[function])}, p99 {cells.time(table.p99[function])}"
        )
    rows += ["", "How long calls took, since the start:", ""]
    rows += _histogram(model, model.histogram(function, of_all=True), width)
    rows.append("")
    if found is None:
        return [*rows, "Callers and callees: looking ..."]
    if isinstance(found, str):
        return [*rows, f"Callers and callees: {found}"]
    return [*rows, *_neighbours(found, width)]


def _histogram(model: Model, buckets: NDArray[np.uint32], width: int) -> Iterator[str]:
    """A line for each octave from the first to the last that has calls."""
    starts = [0, *range(1, BUCKETS, _PARTS)]
    counts = np.add.reduceat(buckets.astype(np.int64), starts)
    used = np.flatnonzero(counts)
    if not len(used):
        yield "  no call has a time yet"
        return
    total, most = int(counts.sum()), int(counts.max())
    bar_width = max(min(width - 34, 80), 10)
    for octave in range(int(used[0]), int(used[-1]) + 1):
        last = starts[octave + 1] - 1 if octave + 1 < len(starts) else BUCKETS - 1
        low, high = model.edges_ns(starts[octave])[0], model.edges_ns(last)[1]
        count = int(counts[octave])
        yield (
            f"{cells.time(low):>7} - {cells.time(high):<7}{cells.number(count):>6} "
            f"{count / total:>6.1%} {bar(count / most, bar_width)}"
        )


def bar(part: float, width: int) -> str:
    """A part of `width` characters as a bar, in eighths; something where there is anything."""
    eighths = max(round(part * width * 8), 1 if part > 0 else 0)
    full, rest = divmod(eighths, 8)
    return ("█" * full + _EIGHTHS[rest]).rstrip()


def _neighbours(found: Neighbours, width: int) -> Iterator[str]:
    lost = f", {found.lost:,} events lost" if found.lost else ""
    yield f"In a stretch of {found.seconds * 1e3:,.0f} ms: {found.calls:,} calls{lost}"
    for title, shares in (("Called by", found.callers), ("Calls", found.callees)):
        yield ""
        yield f"{title}:"
        yield from _shares(shares, width)


def _shares(shares: Sequence[Share], width: int) -> Iterator[str]:
    if not shares:
        yield "  nothing that is traced"
    for share in shares[:_MOST_SHARES]:
        # Calls that have not ended have no time.
        average = share.total_ns / share.calls if share.total_ns else float("nan")
        name = cells.cut(share.name, max(width - 28, 12))
        yield f"{share.calls:>10,}  {cells.time(average):>6} each  {name}"
    if len(shares) > _MOST_SHARES:
        yield f"  and {len(shares) - _MOST_SHARES} more"
