# SPDX-License-Identifier: Apache-2.0
"""A record per patched function: who wants what there, and what is in place.

As `struct dyn_ftrace` and `ftrace_update_record` of the kernel's kernel/trace/ftrace.c: several
users (traces) share a site, the difference between wanted and in place becomes one batch, and only
what the batch has done is noted. One user's probe is called directly, several one after the other.
"""

from __future__ import annotations

import bisect
import itertools
import time
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple, Protocol

from textpoke._errors import (
    AgentFailed,
    BatchFailed,
    BatchRefused,
    TextpokeError,
    UnsupportedTarget,
)
from textpoke.agent_image import Probe
from textpoke.engine import run_request
from textpoke.hooks import hook_of, lead_poke, led_to
from textpoke.modes import Mode, may_be_closed
from textpoke.plan import CELL
from textpoke.poke import Outcome, Poke, Request, joined, poke_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from textpoke.agent import Agent
    from textpoke.model import Mapping as Mapped
    from textpoke.model import Site
    from textpoke.plan import SitePlan

    Chain = tuple[Probe, ...]
    _InPlace = dict[int, tuple[Chain, int, SitePlan]]
    _After = tuple[_InPlace, Mapping[int, int]]

_BUSY_TRIES = 20
_BUSY_PAUSE_S = 0.005
_OFF_TRIES = 10
_MOST_KEPT = 64
_MOST_KEPT_STEPS = 400_000  # of all changes that are kept: some 400 MiB
INSIDE = "a thread stands among its first instructions and does not leave"
CLOSED = "its library was closed meanwhile"
NO_COPY = "no free memory within 2 GiB of it for the probe"
IN_THE_WAY = "another trace has patched some of its bytes"
NO_PROBE = Probe(-1)
"""Wanted at sites whose own code of ours does everything: at branches, it counts."""
_ALONE = (NO_PROBE,)


class Places(Protocol):
    """Who maps code of ours, and knows the ways through it (`placing.Placing`)."""

    def probes(self, wanted: Sequence[tuple[SitePlan, Chain]]) -> list[int]:
        """Map copies of probes: for each (site, chain) the address, 0 where there is no room."""

    def outlast(self, gone: Sequence[SitePlan]) -> None:
        """Wait until no thread is on a way of ours from sites that are off."""

    def ways(self, gone: Sequence[SitePlan]) -> bytes:
        """Those ways, for who can look without waiting."""


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
        self.alone = any(wanted.probe is NO_PROBE for wanted in self.values())


_NOTHING = Wants()


class _Step(NamedTuple):
    """One poke, and what stands at which site once it is done."""

    poke: Poke
    planned: SitePlan
    chain: Chain  # empty: the site is off
    lead: int
    ahead: bool = False  # of a site that is off: no call may come to the old probe first
    is_cell: bool = False  # what is poked is data, and only stored
    before: tuple[Chain, int] = ((), 0)  # what stood there, and its lead


class _How(NamedTuple):
    mode: Mode
    guards: bool = False
    awaited: tuple[SitePlan, ...] = ()  # who is on their ways, once all is off


class _Part(NamedTuple):
    """Steps of a change that are one batch."""

    steps: tuple[_Step, ...]
    request: Request

    @classmethod
    def of(cls, steps: Iterable[_Step]) -> _Part:
        """Packed."""
        kept = tuple(steps)
        return cls(kept, Request.of(s.poke for s in kept))


class _Run(NamedTuple):
    """Cells of pads that stand together: their bytes, and where they lead then."""

    start: int
    old: bytes
    new: bytes
    leads: dict[int, int]


class _Cells(NamedTuple):
    """Steps that are stores to pads' cells."""

    steps: tuple[_Step, ...]
    runs: tuple[_Run, ...]

    @classmethod
    def of(cls, steps: Iterable[_Step]) -> _Cells:
        """With cells that stand together joined."""
        kept = tuple(steps)
        groups: list[list[_Step]] = []
        for step in sorted(kept, key=lambda step: step.poke.address):
            if groups and groups[-1][-1].poke.address + CELL.size == step.poke.address:
                groups[-1].append(step)
            else:
                groups.append([step])
        return cls(kept, tuple(map(_run_of, groups)))

    def singly(self) -> Iterable[_Cells]:
        """Each cell for itself."""
        return (_Cells.of([step]) for step in self.steps)


def _run_of(steps: Sequence[_Step]) -> _Run:
    old = b"".join(s.poke.old or b"" for s in steps)
    new = b"".join(s.poke.new or b"" for s in steps)
    return _Run(steps[0].poke.address, old, new, {s.poke.address: s.lead for s in steps})


@dataclass(slots=True)
class _Change:
    cells_ahead: _Cells  # of sites that are off
    cells: _Cells  # of sites that are on: last, since a batch may fail
    ahead: _Part  # of code of ours that nobody comes to yet
    leads_ahead: dict[int, int]  # where that leads then
    usual: _Part
    staying: _Part  # int3s that stay
    left_out: tuple[tuple[Site, str], ...]
    over: tuple[SitePlan, ...]  # sites that were on once, on whose bytes others come now
    over_at: frozenset[int]  # their addresses
    goes_off: bool  # some site is switched off
    state: int = 0  # that it has led to before
    after: _After | None = None  # what is in place then, once it was made twice

    @classmethod
    def of(
        cls,
        steps: Sequence[_Step],
        left_out: Iterable[tuple[Site, str]] = (),
        over: Iterable[SitePlan] = (),
    ) -> _Change:
        """With its batches packed."""
        ahead = _Part.of(s for s in steps if s.ahead and not s.is_cell)
        rest = [s for s in steps if not s.ahead and not s.is_cell]
        usual = _Part.of(s for s in rest if not s.poke.is_permanent)
        return cls(
            _Cells.of(s for s in steps if s.ahead and s.is_cell),
            _Cells.of(s for s in steps if not s.ahead and s.is_cell),
            ahead,
            {s.poke.address: s.lead for s in ahead.steps},
            usual,
            _Part.of(s for s in rest if s.poke.is_permanent),
            tuple(left_out),
            tuple(over),
            frozenset(p.site.address for p in over),
            goes_off=any(not s.chain for s in usual.steps),
        )

    @property
    def size(self) -> int:
        """How many steps, without putting them in a row."""
        parts = self.cells_ahead, self.ahead, self.usual, self.staying, self.cells
        return sum(len(part.steps) for part in parts)

    @property
    def steps(self) -> tuple[_Step, ...]:
        """All, in the order in which they are made."""
        ahead = self.cells_ahead.steps + self.ahead.steps
        return ahead + self.usual.steps + self.staying.steps + self.cells.steps


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
        places: Where code of ours is.
        default: The probe that a plan leads to by itself.

    Attributes:
        one_by_one: A protocol run a site (for measurement).
        tell: Called with the outcome of every change (for measurement).
    """

    def __init__(self, agent: Agent, places: Places, default: Probe) -> None:
        self.one_by_one = False
        self.tell: Callable[[Outcome], None] | None = None
        self._agent = agent
        self._places = places
        self._default = (default,)
        self._users: dict[str, Wants] = {}
        self._in_place: _InPlace = {}  # by site: chain and lead; see _changed()
        self._led: Mapping[int, int] = {}  # by hook: of sites that are off, too; see _leads
        self._led_since: list[Mapping[int, int]] = []
        self._is_shared = False  # a change that was kept knows both by
        self._state = 0
        self._states: dict[object, int] = {}  # numbers of states that may be met again
        # A change that was made before, from the same state, needs no new batch to be packed.
        self._kept: dict[tuple[int, str, int], _Change] = {}
        self._crossing: dict[tuple[int, int], bool] = {}
        # All that were ever on: those that count branches (True), those that call probes.
        self._ever: dict[bool, dict[int, SitePlan]] = {False: {}, True: {}}
        # Those of a kind on whose ways nobody was since some of that kind went off.
        self._outlasted: dict[bool, set[int]] = {False: set(), True: set()}
        # Those of a kind that was waited for: where threads are held anyway, they are looked for.
        self._awaited: dict[bool, tuple[SitePlan, ...]] = {False: (), True: ()}

    def switch(
        self, user: str, wanted: Wants, mode: Mode = Mode.AUTO, *, guards: bool = False
    ) -> Switched:
        """Let `user` have what it wants from now on, and nothing else: one batch.

        Two where what comes stands on bytes of what goes: branches among a function's first bytes.

        Args:
            user: Name of the trace.
            wanted: By address of the site; kept, so it must not change. Give the same object again
                to switch back and forth quickly.
            mode: How sites are written.
            guards: These probes stay as long as returns are redirected.

        Raises:
            BatchRefused, BatchFailed, UnsupportedTarget: Nothing was changed.
        """
        how, done = _How(mode, guards), Switched()
        before = self._users.get(user, _NOTHING)
        if self._crosses(before, wanted):
            self._switch(user, _NOTHING, how, done)
            try:
                self._switch(user, wanted, how, done)
            except TextpokeError:
                with suppress(TextpokeError):
                    self._switch(user, before, how, Switched())
                raise
        else:
            self._switch(user, wanted, how, done)
        for outcome in (done.ahead, done.outcome):
            if self.tell is not None and outcome is not None:
                self.tell(outcome)
        return done

    def _switch(self, user: str, wanted: Wants, how: _How, done: Switched) -> None:
        change = self._change(user, wanted)
        self._outlast(change, alone=not wanted.alone)
        going = self._users.get(user, _NOTHING).alone
        if change.goes_off:
            self._outlasted[going].clear()
            how = how._replace(awaited=self._awaited[going])
        try:
            complete = self._run(change, how, done)
        except BaseException:  # what was done of it is not known, or was led ahead
            self._read_back(change.steps)
            raise
        self._users[user] = wanted
        if not wanted:
            del self._users[user]
        if not complete:
            self._new_state()
            return
        if _is_outlasted(done.outcome) and not change.staying.steps:
            self._outlasted[going].update(p.site.address for p in how.awaited)
        if change.state:  # it was made before, and perhaps will be again
            change.after = change.after or (self._in_place, self._leads)
            self._is_shared = True
        change.state = change.state or self._number()
        self._state = change.state

    def _outlast(self, change: _Change, *, alone: bool) -> None:
        """Let nobody be on the ways from sites on whose bytes others come now."""
        gone = self._outlasted[alone]
        if gone.issuperset(change.over_at):
            return
        self._places.outlast(change.over)
        gone.update(change.over_at)
        self._awaited[alone] = change.over

    def _crosses(self, before: Wants, wanted: Wants) -> bool:
        """Whether what is wanted now stands on bytes of what was wanted before."""
        if before.alone == wanted.alone:
            return False
        key = before.number, wanted.number
        if key not in self._crossing:
            there = (w.planned for w in before.values())
            self._crossing[key] = bool(_on_bytes_of(there, (w.planned for w in wanted.values())))
        return self._crossing[key]

    def knows(self, user: str, wanted: Wants | None) -> bool:
        """True when this change was made before: it takes a moment then, and not a second."""
        return wanted is not None and (self._state, user, wanted.number) in self._kept

    @property
    def count(self) -> int:
        """Sites that are patched now."""
        return len(self._in_place)

    def is_on(self, address: int) -> bool:
        """True when the site is patched."""
        return address in self._in_place

    def holds(self, start: int, end: int) -> bool:
        """True when some of these bytes are those of a site that is patched."""
        return any(start < _end(p) and p.site.address < end for _, _, p in self._in_place.values())

    def forget_in(self, mappings: Sequence[Mapped]) -> None:
        """Other code is mapped there now: nothing of ours is in it."""
        there = self._changed()
        for address in within(there, mappings):
            del there[address]
        for ever in self._ever.values():
            for address in within(ever, mappings):
                del ever[address]
        self._new_state()

    def forget_leads(self) -> None:
        """All code of ours was planned anew."""
        self._led, self._led_since = {}, []
        self._new_state()

    def _new_state(self) -> None:
        """A state that no change was made from yet."""
        self._state = self._states[object()] = len(self._states) + 1

    def _number(self) -> int:
        """The number of the state that is in place: the same one when it is met again."""
        users = tuple((user, wants.number) for user, wants in self._users.items())
        there = ((address, chain, lead) for address, (chain, lead, _) in self._in_place.items())
        key = users, hash(frozenset(self._leads.items())), hash(frozenset(there))
        return self._states.setdefault(key, len(self._states) + 1)

    def _change(self, user: str, wanted: Wants) -> _Change:
        key = self._state, user, wanted.number
        known = self._kept.get(key)
        if known is not None:
            return known
        left_out: list[tuple[Site, str]] = []
        steps = tuple(self._steps(user, wanted, left_out))
        coming = [s.planned for s in steps if s.chain and s.poke.address == s.planned.site.address]
        change = _Change.of(steps, left_out, self._under(coming, alone=wanted.alone))
        self._keep(key, change)
        return change

    def _keep(self, key: tuple[int, str, int], change: _Change) -> None:
        """Keep it for the next time; the oldest go, but for two: on and off."""
        self._kept[key] = change
        size = sum(kept.size for kept in self._kept.values())
        while len(self._kept) > 2 and (len(self._kept) > _MOST_KEPT or size > _MOST_KEPT_STEPS):
            size -= self._kept.pop(next(iter(self._kept))).size

    def _steps(self, user: str, wanted: Wants, left_out: list[tuple[Site, str]]) -> Iterable[_Step]:
        need = self._needed(user, wanted, left_out)
        leads = iter(
            self._places.probes([w for w in need if w[1] not in ((), self._default, _ALONE)])
        )
        for planned, chain in need:
            current = self._in_place.get(planned.site.address)
            if not chain:
                poke = self._poke(planned, current, on=False)
                yield _Step(poke, planned, (), 0, before=_before(current))
                continue
            lead = planned.lead if chain in (self._default, _ALONE) else next(leads)
            if not lead and chain != _ALONE:
                left_out.append((planned.site, NO_COPY))
                continue
            yield from self._lead(planned, chain, lead, current)

    def _under(self, coming: Sequence[SitePlan], *, alone: bool) -> list[SitePlan]:
        """The sites of the other kind that were on once, and on whose bytes some come."""
        if any(p.site.address not in self._ever[alone] for p in coming):
            self._kept.clear()  # others may come on the bytes of these
        self._ever[alone].update((p.site.address, p) for p in coming)
        ever = self._ever[not alone]
        return [ever[at] for at in sorted(_on_bytes_of(coming, ever.values()))]

    def _needed(
        self, user: str, wanted: Wants, left_out: list[tuple[Site, str]]
    ) -> list[tuple[SitePlan, Chain]]:
        """What each site must come to whose chain of probes changes."""
        before = self._users.get(user, _NOTHING)
        others = [u for name, u in self._users.items() if name != user]
        need: list[tuple[SitePlan, Chain]] = []
        for address in sorted(before.keys() | wanted.keys()):
            mine = wanted.get(address)
            current = self._in_place.get(address)
            users = ([mine] if mine else []) + [u[address] for u in others if address in u]
            chain = _chain(users, current)
            planned = current[2] if current else (mine or before[address]).planned
            if mine and chain and (chain == _ALONE) != (mine.probe is NO_PROBE):
                left_out.append((mine.planned.site, IN_THE_WAY))
            if (current[0] if current else ()) != chain:
                need.append((planned, chain))
        coming = [p for p, chain in need if chain and p.site.address not in self._in_place]
        if not (others and coming):
            return need
        # Functions' entries do not overlap, and branches do not; one and the other may.
        there = (p for c, _, p in self._in_place.values() if (c == _ALONE) != wanted.alone)
        blocked = _on_bytes_of(there, coming)
        left_out += [(p.site, IN_THE_WAY) for p in coming if p.site.address in blocked]
        return [n for n in need if n[0].site.address not in blocked]

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
                yield _Step(poke, planned, chain, lead, not current, hook.is_cell, _before(current))
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
        done.refused += change.left_out
        self._store(change.cells_ahead)
        if change.ahead.steps:
            outcome = run_request(
                self._agent,
                change.ahead.request,
                mode=how.mode,
                one_by_one=self.one_by_one,
                guards=how.guards,
            )
            done.ahead = outcome if done.ahead is None else done.ahead.plus(outcome)
            self._led_since.append(change.leads_ahead)
        if not change.goes_off:
            complete = self._switch_on(change, how, done)
        else:
            complete = self._switch_off(change, how, done)
        if change.staying.steps:
            complete &= self._switch_on_staying(change, done)
        if change.cells.steps:
            self._lead_those_on(change, complete=complete)
        return complete and not change.left_out

    def _lead_those_on(self, change: _Change, *, complete: bool) -> None:
        try:
            self._store(change.cells)
        except TextpokeError:
            self._note(s for s in change.cells.steps if self._leads.get(s.poke.address) == s.lead)
            self._take_back(change.usual.steps + change.staying.steps)
            raise
        if change.after is not None and complete:  # as the last time
            self._come_back_to(change.after)
        else:
            self._note(change.cells.steps)

    def _store(self, cells: _Cells) -> None:
        """Lead sites to other probes: what is poked is data, so nobody need be held or synced."""
        for part in cells.singly() if self.one_by_one else (cells,):
            for run in part.runs:
                self._agent.store_words(run.start, run.old, run.new)
                self._led_since.append(run.leads)

    def _switch_on(self, change: _Change, how: _How, done: Switched) -> bool:
        part, complete = change.usual, True
        if not part.steps:
            return True
        for attempt in range(_OFF_TRIES):
            try:
                outcome = run_request(
                    self._agent,
                    part.request,
                    mode=how.mode,
                    leave_busy=True,
                    one_by_one=self.one_by_one,
                    guards=how.guards,
                )
                break
            except (BatchRefused, BatchFailed) as exc:
                left = self._without_closed(part.steps, done)
                lost = not left or len(left) == len(part.steps)
                if lost or attempt == _OFF_TRIES - 1 or not getattr(exc, "recovered", True):
                    raise
                part, complete = _Part.of(left), False
        done.add(outcome)
        busy = self._note_batch(change, part, outcome)
        try:
            return not self._settle(busy, how, done) and complete
        except TextpokeError:
            self._take_back(change.usual.steps)
            raise

    def _note_batch(self, change: _Change, part: _Part, outcome: Outcome) -> list[_Step]:
        """Note what a batch has done; the steps that it has left out."""
        alone = part is change.usual and not (change.staying.steps or change.cells.steps)
        after = change.after if alone else None
        if after is not None and not outcome.left:
            self._come_back_to(after)  # as the last time, without a look at every site
            return []
        left = set(outcome.left)
        self._note(s for i, s in enumerate(part.steps) if i not in left)
        return [part.steps[i] for i in outcome.left]

    def _settle(self, busy: list[_Step], how: _How, done: Switched) -> list[_Step]:
        """Try again, for a while, the sites that a thread stood inside of; then leave them out."""
        had = bool(busy)
        for _ in range(_BUSY_TRIES):
            if not busy:
                break
            time.sleep(_BUSY_PAUSE_S)
            try:
                again = run_request(
                    self._agent,
                    Request.of(s.poke for s in busy),
                    mode=how.mode,
                    all_or_nothing=False,
                    leave_busy=True,
                    guards=how.guards,
                )
            except (BatchRefused, BatchFailed) as exc:
                if not getattr(exc, "recovered", True):
                    raise
                written = [s for s in busy if _held(self._agent, s.poke) == s.poke.new]
                self._note(written)
                busy = [s for s in busy if s not in written]
                continue
            self._note(s for k, s in enumerate(busy) if k not in again.left)
            busy = [busy[k] for k in again.left]
        done.refused += [(s.planned.site, INSIDE) for s in busy]
        return busy if had else []

    def _switch_on_staying(self, change: _Change, done: Switched) -> bool:
        """Int3s that stay come last: the rest can do without."""
        steps, request = change.staying
        try:
            outcome = run_request(self._agent, request)
        except (UnsupportedTarget, BatchRefused) as exc:
            done.refused += [(s.planned.site, str(exc)) for s in steps]
            return False
        except TextpokeError:
            self._take_back(change.usual.steps)
            raise
        before = len(change.usual.steps)
        done.outcome = joined(done.outcome, outcome, before) if done.outcome else outcome
        self._note(steps)
        return True

    def _switch_off(self, change: _Change, how: _How, done: Switched) -> bool:
        """Sites whose module is gone, or that others hold now, are left."""
        part = change.usual
        ways = self._places.ways(how.awaited) if how.awaited else b""
        failure: BatchRefused | BatchFailed | None = None
        complete = True
        for _ in range(_OFF_TRIES):
            try:
                # Several instructions that come back cannot be taken away again: threads run there.
                outcome = run_request(
                    self._agent,
                    part.request,
                    mode=how.mode,
                    all_or_nothing=False,
                    leave_busy=True,
                    one_by_one=self.one_by_one,
                    ways=ways,
                )
            except (BatchRefused, BatchFailed) as exc:
                if not getattr(exc, "recovered", True):
                    raise
                failure, complete = exc, False
            else:
                done.add(outcome)
                busy = self._note_batch(change, part, outcome)
                return complete and not self._settle(busy, how, done)
            steps = part.steps
            if failure.before is not None:
                done.add(failure.before)
                steps = self._note_parts(steps, failure.before)
            wrote = isinstance(failure, BatchFailed)
            part = _Part.of(self._still_to_do(steps, done, wrote=wrote))
        if failure is not None:
            raise failure
        return complete

    def _without_closed(self, steps: Sequence[_Step], done: Switched) -> list[_Step]:
        """After a failure: what still holds its old bytes, or is of a module that stays."""
        left: list[_Step] = []
        for step in steps:
            address = step.planned.site.address
            if _held(self._agent, step.poke) != step.poke.old and may_be_closed(
                self._agent, address
            ):
                done.refused.append((step.planned.site, CLOSED))
            else:
                left.append(step)
        return left

    def _note_parts(self, steps: Sequence[_Step], before: Outcome) -> tuple[_Step, ...]:
        """Note what parts of a batch have done before another one failed; the rest."""
        written = {i for choice in before.choices for i in choice.indexes} - set(before.left)
        self._note(steps[i] for i in written)
        return tuple(step for i, step in enumerate(steps) if i not in written)

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
                self._changed().pop(step.planned.site.address, None)
        return left

    def _changed(self) -> _InPlace:
        """What is in place, to be changed: tens of thousands of sites are copied only then."""
        if self._is_shared:
            self._in_place, self._is_shared = dict(self._in_place), False
        return self._in_place

    @property
    def _leads(self) -> Mapping[int, int]:
        """Where hooks lead; what came since is put in only when somebody asks."""
        if self._led_since:
            led = dict(self._led)  # a change that was kept may know the old one
            for leads in self._led_since:
                led.update(leads)
            self._led, self._led_since = led, []
        return self._led

    def _come_back_to(self, after: _After) -> None:
        """It is as it was when a kept change was made the last time."""
        self._in_place, self._led = after
        self._led_since, self._is_shared = [], True

    def _note(self, steps: Iterable[_Step]) -> None:
        there, leads = self._changed(), dict[int, int]()
        for step in steps:
            address = step.planned.site.address
            if not step.chain:
                there.pop(address, None)
                continue
            elsewhere = step.poke.address != address  # a pad, or a stub
            if elsewhere:
                leads[step.poke.address] = step.lead
            if not elsewhere or address in there:
                there[address] = step.chain, step.lead, step.planned
        if leads:
            self._led_since.append(leads)

    def _read_back(self, steps: Iterable[_Step]) -> None:
        """Note what the target's memory says."""
        with suppress(TextpokeError):
            self._note(s for s in steps if _held(self._agent, s.poke) == s.poke.new)
        self._new_state()

    def _take_back(self, steps: Sequence[_Step]) -> None:
        """Undo what has been done of a change that cannot be completed."""
        back = [
            s._replace(poke=s.poke.reversed(), chain=s.before[0], lead=s.before[1])
            for s in steps
            if self._in_place.get(s.planned.site.address, ((), 0))[:2] == (s.chain, s.lead)
        ]
        for gone in self._outlasted.values():
            gone.clear()
        if not back:
            return
        with suppress(TextpokeError):
            self._switch_off(_Change.of(back), _How(Mode.AUTO), Switched())


def within(addresses: Iterable[int], mappings: Sequence[Mapped]) -> list[int]:
    """Those of the addresses that are in one of the mappings."""
    return [a for a in addresses if any(m.start <= a < m.end for m in mappings)]


def _held(agent: Agent, poke: Poke) -> bytes:
    try:
        return agent.read(poke.address, len(poke.old or b""))
    except AgentFailed:
        return b""  # nothing is mapped there


def _is_outlasted(outcome: Outcome | None) -> bool:
    """Was nobody on the ways from sites that have all gone off?"""
    return outcome is not None and outcome.outlasted and not outcome.left


def _before(current: tuple[Chain, int, SitePlan] | None) -> tuple[Chain, int]:
    """What stands at a site, and its lead."""
    return current[:2] if current else ((), 0)


def _chain(users: Sequence[Wanted], current: tuple[Chain, int, SitePlan] | None) -> Chain:
    """The probes of all who want a site.

    Who counts branches there and who calls exclude each other: whoever is in place stays, else the
    first one comes.
    """
    if not users:
        return ()
    alone = (current[0] if current else (users[0].probe,)) == _ALONE
    probes = tuple(w.probe for w in users if (w.probe is NO_PROBE) == alone)
    return _ALONE if alone and probes else probes


def _on_bytes_of(there: Iterable[SitePlan], coming: Iterable[SitePlan]) -> set[int]:
    """Addresses of those that come and whose instructions are among those of others."""
    spans = sorted((p.site.address, _end(p)) for p in there)
    starts = [start for start, _ in spans]
    found: set[int] = set()
    for planned in coming:
        at = bisect.bisect_left(starts, _end(planned)) - 1
        if at >= 0 and spans[at][1] > planned.site.address:
            found.add(planned.site.address)
    return found


def _end(planned: SitePlan) -> int:
    """Where the instructions end that a site has taken."""
    return planned.site.address + max(len(planned.site.displaced), len(planned.off))
