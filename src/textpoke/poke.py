# SPDX-License-Identifier: Apache-2.0
"""Batches of pokes: hand them to the engine in the target, read what became of each site."""

from __future__ import annotations

import errno
import struct
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Self

from textpoke._errors import (
    AgentFailed,
    BatchFailed,
    BatchRefused,
    BytesDiffer,
    NoSuchTarget,
    TargetExited,
    UnsupportedTarget,
)
from textpoke._native import ffi, lib
from textpoke.agent import error_text, outlast_masking
from textpoke.model import Site
from textpoke.proc import read_threads

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from types import TracebackType

    from textpoke._native import Pointer
    from textpoke.agent import Agent

PHASES = ("check", "verify", "int3", "tail", "first", "recover", "rollback")
SITE_OUTCOMES = ("pending", "skipped", "int3", "tail", "written", "done", "restored")
_RECORD = struct.Struct("<QQQIBBBB16s16s")  # struct tp_poke
_OUTCOME_AT = 30  # of its field `outcome`
_SIGTRAP = 1 << 4
_OWNERS = {0xCC: "a debugger or another tracer (int3)", 0xE9: "a hook (jmp)", 0xE8: "a hook (call)"}


@dataclass(frozen=True, slots=True)
class Poke:
    """Replace the instruction at `address`.

    Attributes:
        address: Runtime address.
        old: Expected bytes, 1 to 15; None together with `new`: "already there", skipped.
        new: Bytes to write, as many as `old`.
        handler: A thread that traps continues here; 0 emulates the instruction.
        name: What messages call this place.
    """

    address: int
    old: bytes | None
    new: bytes | None
    handler: int = 0
    name: str = ""

    def pack(self, index: int) -> bytes:
        """The record that the engine reads (struct tp_poke in native/include/wire.h)."""
        flags = (self.old is None) * lib.TP_POKE_NO_OLD | (self.new is None) * lib.TP_POKE_NO_NEW
        old, new = self.old or b"", self.new or b""
        size = max(len(old), len(new))
        return _RECORD.pack(
            self.address, self.handler, 0, index, min(size, 255), flags, 0, 0, old[:16], new[:16]
        )


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a batch did.

    Attributes:
        sites: Records in the batch, skipped ones included.
        finished: Records for which `finish` was due.
        syncs: Core serialisations (membarrier).
        writes: Writes through the mem file: one a page and phase, not one a site.
        reads: Reads of text.
        pages: Pages with sites.
        conflicts: Pages whose other bytes changed under our write.
        traps: Threads that ran into an int3 and were emulated.
        late_traps: Traps that arrived after their int3 was gone.
        total_ns: Duration of the protocol, in nanoseconds.
        phase_ns: The same by phase.
        undrained: True when a thread was still in the handler at the time-out.
    """

    sites: int = 0
    finished: int = 0
    syncs: int = 0
    writes: int = 0
    reads: int = 0
    pages: int = 0
    conflicts: int = 0
    traps: int = 0
    late_traps: int = 0
    total_ns: int = 0
    phase_ns: dict[str, int] = field(default_factory=dict)
    undrained: bool = False

    @property
    def ns_per_site(self) -> float:
        """Nanoseconds per site; 0.0 for an empty batch."""
        return self.total_ns / self.sites if self.sites else 0.0

    def as_dict(self) -> dict[str, object]:
        """Plain data for JSON."""
        names = ("sites", "finished", "syncs", "writes", "reads", "pages", "conflicts")
        more = ("traps", "late_traps", "total_ns", "phase_ns", "undrained")
        return {name: getattr(self, name) for name in names + more}


@dataclass(frozen=True, slots=True)
class Request:
    """A batch in the engine's own form, ready to be run again and again."""

    pokes: tuple[Poke, ...]
    data: bytes

    @classmethod
    def of(cls, pokes: Iterable[Poke]) -> Self:
        """Pack `pokes`; raises BatchRefused for opcodes that cannot be packed."""
        kept = tuple(pokes)
        for poke in kept:
            if poke.old is not None and poke.new is not None and len(poke.old) != len(poke.new):
                raise BatchRefused(
                    f"{_name(poke)}: {len(poke.old)} old and {len(poke.new)} new bytes"
                )
        return cls(kept, b"".join(poke.pack(i) for i, poke in enumerate(kept)))


def run_request(
    agent: Agent,
    request: Request,
    *,
    all_or_nothing: bool = True,
    one_by_one: bool = False,
    is_handled: int = 0,
    finish: int = 0,
) -> Outcome:
    """Run one batch in the target.

    Args:
        agent: The connection.
        request: The batch.
        all_or_nothing: Roll finished sites back too when the batch fails.
        one_by_one: A protocol run a site (for measurement).
        is_handled: Address in the target of a C function `bool (uint64_t ip)`; 0: built in.
        finish: Address in the target of a C function `int (const struct tp_poke *, void *)`.

    Raises:
        BatchRefused, BytesDiffer: Nothing was written.
        BatchFailed: It failed on the way; the engine has recovered, or says so.
        UnsupportedTarget: A thread blocks SIGTRAP, or the program took the signal over.
    """
    outlast_masking(lambda: require_trap_safe(agent))
    wire, shared = agent.wire, agent.shared
    if wire is None or shared is None:
        raise AgentFailed("running a batch on a closed connection", errno.EBADF)
    if len(request.data) > wire.request_bytes:
        raise BatchRefused(error_text(lib.TP_ETOOMANY))
    start = lib.TP_PAGE_BYTES
    shared[start : start + len(request.data)] = request.data
    flags = all_or_nothing * lib.TP_BATCH_ALL_OR_NOTHING | one_by_one * lib.TP_BATCH_ONE_BY_ONE
    code = agent.command(
        lib.TP_CMD_BATCH, len(request.pokes), flags, is_handled, finish, timeout_s=120.0
    )
    if code < 0:
        raise _failure(agent.pid, -code, wire.outcome, request.pokes)
    return read_outcome(wire.outcome)


def restore_all(agent: Agent, *, strangers: int = 1000) -> tuple[Outcome, int]:
    """Put every site that was ever poked back to its first bytes.

    Returns:
        The outcome, and the number of sites that were left alone because somebody else has
        changed them or their module is gone (at most `strangers` are tolerated).
    """
    outlast_masking(lambda: require_trap_safe(agent))
    wire = agent.wire
    if wire is None:
        raise AgentFailed("undoing on a closed connection", errno.EBADF)
    code = agent.command(lib.TP_CMD_RESTORE, strangers, timeout_s=120.0)
    if code < 0:
        raise _failure(agent.pid, -code, wire.outcome, ())
    return read_outcome(wire.outcome), int(wire.args[0])


def require_trap_safe(agent: Agent) -> None:
    """Refuse when a thread of the target blocks SIGTRAP: an int3 would kill the process.

    Raises UnsupportedTarget ("sigtrap-blocked") naming the thread, or TargetExited.
    """
    try:
        threads = read_threads(agent.pid)
    except NoSuchTarget as exc:
        raise TargetExited(agent.pid, "a batch") from exc
    for thread in threads:
        blocked = thread.sig_blocked
        if agent.held is not None and thread.tid == agent.pid:
            blocked = int(lib.tp_held_mask(agent.held))  # the status shows all, blocked by us
        if blocked & _SIGTRAP and thread.tid != agent.tid and thread.state not in "ZX":
            raise UnsupportedTarget(
                agent.pid,
                "sigtrap-blocked",
                f"thread {thread.tid} ({thread.name}) blocks SIGTRAP, an int3 would kill the "
                "process; unblock the signal in that thread",
            )


def site_outcomes(agent: Agent, request: Request) -> list[str]:
    """The state of every site after the last batch, in the order of the request."""
    if agent.shared is None or agent.wire is None:
        return []
    if agent.wire.outcome.code == 0:
        return ["skipped" if poke.old is None else "done" for poke in request.pokes]
    start = lib.TP_PAGE_BYTES + _OUTCOME_AT
    size = _RECORD.size * len(request.pokes)
    return [SITE_OUTCOMES[i] for i in agent.shared[start : start + size : _RECORD.size]]


def read_outcome(raw: Pointer) -> Outcome:
    """A Python copy of struct tp_outcome."""
    return Outcome(
        **{name: int(getattr(raw, name)) for name in Outcome.__slots__[:10]},
        phase_ns={name: int(raw.phase_ns[i]) for i, name in enumerate(PHASES)},
        undrained=bool(raw.undrained),
    )


def _name(poke: Poke) -> str:
    return f"{poke.name} at {poke.address:#x}" if poke.name else f"site {poke.address:#x}"


def _failure(pid: int, code: int, raw: Pointer, pokes: Sequence[Poke]) -> Exception:
    """The exception for a failed batch; the engine's record says phase, site and bytes."""
    if code == lib.TP_EHANDLER:
        detail = "the program replaced our SIGTRAP handler while we were attached; detach"
        return UnsupportedTarget(pid, "sigtrap-taken", detail)
    if raw.code == 0:  # it never came to the engine
        return BatchRefused(error_text(code))
    phase = PHASES[min(raw.phase, len(PHASES) - 1)]
    at = f"site {raw.fail_addr:#x}"
    if raw.fail_index < len(pokes):
        at = _name(pokes[raw.fail_index])
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
    return BytesDiffer(raw.fail_addr, symbol or "site", expected, found, _OWNERS.get(found[0], ""))


def _why(code: int, raw: Pointer) -> str:
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
        self, agent: Agent, *, all_or_nothing: bool = True, one_by_one: bool = False
    ) -> None:
        self._agent = agent
        self._all_or_nothing = all_or_nothing
        self._one_by_one = one_by_one
        self._pokes: list[Poke] = []
        self.outcome: Outcome | None = None

    def queue(
        self, site: Site | int, new: bytes | None, old: bytes | None, *, handler: int = 0
    ) -> None:
        """Add one poke.

        Args:
            site: A site, or a runtime address.
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
