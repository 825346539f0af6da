# SPDX-License-Identifier: Apache-2.0
"""`textpoke top`: watch the functions of a process, live; `--once` prints one table and ends."""

from __future__ import annotations

import os
import signal
import sys
import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING

from textpoke._errors import TextpokeError
from textpoke.cli import _parser
from textpoke.cli._console import Console, escape
from textpoke.optional import needed

if TYPE_CHECKING:
    import argparse
    from collections.abc import Iterator

    from textpoke.top.model import Model
    from textpoke.top.source import LiveSource
    from textpoke.top.view import View

_SORTS = ("calls", "total", "self", "avg", "p50", "p99", "function", "module")
_SHORTEST_NS = 100_000_000
_LEFT_STANDING = 20
"""Rows of the last screen that stay in the terminal when the target has ended."""


def add_arguments(parser: _parser.VerbParser) -> None:
    """Declare the verb's arguments."""
    _parser.add_target(parser, command=False)
    _parser.add_filters(parser)
    _parser.add_everything(parser)
    parser.add_argument(
        "--mode",
        choices=("auto", "int3", "direct", "stop"),
        default="auto",
        help="how code is written, as for record (default: auto)",
    )
    parser.add_argument(
        "--interval",
        dest="interval_ns",
        type=_interval_ns,
        default=1_000_000_000,
        metavar="TIME",
        help="between two looks, as in 500ms, 2s; 100ms at least (default: 1s)",
    )
    parser.add_argument(
        "--sort", choices=_SORTS, default="total", help="column to begin with (default: total)"
    )
    once = parser.add_argument_group("without a screen")
    once.add_argument(
        "--once", action="store_true", help="print one table after one interval, and end"
    )
    once.add_argument(
        "--limit", type=_parser.positive, metavar="N", help="at most so many functions"
    )
    _parser.add_json(once)
    _parser.examples(
        parser,
        "textpoke top -p 1234                              the program's functions",
        "textpoke top -p 1234 -i 'nginx!*' -i 'libc!mem*'  some of them",
        "textpoke top -p 1234 --once --limit 10            a table, for scripts",
        "textpoke top -p 1234 --once --json --interval 5s",
    )


def _interval_ns(text: str) -> int:
    import argparse

    found = _parser.duration_ns(text)
    if found < _SHORTEST_NS:
        raise argparse.ArgumentTypeError(f"{text!r} is too short: 100ms at least")
    return found


def run(args: argparse.Namespace) -> int:
    """Run the verb; returns the exit code."""
    if args.once:
        return _run(args, live=False)
    if args.json or args.limit:
        raise _parser.UsageError("--json and --limit go with --once (see: textpoke top --help)")
    if not (sys.stdin.isatty() and sys.stdout.isatty()) or os.environ.get("TERM") == "dumb":
        raise _parser.UsageError("the screen needs a terminal: add --once for a table")
    if args.color == "never":
        os.environ["NO_COLOR"] = "1"
    _require_textual()
    return _run(args, live=True)


def _require_textual() -> None:
    """Before anything is patched. Raises MissingLibrary."""
    needed("textual", "top")


def _run(args: argparse.Namespace, *, live: bool) -> int:
    from textpoke import tracer
    from textpoke.top.model import Model
    from textpoke.top.source import Choice, LiveSource
    from textpoke.top.view import View

    console, view = Console.from_args(args), View(sort=args.sort)
    choice = Choice(args.include, args.exclude, args.everything, args.traps, args.mode)
    with _signals_end() as stop:
        target = tracer.attach(args.pid)
        try:
            source = LiveSource(target, choice)
            model = Model(source.ns_per_tick, args.interval_ns / 1e9)
            with source:
                show = _screen if live else _once
                ended = show(args, console, (source, model, view), stop)
        except BaseException:
            target.discard()
            raise
        finally:
            report = target.detach()
    if live:
        _say_end(console, source, model, view, ended=ended)
    for line in report.residue:
        console.warn(escape(f"left in the target: {line}"))
    return 0


@contextmanager
def _signals_end() -> Iterator[threading.Event]:
    """Ctrl-C, SIGTERM and a terminal that goes away set the event: everything is undone."""
    stop = threading.Event()
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    old = {number: signal.signal(number, lambda *_: stop.set()) for number in numbers}
    try:
        yield stop
    finally:
        for number, handler in old.items():
            signal.signal(number, handler)


def _once(
    args: argparse.Namespace,
    console: Console,
    seen: tuple[LiveSource, Model, View],
    stop: threading.Event,
) -> bool:
    """Print one table; returns False."""
    import time

    from textpoke.top import plain

    source, model, view = seen
    model.step(source.sample(), source.functions)
    deadline = time.monotonic() + args.interval_ns / 1e9
    while not stop.is_set() and (left_s := deadline - time.monotonic()) > 0:
        source.wait(min(left_s, 0.1))
    view.update(model.step(source.sample(), source.functions), model.functions)
    rows = view.rows[model.table.rate[view.rows] > 0][: args.limit]
    if args.json:
        console.json(plain.record(source, model, rows))
        return False
    console.out(console.style(plain.title(source), "bold"))
    console.out(plain.facts(model.table))
    console.out("")
    for line in plain.lines(model.table, model.functions, rows):
        console.out(line)
    return False


def _screen(
    _args: argparse.Namespace,
    _console: Console,
    seen: tuple[LiveSource, Model, View],
    stop: threading.Event,
) -> bool:
    """Show the screen until the user leaves it; returns whether the target has ended."""
    from textpoke.top.screen import GONE, TopApp

    source, model, view = seen
    app = TopApp(source, model, view, stop)
    app.run(mouse=False)  # so that text on the screen can be selected as anywhere else
    if app.failure is not None and not isinstance(app.failure, GONE):
        raise app.failure
    if app.return_code:
        raise TextpokeError("the screen failed, the lines above say where; please report them")
    return app.failure is not None


def _say_end(
    console: Console, source: LiveSource, model: Model, view: View, *, ended: bool
) -> None:
    from textpoke.top import plain

    if not ended:
        console.say(escape(f"{plain.title(source)}: all undone"))
        return
    console.say(escape(f"pid {source.pid} ({source.program}) has ended; its last seconds:"))
    for line in plain.lines(model.table, model.functions, view.rows[:_LEFT_STANDING]):
        console.out(line)
