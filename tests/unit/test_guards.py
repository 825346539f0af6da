# SPDX-License-Identifier: Apache-2.0
"""Which functions must have a guard before returns are redirected."""

from __future__ import annotations

import pytest

from textpoke import returns

THROW, FIND, PHDR, JUMP = 0x1000, 0x2000, 0x3000, 0x4000
NAMES = {
    THROW: "_Unwind_RaiseException",
    FIND: "_dl_find_object",
    PHDR: "dl_iterate_phdr",
    JUMP: "longjmp",
}


def test_whoever_walks_is_stopped_at_its_tables() -> None:
    assert returns.why_unguarded(NAMES, {FIND, PHDR}) == ""


@pytest.mark.parametrize(("open_", "name"), [(FIND, "_dl_find_object"), (PHDR, "dl_iterate_phdr")])
def test_without_the_guard_of_the_tables_no_return_is_redirected(open_: int, name: str) -> None:
    why = returns.why_unguarded(NAMES, NAMES.keys() - {open_})
    assert why == f"{name} at {open_:#x} cannot be given a guard"


def test_an_unwinder_that_asks_for_no_tables_needs_its_own() -> None:
    names = {THROW: NAMES[THROW], JUMP: NAMES[JUMP]}
    assert returns.why_unguarded(names, {JUMP}).startswith("_Unwind_RaiseException")
    assert returns.why_unguarded(names, {THROW}) == ""


def test_a_program_that_never_looks_at_its_stack_needs_none() -> None:
    assert returns.why_unguarded({JUMP: NAMES[JUMP]}, ()) == ""
    assert returns.why_unguarded({}, ()) == ""
