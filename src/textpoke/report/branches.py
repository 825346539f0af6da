# SPDX-License-Identifier: Apache-2.0
"""Branches by how often they were executed, as the kernel's branch profiler lists its own."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from textpoke._errors import CaptureFormat
from textpoke.model import BranchRow
from textpoke.report.layout import columns
from textpoke.report.names import escape

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

FORMAT_VERSION = 1
_HEADER = ("TAKEN", "NOT TAKEN", "%TAKEN", "FUNCTION", "WHERE")
_LEFT = ("FUNCTION", "WHERE")
_FIELDS = ("address", "module", "function", "offset", "file", "line", "taken", "not_taken")
_NUMBERS = ("address", "offset", "line", "taken", "not_taken")


def branch_table(
    rows: Iterable[BranchRow], *, limit: int | None = None, main: str = ""
) -> Iterator[str]:
    """One line for each branch that was executed, those that were most often first.

    Args:
        rows: What `BranchCounts.read` gives.
        limit: At most so many branches; None for all that were executed.
        main: Name of the program, whose functions stand without their module.
    """
    every = list(rows)
    executed = _executed(every)
    shown = executed[:limit]
    total = sum(row.total for row in executed)
    unit = "branch" if len(every) == 1 else "branches"
    yield f"{len(every)} {unit}, {len(executed)} executed, {total} times"
    if executed:
        yield ""
        yield from columns(_HEADER, [_cells(row, main) for row in shown], left=_LEFT)
    if len(shown) < len(executed):
        yield f"({len(executed) - len(shown)} more)"


def branch_records(rows: Iterable[BranchRow], *, limit: int | None = None) -> dict[str, object]:
    """The table's numbers for JSON; rows that were never executed come last.

    Args:
        rows: What `BranchCounts.read` gives.
        limit: At most so many branches; None for all, the ones that were not executed too.
    """
    every = sorted(rows, key=_order)
    return {
        "version": FORMAT_VERSION,
        "branches": len(every),
        "executed": sum(row.total > 0 for row in every),
        "total": sum(row.total for row in every),
        "rows": [{name: getattr(row, name) for name in _FIELDS} for row in every[:limit]],
    }


def rows_of(text: str | bytes, path: str = "") -> list[BranchRow]:
    """The rows of a table that was written as JSON.

    Args:
        text: JSON, as `branch_records` describes it.
        path: Used in messages.

    Raises:
        CaptureFormat: It is something else.
    """
    try:
        plain = json.loads(text)
        if plain["version"] != FORMAT_VERSION:
            raise CaptureFormat(path, 0, f"a table of branches in version {plain['version']!r}")
        return [_row(row) for row in plain["rows"]]
    except (ValueError, KeyError, TypeError, RecursionError) as exc:
        raise CaptureFormat(path, 0, f"no table of branches: {exc}") from exc


def _row(plain: dict[str, object]) -> BranchRow:
    values = [plain[name] for name in _FIELDS]
    for name, value in zip(_FIELDS, values, strict=True):
        if type(value) is not (int if name in _NUMBERS else str):
            raise ValueError(f"{name} is {value!r}")
    return BranchRow(*values)  # type: ignore[arg-type]  # just looked at


def _order(row: BranchRow) -> tuple[int, int]:
    return -row.total, row.address


def _executed(rows: Sequence[BranchRow]) -> list[BranchRow]:
    return sorted((row for row in rows if row.total), key=_order)


def _cells(row: BranchRow, main: str) -> tuple[str, ...]:
    name = row.function if row.module == main else f"{row.function} [{row.module}]"
    if row.file and row.line:
        where = f"{row.file.rpartition('/')[2]}:{row.line}"
    else:
        where = f"{row.function}+{row.offset:#x}"
    share = f"{100 * row.taken / row.total:.1f}"
    return str(row.taken), str(row.not_taken), share, escape(name), escape(where)
