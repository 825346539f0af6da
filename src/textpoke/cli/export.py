# SPDX-License-Identifier: Apache-2.0
"""`textpoke export FILE`: a capture in the format of another tool, or its spans to a collector."""

from __future__ import annotations

import argparse
import contextlib
import os
import sys
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from textpoke._errors import OutputExists
from textpoke.cli import _output, _parser
from textpoke.cli._console import Console, escape
from textpoke.cli._progress import of_calls
from textpoke.export.formats import FORMATS, OTLP, Format, by_suffix

if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import BinaryIO

    from textpoke.capture import Capture
    from textpoke.export.source import Source
    from textpoke.report.counts import Counts

_DEFAULT = "flamegraph"
_LARGE = 1 << 26  # bytes that may take a second to read
_STDOUT = "-"
_THRESHOLD_NS = 1_000_000


def add_arguments(parser: _parser.VerbParser) -> None:
    """Add this verb's arguments."""
    parser.add_argument("file", metavar="FILE", help="a capture, as written by textpoke record")
    parser.add_argument(
        "-f",
        "--format",
        choices=(*FORMATS, OTLP),
        metavar="FORMAT",
        help=f"what to write (default: by the name of OUT, {OTLP} with --endpoint, "
        f"else {_DEFAULT})",
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
    spans = parser.add_argument_group("spans for OpenTelemetry (otlp)")
    spans.add_argument(
        "--endpoint",
        metavar="URL",
        type=_endpoint,
        help="where a collector takes OTLP over HTTP (default: OTEL_EXPORTER_OTLP_ENDPOINT, else "
        "http://localhost:4318)",
    )
    spans.add_argument(
        "--threshold",
        type=_parser.span_ns,
        metavar="TIME",
        help="only calls that took at least so long, as in 100us, 5ms (default: 1ms)",
    )
    _parser.examples(
        parser,
        "textpoke export graph.tptrace",
        "textpoke export graph.tptrace --diff before.tptrace -o slower.html",
        "textpoke export graph.tptrace -f perfetto",
        "textpoke export graph.tptrace -o calls.parquet",
        "textpoke export graph.tptrace -f folded -o - | flamegraph.pl > flame.svg",
        "textpoke export graph.tptrace --endpoint http://localhost:4318 --threshold 5ms",
    )
    width = max(map(len, FORMATS))
    rows = [f"  {f.name:<{width}}  {f.what} ({f.suffix})" for f in FORMATS.values()]
    rows.append(f"  {OTLP:<{width}}  spans for an OpenTelemetry collector (no file: --endpoint)")
    parser.epilog = "\n".join(["formats:", *rows, "", parser.epilog or ""])


def run(args: argparse.Namespace) -> int:
    """Write the file or send the spans; the exit code is 0 for captures that were cut off, too."""
    if args.format == OTLP or (args.endpoint and not args.format):
        return _run_otlp(args)
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


def _run_otlp(args: argparse.Namespace) -> int:
    from textpoke.capture import Capture
    from textpoke.export.otlp import send
    from textpoke.report.counts import count
    from textpoke.triggers import span_text

    for option in ("output", "force", "diff"):
        if getattr(args, option):
            raise _parser.UsageError(f"--{option} is for files, and -f {OTLP} writes none")
    console = Console.from_args(args)
    threshold_ns = _THRESHOLD_NS if args.threshold is None else args.threshold
    with Capture(args.file) as capture:
        source = _source(capture, console)
        if not source.has_exits:
            raise _parser.needs_exits(args.file, f"-f {OTLP}")
        sent = send(source, threshold_ns, args.endpoint)
        console.end_live()
        _tell(capture, count(capture), console)
    if sent.rejected:
        console.warn(f"{sent.rejected:,} spans were rejected there: {escape(sent.why)}")
    console.say(
        f"{sent.spans:,} spans sent to {escape(sent.endpoint)}, "
        f"{sent.below:,} calls took less than {span_text(threshold_ns)}"
    )
    return 1 if sent.rejected and not sent.spans else 0


def _endpoint(text: str) -> str:
    with contextlib.suppress(ValueError):  # of brackets, ports that are none
        url = urlsplit(text)
        if url.scheme in ("http", "https") and url.hostname and url.port != 0:
            return text
    raise argparse.ArgumentTypeError(f"{text!r} is no URL, as http://localhost:4318 is")


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
    for option in ("endpoint", "threshold"):
        if getattr(args, option) is not None:
            raise _parser.UsageError(f"--{option} is for -f {OTLP}, not for {chosen.name}")
    if output == _STDOUT:
        if not chosen.is_text and sys.stdout.isatty():
            raise _parser.UsageError(f"{chosen.name} is not for a terminal: give a file with -o")
    elif os.path.exists(output):
        _output.require_another(output, args.file, args.diff)
        if os.path.isfile(output) and not args.force:
            raise OutputExists(output)


def _write(
    capture: Capture, other: Capture | None, chosen: Format, output: str, console: Console
) -> None:
    from textpoke.export import flamegraph

    source = _source(capture, console)
    with _opened(output) as file:
        if other:
            flamegraph.write_difference(source, _source(other, console), file)
        else:
            chosen.write(source, file)
    console.end_live()


def _source(capture: Capture, console: Console) -> Source:
    from textpoke.export.source import Source

    if os.path.getsize(capture.path) > _LARGE:
        console.live(f"reading {escape(capture.path)}")
    return Source(capture, of_calls(console))


@contextlib.contextmanager
def _opened(output: str) -> Iterator[BinaryIO]:
    if output == _STDOUT:
        yield sys.stdout.buffer
        return
    with _output.opened(output) as file:
        yield file


def _tell(capture: Capture, counts: Counts, console: Console) -> None:
    from textpoke.calls import times_without_exits
    from textpoke.report.summary import notes, summary

    facts = summary(capture, counts)[0]
    console.say(facts)
    for line in notes(capture, counts):
        console.warn(line)
    if times_without_exits(capture):
        console.warn("calls of the time when the tracer was function are left out: no exits")
