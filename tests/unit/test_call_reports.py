# SPDX-License-Identifier: Apache-2.0
"""The reports of blk, wakeup_rt and irqsoff, from capture files to lines and JSON."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import captures
import pytest
from call_tables import CONDITION, FDS, IO, LOCK, LOCKS, WAKES, Call, call, recipe

from textpoke.capture import Capture
from textpoke.cli import main
from textpoke.report import blk, latency

if TYPE_CHECKING:
    from pathlib import Path


def write(path: Path, tracer: str, calls: list[Call], **more: object) -> Path:
    return captures.write(path, recipe(tracer, calls, **more))


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "x.tptrace"


def test_blk_as_a_table(path: Path) -> None:
    write(path, "blk", IO, fds=FDS)
    with Capture(path) as capture:
        found = list(blk.lines(capture))
    assert found[0] == (
        "server (pid 100), tracer blk: 7 calls, 1 failed, 7 bytes read, 128 written, 0 events lost"
    )
    table = [line.split() for line in found[2:6]]
    assert table[0][-1] == "FILE"
    assert table[1] == ["4", "0", "0", "128", "28.000", "2.000", "20.000", "20.000", "/var/log/x"]
    assert sorted(row[0] for row in table[2:]) == ["1", "2"]
    assert {row[-1] for row in table[2:]} == {"pipe:[7]", "(unknown)"}
    assert sum(int(line.split()[2]) for line in found[8:]) == 6


@pytest.mark.parametrize(
    ("by", "first"),
    [("function", "write"), ("caller", "0x1234"), ("thread", "server-100")],
)
def test_blk_by_other_things(path: Path, by: blk.By, first: str) -> None:
    write(path, "blk", IO, fds=FDS)
    with Capture(path) as capture:
        rows = list(blk.lines(capture, by=by, limit=1))
    assert rows[2].split()[-1] == by.upper()
    assert rows[3].split()[-1] == first
    assert rows[4] == ""


def test_blk_as_lines(path: Path) -> None:
    write(path, "blk", IO, fds=FDS)
    with Capture(path) as capture:
        found = "".join(blk.text(capture)).splitlines()
    assert found[0] == "# tracer: blk"
    lines = [" ".join(line.split()) for line in found if not line.startswith("#")]
    assert lines[1] == (
        "server-100 12345.000010: W write 3 (/var/log/x) + 100 [20.000 us] <-0x1234"
    )
    assert lines[4] == "worker-101 12345.000060: R read 9 (?) failed [1.000 us] <-0x1234"
    assert lines[6].endswith("recv 0 (pipe:[7]) + 0 [did not return] <-0x1234")


def test_blk_as_json(path: Path) -> None:
    write(path, "blk", IO, fds=FDS)
    with Capture(path) as capture:
        found = json.loads(json.dumps(blk.records(capture)))
    assert (found["io_calls"], found["failed"]) == (7, 1)
    assert (found["bytes_read"], found["bytes_written"]) == (7, 128)
    assert found["latency"]["count"] == 6
    assert found["latency"]["max_ns"] == 20_000
    assert {row["name"]: row["bytes_written"] for row in found["by_file"]}["/var/log/x"] == 128
    assert {row["name"]: row["calls"] for row in found["by_function"]} == {
        "open": 1, "write": 2, "read": 2, "close": 1, "recv": 1,
    }  # fmt: skip
    assert found["unfinished"] == 1


def test_irqsoff_in_ftraces_latency_format(path: Path) -> None:
    write(path, "irqsoff", LOCKS)
    with Capture(path) as capture:
        found = list(latency.lines(capture))
    assert "2 holds of locks, 1 of masked signals" in found[0]
    assert found[2] == "# tracer: irqsoff"
    assert "# latency: 180.000 us, #3/3, #P:2" in found
    assert "#    | task: server-100" in found
    assert "#    | object: mutex 0x5000" in found
    assert "#  => started at: pthread_mutex_lock [libc.so.6] <-0x11" in found
    assert "#  => ended at:   pthread_mutex_unlock [libc.so.6] <-0x22" in found
    assert "#  => stack of server-100: serve > pthread_mutex_lock [libc.so.6]" in found
    body = [line for line in found if "us" in line and ": " in line and line[0] == " "]
    assert [line.split()[1] for line in body[:4]] == [
        "0.000us", "10.000us", "20.000us!:", "180.000us",
    ]  # fmt: skip
    assert body[1].endswith(": work <-serve")
    assert body[2].endswith(":   compute <-work")


def test_irqsoff_as_json(path: Path) -> None:
    write(path, "irqsoff", LOCKS)
    with Capture(path) as capture:
        found = json.loads(json.dumps(latency.records(capture)))
    locks, signals = found["longest"]
    assert (locks["latency_ns"], signals["latency_ns"]) == (180_000, 49_000)
    assert signals["object"] == "signals masked"
    assert [row["function"] for row in locks["inside"]][:2] == ["work", "compute"]
    (lock,) = found["by_object"]
    assert (lock["address"], lock["kind"], lock["count"]) == (LOCK, "mutex", 2)
    assert (lock["total_ns"], lock["max_ns"]) == (185_000, 180_000)
    (taking,) = found["taking"]
    assert (taking["total_ns"], taking["failed"]) == (200_000, 0)
    assert [row["tid"] for row in found["masked_by_thread"]] == [101]


def test_what_was_masked_before_comes_from_the_capture(path: Path) -> None:
    write(path, "irqsoff", LOCKS, masks={"101": 2, "x": 3, "100": "y"})
    with Capture(path) as capture:
        assert len(latency.records(capture)["longest"]) == 1


def test_wakeup_in_ftraces_latency_format(path: Path) -> None:
    write(path, "wakeup_rt", WAKES)
    with Capture(path) as capture:
        found = list(latency.lines(capture, limit=3))
    assert "1 wakes of 1 waits" in found[0]
    assert "# latency: 30.000 us, #2/2, #P:2" in found
    assert "#    | task: worker-101" in found
    assert f"#    | object: cond {CONDITION:#x}" in found
    assert "#  => stack of server-100: produce > pthread_cond_signal [libc.so.6]" in found
    assert "#  => stack of worker-101: serve > pthread_cond_wait [libc.so.6]" in found
    body = [" ".join(line.split()) for line in found if line.startswith("   ") and "us" in line]
    assert body == [
        "server-100 0.000us : pthread_cond_signal [libc.so.6] <-0x55",
        "server-100 10.000us+: more <-produce",
        "worker-101 30.000us : pthread_cond_wait [libc.so.6] <-0x44",
    ]


def test_wakeup_as_json(path: Path) -> None:
    write(path, "wakeup_rt", WAKES)
    with Capture(path) as capture:
        found = json.loads(json.dumps(latency.records(capture)))
    (longest,) = found["longest"]
    assert longest["latency_ns"] == 30_000
    assert longest["started_at"]["tid"] == 100
    assert [stack["functions"][0] for stack in longest["stacks"]] == ["produce", "serve"]
    assert [row["tid"] for row in found["by_woken_thread"]] == [101]
    assert [row["tid"] for row in found["by_waking_thread"]] == [100]


@pytest.mark.parametrize("tracer", ["wakeup_rt", "irqsoff"])
def test_a_capture_without_calls(path: Path, tracer: str) -> None:
    write(path, tracer, [])
    with Capture(path) as capture:
        assert "latency:" not in "".join(latency.lines(capture))
        assert latency.records(capture)["longest"] == []


def test_a_blk_capture_without_calls(path: Path) -> None:
    write(path, "blk", [])
    with Capture(path) as capture:
        assert blk.records(capture)["io_calls"] == 0
        assert next(iter(blk.lines(capture))).startswith("server (pid 100)")
        assert "".join(blk.text(capture)).startswith("# tracer: blk")


def test_names_from_the_capture_win_over_symbols(path: Path) -> None:
    sites = [[0x7F0000001000, "server", "sys_write_alias"]]
    functions = {str(0x7F0000001000): "write"}
    calls = [call(100, "write", 0, 10, 5, fd=1)]
    write(path, "blk", calls, functions=functions)
    with Capture(path) as capture:
        assert blk.records(capture)["bytes_written"] == 5
    path.unlink()
    captures.write(
        path, captures.Recipe(meta=captures.meta(tracer="blk", sites=sites, functions=functions))
    )
    with Capture(path) as capture:
        assert blk.records(capture)["io_calls"] == 0


@pytest.mark.parametrize(
    ("tracer", "calls", "options", "shown"),
    [
        ("blk", IO, ["--by", "caller", "-n", "1"], "0x1234"),
        ("blk", IO, ["--text"], "W write 3 (/var/log/x) + 100"),
        ("blk", IO, ["--json"], '"by_file"'),
        ("irqsoff", LOCKS, [], "# latency: 180.000 us"),
        ("wakeup_rt", WAKES, ["--json"], '"by_woken_thread"'),
        ("irqsoff", LOCKS, ["--text"], "pthread_mutex_lock"),
    ],
)
def test_the_command_line_picks_the_report(
    path: Path,
    capsys: pytest.CaptureFixture[str],
    tracer: str,
    calls: list[Call],
    options: list[str],
    shown: str,
) -> None:
    write(path, tracer, calls)
    assert main(["report", str(path), *options]) == 0
    assert shown in capsys.readouterr().out


def test_rows_that_a_tracer_has_not(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(path, "irqsoff", LOCKS)
    for by in ("file", "thread"):
        assert main(["report", str(path), "--by", by]) == 2
        assert "--by" in capsys.readouterr().err
