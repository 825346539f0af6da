# SPDX-License-Identifier: Apache-2.0
"""The public face: `attach`, `launch`, `this_process`, and the `Target` and `Trace` they give.

This module wires the others together and holds no logic of its own.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Self

from textpoke import leave, sites, target
from textpoke._errors import (
    AgentFailed,
    NotPatchable,
    TargetExited,
    TextpokeError,
)
from textpoke._native import ffi, lib
from textpoke._version import __version__
from textpoke.agent import DEFAULT_RING_BYTES, DEFAULT_RINGS, Agent, error_text, load
from textpoke.capture import CaptureWriter
from textpoke.plan import MERGED_NOP, Method, Plan, Planner, Space
from textpoke.poke import Batch, Outcome, Poke, Request, restore_all, run_request
from textpoke.process_sites import process_sites
from textpoke.ring import Drained, RingReader

if TYPE_CHECKING:
    import threading
    from collections.abc import Iterator, Mapping, Sequence
    from types import TracebackType

    from textpoke.model import Module, Site

_DRAIN_S = 0.002
_NOTE_S = 1.0
_FINAL_DRAINS = 50


def clock_point() -> dict[str, int]:
    """One moment on three clocks: TSC ticks, monotonic and real time in nanoseconds."""
    return {
        "tsc": int(lib.tp_rdtsc()),
        "monotonic_ns": time.monotonic_ns(),
        "realtime_ns": time.time_ns(),
    }


@dataclass(slots=True)
class Trace:
    """One recording of function entries; a context manager that switches it on and off.

    Attributes:
        target: Where it runs.
        chosen: The sites that are traced.
        refused: (site, reason) of chosen sites for which no room was found.
        totals: Everything drained so far.
        on: Outcome of the batch that switched it on; `off` likewise.
        switched_on: When the batch was done, on the clock of time.perf_counter().
        merged: Outcome of the batch that made runs of NOPs one instruction, if one was needed.
    """

    target: Target
    chosen: list[Site]
    output: str | os.PathLike[str] | None = None
    overwrite: bool = False
    force: bool = False
    command: Sequence[str] = ()
    refused: list[tuple[Site, str]] = field(default_factory=list)
    totals: Drained = field(default_factory=Drained)
    on: Outcome | None = None
    off: Outcome | None = None
    merged: Outcome | None = None
    timings_ms: dict[str, float] = field(default_factory=dict)
    reason: str = "stopped"
    switched_on: float = 0.0
    _reader: RingReader | None = None
    _writer: CaptureWriter | None = None
    _off_request: Request | None = None
    _names: dict[int, str] = field(default_factory=dict)
    _lost_no_ring: int = 0
    _next_note: float = 0.0

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if exc_type is not None:
            self.reason = "interrupted" if exc_type is KeyboardInterrupt else "error"
        self.stop()

    @property
    def lost(self) -> int:
        """Events lost so far: full rings, and threads without a ring."""
        return self.totals.lost + self.lost_no_ring

    @property
    def lost_no_ring(self) -> int:
        """Events of threads for which no ring was left."""
        return self._reader.lost_no_ring if self._reader else self._lost_no_ring

    @property
    def events(self) -> int:
        """Events taken so far."""
        return self.totals.events

    def start(self) -> None:
        """Plan, map what is needed, open the capture, switch on in one batch.

        Raises:
            CaptureExists, CaptureWrite: The output cannot be written; nothing was switched on.
            BatchRefused, BatchFailed, UnsupportedTarget: The batch could not be run.
        """
        agent = self.target.agent
        started = time.perf_counter()
        plan = self.target.prepare(self.chosen)
        self.refused = plan.refused
        on_request = Request.of(_pokes(plan, on=True))
        planned = time.perf_counter()
        self._reader = RingReader(agent, -1, overwrite=self.overwrite)
        if self.output is not None:
            self._open_capture(plan)
            self._reader.write_to(self._writer_fd())
        agent.record(on=True, waiting=self._reader.waiting)
        ready = time.perf_counter()
        try:
            self.merged = self.target.merge(plan)
            self.on = run_request(agent, on_request)
        except BaseException:
            self._abandon()
            raise
        self.timings_ms = {
            "plan": (planned - started) * 1e3,
            "open": (ready - planned) * 1e3,
            "batch": (time.perf_counter() - ready) * 1e3,
        }
        self.switched_on = time.perf_counter()
        self._off_request = Request.of(_pokes(plan, on=False))

    def drain(self) -> Drained:
        """Take what the rings hold to the capture; call it every few milliseconds.

        In overwrite mode nothing is taken before the end: the rings keep the last events.

        Raises:
            CaptureWrite: The capture cannot be written; tracing goes on until `stop`.
        """
        if self._reader is None or self.overwrite:
            return Drained()
        if time.monotonic() >= self._next_note:
            self._note_progress()
        return self._drain(final=False)

    def run(self, seconds: float | None = None, stop: threading.Event | None = None) -> None:
        """Drain until the time is over, `stop` is set or the target has ended."""
        deadline = None if seconds is None else time.monotonic() + seconds
        while deadline is None or time.monotonic() < deadline:
            self.drain()
            if stop is not None and stop.is_set():
                return
            self.target.agent.require_alive("the recording")
            time.sleep(_DRAIN_S)

    def stop(self) -> None:
        """Switch off in one batch, take the rest, finish the capture."""
        if self._reader is None:
            return
        failure: TextpokeError | None = None
        try:
            if self._off_request is not None:
                self.off = run_request(self.target.agent, self._off_request)
            self.target.agent.record(on=False)
        except TargetExited:
            self.reason = "target exited"
        except TextpokeError as exc:
            failure = exc
        try:
            self._drain_rest()
            self._finish_capture()
        finally:
            self._lost_no_ring = self._reader.lost_no_ring
            self._reader = None
        if failure is not None:
            raise failure

    def _drain(self, *, final: bool) -> Drained:
        if self._reader is None:
            return Drained()
        try:
            drained = self._reader.drain(final=final)
        except OSError as exc:
            self._reader.write_to(-1)
            if self._writer is None:
                raise
            raise self._writer.failed(exc.errno or 0) from exc
        self.totals.add(drained)
        return drained

    def _drain_rest(self) -> None:
        # A thread may have reserved its last event and not yet written it.
        for _ in range(_FINAL_DRAINS):
            if not self._drain(final=False).incomplete:
                break
            time.sleep(_DRAIN_S)
        self._drain(final=True)

    def _writer_fd(self) -> int:
        return self._writer.fd if self._writer is not None else -1

    def _open_capture(self, plan: Plan) -> None:
        assert self.output is not None  # noqa: S101
        self._writer = CaptureWriter(self.output, force=self.force)
        pid = self.target.pid
        try:
            self._writer.meta(
                {
                    "pid": pid,
                    "exe": self.target.exe,
                    "command": list(self.command) or self.target.command_line,
                    "tracer": "function",
                    "mode": "overwrite" if self.overwrite else "drop",
                    "clock": clock_point(),
                    "sites": [
                        [p.return_address, p.site.module, p.site.function] for p in plan.sites
                    ],
                    "modules": [[m.name, m.path, m.bias] for m in self.target.modules],
                    "cpus": os.cpu_count() or 0,
                    "textpoke": __version__,
                }
            )
            self._note_threads()
        except BaseException:
            self._writer.close()
            raise

    def _note_progress(self) -> None:
        """Now and then a clock point and new threads: a capture that is cut off keeps both."""
        self._next_note = time.monotonic() + _NOTE_S
        if self._writer is not None:
            self._note_threads()
            self._writer.clock(clock_point())

    def _note_threads(self) -> None:
        if self._writer is None:
            return
        with contextlib.suppress(TextpokeError):
            names = {t.tid: t.name for t in target.read_threads(self.target.pid)}
            fresh = {tid: name for tid, name in names.items() if self._names.get(tid) != name}
            if fresh:
                self._names.update(fresh)
                self._writer.threads(fresh)

    def _finish_capture(self) -> None:
        if self._writer is None or self._reader is None:
            return
        writer, self._writer = self._writer, None
        with contextlib.closing(writer):
            self._writer = writer
            self._note_threads()
            self._writer = None
            writer.end(
                {
                    "clock": clock_point(),
                    "events": self.totals.events,
                    "lost": self.totals.lost,
                    "lost_no_ring": self._reader.lost_no_ring,
                    "reason": self.reason,
                    "on": self.on.as_dict() if self.on else None,
                    "off": self.off.as_dict() if self.off else None,
                    "hold_ns": self.target.agent.timings.hold_ns,
                }
            )

    def _abandon(self) -> None:
        """Nothing was switched on: leave no capture that would say otherwise."""
        with contextlib.suppress(TextpokeError):
            self.target.agent.record(on=False)
        if self._writer is not None:
            self._writer.close()
            with contextlib.suppress(OSError):
                os.unlink(self._writer.path)
        self._reader = self._writer = None


def _pokes(plan: Plan, *, on: bool) -> Iterator[Poke]:
    for planned in plan.sites:
        old, new = (planned.off, planned.on) if on else (planned.on, planned.off)
        yield Poke(planned.site.address, old, new, 0, str(planned.site))


class Target:
    """A process with our agent in it; a context manager that detaches at the end.

    Made by `attach`, `launch` or `this_process`.

    Attributes:
        pid: Its process id.
        agent: The connection to the agent.
        repaired: Sites that a killed tool had left patched and that were put back on attach.
        report: What the detach did and proved; None before.
    """

    def __init__(self, agent: Agent) -> None:
        self.agent = agent
        self.pid = agent.pid
        self.repaired = 0
        self.report: leave.DetachReport | None = None
        self.exe = _exe(self.pid)
        self.command_line = _command_line(self.pid)
        self._modules: list[Module] | None = None
        self._sites: list[Site] | None = None
        self._planner = Planner(agent.image().thunk_function)
        self._merged: set[int] = set()  # runs that are one instruction now
        self._settled: set[int] = set()  # those of them that no thread is inside of
        self._repair()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.detach()

    @property
    def modules(self) -> list[Module]:
        """The main program and every mapped shared object."""
        if self._modules is None:
            self._modules = target.read_modules(self.pid)
        return self._modules

    @property
    def hold_ns(self) -> int:
        """How long one thread was held for the attach, in nanoseconds."""
        return self.agent.timings.hold_ns

    def all_sites(self) -> list[Site]:
        """Every site of every module, refused ones included, in address order."""
        if self._sites is None:
            self._sites = process_sites(self.pid, self.modules)
        return self._sites

    def sites(self, include: str | Sequence[str] = (), exclude: Sequence[str] = ()) -> list[Site]:
        """Patchable sites by pattern.

        Args:
            include: 'GLOB' or 'MODULE!GLOB', one or several; empty for all.
            exclude: The same; wins over `include`.

        Raises:
            UnknownFunction: A pattern matches nothing.
            NoSites: Nothing in this process can be patched.
            NotPatchable: Nothing that the patterns choose can be patched.
        """
        patterns = [include] if isinstance(include, str) else list(include)
        where = f"pid {self.pid} ({os.path.basename(self.exe)})"
        chosen = sites.match(self.all_sites(), patterns, list(exclude), where)
        patchable = [site for site in chosen if site.patchable]
        if not patchable:
            raise NotPatchable(chosen[0], chosen[0].reason or "")
        return patchable

    def batch(self, *, all_or_nothing: bool = True, one_by_one: bool = False) -> Batch:
        """Pokes of your own, run together when the `with` block ends."""
        return Batch(self.agent, all_or_nothing=all_or_nothing, one_by_one=one_by_one)

    def trace(
        self,
        include: str | Sequence[str] = (),
        exclude: Sequence[str] = (),
        *,
        output: str | os.PathLike[str] | None = None,
        overwrite: bool = False,
        force: bool = False,
        command: Sequence[str] = (),
    ) -> Trace:
        """A function trace of the chosen sites; nothing happens before it is entered.

        Args:
            include: As for `sites`.
            exclude: As for `sites`.
            output: Capture file; None counts events and throws them away.
            overwrite: Keep the last events of every thread (flight recorder) instead of
                draining; full rings then overwrite the oldest events instead of dropping new ones.
            force: Overwrite an existing capture.
            command: Words to note in the capture as the traced command.

        Raises:
            UnknownFunction, NoSites: As `sites`.
        """
        chosen = self.sites(include, exclude)
        return Trace(self, chosen, output, overwrite, force, command)

    def prepare(self, chosen: Sequence[Site]) -> Plan:
        """Plan CALLs to the thunk at `chosen` sites and map the code that they need.

        Raises:
            NotPatchable: A site was refused by the planner and it was the only one.
            AgentFailed: The target has no room where it was planned.
        """
        head = self.agent.image()
        owned = [(r.start, r.bytes) for r in (head.regions[i] for i in range(head.region_count))]
        plan = self._planner.plan(chosen, Space(target.read_maps(self.pid), owned))
        try:
            for start, size in plan.regions:
                self.agent.map_code(start, size)
            self.agent.fill_code(plan.code)
        except BaseException:
            # The planner counts on pads that are not there: let the next plan begin anew.
            self._planner = Planner(head.thunk_function)
            raise
        if not plan.sites and plan.refused:
            raise NotPatchable(*plan.refused[0])
        return plan

    def merge(self, plan: Plan) -> Outcome | None:
        """Make planned runs of NOPs one instruction, once, where a flip has no room.

        Every mix of the two is NOPs, so threads may be anywhere while it is written; but nobody
        may still be inside when a CALL comes, so look where everybody is and wait.

        Raises:
            NotPatchable: In this process: it cannot look at its own threads.
            AgentFailed: A thread does not leave a run.
        """
        fresh = [
            p
            for p in plan.sites
            if p.method is Method.MERGE and p.site.address not in self._settled
        ]
        if not fresh:
            return None
        if self.pid == os.getpid():
            reason = "its NOPs must be merged, which needs a look at all threads from outside"
            raise NotPatchable(fresh[0].site, reason)
        pokes = [
            Poke(p.site.address, p.site.old, MERGED_NOP, 0, str(p.site))
            for p in fresh
            if p.site.address not in self._merged
        ]
        outcome = run_request(self.agent, Request.of(pokes))
        self._merged.update(poke.address for poke in pokes)
        self._wait_outside([p.site.address for p in fresh])
        self._settled.update(p.site.address for p in fresh)
        return outcome

    def _wait_outside(self, addresses: list[int]) -> None:
        if self.agent.held is not None:
            return  # launched and not yet running: its one thread stands at the entry point
        for _ in range(_FINAL_DRAINS):
            inside = leave.interior_sites(self.agent, addresses, len(MERGED_NOP))
            if not inside:
                return
            addresses = sorted(inside)
            time.sleep(_DRAIN_S)
        raise AgentFailed(f"waiting for a thread to leave {addresses[0]:#x}", 11)

    def release(self) -> None:
        """Let a launched program run."""
        self.agent.release()

    def discard(self) -> None:
        """End a launched program that has not run yet; every other one is left alone."""
        if self.agent.held is not None:
            os.kill(self.pid, signal.SIGKILL)
            os.waitpid(self.pid, 0)

    def detach(self) -> leave.DetachReport:
        """Undo everything, prove it, remove the agent. A second call returns the same report."""
        if self.report is None:
            self.report = leave.detach(self.agent)
        return self.report

    def _repair(self) -> None:
        """An earlier tool was killed and left its sites on: start from what the files say."""
        left_on = [site for site in leave.known_sites(self.agent) if site.patched]
        if left_on:
            self.agent.record(on=False)
            restore_all(self.agent)
            self.repaired = len(left_on)


def attach(pid: int, *, ring_bytes: int = DEFAULT_RING_BYTES, rings: int = DEFAULT_RINGS) -> Target:
    """Attach to a running process: one thread of it is held for under a millisecond.

    Args:
        pid: The process.
        ring_bytes: Bytes of events that one thread can record before they are drained; a power
            of two from 64 KiB to 64 MiB.
        rings: Threads that can record at the same time.

    Raises:
        TargetError: It cannot be traced; the message says why and what helps.
        AgentError: A step inside the target failed; nothing was left behind.
    """
    return _target(load(pid, ring_bytes=ring_bytes, rings=rings))


def this_process(*, ring_bytes: int = DEFAULT_RING_BYTES, rings: int = DEFAULT_RINGS) -> Target:
    """Attach to the calling process itself. Raises as `attach`."""
    return attach(os.getpid(), ring_bytes=ring_bytes, rings=rings)


def launch(
    command: Sequence[str],
    *,
    ring_bytes: int = DEFAULT_RING_BYTES,
    rings: int = DEFAULT_RINGS,
    environment: Mapping[str, str] | None = None,
) -> Target:
    """Start a program, stopped at its entry point with the agent in it; `release` lets it run.

    Raises:
        FileNotFoundError, PermissionError, OSError: It cannot be executed.
        TargetError, AgentError: As `attach`; the program is then killed.
    """
    path = shutil.which(command[0])
    if path is None:
        raise FileNotFoundError(2, "no such program", command[0])
    held = lib.tp_held_create()
    words = [ffi.new("char[]", os.fsencode(word)) for word in command]
    env = os.environ if environment is None else environment
    pairs = [ffi.new("char[]", os.fsencode(k) + b"=" + os.fsencode(v)) for k, v in env.items()]
    error = lib.tp_launch(
        held,
        ffi.new("char[]", os.fsencode(path)),
        ffi.new("char *[]", [*words, ffi.NULL]),
        ffi.new("char *[]", [*pairs, ffi.NULL]),
    )
    if error:
        lib.tp_held_destroy(held)
        raise OSError(-error, error_text(-error), command[0])
    pid = lib.tp_held_pid(held)
    try:
        return _target(load(pid, ring_bytes=ring_bytes, rings=rings, held=held))
    except BaseException:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, 9)
            os.waitpid(pid, 0)
        raise


def _target(agent: Agent) -> Target:
    try:
        return Target(agent)
    except BaseException:
        leave.quietly(agent)
        raise


def _exe(pid: int) -> str:
    try:
        return os.readlink(f"/proc/{pid}/exe")
    except OSError:
        return ""


def _command_line(pid: int) -> list[str]:
    try:
        with open(f"/proc/{pid}/cmdline", "rb") as file:
            words = file.read().split(b"\0")
    except OSError:
        return []
    return [os.fsdecode(word) for word in words[:-1]]
