# SPDX-License-Identifier: Apache-2.0
"""Arguments and return values: what -A and -R ask for becomes programs for the agent.

`parse` reads a request (docs/tracing.md has the language), a `Resolver` makes of it one program for
each chosen function: operations that native/agent/capture.c runs, and the layout of the words that
they give. Types come from DWARF; without it there are the positions of the System V ABI.
"""

from __future__ import annotations

import contextlib
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from textpoke._arguments_parse import Spec, parse
from textpoke._arguments_show import Field, field_of, shown
from textpoke._arguments_value import At, Operand, Scope
from textpoke._errors import ArgumentSpec, BadElf, ModuleUnavailable, UnknownFunction
from textpoke._native import ffi, lib
from textpoke.dwarf_functions import Functions
from textpoke.dwarf_types import Kind
from textpoke.patterns import Pattern

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

    from textpoke.dwarf_functions import Function
    from textpoke.model import Module, Site

    Layout = tuple[tuple[str, str], ...]
    """Name and kind of each value, as docs/formats.md has them."""

__all__ = ["CaptureProgram", "Captures", "Resolver", "Spec", "parse"]

OP_BYTES = ffi.sizeof("struct tp_capture_op")
MOST_WORDS: int = lib.TP_CAPTURE_MOST_WORDS
MOST_OPS: int = lib.TP_CAPTURE_MOST_OPS
_FEW_MEMBERS = 4
"""A struct passed by value is shown by its members when it has no more."""
_RETVAL = "retval"


@dataclass(frozen=True, slots=True)
class CaptureProgram:
    """What to capture at one function.

    Attributes:
        entry_ops: Array of struct tp_capture_op to run when it is entered.
        exit_ops: The same when it returns.
        entry_layout: Name and kind of each value that `entry_ops` give, in order.
        exit_layout: Of `exit_ops`.
        enums: Labels of the enumerations that the layouts name, by value.
        notes: What was asked for in general and cannot be captured here, and why.
    """

    entry_ops: bytes = b""
    exit_ops: bytes = b""
    entry_layout: Layout = ()
    exit_layout: Layout = ()
    enums: Mapping[str, Mapping[int, str]] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    @property
    def entry_words(self) -> int:
        """Words that `entry_ops` give."""
        return sum(map(_words_of, self.entry_layout))

    @property
    def exit_words(self) -> int:
        """Words that `exit_ops` give."""
        return sum(map(_words_of, self.exit_layout))


@dataclass(frozen=True, slots=True)
class Captures:
    """The programs of all chosen functions, by the address of their sites."""

    programs: Mapping[int, CaptureProgram]
    enums: Mapping[str, Mapping[int, str]]
    notes: tuple[str, ...]


class Resolver:
    """Makes programs; each module is read once.

    Args:
        open_path: Gives the path by which a module's file can be read; raises ModuleUnavailable.
    """

    def __init__(self, open_path: Callable[[Module], str] = lambda module: module.path) -> None:
        self._open_path = open_path
        self._modules: dict[tuple[str, int, int], tuple[Functions | None, str]] = {}
        self._enums: dict[str, dict[int, str]] = {}

    def program(self, spec: Spec, site: Site, module: Module) -> CaptureProgram:
        """The program of one function, whether or not the pattern of `spec` chooses it.

        Raises:
            ArgumentSpec: What was asked for cannot be captured there.
        """
        function, why = self._function(site, module)
        notes: list[str] = []
        try:
            scope = Scope(spec, function, why)
            fields = list(_fields(scope, notes))
            kinds = [self._kind(one) for one in fields]
        except BadElf as exc:
            raise spec.error(0, f"{site}: {exc.problem}") from exc
        ops = b"".join(one.op for one in fields)
        layout = tuple(zip([one.name for one in fields], kinds, strict=True))
        whole = CaptureProgram(
            exit_ops=ops if spec.returns else b"",
            entry_ops=b"" if spec.returns else ops,
            exit_layout=layout if spec.returns else (),
            entry_layout=() if spec.returns else layout,
            enums={n: self._enums[n] for n in map(_enum_name, kinds) if n},
            notes=tuple(notes),
        )
        _require_room(spec, whole)
        return whole

    def programs(
        self,
        specs: Sequence[Spec],
        sites: Iterable[Site],
        modules: Iterable[Module],
        *,
        strict: bool = True,
    ) -> Captures:
        """The programs of the functions that the patterns of `specs` choose among `sites`.

        Of a pattern with wildcards those functions are left out, with a note, where nothing can
        be captured; there must be one where it can. A pattern for a module that is not there
        waits for it.

        Args:
            specs: What is asked for.
            sites: The functions.
            modules: What is mapped now.
            strict: Complain where nothing is found. Without: of functions that come to others.

        Raises:
            ArgumentSpec: What was asked for cannot be captured anywhere.
            UnknownFunction: A pattern chooses none of the sites.
        """
        sites, modules = list(sites), list(modules)
        found: dict[int, CaptureProgram] = {}
        notes: dict[str, list[Site]] = {}
        for spec in specs:
            pattern = Pattern(spec.pattern)
            chosen = [site for site in sites if pattern.matches(site)]
            if not chosen and strict and not _may_come(pattern, modules):
                raise UnknownFunction(spec.pattern, pattern.close_names(sites), "is traced")
            failures: list[ArgumentSpec] = []
            for site in chosen:
                try:
                    one = self.program(spec, site, _module_of(site, modules))
                    before = found.get(site.address)
                    found[site.address] = _joined(spec, before, one) if before else one
                    for note in one.notes:
                        notes.setdefault(note, []).append(site)
                except ArgumentSpec as exc:
                    failures.append(exc)
                    notes.setdefault(exc.problem, []).append(site)
            if failures and strict and len(failures) == len(chosen):
                raise failures[0]
        return Captures(found, dict(self._enums), tuple(_gathered(notes)))

    def _function(self, site: Site, module: Module) -> tuple[Function | None, str]:
        """The DWARF of a function, or why there is none."""
        if site.source == "plt":
            return None, "it is a call through the linkage table"
        functions, why = self._functions(module)
        if functions is None:
            return None, why
        try:
            found = functions.at(site.entry - module.bias, site.symbol)
        except BadElf as exc:
            return None, f"{module.name}: {exc.problem}"
        if found is None:
            problem = functions.problem or "its debug information does not have this function"
            return None, f"{module.name}: {problem}"
        return found, ""

    def _functions(self, module: Module) -> tuple[Functions | None, str]:
        if module.key not in self._modules:
            try:
                self._modules[module.key] = Functions(self._open_path(module), module.path), ""
            except ModuleUnavailable as exc:
                self._modules[module.key] = None, f"{module.name}: {exc.reason}"
            except BadElf as exc:
                self._modules[module.key] = None, f"{module.name}: {exc.problem}"
        return self._modules[module.key]

    def _kind(self, one: Field) -> str:
        """The kind as layouts have it: enumerations get names, each of its own."""
        if one.labels is None:
            return one.kind
        labels = one.labels.labels
        plain = one.labels.name or one.labels.own_name or "enum"
        name, number = plain, 1
        while self._enums.setdefault(name, labels) != labels:
            number += 1
            name = f"{plain}#{number}"
        return one.kind.replace("::", f":{name}:")


def _gathered(notes: Mapping[str, Sequence[Site]]) -> Iterator[str]:
    """One line for what several functions have in common."""
    for note, sites in notes.items():
        others = f" and {len(sites) - 1} more" if len(sites) > 1 else ""
        yield f"{sites[0]}{others}: {note}"


def _fields(scope: Scope, notes: list[str]) -> Iterator[Field]:
    spec = scope.spec
    if spec.values is not None:
        yield from _distinct(field_of(scope, value) for value in spec.values)
    elif spec.returns:
        yield from _of_return(scope, notes)
    else:
        yield from _of_all_parameters(scope, notes)


def _distinct(fields: Iterable[Field]) -> Iterator[Field]:
    """Fields with names of their own: reports show them by name."""
    taken: set[str] = set()
    for one in fields:
        name, number = one.name, 1
        while name in taken:
            number += 1
            name = f"{one.name}#{number}"
        taken.add(name)
        yield Field(name, one.kind, one.op, one.words, one.labels)


def _of_return(scope: Scope, notes: list[str]) -> Iterator[Field]:
    fmt = scope.spec.format
    column = fmt.column if fmt else 0
    function = scope.function
    if function and function.returns.kind is Kind.VOID and fmt is None:
        notes.append("it returns nothing")
        return
    operand = scope.returned(column, fmt)
    if fmt or operand.type.kind is not Kind.RECORD or not isinstance(operand.place, At):
        yield from _of_operand(scope, operand, _RETVAL, column)
        return
    try:
        yield shown(scope, operand, _RETVAL, None, column)
    except ArgumentSpec:
        # Where the caller wanted it to be; retval.MEMBER looks inside.
        address = replace(operand.place, address=True)
        yield shown(scope, Operand(operand.type, address, typed=False), _RETVAL, None, column)


def _of_all_parameters(scope: Scope, notes: list[str]) -> Iterator[Field]:
    function = scope.function
    column = len(scope.spec.pattern)
    if function is None:
        why = scope.why_untyped or "there is no debug information"
        scope.fail(column, f"{why}: name positions, as in {scope.spec.pattern}(arg1, arg2/s)")
    room, ops = MOST_WORDS, MOST_OPS
    for index, parameter in enumerate(function.parameters):
        try:
            found = list(_of_operand(scope, scope.parameter(index, 0), parameter.name, 0))
        except ArgumentSpec as exc:
            notes.append(f"{parameter.name} is left out: {exc.problem}")
            continue
        words = sum(one.words for one in found)
        if words > room or len(found) > ops:
            notes.append(f"{parameter.name} is left out: more than {MOST_WORDS} words together")
            continue
        room, ops = room - words, ops - len(found)
        yield from found


def _of_operand(scope: Scope, operand: Operand, name: str, column: int) -> Iterator[Field]:
    """What shows a value by its type: a small struct by its members."""
    fmt = scope.spec.format
    try:
        yield shown(scope, operand, name, fmt, column)
    except ArgumentSpec:
        members = [m for m in operand.type.members if m.name] if operand.typed else []
        if fmt or not 0 < len(members) <= _FEW_MEMBERS:
            raise
        parts: list[Field] = []
        for member in members:
            with contextlib.suppress(ArgumentSpec):
                part = scope.member(operand, member.name, column)
                parts.append(shown(scope, part, f"{name}.{member.name}", None, column))
        if not parts:
            raise
        yield from parts


def _joined(spec: Spec, one: CaptureProgram, other: CaptureProgram) -> CaptureProgram:
    """Two programs of one function as one."""
    joined = CaptureProgram(
        one.entry_ops + other.entry_ops,
        one.exit_ops + other.exit_ops,
        _renamed(one.entry_layout + other.entry_layout),
        _renamed(one.exit_layout + other.exit_layout),
        {**one.enums, **other.enums},
        one.notes + other.notes,
    )
    _require_room(spec, joined)
    return joined


def _renamed(layout: Layout) -> Layout:
    fields = _distinct(Field(name, kind, b"") for name, kind in layout)
    return tuple((one.name, one.kind) for one in fields)


def _require_room(spec: Spec, program: CaptureProgram) -> None:
    words = max(program.entry_words, program.exit_words)
    if words > MOST_WORDS:
        raise spec.error(0, f"{words} words of values, {MOST_WORDS} at most: shorten strings")
    ops = max(len(program.entry_ops), len(program.exit_ops)) // OP_BYTES
    if ops > MOST_OPS:
        raise spec.error(0, f"{ops} values at one function, {MOST_OPS} at most")


def _words_of(row: tuple[str, str]) -> int:
    kind = row[1]
    return int(kind.removeprefix("str:")) if kind.startswith("str:") else 1


def _enum_name(kind: str) -> str:
    return kind.removeprefix("enum:").rpartition(":")[0] if kind.startswith("enum:") else ""


def _may_come(pattern: Pattern, modules: Iterable[Module]) -> bool:
    """Tell whether a pattern is for a module that is not there."""
    there = any(pattern.matches_module(module.name) for module in modules)
    return pattern.names_module and not there


def _module_of(site: Site, modules: Iterable[Module]) -> Module:
    bias = site.address - site.vaddr
    for module in modules:
        if module.name == site.module and module.bias == bias:
            return module
    raise UnknownFunction(str(site))
