# SPDX-License-Identifier: Apache-2.0
"""`textpoke export FILE`: a capture in the format of another tool."""

from __future__ import annotations

import contextlib
import os
import sys
import tempfile
from typing import TYPE_CHECKING

from textpoke._errors import CaptureWrite, OutputExists
from textpoke.cli import _parser
from textpoke.cli._console import Console, escape
from textpoke.cli._progress import of_calls
from textpoke.export.formats import FORMATS, Format, by_suffix

if TYPE_CHECKING:
    import argparse
    from collections.abc import Iterator
    from typing import BinaryIO

    from textpoke.capture import Capture
    from textpoke.report.counts import Counts

_DEFAULT = "flamegraph"
_LARGE = 1 << 26  # bytes that may take a second to read
_STDOUT = "-"


def add_arguments(parser: _parser.VerbParser) -> None:
    """Add this verb's arguments."""
    parser.add_argument("file", metavar="FILE", help="a capture, as written by textpoke record")
    parser.add_argument(
        "-f",
        "--format",
        choices=tuple(FORMATS),
        metavar="FORMAT",
        help=f"what to write (default: by the name of OUT, else {_DEFAULT})",
    )
    parser.add_argument(
        "-o",
        "--output",
        metavar="OUT",
        help="file to write, - for standard output (default: FILE with another suffix)",
    )
    parser.add_argument("--force", action="store_true", help="overwrite an existing file")
    parser.add_argument(
        "--diff",
        metavar="OTHER",
        help="flamegraph: colour what has grown since this capture, and what has shrunk",
    )
    _parser.examples(
        parser,
        "textpoke export graph.tptrace",
        "textpoke export graph.tptrace --diff before.tptrace -o slower.html",
        "textpoke export graph.tptrace -f perfetto",
        "textpoke export graph.tptrace -o calls.parquet",
        "textpoke export graph.tptrace -f folded -o - | flamegraph.pl > flame.svg",
    )
    width = max(map(len, FORMATS))
    rows = [f"  {f.name:<{width}}  {f.what} ({f.suffix})" for f in FORMATS.values()]
    parser.epilog = "\n".join(["formats:", *rows, "", parser.epilog or ""])


def run(args: argparse.Namespace) -> int:
    """Write the file; the exit code is 0 for captures that were cut off, too."""
    from textpoke.capture import Capture
    from textpoke.report.counts import count

    chosen = _format(args)
    output = args.output or os.path.splitext(args.file)[0] + chosen.suffix
    console = Console.from_args(args)
    _check(args, chosen, output)
    with contextlib.ExitStack() as stack:
        capture = stack.enter_context(Capture(args.file))
        other = stack.enter_context(Capture(args.diff)) if args.diff else None
        counts = count(capture)
        _write(capture, other, chosen, output, console)
        _tell(capture, counts, console)
        if other:
            _tell(other, count(other), console)
    if output != _STDOUT and os.path.isfile(output):
        console.say(f"{os.path.getsize(output):,} bytes in {escape(output)}")
        console.say(chosen.next_step.format(escape(output)))
    return 0


def _format(args: argparse.Namespace) -> Format:
    if args.format:
        return FORMATS[args.format]
    if not args.output or args.output == _STDOUT:
        return FORMATS[_DEFAULT]
    found = by_suffix(args.output)
    if found is None:
        raise _parser.UsageError(
            f"no format is known by the name of {args.output}: say -f {'|'.join(FORMATS)}"
        )
    return found


def _check(args: argparse.Namespace, chosen: Format, output: str) -> None:
    if args.diff and chosen.name != "flamegraph":
        raise _parser.UsageError(f"--diff is for -f flamegraph, not for {chosen.name}")
    if output == _STDOUT:
        if not chosen.is_text and sys.stdout.isatty():
            raise _parser.UsageError(f"{chosen.name} is not for a terminal: give a file with -o")
    elif os.path.exists(output):
        if any(os.path.samefile(output, path) for path in (args.file, args.diff) if path):
            raise _parser.UsageError(f"{output} is the capture itself: give another name with -o")
        if os.path.isfile(output) and not args.force:
            raise OutputExists(output)


def _write(
    capture: Capture, other: Capture | None, chosen: Format, output: str, console: Console
) -> None:
    from textpoke.export import flamegraph
    from textpoke.export.source import Source

    progress = of_calls(console)
    if os.path.getsize(capture.path) > _LARGE:
        console.live(f"reading {escape(capture.path)}")
    source = Source(capture, progress)
    with _opened(output) as file:
        if other:
            flamegraph.write_difference(source, Source(other, progress), file)
        else:
            chosen.write(source, file)
    console.end_live()


@contextlib.contextmanager
def _opened(output: str) -> Iterator[BinaryIO]:
    if output == _STDOUT:
        yield sys.stdout.buffer
        return
    is_special = os.path.exists(output) and not os.path.isfile(output)
    try:  # a pipe, a device: never replaced
        with open(output, "wb") if is_special else _replaced(output) as file:
            yield file
    except OSError as exc:
        raise CaptureWrite(output, exc.errno or 0) from exc


@contextlib.contextmanager
def _replaced(output: str) -> Iterator[BinaryIO]:
    # A file of its own until it is whole: nobody finds half of one, and none stays of a failure.
    directory, name = os.path.split(output)
    fd, path = tempfile.mkstemp(prefix=f".{name}.", dir=directory or ".")
    try:
        with open(fd, "wb", buffering=1 << 20) as file:
            yield file
        os.replace(path, output)
    finally:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(path)


def _tell(capture: Capture, counts: Counts, console: Console) -> None:
    from textpoke.calls import times_without_exits
    from textpoke.report.summary import notes, summary

    facts = summary(capture, counts)[0]
    console.say(facts)
    for line in notes(capture, counts):
        console.warn(line)
    if times_without_exits(capture):
        console.warn("calls of the time when the tracer was function are left out: no exits")
