# SPDX-License-Identifier: Apache-2.0
"""Leaving a target: undo every poke, compare the text with its files, remove the agent.

What cannot be removed safely stays, and the report says so: an honest residue is allowed, a crash
is not (pitfalls 4, 23).
"""

from __future__ import annotations

import contextlib
import errno
import os
import struct
import time
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from textpoke import modes, target, wire
from textpoke._errors import (
    AgentFailed,
    BatchFailed,
    ModuleUnavailable,
    NoSuchTarget,
    TargetExited,
    TextpokeError,
    UnsupportedTarget,
)
from textpoke._native import lib
from textpoke.agent import Agent, error_text, open_target
from textpoke.engine import restore_all, run_request
from textpoke.modes import require_unfiltered
from textpoke.poke import MODES, Outcome, Poke, Request
from textpoke.unload import Removal, let_frames_go, remove, remove_remains

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from textpoke.model import Mapping, Module

PAGE = 4096
_CHUNK = 1 << 20
_KNOWN = struct.Struct("<Q16s16sBBBBBB2xQ")  # struct tp_known
_TRIES = 60
_PAUSE_S = 0.01


@dataclass(frozen=True, slots=True)
class KnownSite:
    """A site that was ever poked: its address, first bytes, the bytes we last wrote, and how.

    Where it is an int3 for good, `handler` is where a thread that traps there goes on. A `guard` is
    what unwinders need while returns are redirected.
    """

    address: int
    original: bytes
    current: bytes
    patched: bool
    mode: str
    handler: int = 0
    guard: bool = False


@dataclass(slots=True)
class TextCheck:
    """Text pages of a process compared with their files.

    Attributes:
        pages: Pages compared.
        equal: Pages equal to the file.
        differing: Addresses of pages that differ.
        skipped: "path: why" of modules whose file could not be read.
    """

    pages: int = 0
    equal: int = 0
    differing: list[int] = field(default_factory=list)
    skipped: list[str] = field(default_factory=list)


@dataclass(slots=True)
class DetachReport:
    """What a detach did and what it proved.

    Attributes:
        outcome: Of the batch that put the sites back; None when nothing was patched.
        sites: Sites that had ever been poked.
        left_alone: Sites that somebody else had changed, or whose module is gone.
        text: The comparison with the files, after the undo.
        foreign: Pages that differ, but not at any byte of ours.
        handler_restored: SIGTRAP was given back to whoever had it.
        unmapped: Mappings removed.
        hold_ms: How long all threads were stopped for the last look.
        residue: What is left in the target, one line each; empty when nothing is.
    """

    outcome: Outcome | None = None
    sites: int = 0
    left_alone: int = 0
    text: TextCheck = field(default_factory=TextCheck)
    foreign: list[int] = field(default_factory=list)
    handler_restored: bool = False
    unmapped: int = 0
    hold_ms: float = 0.0
    residue: list[str] = field(default_factory=list)

    @property
    def clean(self) -> bool:
        """True when nothing of ours is left and every byte of ours is as it was."""
        return not self.residue

    def note(self, removal: Removal) -> None:
        """Add what became of handler and mappings."""
        self.handler_restored = removal.handler_restored
        self.unmapped = removal.unmapped
        self.hold_ms = removal.hold_ms
        self.sites = self.sites or removal.put_back
        if removal.residue:
            self.residue.append(removal.residue)

    def as_dict(self) -> dict[str, object]:
        """Plain data for JSON."""
        return {
            "clean": self.clean,
            "sites": self.sites,
            "left_alone": self.left_alone,
            "outcome": self.outcome.as_dict() if self.outcome else None,
            "text_pages": self.text.pages,
            "text_equal": self.text.equal,
            "text_skipped": self.text.skipped,
            "foreign_pages": [hex(page) for page in self.foreign],
            "handler_restored": self.handler_restored,
            "unmapped": self.unmapped,
            "hold_ms": self.hold_ms,
            "residue": self.residue,
        }


def known_sites(agent: Agent) -> list[KnownSite]:
    """Every site that was ever poked in this target, in address order."""
    for _ in range(_TRIES):
        head = agent.image()
        if not head.known_count:
            return []
        if head.known_generation % 2 == 0:
            data = agent.read(*wire.known_range(head))
            whole = len(data) == head.known_count * _KNOWN.size
            if whole and agent.image().known_generation == head.known_generation:
                return [_known(row) for row in _KNOWN.iter_unpack(data) if row[5]]
        time.sleep(_PAUSE_S)
    raise AgentFailed("reading the table of known sites", errno.EAGAIN)


def undo_request(known: Sequence[KnownSite]) -> Request:
    """The batch that would put all of them back."""
    return Request.of(
        Poke(site.address, site.current, site.original, site.handler)
        for site in known
        if site.patched
    )


def why_no_traps(known: Sequence[KnownSite]) -> str:
    """Why an undo must do without traps: something was written without; "" when nothing was."""
    avoided = {site.mode for site in known if site.patched and not site.handler} - {"int3"}
    return f"patched in {' and '.join(sorted(avoided))} mode" if avoided else ""


def _known(row: tuple[Any, ...]) -> KnownSite:
    address, original, current, size, patched, _, mode, _, guard, handler = row
    handler = handler if current[:1] == b"\xcc" else 0
    if handler:
        size = 1
    how = MODES[mode] if mode < len(MODES) else "?"
    return KnownSite(
        address, original[:size], current[:size], bool(patched), how, handler, bool(guard)
    )


def compare_text(agent: Agent) -> TextCheck:
    """Compare every text page of the process with the file behind it."""
    check = TextCheck()
    modules = target.read_modules(agent.pid)
    check.skipped += _files_without_module(agent, modules)
    for module in modules:
        try:
            path = target.open_module(agent.pid, module)
            fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except (ModuleUnavailable, OSError) as exc:
            check.skipped.append(str(exc))
            continue
        try:
            for mapping in module.mappings:
                if "x" in mapping.perms:
                    _compare_mapping(agent, mapping, fd, check)
        finally:
            os.close(fd)
    return check


def _files_without_module(agent: Agent, modules: list[Module]) -> list[str]:
    """Mapped code whose file could not be opened: it cannot be compared, and that must be said."""
    opened = {mapping.start for module in modules for mapping in module.mappings}
    lost = {
        mapping.path
        for mapping in target.read_maps(agent.pid)
        if "x" in mapping.perms and mapping.inode and mapping.start not in opened
    }
    return [f"{path}: its file cannot be opened" for path in sorted(lost)]


def _compare_mapping(agent: Agent, mapping: Mapping, fd: int, check: TextCheck) -> None:
    for start in range(mapping.start, mapping.end, _CHUNK):
        size = min(_CHUNK, mapping.end - start)
        ours = _read_of_module(agent, mapping, start, size)
        if not ours:
            return
        file = os.pread(fd, size, mapping.offset + start - mapping.start).ljust(size, b"\0")
        check.pages += size // PAGE
        if ours == file:
            check.equal += size // PAGE
            continue
        for at in range(0, size, PAGE):
            if ours[at : at + PAGE] == file[at : at + PAGE]:
                check.equal += 1
            else:
                check.differing.append(start + at)


def _read_of_module(agent: Agent, mapping: Mapping, start: int, size: int) -> bytes:
    """Bytes of a module; b"" where it was closed meanwhile, though it may be open again by now."""
    for _ in range(_TRIES):
        try:
            data = agent.read(start, size)
        except AgentFailed:
            data = b""
        if mapping not in target.read_mappings(agent.pid):
            return b""
        if data:
            return data
        time.sleep(_PAUSE_S)
    raise AgentFailed(f"reading {size} bytes of {mapping.path} at {start:#x}", errno.EIO)


def detach(agent: Agent) -> DetachReport:
    """Undo everything in the target and remove the agent; closes the connection.

    A target that ends meanwhile needs no undo and is no error.

    Raises:
        TextpokeError: The undo was refused or failed; the agent then stays.
    """
    try:
        return _detach(agent)
    except (TargetExited, NoSuchTarget):
        return DetachReport()
    finally:
        agent.close()


def detach_remains(pid: int) -> DetachReport:
    """Remove what is left in process `pid` of an agent whose thread has ended, if anything.

    Raises:
        TargetError: The process cannot be opened, or another textpoke is attached.
    """
    report = DetachReport()
    agent = open_target(pid)
    try:
        removal = remove_remains(agent)
        if removal is not None:
            report.text = compare_text(agent)
            report.foreign = list(report.text.differing)
            report.note(removal)
    finally:
        agent.close()
    return report


def _detach(agent: Agent) -> DetachReport:
    report = DetachReport()
    agent.record(on=False)
    for thread in target.read_threads(agent.pid):
        require_unfiltered(agent, thread)
    report.outcome, report.left_alone, why = put_all_back(agent)
    if why:
        report.residue.append(why)
    known = known_sites(agent)
    report.sites = len(_of_program(agent, known))
    if agent.held is not None:
        agent.release()
    _put_back_what_came_back(agent, known)
    if _check_text(agent, known, report) and not why:
        _remove_agent(agent, known, report)
    return report


def put_all_back(agent: Agent) -> tuple[Outcome | None, int, str]:
    """Put every site back; the guards of redirected returns last, when those are let go.

    Returns:
        The outcome; the number of sites that others hold or whose module is gone; "" or why
        redirected returns, and with them the guards, had to stay.
    """
    outcome, left_alone, why = None, 0, ""
    for guards in (False, True):
        known = [site for site in known_sites(agent) if site.guard <= guards]
        if guards and agent.image().shadow_count:
            why = let_frames_go(agent)
        left_on = undo_request(known)
        if not left_on.pokes or why:
            continue
        done, alone = _restore(agent, left_on, why_no_traps(known), keep_guards=not guards)
        outcome = done if outcome is None else outcome.plus(done)
        left_alone += alone
    return outcome, left_alone, why


def _of_program(agent: Agent, known: Sequence[KnownSite]) -> list[KnownSite]:
    """Without what stands in code of ours."""
    head = agent.image()
    ours = [
        (r.start, r.start + r.bytes) for r in (head.regions[i] for i in range(head.region_count))
    ]
    return [s for s in known if not any(start <= s.address < end for start, end in ours)]


def _restore(
    agent: Agent, left_on: Request, no_traps: str, *, keep_guards: bool
) -> tuple[Outcome, int]:
    """Put all sites back; again where a module was closed in the middle of it."""
    for _ in range(_TRIES):
        try:
            return restore_all(agent, left_on, no_traps=no_traps, keep_guards=keep_guards)
        except BatchFailed as exc:
            if not exc.recovered:
                raise
    return restore_all(agent, left_on, no_traps=no_traps, keep_guards=keep_guards)


def _put_back_what_came_back(agent: Agent, known: list[KnownSite]) -> None:
    """A debugger that had its breakpoint over our patch has put that patch back since."""
    undone = [s for s in known if not s.patched and s.current != s.original]
    back = [site for site, held in _all_held(agent, undone) if held == site.current]
    if back:
        run_request(agent, undo_request([replace(site, patched=True) for site in back]))


def _check_text(agent: Agent, known: list[KnownSite], report: DetachReport) -> bool:
    """Compare; returns False when somebody may yet write a CALL of ours back."""
    report.text = compare_text(agent)
    # A page that differs elsewhere (relocated text, another tool) was so before us.
    report.foreign = list(report.text.differing)
    held_now = _all_held(agent, known)
    wrong = {
        s.address: held
        for s, held in held_now
        if held and held != s.original and not _is_anothers(agent, s, held)
    }
    covered = [s for s in known if s.address in wrong and _is_over(s, wrong[s.address])]
    report.residue += [
        f"{address:#x} does not hold its first bytes"
        for address in wrong
        if address // PAGE * PAGE in report.text.differing or report.text.skipped
    ]
    report.residue += [
        f"{s.address:#x} holds somebody's int3 over a CALL of ours: handler and agent stay, "
        "let the debugger go and detach again"
        for s in covered
    ]
    return not covered


def _is_anothers(agent: Agent, site: KnownSite, held: bytes) -> bool:
    """Another module's, which came to the place of one that was closed?"""
    ours = held in (site.current, b"\xcc" + site.current[1:])
    return not ours and modes.may_be_closed(agent, site.address)


def _is_over(site: KnownSite, held: bytes) -> bool:
    return site.current != site.original and held == b"\xcc" + site.current[1:]


def _all_held(agent: Agent, known: Sequence[KnownSite]) -> Iterator[tuple[KnownSite, bytes]]:
    """What each site holds now, as `_held`: sites on pages that touch are read together."""
    for run in _runs(known):
        start, end = run[0].address, max(s.address + len(s.original) for s in run)
        try:
            data = agent.read(start, end - start)
        except TargetExited:
            raise
        except TextpokeError:
            data = b""
        is_there = len(data) == end - start
        for site in run:
            at = site.address - start
            yield site, data[at : at + len(site.original)] if is_there else _held(agent, site)


def _runs(known: Sequence[KnownSite]) -> Iterator[list[KnownSite]]:
    run: list[KnownSite] = []
    for site in sorted(known, key=lambda site: site.address):
        far = run and site.address - run[-1].address > PAGE
        if far or (run and site.address - run[0].address > _CHUNK):
            yield run
            run = []
        run.append(site)
    if run:
        yield run


def _held(agent: Agent, site: KnownSite) -> bytes:
    """What a site holds now; b"" when its module was unmapped: nothing of ours is there."""
    try:
        return agent.read(site.address, len(site.original))
    except TargetExited:
        raise
    except TextpokeError:
        return b""


def _remove_agent(agent: Agent, known: list[KnownSite], report: DetachReport) -> None:
    head = agent.image()
    code = agent.command(lib.TP_CMD_QUIT)
    if code < 0:
        report.residue.append(f"the agent stays: {error_text(-code)}")
        return
    if not _thread_is_gone(agent):
        report.residue.append(f"the agent's thread {agent.tid} does not end")
        return
    try:
        report.note(remove(agent, head, [site.address for site in known]))
    except UnsupportedTarget as exc:  # the own process, without a helper
        report.residue.append(f"handler and agent pages stay: {exc.detail}")


def _thread_is_gone(agent: Agent) -> bool:
    for _ in range(200):
        if not os.path.exists(f"/proc/{agent.pid}/task/{agent.tid}"):
            return True
        time.sleep(0.001)
    return False


def quietly(agent: Agent) -> None:
    """Detach after an error of our own: best effort, the first error is the one to show."""
    with contextlib.suppress(TextpokeError, OSError):
        detach(agent)
