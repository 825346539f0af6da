# SPDX-License-Identifier: Apache-2.0
"""`textpoke instances`: recordings beside a running one, each with its own filter and capture."""

from __future__ import annotations

import contextlib
import os
from typing import TYPE_CHECKING

from textpoke.cli import _control, _parser
from textpoke.cli._console import Console, escape

if TYPE_CHECKING:
    import argparse


def add_arguments(parser: _parser.VerbParser) -> None:
    """Declare the verb's arguments."""
    _control.add_running(
        parser, "-p PID [--create NAME [PATTERN ...] | --remove NAME] [OPTIONS]", instance=False
    )
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--create", metavar="NAME", help="begin another recording of the process")
    what.add_argument("--remove", metavar="NAME", help="end one; its capture is complete then")
    parser.add_argument(
        "trace", nargs="*", metavar="PATTERN", help="what it traces, as for textpoke filter"
    )
    parser.add_argument(
        "-x",
        "--notrace",
        action="append",
        default=[],
        metavar="PATTERN",
        help="what it does not trace; wins",
    )
    parser.add_argument(
        "-t", "--tracer", metavar="TRACER", help="see textpoke tracers (default: function)"
    )
    _parser.add_output(parser, "NAME-PID.tptrace")
    _parser.add_json(parser)
    _parser.examples(
        parser,
        "textpoke instances -p 1234",
        "textpoke instances -p 1234 --create locks -t irqsoff",
        "textpoke instances -p 1234 --create mem 'libc!*alloc' -o mem.tptrace",
        "textpoke instances -p 1234 --remove mem",
    )


def run(args: argparse.Namespace) -> int:
    """Run the verb; returns the exit code."""
    console = Console.from_args(args)
    if args.create is None and (args.trace or args.notrace or args.tracer or args.output):
        raise _parser.UsageError(
            "patterns, -x, -t and -o need --create NAME (see: textpoke instances --help)"
        )
    if args.create is not None:
        return _create(args, console)
    if args.remove is not None:
        result = _control.ask(args, "instance", action="remove", name=args.remove)
        if args.json:
            console.json(result)
        else:
            console.say(escape(f"pid {args.pid}: {args.remove} has ended, {_taken(result)}"))
        return 0
    result = _control.ask(args, "instance", action="list")
    if args.json:
        console.json(result)
    else:
        _print(_control.rows_of(result, "instances"), console)
    return 0


def _create(args: argparse.Namespace, console: Console) -> int:
    from textpoke.capture import CaptureWriter
    from textpoke.report.names import file_name

    patterns = _control.expressions(args.trace)
    notrace = _control.expressions(args.notrace)
    output = args.output or f"{file_name(args.create)}-{args.pid}.tptrace"
    # The file is ours, made where we may write, and the tool that records gets its descriptor.
    with CaptureWriter(output, force=args.force) as writer:
        try:
            result = _control.ask(
                args,
                "instance",
                action="create",
                name=args.create,
                tracer=args.tracer or "function",
                patterns=patterns,
                notrace=notrace,
                fds=[writer.fd],
            )
        except BaseException:
            with contextlib.suppress(OSError):
                os.unlink(output)
            raise
    if args.json:
        console.json({**result, "output": output})
    else:
        chosen = _control.count(result, "chosen")
        console.say(escape(f"pid {args.pid}: {args.create} traces {chosen:,} functions"))
        console.say(
            escape(f"into {output}, until: textpoke instances -p {args.pid} --remove {args.create}")
        )
    return 0


def _print(rows: list[dict[str, object]], console: Console) -> None:
    from textpoke.report.layout import columns

    table = [
        [
            escape(str(row.get("name", "")) or "(first)"),
            escape(str(row.get("tracer", ""))),
            "on" if row.get("on") else "off",
            _taken(row).removesuffix(" events"),
            f"{_control.count(row, 'lost'):,}",
            escape(str(row.get("output", ""))),
        ]
        for row in rows
    ]
    titles = ["NAME", "TRACER", "STATE", "EVENTS", "LOST", "CAPTURE"]
    header, *lines = columns(titles, table, left=["NAME", "TRACER", "STATE", "CAPTURE"])
    console.out("\n".join([console.style(header, "dim"), *lines]))


def _taken(row: dict[str, object]) -> str:
    """What was recorded so far: with profile there are calls instead of events."""
    events, calls = _control.count(row, "events"), _control.count(row, "calls")
    if not calls:
        return f"{events:,} events"
    return f"{events:,} events, {calls:,} calls" if events else f"{calls:,} calls"
