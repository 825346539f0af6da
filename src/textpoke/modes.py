# SPDX-License-Identifier: Apache-2.0
"""How a batch may be written: which sites in which mode, and why.

`int3` is the protocol: threads run on and may trap. Where a trap would kill the program (a thread
blocks SIGTRAP, the program owns the signal) or could come while signals are blocked (libc blocks
them all around clone and spawn), there are two ways without one: `direct`, a single store where the
processor's manual allows that, and `stop`, with every thread held.
"""

from __future__ import annotations

import enum
import functools
import os
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from textpoke import closable, helper, masks
from textpoke._errors import NoSuchTarget, TargetExited, UnsupportedTarget
from textpoke._native import lib
from textpoke.agent import Masking, outlast_masking
from textpoke.proc import name_of, read_mappings, read_thread, read_threads
from textpoke.target import read_maps

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from textpoke.agent import Agent
    from textpoke.model import Thread

_SIGTRAP = 1 << 4
_CLOSABLE = "in a library that the program may close at any moment"
_NOP_BYTES = frozenset(b"\x66\x90")
_AUTO_PATIENCE_S = 0.02
_NO_TRAPS_S = 1.0
_USUAL_S = 0.01  # a debugger that comes within is one that comes a moment after the look


class Mode(enum.StrEnum):
    """How a batch is written."""

    AUTO = "auto"
    """Per site and per target: `int3` where that is safe, else `direct`, else `stop`."""
    INT3 = "int3"
    """Breakpoints and three syncs; no thread is stopped."""
    DIRECT = "direct"
    """One store a site, no trap: only its first byte changes. AMD processors only."""
    STOP = "stop"
    """Every thread is held meanwhile; nobody traps."""

    @property
    def number(self) -> int:
        """The engine's number of it (enum tp_mode)."""
        return int(
            {"int3": lib.TP_MODE_INT3, "direct": lib.TP_MODE_DIRECT}.get(self, lib.TP_MODE_STOP)
        )


@dataclass(frozen=True, slots=True)
class Choice:
    """Sites of a batch that take the same mode.

    Attributes:
        mode: How they are written.
        why: The reason, for people; "" where it is the usual one.
        indexes: Their positions in the batch.
    """

    mode: Mode
    why: str
    indexes: Sequence[int]

    def as_dict(self) -> dict[str, object]:
        """Plain data for JSON."""
        return {"mode": str(self.mode), "why": self.why, "sites": len(self.indexes)}


class Places(Protocol):
    """What the choice depends on; the longer lists are made only when they are needed."""

    @property
    def addresses(self) -> Sequence[int]:
        """Of the sites."""

    @property
    def span(self) -> tuple[int, int]:
        """Lowest and highest address."""

    def outside(self, ranges: tuple[tuple[int, int], ...]) -> Sequence[int]:
        """Positions of the sites that are in none of these."""

    @property
    def direct(self) -> Sequence[bool]:
        """For each site, whether one store can change it (`is_direct`)."""

    @property
    def halves(self) -> tuple[list[int], list[int]]:
        """Positions of those, and of the others."""


def is_direct(old: bytes | None, new: bytes | None) -> bool:
    """May one store change `old` to `new`? Only the first byte differs, or any mix is NOPs.

    Source: AMD64 Architecture Programmer's Manual, volume 2, "Cross-Modifying Code": stores within
    a naturally aligned quadword are seen whole by other cores' instruction fetch. Intel's errata
    ("Unsynchronized Cross-Modifying Code") promise this for no instruction, so not there.
    """
    if old is None or new is None or old[1:] == new[1:]:
        return True
    return is_nops(old) and is_nops(new)


def is_nops(code: bytes) -> bool:
    """True for bytes 66 and 90 that end in 90: NOPs from every byte on."""
    return _NOP_BYTES.issuperset(code) and code[-1:] == b"\x90"


@functools.cache
def direct_processor() -> bool:
    """True on processors whose manual allows `direct` mode."""
    with open("/proc/cpuinfo", encoding="utf-8", errors="replace") as file:
        return any(line.startswith("vendor_id") and "AuthenticAMD" in line for line in file)


def why_no_traps(agent: Agent) -> str:
    """Why an int3 would kill the target now: which thread blocks SIGTRAP. "" when none does.

    Raises:
        TargetExited: The process is gone.
        UnsupportedTarget: A debugger has attached meanwhile ("debugger"): it would be given our
            traps, and skip them. Or the program has filtered the agent's calls ("seccomp").
    """
    try:
        threads = read_threads(agent.pid)
    except NoSuchTarget as exc:
        raise TargetExited(agent.pid, "a batch") from exc
    for thread in threads:
        _require_usual(agent, thread)
    for thread in threads:
        blocked = thread.sig_blocked
        if agent.held is not None and thread.tid == agent.pid:
            blocked = int(lib.tp_held_mask(agent.held))  # the status shows all, blocked by us
        if blocked & _SIGTRAP and thread.tid != agent.tid and thread.state not in "ZX":
            return f"thread {thread.tid} ({thread.name}) blocks SIGTRAP"
    return ""


def _require_usual(agent: Agent, thread: Thread) -> None:
    """Raise UnsupportedTarget ("debugger", "seccomp") for what came over a thread since."""
    require_unfiltered(agent, thread)
    if thread.tracer_pid and agent.held is None:
        debugger = f"{name_of(thread.tracer_pid)} (pid {thread.tracer_pid})"
        detail = f"{debugger} traces thread {thread.tid} ({thread.name}), let it detach first"
        raise UnsupportedTarget(agent.pid, "debugger", detail)


def require_unfiltered(agent: Agent, thread: Thread) -> None:
    """Refuse when `thread` is the agent's and the program has filtered its system calls since."""
    if thread.seccomp and thread.tid == agent.tid:
        detail = "the program has put a filter over all its threads, ours too: the agent stays"
        raise UnsupportedTarget(agent.pid, "seccomp", detail)


def require_trap_safe(agent: Agent) -> None:
    """Raise UnsupportedTarget ("sigtrap-blocked") when an int3 would kill the target now."""
    why = why_no_traps(agent)
    if why:
        detail = f"{why}, an int3 would kill the process; unblock the signal in that thread"
        raise UnsupportedTarget(agent.pid, "sigtrap-blocked", detail)


def why_no_trap_stays(agent: Agent) -> Callable[[int], str]:
    """Return what tells why an int3 may not stay at an address for good; "" where it may.

    A batch needs no thread to block SIGTRAP while it runs, an int3 that stays needs it for ever.

    Raises:
        TargetExited, UnsupportedTarget: As `why_no_traps`.
    """
    why = _lasting_obstacle(agent) or why_masking(agent) or masks.why_handling(agent.pid)
    if why:
        return lambda _address: f"an int3 that stays could kill the program: {why}"
    in_runtime = _in_runtime(agent)
    text = "an int3 that stays could kill the program: its runtime blocks all signals at times"
    return lambda address: text if in_runtime(address) else ""


def choose(
    agent: Agent,
    places: Places,
    wanted: Mode = Mode.AUTO,
    *,
    no_traps: str = "",
) -> list[Choice]:
    """Give every site of a batch its mode.

    Args:
        agent: The connection.
        places: Its sites.
        wanted: What the caller asks for.
        no_traps: A reason against traps that is known already.

    Raises:
        UnsupportedTarget: The mode that was asked for, or every mode, is impossible here.
        TargetExited: The process is gone.
    """
    everything = range(len(places.addresses))
    if wanted is Mode.INT3:
        outlast_masking(lambda: require_trap_safe(agent))
    elif wanted is not Mode.AUTO:
        why_no_traps(agent)  # for what it refuses
    if wanted is Mode.DIRECT and not direct_processor():
        detail = "direct mode needs an AMD processor: no other vendor's manual allows it"
        raise UnsupportedTarget(agent.pid, "no-direct", detail)
    if wanted is Mode.STOP:
        require_holds(agent)
    if wanted is not Mode.AUTO:
        return [Choice(wanted, "asked for", everything)]
    obstacle = _why_no_traps(agent)  # always: it also refuses a debugger
    closed = _closable_sites(agent, places)
    among = set(closed)
    rest = [i for i in everything if i not in among] if closed else everything
    found = []
    if rest or not closed:
        found = _choose_lasting(agent, places, rest, no_traps or obstacle)
    return _with_closable(agent, found, closed)


def _choose_lasting(
    agent: Agent, places: Places, indexes: Sequence[int], no_traps: str
) -> list[Choice]:
    """For sites whose module stays where it is."""
    if no_traps:
        return _without_traps(agent, indexes, places, no_traps)
    among = set(_runtime_sites(agent, places))
    masked = [i for i in indexes if i in among] if among else []
    if not masked:
        return [Choice(Mode.INT3, "", indexes)]
    why = "in a runtime that runs with all signals blocked"
    free = [i for i in indexes if i not in among]
    usual = [Choice(Mode.INT3, "", free)] if free else []
    return usual + _without_traps(agent, masked, places, why)


def _with_closable(agent: Agent, found: list[Choice], closed: Sequence[int]) -> list[Choice]:
    if not closed:
        return found
    require_holds(agent)
    if found and found[-1].mode is Mode.STOP:  # once is enough
        last = found.pop()
        return [*found, Choice(Mode.STOP, last.why, sorted([*last.indexes, *closed]))]
    return [*found, Choice(Mode.STOP, _CLOSABLE, closed)]


def choose_one(agent: Agent, places: Places, *, no_traps: str = "") -> Choice:
    """One mode for all sites of a batch: the most careful that any of them needs.

    Raises:
        UnsupportedTarget, TargetExited: As `choose`.
    """
    choices = choose(agent, places, no_traps=no_traps)
    if len(choices) == 1:
        return choices[0]
    why = choices[-1].why
    everything = range(len(places.addresses))
    if all(places.direct) and direct_processor() and not _closable_sites(agent, places):
        return Choice(Mode.DIRECT, why, everything)
    require_holds(agent)
    return Choice(Mode.STOP, why, everything)


def _why_no_traps(agent: Agent) -> str:
    """Why no batch may trap, also if it had to last for a while; "" when any may."""
    why, until = agent.no_traps
    now = time.monotonic()
    if why and now < until:  # the other modes are right at any moment
        if now >= agent.usual_until:
            _require_still_usual(agent)
            agent.usual_until = now + _USUAL_S
        return why
    why = _lasting_obstacle(agent) or why_masking(agent)
    agent.no_traps = why, time.monotonic() + _NO_TRAPS_S
    return why


def _require_still_usual(agent: Agent) -> None:
    try:
        for tid in {agent.pid, agent.tid}:  # a debugger takes the first one, if not all
            _require_usual(agent, read_thread(agent.pid, tid))
    except NoSuchTarget as exc:
        raise TargetExited(agent.pid, "a batch") from exc


def _lasting_obstacle(agent: Agent) -> str:
    why = ""

    def look() -> None:
        nonlocal why
        why = why_no_traps(agent)
        if why:
            raise UnsupportedTarget(agent.pid, "sigtrap-blocked", why)

    # What has lasted once is not waited for again: the other modes are good at any moment.
    known, agent.obstacle = agent.obstacle, ""
    try:
        outlast_masking(look, patience_s=0.0 if known else _AUTO_PATIENCE_S)
    except UnsupportedTarget as exc:
        if exc.reason != "sigtrap-blocked":
            raise
        agent.obstacle = why
        return why
    return ""


def why_masking(agent: Agent) -> str:
    """Why the program may block SIGTRAP in its own code; looked up again when its files change."""
    maps, known = read_mappings(agent.pid), agent.masking
    if known is None or known.maps is not maps:
        files = frozenset((m.path, m.inode) for m in maps if m.inode and "x" in m.perms)
        is_known = known is not None and known.files == files
        why = known.why if known and is_known else masks.why_masking(agent.pid)
        agent.masking = known = Masking(maps, files, why)
    return known.why


def _without_traps(agent: Agent, indexes: Sequence[int], places: Places, why: str) -> list[Choice]:
    single, others = _halves(indexes, places) if direct_processor() else ([], indexes)
    if not others:
        return [Choice(Mode.DIRECT, why, indexes)]
    require_holds(agent)
    if len(single) <= len(others):  # threads are held anyway: a second run would cost more
        return [Choice(Mode.STOP, why, indexes)]
    return [Choice(Mode.DIRECT, why, single), Choice(Mode.STOP, why, others)]


def _halves(indexes: Sequence[int], places: Places) -> tuple[Sequence[int], Sequence[int]]:
    if len(indexes) == len(places.addresses):
        return places.halves
    direct = places.direct
    return [i for i in indexes if direct[i]], [i for i in indexes if not direct[i]]


def require_holds(agent: Agent) -> None:
    """Raise UnsupportedTarget ("no-helper") when nobody can stop the threads of the own process."""
    if agent.pid == os.getpid():
        helper.require(agent)


def _runtimes(agent: Agent) -> list[tuple[int, int]]:
    """[start, end) of the code of libc and the dynamic loader."""
    if agent.runtimes is None or agent.held is not None:  # a launched program has not loaded them
        agent.runtimes = [
            (m.start, m.end)
            for m in read_maps(agent.pid)
            if "x" in m.perms and masks.is_runtime(m.path)
        ]
    return agent.runtimes


def _closable_sites(agent: Agent, places: Places) -> Sequence[int]:
    """Positions of the sites in libraries that the program may close at any moment.

    Not in the own process, which is asked by whoever opens its libraries; nor in one that does not
    run yet. What is in no file is the caller's own, and he knows when it goes.
    """
    if agent.held is not None or agent.pid == os.getpid():
        return ()
    outside = places.outside(_lasting(agent))
    if not outside:
        return ()
    # Where nothing is mapped just now, a library that was closed may be opened again.
    own = tuple((m.start, m.end) for m in read_mappings(agent.pid) if not m.inode)
    elsewhere = set(places.outside(own))
    return [i for i in outside if i in elsewhere]


def _lasting(agent: Agent) -> tuple[tuple[int, int], ...]:
    if agent.lasting is None:
        try:
            agent.lasting = tuple(closable.lasting(agent.pid))
        except NoSuchTarget as exc:
            raise TargetExited(agent.pid, "a batch") from exc
    return agent.lasting


def may_be_closed(agent: Agent, address: int) -> bool:
    """Tell whether what is mapped there may be gone, or another module, at any moment.

    Raises:
        TargetExited: The process is gone.
    """
    return not any(start <= address < end for start, end in _lasting(agent))


def _in_runtime(agent: Agent) -> Callable[[int], bool]:
    runtimes = _runtimes(agent)
    return lambda address: any(start <= address < end for start, end in runtimes)


def _runtime_sites(agent: Agent, places: Places) -> list[int]:
    """Positions of the sites in libc and the dynamic loader."""
    low, high = places.span
    near = [(start, end) for start, end in _runtimes(agent) if start <= high and end > low]
    if not near:
        return []
    addresses = enumerate(places.addresses)
    return [i for i, at in addresses if any(start <= at < end for start, end in near)]
