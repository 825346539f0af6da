# SPDX-License-Identifier: Apache-2.0
"""docs/selftests.md, the kernel's names, and the tests of these names are in step."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
# Names of tools/testing/selftests/ftrace/test.d: the acceptance list.
NAMES = [
    "basic1",
    "basic2",
    "basic3",
    "basic4",
    "snapshot",
    "trace_pipe",
    "ringbuffer_order",
    "ringbuffer_size",
    "ringbuffer_subbuf_size",
    "trace_marker",
    "trace_marker_raw",
    "fgraph-filter",
    "fgraph-filter-stack",
    "fgraph-multi",
    "fgraph-multi-filter",
    "fgraph-profiler",
    "fgraph-retval",
    "func-filter-glob",
    "func-filter-pid",
    "func-filter-notrace-pid",
    "func-filter-stacktrace",
    "func_cpumask",
    "func_event_triggers",
    "func_hotplug",
    "func_mod_trace",
    "func_profile_stat",
    "func_profiler",
    "func_set_ftrace_file",
    "func_stack_tracer",
    "func_traceonoff_triggers",
    "tracing-error-log",
    "ftrace-direct",
    "kprobe-direct",
    "kprobe_insn_boundary",
    "kprobe_ftrace",
    "multiple_kprobes",
    "instances",
    "irqsoff_tracer",
]
TEST = re.compile(r"`(test_\w+)`")


def rows() -> dict[str, str]:
    """The table: what stands beside each name."""
    text = (ROOT / "docs/selftests.md").read_text()
    cells = [line.split(" | ") for line in text.splitlines() if line.startswith("| ")]
    return {first.removeprefix("| "): second for first, second, *_ in cells[1:]}


def test_every_name_has_a_row_in_order() -> None:
    assert list(rows()) == NAMES


def test_a_row_names_its_test_or_gives_a_reason() -> None:
    for name, cell in rows().items():
        if cell != f"`test_{name.replace('-', '_')}`":
            assert cell.startswith("none: "), name
            assert len(cell) > len("none: ") + 20, name


def test_the_tests_are_those_of_the_table() -> None:
    source = (ROOT / "tests/integration/test_selftests.py").read_text()
    written = re.findall(r"^def (test_\w+)\(", source, re.MULTILINE)
    named = [test for cell in rows().values() for test in TEST.findall(cell)]
    assert sorted(written) == sorted(named)
