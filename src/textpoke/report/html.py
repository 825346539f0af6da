# SPDX-License-Identifier: Apache-2.0
"""A capture as one HTML file that needs nothing else: no network, no library, no other file."""

from __future__ import annotations

from datetime import UTC, datetime
from html import escape as quoted
from importlib import resources
from typing import TYPE_CHECKING

from textpoke.report.layout import time_text
from textpoke.report.names import escape, function_labels, program_name, site_label, thread_label
from textpoke.report.page import MOST_CLOSE_CALLS, close_up, histogram, timeline
from textpoke.report.summary import notes, pair_notes
from textpoke.report.svg import close_up_svg, histogram_svg, timeline_svg
from textpoke.report.times import ordered

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from textpoke.capture import Capture
    from textpoke.report.counts import Counts
    from textpoke.report.times import Times

Section = tuple[str, str]
"""A title, and what stands below it as HTML."""

_HISTOGRAMS = 12
_POLICY = "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'"


def html(
    capture: Capture, counts: Counts, times: Times | None, *, more: Sequence[Section] = ()
) -> Iterator[str]:
    """The page, piece by piece.

    Args:
        capture: Open.
        counts: Of its events.
        times: Of its calls; None for captures without exits.
        more: Further sections, such as a flame graph, behind the summary; HTML as it is.

    Raises:
        CaptureFormat: the file changed while it was read.
    """
    title = quoted(f"{program_name(capture)} (pid {capture.meta.pid})")
    yield (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">'
        '<meta name="viewport" content="width=device-width">'
        f"<title>{title}: textpoke</title><style>\n{_resource('page.css')}</style></head>\n"
        f"<body><h1>{title}</h1>\n{_summary(capture, counts, times)}"
    )
    for heading, body in [*more, *_sections(capture, counts, times)]:
        yield f"<h2>{quoted(heading)}</h2>\n{body}\n"
    yield f"<script>\n{_resource('page.js')}</script></body></html>\n"


def _resource(name: str) -> str:
    return resources.files("textpoke.report").joinpath(name).read_text("utf-8")


def _sections(capture: Capture, counts: Counts, times: Times | None) -> Iterator[Section]:
    known = counts.time_known
    yield "Threads over time", _timeline(capture, counts)
    if times is None:
        yield "Functions", _search() + _counts_table(capture, counts)
        return
    near = close_up(capture, counts)
    if near:
        svg = close_up_svg(near, function_labels(capture), known=known)
        label = quoted(thread_label(capture, near.tid))
        about = f"{label}: one call from outside and what it calls, by depth; of those with up to "
        about += f"{MOST_CLOSE_CALLS:,} calls the one with the most."
        yield "Close-up", f"<p>{about}</p>{svg}"
    yield "Functions", _search() + _times_table(capture, times)
    yield "Durations", _histograms(capture, times)


def _summary(capture: Capture, counts: Counts, times: Times | None) -> str:
    facts = "".join(f"<dt>{quoted(k)}</dt><dd>{quoted(v)}</dd>" for k, v in _facts(capture, counts))
    lines = [*notes(capture, counts), *(pair_notes(times) if times else [])]
    return f"<dl>{facts}</dl>" + "".join(f'<p class="note">{quoted(line)}</p>' for line in lines)


def _facts(capture: Capture, counts: Counts) -> Iterator[tuple[str, str]]:
    meta, end = capture.meta, capture.end
    yield "Program", escape(meta.exe)
    yield "Command", escape(" ".join(word for word in meta.command if word))
    started = datetime.fromtimestamp(meta.clock.realtime_ns / 1e9, UTC)
    yield "Started", f"{started:%Y-%m-%d %H:%M:%S} UTC"
    yield "Duration", time_text(counts.duration_ns, known=counts.time_known)
    yield "Tracer", escape(f"{meta.tracer}, {len(meta.sites):,} functions")
    yield "Events", f"{counts.events:,}"
    yield "Threads", f"{len(counts.threads):,}"
    yield "Lost", f"{counts.lost + counts.lost_no_ring:,}"
    if end:
        yield "Ended by", escape(end.reason)
        yield "Held at attach", time_text(end.hold_ns)
    for reason, count in _refused(capture):
        yield "Refused", escape(f"{count:,}: {reason}")
    yield "Capture", escape(f"{capture.path}, textpoke {meta.version}")


def _refused(capture: Capture) -> list[tuple[str, int]]:
    rows = capture.end.raw.get("refused") if capture.end else None
    found = rows.items() if isinstance(rows, dict) else ()
    return [(reason, count) for reason, count in found if type(count) is int]


def _timeline(capture: Capture, counts: Counts) -> str:
    found = timeline(capture, counts)
    labels = {tid: thread_label(capture, tid) for tid in found.threads}
    shown = f"The {len(found.threads)} threads with the most calls" if len(labels) > 1 else "Events"
    length = time_text(found.slice_ns, known=counts.time_known)
    about = f"<p>{shown}; each bar is the events of {length}.</p>"
    return about + timeline_svg(found, labels, known=counts.time_known)


def _search() -> str:
    return '<input type="search" placeholder="part of a function\'s name" aria-label="search">'


def _times_table(capture: Capture, times: Times) -> str:
    titles = ["Calls", "Total", "Self", "Avg", "p50", "p99", "Max", "Function"]
    rows = []
    for f in ordered(times.functions):
        numbers = (f.total_ns, f.self_ns, f.average_ns, f.p50_ns, f.p99_ns, f.max_ns)
        cells = [(ns, time_text(ns, known=times.known)) for ns in numbers]
        rows.append(([(f.calls, f"{f.calls:,}"), *cells], site_label(capture, f.site)))
    return _table(titles, rows, sorted_by=1)


def _counts_table(capture: Capture, counts: Counts) -> str:
    rows = [
        (
            [
                (calls, f"{calls:,}"),
                (calls, f"{calls / counts.calls:.2%}"),
                (calls, f"{counts.rate(calls):,.1f}"),
                (first_ns, f"{first_ns / 1e9:.6f}"),
                (last_ns, f"{last_ns / 1e9:.6f}"),
            ],
            site_label(capture, site),
        )
        for site, calls, first_ns, last_ns in counts.everyone.rows()
    ]
    return _table(["Calls", "Share", "Calls/s", "First", "Last", "Function"], rows, sorted_by=0)


def _table(
    titles: Sequence[str],
    rows: Sequence[tuple[Sequence[tuple[float, str]], str]],
    *,
    sorted_by: int,
) -> str:
    heads = "".join(
        f"<th{' aria-sort=descending' if i == sorted_by else ''}>"
        f'<button type="button">{title}</button></th>'
        for i, title in enumerate(titles)
    )
    body = "".join(
        "<tr>"
        + "".join(f'<td data-v="{value:.10g}">{text}</td>' for value, text in cells)
        + f"<td>{quoted(name)}</td></tr>\n"
        for cells, name in rows
    )
    head = f"<thead><tr>{heads}</tr></thead>"
    return f'<div class="scroll"><table>{head}<tbody>\n{body}</tbody></table></div>'


def _histograms(capture: Capture, times: Times) -> str:
    hottest = [f for f in ordered(times.functions) if f.calls > f.unfinished][:_HISTOGRAMS]
    parts = [
        f"<div><h3>{quoted(site_label(capture, f.site))}</h3>"
        f"{histogram_svg(histogram(f, times.durations), known=times.known)}</div>"
        for f in hottest
    ]
    about = f"<p>The {len(parts)} functions with the most time; both axes are logarithmic.</p>"
    return f'{about}<div class="grid">{"".join(parts)}</div>'
