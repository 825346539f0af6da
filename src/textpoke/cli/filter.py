# SPDX-License-Identifier: Apache-2.0
"""`textpoke filter`: read or change what a running recording traces, as one batch."""

from __future__ import annotations

from typing import TYPE_CHECKING

from textpoke.cli import _control, _parser
from textpoke.cli._console import Console, escape

if TYPE_CHECKING:
    import argparse

_LISTS = {
    "trace": "functions to trace",
    "notrace": "functions not to trace; wins",
    "thread": "threads to trace, by id or by a glob of their names",
    "notrace_thread": "threads not to trace; wins",
}


def add_arguments(parser: _parser.VerbParser) -> None:
    """Declare the verb's arguments."""
    _control.add_running(parser, "-p PID [PATTERN ...] [OPTIONS]")
    parser.add_argument(
        "trace",
        nargs="*",
        metavar="PATTERN",
        help=f"{_LISTS['trace']}: GLOB, 'MODULE!GLOB', 'GLOB:mod:MODULE', 'GLOB:file:SOURCE', a "
        "number of --available, @FILE; a leading ! takes away. In place of what was there",
    )
    for option, name in (
        ("--notrace", "notrace"),
        ("--thread", "thread"),
        ("--no-thread", "notrace_thread"),
    ):
        parser.add_argument(
            *(["-x", option] if name == "notrace" else [option]),
            dest=name,
            action="append",
            metavar="PATTERN",
            help=f"{_LISTS[name]}; may be repeated",
        )
    parser.add_argument(
        "-a", "--append", action="store_true", help="add to what is there (>> in a shell)"
    )
    parser.add_argument(
        "--clear", action="store_true", help="begin with nothing: all functions and all threads"
    )
    follow = parser.add_mutually_exclusive_group()
    follow.add_argument(
        "--follow",
        action="store_true",
        default=None,
        help="trace threads that begin from now on too, whatever --thread says",
    )
    follow.add_argument("--no-follow", dest="follow", action="store_false", help="do not")
    parser.add_argument(
        "--sample", type=_parser.positive, metavar="N", help="record one of N calls; 1 for all"
    )
    parser.add_argument(
        "-l", "--list", action="store_true", help="the functions that are chosen, as ftrace does"
    )
    parser.add_argument(
        "--available", action="store_true", help="what there is to choose from, with line numbers"
    )
    _parser.add_json(parser)
    _parser.examples(
        parser,
        "textpoke filter -p 1234                           what the filter is",
        "textpoke filter -p 1234 '*Command' 'libc!mem*'    these, as one batch",
        "textpoke filter -p 1234 -a '!get*'                all of that but get*",
        "textpoke filter -p 1234 -a '*:file:networking.c'",
        "textpoke filter -p 1234 -x '*alloc*' --thread 'io_thd_*' --follow",
        "textpoke filter -p 1234 --sample 100",
        "textpoke filter -p 1234 --clear @hot.txt",
    )


def run(args: argparse.Namespace) -> int:
    """Run the verb; returns the exit code."""
    console = Console.from_args(args)
    if args.available:
        return _print_available(args, console)
    sample = 1 if args.clear and args.sample is None else args.sample
    follow = False if args.clear and args.follow is None else args.follow
    result = _control.ask(
        args,
        "filter",
        instance=args.instance,
        changes=_changes(args),
        follow=follow,
        sample=sample,
        list=args.list or None,
    )
    if args.json:
        console.json(result)
        return 0
    if "chosen" in result:
        console.say(
            f"pid {args.pid}: {_control.count(result, 'chosen'):,} functions chosen, "
            f"{_control.count(result, 'on'):,} switched on, "
            f"{_control.count(result, 'off'):,} off"
        )
    if args.list:
        lines = _control.texts_of(result, "functions")
    else:
        lines = _control.texts_of(result, "lines") or ["everything"]
    for line in lines:
        console.out(escape(line))
    return 0


def _print_available(args: argparse.Namespace, console: Console) -> int:
    result = _control.ask(args, "available")
    if args.json:
        console.json(result)
        return 0
    functions = _control.texts_of(result, "functions")
    width = len(str(len(functions)))
    for number, function in enumerate(functions, start=1):
        console.out(f"{number:>{width}}  {escape(function)}")
    return 0


def _changes(args: argparse.Namespace) -> list[dict[str, object]]:
    changes: list[dict[str, object]] = []
    if args.clear:
        changes = [{"kind": kind, "action": "replace", "patterns": []} for kind in _LISTS]
    action = "append" if args.append else "replace"
    for kind in _LISTS:
        patterns = getattr(args, kind)
        if patterns:
            if "thread" not in kind:
                patterns = _control.expressions(patterns)
            changes.append({"kind": kind, "action": action, "patterns": patterns})
    return changes
