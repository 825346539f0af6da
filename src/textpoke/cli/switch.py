# SPDX-License-Identifier: Apache-2.0
"""`textpoke switch`: let a running recording go over to another tracer, or pause and go on."""

from __future__ import annotations

from typing import TYPE_CHECKING

from textpoke.cli import _control, _parser
from textpoke.cli._console import Console, escape
from textpoke.tracer_names import NOP

if TYPE_CHECKING:
    import argparse


def add_arguments(parser: _parser.VerbParser) -> None:
    """Declare the verb's arguments."""
    _control.add_running(parser, "-p PID [TRACER | --on | --off] [OPTIONS]")
    parser.add_argument("tracer", nargs="?", metavar="TRACER", help="see textpoke tracers")
    parser.add_argument(
        "--off",
        dest="on",
        action="store_false",
        default=None,
        help="throw events away until --on; everything stays patched (ftrace's tracing_on)",
    )
    parser.add_argument(
        "--on", dest="on", action="store_true", default=None, help="record again, as after traceoff"
    )
    _parser.add_json(parser)
    _parser.examples(
        parser,
        "textpoke switch -p 1234 function_graph",
        "textpoke switch -p 1234 nop                 take everything back, stay attached",
        "textpoke switch -p 1234 --off               and later --on",
    )


def _switched(tracer: str, result: dict[str, object]) -> str:
    functions, sites = (_control.count(result, name) for name in ("functions", "sites"))
    ms, us = _control.count(result, "took_ns") / 1e6, _control.count(result, "total_ns") / 1e3
    how = f"one batch of {sites:,} sites took {us:,.0f} us" if sites else "no code had to change"
    what = "" if tracer == NOP else f"{functions:,} functions, "
    return f"{tracer}: {what}switched in {ms:,.1f} ms; {how}"


def run(args: argparse.Namespace) -> int:
    """Run the verb; returns the exit code."""
    if (args.tracer is None) == (args.on is None):
        raise _parser.UsageError(
            "one of TRACER, --on and --off is wanted (see: textpoke switch --help)"
        )
    console = Console.from_args(args)
    if args.tracer is None:
        result = _control.ask(args, "tracing", instance=args.instance, on=args.on)
        text = f"recording is {'on' if args.on else 'off'}"
    else:
        result = _control.ask(args, "switch", instance=args.instance, tracer=args.tracer)
        text = _switched(args.tracer, result)
    if args.json:
        console.json(result)
    else:
        console.say(escape(f"pid {args.pid}: {text}"))
        for line in _control.texts_of(result, "rests"):
            console.warn(escape(line))
    return 0
