# SPDX-License-Identifier: Apache-2.0
"""Every format of `export`, of real captures, read back by a tool that is not ours.

Whatever reads them must count the same calls, and the same times, as `report --json` does.
"""

from __future__ import annotations

import json
import re
import sys
from collections import Counter
from dataclasses import dataclass, field
from html import unescape
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING

import duckdb
import pandas as pd
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from debian_programs import install
from foreign import chromium, frames_of_svg, pprof_top
from processes import Program, verb
from redis_server import Load, Redis

sys.path.insert(0, str(Path(__file__).parent.parent / "unit"))
from otlp_receiver import Receiver, nesting
from read_back import Perfetto, speedscope_calls, speedscope_file

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

pytestmark = pytest.mark.timeout(300)

ATTEMPTS = 5
REQUESTS = 20_000
REDIS = ("*Command", "call", "lookup*", "dict*", "addReply*", "ae*", "processInputBuffer")
PYTHON = ("libz.so*!*flate*", "libz.so*!adler32*", "python3*!PyObject_*", "python3*!PyDict_*")
BUSY = """
import json, zlib
data = bytes(range(256)) * 8
print("ready", flush=True)
while True:
    for level in (1, 6, 9):
        assert zlib.decompress(zlib.compress(data, level)) == data
    assert json.loads(json.dumps({"a": list(range(50))}))
"""
PROBE = """<script>
const box = document.getElementById("search"), answer = document.getElementById("found");
function ask(text) {
  box.value = text;
  box.dispatchEvent(new Event("input"));
  return answer.textContent;
}
function colours() {
  const canvas = document.getElementById("graph");
  const {data} = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height);
  return new Set(new Uint32Array(data.buffer)).size;
}
const found = Object.fromEntries(NAMES.map(name => [name, ask(name)]));
ask("");
requestAnimationFrame(() => { // the page has asked for the same frame before
  const pre = document.createElement("pre");
  pre.id = "probe";
  pre.textContent = JSON.stringify({found, colours: colours()});
  document.body.append(pre);
})</script>"""
"""Searches the page for every name as a person would, and looks at what is drawn."""


_ROW = re.compile(r"<tr>(<td data-v.*?)</tr>", re.DOTALL)
_CELL = re.compile(r'<td(?: data-v="([^"]*)")?>([^<]*)</td>')


@dataclass
class Numbers:
    """By function, as the formats write its name."""

    calls: Counter[str] = field(default_factory=Counter)
    total_ns: Counter[str] = field(default_factory=Counter)
    self_ns: Counter[str] = field(default_factory=Counter)


@dataclass
class Recorded:
    """A capture in which every call has an end, and what `report --json` says of it."""

    capture: Path
    report: dict
    numbers: Numbers

    def exported(self, name: str, suffix: str) -> Path:
        out = self.capture.with_suffix(suffix)
        done = verb("export", self.capture, "-f", name, "-o", out, "--force", "-q")
        assert (done.returncode, done.stderr) == (0, "")
        return out


def record(pid: int, capture: Path, patterns: Iterable[str], *more: str) -> Recorded:
    # Formats differ in how they tell of a call without an end: a capture of whole ones compares.
    words = [word for pattern in patterns for word in ("-i", pattern)]
    for _ in range(ATTEMPTS):
        done = verb(
            "record", "-p", pid, "-t", "function_graph", "-d", "150ms", "-o", capture, "-f",
            *words, *more,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        report = json.loads(verb("report", "--json", capture).stdout)
        pairs = report["pairs"]
        if not report["lost"] and not pairs["unfinished"] and not pairs["orphans"]:
            return Recorded(capture, report, numbers_of(report))
    raise AssertionError(f"{ATTEMPTS} captures with a call without an end: {report['pairs']}")


def numbers_of(report: dict) -> Numbers:
    found = Numbers()
    main = report["exe"].rpartition("/")[2]
    for row in report["functions"]:
        module = "" if row["module"] == main else f" [{row['module']}]"
        name = row["function"] + module
        found.calls[name] += row["calls"]
        found.total_ns[name] += row["total_ns"]
        found.self_ns[name] += row["self_ns"]
    return found


def record_redis(request: pytest.FixtureRequest, capture: Path) -> Recorded:
    with Redis(request.getfixturevalue("redis_directory"), "formats-redis") as server:
        server.wait_until_up()
        with Load(server, REQUESTS):
            return record(server.pid, capture, REDIS)


def record_python(_: pytest.FixtureRequest, capture: Path) -> Recorded:
    install("python")
    with Program(["/usr/bin/python3", "-c", BUSY], "formats-python") as program:
        program.wait_for(program.lines)
        return record(program.pid, capture, PYTHON, "-a")


@pytest.fixture(scope="module", params=[record_redis, record_python])
def recorded(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Recorded]:
    name = request.param.__name__.removeprefix("record_")
    found = request.param(request, tmp_path_factory.mktemp(name) / f"{name}.tptrace")
    assert found.report["pairs"]["finished"] == found.numbers.calls.total() > 1000
    assert len(found.numbers.calls) > 10
    return found


def added_up(calls: Iterable[tuple[int, str, int, int]]) -> Numbers:
    """Thread, name, begin and end of calls, outer ones first within a thread, added up."""
    found = Numbers()
    stacks: dict[int, list[tuple[str, int]]] = {}
    for tid, name, begin, end in calls:
        stack = stacks.setdefault(tid, [])
        while stack and stack[-1][1] <= begin:
            stack.pop()
        if stack:
            assert end <= stack[-1][1]
            found.self_ns[stack[-1][0]] -= end - begin
        found.calls[name] += 1
        found.self_ns[name] += end - begin
        found.total_ns[name] += 0 if any(name == above for above, _ in stack) else end - begin
        stack.append((name, end))
    return found


def test_perfetto_by_its_own_classes(recorded: Recorded) -> None:
    data = recorded.exported("perfetto", ".pftrace").read_bytes()
    found = Perfetto(data)
    assert added_up(found.calls()) == recorded.numbers
    rates = found.counter("calls")  # per ms, until it changes
    counted = sum(
        rate * (until_ns - since_ns) / 1e6 for (since_ns, rate), (until_ns, _) in pairwise(rates)
    )
    assert round(counted) == recorded.numbers.calls.total()


def test_chrome_json(recorded: Recorded) -> None:
    found = json.loads(recorded.exported("chrome", ".json").read_bytes())
    calls = [
        (row["tid"], row["name"], round(row["ts"] * 1e3), round((row["ts"] + row["dur"]) * 1e3))
        for row in found["traceEvents"]
        if row["ph"] == "X"
    ]
    assert added_up(calls) == recorded.numbers
    assert {row["pid"] for row in found["traceEvents"]} == {recorded.report["pid"]}


def test_speedscope_by_its_schema(recorded: Recorded) -> None:
    found = speedscope_file(recorded.exported("speedscope", ".speedscope.json").read_bytes())
    assert added_up(speedscope_calls(found)) == recorded.numbers


def test_folded_by_flamegraph_pl(recorded: Recorded, figure: Callable) -> None:
    folded = recorded.exported("folded", ".folded")
    frames = frames_of_svg(folded)
    whole = dict(frames)["all"]
    assert whole == recorded.numbers.self_ns.total()
    stacks = [line.rpartition(" ")[0].split(";") for line in folded.read_text().splitlines()]
    recursive = {name for stack in stacks for name in stack if stack.count(name) > 1}
    found: Counter[str] = Counter()
    for name, width_ns in frames:
        found[name] += width_ns
    # Drawn is what has a width; a function inside of itself is drawn twice.
    wanted = {n: t for n, t in recorded.numbers.total_ns.items() if t and n not in recursive}
    assert len(wanted) > 10
    assert {name: found[name] for name in wanted} == wanted
    figure(f"flamegraph.pl: {len(frames)} frames, {whole / 1e6:,.1f} ms")


def test_pprof_by_go(recorded: Recorded) -> None:
    profile = recorded.exported("pprof", ".pb.gz")
    calls, _ = pprof_top(profile, "calls")
    assert +calls == recorded.numbers.calls
    own, whole = pprof_top(profile, "time")
    assert +own == +recorded.numbers.self_ns
    assert +whole == +recorded.numbers.total_ns


def test_parquet_by_duckdb_pandas_and_arrow(recorded: Recorded) -> None:
    path = recorded.exported("parquet", ".parquet")
    wanted = sorted(
        (row["module"], row["function"], row["calls"], row["self_ns"])
        for row in recorded.report["functions"]
    )
    by_duckdb = duckdb.sql(
        "SELECT module, function, count(*), sum(self_ns)::BIGINT, max(duration_ns), "
        f"min(duration_ns) FROM '{path}' GROUP BY ALL ORDER BY ALL"
    ).fetchall()
    assert [row[:4] for row in by_duckdb] == wanted
    extremes = {(m, f): (longest, shortest) for m, f, _, _, longest, shortest in by_duckdb}
    for row in recorded.report["functions"]:
        key = row["module"], row["function"]
        assert extremes[key] == (row["max_ns"], row["min_ns"])
    frame = pd.read_parquet(path)
    groups = frame.groupby(["module", "function"], observed=True)["self_ns"].agg(["count", "sum"])
    assert sorted((*key, *values) for key, *values in groups.itertuples()) == wanted
    table = pq.read_table(path)
    assert table.num_rows == recorded.numbers.calls.total()
    assert pc.sum(table["self_ns"]).as_py() == recorded.numbers.self_ns.total()
    assert table.schema.metadata[b"textpoke.pid"] == str(recorded.report["pid"]).encode()


def probed(page: Path) -> dict:
    for _ in range(ATTEMPTS):  # on a busy machine the page's time may be over before it is drawn
        document, console = chromium(page)
        assert console == []
        said = document.rpartition('<pre id="probe">')[2].partition("</pre>")[0]
        if said.startswith("{"):
            return json.loads(unescape(said))
    raise AssertionError(f"{page} was never drawn")


def test_the_flame_graph_in_chromium(recorded: Recorded, tmp_path: Path) -> None:
    numbers = recorded.numbers
    page = recorded.exported("flamegraph", ".html").read_text()
    alone = [
        n for n in numbers.calls if sum(n.lower() in other.lower() for other in numbers.calls) == 1
    ]
    copy = tmp_path / "probed.html"
    probe = PROBE.replace("NAMES", json.dumps(alone))
    copy.write_text(page.replace("</body>", f"{probe}</body>"))
    said = probed(copy)
    assert said["colours"] > len(alone) // 2, "the canvas is empty"
    whole = numbers.self_ns.total()
    assert len(alone) > 10
    for name in alone:
        share = numbers.total_ns[name] / whole
        text = said["found"][name]
        if text != "no match":  # of no width
            assert abs(float(text.partition(" %")[0]) / 100 - share) < 0.0001, (name, text)
        else:
            assert not numbers.self_ns[name]


def test_the_report_in_chromium(recorded: Recorded, tmp_path: Path) -> None:
    page = tmp_path / "report.html"
    assert verb("report", "--html", page, recorded.capture).returncode == 0
    document, console = chromium(page)
    assert console == []
    rows = {}
    for row in _ROW.findall(document):
        *cells, name = _CELL.findall(row)
        rows[unescape(name[1])] = [float(value) for value, _ in cells[:3]]
    for row in recorded.report["functions"]:
        name = f"{row['module']}!{row['function']}"
        assert rows[name] == [row["calls"], row["total_ns"], row["self_ns"]]


def test_spans_by_opentelemetry(recorded: Recorded, figure: Callable) -> None:
    with Receiver() as receiver:
        words = ["--endpoint", receiver.url, "--threshold", "5us"]
        done = verb("export", recorded.capture, "-f", "otlp", *words)
    assert done.returncode == 0, done.stderr
    spans = receiver.spans()
    parquet = recorded.exported("parquet", ".parquet")
    wanted = duckdb.sql(
        f"SELECT function, duration_ns, count(*) FROM '{parquet}' WHERE duration_ns >= 5000 "
        "GROUP BY ALL"
    ).fetchall()
    found = Counter(
        (span.name.partition(" [")[0], span.end_time_unix_nano - span.start_time_unix_nano)
        for span in spans
    )
    assert found == {(name, took): count for name, took, count in wanted}
    below = recorded.numbers.calls.total() - len(spans)
    assert f"{len(spans):,} spans sent to {receiver.url}/v1/traces, {below:,} calls" in done.stderr
    assert len(nesting(spans)) == len(spans) > 10
    start_ns, took_ns = recorded.report["start_realtime_ns"], recorded.report["duration_ns"]
    assert start_ns <= min(span.start_time_unix_nano for span in spans)
    assert max(span.end_time_unix_nano for span in spans) <= start_ns + took_ns
    assert receiver.resource()["process.pid"] == recorded.report["pid"]
    figure(f"{len(spans):,} spans of 5 us and more in {len(receiver.requests)} requests")
