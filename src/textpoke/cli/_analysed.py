# SPDX-License-Identifier: Apache-2.0
"""`textpoke report` of captures that are analysed: blk, wakeup_rt, irqsoff, profile, branch."""

from __future__ import annotations

from typing import TYPE_CHECKING

from textpoke.cli import _parser

if TYPE_CHECKING:
    import argparse
    from collections.abc import Iterable, Iterator

    from textpoke.capture import Capture
    from textpoke.cli._console import Console

_LATENCY = ("wakeup_rt", "irqsoff")
_TABLES = ("profile", "branch")


def is_analysed(capture: Capture, args: argparse.Namespace) -> bool:
    """Whether the capture has a report of its own for what is asked; else it is shown as calls.

    Raises:
        UsageError: The table has no such rows.
    """
    tracer = capture.meta.tracer
    if tracer != "blk" and args.by in ("file", "caller"):
        raise _parser.UsageError(f"--by {args.by} is for captures of blk, this is one of {tracer}")
    if args.by in _TABLES:
        return True
    if tracer in _TABLES:
        if _events(capture):  # it was switched over to another tracer
            return not (args.tree or args.text or args.by)
        if args.tree or args.text or args.by:
            raise _parser.UsageError(
                f"a capture of {tracer} is a table: it has no events (see: report --help)"
            )
        return True
    if args.tree:
        return False
    return tracer == "blk" or (tracer in _LATENCY and not args.text)


def _events(capture: Capture) -> int:
    return sum(block.events for block in capture.events)


def other_tables(capture: Capture) -> Iterator[str]:
    """Lines about what a recording has brought besides: it was switched from tracer to tracer."""
    own, count = capture.meta.tracer, _events(capture)
    if own in _TABLES and count:
        yield f"and {count:,} events of other tracers: textpoke report --by function"
    for table in _TABLES:
        if table != own and capture.end is not None and capture.end.raw.get(table):
            yield f"and what the {table} tracer has counted: textpoke report --by {table}"


def print_analysed(capture: Capture, console: Console, args: argparse.Namespace) -> None:
    """Print the report that `is_analysed` has promised."""
    from textpoke.report import blk, branched, latency, profiled

    table = args.by if args.by in _TABLES else capture.meta.tracer
    if table == "branch":
        if args.json:
            console.json(branched.records(capture, limit=args.limit))
        else:
            _print(console, branched.lines(capture, limit=args.limit), other_tables(capture))
    elif table == "profile":
        if args.json:
            console.json(profiled.records(capture, sort=args.sort, limit=args.limit))
        else:
            rows = profiled.lines(capture, sort=args.sort, limit=args.limit)
            _print(console, rows, other_tables(capture))
    elif args.json:
        of = blk.records if capture.meta.tracer == "blk" else latency.records
        console.json(of(capture, limit=args.limit))
    elif capture.meta.tracer != "blk":
        if args.by:
            raise _parser.UsageError(f"--by is not for captures of {capture.meta.tracer}")
        _print(console, latency.lines(capture, limit=args.limit))
    elif args.text:
        for lines in blk.text(capture):
            console.raw(lines)
    else:
        _print(console, blk.lines(capture, by=args.by or "file", limit=args.limit))


def _print(console: Console, lines: Iterator[str], notes: Iterable[str] = ()) -> None:
    console.out(console.style(next(lines), "bold"))
    for line in lines:
        console.out(line)
    for note in notes:
        console.out(console.style(note, "yellow"))
