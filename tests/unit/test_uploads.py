# SPDX-License-Identifier: Apache-2.0
"""What the agent is given to capture: once for all tracers that are switched back and forth."""

from __future__ import annotations

from types import SimpleNamespace
from typing import TYPE_CHECKING, cast

import pytest

from textpoke import captures
from textpoke.arguments import CaptureProgram
from textpoke.captures import Captures

if TYPE_CHECKING:
    from collections.abc import Mapping

    from textpoke.plan import SitePlan
    from textpoke.ring_sets import RingSet

ONE, OTHER = CaptureProgram(entry_ops=b"1"), CaptureProgram(entry_ops=b"2")
RINGS = cast("RingSet", SimpleNamespace(number=3))
PLANS = cast(
    "Mapping[int, SitePlan]", {at: SimpleNamespace(return_address=at + 5) for at in (1, 2, 3)}
)


class Given(Captures):
    """By tracer what is wanted, and what was uploaded."""

    def __init__(self, wanted: dict[str, dict[int, CaptureProgram]]) -> None:
        super().__init__()
        self.wanted = wanted

    def programs(self, tracer: str) -> Mapping[int, CaptureProgram]:
        return self.wanted.get(tracer, {})


@pytest.fixture
def uploads(monkeypatch: pytest.MonkeyPatch) -> list[dict[int, CaptureProgram]]:
    done: list[dict[int, CaptureProgram]] = []
    monkeypatch.setattr(
        captures.capturing, "upload", lambda _rings, programs: done.append(programs)
    )
    monkeypatch.setattr(captures.capturing, "fits", lambda _rings, programs: len(programs) < 3)
    return done


def test_two_tracers_are_given_once(uploads: list[dict[int, CaptureProgram]]) -> None:
    given = Given({"blk": {1: ONE}, "wakeup_rt": {1: ONE, 2: OTHER}})
    for _ in range(3):
        for tracer in ("function", "blk", "wakeup_rt"):
            given.upload(RINGS, tracer, PLANS)
    assert uploads == [{6: ONE}, {6: ONE, 7: OTHER}]


def test_another_program_for_a_function_takes_the_place_of_all(
    uploads: list[dict[int, CaptureProgram]],
) -> None:
    given = Given({"blk": {1: ONE, 2: ONE}, "wakeup_rt": {2: OTHER}})
    given.upload(RINGS, "blk", PLANS)
    given.upload(RINGS, "wakeup_rt", PLANS)
    given.upload(RINGS, "blk", PLANS)
    assert uploads == [{6: ONE, 7: ONE}, {7: OTHER}, {6: ONE, 7: ONE}]


def test_what_does_not_fit_together_is_given_singly(
    uploads: list[dict[int, CaptureProgram]],
) -> None:
    given = Given({"blk": {1: ONE, 2: ONE}, "wakeup_rt": {3: ONE}})
    given.upload(RINGS, "blk", PLANS)
    given.upload(RINGS, "wakeup_rt", PLANS)
    assert uploads == [{6: ONE, 7: ONE}, {8: ONE}]


def test_a_new_start_gives_all_again(uploads: list[dict[int, CaptureProgram]]) -> None:
    given = Given({"blk": {1: ONE}})
    given.upload(RINGS, "blk", PLANS)
    given.of_arguments(cast("captures.Resolves", None), [], [])  # others may have had the rings
    given.upload(RINGS, "blk", PLANS)
    assert uploads == [{6: ONE}, {6: ONE}]


def test_what_is_planned_later_is_given_then(uploads: list[dict[int, CaptureProgram]]) -> None:
    given = Given({"blk": {1: ONE, 4: OTHER}})
    plans = dict(PLANS)
    for _ in range(2):
        given.upload(RINGS, "blk", plans)
    plans[4] = cast("SitePlan", SimpleNamespace(return_address=9))
    for _ in range(2):
        given.upload(RINGS, "blk", plans)
    assert uploads == [{6: ONE}, {6: ONE, 9: OTHER}]


def test_what_another_upload_has_driven_out_is_given_again(
    uploads: list[dict[int, CaptureProgram]],
) -> None:
    given = Given({"blk": {1: ONE, 2: ONE}, "wakeup_rt": {3: ONE}})
    for tracer in ("blk", "blk", "wakeup_rt", "blk", "blk"):
        given.upload(RINGS, tracer, PLANS)
    assert uploads == [{6: ONE, 7: ONE}, {8: ONE}, {6: ONE, 7: ONE}]
