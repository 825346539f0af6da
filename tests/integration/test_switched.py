# SPDX-License-Identifier: Apache-2.0
"""A capture that was switched between tracers: calls have ends where ends were recorded."""

from __future__ import annotations

import collections
import json
from typing import TYPE_CHECKING

import programs
from observe import ask, textpoke

import textpoke as api
from textpoke.calls import UNFINISHED, all_calls
from textpoke.decode import ENTRY, Decoder

if TYPE_CHECKING:
    import subprocess
    from pathlib import Path

    from conftest import Compile, Start


def rounds(process: subprocess.Popen[str]) -> collections.Counter[str]:
    """Let tests/targets/selftests.c work; its own counts by function."""
    total: collections.Counter[str] = collections.Counter()
    for counts in json.loads(ask(process, "rounds 200 2")).values():
        del counts["number"]
        total.update(counts)
    return total


def test_each_part_is_read_as_it_was_recorded(
    compile_target: Compile, start_target: Start, tmp_path: Path
) -> None:
    process = start_target(compile_target("selftests.c", *programs.PIE))
    output = tmp_path / "x.tptrace"
    mine = []
    with api.attach(process.pid) as target, target.trace(output=output) as trace:
        for tracer in ("function", "function_graph", "function"):
            trace.tracer = tracer
            mine.append(rounds(process))
    with api.Capture(output) as capture:
        entries = int((Decoder(capture).all().type == ENTRY).sum())
        calls = all_calls(capture)
    assert entries == sum(sum(counts.values()) for counts in mine)
    names = [name.partition("!")[2] for name in calls.names]
    assert collections.Counter(names[site] for site in calls.site.tolist()) == mine[1]
    assert (calls.end_ns != UNFINISHED).all()
    assert int(calls.depth.max()) == 2
    tree = textpoke("report", "--tree", output)
    assert tree.code == 0, tree
    assert tree.out.splitlines()[1].split()[-1] == "schedule"
