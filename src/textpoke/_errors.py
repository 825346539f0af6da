# SPDX-License-Identifier: Apache-2.0
"""Every exception of textpoke, with the one-line message that a user reads.

    TextpokeError
    |-- TargetError                                 exit code 3: this target cannot be traced
    |   |-- NoSuchTarget       ProcessLookupError   .pid
    |   |-- AttachDenied       PermissionError      .pid .causes
    |   |-- TargetExited       ProcessLookupError   .pid
    |   |-- TargetBusy                              .pid .owner
    |   `-- UnsupportedTarget                       .pid .reason
    |-- SiteError
    |   |-- BadElf             ValueError           .path .offset .problem
    |   |-- ModuleUnavailable  OSError              .path .reason
    |   |-- UnknownFunction    LookupError          .pattern .near
    |   |-- NoSites            LookupError          .where .hint
    |   `-- NotPatchable                            .site .reason
    |-- ArgumentSpec           ValueError           .text .column .problem
    |-- PokeError
    |   |-- BatchRefused                            .reason .fail_count .fail_addr
    |   |   `-- BytesDiffer                         .address .symbol .expected .found .owner
    |   `-- BatchFailed                             .phase .fail_count .fail_addr .recovered
    |-- AgentError
    |   |-- AgentTimeout       TimeoutError         .action .timeout_s
    |   |-- AgentVersion                            .found .wanted
    |   `-- AgentFailed                             .action .errno
    |-- CaptureError
    |   |-- CaptureFormat      ValueError           .path .offset .problem
    |   |-- CaptureExists      FileExistsError      .path
    |   `-- CaptureWrite       OSError              .path .errno
    |-- BadExpression          ValueError           .text .column .problem
    |   |-- BadFilter          ValueError           .text .column .problem
    |   `-- BadTrigger         ValueError           .text .column .problem
    |-- ControlError
    |   |-- NobodyRecords      LookupError          .pid
    |   |-- ControlBusy                             .pid .owner
    |   |-- ControlUnsafe      PermissionError      .path .reason
    |   `-- ControlFailed                           .verb .problem .kind
    |-- ExportError
    |   |-- NothingToExport    ValueError           .path .tracer
    |   |-- BadQuery           ValueError           .sql .problem
    |   |-- SpansNotSent       ConnectionError      .endpoint .reason .sent
    |   `-- OutputExists       FileExistsError      .path
    |-- TraceExists                                 .pid .name
    |-- UnknownTracer          ValueError           .name .known
    |-- ViewError              OSError              .path .reason
    `-- MissingLibrary         ImportError          .library .extra

A message says the cause, the value read and the cure, in one line.
"""

from __future__ import annotations

import errno as _errno
import os
from typing import TYPE_CHECKING, ClassVar

if TYPE_CHECKING:
    from collections.abc import Sequence

    from textpoke.model import Site
    from textpoke.poke import Outcome


class TextpokeError(Exception):
    """The root of the tree; `exit_code` is what the command line returns for it."""

    exit_code: ClassVar[int] = 1

    def __reduce__(self) -> tuple[object, ...]:
        # The constructors build the message from data, so the default (call the class with
        # `args`) would fail when an exception crosses a process border.
        return _rebuild, (type(self), self.args, dict(self.__dict__), getattr(self, "errno", None))


def _rebuild(
    cls: type[TextpokeError], args: tuple[object, ...], state: dict[str, object], errno: int | None
) -> TextpokeError:
    exc = cls.__new__(cls)
    exc.args = args
    exc.__dict__.update(state)
    if isinstance(exc, OSError):
        exc.errno = errno
    return exc


class TargetError(TextpokeError):
    """The target process cannot be traced."""

    exit_code = 3


class NoSuchTarget(TargetError, ProcessLookupError):
    """No process has this pid."""

    def __init__(self, pid: int) -> None:
        super().__init__(f"no process with pid {pid}: check the number with ps")
        self.pid = pid
        self.errno = _errno.ESRCH


class AttachDenied(TargetError, PermissionError):
    """The kernel would not let us attach; `causes` holds one text per fact in the way."""

    def __init__(self, pid: int, causes: Sequence[str]) -> None:
        super().__init__(f"may not attach to pid {pid}: {'; '.join(causes)}")
        self.pid = pid
        self.causes = list(causes)
        self.errno = _errno.EPERM


class TargetExited(TargetError, ProcessLookupError):
    """The target went away while we worked on it; `action` says what we were doing."""

    def __init__(self, pid: int, action: str = "") -> None:
        super().__init__(f"pid {pid} exited{f' during {action}' if action else ''}")
        self.pid = pid
        self.action = action
        self.errno = _errno.ESRCH


class TargetBusy(TargetError):
    """Another textpoke (`owner`) is attached to this target."""

    def __init__(self, pid: int, owner: str) -> None:
        super().__init__(
            f"pid {pid} is busy: {owner} is attached; end that one first, "
            f"or run: textpoke status -p {pid}"
        )
        self.pid = pid
        self.owner = owner


class UnsupportedTarget(TargetError):
    """The target is of a kind, or in a state, that cannot be patched.

    `reason` is a short id that programs can compare: "zombie", "kernel-thread", "32-bit",
    "seccomp", "shadow-stack", "no-fsgsbase", "stopped", "sigtrap-blocked", "debugger", "vfork",
    "no-helper", ...
    """

    def __init__(self, pid: int, reason: str, detail: str = "") -> None:
        super().__init__(f"cannot trace pid {pid} ({reason}){f': {detail}' if detail else ''}")
        self.pid = pid
        self.reason = reason
        self.detail = detail


class UnknownTracer(TextpokeError, ValueError):
    """There is no tracer of that name."""

    exit_code = 2

    def __init__(self, name: str, known: Sequence[str]) -> None:
        super().__init__(f"no tracer is called {name!r}: there are {', '.join(known)}")
        self.name = name
        self.known = list(known)


class TraceExists(TextpokeError):
    """A trace of this name is running on the target already."""

    def __init__(self, pid: int, name: str) -> None:
        shown = f"the trace {name!r}" if name else "a trace without a name"
        super().__init__(f"{shown} is running on pid {pid} already: give this one another name")
        self.pid = pid
        self.name = name


class SiteError(TextpokeError):
    """Sites could not be found or chosen."""


class BadElf(SiteError, ValueError):
    """A file is not an ELF image that we can read; `offset` is the file offset of the trouble."""

    def __init__(self, path: str, offset: int, problem: str) -> None:
        super().__init__(f"{path}: {problem} (file offset {offset:#x})")
        self.path = path
        self.offset = offset
        self.problem = problem


class ModuleUnavailable(SiteError, OSError):
    """The file behind a mapping cannot be opened any more, or is another file by now."""

    def __init__(self, path: str, reason: str) -> None:
        super().__init__(f"{path}: {reason}")
        self.path = path
        self.reason = reason
        self.errno = _errno.ESTALE


class UnknownFunction(SiteError, LookupError):
    """A pattern matches no site; `near` lists names that look like it."""

    def __init__(self, pattern: str, near: Sequence[str] = (), of: str = "") -> None:
        close = f"; close names: {', '.join(near)}" if near else ""
        cure = "" if of else "; list all: textpoke sites"
        what = f"no function that {of} matches" if of else "no function matches"
        super().__init__(f"{what} {pattern!r}{close}{cure}")
        self.pattern = pattern
        self.near = list(near)


class NoSites(SiteError, LookupError):
    """Nothing in `where` can be patched; `hint` says how to build it so that it can."""

    def __init__(self, where: str, hint: str) -> None:
        super().__init__(f"nothing to patch in {where}: {hint}")
        self.where = where
        self.hint = hint


class NotPatchable(SiteError):
    """One site was asked for by name and cannot be patched."""

    def __init__(self, site: Site, reason: str) -> None:
        super().__init__(f"{site} at {site.address:#x} cannot be patched: {reason}")
        self.site = site
        self.reason = reason


class ArgumentSpec(TextpokeError, ValueError):
    """What to capture of calls was asked for in a way that cannot be done.

    `column` counts the characters of `text` from 1; the problem begins there.
    """

    def __init__(self, text: str, column: int, problem: str) -> None:
        super().__init__(f"{text!r}, column {column}: {problem}")
        self.text = text
        self.column = column
        self.problem = problem


class PokeError(TextpokeError):
    """A batch was refused or failed.

    Attributes:
        before: Outcome of those parts of the batch that were written before, in other modes, and
            stay so (not with `all_or_nothing`); None when there are none.
    """

    before: Outcome | None = None


class BatchRefused(PokeError):
    """A batch was refused before anything was written.

    `fail_count` and `fail_addr` name the site as in BatchFailed; 0 when it is no site's fault.
    """

    def __init__(self, reason: str) -> None:
        super().__init__(f"batch refused, nothing was written: {reason}")
        self.reason = reason
        self.fail_count = 0
        self.fail_addr = 0


class BytesDiffer(BatchRefused):
    """The bytes at a site are not the expected ones; `owner` is who probably wrote them."""

    def __init__(
        self, address: int, symbol: str, expected: bytes, found: bytes, owner: str = ""
    ) -> None:
        super().__init__(
            f"{symbol} at {address:#x} holds {found.hex(' ')}, expected {expected.hex(' ')}"
            f"{f' (probably {owner})' if owner else ''}"
        )
        self.address = address
        self.symbol = symbol
        self.expected = expected
        self.found = found
        self.owner = owner


class BatchFailed(PokeError):
    """A batch stopped half-way; `fail_count` is the index within `phase`, `recovered` the undo."""

    def __init__(
        self, phase: str, fail_count: int, fail_addr: int, *, recovered: bool, detail: str = ""
    ) -> None:
        state = "all sites were put back" if recovered else "NOT all sites could be put back"
        super().__init__(
            f"batch failed in phase {phase} at site {fail_count}, {fail_addr:#x}"
            f"{f': {detail}' if detail else ''}; {state}"
        )
        self.phase = phase
        self.fail_count = fail_count
        self.fail_addr = fail_addr
        self.recovered = recovered
        self.detail = detail


class AgentError(TextpokeError):
    """The agent inside the target misbehaved."""


class AgentTimeout(AgentError, TimeoutError):
    """The agent did not answer in time; `why` where that is known."""

    def __init__(self, action: str, timeout_s: float, why: str = "") -> None:
        known = f"; {why}" if why else ""
        super().__init__(f"the agent did not answer within {timeout_s:.2g} s: {action}{known}")
        self.action = action
        self.timeout_s = timeout_s
        self.errno = _errno.ETIMEDOUT


class AgentVersion(AgentError):
    """The agent in the target speaks another version than this tool."""

    def __init__(self, found: int, wanted: int) -> None:
        super().__init__(
            f"the agent in the target has wire version {found}, this textpoke needs {wanted}: "
            "detach with the textpoke that attached"
        )
        self.found = found
        self.wanted = wanted


class AgentFailed(AgentError):
    """A step inside the target failed with `errno` (positive)."""

    def __init__(self, action: str, errno: int) -> None:
        super().__init__(f"{action} failed: {_errno_text(errno)}")
        self.action = action
        self.errno = errno


class CaptureError(TextpokeError):
    """A capture file cannot be read or written."""


class CaptureFormat(CaptureError, ValueError):
    """A file is not a capture, is damaged, or is of another version."""

    def __init__(self, path: str, offset: int, problem: str) -> None:
        super().__init__(f"{path}: {problem} (at byte {offset})")
        self.path = path
        self.offset = offset
        self.problem = problem


class CaptureExists(CaptureError, FileExistsError):
    """The output file is there already and was not overwritten."""

    def __init__(self, path: str) -> None:
        super().__init__(f"{path} exists: choose another name with -o, or overwrite with -f")
        self.path = path
        self.errno = _errno.EEXIST


class CaptureWrite(CaptureError, OSError):
    """Writing a capture failed with `errno` (positive)."""

    def __init__(self, path: str, errno: int) -> None:
        super().__init__(f"cannot write {path}: {_errno_text(errno)}")
        self.path = path
        self.errno = errno


class ExportError(TextpokeError):
    """A capture cannot be turned into the format that was asked for."""


class NothingToExport(ExportError, ValueError):
    """The capture holds counts of a `tracer`, and no events that had a time."""

    def __init__(self, path: str, tracer: str) -> None:
        super().__init__(
            f"{path} is a table of the {tracer} tracer without events: see textpoke report {path}, "
            "or record with -t function_graph"
        )
        self.path = path
        self.tracer = tracer


class BadQuery(ExportError, ValueError):
    """SQL that the engine does not understand; `problem` is its own first line."""

    exit_code = 2

    def __init__(self, sql: str, problem: str) -> None:
        first = problem.strip().splitlines()[0] if problem.strip() else "it says nothing"
        super().__init__(f"{sql!r}: {first}; the table is `calls`, its columns: docs/formats.md")
        self.sql = sql
        self.problem = problem


class SpansNotSent(ExportError, ConnectionError):
    """Nobody at `endpoint` takes spans; `sent` were taken before."""

    def __init__(self, endpoint: str, reason: str, sent: int) -> None:
        done = f" after {sent:,} spans" if sent else ""
        super().__init__(
            f"cannot send spans to {endpoint}{done}: {reason}; "
            "start a collector there, or name another one with --endpoint"
        )
        self.endpoint = endpoint
        self.reason = reason
        self.sent = sent


class OutputExists(ExportError, FileExistsError):
    """The output file is there already and was not overwritten."""

    def __init__(self, path: str) -> None:
        super().__init__(f"{path} exists: choose another name with -o, or overwrite with --force")
        self.path = path
        self.errno = _errno.EEXIST


class BadExpression(TextpokeError, ValueError):
    """A line that the user wrote makes no sense; `column` counts from 1."""

    exit_code = 2

    def __init__(self, text: str, column: int, problem: str) -> None:
        super().__init__(f"{text!r}, column {column}: {problem}")
        self.text = text
        self.column = column
        self.problem = problem

    @property
    def caret(self) -> str:
        """Two lines, as in ftrace's error_log: the text, and a caret below the place."""
        return f"{self.text}\n{' ' * (self.column - 1)}^"


class BadFilter(BadExpression):
    """An expression of the filter language (`filters`)."""


class BadTrigger(BadExpression):
    """An expression of the trigger language (`triggers`)."""


class ControlError(TextpokeError):
    """Another textpoke could not be spoken to, or would not do what it was asked."""


class NobodyRecords(ControlError, LookupError):
    """No textpoke that could be asked is attached to this process."""

    def __init__(self, pid: int) -> None:
        super().__init__(
            f"no textpoke is recording pid {pid}: start one with textpoke record -p {pid}"
        )
        self.pid = pid


class ControlBusy(ControlError):
    """Another textpoke (`owner`) answers for this target already."""

    def __init__(self, pid: int, owner: str) -> None:
        super().__init__(f"{owner} answers for pid {pid} already")
        self.pid = pid
        self.owner = owner


class ControlUnsafe(ControlError, PermissionError):
    """The place of the control socket is not ours alone."""

    def __init__(self, path: str, reason: str) -> None:
        super().__init__(f"will not use {path} for control: {reason}; remove it")
        self.path = path
        self.reason = reason
        self.errno = _errno.EPERM


class ControlFailed(ControlError):
    """The tool that is attached said no; `kind` is the class of its error, "" for none.

    `exit_code` is that of its error.
    """

    def __init__(self, verb: str, problem: str, kind: str = "", exit_code: int = 1) -> None:
        super().__init__(problem)
        self.verb = verb
        self.problem = problem
        self.kind = kind
        vars(self)["exit_code"] = exit_code


class ViewError(TextpokeError, OSError):
    """What other tools are to read about our code cannot be written to `path`."""

    def __init__(self, path: str, reason: str, errno: int = _errno.EIO) -> None:
        super().__init__(f"cannot describe our code in {path}: {reason}")
        self.path = path
        self.reason = reason
        self.errno = errno


class MissingLibrary(TextpokeError, ImportError):
    """Something optional was asked for, and the library that does it is not installed."""

    def __init__(self, library: str, extra: str) -> None:
        super().__init__(f"{library} is not installed: pip install 'textpoke[{extra}]'")
        self.library = library
        self.extra = extra


def _errno_text(errno: int) -> str:
    if not 0 <= errno < 1 << 16:  # os.strerror would take no more than a C int
        return f"error {errno}"
    return f"{os.strerror(errno)} ({_errno.errorcode.get(errno, errno)})"
