# SPDX-License-Identifier: Apache-2.0
"""Lines of Python that were begun, by thread."""

from __future__ import annotations

import json
import json.encoder
import sys
import threading

import numpy as np

from textpoke.python_lines import LineNotes, Noted


def inner(x):
    y = x + 1
    return y * 2


def outer():
    a = inner(1)
    b = inner(2)
    return a + b


def texts(noted: Noted) -> list[tuple[str, int]]:
    first = {"inner": inner, "outer": outer}
    seen = [noted.lines[i] for i in noted.index.tolist()]
    return [
        (line.function, line.line - first[line.function].__code__.co_firstlineno)
        for line in seen
        if line.function in first
    ]


def test_lines_come_in_order_and_a_return_is_the_callers_line_again() -> None:
    notes = LineNotes()
    notes.start()
    outer()
    notes.stop()
    outer()
    (noted,) = notes.noted().values()
    once = [("inner", 0), ("inner", 1), ("inner", 2)]
    lines = [("outer", 0), ("outer", 1), *once, ("outer", 1), ("outer", 2), *once, ("outer", 2)]
    assert texts(noted) == [*lines, ("outer", 3)]
    assert not np.any(np.diff(noted.tsc.astype(np.int64)) < 0)
    assert sys.gettrace() is None
    assert notes.remark == ""


def test_the_function_that_begins_is_seen_too() -> None:
    notes = LineNotes()
    notes.start()
    here = sys._getframe().f_lineno
    notes.stop()
    (noted,) = notes.noted().values()
    assert here in {line.line for line in noted.lines}


def test_threads_that_begin_later_have_their_own() -> None:
    notes, ids = LineNotes(), []

    def work() -> None:
        ids.append(threading.get_native_id())
        outer()

    notes.start()
    for thread in [threading.Thread(target=work) for _ in range(2)]:
        thread.start()
        thread.join()
    notes.stop()
    found = notes.noted()
    assert len(set(ids)) == 2
    assert all(("outer", 3) in texts(found[tid]) for tid in ids)


def test_a_debugger_keeps_its_place() -> None:
    def other(*_: object) -> None:
        return None

    notes = LineNotes()
    sys.settrace(other)
    try:
        notes.start()
        outer()
        notes.stop()
        assert sys.gettrace() is other
    finally:
        sys.settrace(None)
    assert "settrace is taken" in notes.why_not
    assert notes.remark.startswith("no line of Python was seen: sys.settrace is taken")
    assert notes.noted() == {}


def test_too_many_lines_are_counted_and_left_out() -> None:
    notes = LineNotes(most=3)
    notes.start()
    outer()
    notes.stop()
    assert sum(len(noted.tsc) for noted in notes.noted().values()) == 3
    assert notes.dropped > 5
    assert f"{notes.dropped:,} lines of Python were not noted: more than 3 came" in notes.remark


def test_code_that_is_skipped_stands_at_the_line_that_called_it() -> None:
    notes = LineNotes()
    notes.skip += (__file__,)
    notes.start()
    json.dumps({1: 2}, indent=1)
    notes.stop()
    notes.skip = ()
    (noted,) = notes.noted().values()
    assert __file__ not in {line.file for line in noted.lines}
    assert json.encoder.__file__ in {line.file for line in noted.lines}
