# SPDX-License-Identifier: Apache-2.0
"""`textpoke report --html OUT`: the page, written to a file."""

from __future__ import annotations

import html as text
import io
import os
from typing import TYPE_CHECKING

from textpoke.cli import _output, _parser

if TYPE_CHECKING:
    import argparse

    from textpoke.capture import Capture
    from textpoke.cli._console import Console

_TABLES = ("profile", "branch")


def write_html(capture: Capture, console: Console, args: argparse.Namespace) -> None:
    """Write the page to `args.html`, and say so."""
    from textpoke.calls import has_exits
    from textpoke.cli._console import escape
    from textpoke.report.counts import count
    from textpoke.report.html import html
    from textpoke.report.times import times

    tracer = capture.meta.tracer
    if args.json:
        raise _parser.UsageError("--html and --json are two reports: choose one")
    if tracer in _TABLES:
        raise _parser.UsageError(f"--html needs events: a capture of {tracer} holds none")
    _output.require_another(args.html, args.file)
    if os.path.lexists(args.html) and not args.force:
        raise _parser.UsageError(f"{args.html} exists: -f replaces it")
    found = times(capture) if has_exits(capture) else None
    more = [("Flame graph", _flame_graph(capture))] if found else []
    with _output.opened(args.html) as out:
        for piece in html(capture, count(capture), found, more=more):
            out.write(piece.encode("utf-8"))
    console.say(f"written: {escape(args.html)}")


def _flame_graph(capture: Capture) -> str:
    """The page of `export -f flamegraph`, as a frame of this one."""
    from textpoke.export import flamegraph
    from textpoke.export.source import Source

    page = io.BytesIO()
    flamegraph.write(Source(capture), page)
    inner = text.escape(page.getvalue().decode("utf-8"))
    style = "width:100%;height:36rem;border:0"
    return (
        f'<iframe title="Flame graph" sandbox="allow-scripts" style="{style}" srcdoc="{inner}">'
        "</iframe>"
    )
