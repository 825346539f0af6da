# SPDX-License-Identifier: Apache-2.0
"""Which functions and threads are traced: the language of ftrace's set_ftrace_filter.

An expression adds functions, or with a leading "!" takes them away, in the order of writing:

    set*Command             a glob: `*`, `?`, `[a-z]`, `[!a-z]`, a backslash before a plain one
    libc!mem*               in modules: those that `patterns.Pattern` means
    mem*:mod:libc*          the same, as ftrace writes it
    write*:mod:*            in shared objects only
    write*:mod:!*           in the main program only
    :mod:!libc*             everything but that
    *:file:networking.c     functions whose source is that file, by debug information
    17                      line 17 of the list of available functions
    0x401130                the function whose site or entry is there
    @hot.txt                the expressions in a file, one a line, "#" begins a comment

As in ftrace, no expression (or none that still chooses something) means all functions, and what
notrace chooses is never traced. Everything here is pure: no process is looked at.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Protocol

from textpoke._errors import BadFilter, UnknownFunction
from textpoke.patterns import Pattern, base_name, is_module, name_test

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Sequence
    from typing import Self

    from textpoke.model import Site

ALL_FUNCTIONS = "#### all functions enabled ####"
NO_FUNCTIONS = "#### no functions disabled ####"

# "a::mod::b" is a name of C++.
_PART = re.compile(r"(?<!:):(\w+):(?!:)")
_COMMAND = re.compile(r"(?<!:):(traceon|traceoff|snapshot|stacktrace|dump|keep)\b(?!:\D)")
_COMMENT = re.compile(r"(^|\s)#.*")
_NUMBER = re.compile(r"[0-9]{1,9}|0x[0-9a-fA-F]{1,16}")
_MOST_FILE_BYTES = 16 << 20


class SourceFiles(Protocol):
    """Tells from debug information where functions were written."""

    def __call__(self, sites: Sequence[Site]) -> Sequence[str]:
        """The path of the source of each site's function, "" where it is not known."""
        ...


@dataclass(frozen=True, slots=True)
class Rule:
    """One expression; `parse_rule` makes it.

    Attributes:
        text: As it was written.
        glob: Of the function, "MODULE!GLOB" or a bare glob.
        remove: Takes away instead of adding.
        mod: What stood behind ":mod:", without its "!"; None for nothing.
        mod_not: It had a "!".
        file: What stood behind ":file:", likewise.
        file_not: It had a "!".
        line: Line in the list of available functions, from 1; 0 for none.
        address: Of a site; 0 for none.
    """

    text: str
    glob: str = "*"
    remove: bool = False
    mod: str | None = None
    mod_not: bool = False
    file: str | None = None
    file_not: bool = False
    line: int = 0
    address: int = 0

    def looks_in(self, module: str, *, is_main: bool) -> bool:
        """Tell whether functions of this module can be meant."""
        if self.line or self.address:
            return True
        return Pattern(self.glob).matches_module(module) and self._fits_mod(module, is_main)

    @property
    def names_module(self) -> bool:
        """True when it says in which modules to look."""
        return self.mod is not None or Pattern(self.glob).names_module

    @property
    def is_plain(self) -> bool:
        """True for 'GLOB' and 'MODULE!GLOB' alone."""
        special = self.mod is not None or self.file is not None
        return not (self.remove or special or self.line or self.address)

    def is_source(self, path: str) -> bool:
        """Tell whether a source path is what ":file:" asks for; an unknown one never is."""
        if self.file is None:
            return True
        if not path:
            return False
        test = name_test(self.file)
        tails = (path[i + 1 :] for i, char in enumerate(path) if char == "/")
        fits = bool(test(path)) or any(test(tail) for tail in tails)
        return fits != self.file_not

    def _fits_mod(self, module: str, is_main: bool) -> bool:  # noqa: FBT001 - private
        # In the kernel the core has no module name, so no glob of modules fits it. The main
        # program has one: whoever spells it means it, "*" means shared objects as there.
        if self.mod is None:
            return True
        fits = is_module(self.mod, module) and not (is_main and not self.mod.strip("*"))
        return fits != self.mod_not


def parse_rule(text: str) -> Rule:
    """One expression.

    Raises:
        BadFilter: It is none.
    """
    text = text.strip()
    remove = text.startswith("!")
    start = int(remove)
    command = _COMMAND.search(text)
    if command:
        raise BadFilter(
            text, command.start(1) + 1, f"{command[1]} is a trigger: see textpoke trigger --help"
        )
    parts = list(_PART.finditer(text, start))
    head = text[start : parts[0].start() if parts else len(text)]
    if not head and not parts:
        raise BadFilter(text, start + 1, "a pattern is missing")
    if head.startswith("@"):
        raise BadFilter(text, start + 1, "a file of patterns must stand alone, without '!'")
    values = _values(text, parts)
    mod, file = values.get("mod"), values.get("file")
    if _NUMBER.fullmatch(head):
        if parts:
            raise BadFilter(text, start + 1, "a number chooses one function: nothing may follow")
        is_address = head.startswith("0x")
        number = int(head, 16 if is_address else 10)
        if not number:
            raise BadFilter(text, start + 1, "lines and addresses begin with 1")
        if is_address:
            return Rule(text, remove=remove, address=number)
        return Rule(text, remove=remove, line=number)
    return Rule(
        text,
        head or "*",
        remove,
        None if mod is None else mod.removeprefix("!"),
        mod is not None and mod.startswith("!"),
        None if file is None else file.removeprefix("!"),
        file is not None and file.startswith("!"),
    )


def _values(text: str, parts: list[re.Match[str]]) -> dict[str, str]:
    values: dict[str, str] = {}
    ends = [part.start() for part in parts[1:]] + [len(text)]
    for part, end in zip(parts, ends, strict=False):
        name, value = part[1], text[part.end() : end]
        if name not in ("mod", "file"):
            raise BadFilter(text, part.start(1) + 1, f"no such command {name!r}: mod or file")
        if name in values:
            raise BadFilter(text, part.start(1) + 1, f"a second {name!r}")
        if name == "file" and not value.removeprefix("!"):
            raise BadFilter(text, part.end() + 1, "the name of a source file is missing")
        # ftrace: nothing behind mod means every module, "!" alone none.
        values[name] = f"{value}*" if value in ("", "!") else value
    return values


def parse_rules(texts: str | Iterable[str]) -> tuple[Rule, ...]:
    """Expressions in order; "@FILE" is replaced by what is in the file.

    Raises:
        BadFilter: One is none; from a file, the problem says the line.
        OSError: A file cannot be read.
    """
    found: list[Rule] = []
    for text in [texts] if isinstance(texts, str) else texts:
        found += (
            read_rules(text.strip()[1:]) if text.strip().startswith("@") else [parse_rule(text)]
        )
    return tuple(found)


def read_rules(path: str) -> list[Rule]:
    """The expressions in a file, one a line. Raises as `parse_rules`."""
    with open(path, encoding="utf-8", errors="surrogateescape") as file:
        lines = file.read(_MOST_FILE_BYTES).splitlines()
    found = []
    for number, line in enumerate(lines, start=1):
        text = _COMMENT.sub("", line).strip()
        if not text:
            continue
        try:
            found.append(parse_rule(text))
        except BadFilter as exc:
            problem = f"{exc.problem} ({path}, line {number})"
            raise BadFilter(exc.text, exc.column, problem) from None
    return found


class SiteNames:
    """The names of many sites, laid out so that a glob is tried on all of them in one go.

    Args:
        sites: The list of available functions, in its order.
        main: Name of the main program's module.
        usual: Names of the modules in which an expression without a module looks first; None for
            all. It looks in the others when nothing fits there.
        files: Finds sources, for ":file:".
    """

    def __init__(
        self,
        sites: Sequence[Site],
        *,
        main: str = "",
        usual: Collection[str] | None = None,
        files: SourceFiles | None = None,
    ) -> None:
        self.sites = sites
        self._main = main
        self._files = files
        self._places: dict[int, list[int]] | None = None
        indices: dict[str, list[int]] = {}
        for i, site in enumerate(sites):
            indices.setdefault(site.module, []).append(i)
        self._groups = {name: _Group(sites, found) for name, found in indices.items()}
        self._usual = frozenset(indices if usual is None else usual)

    def __len__(self) -> int:
        return len(self.sites)

    @property
    def usual(self) -> list[int]:
        """What "all functions" means."""
        return sorted(i for n, group in self._groups.items() if n in self._usual for i in group.at)

    def matching(self, rule: Rule) -> list[int]:
        """Indices of the sites that a rule means, in no order."""
        if rule.line:
            return [rule.line - 1] if rule.line <= len(self.sites) else []
        if rule.address:
            return self._at(rule.address)
        wanted = [n for n in self._groups if rule.looks_in(n, is_main=n == self._main)]
        first = wanted if rule.names_module else [n for n in wanted if n in self._usual]
        return self._in(first, rule) or self._in([n for n in wanted if n not in first], rule)

    def available(self) -> list[str]:
        """What ftrace shows in available_filter_functions: a line each, from number 1."""
        return [self.listed(index) for index in range(len(self.sites))]

    def listed(self, index: int) -> str:
        """A site as ftrace lists it: the module behind the name, unless it is the main program."""
        site = self.sites[index]
        return site.function if site.module == self._main else f"{site.function} [{site.module}]"

    def expects_more(self, rule: Rule) -> bool:
        """Tell whether a rule is for a module that is not there: it may come later."""
        return rule.names_module and not any(
            rule.looks_in(name, is_main=name == self._main) for name in self._groups
        )

    def unknown(self, rule: Rule) -> UnknownFunction:
        """The error to raise for a rule that means nothing."""
        return UnknownFunction(rule.text, Pattern(rule.glob).close_names(self.sites))

    def _in(self, modules: Iterable[str], rule: Rule) -> list[int]:
        test = Pattern(rule.glob).is_name
        found = [i for name in modules for i in self._groups[name].matching(test)]
        if rule.file is None or not found:
            return found
        if self._files is None:
            raise BadFilter(rule.text, len(rule.text), "source files are not known here")
        paths = self._files([self.sites[i] for i in found])
        return [i for i, path in zip(found, paths, strict=True) if rule.is_source(path)]

    def _at(self, address: int) -> list[int]:
        if self._places is None:
            self._places = {}
            for i, site in enumerate(self.sites):
                for place in {site.address, site.entry}:
                    self._places.setdefault(place, []).append(i)
        return self._places.get(address, [])


class _Group:
    """The names of one module: a name for each site, and further names of some."""

    def __init__(self, sites: Sequence[Site], at: list[int]) -> None:
        self.at = at
        self._names = [sites[i].function for i in at]
        self._more: list[tuple[str, int]] = []
        for i in at:
            function, symbol = sites[i].function, sites[i].symbol
            if function != symbol:
                self._more.append((symbol, i))
            elif "." not in symbol:
                continue
            base = base_name(function, symbol)
            if base != function:
                self._more.append((base, i))

    def matching(self, is_name: Callable[[str], object]) -> list[int]:
        found = [i for name, i in zip(self._names, self.at, strict=True) if is_name(name)]
        found += [i for name, i in self._more if is_name(name)]
        return found


@dataclass(frozen=True, slots=True)
class Selection:
    """What a filter chooses among the sites of a process.

    Attributes:
        indices: Of the chosen sites, ascending.
        everything: No expression chooses anything, so all functions are traced but for notrace.
        unheard: Expressions that mean nothing now: for modules that are not there.
    """

    indices: list[int]
    everything: bool
    unheard: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Change:
    """What must be done to get from one selection to another: indices of sites, ascending."""

    on: list[int]
    off: list[int]


@dataclass(frozen=True, slots=True)
class Threads:
    """Which threads are traced, by id or by a glob of their names.

    Attributes:
        trace: Numbers and globs; none means all threads.
        notrace: The same; wins.
        follow: Threads that begin while others are traced are traced too, whatever their names.
    """

    trace: tuple[str, ...] = ()
    notrace: tuple[str, ...] = ()
    follow: bool = False

    def choose(
        self, threads: Iterable[tuple[int, str]], before: Collection[int] | None = None
    ) -> set[int]:
        """The ids of the threads to trace.

        Args:
            threads: Id and name of each thread that there is.
            before: Ids of the threads that there were when this was asked first; with `follow`,
                others are traced. None the first time.
        """
        chosen = set()
        for tid, name in threads:
            new = self.follow and before is not None and tid not in before
            if _is_thread(self.notrace, tid, name):
                continue
            if not self.trace or new or _is_thread(self.trace, tid, name):
                chosen.add(tid)
        return chosen

    def unknown(self, threads: Collection[tuple[int, str]]) -> list[str]:
        """Of what is to be traced, that which no thread is: ids and globs, as they were given."""
        return [
            rule
            for rule in self.trace
            if not any(_is_thread((rule,), tid, name) for tid, name in threads)
        ]

    @property
    def everyone(self) -> bool:
        """True when no thread is left out."""
        return not self.trace and not self.notrace


def _is_thread(rules: Sequence[str], tid: int, name: str) -> bool:
    return any(rule == str(tid) or name_test(rule)(name) for rule in rules)


@dataclass(frozen=True, slots=True)
class FilterSet:
    """Everything that decides what is recorded; immutable, each change makes a new one.

    Attributes:
        trace: set_ftrace_filter: what is traced, in the order of writing; empty for all.
        notrace: set_ftrace_notrace: what is not, whatever `trace` says.
        threads: Whose calls are recorded.
        sample: One of so many calls of a function is recorded, by each thread.
    """

    trace: tuple[Rule, ...] = ()
    notrace: tuple[Rule, ...] = ()
    threads: Threads = field(default_factory=Threads)
    sample: int = 1

    @classmethod
    def of(
        cls,
        trace: str | Iterable[str] = (),
        notrace: str | Iterable[str] = (),
        *,
        threads: Threads | None = None,
        sample: int = 1,
    ) -> Self:
        """A filter from expressions. Raises BadFilter, OSError."""
        if sample < 1:
            raise BadFilter(str(sample), 1, "one of at least one call")
        return cls(parse_rules(trace), parse_rules(notrace), threads or Threads(), sample)

    def replaced(self, texts: str | Iterable[str], *, notrace: bool = False) -> Self:
        """With these expressions for those that were there (`>` in a shell); none clears."""
        rules = parse_rules(texts)
        return replace(self, notrace=rules) if notrace else replace(self, trace=rules)

    def appended(self, texts: str | Iterable[str], *, notrace: bool = False) -> Self:
        """With these expressions behind those that are there (`>>` in a shell)."""
        rules = parse_rules(texts)
        if notrace:
            return replace(self, notrace=self.notrace + rules)
        return replace(self, trace=self.trace + rules)

    def names_module(self, module: str, *, is_main: bool = False) -> bool:
        """Tell whether an expression says that functions of this module are to be found."""
        return any(
            rule.names_module and not rule.remove and rule.looks_in(module, is_main=is_main)
            for rule in self.trace
        )

    def fixed(self, names: SiteNames) -> Self:
        """With addresses for line numbers: the list grows when modules come.

        Raises:
            UnknownFunction: A line that is not there.
        """
        trace = tuple(_fixed(rule, names) for rule in self.trace)
        return replace(self, trace=trace, notrace=tuple(_fixed(r, names) for r in self.notrace))

    def select(self, names: SiteNames, *, strict: bool = True) -> Selection:
        """Choose among the sites of a process.

        Args:
            names: All of them: "all functions" is decided here.
            strict: Complain of expressions that mean nothing.

        Raises:
            UnknownFunction: An expression means no function, and no module that is not there.
            BadFilter: ":file:" where `names` knows no sources.
        """
        chosen, unheard = _replay(self.trace, names, strict=strict)
        unwanted, more = _replay(self.notrace, names, strict=strict)
        everything = not chosen and not unheard
        if everything:
            chosen = set(names.usual)
        return Selection(sorted(chosen - unwanted), everything, (*unheard, *more))

    def choose(self, sites: Sequence[Site] | SiteNames) -> list[int]:
        """Indices of the chosen sites, ascending. Raises as `select`."""
        names = sites if isinstance(sites, SiteNames) else SiteNames(sites)
        return self.select(names).indices

    def choose_more(self, names: SiteNames, *, everything: bool) -> list[int]:
        """The same for the sites of modules that have come since; nothing found is no error.

        Args:
            names: The new sites.
            everything: What the selection among the old ones has said.
        """
        chosen, _ = _replay(self.trace, names, strict=False)
        if everything and not chosen:
            chosen = set(names.usual)
        return sorted(chosen - _replay(self.notrace, names, strict=False)[0])

    def read_back(self, names: SiteNames, *, notrace: bool = False) -> list[str]:
        """The lines that ftrace's file shows: a chosen function each, or what none means."""
        rules = self.notrace if notrace else self.trace
        chosen, unheard = _replay(rules, names, strict=False)
        if not chosen and not unheard:
            return [NO_FUNCTIONS if notrace else ALL_FUNCTIONS]
        return [names.listed(i) for i in sorted(chosen)] + list(unheard)

    def lines(self) -> list[str]:
        """The expressions as they were written, and the rest; for people and captures."""
        found = [rule.text for rule in self.trace]
        found += [f"notrace {rule.text}" for rule in self.notrace]
        return found + self.partial()

    def partial(self) -> list[str]:
        """What leaves calls of chosen functions out, for people and captures; empty for nothing."""
        found = [f"thread {text}" for text in self.threads.trace]
        found += [f"notrace thread {text}" for text in self.threads.notrace]
        found += ["follow new threads"] if self.threads.follow else []
        found += [f"one of {self.sample} calls"] if self.sample > 1 else []
        return found


def _fixed(rule: Rule, names: SiteNames) -> Rule:
    if not rule.line:
        return rule
    found = names.matching(rule)
    if not found:
        raise names.unknown(rule)
    return replace(rule, line=0, address=names.sites[found[0]].address)


def _replay(
    rules: Iterable[Rule], names: SiteNames, *, strict: bool
) -> tuple[set[int], tuple[str, ...]]:
    chosen: set[int] = set()
    unheard: list[str] = []
    for rule in rules:
        hits = names.matching(rule)
        if not hits and strict and not names.expects_more(rule):
            raise names.unknown(rule)
        if not hits and not rule.remove:  # its module has gone, or is still to come
            unheard.append(rule.text)
        if rule.remove:
            chosen.difference_update(hits)
        else:
            chosen.update(hits)
    return chosen, tuple(unheard)


def diff(old: Sequence[int], new: Sequence[int]) -> Change:
    """What is to be switched on and off between two selections of the same sites."""
    before, after = set(old), set(new)
    return Change(sorted(after - before), sorted(before - after))
