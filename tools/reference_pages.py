# SPDX-License-Identifier: Apache-2.0
"""Pages of the documentation that the code itself tells: verbs, reasons for no, errors."""

from __future__ import annotations

import argparse
import inspect
import re
from typing import TYPE_CHECKING

import textpoke
from textpoke import _errors, branches, checks, functions
from textpoke.cli import _parser
from textpoke.tracer_names import TRACERS

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from pathlib import Path


def pages() -> dict[str, str]:
    """Markdown by the page's name, without `.md`."""
    verbs = _parser.parsers(_parser.tree())
    found = {f"verbs/{name}": "\n".join(verb_page(parser)) for name, parser in verbs.items()}
    found["verbs"] = "\n".join(verbs_page(verbs))
    found["refusals"] = "\n".join(refusals_page())
    found["api"] = "\n".join(api_page())
    return found


def write(directory: Path) -> None:
    """Write all pages; what is there and has not changed is left alone."""
    wanted = {directory / f"{name}.md": text + "\n" for name, text in pages().items()}
    for path in directory.rglob("*.md"):
        if path not in wanted:
            path.unlink()
    for path, text in wanted.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        if not path.exists() or path.read_text(encoding="utf-8") != text:
            path.write_text(text, encoding="utf-8")


def verbs_page(verbs: Iterable[str]) -> Iterator[str]:
    yield "# Verbs\n"
    yield "`textpoke VERB --help` prints what these pages hold; both come from the same table.\n"
    yield from _table(
        ("verb", "what it does"),
        ((f"[`{verb}`](verbs/{verb}.md)", _plain(_parser.VERBS[verb])) for verb in verbs),
    )
    yield "\nThe tracers of `record -t` and `switch`:\n"
    yield from _table(
        ("tracer", "what it records"), ((f"`{n}`", _plain(t)) for n, t in TRACERS.items())
    )
    yield "\n```{toctree}\n:hidden:\n"
    yield from (f"verbs/{verb}" for verb in verbs)
    yield "```"


def verb_page(parser: argparse.ArgumentParser) -> Iterator[str]:
    yield f"# {parser.prog}\n"
    yield f"{_plain(parser.description or '')}\n"
    yield f"```text\n{usage(parser)}\n```\n"
    for title, actions in groups(parser):
        yield f"## {title[0].upper()}{title[1:]}\n"
        for action in actions:
            yield ", ".join(f"`{form}`" for form in forms(action))
            yield f": {_plain(help_of(parser, action))}\n"
    if parser.epilog:
        yield f"## Examples\n\n```text\n{examples(parser)}\n```"


def usage(parser: argparse.ArgumentParser) -> str:
    """The line behind "usage:", as `--help` prints it."""
    return " ".join(parser.format_usage().removeprefix("usage: ").split())


def groups(parser: argparse.ArgumentParser) -> Iterator[tuple[str, list[argparse.Action]]]:
    """Title and arguments of every group of a help text that has any."""
    for group in parser._action_groups:
        shown = [a for a in group._group_actions if a.help != argparse.SUPPRESS]
        if shown:
            yield group.title or "options", shown


def forms(action: argparse.Action) -> list[str]:
    """How an argument is written: ["-o FILE", "--output FILE"], ["FILE"]."""
    value = action.metavar or "{" + ",".join(map(str, action.choices or ())) + "}"
    if not action.option_strings:
        return [str(value)]
    return [o if action.nargs == 0 else f"{o} {value}" for o in action.option_strings]


def help_of(parser: argparse.ArgumentParser, action: argparse.Action) -> str:
    """An argument's help, with what stands for its default filled in."""
    return parser._get_formatter()._expand_help(action)


def examples(parser: argparse.ArgumentParser) -> str:
    """The commands at the end of a help text, one a line."""
    lines = (parser.epilog or "").removeprefix("examples:\n").splitlines()
    return "\n".join(line.removeprefix("  ") for line in lines)


def refusals_page() -> Iterator[str]:
    yield "# Every refusal, its reason and its cure\n"
    yield "Made from the tables of the code when these pages are built.\n"
    yield "## A process\n"
    yield "What `textpoke doctor -p PID` looks at, in this order. Exit code 3.\n"
    yield from _table(("check", "refusal", "cure"), _check_rows())
    yield "\n## A function\n"
    yield "Why its entry cannot be patched (`textpoke sites --refused`); more in [](../sites.md).\n"
    yield from (f"- {_plain(text)}" for text in functions.REASONS.values())
    yield "\n## A branch\n"
    yield "Why the `branch` tracer does not count it.\n"
    yield from (f"- {_plain(text)}" for text in branches.REASONS.values())
    yield "\n## Errors\n"
    yield "From Python each is a class with fields; the command line prints its one line.\n"
    yield from _table(("error", "what has happened", "exit code"), _error_rows())


def _check_rows() -> Iterator[tuple[str, str, str]]:
    for name, reason, _ in checks._CHECKS:
        for case, cure in checks.CURES.items():
            if case.partition(" (")[0] == name:
                shown = re.sub(r"{(\w+)}", lambda field: field[1].upper(), cure)
                yield case, f"`{reason}`" if reason else "", _plain(shown)


def _error_rows() -> Iterator[tuple[str, str, str]]:
    for name, cls in vars(_errors).items():
        if inspect.isclass(cls) and issubclass(cls, _errors.TextpokeError):
            first = inspect.getdoc(cls) or ""
            yield f"`{name}`", _plain(first.split("\n\n")[0]), str(cls.exit_code)


def api_page() -> Iterator[str]:
    public = {name: getattr(textpoke, name) for name in textpoke.__all__}
    errors = [n for n, v in public.items() if inspect.isclass(v) and issubclass(v, Exception)]
    classes = [n for n, v in public.items() if inspect.isclass(v) and n not in errors]
    yield "# Python API\n"
    yield f"{(textpoke.__doc__ or '').splitlines()[0]}\n"
    yield "All names are in the module `textpoke`; they load on first use.\n"
    yield "## Functions\n"
    yield from _directives("autofunction", [n for n, v in public.items() if inspect.isfunction(v)])
    yield "## Classes\n"
    yield from _directives("autoclass", classes)
    yield "## Errors\n"
    yield f"```text\n{inspect.cleandoc(_tree_of_errors())}\n```\n"
    yield from _directives("autoexception", errors)


def _directives(directive: str, names: list[str]) -> Iterator[str]:
    yield "```{eval-rst}"
    yield from (f".. {directive}:: textpoke.{name}" for name in names)
    yield "```\n"


def _tree_of_errors() -> str:
    return (_errors.__doc__ or "").split("\n\n")[1]


def _table(head: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> Iterator[str]:
    yield f"| {' | '.join(head)} |"
    yield "|" + "---|" * len(head)
    for row in rows:
        yield f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in row)} |"


def _plain(text: str) -> str:
    """Text that Markdown shows as it is, but for what stands between backticks."""
    parts = " ".join(text.split()).split("`")
    for i in range(0, len(parts), 2):
        for sign in "\\*_<>[]{}$#~":
            parts[i] = parts[i].replace(sign, f"\\{sign}")
    return "`".join(parts)
