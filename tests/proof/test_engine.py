# SPDX-License-Identifier: Apache-2.0
"""Small runs of what `make proof` does at size: always the same batches."""

from __future__ import annotations

import pytest
from batches import Batch, Code, Kind, Site, batches, control_batches, turns
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from library import Control, Proof, controls

few = settings(
    max_examples=60,
    derandomize=True,
    deadline=None,
    database=None,
    suppress_health_check=list(HealthCheck),
)


@few
@given(batches(refusable=True))
def test_every_fetch_is_old_new_or_handled_int3_there_and_back(batch: Batch) -> None:
    proof = Proof(batch)
    try:
        proof.there_and_back(4)
    finally:
        proof.close()


@few
@given(batches(), turns())
def test_a_late_trap_of_an_earlier_batch_is_rewound_during_another(
    batch: Batch, masks: list[int]
) -> None:
    proof = Proof(batch)
    try:
        proof.some_in_turn(masks)
    finally:
        proof.close()


@few
@given(batches(most=5))
def test_any_one_failure_leaves_what_the_contract_says(batch: Batch) -> None:
    proof = Proof(batch)
    try:
        proof.single_faults()
    finally:
        proof.close()


@few
@given(batches(most=4))
def test_a_failed_recovery_leaves_no_int3_unhandled_and_says_broken(batch: Batch) -> None:
    proof = Proof(batch)
    try:
        proof.double_faults(3, len(batch.sites) % 3)
    finally:
        proof.close()


@few
@given(batches(most=4))
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
    batch = data.draw(control_batches(control.mode))
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
