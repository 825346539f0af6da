# SPDX-License-Identifier: Apache-2.0
"""A context that a signal handler has laid aside in the midst of our code (H16, pitfalls 4)."""

from __future__ import annotations

from typing import TYPE_CHECKING

import programs
import pytest
from observe import ask, hear

import textpoke

if TYPE_CHECKING:
    from conftest import Compile, Start


@pytest.mark.xfail(
    strict=True, reason="no thread's stack shows such a context: docs/safety.md, H16"
)
def test_a_context_laid_aside_within_a_thunk_can_run_on(
    compile_target: Compile, start_target: Start
) -> None:
    process = start_target(compile_target("preempted.c", *programs.PIE))
    with textpoke.attach(process.pid) as target, target.trace("work"):
        assert hear(process) == "parked"
    assert ask(process, "resume") == "alive"
    assert process.wait(timeout=20) == 0
