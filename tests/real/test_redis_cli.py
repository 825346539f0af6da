# SPDX-License-Identifier: Apache-2.0
"""The command line on a loaded Redis: every verb, and what is left when a tool is killed."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
import time

import pytest
from processes import TEXTPOKE, VERB_TIMEOUT_S, Program, Seen, held, verb
from redis_server import Load

SITES = 3900
KILLS_MS = (0, 20, 40, 60, 80, 100, 140, 180, 240, 300, 500, 1500)

ATTACH_KILLS, ATTACH_KILL_STEP_S = 30, 0.001
ATTACH = """
import os, sys, textpoke, textpoke.tracer
os.write(1, b"now")
textpoke.attach(int(sys.argv[1]))
os.read(0, 1)
"""


@pytest.mark.timeout(300)
def test_every_verb(redis, untouched, tmp_path, figure):
    pid, capture = redis.pid, tmp_path / "redis.tptrace"
    unchanged = untouched(pid)
    with Load(redis) as load:
        doctor = verb("doctor", "-p", pid)
        assert (doctor.returncode, "FAIL" in doctor.stdout) == (0, False), doctor
        listed = json.loads(verb("sites", "-p", pid, "--json").stdout)
        recorded = verb("record", "-v", "-p", pid, "-d", "2s", "-o", capture)
        assert recorded.returncode == 0, recorded
        unchanged(None)
        status = verb("status", "-p", pid)
        assert "no textpoke agent, nothing is patched" in status.stdout
        detached = verb("detach", "-p", pid)
        assert (detached.returncode, "nothing to undo" in detached.stdout) == (0, True), detached
    load.require_no_failure()
    hold, first = _figures(recorded.stderr)
    figure(f"record -v: {hold}; {first}")
    assert sum(site["reason"] is None for site in listed["sites"]) >= SITES
    _check_reports(capture)


def _figures(talk: str) -> tuple[str, str]:
    hold = re.search(r"one thread held for [\d,]+ us", talk)
    first = re.search(r"from start to first event \d+ ms: .*", talk)
    assert hold, talk
    assert first, talk
    for part in ("Python", "attach", "inject", "ELF", "batch"):
        assert re.search(rf"{part} \d+", first[0]), talk
    return hold[0], first[0]


def _check_reports(capture) -> None:
    table = verb("report", "-n", "20", capture)
    assert (table.returncode, "redis-server!" in table.stdout) == (0, True), table
    everything = json.loads(verb("report", "--json", capture).stdout)
    assert everything["events"] > 0
    assert everything["unknown"] == 0
    assert "redis-server" in {thread["name"] for thread in everything["threads"]}
    head = subprocess.run(
        f"'{TEXTPOKE}' report --text '{capture}' | head -n 200",
        shell=True,
        capture_output=True,
        text=True,
        timeout=VERB_TIMEOUT_S,
        check=True,
    )
    lines = head.stdout.splitlines()
    assert (lines[0], len(lines), head.stderr) == ("# tracer: function", 200, "")
    assert re.match(r" +redis-server-\d+ +\d+\.\d{6}: \w+", lines[-1])


@pytest.mark.timeout(300)
def test_a_tool_killed_during_record(redis, untouched, tmp_path):
    pid, capture = redis.pid, tmp_path / "killed.tptrace"
    unchanged = untouched(pid)
    with Load(redis) as load:
        with _record(pid, capture) as tool:
            tool.wait_for(lambda: capture.exists() and capture.stat().st_size > 1 << 20)
            tool.process.send_signal(signal.SIGKILL)
            tool.process.wait()
        deadline_s = time.monotonic() + 20
        while (left := json.loads(verb("status", "-p", pid, "--json").stdout))["patched"]:
            assert time.monotonic() < deadline_s, "the agent does not turn its probes off"
        assert (left["owner"], left["turned_off"]) == ("", 1)
        assert left["known"] >= SITES
        assert "its tool is gone" in verb("status", "-p", pid).stdout
        assert redis.ask("PING") == "+PONG"
        report = verb("report", "--json", capture)
        assert json.loads(report.stdout)["cut_off"], report
        detached = verb("detach", "-p", pid, "--json")
        assert detached.returncode == 0, detached
        unchanged(None)
    load.require_no_failure()
    answer = json.loads(detached.stdout)
    assert answer["clean"], answer
    assert answer["sites"] >= SITES
    assert "nothing is patched" in verb("status", "-p", pid).stdout


@pytest.mark.timeout(300)
def test_a_tool_killed_while_it_attaches(redis, untouched, figure):
    pid = redis.pid
    unchanged = untouched(pid)
    agents = 0
    with Load(redis) as load:
        for turn in range(ATTACH_KILLS):
            words = [sys.executable, "-c", ATTACH, str(pid)]
            with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as tool:
                assert tool.stdout.read(1)
                time.sleep(turn * ATTACH_KILL_STEP_S)
                tool.kill()
            agents += bool(json.loads(verb("status", "-p", pid, "--json").stdout)["agent_tid"])
            assert redis.ask("PING") == "+PONG"
            detached = verb("detach", "-p", pid)
            assert detached.returncode == 0, detached
            unchanged(None)
    load.require_no_failure()
    figure(f"{agents} of {ATTACH_KILLS} tools killed while they attached had brought an agent in")


@pytest.mark.timeout(300)
def test_a_tool_killed_between_attach_and_recording(redis, untouched, tmp_path, figure):
    pid = redis.pid
    unchanged = untouched(pid)
    before = Seen.now(pid)
    left = []
    with Load(redis) as load:
        for kill_ms in KILLS_MS:
            with _record(pid, tmp_path / f"killed-{kill_ms}.tptrace") as tool:
                tool.wait_for(lambda: _is_in(pid, before) and not held(pid))
                time.sleep(kill_ms / 1e3)
                tool.process.send_signal(signal.SIGKILL)
                tool.process.wait()
            status = json.loads(verb("status", "-p", pid, "--json").stdout)
            assert status["agent_tid"]
            left.append(status["known"])  # the agent may have put them back already
            assert redis.ask("PING") == "+PONG"
            detached = verb("detach", "-p", pid)
            assert detached.returncode == 0, detached
            unchanged(None)
    load.require_no_failure()
    assert max(left) >= SITES
    figure(f"sites switched on by tools killed {KILLS_MS} ms after the attach: {left}")


def test_a_second_tool_is_told_who_is_attached(redis, untouched, tmp_path):
    pid, capture = redis.pid, tmp_path / "first.tptrace"
    unchanged = untouched(pid)
    with _record(pid, capture) as tool:
        tool.wait_for(capture.exists)
        second = verb("record", "-p", pid, "-d", "1s", "-o", tmp_path / "second.tptrace")
        assert (second.returncode, f"{tool.pid}" in second.stderr) == (3, True), second
        assert f"{tool.pid}" in verb("status", "-p", pid).stdout
        tool.process.send_signal(signal.SIGINT)
        assert tool.process.wait(VERB_TIMEOUT_S) == 0, tool.log.read_text()
    unchanged(None)


def _is_in(pid: int, before: Seen) -> bool:
    return len(Seen.now(pid).threads) > len(before.threads)


def _record(pid: int, capture) -> Program:
    return Program([TEXTPOKE, "record", "-p", pid, "-o", capture], f"record-{capture.stem}")
