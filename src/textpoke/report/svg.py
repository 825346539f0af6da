# SPDX-License-Identifier: Apache-2.0
"""Charts of the HTML page as SVG; colours come from the page's style sheet by class."""

from __future__ import annotations

import math
from html import escape as quoted
from typing import TYPE_CHECKING

from textpoke.report.layout import time_text
from textpoke.report.page import BINS_PER_OCTAVE

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from textpoke.report.page import CloseUp, Histogram, Timeline

_WIDE, _HISTOGRAM_WIDE, _HISTOGRAM_HIGH = 960, 460, 120
_LANE, _ROW, _AXIS, _LETTER = 40, 16, 18, 6.2
_BAND = 28
"""For labels, above the bars of a histogram."""
_LABEL = 110
_COLOURS = 6
_TICKS = 5


def histogram_svg(found: Histogram, *, known: bool) -> str:
    """Bars of one function's durations; both axes are logarithmic."""
    first, bins = found.first_bin, len(found.counts)
    parts = [*_bars(found, known=known)]
    for label, ns, y in (("p50", found.p50_ns, 23), ("p99", found.p99_ns, 11)):
        place = (math.log2(max(ns, 1)) * BINS_PER_OCTAVE - first) / bins
        parts.append(_mark(f"{label} {time_text(ns, known=known)}", label, place, y))
    ends = [2 ** ((first + place) / BINS_PER_OCTAVE) for place in (0, bins)]
    labels = [time_text(ns, known=known) for ns in ends]
    parts += _ends(_HISTOGRAM_WIDE, _BAND + _HISTOGRAM_HIGH, labels)
    return _svg(_HISTOGRAM_WIDE, _BAND + _HISTOGRAM_HIGH + _AXIS, parts)


def _bars(found: Histogram, *, known: bool) -> Iterator[str]:
    wide = _HISTOGRAM_WIDE / len(found.counts)
    top = math.log1p(max(found.counts)) or 1
    for i, count in enumerate(found.counts):
        high = _HISTOGRAM_HIGH * math.log1p(count) / top
        edges = [2 ** ((found.first_bin + i + side) / BINS_PER_OCTAVE) for side in (0, 1)]
        times = " to ".join(time_text(ns, known=known) for ns in edges)
        place = f'x="{i * wide:.1f}" y="{_BAND + _HISTOGRAM_HIGH - high:.1f}"'
        size = f'width="{max(wide - 1, 1):.1f}" height="{high:.1f}"'
        yield f'<rect class="bar" {place} {size}><title>{times}: {count:,} calls</title></rect>'


def _mark(text: str, label: str, place: float, y: int) -> str:
    # A line over the bars, its label in the band above them: p50's to the left, p99's to the
    # right, so that neither line crosses a label, unless there is no room.
    x = min(max(place, 0), 1) * _HISTOGRAM_WIDE
    is_left = x > (_LABEL if label == "p50" else _HISTOGRAM_WIDE - _LABEL)
    at, side = (x - 4, "end") if is_left else (x + 4, "start")
    return (
        f'<line class="{label}" x1="{x:.1f}" x2="{x:.1f}" y1="{y - 9}" '
        f'y2="{_BAND + _HISTOGRAM_HIGH}"/>'
        f'<text class="{label}" x="{at:.1f}" y="{y}" text-anchor="{side}">{text}</text>'
    )


def timeline_svg(found: Timeline, labels: dict[int, str], *, known: bool) -> str:
    """A lane for each thread, as high as the events of the slice, and one scale for all."""
    most = max((max(counts) for counts in found.threads.values()), default=0) or 1
    parts: list[str] = []
    for lane, (tid, counts) in enumerate(found.threads.items()):
        base = (lane + 1) * _LANE
        parts.append(f'<line class="axis" x1="0" x2="{_WIDE}" y1="{base}" y2="{base}"/>')
        parts += _slices(counts, found.slice_ns, base, most, known=known)
        name = quoted(labels[tid])
        parts.append(f'<text class="lane" x="4" y="{base - _LANE + 13}">{name}</text>')
    high = len(found.threads) * _LANE
    slices = max(map(len, found.threads.values()), default=0)
    times = [found.slice_ns * slices * i / (_TICKS - 1) for i in range(_TICKS)]
    parts += _ends(_WIDE, high, [time_text(ns, known=known) for ns in times])
    return _svg(_WIDE, high + _AXIS, parts)


def close_up_svg(found: CloseUp, names: Sequence[str], *, known: bool) -> str:
    """A box for each call, a row for each depth; `names` by site index, the last one for -1."""
    span = max(found.end_ns - found.start_ns, 1)
    base = min(depth for *_, depth in found.calls)
    deepest = max(depth for *_, depth in found.calls)
    parts: list[str] = []
    for site, start_ns, end_ns, depth in found.calls:
        x = (start_ns - found.start_ns) * _WIDE / span
        wide = max((end_ns - start_ns) * _WIDE / span, 0.5)
        y = (depth - base) * _ROW
        name = names[site]
        title = quoted(f"{name}: {time_text(end_ns - start_ns, known=known)}")
        kind = f"call c{site % _COLOURS}"
        parts.append(
            f'<rect class="{kind}" x="{x:.2f}" y="{y}" width="{wide:.2f}" height="{_ROW - 1}">'
            f"<title>{title}</title></rect>"
        )
        if len(name) * _LETTER + 6 < wide:
            text = f'<text class="name" x="{x + 3:.2f}" y="{y + 11}">{quoted(name)}</text>'
            parts.append(text)
    high = (deepest - base + 1) * _ROW
    times = [found.start_ns + span * i / (_TICKS - 1) for i in range(_TICKS)]
    parts += _ends(_WIDE, high, [time_text(ns, known=known) for ns in times])
    return _svg(_WIDE, high + _AXIS, parts)


def _slices(
    counts: list[int], slice_ns: float, base: int, most: int, *, known: bool
) -> Iterator[str]:
    wide = _WIDE / len(counts)
    for i, count in enumerate(counts):
        if not count:
            continue
        high = max((_LANE - 16) * count / most, 0.5)
        title = f"from {time_text(i * slice_ns, known=known)}: {count:,} events"
        place = f'x="{i * wide:.1f}" y="{base - high:.1f}"'
        size = f'width="{wide:.2f}" height="{high:.1f}"'
        yield f'<rect class="bar" {place} {size}><title>{title}</title></rect>'


def _ends(wide: int, high: int, labels: list[str]) -> list[str]:
    # Labels of an axis, evenly spaced, the outer ones inside of the picture.
    last = len(labels) - 1
    anchors = ["start", *["middle"] * (last - 1), "end"]
    return [
        f'<text class="tick" x="{wide * i / last:.1f}" y="{high + 13}" text-anchor="{anchor}">'
        f"{label}</text>"
        for i, (label, anchor) in enumerate(zip(labels, anchors, strict=True))
    ]


def _svg(wide: int, high: int, parts: list[str]) -> str:
    return f'<svg viewBox="0 0 {wide} {high}" role="img">{"".join(parts)}</svg>'
