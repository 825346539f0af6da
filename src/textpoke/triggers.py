# SPDX-License-Identifier: Apache-2.0
"""What happens when a function is called: the commands of ftrace's set_ftrace_filter.

    func:traceoff           stop recording when it is called, each time
    func:traceoff:3         three times; the fourth time that somebody switches on, it stays on
    func:traceon            go on recording
    func:snapshot:1         write what is held to a file of its own
    func:stacktrace         note the open calls of the thread
    func:dump               print what is held
    func>5ms:keep=200ms     when a call took longer, keep the last 200 ms of everything
    func>5ms:keep=200ms+50ms    and the next 50 ms
    func>1ms:traceoff       every command can wait for a slow call (ns, us, ms, s)
    !func:traceoff          remove the one without a count
    !func:traceoff:0        remove the one with a count

`func` is an expression of `filters`. Triggers add up, whatever is done to the filter; a new one in
the place of an old one starts its count anew.
"""

from __future__ import annotations

import enum
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from textpoke._errors import BadFilter, BadTrigger
from textpoke.filters import Rule, parse_rule

if TYPE_CHECKING:
    from collections.abc import Iterable
    from typing import Self

    from textpoke.filters import SiteNames

_NS = {"ns": 1, "us": 1_000, "ms": 1_000_000, "s": 1_000_000_000}
_TIME = r"(\d{1,15}(?:\.\d{1,9})?)(ns|us|ms|s)"
_SPAN = re.compile(_TIME, re.ASCII)
_OVER = re.compile(rf">{_TIME}$", re.ASCII)
_NO_TIME = re.compile(r">(-?\d[\w.]*)$", re.ASCII)
# From the right: names of C++ are full of ":" and ">".
_TAIL = r"(?:=([^:]*))?(?::([^:]*))?$"
_WORD = re.compile(rf"(?<!:):(\w+){_TAIL}", re.ASCII)
_COUNT = re.compile(r"(?:count=)?([0-9]{1,9})|unlimited")


class Command(enum.StrEnum):
    """What a trigger does."""

    TRACEON = "traceon"
    TRACEOFF = "traceoff"
    SNAPSHOT = "snapshot"
    STACKTRACE = "stacktrace"
    DUMP = "dump"
    KEEP = "keep"


_KNOWN = re.compile(rf"(?<!:):({'|'.join(Command)}){_TAIL}")


@dataclass(frozen=True, slots=True)
class Trigger:
    """One trigger, or the removal of one; `parse_trigger` makes it.

    Attributes:
        text: As it was written.
        rule: Which functions.
        command: What to do.
        count: How often; None for always. In a removal, 0 means the one with a count.
        over_ns: Only when a call took longer; 0 for at every call, when it begins.
        before_ns: Of `keep`: how much of the past.
        after_ns: Of `keep`: how much of what follows.
        remove: Takes one away.
    """

    text: str
    rule: Rule
    command: Command
    count: int | None = None
    over_ns: int = 0
    before_ns: int = 0
    after_ns: int = 0
    remove: bool = False

    @property
    def slot(self) -> tuple[Command, int, bool]:
        """At one function there is one trigger of each command, threshold and countedness."""
        return self.command, self.over_ns, self.count is not None

    def listed(self, function: str) -> str:
        """The line that reads it back, as ftrace writes it."""
        over = f">{span_text(self.over_ns)}" if self.over_ns else ""
        what = str(self.command)
        if self.command is Command.KEEP:
            after = f"+{span_text(self.after_ns)}" if self.after_ns else ""
            what += f"={span_text(self.before_ns)}{after}"
        return f"{function}{over}:{what}:{count_text(self.count)}"


def count_text(count: int | None) -> str:
    """A count as ftrace shows it."""
    return "unlimited" if count is None else f"count={count}"


def span_text(span_ns: int) -> str:
    """A time in the largest unit that needs no fraction."""
    unit = next(u for u in ("s", "ms", "us", "ns") if not span_ns % _NS[u])
    return f"{span_ns // _NS[unit]}{unit}"


def parse_trigger(text: str) -> Trigger:
    """One line of the trigger language.

    Raises:
        BadTrigger: It is none; tells the column.
    """
    text = text.strip()
    remove = text.startswith("!")
    found = _KNOWN.search(text) or _WORD.search(text)
    if found is None:
        raise BadTrigger(text, len(text) + 1, f"a command is missing: {_commands()}")
    word, value, number = found.groups()
    if found.re is _WORD:
        raise BadTrigger(text, found.start(1) + 1, f"no command {word!r}: {_commands()}")
    command = Command(word)
    head = text[int(remove) : found.start()]
    over = _OVER.search(head)
    odd = None if over else _NO_TIME.search(head)
    if odd is not None:
        column = int(remove) + odd.start(1) + 1
        raise BadTrigger(text, column, f"{odd[1]!r} is not a time: 5ms, 100us")
    over_ns = _ns(text, int(remove) + over.start() + 2, *over.groups()) if over else 0
    rule = _rule(text, head[: over.start()] if over else head, remove=remove)
    before_ns, after_ns = _kept(text, found, command, remove=remove)
    if value is not None and command is not Command.KEEP:
        raise BadTrigger(text, found.start(2), f"{word} takes no value")
    count = None if number is None else _count(text, found.start(3) + 1, number, remove=remove)
    return Trigger(text, rule, command, count, over_ns, before_ns, after_ns, remove)


def _commands() -> str:
    return ", ".join(Command)


def _rule(text: str, head: str, *, remove: bool) -> Rule:
    try:
        rule = parse_rule(head)
    except BadFilter as exc:
        raise BadTrigger(text, int(remove) + exc.column, exc.problem) from None
    if rule.remove:
        raise BadTrigger(text, 2, "one '!' is enough")
    return rule


def _ns(text: str, column: int, number: str, unit: str) -> int:
    span_ns = round(float(number) * _NS[unit])
    if not 0 < span_ns < 1 << 62:
        raise BadTrigger(text, column, f"{number}{unit} is not a sensible time")
    return span_ns


def _kept(text: str, found: re.Match[str], command: Command, *, remove: bool) -> tuple[int, int]:
    value = found[2]
    if command is not Command.KEEP or (remove and value is None):
        return 0, 0
    if value is None:
        raise BadTrigger(text, found.end(1) + 1, "how much? keep=200ms, or keep=200ms+50ms")
    column = found.start(2) + 1
    spans = [_SPAN.fullmatch(part) for part in value.split("+")]
    if len(spans) > 2 or None in spans:
        raise BadTrigger(text, column, f"{value!r} is not a time: 200ms, or 200ms+50ms")
    kept = [_ns(text, column, *span.groups()) for span in spans if span]
    return kept[0], kept[1] if len(kept) > 1 else 0


def _count(text: str, column: int, number: str, *, remove: bool) -> int | None:
    match = _COUNT.fullmatch(number)
    if match is None:
        raise BadTrigger(text, column, f"{number!r} is not a count")
    if match[1] is None:
        return None
    if not (int(match[1]) or remove):
        raise BadTrigger(text, column, "a count of 0 does nothing; '!' before the line removes")
    return int(match[1])


@dataclass(frozen=True, slots=True)
class Placed:
    """A trigger at one function: index of its site."""

    index: int
    trigger: Trigger


@dataclass(frozen=True, slots=True)
class TriggerSet:
    """All triggers, and removals, in the order of writing; immutable."""

    triggers: tuple[Trigger, ...] = ()

    @classmethod
    def of(cls, texts: str | Iterable[str]) -> Self:
        """From lines. Raises BadTrigger."""
        return cls().with_lines(texts)

    def with_lines(self, texts: str | Iterable[str]) -> Self:
        """With more lines, removals among them. Raises BadTrigger."""
        lines = [texts] if isinstance(texts, str) else texts
        return type(self)(self.triggers + tuple(parse_trigger(line) for line in lines))

    def names_module(self, module: str, *, is_main: bool = False) -> bool:
        """As `FilterSet.names_module`: functions of this module are to be found."""
        return any(
            t.rule.names_module and not t.remove and t.rule.looks_in(module, is_main=is_main)
            for t in self.triggers
        )

    def place(self, names: SiteNames, *, strict: bool = True) -> list[Placed]:
        """Which trigger sits at which function, by site.

        Args:
            names: All sites.
            strict: Complain of lines that mean nothing.

        Raises:
            UnknownFunction: A line means no function, and no module that is not there.
            BadTrigger: A removal finds nothing to remove.
        """
        found: dict[tuple[int, tuple[Command, int, bool]], Trigger] = {}
        for trigger in self.triggers:
            hits = names.matching(trigger.rule)
            if not hits and strict and not names.expects_more(trigger.rule):
                raise names.unknown(trigger.rule)
            places = [(index, trigger.slot) for index in hits]
            if not trigger.remove:
                found.update(dict.fromkeys(places, trigger))
                continue
            if strict and hits and not any(place in found for place in places):
                raise BadTrigger(trigger.text, 1, "there is no such trigger to remove")
            for place in places:
                found.pop(place, None)
        return sorted((Placed(i, t) for (i, _), t in found.items()), key=lambda p: p.index)

    def read_back(self, names: SiteNames) -> list[str]:
        """A line for each function and trigger, as ftrace shows them behind the functions."""
        places = self.place(names, strict=False)
        return [placed.trigger.listed(names.listed(placed.index)) for placed in places]
