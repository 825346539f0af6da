# SPDX-License-Identifier: Apache-2.0
"""Small runs of what `make proof` does at size: always the same batches."""

from __future__ import annotations

import pytest
from batches import Batch, Code, Kind, Site, batches, control_batches, turns
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from library import Control, Proof, controls

few = settings(
    max_examples=80,
    derandomize=True,
    deadline=None,
    database=None,
    suppress_health_check=list(HealthCheck),
)


@few
@given(batches(refusable=True) | batches(refusable=True, windows=1))
def test_every_fetch_is_old_new_or_handled_int3_there_and_back(batch: Batch) -> None:
    proof = Proof(batch)
    try:
        proof.there_and_back(4)
    finally:
        proof.close()


@few
@given(batches() | batches(windows=1), turns())
def test_a_late_trap_of_an_earlier_batch_is_rewound_during_another(
    batch: Batch, masks: list[int]
) -> None:
    proof = Proof(batch)
    try:
        proof.some_in_turn(masks)
    finally:
        proof.close()


@few
@given(batches(most=5) | batches(most=5, windows=1))
def test_any_one_failure_leaves_what_the_contract_says(batch: Batch) -> None:
    proof = Proof(batch)
    try:
        proof.single_faults()
    finally:
        proof.close()


@few
@given(batches(most=4) | batches(most=4, windows=1))
def test_a_failed_recovery_leaves_no_int3_unhandled_and_says_broken(batch: Batch) -> None:
    proof = Proof(batch)
    try:
        proof.double_faults(3, len(batch.sites) % 3)
    finally:
        proof.close()


@few
@given(batches(most=4) | batches(most=4, windows=1))
def test_a_strangers_byte_is_kept_and_costs_no_other_site_anything(batch: Batch) -> None:
    proof = Proof(batch)
    try:
        proof.strangers()
    finally:
        proof.close()


@pytest.mark.parametrize(
    ("number", "control"), [pytest.param(i, c, id=c.name) for i, c in enumerate(controls())]
)
@settings(few, max_examples=5)
@given(data=st.data())
def test_wrong_engines_are_caught_and_right_ones_are_not(
    number: int, control: Control, data: st.DataObject
) -> None:
    batch = data.draw(control_batches(control.mode, control.windows))
    proof = Proof(batch)
    try:
        found = proof.control(number)
    finally:
        proof.close()
    assert bool(found) == control.wrong, f"{found}\n{batch}"


@pytest.mark.parametrize("finish", [False, True])
@pytest.mark.parametrize("all_or_nothing", [False, True])
def test_new_code_that_a_thread_may_stand_inside_of_is_never_taken_back(
    all_or_nothing: bool, finish: bool
) -> None:
    call = Code(bytes.fromhex("e811223344"), Kind.CALL, reach=0x44332216)
    run = Code(b"\x90" * 5, Kind.NOP, (0, 1, 2, 3, 4))
    batch = Batch((Site(0, call, run),), all_or_nothing=all_or_nothing, finish=finish)
    proof = Proof(batch)
    try:
        proof.there_and_back(1)
        proof.single_faults()
        proof.double_faults(1, 0)
    finally:
        counts = proof.close()
    assert counts["refusals"] == (all_or_nothing or finish)


JMP = Code(bytes.fromhex("e911223344"), Kind.JMP, reach=0x44332216)
PUSHES = Code(bytes.fromhex("5556575051"), Kind.OTHER, (0, 1, 2, 3, 4))


def _windows(busy: bool, **how: bool) -> Batch:
    copies = (1, 0x20, 0x30, 0x40, 0x50)
    sites = tuple(Site(16 * i, PUSHES, JMP, copies=copies, busy=busy and i == 1) for i in range(3))
    return Batch(sites, **how)


@pytest.mark.parametrize("leave_busy", [False, True])
@pytest.mark.parametrize("busy", [False, True])
def test_a_window_that_somebody_is_inside_of_is_left_or_fails_the_batch(
    busy: bool, leave_busy: bool
) -> None:
    proof = Proof(_windows(busy, leave_busy=leave_busy))
    try:
        proof.there_and_back(1)
    finally:
        counts = proof.close()
    assert counts["looks"] == 1
    assert counts["busy"] == busy
    assert counts["left"] == (busy and leave_busy)
    assert counts["inside"] == (busy and not leave_busy)
    assert counts["head_traps"] > 0
    assert (counts["late_head_traps"] > 0) == busy


@pytest.mark.parametrize("finish", [False, True])
@pytest.mark.parametrize("all_or_nothing", [False, True])
def test_a_window_comes_back_only_where_no_failure_takes_it_away_again(
    all_or_nothing: bool, finish: bool
) -> None:
    proof = Proof(_windows(busy=False, all_or_nothing=all_or_nothing, finish=finish))
    try:
        proof.there_and_back(4)
    finally:
        counts = proof.close()
    assert counts["refusals"] == (all_or_nothing or finish)
    assert counts["runs"] == 4
    assert counts["looks"] == 2


def test_windows_are_refused_where_nobody_can_look() -> None:
    proof = Proof(_windows(busy=False, blind=True))
    try:
        proof.there_and_back(1)
    finally:
        counts = proof.close()
    assert counts["refusals"] == 1
    assert counts["operations"] == 0
