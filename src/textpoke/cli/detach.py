# SPDX-License-Identifier: Apache-2.0
"""`textpoke detach`: take everything out of a process again, and prove it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from textpoke.cli import _parser
from textpoke.cli._console import Console, escape

if TYPE_CHECKING:
    import argparse

    from textpoke.leave import DetachReport


def add_arguments(parser: _parser.VerbParser) -> None:
    """Declare the verb's arguments."""
    _parser.add_target(parser, command=False)
    _parser.add_json(parser)
    _parser.examples(parser, "textpoke detach -p 1234", "textpoke detach -p 1234 --json")


def run(args: argparse.Namespace) -> int:
    """Run the verb; returns 0 when nothing is left, 1 with a residue."""
    from textpoke.agent import open_existing
    from textpoke.leave import detach, detach_remains

    console = Console.from_args(args)
    agent = open_existing(args.pid)
    report = detach(agent) if agent is not None else detach_remains(args.pid)
    if args.json:
        console.json({"agent": agent is not None, **report.as_dict()})
    elif agent is None and not report.text.pages:
        console.out(f"pid {args.pid}: no textpoke agent, nothing to undo")
    else:
        for line in lines(report, args.pid):
            console.out(escape(line))
    return 0 if report.clean else 1


def lines(report: DetachReport, pid: int) -> list[str]:
    """The report as a person reads it."""
    text = report.text
    put_back = report.outcome.finished if report.outcome else 0
    found = [f"pid {pid}: {put_back:,} sites put back, {report.sites:,} were ever patched"]
    if report.left_alone:
        found.append(f"{report.left_alone:,} sites left alone: somebody else has changed them")
    found.append(f"text: {text.equal:,} of {text.pages:,} pages equal to their files")
    if report.foreign:
        found.append(f"{len(report.foreign)} pages differ, but not where textpoke ever wrote")
    found += [f"not compared: {line}" for line in text.skipped]
    if report.unmapped:
        found.append(
            f"agent, handler and {report.unmapped} mappings removed; "
            f"all threads stopped for {report.hold_ms:.1f} ms for the last look"
        )
    found += [f"left behind: {line}" for line in report.residue]
    found.append("nothing is left" if report.clean else f"textpoke status -p {pid}")
    return found
