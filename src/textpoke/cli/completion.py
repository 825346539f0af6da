# SPDX-License-Identifier: Apache-2.0
"""`textpoke completion SHELL`: a script for a shell, made from the parsers of all verbs."""

from __future__ import annotations

from typing import TYPE_CHECKING

from textpoke.cli import _parser
from textpoke.optional import needed
from textpoke.tracer_names import TRACERS

if TYPE_CHECKING:
    import argparse

SHELLS = ("bash", "zsh", "fish")
_PIDS = "ps -eo pid="


def add_arguments(parser: _parser.VerbParser) -> None:
    """Add this verb's arguments."""
    parser.add_argument("shell", choices=SHELLS, metavar="SHELL", help=", ".join(SHELLS))
    parser.usage = f"{parser.prog} SHELL [OPTIONS]"
    _parser.examples(
        parser,
        "textpoke completion bash >~/.local/share/bash-completion/completions/textpoke",
        "textpoke completion zsh >~/.zfunc/_textpoke   with fpath+=~/.zfunc before compinit",
        "textpoke completion fish >~/.config/fish/completions/textpoke.fish",
        'eval "$(textpoke completion bash)"            in this shell alone',
    )


def run(args: argparse.Namespace) -> int:
    """Print the script.

    Raises:
        MissingLibrary: What writes it is not installed.
    """
    shtab = needed("shtab", "completion")
    root = _parser.tree()
    fitting: dict[str, object] = {"FILE": shtab.FILE, "PID": shtab.cmd(_PIDS)}
    for parser in _parser.parsers(root).values():
        for action in parser._actions:  # noqa: SLF001 - argparse has no other list of them
            if action.metavar in fitting:
                vars(action)["complete"] = fitting[str(action.metavar)]
            elif action.metavar == "TRACER":
                action.choices = tuple(TRACERS)
    print(shtab.complete(root, shell=args.shell))
    return 0
