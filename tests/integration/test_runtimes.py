# SPDX-License-Identifier: Apache-2.0
"""Runtimes that walk their frames by themselves (V8, HotSpot, OCaml) find what a CALL has left."""

from __future__ import annotations

from typing import TYPE_CHECKING

import programs
import pytest
from observe import ask, untouched

import textpoke as api

if TYPE_CHECKING:
    from conftest import Compile, Start

ROUNDS = 50
OTHERS = {"generated": 1, "embedded": 1, "listed": 21}
"""Calls a round that come from code of another kind; one more comes from C."""


@pytest.mark.parametrize("build", ["pie", "no-pie"])
@pytest.mark.parametrize("how", ["plain", "rich", "profile"])
def test_return_addresses_that_a_runtime_reads_stay(
    compile_target: Compile, start_target: Start, how: str, build: str
) -> None:
    flags = programs.PIE if build == "pie" else (programs.NOPS, "-no-pie")
    process = start_target(compile_target("runtimes.c", *flags, "-O2"))
    tracer = "profile" if how == "profile" else "function_graph"
    with untouched(process), api.attach(process.pid) as target:
        for part, calls in OTHERS.items():
            trace = target.trace("who_called*", tracer=tracer)
            trace.sample = 1 if how != "rich" else 2
            with trace:
                assert ask(process, f"{part} {ROUNDS}") == "0", part
                trace.drain()
                counted = sum(row.hits for row in trace.profile().values())
            of = trace.sample
            assert trace.overruns == calls * ROUNDS // of, part
            assert trace.events + 2 * counted == 2 * ROUNDS // of, part
        with target.trace("who_called*", tracer=tracer) as trace:
            assert ask(process, f"plain {ROUNDS}") == str(ROUNDS)
            counted = sum(row.hits for row in trace.profile().values())
        assert trace.overruns == 0
        assert trace.events + 2 * counted == 4 * ROUNDS


@pytest.mark.parametrize("link", ["-pie", "-static"])
@pytest.mark.parametrize("tracer", ["function_graph", "profile"])
def test_programs_built_without_unwind_entries_are_followed(
    compile_target: Compile, start_target: Start, tracer: str, link: str
) -> None:
    none = ("-fno-asynchronous-unwind-tables", "-fno-unwind-tables")
    position = ("-fPIE", "-pie") if link == "-pie" else ("-no-pie", "-static")
    process = start_target(compile_target("runtimes.c", programs.NOPS, *position, *none, "-O2"))
    with api.attach(process.pid) as target:
        with target.trace("who_called*", tracer=tracer) as trace:
            assert ask(process, f"plain {ROUNDS}") == str(ROUNDS)
            counted = sum(row.hits for row in trace.profile().values())
        assert trace.overruns == 0
        assert trace.events + 2 * counted == 4 * ROUNDS
