# SPDX-License-Identifier: Apache-2.0
"""What the tool that records can be asked for, and what it must be able to do: `Session`.

Requests and answers are JSON objects. Here they are checked field by field and become calls of the
session; no socket is needed.

    {"verb": "status"}
    {"verb": "tracers"}
    {"verb": "available"}
    {"verb": "switch", "tracer": "function_graph", "instance": ""}
    {"verb": "filter", "instance": "", "list": true, "follow": false, "sample": 1,
     "changes": [{"kind": "trace", "action": "append", "patterns": ["set*"]}]}
    {"verb": "trigger", "instance": "", "lines": ["f:traceoff:3", "!g:dump"], "clear": false}
    {"verb": "tracing", "instance": "", "on": true}
    {"verb": "counts", "instance": ""}
    {"verb": "instance", "action": "list"}
    {"verb": "instance", "action": "create", "name": "second", "tracer": "function",
     "patterns": [], "notrace": []}                        with the capture's descriptor
    {"verb": "instance", "action": "remove", "name": "second"}

An answer is {"ok": true, "result": {...}} or {"ok": false, "error": {"kind", "message",
"exit_code"}}.
"""

from __future__ import annotations

import fcntl
import os
import re
import stat
from collections import deque
from dataclasses import replace
from typing import TYPE_CHECKING, Protocol, TypeVar

from textpoke._errors import BadExpression, BadFilter, ControlFailed, TextpokeError
from textpoke.filters import FilterSet, Threads
from textpoke.tracer_names import TRACERS
from textpoke.triggers import TriggerSet

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

_T = TypeVar("_T")
MOST_PATTERNS = 100_000
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,63}")
_KINDS = ("trace", "notrace", "thread", "notrace_thread")
_ACTIONS = ("replace", "append")


class Session(Protocol):
    """What a running tool can do to its recordings while they run.

    The recording that it was started for is instance ""; others have names. Every method is called
    from `ControlServer.poll`, so by the thread that drains. What it returns is plain data for
    JSON. A TextpokeError or OSError is told to whoever asked, and changes nothing.
    """

    @property
    def pid(self) -> int:
        """The target."""
        ...

    def status(self) -> Mapping[str, object]:
        """What is known about the whole: target, events, losses, instances."""
        ...

    def tracers(self) -> Sequence[str]:
        """Names of the tracers that can be switched to, here and now."""
        ...

    def instances(self) -> Sequence[Mapping[str, object]]:
        """For each instance, "" first: at least name, tracer, on, events, lost, output."""
        ...

    def switch(self, instance: str, tracer: str) -> Mapping[str, object]:
        """Go over to another tracer, in one batch; returns at least sites, total_ns and rests.

        `rests`: a line for each trigger, filter or budget that means nothing with it.
        """
        ...

    def tracing(self, instance: str, *, on: bool) -> None:
        """Record or do not, while everything stays patched (tracing_on)."""
        ...

    def counts(self, instance: str) -> Sequence[Mapping[str, object]]:
        """What the profile tracer has counted so far: a row for each function that was called.

        module, function, address, calls, and in nanoseconds total, self, average, p50, p99, max
        ("total_ns", ...): what a live screen shows.
        """
        ...

    def filters(self, instance: str) -> FilterSet:
        """What decides now."""
        ...

    def set_filters(self, instance: str, filters: FilterSet) -> Mapping[str, object]:
        """Change over to this, in one batch; returns at least chosen, on and off (counts).

        Line numbers are to be fixed (`FilterSet.fixed`) before they are kept.
        """
        ...

    def listed(self, instance: str, *, notrace: bool) -> Sequence[str]:
        """`FilterSet.read_back` over the sites of the target."""
        ...

    def available(self) -> Sequence[str]:
        """`SiteNames.available`: what can be traced, in the order that line numbers count."""
        ...

    def triggers(self, instance: str) -> TriggerSet:
        """The triggers that there are."""
        ...

    def set_triggers(self, instance: str, triggers: TriggerSet) -> Sequence[str]:
        """Have these; returns `TriggerSet.read_back`."""
        ...

    def create(self, name: str, tracer: str, filters: FilterSet, fd: int) -> Mapping[str, object]:
        """Begin a recording of its own.

        Args:
            name: Not used yet.
            tracer: One of `tracers`.
            filters: Its own.
            fd: Its capture: a regular file, open for writing behind the file header. It is the
                session's from here on, also when this raises.
        """
        ...

    def remove(self, name: str) -> Mapping[str, object]:
        """End a recording that `create` has begun: its capture gets its END."""
        ...


class Request:
    """A request whose fields are read with their types checked.

    Raises:
        ControlFailed: From every method; says what is wrong.
    """

    def __init__(self, data: Mapping[str, object]) -> None:
        self._data = data
        self.verb = ""
        self.verb = self.text("verb", required=True)

    def failed(self, problem: str) -> ControlFailed:
        """The error to raise."""
        return ControlFailed(self.verb, problem, "ControlFailed")

    def text(self, name: str, *, required: bool = False) -> str:
        """A string; "" when absent."""
        value = self._typed(name, self._data.get(name, ""), str)
        if required and not value:
            raise self.failed(f"field {name!r} is missing")
        return value

    def flag(self, name: str) -> bool | None:
        """True or false; None when absent."""
        value = self._data.get(name)
        return None if value is None else self._typed(name, value, bool)

    def number(self, name: str) -> int | None:
        """A whole number from 1 up; None when absent."""
        value = self._data.get(name)
        if value is None:
            return None
        if type(value) is not int or not 0 < value < 1 << 31:
            raise self.failed(f"field {name!r} is not a number from 1 up")
        return value

    def texts(self, name: str) -> list[str]:
        """A list of strings; empty when absent. No file is read for somebody else."""
        items = self._typed(name, self._data.get(name, []), list)
        found = [self._typed(name, item, str) for item in items]
        if len(found) > MOST_PATTERNS:
            raise self.failed(f"{len(found)} {name} are too many")
        for text in found:
            if text.lstrip().startswith("@"):
                raise BadFilter(text, 1, "files of patterns are read by whoever asks")
        return found

    def parts(self, name: str) -> list[Request]:
        """A list of objects; empty when absent."""
        found = []
        for item in self._typed(name, self._data.get(name, []), list):
            fields = self._typed(name, item, dict)
            found.append(Request({**fields, "verb": self.verb}))
        return found

    def one_of(self, name: str, values: Sequence[str]) -> str:
        """A string that must be one of some."""
        value = self.text(name, required=True)
        if value not in values:
            raise self.failed(f"no {name} {value!r}: {', '.join(values)}")
        return value

    def _typed(self, name: str, value: object, kind: type[_T]) -> _T:
        if not isinstance(value, kind):
            raise self.failed(f"field {name!r} is not a {kind.__name__}")
        return value


class ErrorLog:
    """The last few requests that failed, as ftrace's error_log: for whoever comes later."""

    _MOST = 8

    def __init__(self) -> None:
        self._entries: deque[dict[str, object]] = deque(maxlen=self._MOST)

    def add(self, verb: str, exc: BaseException) -> None:
        """Note a failure; where it is in an expression, with a caret below the place."""
        caret = exc.caret if isinstance(exc, BadExpression) else ""
        self._entries.append({"verb": verb, "message": _line(exc), "caret": caret})

    def entries(self) -> list[dict[str, object]]:
        """Verb, message and caret (two lines, or "") of each, the oldest first."""
        return list(self._entries)


def _line(exc: BaseException) -> str:
    return " ".join(str(exc).split())


def answer(
    session: Session,
    data: Mapping[str, object],
    fds: list[int],
    log: ErrorLog | None = None,
) -> dict[str, object]:
    """Do what a request asks for.

    Args:
        session: Who does it.
        data: The request.
        fds: Descriptors that came with it; those that are taken over are removed from the list.
        log: Where failures are noted; `status` tells of them.

    Returns:
        The answer; errors of the session are in it.
    """
    log = log or ErrorLog()
    verb = ""
    try:
        request = Request(data)
        verb = request.verb
        result = _perform(session, request, fds)
        if verb == "status":
            result["errors"] = log.entries()
    except (TextpokeError, OSError) as exc:
        log.add(verb, exc)
        message = _line(exc)
        code = exc.exit_code if isinstance(exc, TextpokeError) else 1
        kind = exc.kind if isinstance(exc, ControlFailed) and exc.kind else type(exc).__name__
        return {"ok": False, "error": {"kind": kind, "message": message, "exit_code": code}}
    return {"ok": True, "result": result}


def _perform(session: Session, request: Request, fds: list[int]) -> dict[str, object]:
    act = _VERBS.get(request.verb)
    if act is None:
        raise request.failed(f"no verb {request.verb!r}: {', '.join(_VERBS)}")
    return act(session, request, fds)


def _status(session: Session, _request: Request, _fds: list[int]) -> dict[str, object]:
    return {**session.status(), "pid": session.pid, "instances": _instances(session)}


def _tracers(session: Session, _request: Request, _fds: list[int]) -> dict[str, object]:
    return {"tracers": {name: TRACERS.get(name, "") for name in session.tracers()}}


def _available(session: Session, _request: Request, _fds: list[int]) -> dict[str, object]:
    return {"functions": list(session.available())}


def _tracing(session: Session, request: Request, _fds: list[int]) -> dict[str, object]:
    instance, on = _instance(session, request), request.flag("on") is not False
    session.tracing(instance, on=on)
    return {"instance": instance, "on": on}


def _counts(session: Session, request: Request, _fds: list[int]) -> dict[str, object]:
    instance = _instance(session, request)
    return {"instance": instance, "functions": [dict(row) for row in session.counts(instance)]}


def _one_instance(session: Session, request: Request, fds: list[int]) -> dict[str, object]:
    return _INSTANCE[request.one_of("action", tuple(_INSTANCE))](session, request, fds)


def _instances(session: Session) -> list[dict[str, object]]:
    return [dict(each) for each in session.instances()]


def _instance(session: Session, request: Request) -> str:
    name = request.text("instance")
    names = [str(each.get("name", "")) for each in session.instances()]
    if name not in names:
        others = ", ".join(repr(each) for each in names if each) or "none"
        raise request.failed(f"no instance {name!r}; there are: {others}")
    return name


def _tracer(session: Session, request: Request) -> str:
    return request.one_of("tracer", tuple(session.tracers()))


def _switch(session: Session, request: Request, _fds: list[int]) -> dict[str, object]:
    instance, tracer = _instance(session, request), _tracer(session, request)
    return {"instance": instance, "tracer": tracer, **session.switch(instance, tracer)}


def _filter(session: Session, request: Request, _fds: list[int]) -> dict[str, object]:
    instance = _instance(session, request)
    old = new = session.filters(instance)
    for change in request.parts("changes"):
        new = _changed(new, change)
    follow, sample = request.flag("follow"), request.number("sample")
    if follow is not None:
        new = replace(new, threads=replace(new.threads, follow=follow))
    if sample is not None:
        new = replace(new, sample=sample)
    result: dict[str, object] = {"instance": instance}
    if new != old:
        result.update(session.set_filters(instance, new))
    result["lines"] = session.filters(instance).lines()
    if request.flag("list"):
        result["functions"] = list(session.listed(instance, notrace=False))
        result["notrace"] = list(session.listed(instance, notrace=True))
    return result


def _changed(filters: FilterSet, change: Request) -> FilterSet:
    kind, action = change.one_of("kind", _KINDS), change.one_of("action", _ACTIONS)
    patterns = change.texts("patterns")
    if kind in ("trace", "notrace"):
        notrace = kind == "notrace"
        if action == "append":
            return filters.appended(patterns, notrace=notrace)
        return filters.replaced(patterns, notrace=notrace)
    threads = filters.threads
    before = threads.trace if kind == "thread" else threads.notrace
    after = (*before, *patterns) if action == "append" else tuple(patterns)
    if kind == "thread":
        return replace(filters, threads=Threads(after, threads.notrace, threads.follow))
    return replace(filters, threads=Threads(threads.trace, after, threads.follow))


def _trigger(session: Session, request: Request, _fds: list[int]) -> dict[str, object]:
    instance, lines = _instance(session, request), request.texts("lines")
    triggers = TriggerSet() if request.flag("clear") else session.triggers(instance)
    triggers = triggers.with_lines(lines)
    return {"instance": instance, "triggers": list(session.set_triggers(instance, triggers))}


def _list(session: Session, _request: Request, _fds: list[int]) -> dict[str, object]:
    return {"instances": _instances(session)}


def _create(session: Session, request: Request, fds: list[int]) -> dict[str, object]:
    name = request.text("name", required=True)
    if not _NAME.fullmatch(name):
        raise request.failed(f"{name!r} is no name: up to 64 letters, digits and -_.")
    if name in [str(each.get("name", "")) for each in session.instances()]:
        raise request.failed(f"there is an instance {name!r} already")
    tracer = _tracer(session, request)
    filters = FilterSet.of(request.texts("patterns"), request.texts("notrace"))
    if not fds:
        raise request.failed("no capture was handed over")
    _check_capture(request, fds[0])
    return {"name": name, **session.create(name, tracer, filters, fds.pop(0))}


def _check_capture(request: Request, fd: int) -> None:
    # A pipe could make the drain wait for whoever reads it.
    writable = fcntl.fcntl(fd, fcntl.F_GETFL) & os.O_ACCMODE in (os.O_WRONLY, os.O_RDWR)
    if not (stat.S_ISREG(os.fstat(fd).st_mode) and writable):
        raise request.failed("the capture is not a regular file that is open for writing")


def _remove(session: Session, request: Request, _fds: list[int]) -> dict[str, object]:
    name = request.text("name", required=True)
    if name not in [str(each.get("name", "")) for each in session.instances()]:
        raise request.failed(f"no instance {name!r}")
    return {"name": name, **session.remove(name)}


_INSTANCE = {"list": _list, "create": _create, "remove": _remove}
_VERBS = {
    "status": _status,
    "tracers": _tracers,
    "available": _available,
    "switch": _switch,
    "tracing": _tracing,
    "counts": _counts,
    "filter": _filter,
    "trigger": _trigger,
    "instance": _one_instance,
}
