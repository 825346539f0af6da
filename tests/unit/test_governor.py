# SPDX-License-Identifier: Apache-2.0
"""The governor's policy, in simulated processes: fits the budget, does not flap, gives all back."""

from __future__ import annotations

import itertools
import random
from dataclasses import dataclass, field

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from textpoke.governor import Budget, Governor

CORE = 1_000_000_000
COST_NS = 40.0
INTERVAL_S = 0.25


@dataclass
class World:
    """A process whose functions are called at given rates, under a governor."""

    rates: dict[int, float]
    budget: Budget = field(default_factory=lambda: Budget(0.05))
    cores: float = 1.0
    now_s: float = 0.0
    switched: list[tuple[float, int, bool]] = field(default_factory=list)
    loads: list[float] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.governor = Governor(self.budget)
        self.on = set(self.rates)

    def run(self, seconds: float, rng: random.Random | None = None) -> None:
        for _ in range(round(seconds / INTERVAL_S)):
            self.now_s += INTERVAL_S
            calls = {
                site: int(self.rates[site] * INTERVAL_S * (rng.uniform(0.7, 1.3) if rng else 1))
                for site in self.on
            }
            self.loads.append(sum(calls.values()) * COST_NS / INTERVAL_S)
            cpu_ns = self.cores * CORE * INTERVAL_S
            decision = self.governor.step(self.now_s, INTERVAL_S, cpu_ns, calls, COST_NS)
            for steps, on in ((decision.off, False), (decision.on, True)):
                for step in steps:
                    assert (step.site in self.on) != on
                    self.on ^= {step.site}
                    self.switched.append((self.now_s, step.site, on))
            assert self.governor.off == set(self.rates) - self.on

    def load(self) -> float:
        return sum(self.rates[site] for site in self.on) * COST_NS


def skewed(count: int, total: float) -> dict[int, float]:
    """Rates as programs have them: the n-th function is called 1/n as often as the first."""
    weights = {site: 1 / (site + 1) for site in range(count)}
    return {site: total * w / sum(weights.values()) for site, w in weights.items()}


def test_the_hottest_go_first_and_as_few_as_make_it_fit() -> None:
    world = World({1: 1e6, 2: 500_000, 3: 5e6, 4: 200_000})  # 4 %, 2 %, 20 %, 0.8 %
    world.run(INTERVAL_S)
    assert world.on == {2, 4}
    assert [site for _, site, _ in world.switched] == [3, 1]
    world = World({1: 1e6, 2: 200_000, 3: 5e6})
    world.run(INTERVAL_S)
    assert world.on == {1, 2}  # 4.8 % fits


def test_within_the_budget_nothing_happens() -> None:
    world = World({1: 1e6})
    world.run(100)
    assert world.switched == []


def test_notes_say_what_was_done_and_why() -> None:
    governor = Governor(Budget(0.05), name={7: "libc!malloc"}.__getitem__)
    decision = governor.step(1.0, 1.0, CORE, {7: 5_000_000}, 40.0)
    assert decision
    assert decision.off[0].note == (
        "governor: libc!malloc off: it cost 20.00% of a core, all together 20.00%, the budget is "
        "5% of core (5.00% of a core); back in 2 s at the earliest"
    )
    assert not governor.step(2.0, 1.0, CORE, {}, 40.0)
    back = governor.step(3.0, 1.0, CORE / 100, {}, 40.0)
    assert "libc!malloc on again" in back.on[0].note


def test_a_budget_of_the_process_follows_what_it_uses() -> None:
    rates = {1: 1e6}  # 4 % of a core
    busy = World(dict(rates), Budget(0.05, of_process=True), cores=1.0)
    busy.run(5)
    assert busy.on == {1}
    idle = World(dict(rates), Budget(0.05, of_process=True), cores=0.1)
    idle.run(INTERVAL_S)
    assert idle.on == set()


@pytest.mark.parametrize(
    ("text", "share", "of_process"),
    [("5%", 0.05, False), ("0.5% of core", 0.005, False), ("10% of process", 0.1, True)],
)
def test_budgets_are_read(text: str, share: float, of_process: bool) -> None:
    budget = Budget.parse(text)
    assert (budget.share, budget.of_process) == (pytest.approx(share), of_process)
    assert Budget.parse(str(budget)) == budget


@pytest.mark.parametrize("text", ["", "5", "0%", "101%", "-1%", "5% of cpu", "nan%"])
def test_other_budgets_are_refused(text: str) -> None:
    with pytest.raises(ValueError, match="no budget"):
        Budget.parse(text)


worlds = st.builds(
    World,
    st.dictionaries(st.integers(0, 60), st.floats(0, 2e7), min_size=1, max_size=40),
    st.sampled_from([Budget(0.05), Budget(0.01), Budget(0.2, of_process=True)]),
    st.floats(0.05, 4),
)


@settings(deadline=None, max_examples=60)
@given(worlds, st.integers(0, 1000))
def test_never_flaps_faster_than_the_back_off(world: World, seed: int) -> None:
    rng = random.Random(seed)
    for _ in range(6):
        world.run(rng.uniform(5, 40), rng)
        world.rates = {site: rng.choice([0, rate, 3 * rate]) for site, rate in world.rates.items()}
    for site in world.rates:
        mine = [(at, on) for at, which, on in world.switched if which == site]
        wait_s = 0.0
        for (at, on), (then, back) in itertools.pairwise(mine):
            assert on != back
            if not on:
                assert then - at >= max(2.0, min(wait_s, 120.0)) - 1e-9
                wait_s = max(wait_s, 2.0)
            else:  # it had to go again at once: it must stay away twice as long
                wait_s = wait_s * 2 if then - at < wait_s else 2.0


@settings(deadline=None, max_examples=40)
@given(worlds)
def test_converges_and_stays_under_the_budget(world: World) -> None:
    world.run(600)
    limit = world.budget.ns_per_s(world.cores)
    late = world.loads[len(world.loads) // 2 :]
    assert sum(late) / len(late) <= limit * 1.1
    over = sum(load > limit for load in late) / len(late)
    assert over <= 0.1  # trials
    assert len([at for at, _, _ in world.switched if at > 480]) <= 6 * len(world.rates)


@settings(deadline=None, max_examples=40)
@given(worlds, st.booleans())
def test_returns_everything_when_the_load_goes_away(world: World, sleeps: bool) -> None:
    world.run(120)
    limit = world.budget.ns_per_s(0 if sleeps else world.cores)
    total = sum(world.rates.values()) * COST_NS
    factor = min(1.0, 0.5 * limit / total) if total else 1.0
    world.rates = {site: rate * factor for site, rate in world.rates.items()}
    world.cores = 0.0 if sleeps else world.cores
    world.run(400)
    assert world.on == set(world.rates)


def test_a_skewed_program_keeps_nearly_all_of_its_functions() -> None:
    world = World(skewed(4000, 2e7), cores=3.0)  # 80 % of a core for tracing everything
    world.run(300, random.Random(1))
    late = world.loads[len(world.loads) // 2 :]
    assert sum(late) / len(late) < 0.05 * CORE
    assert len(world.on) > 0.3 * 4000


def test_the_last_calls_of_what_has_just_gone_off_do_not_count() -> None:
    governor = Governor(Budget(0.05))
    assert governor.step(1.0, 1.0, CORE, {7: 5_000_000}, 40.0).off
    assert not governor.step(2.0, 1.0, CORE, {7: 5_000_000}, 40.0).off


def test_functions_that_are_gone_are_forgotten() -> None:
    world = World({1: 5e6})
    world.run(INTERVAL_S)
    world.governor.forget(1)
    assert world.governor.off == set()
