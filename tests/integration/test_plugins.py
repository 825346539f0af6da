# SPDX-License-Identifier: Apache-2.0
"""Modules that come and go, before, while and after their sites are patched (H15)."""

from __future__ import annotations

import collections
import contextlib
import threading
import time
from typing import TYPE_CHECKING

import programs
import pytest
from observe import ask, tell, text_equals_files

import textpoke
from textpoke.engine import run_request
from textpoke.poke import Poke, Request
from textpoke.report.counts import count

if TYPE_CHECKING:
    import subprocess
    from collections.abc import Iterator
    from pathlib import Path

    from conftest import Compile, Start

    from textpoke.agent import Agent

SHARED = (programs.NOPS, "-shared", "-fPIC")
OTHER = (*SHARED, "-DFACTOR=7", "-DPADDING=1")
NOP, CLC = b"\x90", b"\xf8"
TOGGLE_S = 1.0


@pytest.fixture
def plugins(compile_target: Compile, start_target: Start) -> Iterator[subprocess.Popen[str]]:
    """A program with two plugins, at the same address in turn, and a hot thread of its own."""
    objects = [str(compile_target("plugin.c", *flags)) for flags in (SHARED, OTHER)]
    process = start_target(compile_target("plugins.c", *programs.PIE), *objects)
    assert ask(process, "storm 10 10") == "0"
    yield process
    assert text_equals_files(process.pid)
    tell(process, "quit")
    assert process.wait(timeout=20) == 0


def left_clean(target: textpoke.Target) -> None:
    assert target.report is not None
    assert target.report.residue == []
    assert target.report.handler_restored
    assert target.report.text.differing == []


def address_of(process: subprocess.Popen[str], plugin: int) -> int:
    bad, address = map(int, ask(process, f"call {plugin} 1").split())
    assert not bad
    return address


def test_a_new_module_is_found_by_the_next_trace_and_a_gone_one_forgotten(
    plugins: subprocess.Popen[str],
) -> None:
    with textpoke.attach(plugins.pid) as target:
        with pytest.raises(textpoke.UnknownFunction):
            target.trace("leaf")
        for _ in range(2):
            for plugin in (0, 1):
                assert ask(plugins, f"open {plugin}") == "0"
                with target.trace("leaf") as trace:
                    assert ask(plugins, f"call {plugin} 100").startswith("0 ")
                assert (trace.events, trace.lost, trace.left_alone) == (200, 0, 0)
                assert ask(plugins, f"close {plugin}") == "0"
        with pytest.raises(textpoke.UnknownFunction):
            target.trace("leaf")
    left_clean(target)


def test_a_module_that_comes_while_we_record_is_traced_as_it_comes(
    plugins: subprocess.Popen[str], tmp_path: Path
) -> None:
    output = tmp_path / "x.tptrace"
    with textpoke.attach(plugins.pid) as target:
        with target.trace(["work", "plugin-*!plugin"], output=output) as trace:
            assert {site.function for site in trace.chosen} == {"work"}
            for _ in range(2):  # the second time it is another one, at the same place
                assert ask(plugins, "open 0") == "0"
                trace.run(seconds=0.3)
                assert ask(plugins, "call 0 100").startswith("0 ")
                assert ask(plugins, "close 0") == "0"
                trace.run(seconds=0.3)
        assert trace.refused == []
    left_clean(target)
    with textpoke.Capture(output) as capture:
        names = [site.function for site in capture.meta.sites]
        calls = {i: n for t in count(capture).threads for i, n in t.calls.by_site().items()}
    by_name: collections.Counter[str] = collections.Counter()
    for site, number in calls.items():
        by_name[names[site]] += number
    assert by_name["plugin"] == 200


def test_another_module_at_the_address_of_a_patched_one_is_not_touched(
    plugins: subprocess.Popen[str],
) -> None:
    assert ask(plugins, "open 0") == "0"
    first = address_of(plugins, 0)
    with textpoke.attach(plugins.pid) as target:
        trace = target.trace(["leaf", "plugin", "work"])
        trace.start()
        assert ask(plugins, "close 0") == "0"
        assert ask(plugins, "open 1") == "0"
        assert address_of(plugins, 1) // 65536 == first // 65536  # it lies where the other lay
        assert ask(plugins, "call 1 100").startswith("0 ")
        trace.stop()
        assert trace.left_alone == 2
        assert trace.off is not None
        assert trace.off.finished == 1
        with target.trace("leaf") as again:
            assert ask(plugins, "call 1 100").startswith("0 ")
        # The hot thread may have been on its way through the thunk when the first trace ended.
        assert again.events - 200 in (0, 1)
    left_clean(target)
    assert ask(plugins, "call 1 100").startswith("0 ")


def test_a_module_closed_while_it_is_patched_leaves_a_clean_detach(
    plugins: subprocess.Popen[str],
) -> None:
    with textpoke.attach(plugins.pid) as target:
        assert ask(plugins, "open 0") == "0"
        target.trace().start()
        assert ask(plugins, "close 0") == "0"
    left_clean(target)


def storm(process: subprocess.Popen[str], calls: int) -> contextlib.AbstractContextManager[None]:
    """Open and close plugins until the end of the block."""

    @contextlib.contextmanager
    def run() -> Iterator[None]:
        done = threading.Event()
        bad: list[str] = []

        def repeat() -> None:
            while not done.is_set():
                bad.append(ask(process, f"storm 50 {calls}"))

        thread = threading.Thread(target=repeat)
        thread.start()
        try:
            yield
        finally:
            done.set()
            thread.join()
        assert set(bad) == {"0"}

    return run()


def test_modules_come_and_go_while_sites_are_toggled(plugins: subprocess.Popen[str]) -> None:
    toggles = refused = broken = 0
    with textpoke.attach(plugins.pid) as target:
        with storm(plugins, 300_000):
            end = time.monotonic() + TOGGLE_S
            while time.monotonic() < end:
                # What was found may be gone when the batch comes: then nothing is written.
                try:
                    with target.trace():
                        toggles += 1
                except textpoke.PokeError as exc:
                    refused += 1
                    broken += not getattr(exc, "recovered", True)
        with target.trace("work") as trace:
            pass
        assert trace.left_alone == 0
    left_clean(target)
    assert toggles, refused
    assert broken == 0


def test_a_module_that_is_closed_in_the_middle_of_a_batch_does_no_harm(
    plugins: subprocess.Popen[str],
) -> None:
    seen: collections.Counter[str] = collections.Counter()
    with textpoke.attach(plugins.pid) as target:
        [work] = (site.address for site in target.sites("work"))
        one = [Request.of(pokes((work,), way)) for way in (0, 1)]
        # Once the agent has all its memory, the plugins come to lie where they lay.
        for _ in range(3):
            assert ask(plugins, "open 0") == "0"
            both = [Request.of(pokes((work, address_of(plugins, 0)), way)) for way in (0, 1)]
            assert [attempt(target.agent, request, seen) for request in both] == ["ok", "ok"]
            assert ask(plugins, "close 0") == "0"
        settled = seen["ok"]
        with storm(plugins, 3000):
            end = time.monotonic() + TOGGLE_S
            while time.monotonic() < end:
                attempt(target.agent, both[0], seen)
                if attempt(target.agent, both[1], seen) != "ok":
                    attempt(target.agent, one[1], seen)
    left_clean(target)
    assert seen["ok"] > settled
    assert seen["BytesDiffer"] + seen["BatchRefused"] > 0
    assert seen["broken"] == 0


def pokes(addresses: tuple[int, ...], way: int) -> list[Poke]:
    old, new = (NOP, CLC) if way == 0 else (CLC, NOP)
    return [Poke(address, old, new) for address in addresses]


def attempt(agent: Agent, request: Request, seen: collections.Counter[str]) -> str:
    """Run a batch; count how it ended, by the name of its exception."""
    name = "ok"
    try:
        run_request(agent, request)
    except textpoke.PokeError as exc:
        name = type(exc).__name__ if getattr(exc, "recovered", True) else "broken"
    seen[name] += 1
    return name


def test_sites_of_two_libraries_that_overlap_are_undone(
    compile_target: Compile, start_target: Start
) -> None:
    """At one address in turn, 4 bytes apart: at most one of two sites is there to be undone."""
    flags = (*SHARED, "-falign-functions=1")
    libraries = [compile_target("turn.c", *flags, *more) for more in ((), ("-DSHIFT=4",))]
    process = start_target(compile_target("turns.c", *programs.PIE), *map(str, libraries))
    switches = 0
    with textpoke.attach(process.pid) as target, target.trace(everything=True) as trace:
        end_s = time.monotonic() + 2 * TOGGLE_S
        while time.monotonic() < end_s:
            with contextlib.suppress(textpoke.TextpokeError):  # it was closed just then
                trace.tracer = "function_graph"
                trace.tracer = "function"
                trace.filter = ["*"]
                switches += 1
    left_clean(target)
    assert switches > 0
    assert process.poll() is None
    with textpoke.attach(process.pid) as target:
        assert target.repaired == 0
