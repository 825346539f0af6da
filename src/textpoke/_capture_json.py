# SPDX-License-Identifier: Apache-2.0
"""The JSON blocks of a capture, checked field by field: META, THREADS, CLOCK, SITES and END."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TypeVar

from textpoke._errors import CaptureFormat
from textpoke.payload import Field, Layout, count_words

_T = TypeVar("_T")
_MAX_U64 = (1 << 64) - 1
_MAX_INT = (1 << 62) - 1
"""Of everything but ticks and addresses: sums of two still fit into 64 signed bits."""


@dataclass(frozen=True, slots=True)
class ClockPoint:
    """One moment on three clocks: TSC ticks, CLOCK_MONOTONIC and CLOCK_REALTIME in ns."""

    tsc: int
    monotonic_ns: int
    realtime_ns: int


@dataclass(frozen=True, slots=True)
class SiteName:
    """What a return address in an event stands for."""

    address: int
    module: str
    function: str


@dataclass(frozen=True, slots=True)
class Meta:
    """What was traced, from the META block.

    Attributes:
        pid: Process id of the target.
        exe: Path of its program.
        command: Its command line.
        tracer: Name of the tracer, such as "function".
        mode: What a full ring did: "drop" new events or "overwrite" old ones; "kept": the latter,
            and the capture has some stretches of time only.
        clock: Taken when tracing was switched on.
        sites: Names of all return addresses.
        cpus: CPUs of the machine; 0 when not recorded.
        version: Of the textpoke that recorded.
        layouts: By return address, the payload of calls there; few sites have any.
        enums: Labels of the enumerations that layouts name: name to value to label.
        raw: The whole JSON object.
        program: Name of the program: of its file, or of the link by which it was started.
    """

    pid: int
    exe: str
    command: list[str]
    tracer: str
    mode: str
    clock: ClockPoint
    sites: list[SiteName]
    cpus: int
    version: str
    layouts: dict[int, Layout]
    enums: dict[str, dict[int, str]]
    raw: dict[str, object]

    @property
    def program(self) -> str:
        modules = self.raw.get("modules")
        for module in modules if isinstance(modules, list) else ():
            match module:
                case [str() as name, self.exe, *_]:
                    return name
        return self.exe.rpartition("/")[2]


@dataclass(frozen=True, slots=True)
class End:
    """Totals and outcomes, from the END block.

    Attributes:
        clock: Taken when tracing was switched off.
        events: Events written to the capture.
        lost: Events lost in rings.
        lost_no_ring: Events of threads that had no ring.
        overruns: Calls whose return could not be waited for (`Trace.overruns`).
        reason: Why it ended: "duration", "interrupted", "target exited", ...
        hold_ns: How long one thread of the target was held for the attach; 0 if unknown.
        raw: The whole JSON object, with the outcomes of both batches.
    """

    clock: ClockPoint
    events: int
    lost: int
    lost_no_ring: int
    overruns: int
    reason: str
    hold_ns: int
    raw: dict[str, object]


class JsonBlock:
    """A JSON object of a capture whose fields are read with their types checked.

    Raises:
        CaptureFormat: from every method, naming the field, at the block's offset.
    """

    def __init__(self, path: str, offset: int, payload: bytes | bytearray) -> None:
        self._path = path
        self._offset = offset
        try:
            data = json.loads(payload.decode("utf-8"), parse_constant=_no_constant)
        except (ValueError, RecursionError) as exc:
            raise self.bad(f"unreadable JSON: {exc}") from None
        if not isinstance(data, dict):
            raise self.bad(f"JSON holds a {type(data).__name__}, not an object")
        self.data: dict[str, object] = data

    def bad(self, problem: str) -> CaptureFormat:
        """The error to raise for a problem in this block."""
        return CaptureFormat(self._path, self._offset, problem)

    def text(self, name: str) -> str:
        """A string; "" when absent."""
        return self._typed(name, self.data.get(name, ""), str)

    def number(self, name: str, *, default: int | None = None) -> int:
        """An integer from 0 to 2**62-1."""
        return self._int(name, self.data.get(name, default))

    def strings(self, name: str) -> list[str]:
        """A list of strings; empty when absent."""
        items = self._typed(name, self.data.get(name, []), list)
        return [self._typed(name, item, str) for item in items]

    def clock(self, values: dict[str, object] | None = None) -> ClockPoint:
        """The clock point in field "clock", or in `values`."""
        if values is None:
            values = self._typed("clock", self.data.get("clock"), dict)
        return ClockPoint(
            self._int("clock.tsc", values.get("tsc"), _MAX_U64),
            self._int("clock.monotonic_ns", values.get("monotonic_ns")),
            self._int("clock.realtime_ns", values.get("realtime_ns")),
        )

    def sites(self) -> list[SiteName]:
        """The list of [return address, module, function] in field "sites"."""
        rows = self._typed("sites", self.data.get("sites"), list)
        return [self._site(row) for row in rows]

    def layouts(self) -> dict[int, Layout]:
        """The layouts by return address in field "layouts"; none when absent."""
        found: dict[int, Layout] = {}
        for key, value in self._typed("layouts", self.data.get("layouts", {}), dict).items():
            sides = self._typed("layouts", value, dict)
            found[self._key("layouts", key, 0)] = Layout(
                self._fields(sides.get("entry", [])), self._fields(sides.get("exit", []))
            )
        return found

    def enums(self) -> dict[str, dict[int, str]]:
        """The labels by name and value in field "enums"; none when absent."""
        found: dict[str, dict[int, str]] = {}
        for name, labels in self._typed("enums", self.data.get("enums", {}), dict).items():
            found[name] = {
                self._key("enums", value, -(1 << 63)): self._typed("enums", label, str)
                for value, label in self._typed("enums", labels, dict).items()
            }
        return found

    def thread_names(self) -> dict[int, str]:
        """The whole object as thread id to name."""
        names: dict[int, str] = {}
        for key, value in self.data.items():
            if not (key.isascii() and key.isdigit() and len(key) <= 10):
                raise self.bad(f"{key[:20]!r} is not a thread id")
            names[int(key)] = self._typed(key, value, str)
        return names

    def _site(self, row: object) -> SiteName:
        if not isinstance(row, list) or len(row) != 3:
            raise self.bad("field 'sites' holds something else than [address, module, function]")
        address, module, function = row
        if type(address) is int and type(module) is str and type(function) is str:
            return SiteName(self._int("sites", address, _MAX_U64), module, function)
        raise self.bad("field 'sites' holds something else than [address, module, function]")

    def _fields(self, rows: object) -> tuple[Field, ...]:
        fields: list[Field] = []
        for row in self._typed("layouts", rows, list):
            if not isinstance(row, list) or [type(item) for item in row] != [str, str]:
                raise self.bad("field 'layouts' holds something else than [name, kind]")
            fields.append(Field(*row))
        try:
            count_words(fields)
        except ValueError as exc:
            raise self.bad(f"field 'layouts': {exc}") from None
        return tuple(fields)

    def _key(self, name: str, key: str, least: int) -> int:
        # JSON has no numbers for names; enumerations have negative values.
        digits = key.removeprefix("-")
        if not (digits.isascii() and digits.isdecimal() and len(digits) <= 20):
            raise self.bad(f"field {name!r}: {key[:24]!r} is not a number")
        if not least <= int(key) <= _MAX_U64:
            raise self.bad(f"field {name!r}: {key} is not a number that fits")
        return int(key)

    def _typed(self, name: str, value: object, kind: type[_T]) -> _T:
        if not isinstance(value, kind):
            raise self.bad(f"field {name!r} is not a {kind.__name__}")
        return value

    def _int(self, name: str, value: object, most: int = _MAX_INT) -> int:
        if type(value) is not int or not 0 <= value <= most:
            raise self.bad(f"field {name!r} is not a number that fits")
        return value


def load_meta(block: JsonBlock) -> Meta:
    """META from its JSON."""
    return Meta(
        pid=block.number("pid", default=0),
        exe=block.text("exe"),
        command=block.strings("command"),
        tracer=block.text("tracer"),
        mode=block.text("mode"),
        clock=block.clock(),
        sites=block.sites(),
        cpus=block.number("cpus", default=0),
        version=block.text("textpoke"),
        layouts=block.layouts(),
        enums=block.enums(),
        raw=block.data,
    )


def load_end(block: JsonBlock) -> End:
    """END from its JSON."""
    return End(
        clock=block.clock(),
        events=block.number("events", default=0),
        lost=block.number("lost", default=0),
        lost_no_ring=block.number("lost_no_ring", default=0),
        overruns=block.number("overruns", default=0),
        reason=block.text("reason"),
        hold_ns=block.number("hold_ns", default=0),
        raw=block.data,
    )


def _no_constant(name: str) -> object:
    raise ValueError(f"{name} is not JSON")
