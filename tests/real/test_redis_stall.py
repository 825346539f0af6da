# SPDX-License-Identifier: Apache-2.0
"""The flight recorder on a loaded Redis: a planted stall, with what led to it, and its price."""

from __future__ import annotations

import json
import subprocess
import time
from collections import Counter

import numpy as np
import pytest
from processes import TEXTPOKE, VERB_TIMEOUT_S
from redis_server import Load

import textpoke
from textpoke.calls import UNFINISHED, all_calls

STALL_S = 0.005
KEEP_MS = 100
MEASURE_S = 2.0
TRIGGER = f"debugCommand>5ms:keep={KEEP_MS}ms"
REQUESTS = 1_000_000


def _commands_per_s(redis) -> float:
    before, start = int(redis.info("stats")["total_commands_processed"]), time.monotonic()
    time.sleep(MEASURE_S)
    after = int(redis.info("stats")["total_commands_processed"])
    return (after - before) / (time.monotonic() - start)


def _stall(redis) -> None:
    assert redis.ask("DEBUG", "SLEEP", str(STALL_S)) == "+OK"


@pytest.mark.timeout(300)
def test_a_planted_stall_is_caught_with_its_functions(redis, untouched, tmp_path, figure):
    output = tmp_path / "flight.tptrace"
    unchanged = untouched(redis.pid)
    words = ["-t", "function_graph", "--flight", "--buffer", "64M", "--trigger", TRIGGER]
    with Load(redis, REQUESTS) as load:
        without = _commands_per_s(redis)
        recorder = subprocess.Popen(
            [TEXTPOKE, "record", "--json", "-p", str(redis.pid), "-o", output, *words],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        assert recorder.stderr.readline().startswith("tracing ")
        time.sleep(1.0)
        _stall(redis)
        within = _commands_per_s(redis)
        _stall(redis)
        time.sleep(0.5)
        recorder.terminate()
        answer, talk = recorder.communicate(timeout=VERB_TIMEOUT_S)
        said = json.loads(answer)
    load.require_no_failure()
    unchanged(None)
    assert talk.count("trigger: redis-server!debugCommand: keep") == 2, talk
    assert said["lost"] == said["lost_no_ring"] == 0
    figures = {
        "throughput_ratio": round(within / without, 3),
        "commands_per_s": [round(without), round(within)],
        "overhead": said["overhead"],
        "kept_events": said["events"],
        "megabytes": round(output.stat().st_size / 1e6, 1),
    }
    figure(json.dumps(figures))
    assert 0 < said["overhead"]["share"] < 1
    _check_capture(output, figure)


def _check_capture(output, figure) -> None:
    with textpoke.Capture(output) as capture:
        hits = [note for note in _notes(capture) if note.get("from_tsc")]
        assert [hit["trigger"] for hit in hits] == [TRIGGER] * 2
        for hit in hits:
            assert hit["complete_from_tsc"] == hit["from_tsc"], "the ring was too small"
            assert hit["lost"] == 0
            assert hit["events"] > 0
        calls = all_calls(capture)
        names = [site.function for site in capture.meta.sites]
    stalls = np.flatnonzero(calls.site == names.index("debugCommand"))
    took_ms = (calls.end_ns - calls.start_ns)[stalls] / 1e6
    assert len(stalls) == 2
    assert (calls.end_ns[stalls] != UNFINISHED).all()
    assert (took_ms > STALL_S * 1e3).all()
    for stall in stalls.tolist():
        below = {names[calls.site[row]] for row in np.flatnonzero(calls.parent == stall).tolist()}
        assert "addReply" in below
        assert {"call", "processCommand"} <= set(_above(calls, names, stall))
    beside = Counter(names[site] for site in calls.site.tolist() if site >= 0)
    assert min(beside["setCommand"] + beside["getCommand"], beside["processCommand"]) > 100
    figure(f"stalls of {took_ms.round(2).tolist()} ms among {len(calls.site):,} calls")


def _above(calls, names, row) -> list[str]:
    found = []
    while (row := int(calls.parent[row])) >= 0:
        found.append(names[calls.site[row]])
    return found


def _notes(capture) -> list[dict]:
    return [note for fields in capture.notes for note in fields.get("notes", [])]
