# SPDX-License-Identifier: Apache-2.0
"""Debian's own programs, as they are: every function on in one batch under load, off, proven.

The last lines of a run are the table: functions found, patched and refused, and what it took.
"""

from __future__ import annotations

import pytest
from debian_programs import SUBJECTS
from processes import Seen, differing_text
from unmodified import Row, trace_everything

import textpoke
from textpoke.report.counts import count

RECORD_S = 5.0
LEAST_COVERAGE = 0.98


def functions_by_module(capture):
    """Modules of the functions with an event in a capture."""
    with textpoke.Capture(capture) as opened:
        numbers = count(opened)
        assert numbers.unknown == 0
        calls = numbers.everyone.by_site()
        return {opened.meta.sites[site].module for site, number in calls.items() if number}


def same(before: Seen, after: Seen, *, threads_vary: bool) -> bool:
    if threads_vary:
        return (before.mappings, before.catches_sigtrap) == (after.mappings, after.catches_sigtrap)
    return before == after


@pytest.mark.timeout(900)
@pytest.mark.parametrize("name", SUBJECTS)
def test_every_function_of_a_program_and_of_libc(name, tmp_path, table):
    subject = SUBJECTS[name]
    capture = tmp_path / "everything.tptrace"
    with subject.running() as program:
        with program.load() as load:
            assert not differing_text(load.pid)
            before = Seen.now(load.pid)
            row = trace_everything(load.pid, capture, RECORD_S, subject.libraries)
            assert row.report.clean, row.report.residue
            assert not differing_text(load.pid)
            assert same(before, Seen.now(load.pid), threads_vary=subject.threads_vary)
        load.require_no_failure()
        assert program.runs
        program.finish()
    table({"program": name, **row.cells(), "load": f"{load.count:,} {load.unit}"}, row.details())
    require_all_but_a_few(row)
    assert set() < functions_by_module(capture) <= set(row.modules)
    assert row.events > 0


def require_all_but_a_few(row: Row) -> None:
    assert not row.report.text.skipped
    assert 0 < row.report.text.equal == row.report.text.pages
    assert len(row.modules) >= 2
    assert not row.without_reason
    assert not row.unlisted
    assert not row.named_parts
    assert row.coverage >= LEAST_COVERAGE, row.refused
