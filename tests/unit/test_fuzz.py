# SPDX-License-Identifier: Apache-2.0
"""The fuzzers of tests/fuzz, a few hundred cases each; a million by `make fuzz`."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent.parent / "fuzz"))

import fuzz
import readers

CASES = 150


@pytest.mark.parametrize("name", readers.FUZZERS)
def test_damaged_bytes_raise_nothing_but_our_own_errors(name: str) -> None:
    readers.FUZZERS[name].prepare()
    for case in range(CASES):
        assert not fuzz.run_case(name, case), f"{name}, case {case}"


def test_a_finding_is_counted_and_a_dead_worker_is_one(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    def harmful(rng) -> None:
        dice = rng.randrange(10)
        if dice == 0:
            raise IndexError
        if dice == 1:
            fuzz.os._exit(3)

    monkeypatch.setitem(readers.FUZZERS, "harmful", readers.Fuzzer(harmful))
    wanted = sum(fuzz.random.Random(case).randrange(10) < 2 for case in range(40))
    assert fuzz.run_python("harmful", 0, 40, 2).findings == wanted
    assert "IndexError" in capfd.readouterr().err
