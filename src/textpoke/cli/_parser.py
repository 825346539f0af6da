# SPDX-License-Identifier: Apache-2.0
"""Arguments: the table of verbs, the arguments that verbs share, and how a verb is started."""

from __future__ import annotations

import argparse
import os
import re
import sys
from typing import TYPE_CHECKING, NoReturn, TypedDict

if TYPE_CHECKING:
    from collections.abc import Sequence
    from types import ModuleType

VERBS = {
    "sites": "list what can be patched in a process, file or command, and why not the rest",
    "record": "trace functions of a process, or of a command, into a capture file",
    "report": "print what a capture holds: calls per function, or ftrace's text lines",
    "top": "watch the functions of a process live: calls, times, quantiles",
    "query": "ask a capture in SQL (DuckDB): one of its own queries, or yours",
    "export": "write a capture as flame graph, for Perfetto, speedscope, pprof, as Parquet",
    "tracers": "list the tracers, or those that a running recording can switch to",
    "switch": "let a running recording go over to another tracer, or pause it",
    "filter": "read or change what a running recording traces",
    "trigger": "let a running recording act when a function is called, or takes too long",
    "instances": "list, add and end recordings beside a running one, each with its own filter",
    "status": "say what is patched in a process",
    "detach": "take everything out of a process again, and prove it",
    "doctor": "say from facts whether a process can be traced, and why not",
    "completion": "print a script that lets a shell complete verbs, options and files",
}

EXIT_USAGE = 2
_USAGE = "textpoke VERB [-p PID | -- CMD ARGS] [OPTIONS]"
_SUMMARY = "Trace functions of running x86-64 programs by patching their code in one batch."
_NS_PER_UNIT = {"ms": 1_000_000, "s": 1_000_000_000, "m": 60_000_000_000}
_MOST_NS = 1 << 62
_DURATION = re.compile(r"(\d+(?:\.\d*)?|\.\d+)([a-z]*)", re.ASCII)
_CLOSE_ENOUGH = 0.6


class _About(TypedDict):
    prog: str
    description: str
    formatter_class: type[argparse.HelpFormatter]
    allow_abbrev: bool


class UsageError(Exception):
    """The command line makes no sense; the message is one line."""


def needs_exits(file: str, option: str) -> UsageError:
    """What to raise where an option is given for a capture of entries alone."""
    return UsageError(
        f"{option} needs exits, and {file} holds none: record with -t function_graph, "
        "and functions that are called"
    )


class VerbParser(argparse.ArgumentParser):
    """Parses the arguments of one verb; raises `UsageError` where argparse would exit.

    Attributes:
        takes_command: True when `-- CMD ARGS` may stand in the place of `-p PID`.
        needs_target: How a target may be named, when one must be; else "".
    """

    takes_command = False
    needs_target = ""

    def error(self, message: str) -> NoReturn:
        """Raise instead of exit: `main` prints one line."""
        raise UsageError(f"{message} (see: {self.prog} --help)")


def run(words: Sequence[str]) -> int:
    """Parse a command line, import the verb's module, run it; returns the exit code.

    Raises:
        UsageError: no such verb, or arguments that do not fit.
    """
    if not words:
        print(_help(), file=sys.stderr)
        return EXIT_USAGE
    first = words[0]
    if first in ("-h", "--help"):
        print(_help())
        return 0
    if first == "--version":
        import textpoke

        print(f"textpoke {textpoke.__version__}")
        return 0
    if first not in VERBS:
        raise UsageError(_no_such_verb(first))
    module = _load(first)
    try:
        args = parse(first, module, words[1:])
    except SystemExit as exc:  # argparse has printed a verb's help
        return exc.code if isinstance(exc.code, int) else 0
    code: int = module.run(args)
    return code


def parse(verb: str, module: ModuleType, words: Sequence[str]) -> argparse.Namespace:
    """The verb's arguments; `args.command` has what stands after `--`.

    Raises:
        UsageError: arguments that do not fit.
    """
    parser = VerbParser(**_about(verb))
    _fill(parser, module)
    words, command = _cut(words)
    args = parser.parse_args(words)
    args.command = command if command is not None else getattr(args, "words", [])
    _check_target(parser, args, command)
    return args


def tree() -> argparse.ArgumentParser:
    """One parser with every verb's as a subparser: for completion and documentation."""
    root = argparse.ArgumentParser(prog="textpoke", usage=_USAGE, description=_SUMMARY)
    root.add_argument("--version", action="store_true", help="show the version")
    verbs = root.add_subparsers(metavar="VERB", parser_class=VerbParser)
    for verb, text in VERBS.items():
        _fill(verbs.add_parser(verb, help=text, **_about(verb)), _load(verb))
    return root


def parsers(root: argparse.ArgumentParser) -> dict[str, VerbParser]:
    """The verbs of a `tree`, by name."""
    found: dict[str, VerbParser] = {}
    for action in root._actions:  # noqa: SLF001 - argparse has no other list of them
        if isinstance(action, argparse._SubParsersAction):  # noqa: SLF001 - nor another name for it
            found.update(action.choices)
    return found


def _about(verb: str) -> _About:
    return {
        "prog": f"textpoke {verb}",
        "description": VERBS[verb][0].upper() + VERBS[verb][1:] + ".",
        "formatter_class": argparse.RawDescriptionHelpFormatter,
        "allow_abbrev": False,
    }


def _fill(parser: VerbParser, module: ModuleType) -> None:
    module.add_arguments(parser)
    _add_common(parser)


def _load(verb: str) -> ModuleType:
    import importlib

    return importlib.import_module(f"textpoke.cli.{verb}")


def _help() -> str:
    width = max(map(len, VERBS))
    verbs = "\n".join(f"  {name:<{width}}  {text}" for name, text in VERBS.items())
    return (
        f"usage: {_USAGE}\n\n"
        f"{_SUMMARY}\n\n"
        f"verbs:\n{verbs}\n\n"
        "options:\n  -h, --help  show this, or after a verb its arguments and examples\n"
        "  --version   show the version\n\n"
        "examples:\n  textpoke record -p 1234 -i 'redis!*Command' -d 2s\n"
        "  textpoke report redis-server-1234.tptrace"
    )


def _no_such_verb(word: str) -> str:
    if word.startswith("-"):
        return f"the verb comes first: {_USAGE} (see: textpoke --help)"
    import difflib

    near = difflib.get_close_matches(word, VERBS, n=1, cutoff=_CLOSE_ENOUGH)
    hint = f"did you mean {near[0]!r}?" if near else f"verbs are: {', '.join(VERBS)}"
    return f"no verb {word!r}; {hint}"


def _cut(words: Sequence[str]) -> tuple[Sequence[str], list[str] | None]:
    if "--" not in words:
        return words, None
    place = words.index("--")
    return words[:place], list(words[place + 1 :])


def _check_target(parser: VerbParser, args: argparse.Namespace, command: list[str] | None) -> None:
    if command is not None and not parser.takes_command:
        parser.error("this verb takes no command after --")
    if command == []:
        parser.error("a command must follow --")
    pid, file = getattr(args, "pid", None), getattr(args, "file", None)
    word = (args.command[0] if command is None and len(args.command) == 1 else file) or ""
    if hasattr(args, "pid") and word.isdecimal() and not os.path.exists(word):
        parser.error(f"no such file: {word!r}; did you mean -p {word}?")
    targets = [pid is not None, bool(args.command), file is not None]
    if sum(targets) > 1:
        parser.error("more than one target: give one of -p PID, a command, a file")
    if parser.needs_target and not any(targets):
        parser.error(f"no target: give {parser.needs_target}")


def _add_common(parser: argparse.ArgumentParser) -> None:
    talk = parser.add_argument_group("talk")
    talk.add_argument(
        "-v", "--verbose", action="count", default=0, help="say more; twice for still more"
    )
    talk.add_argument("-q", "--quiet", action="store_true", help="say nothing but errors")
    talk.add_argument(
        "--color",
        choices=("auto", "always", "never"),
        default="auto",
        help="colours: auto for terminals only, and not where NO_COLOR is set (default: auto)",
    )


def examples(parser: argparse.ArgumentParser, *lines: str) -> None:
    """Put examples, one command a line, at the end of a verb's help."""
    parser.epilog = "examples:\n" + "\n".join(f"  {line}" for line in lines)


def add_target(
    parser: VerbParser, *, command: bool = True, file: bool = False, required: bool = True
) -> None:
    """Add the ways to name one target.

    These are `-p/--pid PID` (`args.pid`, None when absent), `-- CMD ARGS` (`args.command`, a
    list) and `FILE` (`args.file`, None when absent).

    Args:
        parser: The verb's.
        command: Whether a command may be the target; the `--` may be left out without `file`.
        file: Whether a file may be the target.
        required: Whether a target must be named.
    """
    ways = ["-p PID", *(["FILE"] if file else []), *(["-- CMD ARGS"] if command else [])]
    parser.takes_command = command
    parser.needs_target = " or ".join(ways) if required else ""
    parser.usage = f"{parser.prog} [{' | '.join(ways)}] [OPTIONS]"
    parser.add_argument("-p", "--pid", type=_pid, metavar="PID", help="the process")
    if file:
        text = "a program or library; addresses are the file's"
        parser.add_argument("file", nargs="?", metavar="FILE", help=text)
    elif command:
        parser.add_argument("words", nargs=argparse.REMAINDER, help=argparse.SUPPRESS)


def add_filters(parser: argparse.ArgumentParser) -> None:
    """Add `-i` and `-x`: `args.include` and `args.exclude`, lists of 'MODULE!GLOB'."""
    text = "'GLOB' or 'MODULE!GLOB', may be repeated"
    for option, name in (("-i", "include"), ("-x", "exclude")):
        parser.add_argument(
            option,
            f"--{name}",
            action="append",
            default=[],
            metavar="PATTERN",
            help=f"{name} these functions: {text}" + ("; wins over -i" if option == "-x" else ""),
        )


def add_everything(parser: argparse.ArgumentParser) -> None:
    """Add `-a/--all-functions` (`args.everything`) and `--traps` (`args.traps`)."""
    parser.add_argument(
        "-a",
        "--all-functions",
        dest="everything",
        action="store_true",
        help="functions without NOPs too, where a module was compiled for tracing",
    )
    parser.add_argument(
        "--traps",
        action="store_true",
        help="an int3 may stay where nothing else is possible: some 2.5 us for every call there",
    )


def add_views(parser: argparse.ArgumentParser) -> None:
    """Add `--perf-map` (`args.perf_map`) and `--gdb` (`args.gdb`, None when absent)."""
    views = parser.add_argument_group("for other tools")
    views.add_argument(
        "--perf-map",
        action="store_true",
        help="name our code for perf, in /tmp/perf-PID.map as the target sees it",
    )
    views.add_argument(
        "--gdb",
        metavar="FILE",
        help="name our code for gdb, with unwind rows: an object for add-symbol-file",
    )


def add_duration(parser: argparse.ArgumentParser) -> None:
    """Add `-d/--duration`: `args.duration_ns`, None when absent."""
    parser.add_argument(
        "-d",
        "--duration",
        dest="duration_ns",
        type=duration_ns,
        metavar="TIME",
        help="stop after this time, as in 500ms, 2s, 1.5m (default: until Ctrl-C)",
    )


def add_output(parser: argparse.ArgumentParser, default: str) -> None:
    """Add `-o/--output` (`args.output`, None when absent) and `-f/--force`."""
    parser.add_argument("-o", "--output", metavar="FILE", help=f"file to write ({default})")
    parser.add_argument("-f", "--force", action="store_true", help="overwrite an existing file")


def add_json(parser: argparse._ActionsContainer) -> None:
    """Add `--json`: `args.json`."""
    parser.add_argument("--json", action="store_true", help="print one JSON object")


def duration_ns(text: str) -> int:
    """Nanoseconds from "500ms", "2s" or "1.5m".

    Raises:
        argparse.ArgumentTypeError: anything else; says which units there are.
    """
    match = _DURATION.fullmatch(text)
    number, unit = match.groups() if match else ("", "")
    if number and not unit:
        raise argparse.ArgumentTypeError(
            f"{text!r} has no unit: write {text}ms, {text}s or {text}m"
        )
    if unit not in _NS_PER_UNIT:
        raise argparse.ArgumentTypeError(f"{text!r} is not a time: write 500ms, 2s or 1.5m")
    nanoseconds = float(number) * _NS_PER_UNIT[unit]
    if not 1 <= nanoseconds < _MOST_NS:
        raise argparse.ArgumentTypeError(f"{text!r} is not a sensible time")
    return round(nanoseconds)


def span_ns(text: str) -> int:
    """Nanoseconds from "100us", "5ms" or whatever `duration_ns` takes.

    Raises:
        argparse.ArgumentTypeError: anything else.
    """
    number = text[:-2]
    if text[-2:] in ("ns", "us") and number.isascii() and number.isdecimal():
        return int(number) * (1 if text[-2:] == "ns" else 1000)
    return duration_ns(text)


def positive(text: str) -> int:
    """A whole number from 1 up.

    Raises:
        argparse.ArgumentTypeError: anything else.
    """
    if not (text.isascii() and text.isdecimal() and len(text) < 10 and int(text)):
        raise argparse.ArgumentTypeError(f"{text!r} is not a number from 1 up")
    return int(text)


def _pid(text: str) -> int:
    try:
        return positive(text)
    except argparse.ArgumentTypeError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a process id") from None
