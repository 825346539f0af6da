# SPDX-License-Identifier: Apache-2.0
"""`textpoke report FILE`: what a capture holds."""

from __future__ import annotations

from typing import TYPE_CHECKING

from textpoke.cli import _parser
from textpoke.cli._console import Console

if TYPE_CHECKING:
    import argparse

    from textpoke.capture import Capture


def add_arguments(parser: _parser.VerbParser) -> None:
    """Add this verb's arguments."""
    parser.add_argument("file", metavar="FILE", help="a capture, as written by textpoke record")
    form = parser.add_mutually_exclusive_group()
    form.add_argument(
        "--text", action="store_true", help="print every event, as ftrace's trace file does"
    )
    _parser.add_json(form)
    parser.add_argument(
        "--by",
        choices=("function", "thread"),
        default="function",
        help="rows of the table: per function, or per thread and function (default: function)",
    )
    parser.add_argument(
        "-n",
        "--limit",
        type=_parser.positive,
        metavar="N",
        help="the N most called functions only (per thread with --by thread)",
    )
    _parser.examples(
        parser,
        "textpoke report redis-server-1234.tptrace",
        "textpoke report -n 10 --by thread redis-server-1234.tptrace",
        "textpoke report --text redis-server-1234.tptrace | less",
        "textpoke report --json redis-server-1234.tptrace | jq .functions[0]",
    )


def run(args: argparse.Namespace) -> int:
    """Print the report; the exit code is 0 for captures that were cut off, too."""
    from textpoke.capture import Capture

    console = Console.from_args(args)
    with Capture(args.file) as capture:
        if args.text:
            _print_text(capture, console)
        else:
            _print_counts(capture, console, args)
    return 0


def _print_text(capture: Capture, console: Console) -> None:
    from textpoke.report.text import text

    for lines in text(capture):
        console.raw(lines)


def _print_counts(capture: Capture, console: Console, args: argparse.Namespace) -> None:
    from textpoke.report.counts import count
    from textpoke.report.records import records
    from textpoke.report.summary import summary
    from textpoke.report.table import table

    counts = count(capture)
    if args.json:
        console.json(records(capture, counts, limit=args.limit))
        return
    facts, *notes = summary(capture, counts)
    console.out(console.style(facts, "bold"))
    for note in notes:
        console.out(console.style(note, "yellow"))
    header, *rows = table(capture, counts, by=args.by, limit=args.limit)
    console.out("\n".join(["", console.style(header, "dim"), *rows]))
