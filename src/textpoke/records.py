# SPDX-License-Identifier: Apache-2.0
"""A record per patched function: who wants what there, and what is in place.

As `struct dyn_ftrace` and `ftrace_update_record` of the kernel's kernel/trace/ftrace.c: several
users (traces) share a site, the difference between wanted and in place becomes one batch, and only
what the batch has done is noted. One user's probe is called directly, several one after the other.
"""

from __future__ import annotations

import itertools
import time
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

from textpoke._errors import (
    AgentFailed,
    BatchFailed,
    BatchRefused,
    TextpokeError,
    UnsupportedTarget,
)
from textpoke.engine import run_request
from textpoke.hooks import hook_of, lead_poke, led_to
from textpoke.modes import Mode
from textpoke.poke import Outcome, Poke, Request, joined, poke_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from textpoke.agent import Agent
    from textpoke.agent_image import Probe
    from textpoke.model import Mapping as Mapped
    from textpoke.model import Site
    from textpoke.plan import SitePlan

    Chain = tuple[Probe, ...]
    _InPlace = dict[int, tuple[Chain, int, SitePlan]]
    _After = tuple[_InPlace, dict[int, int]]
    PlaceCopies = Callable[[Sequence[tuple[SitePlan, Chain]]], list[int]]

_BUSY_TRIES = 20
_BUSY_PAUSE_S = 0.005
_OFF_TRIES = 10
_MOST_KEPT = 64
INSIDE = "a thread stands among its first instructions and does not leave"
NO_COPY = "no free memory within 2 GiB of it for the probe"


class Wanted(NamedTuple):
    """What a user wants at a site: how it is patched, and the probe."""

    planned: SitePlan
    probe: Probe


class Wants(dict[int, Wanted]):
    """What a user wants, by address of the site; not changed once it was given to `switch`."""

    _numbers = itertools.count(1)

    def __init__(self, pairs: Mapping[int, Wanted] | Iterable[tuple[int, Wanted]] = ()) -> None:
        super().__init__(pairs)
        self.number = next(self._numbers)


class _Step(NamedTuple):
    """One poke, and what stands at which site once it is done."""

    poke: Poke
    planned: SitePlan
    chain: Chain  # empty: the site is off
    lead: int
    ahead: bool = False  # of a site that is off: no call may come to the old probe first


class _How(NamedTuple):
    mode: Mode
    guards: bool = False


@dataclass(slots=True)
class _Change:
    steps: tuple[_Step, ...]
    usual: list[_Step]  # of them, what leaves no int3 for good
    ahead: dict[int, int]  # of code of ours that nobody comes to yet: where it leads then
    ahead_request: Request
    request: Request
    staying: Request
    no_room: tuple[Site, ...]
    goes_off: bool
    state: int = 0  # that it has led to before
    after: _After | None = None  # what is in place then, once it was made twice


@dataclass(slots=True)
class Switched:
    """What a change did.

    Attributes:
        outcome: Of its batch; None when there was nothing to do.
        ahead: Of the batch before it, where code of ours was led to other probes; or None.
        refused: (site, reason) of those that are not on.
        left_alone: Sites that were to go off and were not: their module is gone, or somebody
            else has changed them meanwhile.
    """

    outcome: Outcome | None = None
    ahead: Outcome | None = None
    refused: list[tuple[Site, str]] = field(default_factory=list)
    left_alone: int = 0

    def add(self, outcome: Outcome) -> None:
        """Note one more batch."""
        self.outcome = outcome if self.outcome is None else self.outcome.plus(outcome)


class Records:
    """What is in place in one target, and who wants it.

    Args:
        agent: The connection.
        place: Maps copies of probes: for each (site, chain) its address, 0 where there is no room.
        default: The probe that a plan leads to by itself.

    Attributes:
        one_by_one: A protocol run a site (for measurement).
    """

    def __init__(self, agent: Agent, place: PlaceCopies, default: Probe) -> None:
        self.one_by_one = False
        self._agent = agent
        self._place = place
        self._default = (default,)
        self._users: dict[str, Wants] = {}
        self._in_place: _InPlace = {}  # by site: chain and lead
        self._leads: dict[int, int] = {}  # by hook: of sites that are off, too
        self._state = 0
        self._states: dict[object, int] = {}  # numbers of states that may be met again
        # A change that was made before, from the same state, needs no new batch to be packed.
        self._kept: dict[tuple[int, str, int], _Change] = {}

    def switch(
        self, user: str, wanted: Wants, mode: Mode = Mode.AUTO, *, guards: bool = False
    ) -> Switched:
        """Let `user` have what it wants from now on, and nothing else: one batch.

        Args:
            user: Name of the trace.
            wanted: By address of the site; kept, so it must not change. Give the same object again
                to switch back and forth quickly.
            mode: How sites are written.
            guards: These probes stay as long as returns are redirected.

        Raises:
            BatchRefused, BatchFailed, UnsupportedTarget: Nothing was changed.
        """
        change = self._change(user, wanted)
        done = Switched()
        try:
            complete = self._run(change, _How(mode, guards), done)
        except TextpokeError:
            raise
        except BaseException:  # an interrupt: what the batch did is not known
            self._read_back(change.steps)
            raise
        self._users[user] = wanted
        if not wanted:
            del self._users[user]
        if not complete:
            self._new_state()
            return done
        if change.state:  # it was made before, and perhaps will be again
            change.after = change.after or (dict(self._in_place), dict(self._leads))
        change.state = change.state or self._number()
        self._state = change.state
        return done

    @property
    def count(self) -> int:
        """Sites that are patched now."""
        return len(self._in_place)

    def is_on(self, address: int) -> bool:
        """True when the site is patched."""
        return address in self._in_place

    def forget_in(self, mappings: Sequence[Mapped]) -> None:
        """Other code is mapped there now: nothing of ours is in it."""
        for address in within(self._in_place, mappings):
            del self._in_place[address]
        self._new_state()

    def forget_leads(self) -> None:
        """All code of ours was planned anew."""
        self._leads.clear()
        self._new_state()

    def _new_state(self) -> None:
        """A state that no change was made from yet."""
        self._state = self._states[object()] = len(self._states) + 1

    def _number(self) -> int:
        """The number of the state that is in place: the same one when it is met again."""
        users = tuple((user, wants.number) for user, wants in self._users.items())
        key = users, hash(frozenset(self._leads.items()))
        return self._states.setdefault(key, len(self._states) + 1)

    def _change(self, user: str, wanted: Wants) -> _Change:
        key = self._state, user, wanted.number
        known = self._kept.get(key)
        if known is not None:
            return known
        no_room: list[Site] = []
        steps = tuple(self._steps(user, wanted, no_room))
        ahead = [s for s in steps if s.ahead]
        steps = tuple(s for s in steps if not s.ahead)
        usual = [s for s in steps if not s.poke.is_permanent]
        change = _Change(
            steps,
            usual,
            {s.poke.address: s.lead for s in ahead},
            Request.of(s.poke for s in ahead),
            Request.of(s.poke for s in usual),
            Request.of(s.poke for s in steps if s.poke.is_permanent),
            tuple(no_room),
            goes_off=any(not s.chain for s in usual),
        )
        if len(self._kept) >= _MOST_KEPT:
            self._kept.clear()
        self._kept[key] = change
        return change

    def _steps(self, user: str, wanted: Wants, no_room: list[Site]) -> Iterable[_Step]:
        before = self._users.get(user, Wants())
        others = [u for name, u in self._users.items() if name != user]
        need: list[tuple[SitePlan, Chain]] = []
        for address in sorted(before.keys() | wanted.keys()):
            mine = wanted.get(address)
            shared = [u[address] for u in others if address in u]
            chain = tuple(w.probe for w in ([mine] if mine else []) + shared)
            current = self._in_place.get(address)
            planned = current[2] if current else (mine or before[address]).planned
            if (current[0] if current else ()) != chain:
                need.append((planned, chain))
        on = [(planned, chain) for planned, chain in need if chain]
        leads = iter(self._place([w for w in on if w[1] != self._default]))
        for planned, chain in need:
            current = self._in_place.get(planned.site.address)
            if not chain:
                yield _Step(self._poke(planned, current, on=False), planned, (), 0)
                continue
            lead = planned.lead if chain == self._default else next(leads)
            if not lead:
                no_room.append(planned.site)
                continue
            yield from self._lead(planned, chain, lead, current)

    def _lead(
        self,
        planned: SitePlan,
        chain: Chain,
        lead: int,
        current: tuple[Chain, int, SitePlan] | None,
    ) -> Iterable[_Step]:
        """Lead one site to its probes, and switch it on if it is off."""
        if not current and lead == planned.lead and not self._leads:  # nothing was led elsewhere
            yield _Step(poke_of(planned, on=True), planned, chain, lead)
            return
        hook = hook_of(planned)
        if not hook.in_site or current:
            old = current[1] if current else self._leads.get(hook.address, planned.lead)
            if old != lead:
                poke = lead_poke(planned, old, lead)
                yield _Step(poke, planned, chain, lead, ahead=not current)
        if not current:
            poke = poke_of(led_to(planned, lead), on=True)
            yield _Step(poke, planned, chain, lead)

    def _poke(
        self, planned: SitePlan, current: tuple[Chain, int, SitePlan] | None, *, on: bool
    ) -> Poke:
        lead = current[1] if current else planned.lead
        return poke_of(led_to(planned, lead), on=on)

    def _run(self, change: _Change, how: _How, done: Switched) -> bool:
        """Returns whether all that was wanted is in place."""
        done.refused += [(site, NO_COPY) for site in change.no_room]
        steps = change.usual
        if change.ahead:
            done.ahead = run_request(
                self._agent, change.ahead_request, mode=how.mode, one_by_one=self.one_by_one
            )
            self._leads.update(change.ahead)
        if not change.goes_off:
            complete = self._switch_on(change, how, done)
        else:
            complete = self._switch_off(steps, change.request, how, done, change.after)
        if change.staying.pokes:
            staying = [s for s in change.steps if s.poke.is_permanent]
            complete &= self._switch_on_staying(staying, change.staying, steps, done)
        return complete and not change.no_room

    def _switch_on(self, change: _Change, how: _How, done: Switched) -> bool:
        steps = change.usual
        if not steps:
            return True
        outcome = run_request(
            self._agent,
            change.request,
            mode=how.mode,
            leave_busy=True,
            one_by_one=self.one_by_one,
            guards=how.guards,
        )
        done.add(outcome)
        self._note_all(steps, outcome.left, change.after)
        return not self._settle([steps[i] for i in outcome.left], how, done)

    def _settle(self, busy: list[_Step], how: _How, done: Switched) -> list[_Step]:
        """Try again, for a while, the sites that a thread stood inside of; then leave them out."""
        had = bool(busy)
        for _ in range(_BUSY_TRIES):
            if not busy:
                break
            time.sleep(_BUSY_PAUSE_S)
            again = run_request(
                self._agent,
                Request.of(s.poke for s in busy),
                mode=how.mode,
                all_or_nothing=False,
                leave_busy=True,
                guards=how.guards,
            )
            self._note(s for k, s in enumerate(busy) if k not in again.left)
            busy = [busy[k] for k in again.left]
        done.refused += [(s.planned.site, INSIDE) for s in busy]
        return busy if had else []

    def _switch_on_staying(
        self, steps: Sequence[_Step], request: Request, usual: Sequence[_Step], done: Switched
    ) -> bool:
        """Int3s that stay come last: the rest can do without."""
        try:
            outcome = run_request(self._agent, request)
        except (UnsupportedTarget, BatchRefused) as exc:
            done.refused += [(s.planned.site, str(exc)) for s in steps]
            return False
        except TextpokeError:
            self._take_back(usual)
            raise
        done.outcome = joined(done.outcome, outcome, len(usual)) if done.outcome else outcome
        self._note(steps)
        return True

    def _switch_off(
        self,
        steps: Sequence[_Step],
        request: Request,
        how: _How,
        done: Switched,
        after: _After | None = None,
    ) -> bool:
        """Sites whose module is gone, or that others hold now, are left."""
        failure: TextpokeError | None = None
        complete = True
        for _ in range(_OFF_TRIES):
            try:
                # Several instructions that come back cannot be taken away again: threads run there.
                outcome = run_request(
                    self._agent,
                    request,
                    mode=how.mode,
                    all_or_nothing=False,
                    leave_busy=True,
                    one_by_one=self.one_by_one,
                )
            except (BatchRefused, BatchFailed) as exc:
                if not getattr(exc, "recovered", True):
                    raise
                failure, complete = exc, False
            else:
                done.add(outcome)
                self._note_all(steps, outcome.left, after if complete else None)
                return complete and not self._settle([steps[i] for i in outcome.left], how, done)
            steps = self._still_to_do(steps, done, wrote=isinstance(failure, BatchFailed))
            request = Request.of(s.poke for s in steps)
        if failure is not None:
            raise failure
        return complete

    def _still_to_do(self, steps: Sequence[_Step], done: Switched, *, wrote: bool) -> list[_Step]:
        """After a failure: what still holds its old bytes. What nobody can undo is forgotten."""
        left: list[_Step] = []
        for step in steps:
            held = _held(self._agent, step.poke)
            if held == step.poke.old:
                left.append(step)
            elif wrote and held == step.poke.new:
                self._note([step])
            elif step.chain:
                done.refused.append((step.planned.site, "somebody else has changed it"))
            else:
                done.left_alone += 1
                self._in_place.pop(step.planned.site.address, None)
        return left

    def _note_all(self, steps: Sequence[_Step], left: Sequence[int], after: _After | None) -> None:
        """Note a batch: what it did; at once where it is known what is in place `after` it."""
        if after is not None and not left:
            self._in_place, self._leads = dict(after[0]), dict(after[1])
            return
        among = set(left)
        self._note(s for i, s in enumerate(steps) if i not in among)

    def _note(self, steps: Iterable[_Step]) -> None:
        for step in steps:
            address = step.planned.site.address
            if not step.chain:
                self._in_place.pop(address, None)
                continue
            elsewhere = step.poke.address != address  # a pad, or a stub
            if elsewhere:
                self._leads[step.poke.address] = step.lead
            if not elsewhere or address in self._in_place:
                self._in_place[address] = step.chain, step.lead, step.planned

    def _read_back(self, steps: Iterable[_Step]) -> None:
        """Note what the target's memory says."""
        with suppress(TextpokeError):
            self._note(s for s in steps if _held(self._agent, s.poke) == s.poke.new)
        self._new_state()

    def _take_back(self, steps: Sequence[_Step]) -> None:
        """Undo what has been done of a change that cannot be completed."""
        pokes = [s for s in steps if s.poke.address == s.planned.site.address]
        back = [s._replace(poke=s.poke.reversed(), chain=(), lead=0) for s in pokes]
        with suppress(TextpokeError):
            self._switch_off(back, Request.of(s.poke for s in back), _How(Mode.AUTO), Switched())


def within(addresses: Iterable[int], mappings: Sequence[Mapped]) -> list[int]:
    """Those of the addresses that are in one of the mappings."""
    return [a for a in addresses if any(m.start <= a < m.end for m in mappings)]


def _held(agent: Agent, poke: Poke) -> bytes:
    try:
        return agent.read(poke.address, len(poke.old or b""))
    except AgentFailed:
        return b""  # nothing is mapped there
