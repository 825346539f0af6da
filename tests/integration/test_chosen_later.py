# SPDX-License-Identifier: Apache-2.0
"""Functions that are chosen after the start of a recording are recorded as those of the start."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import live
import programs
import pytest
from observe import ask, tell

import textpoke
from textpoke.arguments import parse
from textpoke.calls import all_calls

if TYPE_CHECKING:
    import subprocess
    from collections.abc import Iterator
    from pathlib import Path

    from conftest import Compile, Start

SHARED = (programs.NOPS, "-shared", "-fPIC")
OTHER = (*SHARED, "-DFACTOR=7", "-DPADDING=1")
CALLS = 10
Words = list[tuple[tuple[int, ...], tuple[int, ...]]]


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_RUNTIME_DIR", os.fspath(tmp_path))
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def plugins(compile_target: Compile, start_target: Start) -> Iterator[subprocess.Popen[str]]:
    """A program that opens one of two plugins, whose functions differ."""
    objects = [str(compile_target("plugin.c", *flags)) for flags in (SHARED, OTHER)]
    process = start_target(compile_target("plugins.c", *programs.PIE), *objects)
    yield process
    tell(process, "quit")
    assert process.wait(timeout=20) == 0


def words_of(function: str, path: str) -> Words:
    """What each call of a function carried at its entry and at its end, in the order of time."""
    with textpoke.Capture(path) as capture:
        calls = all_calls(capture)
        names = [site.function for site in capture.meta.sites]
    rows = [row for row in range(len(calls)) if names[calls.site[row]] == function]
    return [(tuple(calls.entry_words(row)), tuple(calls.exit_words(row))) for row in rows]


def carried(factor: int) -> Words:
    """Of CALLS calls of plugin(), by its source."""
    return [((x,), ((2 * x + 1) * factor,)) for x in range(CALLS)]


@pytest.mark.usefixtures("here")
def test_a_new_filter_brings_arguments_and_results(plugins: subprocess.Popen[str]) -> None:
    arguments = [parse("plugin-*!*(x)"), parse("plugin-*!*", returns=True)]
    assert ask(plugins, "open 0") == "0"
    with textpoke.attach(plugins.pid) as target:
        trace = target.trace(
            "plugin-*!leaf", tracer="function_graph", output="x.tptrace", arguments=arguments
        )
        with trace:
            ask(plugins, "call 0 1")
            trace.filter = ["plugin-*!plugin"]
            ask(plugins, f"call 0 {CALLS}")
            trace.filter = ["plugin-*!leaf"]
            ask(plugins, "call 0 1")
    assert words_of("plugin", "x.tptrace") == carried(3)
    assert words_of("leaf", "x.tptrace") == [((0,), (0,)), ((1,), (3,))] * 2


@pytest.mark.usefixtures("here")
def test_modules_that_come_and_replace_each_other_bring_theirs(
    plugins: subprocess.Popen[str],
) -> None:
    arguments = [parse("plugin-*!plugin(x)"), parse("plugin-*!plugin", returns=True)]
    with textpoke.attach(plugins.pid) as target:
        trace = target.trace(
            ["work", "plugin-*!plugin"],
            tracer="function_graph",
            output="x.tptrace",
            arguments=arguments,
        )
        with trace:
            for plugin in (0, 1):
                assert ask(plugins, f"open {plugin}") == "0"
                trace.run(seconds=0.3)
                ask(plugins, f"call {plugin} {CALLS}")
                assert ask(plugins, f"close {plugin}") == "0"
                trace.run(seconds=0.3)
    assert words_of("plugin", "x.tptrace") == carried(3) + carried(7)


@pytest.mark.usefixtures("here")
def test_the_filter_of_another_tool_brings_arguments_and_says_where_there_are_none(
    compile_target: Compile, start_target: Start
) -> None:
    process = start_target(compile_target("triggers.c", *programs.PIE), "1")
    arguments = [parse("*(x)")]
    with live.running(process, "w*", arguments=arguments) as running:
        running.drain(0.1)
        running.tool("filter", "quiet", "work")
        running.drain(0.1)
        remarks = running.recording.remarks
    assert [line for line in remarks if "quiet" in line and "not captured" in line]
    assert words_of("quiet", live.OUTPUT)[0] == ((), ())
    assert words_of("work", live.OUTPUT)[-1] == ((1,), ())


def test_a_new_filter_chooses_among_all_functions_as_before(
    compile_target: Compile, start_target: Start
) -> None:
    process = start_target(compile_target("triggers.c", *programs.PIE), "1")
    with textpoke.attach(process.pid) as target, target.trace("work", everything=True) as trace:
        trace.filter = ["pause_us", "quiet"]  # the first one has no NOPs
        assert {site.function for site in trace.chosen} == {"pause_us", "quiet"}
        trace.filter = ["pause_us"]
        trace.drain()
        before = trace.events
        trace.run(seconds=0.2)
        assert trace.events > before
        trace.filter = []
        trace.notrace = ["work"]
        assert "pause_us" in {site.function for site in trace.chosen}


@pytest.mark.usefixtures("here")
def test_another_tool_chooses_among_all_functions_that_the_recording_was_to_choose_from(
    compile_target: Compile, start_target: Start
) -> None:
    process = start_target(compile_target("triggers.c", *programs.PIE), "1")
    with live.running(process, "work", everything=True) as running:
        running.tool("filter", "pause_us", "quiet")
        assert running.tool("filter", "--list").split() == ["pause_us", "quiet"]
