# SPDX-License-Identifier: Apache-2.0
"""`textpoke report --diff`: two captures compared."""

from __future__ import annotations

from typing import TYPE_CHECKING

from textpoke.cli import _parser

if TYPE_CHECKING:
    import argparse

    from textpoke.capture import Capture
    from textpoke.cli._console import Console
    from textpoke.report.difference import DiffSort
    from textpoke.report.measured import Measured


def print_diff(before: Capture, console: Console, args: argparse.Namespace) -> None:
    """Print what is different in `args.diff`."""
    from textpoke.capture import Capture
    from textpoke.report import diff
    from textpoke.report.difference import DIFF_SORTS, difference

    sort: DiffSort = args.sort or "total"
    if sort not in DIFF_SORTS:
        raise _parser.UsageError(f"--diff is sorted by one of {', '.join(DIFF_SORTS)}")
    with Capture(args.diff) as after:
        parts = [_part(before), _part(after)]
        found = difference(*(measured for measured, _ in parts))
        if args.sort not in (None, "calls") and not found.has_times:
            raise _parser.UsageError(f"--sort {sort} needs durations in both captures")
        if not found.has_times:
            sort = "calls"
        if args.json:
            heads = {
                name: {"capture": capture.path, "cut_off": capture.cut_off, **_facts(measured)}
                for name, capture, (measured, _) in zip(
                    ("before", "after"), (before, after), parts, strict=True
                )
            }
            console.json({**heads, **diff.diff_records(found, sort=sort, limit=args.limit)})
            return
    for name, (_, (facts, *notes)) in zip(("before", "after "), parts, strict=True):
        console.out(console.style(f"{name} {facts}", "bold"))
        for note in notes:
            console.out(console.style(f"       {note}", "yellow"))
    for note in diff.diff_notes(found):
        console.out(console.style(note, "yellow"))
    header, *rows = diff.diff_table(found, sort=sort, limit=args.limit)
    console.out("\n".join(["", console.style(header, "dim"), *rows]))


def _part(capture: Capture) -> tuple[Measured, list[str]]:
    # What is compared of a capture, and the lines that say what it is.
    from textpoke.report import profiled
    from textpoke.report.counts import count
    from textpoke.report.measured import measured
    from textpoke.report.summary import summary

    if capture.meta.tracer == "branch":
        raise _parser.UsageError(f"--diff compares calls, {capture.path} holds counts of branches")
    counts = count(capture)
    lines = summary(capture, counts)
    if capture.meta.tracer == "profile":
        lines[0] = next(profiled.lines(capture))
    return measured(capture, counts), lines


def _facts(found: Measured) -> dict[str, object]:
    return {"duration_ns": found.duration_ns, "time_known": found.time_known}
