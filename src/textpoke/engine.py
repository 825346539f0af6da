# SPDX-License-Identifier: Apache-2.0
"""Batches handed to the engine in the target: in the right mode, and what came of them."""

from __future__ import annotations

import errno
import os
import time
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Self

from textpoke import helper, modes
from textpoke._errors import (
    AgentFailed,
    BatchFailed,
    BatchRefused,
    BytesDiffer,
    PokeError,
    TargetExited,
    UnsupportedTarget,
)
from textpoke._native import ffi, lib
from textpoke.agent import checked_answer, error_text, outlast_masking
from textpoke.holds import Work
from textpoke.model import Site
from textpoke.modes import Choice, Mode
from textpoke.poke import PHASES, RECORD, Outcome, Poke, Poked, Request, name_of, read_outcome

if TYPE_CHECKING:
    from collections.abc import Sequence
    from types import TracebackType

    from textpoke._native import Pointer
    from textpoke.agent import Agent

SITE_OUTCOMES = (
    *("pending", "skipped", "int3", "tail", "written", "done", "restored"),
    *("busy", "left"),
)
_OUTCOME_AT = 30  # of the field `outcome` of struct tp_poke
_OWNERS = {0xCC: "a debugger or another tracer (int3)", 0xE9: "a hook (jmp)", 0xE8: "a hook (call)"}
_TAKEN = "sigtrap-taken"
_MASKED = "sigtrap-masked"
_SELF_HANDLED = "the program handles or ignores SIGTRAP itself"
_IN_HANDLER = "a signal handler of the program blocks SIGTRAP, or has an alternate stack"
_STAYS = "an int3 that stays: nothing else was possible there"
_GOES = "an int3 that goes: one store does it"
_NOT_EMULATED = "a thread that trapped at one of the sites could not be sent on"
_TIMEOUT_S = 120.0
_STOPPED_TIMEOUT_MS = 10_000  # everybody waits meanwhile
_STOPS = 60
_STOP_PAUSE_S = 0.01
_PATIENT_STOPS = 5  # before sites are left out


@dataclass(frozen=True, slots=True)
class _How:
    """What the caller wants of a batch besides its mode."""

    all_or_nothing: bool = True
    leave_busy: bool = False
    one_by_one: bool = False
    callbacks: tuple[int, int] = (0, 0)
    room: bool = False
    guards: bool = False
    ways: bytes = b""

    def flags(self, mode: Mode) -> int:
        """The second argument of the command (enum tp_batch_flags)."""
        return int(
            self.all_or_nothing * lib.TP_BATCH_ALL_OR_NOTHING
            | self.leave_busy * lib.TP_BATCH_LEAVE_BUSY
            | self.one_by_one * lib.TP_BATCH_ONE_BY_ONE
            | self.room * lib.TP_BATCH_ROOM
            | self.guards * lib.TP_BATCH_GUARDS
            | mode.number << lib.TP_BATCH_MODE_SHIFT
        )


def run_request(  # noqa: PLR0913 - a caller names the few that it wants
    agent: Agent,
    request: Request,
    *,
    mode: Mode = Mode.AUTO,
    one_mode: bool = False,
    all_or_nothing: bool = True,
    leave_busy: bool = False,
    one_by_one: bool = False,
    callbacks: tuple[int, int] = (0, 0),
    guards: bool = False,
    ways: bytes = b"",
) -> Outcome:
    """Run one batch in the target.

    Args:
        agent: The connection.
        request: The batch.
        mode: How it is written.
        one_mode: All sites in one run, even if only some need another mode than the rest.
        all_or_nothing: Roll finished sites back too when the batch fails.
        leave_busy: Leave out sites that a thread stands inside of (`Outcome.left`), do not fail.
        one_by_one: A protocol run a site (for measurement).
        callbacks: Addresses in the target of two C functions, or 0: `bool is_handled(uint64_t ip)`
            and `int finish(const struct tp_poke *, void *)`.
        guards: These probes stay as long as returns are redirected.
        ways: Where nobody should be once it is done, as `Placing.ways` has it: where threads are
            held anyway, `Outcome.outlasted` tells.

    Raises:
        BatchRefused, BytesDiffer: Nothing was written.
        BatchFailed: It failed on the way; the engine has recovered, or says so.
        UnsupportedTarget: The mode, or any, is impossible: `reason` and `detail` say why.
    """
    room = mode is Mode.INT3  # who asks for it answers for the program's alternate stacks
    how = _How(all_or_nothing, leave_busy, one_by_one, callbacks, room, guards, ways)
    try:
        return _run_choices(agent, request, _choices(agent, request, mode, one_mode=one_mode), how)
    except UnsupportedTarget as exc:
        if mode is not Mode.AUTO or exc.reason not in (_TAKEN, _MASKED):
            raise
        no_traps = exc.detail
    # Only the agent could know that the program's handlers forbid traps: nothing was written.
    choices = _choices(agent, request, mode, one_mode=one_mode, no_traps=no_traps)
    return _run_choices(agent, request, choices, how)


def _choices(
    agent: Agent, request: Request, mode: Mode, *, one_mode: bool, no_traps: str = ""
) -> list[Choice]:
    if request.staying or request.leaving:
        return _with_staying(agent, request, mode, one_mode=one_mode, no_traps=no_traps)
    if one_mode and mode is Mode.AUTO:
        return [modes.choose_one(agent, request, no_traps=no_traps)]
    return modes.choose(agent, request, mode, no_traps=no_traps)


def _with_staying(
    agent: Agent, request: Request, mode: Mode, *, one_mode: bool, no_traps: str
) -> list[Choice]:
    """An int3 that stays is met by threads whatever the mode: it can only be written as such.

    Taken away it is by one store: both bytes are right at every moment, on every processor.
    """
    staying, leaving = request.staying, request.leaving
    if staying:
        outlast_masking(lambda: modes.require_trap_safe(agent))
    among = {*staying, *leaving}
    rest = [i for i in range(len(request.pokes)) if i not in among]
    part = request.part(rest)
    found = _choices(agent, part, mode, one_mode=one_mode, no_traps=no_traps) if rest else []
    choices = [replace(choice, indexes=[rest[i] for i in choice.indexes]) for choice in found]
    if leaving:
        choices.append(Choice(Mode.DIRECT, _GOES, leaving))
    if staying:
        choices.append(Choice(Mode.INT3, _STAYS, staying))
    return choices


def _run_choices(agent: Agent, request: Request, choices: list[Choice], how: _How) -> Outcome:
    """One after the other; all or nothing holds for them together."""
    done = Outcome()
    before_the_last = replace(how, ways=b"") if how.ways else how
    for i, choice in enumerate(choices):
        try:
            is_last = choice is choices[-1]
            part = _run_part(
                agent, request.part(choice.indexes), choice, how if is_last else before_the_last
            )
        except BaseException as exc:
            if isinstance(exc, PokeError) and i and not how.all_or_nothing:
                exc.before = done
            if how.all_or_nothing:
                undo = _How(False, room=how.room)  # what comes back may be several instructions
                for earlier in choices[:i]:
                    there = [k for k in earlier.indexes if k not in done.left]
                    _run_part(agent, request.reversed(there), earlier, undo)
            raise
        done = done.plus(part) if i else part
    return done


def _run_part(agent: Agent, request: Request, choice: Choice, how: _How) -> Outcome:
    """Run the batch of a choice; what it has left out is told by its positions in the whole."""
    wire, shared, layout = agent.wire, agent.shared, agent.layout
    if wire is None or shared is None or layout is None:
        raise AgentFailed("running a batch on a closed connection", errno.EBADF)
    if len(request.data) > layout.request_bytes:
        most = layout.request_bytes // ffi.sizeof("struct tp_poke")
        why = f"{len(request.pokes):,} sites, at most {most:,} can be: choose fewer functions"
        raise BatchRefused(f"{error_text(lib.TP_ETOOMANY)} ({why})")
    start = lib.TP_PAGE_BYTES
    words = (len(request.pokes), how.flags(choice.mode), *how.callbacks)
    for attempt in range(_STOPS):
        shared[start : start + len(request.data)] = request.data
        look = _Look(agent, request, leave_busy=how.leave_busy, ways=how.ways)
        began = int(lib.tp_rdtsc())
        try:
            code, hold_ns = _command(agent, lib.TP_CMD_BATCH, words, choice.mode, look)
        except BaseException:  # it may have been written all the same
            _tell(agent, request, began, (), failed=True)
            raise
        left_out = look.left()
        _tell(agent, request, began, left_out, failed=code < 0)
        if attempt == _STOPS - 1 or not _could_not_look(code, wire.outcome):
            break
        time.sleep(_STOP_PAUSE_S)
    if code < 0:
        raise _failure(agent.pid, -code, _copied(wire), request.pokes)
    left = tuple(choice.indexes[k] for k in left_out)
    return read_outcome(wire.outcome, hold_ns, (choice,), left, outlasted=look.outlasted)


def _tell(
    agent: Agent, request: Request, began: int, left: tuple[int, ...], *, failed: bool
) -> None:
    """Let those who keep a record of all pokes know of a batch."""
    if agent.witnesses:
        poked = Poked(request, began, int(lib.tp_rdtsc()), failed, left)
        for witness in tuple(agent.witnesses):
            witness(poked)


def _could_not_look(code: int, raw: Pointer) -> bool:
    """A thread did not stop in time, as a parent does not in vfork: all is as it was before."""
    return (
        code == -errno.EAGAIN
        and raw.phase < len(PHASES)
        and PHASES[raw.phase] == "look"
        and bool(raw.recovered)
    )


class _Look:
    """A batch as the native side sees it: where no thread may stand, and which sites were busy."""

    def __init__(
        self, agent: Agent, request: Request, *, leave_busy: bool = False, ways: bytes = b""
    ) -> None:
        self.agent = agent
        self.leave_busy = leave_busy
        self.ways = ways
        self.outlasted = False
        self.request = request
        self.pokes = request.data if request.looks else b""
        self.restorer = agent.restorer() if self.pokes else 0
        self.busy = b""

    def left(self) -> tuple[int, ...]:
        """Positions of the sites that were left out."""
        if not self.leave_busy or not self.busy.strip(b"\0"):
            return ()
        return tuple(i for i, busy in enumerate(self.busy) if busy)

    def run(self, command: int, words: Sequence[int], timeout_ms: int) -> int:
        """Run a command of the agent and look at all threads when it asks; returns its result."""
        raw = self._raw(command, words, timeout_ms)
        code, self.busy = helper.perform(self.agent, Work.LOOK, bytes(ffi.buffer(raw)), self.pokes)
        return code

    def run_stopped(
        self, command: int, words: Sequence[int], *, patient: bool
    ) -> tuple[int, Pointer]:
        """Run a command while all threads but the agent's are held; a code, struct tp_stopped."""
        agent, request = self.agent, self.request
        raw = self._raw(command, words, _STOPPED_TIMEOUT_MS)
        raw.all_nops, raw.leave_busy = request.all_nops, self.leave_busy and not patient
        # A helper process could end between the two halves: for the own process they are one.
        raw.prepare = agent.pid != os.getpid() and (
            command == lib.TP_CMD_BATCH and not words[1] & lib.TP_BATCH_ONE_BY_ONE
        )
        parts = bytes(ffi.buffer(raw)), request.window_words, self.ways, self.pokes
        code, found = helper.perform(agent, Work.STOP, *parts)
        out = ffi.new("struct tp_stopped *")
        ffi.memmove(out, found, ffi.sizeof("struct tp_stopped"))
        self.busy = found[ffi.sizeof("struct tp_stopped") :]
        self.outlasted = bool(self.ways) and not out.in_ranges
        return code, out

    def _raw(self, command: int, words: Sequence[int], timeout_ms: int) -> Pointer:
        raw = ffi.new("struct tp_stop *")
        raw.command, raw.timeout_ms = command, timeout_ms
        raw.args = [*words, *[0] * (4 - len(words))]
        raw.look.restorer = self.restorer
        return raw


def run_stopped(agent: Agent, command: int, words: Sequence[int], look: _Look) -> tuple[int, int]:
    """Run one command while every thread but the agent's is held.

    Returns:
        The command's result, and for how many nanoseconds the threads were held.

    Raises:
        AgentFailed: A thread does not stop, or stays inside a site.
    """
    for attempt in range(_STOPS):
        patient, began = attempt < _PATIENT_STOPS, time.monotonic()
        error, out = look.run_stopped(command, words, patient=patient)
        if error == 0 and out.result == -errno.ETIMEDOUT:
            agent.silent = True
            raise agent.timeout(command, time.monotonic() - began)
        if error == 0:
            return checked_answer(int(out.result)), int(out.hold_ns)
        agent.require_alive("a batch in stop mode")
        if error not in (-errno.EAGAIN, -errno.ETIMEDOUT, -errno.ESRCH):
            break
        time.sleep(_STOP_PAUSE_S)
    if error == -errno.EPERM:
        modes.why_no_traps(agent)  # raises when it is a debugger that holds the thread
    if error == -errno.EAGAIN and out.busy:
        what = f"waiting until no signal handler returns into one of {out.busy} sites"
    elif error == -errno.EAGAIN:
        what = f"waiting for thread {out.inside_tid} to leave {out.inside_at:#x}"
    elif error == -errno.ECHILD:
        what = "waiting for the process that holds the threads: it was ended, and may have written"
    else:
        what = "stopping all threads of the target"
    raise AgentFailed(what, -error)


def restore_all(
    agent: Agent,
    patched: Request,
    *,
    strangers: int = 1000,
    no_traps: str = "",
    keep_guards: bool = False,
) -> tuple[Outcome, int]:
    """Put every site that was ever poked back to its first bytes.

    Args:
        agent: The connection.
        patched: The batch that does it, for the choice of the mode.
        strangers: How many sites may be left alone.
        no_traps: A reason against traps that is known already.
        keep_guards: All but the guards of redirected returns.

    Returns:
        The outcome, and the number of sites that were left alone because somebody else has
        changed them or their module is gone.
    """
    choice = modes.choose_one(agent, patched, no_traps=no_traps)
    try:
        return _restore(agent, patched, choice, strangers, keep_guards=keep_guards)
    except UnsupportedTarget as exc:
        if exc.reason not in (_TAKEN, _MASKED):
            raise
        no_traps = exc.detail
    except BatchRefused:
        if choice.mode is not Mode.INT3:
            raise
        no_traps = _NOT_EMULATED  # poked with a handler, which an undo does not have
    choice = modes.choose_one(agent, patched, no_traps=no_traps)
    return _restore(agent, patched, choice, strangers, keep_guards=keep_guards)


def _restore(
    agent: Agent, patched: Request, choice: Choice, strangers: int, *, keep_guards: bool
) -> tuple[Outcome, int]:
    wire = agent.wire
    if wire is None:
        raise AgentFailed("undoing on a closed connection", errno.EBADF)
    # The own process answers for its alternate stacks: it must get rid of int3 sites without help.
    room = lib.TP_BATCH_ROOM if agent.pid == os.getpid() else 0
    words = (strangers, choice.mode.number, room, keep_guards * lib.TP_BATCH_GUARDS)
    look = _Look(agent, patched)
    code, hold_ns = _command(agent, lib.TP_CMD_RESTORE, words, choice.mode, look)
    if code < 0:
        raise _failure(agent.pid, -code, _copied(wire), ())
    outcome = read_outcome(wire.outcome, hold_ns, (choice,), ())
    return outcome, int(wire.args[0])


def _command(
    agent: Agent,
    command: int,
    words: Sequence[int],
    mode: Mode,
    look: _Look,
) -> tuple[int, int]:
    """In stop mode with all threads held; a launched program that does not run yet is held."""
    code, hold_ns = 0, 0
    if mode is Mode.STOP and agent.held is None:
        code, hold_ns = run_stopped(agent, command, words, look)
    else:
        seen = look.run if look.pokes and agent.held is None else None
        code = agent.command(command, *words, timeout_s=_TIMEOUT_S, look=seen)
    if code == -errno.ESRCH:
        raise TargetExited(agent.pid, "a batch")
    return code, hold_ns


def site_outcomes(agent: Agent, request: Request) -> list[str]:
    """The state of every site after the last batch, in the order of the request."""
    if agent.shared is None or agent.wire is None:
        return []
    if agent.wire.outcome.code == 0:
        return ["skipped" if poke.old is None else "done" for poke in request.pokes]
    start = lib.TP_PAGE_BYTES + _OUTCOME_AT
    size = RECORD.size * len(request.pokes)
    last = len(SITE_OUTCOMES) - 1
    return [SITE_OUTCOMES[min(i, last)] for i in agent.shared[start : start + size : RECORD.size]]


def _copied(wire: Pointer) -> Pointer:
    # The target can write the original while we look.
    return ffi.new("struct tp_outcome *", wire.outcome)


def _failure(pid: int, code: int, raw: Pointer, pokes: Sequence[Poke]) -> Exception:
    """The exception for a failed batch; the engine's record says phase, site and bytes."""
    if code == lib.TP_EHANDLER:
        return UnsupportedTarget(pid, _TAKEN, _SELF_HANDLED)
    if code == lib.TP_EMASKING:
        return UnsupportedTarget(pid, _MASKED, _IN_HANDLER)
    if raw.code == 0:  # it never came to the engine
        return BatchRefused(error_text(code))
    phase = PHASES[min(raw.phase, len(PHASES) - 1)]
    at = f"site {raw.fail_addr:#x}"
    if raw.fail_index < len(pokes):
        at = name_of(pokes[raw.fail_index])
    if phase in ("check", "verify"):
        return _refusal(code, raw, pokes, at)
    detail = f"{at}: {_why(code, raw)}"
    return BatchFailed(
        phase, raw.fail_count, raw.fail_addr, recovered=bool(raw.recovered), detail=detail
    )


def _refusal(code: int, raw: Pointer, pokes: Sequence[Poke], at: str) -> BatchRefused:
    refusal = _named_refusal(code, raw, pokes, at)
    refusal.fail_count, refusal.fail_addr = int(raw.fail_count), int(raw.fail_addr)
    return refusal


def _named_refusal(code: int, raw: Pointer, pokes: Sequence[Poke], at: str) -> BatchRefused:
    if code != errno.EINVAL:
        return BatchRefused(f"{at}: {error_text(code)}")
    expected = bytes(ffi.buffer(raw.expected))[: raw.fail_len]
    found = bytes(ffi.buffer(raw.found))[: raw.fail_len]
    symbol = pokes[raw.fail_index].name if raw.fail_index < len(pokes) else ""
    owner = _OWNERS.get(found[0] if found else 0, "")
    return BytesDiffer(raw.fail_addr, symbol or "site", expected, found, owner)


def _why(code: int, raw: Pointer) -> str:
    if code == errno.EOWNERDEAD:
        return "the helper process that was to look at all threads has ended"
    if code != errno.EINVAL:
        return error_text(code)
    expected = bytes(ffi.buffer(raw.expected))[: raw.fail_len].hex(" ")
    found = bytes(ffi.buffer(raw.found))[: raw.fail_len].hex(" ")
    return f"expected {expected}, found {found}"


class Batch:
    """Pokes that are queued and run together when the `with` block ends.

    Example:
        >>> with target.batch() as batch:
        ...     batch.queue(site, new=call, old=site.old)
        >>> batch.outcome.syncs
        3

    An exception inside the block drops the batch: nothing is written.
    """

    def __init__(
        self,
        agent: Agent,
        *,
        mode: Mode | str = Mode.AUTO,
        all_or_nothing: bool = True,
        one_by_one: bool = False,
    ) -> None:
        self._agent = agent
        self._mode = Mode(mode)
        self._all_or_nothing = all_or_nothing
        self._one_by_one = one_by_one
        self._pokes: list[Poke] = []
        self.outcome: Outcome | None = None

    def queue(
        self, site: Site | int, new: bytes | None, old: bytes | None, *, handler: int = 0
    ) -> None:
        """Add one poke.

        Args:
            site: A site, or a runtime address: that an instruction begins there, and that nobody
                jumps into its midst, is the caller's word.
            new: Bytes to write; None together with `old` means "already there".
            old: Bytes expected now.
            handler: Where a thread that traps shall go on; 0 emulates the instruction.
        """
        address, name = (site.address, str(site)) if isinstance(site, Site) else (site, "")
        self._pokes.append(Poke(address, old, new, handler, name))

    def commit(self) -> Outcome:
        """Run the batch now. Raises like `run_request`."""
        request = Request.of(self._pokes)
        self.outcome = run_request(
            self._agent,
            request,
            mode=self._mode,
            all_or_nothing=self._all_or_nothing,
            one_by_one=self._one_by_one,
        )
        self._pokes = []
        return self.outcome

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if exc_type is None and self._pokes:
            self.commit()
