# SPDX-License-Identifier: Apache-2.0
"""A batch in the engine's own form, and the parts that are made of it."""

from __future__ import annotations

import pytest

from textpoke.poke import RECORD, Poke, Request

NOP5, CALL5 = bytes.fromhex("0f1f440000"), bytes.fromhex("e811223344")
RUN5, FLIP5 = bytes.fromhex("9090909090"), bytes.fromhex("e890909090")


@pytest.fixture
def request_of_both() -> Request:
    """Every third of its sites can be changed by one store."""
    whole = [Poke(0x1000 + 16 * i, NOP5, CALL5) for i in range(9)]
    direct = [Poke(0x1000 + 16 * i, RUN5, FLIP5) for i in range(9)]
    return Request.of(direct[i] if i % 3 == 0 else whole[i] for i in range(9))


def addresses(request: Request) -> list[int]:
    return [RECORD.unpack_from(request.data, at)[0] for at in range(0, len(request.data), 64)]


def test_a_half_is_made_once_and_holds_its_sites(request_of_both: Request) -> None:
    single, others = request_of_both.halves
    assert single == [0, 3, 6]
    for half in (single, others):
        part = request_of_both.part(half)
        assert part is request_of_both.part(half)
        assert part.addresses == [request_of_both.addresses[i] for i in half] == addresses(part)
    assert request_of_both.part(single) is not request_of_both.part(others)


def test_positions_that_are_no_half_are_told_by_what_they_are(request_of_both: Request) -> None:
    assert request_of_both.part([1, 2]) is request_of_both.part([1, 2])  # nobody asked for halves
    single, _ = request_of_both.halves
    again = request_of_both.part(list(single))
    assert again.data == request_of_both.part(single).data
    assert request_of_both.part([0, 3]).addresses == request_of_both.addresses[0:4:3]
    assert request_of_both.part(range(9)) is request_of_both


def test_many_parts_do_not_pile_up(request_of_both: Request) -> None:
    single, _ = request_of_both.halves
    first = request_of_both.part(single)
    for i in range(9):
        assert request_of_both.part([i]).addresses == [request_of_both.addresses[i]]
    assert request_of_both.part(single).data == first.data
