# SPDX-License-Identifier: Apache-2.0
"""The HTML page: its numbers, and that it is one file in which names are only names."""

from __future__ import annotations

import re
import xml.dom.minidom
from html.parser import HTMLParser
from typing import TYPE_CHECKING

import captures
import pytest
from captures import GET, INFLATE, SET, UNKNOWN, Recipe, Ring

from textpoke.calls import has_exits
from textpoke.capture import Capture
from textpoke.report.counts import count
from textpoke.report.html import html
from textpoke.report.page import BINS_PER_OCTAVE, MOST_CLOSE_CALLS, SLICES, histogram, timeline
from textpoke.report.page import close_up as close_up_of
from textpoke.report.svg import close_up_svg, histogram_svg, timeline_svg
from textpoke.report.times import times

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

IN, OUT = 1, 2
US = 3_000
SECOND = 3_000_000_000
EVIL = "</script><img src=x onerror=alert(1)>\x1b[31m\u202e&\"'"
VOID = {"meta", "input", "link", "br", "img"}
RINGS = [
    Ring(
        [
            (0, SET, IN),
            (1 * US, GET, IN),
            (3 * US, GET, OUT),
            (4 * US, INFLATE, IN),
            (8 * US, INFLATE, OUT),
            (10 * US, SET, OUT),
            (SECOND, GET, IN),
            (SECOND + US, GET, OUT),
        ]
    ),
    Ring([(2 * SECOND - 1, UNKNOWN, IN), (2 * SECOND + 9, UNKNOWN, OUT)], tid=101, ring=1),
]


class Page(HTMLParser):
    """Reads a page, and finds what is not closed."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text: list[str] = []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text.append(data)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "x.tptrace"


@pytest.fixture
def capture(path: Path) -> Iterator[Capture]:
    meta = captures.meta(tracer="function_graph")
    with Capture(captures.write(path, Recipe(RINGS, meta=meta))) as opened:
        yield opened


def page_of(capture: Capture, **options: object) -> str:
    found = times(capture) if has_exits(capture) else None
    return "".join(html(capture, count(capture), found, **options))


def test_histogram_has_every_call_in_its_bin(capture: Capture) -> None:
    found = times(capture)
    (get,) = [f for f in found.functions if f.site == 1]
    result = histogram(get, found.durations)
    assert (result.site, result.calls, sum(result.counts)) == (1, 2, 2)
    assert (result.p50_ns, result.p99_ns) == (1_000, 2_000)
    assert result.counts == [1, *[0] * (BINS_PER_OCTAVE - 1), 1]
    low, high = (2 ** ((result.first_bin + side) / BINS_PER_OCTAVE) for side in (0, 1))
    assert low <= 1_000 < high


def test_timeline_counts_events_by_slice(capture: Capture) -> None:
    found = timeline(capture, count(capture))
    assert found.slice_ns == pytest.approx(2e9 / SLICES)
    assert list(found.threads) == [100, 101]
    first = found.threads[100]
    assert (first[0], first[SLICES // 2], sum(first)) == (6, 2, 8)
    assert sum(found.threads[101]) == found.threads[101][-1] == 1  # the other is beyond the end


def test_close_up_is_the_richest_call_that_fits(path: Path, capture: Capture) -> None:
    found = close_up_of(capture, count(capture))
    assert (found.tid, found.start_ns, found.end_ns) == (100, 0, 10_000)
    assert [(site, depth) for site, _, _, depth in found.calls] == [(0, 0), (1, 1), (2, 1)]
    path.unlink()
    many = [(i, GET, kind) for i in range(1, MOST_CLOSE_CALLS + 1) for kind in (IN, OUT)]
    rows = [(0, SET, IN), *many, (9_999, SET, OUT), (10_000, GET, IN), (10_009, GET, OUT)]
    meta = captures.meta(tracer="function_graph")
    with Capture(captures.write(path, Recipe([Ring(rows)], meta=meta))) as large:
        assert close_up_of(large, count(large)) is None


def test_charts_are_whole_xml(capture: Capture) -> None:
    found, counts = times(capture), count(capture)
    names = [EVIL.replace("\x1b", "")] * 4
    charts = [histogram_svg(histogram(f, found.durations), known=True) for f in found.functions]
    charts.append(close_up_svg(close_up_of(capture, counts), names, known=True))
    labels = dict.fromkeys((100, 101), EVIL.replace("\x1b", ""))
    charts.append(timeline_svg(timeline(capture, counts), labels, known=True))
    for chart in charts:
        root = xml.dom.minidom.parseString(chart).documentElement
        assert not root.getElementsByTagName("img")
        for rect in root.getElementsByTagName("rect"):
            assert float(rect.getAttribute("width")) > 0
            assert float(rect.getAttribute("height")) >= 0


def test_page_is_one_file_and_says_everything(capture: Capture) -> None:
    page = Page(page_of(capture))
    text = " ".join(page.text)
    for word in ("/usr/bin/redis-server", "redis-server --port 7777", "function_graph", "2.000 s",
                 "redis-server!setCommand", "libz.so.1!inflate", "[unknown]", "p99 2.000 us",
                 "Close-up", "Durations", "2023-11-14 22:13:20 UTC"):  # fmt: skip
        assert word in text
    for tag, attributes in page.tags:
        assert not {"src", "href", "onclick"} & attributes.keys(), tag
    assert "//" not in re.sub(r"^// SPDX.*$", "", page_of(capture), flags=re.MULTILINE)
    policy = [a["content"] for _, a in page.tags if a.get("http-equiv")]
    assert policy[0].startswith("default-src 'none'")


def test_names_are_only_names(path: Path) -> None:
    meta = captures.meta(
        tracer="function_graph",
        exe=f"/bin/{EVIL}",
        command=[EVIL],
        sites=[[SET, EVIL, EVIL], [GET, "m", EVIL]],
    )
    recipe = Recipe(RINGS, meta=meta, threads={100: EVIL}, end=captures.end(
        2 * SECOND, reason=EVIL, refused={EVIL: 3, "odd": "odd"}))  # fmt: skip
    with Capture(captures.write(path, recipe)) as capture:
        text = page_of(capture)
    page = Page(text)
    assert "img" not in {tag for tag, _ in page.tags}
    assert text.count("</script>") == 1
    assert "\x1b" not in text
    assert "\u202e" not in text
    assert f"3: {EVIL[:9]}" in "".join(page.text)


def test_page_without_exits_has_counts(path: Path) -> None:
    with Capture(captures.write(path, captures.SMALL)) as capture:
        text = page_of(capture, more=[("Flames & co", "<p>here</p>")])
    page = Page(text)
    words = " ".join(page.text)
    assert "Share" in words
    assert "Durations" not in words
    assert text.index("<h2>Flames &amp; co</h2>\n<p>here</p>") < text.index("Threads over time")


@pytest.mark.parametrize("tracer", ["function", "function_graph"])
def test_page_of_nothing(path: Path, tracer: str) -> None:
    recipe = Recipe(meta=captures.meta(tracer=tracer), end=None)
    with Capture(captures.write(path, recipe)) as capture:
        page = Page(page_of(capture))
    assert "still being written" not in " ".join(page.text)
    assert "incomplete: cut off" in " ".join(page.text)
