# SPDX-License-Identifier: Apache-2.0
"""`textpoke trigger`: let a running recording act when a function is called, or takes too long."""

from __future__ import annotations

from typing import TYPE_CHECKING

from textpoke.cli import _control, _parser
from textpoke.cli._console import Console, escape

if TYPE_CHECKING:
    import argparse


def add_arguments(parser: _parser.VerbParser) -> None:
    """Declare the verb's arguments."""
    _control.add_running(parser, "-p PID [LINE ...] [OPTIONS]")
    parser.add_argument(
        "lines",
        nargs="*",
        metavar="LINE",
        help="FUNCTION[>TIME]:COMMAND[:COUNT], COMMAND one of traceon, traceoff, snapshot, "
        "stacktrace, dump, keep=TIME; a leading ! removes, with :0 the one with a count",
    )
    parser.add_argument("--clear", action="store_true", help="remove all that are there first")
    _parser.add_json(parser)
    _parser.examples(
        parser,
        "textpoke trigger -p 1234                                   those that there are",
        "textpoke trigger -p 1234 'handle_request>5ms:keep=200ms'   what led to a slow call",
        "textpoke trigger -p 1234 'panic:traceoff:1'                stop at the first one",
        "textpoke trigger -p 1234 'begin:traceon' 'end:traceoff'    only what is between",
        "textpoke trigger -p 1234 '!panic:traceoff:0'",
    )


def run(args: argparse.Namespace) -> int:
    """Run the verb; returns the exit code."""
    from textpoke.triggers import parse_trigger

    console = Console.from_args(args)
    for line in args.lines:
        parse_trigger(line)  # complains before anybody is asked
    result = _control.ask(
        args,
        "trigger",
        instance=args.instance,
        lines=args.lines,
        clear=args.clear or None,
    )
    if args.json:
        console.json(result)
        return 0
    lines = _control.texts_of(result, "triggers")
    for line in lines:
        console.out(escape(line))
    if not lines:
        console.say(f"pid {args.pid}: no triggers")
    return 0
