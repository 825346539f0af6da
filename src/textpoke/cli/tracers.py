# SPDX-License-Identifier: Apache-2.0
"""`textpoke tracers`: what there is to choose from with `record -t` and `switch`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from textpoke.cli import _control, _parser
from textpoke.cli._console import Console, escape

if TYPE_CHECKING:
    import argparse


def add_arguments(parser: _parser.VerbParser) -> None:
    """Declare the verb's arguments."""
    _control.add_running(parser, "[-p PID] [OPTIONS]", instance=False, required=False)
    _parser.add_json(parser)
    _parser.examples(
        parser,
        "textpoke tracers -p 1234      those that the recording of 1234 can switch to",
        "textpoke tracers --json       all of them",
    )


def run(args: argparse.Namespace) -> int:
    """Run the verb; returns the exit code."""
    from textpoke.tracer_names import TRACERS

    console = Console.from_args(args)
    found: dict[str, object] = dict(TRACERS)
    if args.pid is not None:
        answered = _control.ask(args, "tracers").get("tracers")
        found = answered if isinstance(answered, dict) else {}
    if args.json:
        console.json({"tracers": found})
        return 0
    width = max(map(len, found), default=0)
    for name, text in found.items():
        console.out(escape(f"{name:<{width}}  {text}".rstrip()))
    return 0
