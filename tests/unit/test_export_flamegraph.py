# SPDX-License-Identifier: Apache-2.0
"""Folded stacks and the flame graph's page: the data in it are right, and names are harmless."""

from __future__ import annotations

import io
import json
import re
from html.parser import HTMLParser
from pathlib import Path

import captures
import exports
import pytest
from captures import GET, SET, Ring
from exports import IN, OUT, US

import textpoke.export
from textpoke.capture import Capture
from textpoke.cli import main
from textpoke.export import flamegraph
from textpoke.export.source import Source

PAGE = Path(textpoke.export.__file__).with_name("flamegraph.html")


class Elements(HTMLParser):
    """The text of elements by id or name, and every address that the page could load."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.texts: dict[str, str] = {}
        self.tags: list[str] = []
        self.loads: list[str] = []
        self._open = ""
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = dict(attrs)
        self.tags.append(tag)
        self.loads += [str(found[name]) for name in ("src", "href") if name in found]
        self._open = found.get("id") or tag

    def handle_endtag(self, _tag: str) -> None:
        self._open = ""

    def handle_data(self, data: str) -> None:
        if self._open:
            self.texts[self._open] = self.texts.get(self._open, "") + data


def data(page: bytes) -> dict:
    return json.loads(Elements(page.decode()).texts["data"])


def rows(found: dict, *columns: str) -> dict[tuple[str, ...], tuple[int, ...]]:
    """Columns by stack."""
    above: list[str] = []
    stacks = {}
    for i, depth in enumerate(found["depth"]):
        if depth:
            above[depth - 1 :] = [found["names"][found["name"][i]]]
            stacks[tuple(above)] = tuple(found[column][i] for column in columns)
    return stacks


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "x.tptrace"


def test_folded_stacks(path: Path) -> None:
    assert exports.exported(exports.graph(path), "folded").decode().splitlines() == [
        "redis-server;setCommand 73000",
        "redis-server;setCommand;inflate [libz.so.1] 11000",
        "redis-server;setCommand;inflate [libz.so.1];getCommand 14000",
        "redis-server;setCommand;getCommand 2000",
        "redis-server;getCommand;inflate [libz.so.1] 3000",
        "bio;inflate [libz.so.1] 4000",
    ]


def test_folded_stacks_without_exits_are_calls(path: Path) -> None:
    assert exports.exported(exports.function(path), "folded").decode().splitlines() == [
        "redis-server;setCommand 3",
        "redis-server;getCommand 1",
        "bio;inflate [libz.so.1] 1",
    ]


def test_a_name_is_one_frame_of_one_line(path: Path) -> None:
    found = exports.exported(exports.hostile(path), "folded").decode().splitlines()
    assert all(re.fullmatch(r"[^;]+(;[^;]+)* \d+", line) for line in found)
    assert len(found) == 6
    assert "\\u2028:x\\x0a 73000" in found[0]


def test_the_data_of_a_flame_graph(path: Path) -> None:
    found = data(exports.exported(exports.graph(path), "flamegraph"))
    assert (found["unit"], found["program"], found["pid"]) == ("ns", "redis-server", 100)
    assert found["depth"] == [0, 1, 2, 3, 4, 3, 2, 3, 1, 2]
    stacks = rows(found, "calls", "weight")
    assert stacks["redis-server", "setCommand"] == (1, 73_000)
    assert stacks["redis-server", "getCommand"] == (1, 0)
    assert sum(found["weight"]) == 107_000
    assert "before" not in found


def test_units(path: Path) -> None:
    assert data(exports.exported(exports.function(path), "flamegraph"))["unit"] == "calls"
    path.unlink()
    meta = captures.meta(tracer="function_graph")
    captures.write(path, captures.Recipe(exports.TWO_THREADS, meta=meta, end=None))
    found = data(exports.exported(path, "flamegraph"))
    assert found["unit"] == "ticks"


def test_losses_are_in_the_page(path: Path) -> None:
    exports.graph(path, exports.WITH_LOSS)
    assert data(exports.exported(path, "flamegraph"))["lost"] == 7


def test_names_break_nothing(path: Path) -> None:
    page = exports.exported(exports.hostile(path), "flamegraph").decode()
    plain = Elements(PAGE.read_text())
    found = Elements(page)
    assert found.tags == plain.tags
    shown = exports.HOSTILE.replace("\u2028", "\\u2028").replace("\n", "\\x0a")
    assert shown in json.loads(found.texts["data"])["names"]


def test_the_page_needs_nothing_else(path: Path) -> None:
    page = exports.exported(exports.graph(path), "flamegraph")
    assert Elements(page.decode()).loads == []
    assert not re.search(rb"https?://|@import|url\(", page)
    assert len(PAGE.read_bytes()) < 60_000


def difference(now: Path, before: Path) -> dict:
    file = io.BytesIO()
    with Capture(now) as a, Capture(before) as b:
        flamegraph.write_difference(Source(a), Source(b), file)
    return data(file.getvalue())


def test_a_difference_has_both_captures(tmp_path: Path) -> None:
    now = exports.graph(tmp_path / "now.tptrace")
    rows_before = [
        (0, SET, IN),
        (US, GET, IN),
        (3 * US, GET, OUT),
        (4 * US, SET, IN),
        (5 * US, SET, OUT),
        (9 * US, SET, OUT),
    ]
    before = exports.graph(tmp_path / "before.tptrace", [Ring(rows_before)])
    found = difference(now, before)
    assert found["before"]["capture"] == "before.tptrace"
    merged = {**found, **{f"was_{k}": v for k, v in found["before"].items() if isinstance(v, list)}}
    stacks = rows(merged, "weight", "was_weight", "was_calls")
    assert stacks["redis-server", "setCommand"] == (73_000, 6_000, 1)
    assert stacks["redis-server", "setCommand", "getCommand"] == (2_000, 2_000, 1)
    assert stacks["redis-server", "setCommand", "setCommand"] == (0, 1_000, 1)
    assert stacks["bio", "inflate [libz.so.1]"] == (4_000, 0, 0)
    assert sum(found["before"]["weight"]) == 9_000


def test_a_capture_does_not_differ_from_itself(path: Path) -> None:
    found = difference(exports.graph(path), path)
    assert found["weight"] == found["before"]["weight"]
    assert found["calls"] == found["before"]["calls"]


def test_functions_of_one_name_are_compared_as_one(tmp_path: Path) -> None:
    twins = [[SET, "redis-server", "same"], [GET, "redis-server", "same"]]
    once = [(0, SET, IN), (US, SET, OUT), (2 * US, GET, IN), (5 * US, GET, OUT)]
    now = exports.graph(tmp_path / "now.tptrace", [Ring(once)], sites=twins)
    before = exports.graph(tmp_path / "before.tptrace", [Ring(once[2:])], sites=twins)
    found = difference(now, before)
    assert sum(found["weight"]) == 4_000
    assert sum(found["before"]["weight"]) == 3_000


def test_with_a_capture_without_exits_calls_are_compared(tmp_path: Path) -> None:
    now = exports.graph(tmp_path / "now.tptrace")
    before = exports.function(tmp_path / "before.tptrace")
    found = difference(now, before)
    assert found["unit"] == "calls"
    assert (sum(found["weight"]), sum(found["before"]["weight"])) == (7, 5)


def test_difference_on_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    now = exports.graph(tmp_path / "now.tptrace")
    before = exports.graph(tmp_path / "before.tptrace", exports.WITH_LOSS)
    assert main(["export", str(now), "--diff", str(before)]) == 0
    assert "lost: 7" in capsys.readouterr().err
    found = data((tmp_path / "now.html").read_bytes())
    assert (found["lost"], found["before"]["lost"]) == (0, 7)
