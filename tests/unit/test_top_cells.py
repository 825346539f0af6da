# SPDX-License-Identifier: Apache-2.0
"""textpoke top: numbers in few characters, lines as wide as the screen, one function's details."""

from __future__ import annotations

import json

import numpy as np
import pytest
from top_samples import FUNCTIONS, FakeSource, model

from textpoke.top import cells, details, plain
from textpoke.top.stretch import Neighbours, Share
from textpoke.top.view import SORTS, View


@pytest.mark.parametrize(
    ("value", "text"),
    [
        *[(0, "0"), (0.04, "0.04"), (2, "2"), (9.94, "9.9"), (999, "999"), (999.6, "1.0k")],
        *[(12_345, "12.3k"), (123_456, "123k"), (999_600, "1.0M"), (5e9, "5.0G"), (5e12, "5000G")],
    ],
)
def test_numbers(value: float, text: str) -> None:
    assert cells.number(value) == text


@pytest.mark.parametrize(
    ("ns", "text"),
    [
        *[(float("nan"), "-"), (7, "7ns"), (999.4, "999ns"), (999.6, "1.00us"), (12_340, "12.3us")],
        *[(123_400, "123us"), (1.5e6, "1.50ms"), (2e9, "2.00s"), (3.6e12, "3600s")],
    ],
)
def test_times(ns: float, text: str) -> None:
    assert cells.time(ns) == text


@pytest.mark.parametrize(
    ("value", "text"),
    [(0, "0"), (1e-6, "<0.01%"), (0.0123, "1.23%"), (0.5, "50.0%"), (1, "100.0%"), (12, "1200%")],
)
def test_shares(value: float, text: str) -> None:
    assert cells.share(value) == text


@pytest.mark.parametrize("value", [10.0**e * d for e in range(-3, 12) for d in (1, 4.5, 9.96)])
def test_no_number_is_wider_than_its_column(value: float) -> None:
    assert len(cells.number(value)) <= 6
    assert len(cells.time(value)) <= 6 or value >= 1e14
    assert len(cells.share(value)) <= 6 or value >= 1000


@pytest.mark.parametrize("columns", [70, 80, 81, 100, 132, 200, 300])
def test_lines_are_as_wide_as_the_screen(columns: int) -> None:
    width = cells.widths(columns)
    found = model({0: 10})
    for sort in SORTS:
        title = cells.header(width, View(sort=sort), 60.0)
        assert len(title) <= columns
        line = cells.line(found.table, 0, FUNCTIONS[0], width)
        assert title.index("FUNCTION") == line.index("setCommand")
        assert len(line) <= columns
        assert width.module == 0 or title.index("MODULE") == line.index("prog")


def test_long_names_keep_both_ends() -> None:
    assert cells.cut("abcdefghij", 10) == "abcdefghij"
    short = cells.cut("handleClientsWithPendingWrites", 20)
    assert len(short) == 20
    assert short.startswith("handle")
    assert short.endswith("Writes")


def test_sparkline_has_its_width_and_keeps_peaks() -> None:
    history = np.zeros(60, np.float32)
    assert cells.sparkline(history, 6) == " " * 6
    history[15] = 100
    history[59] = 50
    assert cells.sparkline(history, 6) == " █   ▄"
    assert cells.sparkline(history, 60)[15] == "█"
    assert cells.sparkline(history[:10] + 1, 12) == "  " + "█" * 10


def test_a_small_rate_is_not_nothing() -> None:
    history = np.array([1e6, 1], np.float32)
    assert cells.sparkline(history, 2) == "█▁"


def test_calls_without_times_have_no_shares() -> None:
    found = model({0: 10})
    found.table.average[0] = np.nan
    assert cells.spent(found.table, found.table.total, 0) == "-"
    assert cells.spent(found.table, found.table.total, 1) == "0"


def test_details_show_histogram_and_neighbours() -> None:
    found = model({0: 1000})
    assert "looking" in details.lines(found, 0, 74)[-1]
    assert details.lines(found, 0, 74, "busy")[-1].endswith("busy")
    near = Neighbours(0.25, 9, [Share(f"f{i}", 100 - i, 100) for i in range(20)], [], lost=5)
    text = details.lines(found, 0, 74, near)
    assert all(len(line) <= 74 for line in text)
    assert "prog!setCommand" in text[0]
    assert any("100.0%" in line and "█" in line for line in text)
    assert any("250 ms: 9 calls, 5 events lost" in line for line in text)
    assert "  and 8 more" in text
    assert text[-1] == "  nothing that is traced"


def test_details_of_what_was_never_called() -> None:
    assert any("no call has a time yet" in line for line in details.lines(model({}), 3, 74))


@pytest.mark.parametrize(("part", "width"), [(0, 10), (0.001, 10), (0.5, 10), (1, 10)])
def test_bars(part: float, width: int) -> None:
    assert len(cells_of := details.bar(part, width)) <= width
    assert bool(cells_of) == (part > 0)


def test_plain_lines_and_json_agree() -> None:
    source, found = FakeSource(), model({0: 10, 2: 5})
    found.table.average[2] = np.nan
    rows = np.array([0, 2])
    lines = list(plain.lines(found.table, found.functions, rows))
    assert [line.split()[-1] for line in lines[1:]] == ["prog!setCommand", "libc.so.6!malloc"]
    data = json.loads(json.dumps(plain.record(source, found, rows), allow_nan=False))
    assert [f["calls_per_s"] for f in data["functions"]] == [10.0, 5.0]
    assert data["functions"][1]["average_ns"] is None
    assert plain.title(source) == "prog (pid 4711)  4 functions patched, 1 refused"
