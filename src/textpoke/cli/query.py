# SPDX-License-Identifier: Apache-2.0
"""`textpoke query FILE SQL`: ask a capture, or a Parquet file of calls, in SQL."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from textpoke.cli import _parser
from textpoke.cli._console import Console, escape
from textpoke.cli._progress import of_calls

if TYPE_CHECKING:
    import argparse

_SHOWN = 40


def add_arguments(parser: _parser.VerbParser) -> None:
    """Add this verb's arguments."""
    parser.add_argument(
        "file", metavar="FILE", help="a capture, or Parquet that textpoke has written"
    )
    parser.add_argument(
        "query",
        metavar="SQL|NAME",
        nargs="?",
        help="SQL over the table `calls`, or the name of a query; without it: list those",
    )
    parser.add_argument(
        "-n", "--limit", type=int, metavar="N", help="rows shown (default: 40; --json: all)"
    )
    _parser.add_json(parser)
    _parser.examples(
        parser,
        "textpoke query graph.tptrace hottest",
        "textpoke query graph.tptrace slowest -n 5",
        'textpoke query graph.tptrace "SELECT thread, COUNT(*) FROM calls GROUP BY thread"',
        'textpoke query cluster.parquet "SELECT worker, SUM(self_ns) FROM calls GROUP BY worker"',
    )


def run(args: argparse.Namespace) -> int:
    """Run the verb; returns the exit code."""
    from textpoke.queries import NAMED, CallsTable

    console = Console.from_args(args)
    if args.limit is not None and args.limit < 0:
        raise _parser.UsageError(f"-n {args.limit}: give a number of rows, 0 for all")
    if args.query is None:
        for name, query in NAMED.items():
            console.out(f"{name:10} {query.what}")
            console.say(f"           {query.sql}")
        return 0
    with CallsTable(args.file, of_calls(console)) as table:
        console.end_live()
        found = table.ask(args.query)
    shown = args.limit if args.limit is not None else 0 if args.json else _SHOWN
    rows = found.rows[: shown or None]
    if args.json:
        plain = (map(_plain, row) for row in rows)
        console.json([dict(zip(found.names, row, strict=True)) for row in plain])
        return 0
    for line in _lines(found.names, rows):
        console.out(line)
    if len(rows) < len(found.rows):
        console.say(f"{len(found.rows) - len(rows):,} more rows: -n 0 shows all")
    return 0


def _lines(names: list[str], rows: list[tuple[object, ...]]) -> list[str]:
    from textpoke.report.layout import columns

    texts = [[_text(value) for value in row] for row in rows]
    left = [
        name
        for i, name in enumerate(names)
        if any(isinstance(row[i], str) for row in rows) or not rows
    ]
    return list(columns([escape(name) for name in names], texts, left=left))


def _plain(value: object) -> object:
    """As JSON has it: what is no number is null, other types are text."""
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value if value is None or isinstance(value, (bool, int, float)) else str(value)


def _text(value: object) -> str:
    if value is None:
        return "-"
    if isinstance(value, float):
        return f"{value:.3f}"
    return escape(str(value))
