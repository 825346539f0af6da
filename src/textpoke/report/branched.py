# SPDX-License-Identifier: Apache-2.0
"""What the branch tracer has counted, from the end of a capture: a table, or JSON."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from textpoke._capture_json import JsonBlock
from textpoke.model import BranchRow
from textpoke.report.branches import branch_records, branch_table
from textpoke.report.names import escape, program_name
from textpoke.report.summary import table_notes

if TYPE_CHECKING:
    from collections.abc import Iterator

    from textpoke.capture import Capture


def lines(capture: Capture, *, limit: int | None = None) -> Iterator[str]:
    """The lines of the table, facts first. Raises CaptureFormat."""
    rows = _rows(capture)
    meta = capture.meta
    first, *body = branch_table(rows, limit=limit, main=meta.program)
    yield f"{program_name(capture)} (pid {meta.pid}), tracer branch: {first}"
    yield from table_notes(capture)
    missing = _not_counted(capture)
    if missing:
        yield f"not counted: {sum(missing.values()):,}, most of them because {_most(missing)}"
    yield from body


def records(capture: Capture, *, limit: int | None = None) -> dict[str, object]:
    """Everything that the table shows, and what was not executed. Raises CaptureFormat."""
    return {
        "capture": capture.path,
        "pid": capture.meta.pid,
        "exe": capture.meta.exe,
        "tracer": "branch",
        "not_counted": _not_counted(capture),
        **branch_records(_rows(capture), limit=limit),
    }


def _most(missing: dict[str, int]) -> str:
    return escape(max(missing, key=lambda reason: missing[reason]))


def _table(capture: Capture) -> dict[str, Any]:
    table = capture.end.raw.get("branch") if capture.end else None
    return table if isinstance(table, dict) else {}


def _not_counted(capture: Capture) -> dict[str, int]:
    found = _table(capture).get("not_counted")
    plain = found.items() if isinstance(found, dict) else ()
    return {reason: count for reason, count in plain if type(count) is int and count > 0}


def _rows(capture: Capture) -> list[BranchRow]:
    bad = JsonBlock(capture.path, 0, b"{}").bad
    table = _table(capture)
    try:
        functions = [_words(names, 2) for names in table.get("functions", [])]
        files = _words(table.get("files", []))
        return [_row(row, functions, files) for row in table.get("rows", [])]
    except (TypeError, ValueError, IndexError) as exc:
        raise bad(f"a row of the branches: {exc}") from None


def _words(found: object, count: int | None = None) -> list[str]:
    if not isinstance(found, list) or not all(type(word) is str for word in found):
        raise TypeError("names that are none")
    if count is not None and len(found) != count:
        raise ValueError("a function has a module and a name")
    return found


def _row(row: object, functions: list[list[str]], files: list[str]) -> BranchRow:
    if not isinstance(row, list) or not all(type(n) is int and 0 <= n < 1 << 64 for n in row):
        raise TypeError("a row is whole numbers")
    address, function, offset, file, line, taken, not_taken = row
    module, name = functions[function]
    return BranchRow(address, module, name, offset, files[file], line, taken, not_taken)
