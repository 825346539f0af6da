# SPDX-License-Identifier: Apache-2.0
"""What is seen, as lines for scripts, dumb terminals, and for after the screen; and as JSON."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from textpoke.report.layout import columns
from textpoke.top import cells

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    import numpy as np
    from numpy.typing import NDArray

    from textpoke.top.model import Function, Model, Table
    from textpoke.top.source import Source

FORMAT_VERSION = 1


def title(source: Source) -> str:
    """Whom it is about, and what is traced."""
    refused = f", {source.refused:,} refused" if source.refused else ""
    off = f", {len(source.off):,} off" if source.off else ""
    return (
        f"{source.program} (pid {source.pid})  {source.patched:,} functions patched{refused}{off}"
    )


def facts(table: Table) -> str:
    """What the whole does, and what is missing."""
    overhead = cells.share(table.overhead)
    parts = [
        f"{cells.number(float(table.rate.sum()))} calls/s",
        f"CPU {cells.share(table.cores)} of a core, tracing about {overhead} of it",
        f"{table.lost:,} lost",
    ]
    if table.missed:
        parts.append(f"{table.missed:,} without a time")
    return "  ".join(parts)


def lines(table: Table, functions: Sequence[Function], rows: NDArray[np.int64]) -> Iterator[str]:
    """The table, a header first."""
    titles = ["CALLS/S", "TOTAL", "SELF", "AVG", "P50", "P99", "FUNCTION"]
    found = [
        [
            f"{table.rate[row]:,.0f}",
            *(cells.spent(table, column, row) for column in (table.total, table.self)),
            *(cells.time(column[row]) for column in (table.average, table.p50, table.p99)),
            str(functions[row]),
        ]
        for row in rows.tolist()
    ]
    return columns(titles, found, left=["FUNCTION"])


def record(source: Source, model: Model, rows: NDArray[np.int64]) -> dict[str, object]:
    """The same unrounded; times in nanoseconds, null where they are not known."""
    table = model.table
    return {
        "version": FORMAT_VERSION,
        "pid": source.pid,
        "program": source.program,
        "seconds": table.seconds,
        "functions_patched": source.patched,
        "functions_refused": source.refused,
        "cores": table.cores,
        "overhead": table.overhead,
        "lost": table.lost,
        "without_time": table.missed,
        "functions": [_function(table, model.functions[row], row) for row in rows.tolist()],
    }


def _function(table: Table, function: Function, row: int) -> dict[str, object]:
    return {
        "module": function.module,
        "function": function.name,
        "calls": int(table.calls[row]),
        "calls_per_s": float(table.rate[row]),
        "total_share": float(table.total[row]),
        "self_share": float(table.self[row]),
        "average_ns": _known(table.average[row]),
        "p50_ns": _known(table.p50[row]),
        "p99_ns": _known(table.p99[row]),
    }


def _known(ns: float) -> float | None:
    return None if math.isnan(ns) else float(ns)
