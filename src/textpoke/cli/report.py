# SPDX-License-Identifier: Apache-2.0
"""`textpoke report FILE`: what a capture holds."""

from __future__ import annotations

from typing import TYPE_CHECKING

from textpoke.cli import _parser
from textpoke.cli._console import Console, escape

if TYPE_CHECKING:
    import argparse
    from collections.abc import Iterable

    from textpoke.capture import Capture
    from textpoke.report.graph import GraphOptions
    from textpoke.report.times import SortKey

_REPORTS = ("tree", "text", "callers", "callees", "diff", "html", "pokes")
_TEXT_ONLY = ("threshold", "below", "abstime", "tail", "flat")


def add_arguments(parser: _parser.VerbParser) -> None:
    """Add this verb's arguments."""
    parser.add_argument("file", metavar="FILE", help="a capture, as written by textpoke record")
    form = parser.add_mutually_exclusive_group()
    form.add_argument(
        "--text", action="store_true", help="print every event or call, as ftrace's trace file does"
    )
    _parser.add_json(form)
    parser.add_argument(
        "--tree",
        action="store_true",
        help="add up the calls by the way that led to them (captures with exits)",
    )
    parser.add_argument(
        "--pokes",
        action="store_true",
        help="every place of code that was written to: when, where, old and new bytes",
    )
    _add_edges(parser)
    _add_diff(parser)
    _add_html(parser)
    _add_table(parser)
    _add_graph(parser)
    _parser.examples(
        parser,
        "textpoke report redis-server-1234.tptrace",
        "textpoke report -n 10 --by thread redis-server-1234.tptrace",
        "textpoke report --text redis-server-1234.tptrace | less",
        "textpoke report --json redis-server-1234.tptrace | jq .functions[0]",
        "textpoke report --sort self -n 20 graph.tptrace",
        "textpoke report --sort p99 graph.tptrace",
        "textpoke report --callers 'lookupKey*' graph.tptrace",
        "textpoke report --callees processCommand --sort self graph.tptrace",
        "textpoke report before.tptrace --diff after.tptrace",
        "textpoke report --html graph.html graph.tptrace",
        "textpoke report --tree --depth 5 graph.tptrace",
        "textpoke report --tree --json graph.tptrace | jq .tree[0].function",
        "textpoke report --text --below processCommand --depth 3 graph.tptrace",
        "textpoke report --text --threshold 1ms --abstime graph.tptrace",
        "textpoke report --pokes -n 5 redis-server-1234.tptrace",
    )


def _add_edges(parser: _parser.VerbParser) -> None:
    for name, text in (
        ("callers", "who calls this function"),
        ("callees", "what this function calls"),
    ):
        parser.add_argument(
            f"--{name}",
            metavar="FUNCTION",
            help=f"{text}: 'GLOB' or 'MODULE!GLOB' (captures with exits)",
        )


def _add_diff(parser: _parser.VerbParser) -> None:
    parser.add_argument(
        "--diff",
        metavar="OTHER",
        help="compare with another capture, function by function: FILE is before, OTHER after",
    )


def _add_html(parser: _parser.VerbParser) -> None:
    parser.add_argument(
        "--html",
        metavar="OUT",
        help="write one HTML file: summary, threads over time, functions, durations",
    )
    parser.add_argument("-f", "--force", action="store_true", help="let --html replace OUT")


def _add_table(parser: _parser.VerbParser) -> None:
    parser.add_argument(
        "--by",
        choices=("function", "thread", "file", "caller", "branch", "profile"),
        help="rows of the table: per function, or per thread and function (default: function); "
        "of blk also per file (its default), or caller; branch, profile: what these "
        "tracers have counted",
    )
    parser.add_argument(
        "-n",
        "--limit",
        type=_parser.positive,
        metavar="N",
        help="the first N functions only (per thread with --by thread, per caller with --tree)",
    )
    parser.add_argument(
        "--sort",
        choices=("total", "self", "calls", "avg", "p50", "p99", "max"),
        help="order of the table (default: total where there are exits, else calls)",
    )


def _add_graph(parser: _parser.VerbParser) -> None:
    graph = parser.add_argument_group("calls, in captures with exits (--text; --depth: --tree too)")
    graph.add_argument("--depth", type=_parser.positive, metavar="N", help="only N levels of calls")
    graph.add_argument(
        "--threshold",
        type=_parser.span_ns,
        metavar="TIME",
        help="only calls that took so long, as in 100us, 5ms, each at its end",
    )
    graph.add_argument(
        "--below",
        action="append",
        metavar="PATTERN",
        help="only these functions and what they call: 'GLOB' or 'MODULE!GLOB', may be repeated",
    )
    graph.add_argument("--abstime", action="store_true", help="a column with the time")
    graph.add_argument("--tail", action="store_true", help="the name at every closing brace")
    graph.add_argument("--flat", action="store_true", help="one line per call, not indented")


def run(args: argparse.Namespace) -> int:
    """Print the report; the exit code is 0 for captures that were cut off, too."""
    from textpoke.capture import Capture
    from textpoke.cli._analysed import is_analysed, print_analysed
    from textpoke.cli._diff import print_diff
    from textpoke.cli._html import write_html

    _check(args)
    console = Console.from_args(args)
    with Capture(args.file) as capture:
        if args.html:
            write_html(capture, console, args)
        elif args.diff:
            print_diff(capture, console, args)
        elif args.callers or args.callees:
            _print_edges(capture, console, args)
        elif args.pokes:
            _print_pokes(capture, console, args)
        elif is_analysed(capture, args):
            print_analysed(capture, console, args)
        elif args.text:
            _print_text(capture, console, args)
        elif args.tree:
            _print_tree(capture, console, args)
        else:
            _print_counts(capture, console, args)
    return 0


def _check(args: argparse.Namespace) -> None:
    needless = [name for name in _TEXT_ONLY if getattr(args, name)]
    if needless and not args.text:
        raise _parser.UsageError(f"--{needless[0]} chooses lines of --text (see: report --help)")
    _check_one_report(args)
    if args.depth and not (args.text or args.tree):
        raise _parser.UsageError("--depth is for --text and --tree (see: report --help)")


def _check_one_report(args: argparse.Namespace) -> None:
    chosen = [name for name in _REPORTS if getattr(args, name)]
    if len(chosen) > 1:
        first, second = chosen[:2]
        raise _parser.UsageError(f"--{first} and --{second} are two reports: choose one")
    if args.by and chosen and chosen[0] not in ("tree", "text"):
        raise _parser.UsageError(f"--by is for the table, not for --{chosen[0]}")


def _print_text(capture: Capture, console: Console, args: argparse.Namespace) -> None:
    from textpoke.callers import Callers
    from textpoke.calls import has_exits
    from textpoke.report.graph import graph
    from textpoke.report.text import text

    with Callers(capture) as callers:
        if has_exits(capture):
            chunks = graph(capture, _graph_options(capture, args), symbol=callers.name)
        else:
            for name in (*_TEXT_ONLY, "depth"):
                if getattr(args, name):
                    raise _parser.needs_exits(args.file, f"--{name}")
            chunks = text(capture, symbol=callers.name)
        for lines in chunks:
            console.raw(lines)


def _graph_options(capture: Capture, args: argparse.Namespace) -> GraphOptions:
    from textpoke.report.graph import GraphOptions

    return GraphOptions(
        depth=args.depth,
        threshold_ns=args.threshold or 0,
        below=_chosen(capture, args.below) if args.below else None,
        abstime=args.abstime,
        tail=args.tail,
        flat=args.flat,
    )


def _chosen(capture: Capture, patterns: list[str]) -> frozenset[int]:
    from textpoke._errors import UnknownFunction
    from textpoke.model import Site
    from textpoke.patterns import Pattern

    # What a pattern looks at are the names: a capture has no more of a site.
    sites = [
        Site(s.address, 0, None, s.module, s.function, s.function, 0, b"", "", None, s.address)
        for s in capture.meta.sites
    ]
    found: set[int] = set()
    for text in patterns:
        pattern = Pattern(text)
        chosen = {i for i, site in enumerate(sites) if pattern.matches(site)}
        if not chosen:
            raise UnknownFunction(text, pattern.close_names(sites))
        found |= chosen
    return frozenset(found)


def _print_edges(capture: Capture, console: Console, args: argparse.Namespace) -> None:
    from textpoke.calls import has_exits
    from textpoke.decode import Clock
    from textpoke.report import edges

    option = "callers" if args.callers else "callees"
    pattern: str = args.callers or args.callees
    if not has_exits(capture):
        raise _parser.needs_exits(args.file, f"--{option}")
    sort = args.sort or "total"
    if sort not in edges.EDGE_SORTS:
        raise _parser.UsageError(f"--{option} is sorted by one of {', '.join(edges.EDGE_SORTS)}")
    found = getattr(edges, option)(capture, _chosen(capture, [pattern]))
    found = edges.ordered(found, sort, args.limit)
    if args.json:
        rows = edges.edge_records(capture, found)
        head = {"version": edges.FORMAT_VERSION, "cut_off": capture.cut_off}
        console.json({**head, option: rows})
        return
    _print_cut_off(capture, console)
    if not found:
        nothing = "has no calls" if args.callers else "calls nothing that was recorded"
        console.out(f"{escape(pattern)} {nothing} in this capture")
    else:
        header, *lines = edges.edge_table(capture, found, known=Clock(capture).known)
        console.out("\n".join([console.style(header, "dim"), *lines]))


def _print_pokes(capture: Capture, console: Console, args: argparse.Namespace) -> None:
    from textpoke.report import pokes

    if args.json:
        console.json(pokes.records(capture, limit=args.limit))
        return
    first, *rest = pokes.lines(capture, limit=args.limit)
    console.out(console.style(first, "bold"))
    _print_cut_off(capture, console)
    console.out("\n".join(rest))


def _print_cut_off(capture: Capture, console: Console) -> None:
    from textpoke.report.summary import cut_off_note

    for note in cut_off_note(capture):
        console.out(console.style(note, "yellow"))


def _print_tree(capture: Capture, console: Console, args: argparse.Namespace) -> None:
    from textpoke.calls import has_exits
    from textpoke.decode import Clock
    from textpoke.report.records import FORMAT_VERSION
    from textpoke.report.tree import DEEPEST, call_tree, tree, tree_records

    if not has_exits(capture):
        raise _parser.needs_exits(args.file, "--tree")
    if args.json:  # objects in objects: programs do not like a thousand of them
        root = call_tree(capture, min(args.depth or DEEPEST, DEEPEST))
        found = {"cut_off": capture.cut_off, "tree": tree_records(capture, root)}
        console.json({"version": FORMAT_VERSION, **found})
        return
    root = call_tree(capture, args.depth)
    _print_cut_off(capture, console)
    header, *rows = tree(capture, root, known=Clock(capture).known, limit=args.limit)
    console.out("\n".join([console.style(header, "dim"), *rows]))


def _print_counts(capture: Capture, console: Console, args: argparse.Namespace) -> None:
    from textpoke.calls import has_exits
    from textpoke.report.counts import count
    from textpoke.report.records import records
    from textpoke.report.summary import summary
    from textpoke.report.table import table

    if has_exits(capture):
        _print_times(capture, console, args)
        return
    if args.sort not in (None, "calls"):
        raise _parser.needs_exits(args.file, f"--sort {args.sort}")
    counts = count(capture)
    if args.json:
        console.json(records(capture, counts, limit=args.limit))
        return
    _print_table(
        capture,
        console,
        summary(capture, counts),
        table(capture, counts, by=args.by or "function", limit=args.limit),
    )


def _print_times(capture: Capture, console: Console, args: argparse.Namespace) -> None:
    from textpoke.report.counts import count
    from textpoke.report.records import times_records
    from textpoke.report.summary import pair_notes, summary
    from textpoke.report.table import times_table
    from textpoke.report.times import times

    counts, found = count(capture), times(capture)
    sort: SortKey = args.sort or "total"
    if args.json:
        console.json(times_records(capture, counts, found, sort=sort, limit=args.limit))
        return
    _print_table(
        capture,
        console,
        [*summary(capture, counts), *pair_notes(found)],
        times_table(capture, found, by=args.by or "function", sort=sort, limit=args.limit),
    )


def _print_table(capture: Capture, console: Console, lines: list[str], rows: Iterable[str]) -> None:
    from textpoke.cli._analysed import other_tables

    facts, *notes = lines
    console.out(console.style(facts, "bold"))
    for note in (*notes, *other_tables(capture)):
        console.out(console.style(note, "yellow"))
    header, *body = rows
    console.out("\n".join(["", console.style(header, "dim"), *body]))
