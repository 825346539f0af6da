# SPDX-License-Identifier: Apache-2.0
"""Two captures compared: what has changed, what came and went, and what could not be seen."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import captures
import pytest
from captures import GET, INFLATE, SET, UNKNOWN, Recipe, Ring

from textpoke._errors import CaptureFormat
from textpoke.capture import Capture
from textpoke.report.counts import count
from textpoke.report.diff import diff_notes, diff_records, diff_table
from textpoke.report.difference import Change, Difference, difference, ordered
from textpoke.report.measured import UNKNOWN as NO_NAME
from textpoke.report.measured import Measured, Numbers, measured

if TYPE_CHECKING:
    from pathlib import Path

IN, OUT = 1, 2
SECOND_TICKS = 3_000_000_000
NAMES = {SET: "setCommand", GET: "getCommand", INFLATE: "inflate", UNKNOWN: "[unknown]"}


def calls(*spans: tuple[int, int]) -> Ring:
    """One call after the other: (address, nanoseconds)."""
    rows, now = [], 0
    for address, ns in spans:
        rows += [(3 * now, address, IN), (3 * (now + ns), address, OUT)]
        now += ns
    return Ring(rows)


def of(tmp_path: Path, ring: Ring, seconds: int = 2, **meta: object) -> Measured:
    path = tmp_path / "x.tptrace"
    path.unlink(missing_ok=True)
    recipe = Recipe(
        [ring],
        meta=captures.meta(**{"tracer": "function_graph", **meta}),
        end=captures.end(seconds * SECOND_TICKS),
    )
    with Capture(captures.write(path, recipe)) as capture:
        return measured(capture, count(capture))


def rows_of(found: Difference) -> dict[str, tuple[str, Change, Change]]:
    return {r.name[1]: (r.presence, r.calls, r.total_ns) for r in found.functions}


def test_changes_of_each_function(tmp_path: Path) -> None:
    before = of(tmp_path, calls((SET, 10), (SET, 30), (GET, 7)))
    after = of(tmp_path, calls((SET, 5), (UNKNOWN, 3)))
    found = difference(before, after)
    assert (found.per_second, found.has_times, found.time_known) == (False, True, True)
    assert rows_of(found) == {
        "setCommand": ("both", Change(2, 1), Change(40, 5)),
        "getCommand": ("gone", Change(1, 0), Change(7, 0)),
        "[unknown]": ("only traced after", Change(0, 1), Change(0, 3)),
    }
    first = ordered(found)[0]
    assert (first.average_ns, first.self_ns) == (Change(20, 5), Change(40, 5))
    assert (first.average_ns.absolute, first.average_ns.percent) == (-15, -75)
    assert Change(0, 4).percent is None
    assert [row.name[1] for row in ordered(found, limit=2)] == ["setCommand", "getCommand"]
    assert next(row.name[1] for row in ordered(found, "avg")) == "setCommand"


def test_recordings_of_other_lengths_are_compared_by_rate(tmp_path: Path) -> None:
    before = of(tmp_path, calls((SET, 10), (SET, 10)), seconds=1)
    after = of(tmp_path, calls(*[(SET, 10)] * 4), seconds=2)
    found = difference(before, after)
    assert found.per_second
    (row,) = found.functions
    assert (row.calls, row.total_ns) == (Change(2, 2), Change(20, 20))
    assert (row.raw_before.calls, row.raw_after.calls) == (2, 4)
    assert diff_notes(found) == [
        "the recordings have different lengths: calls and times are per second"
    ]
    assert next(iter(diff_table(found))).split()[:5] == [
        "CALLS/S",
        "AFTER",
        "CHANGE",
        "%",
        "TOTAL/S",
    ]


def test_what_could_not_be_seen_is_no_change(tmp_path: Path) -> None:
    set_alone = [captures.SITES[0]]
    before = of(tmp_path, calls((SET, 10)), sites=set_alone)
    after = of(tmp_path, calls((SET, 10), (GET, 10)))
    found = difference(before, after)
    assert rows_of(found)["getCommand"][0] == "only traced after"
    assert rows_of(difference(after, before))["getCommand"][0] == "only traced before"
    line = next(line for line in diff_table(found) if "getCommand" in line)
    assert line.split()[:4] == ["-", "1", "-", "-"]
    assert line.endswith("redis-server!getCommand  (only traced after)")


def test_table_shows_what_came_and_went(tmp_path: Path) -> None:
    found = difference(of(tmp_path, calls((GET, 7_000))), of(tmp_path, calls((SET, 5_000))))
    header, gone, new = (line.split() for line in diff_table(found))
    others = ["AFTER", "CHANGE", "%"]
    titles = ["CALLS", "TOTAL", "SELF", "AVG"]
    assert header == [cell for title in titles for cell in (title, *others)] + ["FUNCTION"]
    assert gone[:8] == ["1", "-", "-1", "-", "7.000", "us", "-", "-7.000"]
    assert gone[-6:] == ["us", "-", "-", "-", "redis-server!getCommand", "(gone)"]
    assert new[:8] == ["-", "1", "+1", "-", "-", "5.000", "us", "+5.000"]
    assert new[-1] == "(new)"


def test_functions_of_one_name_are_one(tmp_path: Path) -> None:
    twice = [*captures.SITES[:1], [GET, "redis-server", "setCommand"]]
    found = of(tmp_path, calls((SET, 10), (GET, 20)), sites=twice)
    assert found.functions == {("redis-server", "setCommand"): Numbers(2, 2, 30, 30, 30)}


def test_without_durations_calls_are_compared(tmp_path: Path) -> None:
    ring = Ring([(0, SET), (3, SET)])
    counted = of(tmp_path, ring, tracer="function")
    assert counted.functions == {("redis-server", "setCommand"): Numbers(2)}
    found = difference(counted, of(tmp_path, calls((SET, 10))))
    assert not found.has_times
    header, row = diff_table(found, sort="calls")
    assert header.split() == ["CALLS", "AFTER", "CHANGE", "%", "FUNCTION"]
    assert row.split() == ["2", "1", "-1", "-50.0", "redis-server!setCommand"]
    assert diff_notes(found)[0].startswith("only calls are compared")


def test_profile_has_numbers_without_events(tmp_path: Path) -> None:
    path = tmp_path / "x.tptrace"
    end = captures.end(profile={"rows": [[SET, 4, 300, 120, 90, 0, 0, {}]]})
    recipe = Recipe(meta=captures.meta(tracer="profile"), end=end)
    with Capture(captures.write(path, recipe)) as capture:
        found = measured(capture, count(capture))
    assert found.functions == {("redis-server", "setCommand"): Numbers(4, 4, 100, 40, 100)}
    assert (found.duration_ns, found.has_times) == (2_000_000_000, True)


def test_records(tmp_path: Path) -> None:
    before, after = of(tmp_path, calls((SET, 10))), of(tmp_path, calls((SET, 15), (UNKNOWN, 1)))
    data = json.loads(json.dumps(diff_records(difference(before, after))))
    first, unknown = data["functions"]
    assert first["total_ns"] == {"before": 10, "after": 15, "change": 5, "percent": 50}
    assert (first["module"], first["function"]) == ("redis-server", "setCommand")
    assert first["after"] == {"calls": 1, "total_ns": 15, "self_ns": 15, "average_ns": 15}
    assert (unknown["function"], unknown["total_ns"]["percent"]) == (None, None)
    assert ("", NAMES[UNKNOWN]) == NO_NAME


@pytest.mark.parametrize("length", [0, 2])
def test_lengths_that_are_equal_or_nothing_give_plain_numbers(length: int) -> None:
    before = Measured(length, True, True, set(), {("m", "f"): Numbers(2)})
    after = Measured(2, True, True, set(), {("m", "f"): Numbers(3)})
    found = difference(before, after)
    assert not found.per_second
    assert found.functions[0].calls == Change(2, 3)


def test_a_damaged_profile_is_refused(tmp_path: Path) -> None:
    end = captures.end(profile={"rows": [[SET, 4, 300, 120, 90, 0, 0, []]]})
    recipe = Recipe(meta=captures.meta(tracer="profile"), end=end)
    with (
        Capture(captures.write(tmp_path / "x.tptrace", recipe)) as capture,
        pytest.raises(CaptureFormat, match="a row of the profile"),
    ):
        measured(capture, count(capture))
