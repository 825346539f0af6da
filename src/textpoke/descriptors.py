# SPDX-License-Identifier: Apache-2.0
"""Which file a descriptor stood for at a moment: from the calls seen, and from looks at proc.

What made and closed descriptors is walked one by one (they are few); what used them is joined in
bulk.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from textpoke.group_math import earliest_after, latest_before

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from numpy.typing import NDArray

    from textpoke.call_rows import CallRows

UNKNOWN = -1
_MAKERS = ("open", "socket", "accept", "dup")
_DOMAINS = {1: "unix", 2: "inet", 10: "inet6", 16: "netlink"}
_TYPES = {1: "stream", 2: "datagram", 3: "raw", 5: "seqpacket"}
_TYPE_MASK = 15  # without SOCK_NONBLOCK and SOCK_CLOEXEC
_MOST_DESCRIPTOR = 1 << 31
_MOST_NS = 1 << 62


@dataclass(frozen=True, slots=True)
class Look:
    """What proc/PID/fd showed.

    Attributes:
        ts_ns: When the look began, in nanoseconds since the capture's first clock point.
        files: Descriptor to file, as readlink gives it.
    """

    ts_ns: int
    files: Mapping[int, str]


def looks(blocks: Iterable[Mapping[str, object]], start_ns: int) -> list[Look]:
    """The looks in a capture's JSON blocks, by time; what has another shape is passed over.

    Args:
        blocks: META, SITES and END. Field `fds` of each is a list of
            `{"monotonic_ns": n, "files": {"3": "/var/log/x"}}`.
        start_ns: CLOCK_MONOTONIC of the capture's first clock point.
    """
    found: list[Look] = []
    for block in blocks:
        entries = block.get("fds")
        for entry in entries if isinstance(entries, list) else ():
            if not isinstance(entry, dict):
                continue
            when, files = entry.get("monotonic_ns"), entry.get("files")
            if type(when) is int and 0 <= when < _MOST_NS and isinstance(files, dict):
                found.append(Look(when - start_ns, dict(_files(files))))
    return sorted(found, key=lambda look: look.ts_ns)


def _files(files: Mapping[object, object]) -> Iterator[tuple[int, str]]:
    for number, name in files.items():
        if not (isinstance(number, str) and isinstance(name, str) and len(number) <= 10):
            continue
        if number.isascii() and number.isdecimal() and int(number) < _MOST_DESCRIPTOR:
            yield int(number), name


@dataclass(slots=True)
class Files:
    """What descriptors stood for, over time.

    Attributes:
        names: The files, by index.
    """

    names: list[str] = field(default_factory=list)
    _index: dict[str, int] = field(default_factory=dict)
    _now: dict[int, int] = field(default_factory=dict)
    # (descriptor, time, file, whether a look said so), in order of time
    _changes: list[tuple[int, int, int, bool]] = field(default_factory=list)

    def index(self, name: str) -> int:
        """The index of a file's name, which is noted if it is new."""
        index = self._index.setdefault(name, len(self.names))
        if index == len(self.names):
            self.names.append(name)
        return index

    def at(self, fd: NDArray[np.int64], ts_ns: NDArray[np.int64]) -> NDArray[np.int64]:
        """What each descriptor stood for at each moment, as an index into `names` or `UNKNOWN`.

        Where nothing seen before tells, the next look does, if nothing was seen in between.
        """
        if not self._changes:
            return np.full(len(fd), UNKNOWN, dtype=np.int64)
        number, time, file, by_look = np.array(self._changes, dtype=np.int64).T
        before = latest_before(number, time, fd, ts_ns + 1)
        after = earliest_after(number, time, fd, ts_ns)
        found = np.where(before >= 0, file[before], UNKNOWN)
        looked_at = (found == UNKNOWN) & (after >= 0) & (by_look[after] > 0)
        return np.where(looked_at, file[after], found)

    def note(self, fd: int, ts_ns: int, file: int, *, by_look: bool = False) -> None:
        """A descriptor stands for a file from a moment on; moments never go back."""
        self._now[fd] = file
        self._changes.append((fd, ts_ns, file, by_look))

    def now(self, fd: int) -> int:
        """What a descriptor stands for after everything noted so far."""
        return self._now.get(fd, UNKNOWN)

    def look(self, look: Look) -> None:
        """Everything open at one moment; what is not there has been closed by somebody unseen."""
        for fd in [fd for fd, file in self._now.items() if file >= 0 and fd not in look.files]:
            self.note(fd, look.ts_ns, UNKNOWN)
        for fd, name in look.files.items():
            self.note(fd, look.ts_ns, self.index(name), by_look=True)


@dataclass(frozen=True, slots=True)
class _Change:
    ts_ns: int
    role: str
    fd: int  # the descriptor that is made, or closed
    source: int  # of dup and accept: the other descriptor
    name: str = ""


def follow(rows: CallRows, looks_at: Sequence[Look]) -> Files:
    """What descriptors stood for during a capture.

    Args:
        rows: The I/O calls.
        looks_at: Looks at proc, by time.
    """
    files = Files()
    changes = sorted(_changes(rows), key=lambda change: change.ts_ns)
    waiting = list(looks_at)
    for change in changes:
        while waiting and waiting[0].ts_ns <= change.ts_ns:
            files.look(waiting.pop(0))
        files.note(change.fd, change.ts_ns, _file(files, change))
    for look in waiting:
        files.look(look)
    return files


def _file(files: Files, change: _Change) -> int:
    if change.role == "close":
        return UNKNOWN
    if change.role == "dup":
        return files.now(change.source)
    if change.role == "accept":
        listening = files.now(change.source)
        origin = files.names[listening] if listening >= 0 else f"descriptor {change.source}"
        return files.index(f"accepted from {origin}")
    return files.index(change.name)


def _changes(rows: CallRows) -> Iterator[_Change]:
    made = rows.of("io", _MAKERS)
    paths, sources = made.texts("path"), made.numbers("fd").tolist()
    domains, types = made.numbers("domain").tolist(), made.numbers("type").tolist()
    for index, (end_ns, function, fd) in enumerate(
        zip(made.end_ns.tolist(), made.function.tolist(), made.results().tolist(), strict=True)
    ):
        role = made.functions[function].role
        if fd < 0:
            continue
        name = paths[index] or "a path that could not be read"
        if role == "socket":
            name = _socket(domains[index], types[index])
        yield _Change(end_ns, role, fd, sources[index], name)
    closed = rows.of("io", ("close",))
    for start_ns, fd, result in zip(
        closed.start_ns.tolist(),
        closed.numbers("fd").tolist(),
        closed.results(otherwise=0).tolist(),
        strict=True,
    ):
        if result == 0:
            yield _Change(start_ns, "close", fd, 0)


def _socket(domain: int, kind: int) -> str:
    family = _DOMAINS.get(domain, str(domain))
    return f"socket ({family} {_TYPES.get(kind & _TYPE_MASK, kind & _TYPE_MASK)})"
