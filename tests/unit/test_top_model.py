# SPDX-License-Identifier: Apache-2.0
"""textpoke top: rates, quantiles and histories from counters."""

from __future__ import annotations

import numpy as np
import pytest
from top_samples import FUNCTIONS, model, sample

from textpoke.profile_rows import BUCKETS, ProfileRow, bucket_of
from textpoke.top.model import Function, Model, quantiles


def test_rates_and_shares_are_those_of_the_interval() -> None:
    found = Model(ns_per_tick=0.5)
    found.step(sample(10.0, {0: 100}, ticks=1000), FUNCTIONS)
    table = found.step(sample(12.0, {0: 300, 2: 50}, ticks=1000), FUNCTIONS)
    assert table.seconds == 2.0
    assert table.rate.tolist() == [100, 0, 25, 0]
    assert table.calls.tolist() == [300, 0, 50, 0]
    assert table.total[0] == pytest.approx(200 * 500 / 2e9)
    assert table.self[0] == pytest.approx(table.total[0] / 2)
    assert table.average[0] == pytest.approx(500)
    assert np.isnan(table.average[1])


def test_the_first_sample_has_no_rates() -> None:
    table = Model(1.0).step(sample(5.0, {0: 100}), FUNCTIONS)
    assert table.calls[0] == 100
    assert not table.rate.any()
    assert not table.history.any()


def test_quantiles_are_of_the_last_interval_only() -> None:
    found = Model(1.0)
    found.step(sample(0.0, {}), FUNCTIONS)
    found.step(sample(1.0, {0: 1000}, ticks=1_000_000), FUNCTIONS)
    before = sample(1.0, {0: 1000}, ticks=1_000_000)
    later = sample(2.0, {0: 1010}, ticks=100)
    later.buckets[0] = before.buckets[0]
    later.buckets[0, bucket_of(100)] += 10
    assert found.step(later, FUNCTIONS).p99[0] == pytest.approx(100, rel=0.125)
    assert found.histogram(0).sum() == 10
    assert found.histogram(0, of_all=True).sum() == 1010
    assert not found.histogram(3).any()


@pytest.mark.parametrize("share", [0.01, 0.5, 0.9, 0.99, 1.0])
def test_quantiles_are_those_of_the_profile(share: float) -> None:
    rng = np.random.default_rng(1)
    buckets = rng.integers(0, 50, (20, BUCKETS)).astype(np.uint32)
    expected = [
        ProfileRow(1, hits=1, max=1 << 60, buckets=row.tolist()).quantile(share) for row in buckets
    ]
    assert quantiles(buckets, share)[0].tolist() == expected


def test_a_histogram_without_calls_has_no_quantile() -> None:
    assert np.isnan(quantiles(np.zeros((1, BUCKETS), np.uint32), 0.5)).all()


def test_counts_that_pass_two_to_the_32_go_on() -> None:
    found = Model(1.0)
    before, after = sample(0.0, {0: 1}), sample(1.0, {0: 1})
    before.buckets[0, 50], after.buckets[0, 50] = (1 << 32) - 3, 4
    found.step(before, FUNCTIONS)
    found.step(after, FUNCTIONS)
    assert found.histogram(0)[50] == 7


def test_a_row_that_was_read_half_written_gives_no_nonsense() -> None:
    found = Model(1.0)
    found.step(sample(0.0, {0: 5}), FUNCTIONS)
    table = found.step(sample(1.0, {0: 4}), FUNCTIONS)
    assert table.rate[0] == 0
    assert not found.histogram(0).any()


def test_history_moves_on_and_reaches_back_a_minute() -> None:
    found = Model(1.0, interval_s=1.0)
    assert found.history_s == 60.0
    for second in range(70):
        found.step(sample(float(second), {0: second * second}), FUNCTIONS)
    history = found.table.history[0]
    assert len(history) == 60
    assert history[-1] == 69**2 - 68**2
    assert history[0] == 10**2 - 9**2


def test_functions_may_come_later() -> None:
    found = model({0: 10})
    grown = [*FUNCTIONS, Function("plugin.so", "late")]
    table = found.step(sample(2.0, {0: 20, 4: 30}), grown)
    assert table.rate.tolist() == [10, 0, 0, 0, 30]
    assert table.history[0, -2:].tolist() == [10, 10]
    assert table.history[4, -2:].tolist() == [0, 30]


def test_overhead_is_what_tracing_cost_of_the_cpu_time() -> None:
    found = Model(1.0)
    found.step(sample(0.0, {}, cpu_ns=10_000, cost_ns=0.0), FUNCTIONS)
    facts = {"cpu_ns": 500_010_000, "cost_ns": 1e8, "lost": 3, "missed": 4}
    table = found.step(sample(1.0, {0: 1}, **facts), FUNCTIONS)
    assert (table.cores, table.overhead) == (pytest.approx(0.5), pytest.approx(0.2))
    assert (table.lost, table.missed) == (3, 4)


def test_a_process_that_slept_has_no_overhead() -> None:
    found = Model(1.0)
    found.step(sample(0.0, {}), FUNCTIONS)
    assert found.step(sample(1.0, {}), FUNCTIONS).overhead == 0.0


def test_a_hundred_thousand_functions_take_a_part_of_a_second() -> None:
    import time

    many = [Function("big", f"f{i}") for i in range(100_000)]
    found = Model(1.0)
    found.step(sample(0.0, dict.fromkeys(range(10_000), 5)), many)
    later = sample(1.0, dict.fromkeys(range(10_000), 9))
    began = time.process_time()
    found.step(later, many)
    assert time.process_time() - began < 1.0
