# SPDX-License-Identifier: Apache-2.0
"""`%%textpoke` in Jupyter and IPython: trace the native functions that a cell runs."""

from __future__ import annotations

import argparse
import shlex
from typing import TYPE_CHECKING, Any

from textpoke._errors import TextpokeError
from textpoke.own_process import trace
from textpoke.tracer_names import FUNCTION, GRAPH

if TYPE_CHECKING:
    from typing import NoReturn

    from textpoke.own_process import OwnTrace

_HELP = """
Trace the native functions that this cell runs, and show which line led to which of them.

    %%textpoke -m numpy
    a @ a
"""


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        """Raise instead of ending the kernel."""
        raise ValueError(message)


def _parser() -> _Parser:
    made = _Parser(prog="%%textpoke", description=_HELP, add_help=False)
    made.add_argument("include", nargs="*", help="'GLOB' or 'MODULE!GLOB'")
    made.add_argument("-m", "--module", action="append", default=[], help="a package: numpy")
    made.add_argument("-x", "--exclude", action="append", default=[], help="not these functions")
    made.add_argument("-t", "--tracer", choices=(FUNCTION, GRAPH), default=GRAPH)
    made.add_argument("-o", "--out", default="", help="name of a variable for the result")
    made.add_argument("--no-lines", action="store_true", help="do not note lines of Python")
    return made


def run_cell(shell: Any, words: str, cell: str) -> OwnTrace | None:  # noqa: ANN401 - IPython's
    """What the magic does; the result is what the notebook shows.

    Args:
        shell: IPython's InteractiveShell.
        words: What stands behind `%%textpoke`.
        cell: The code.
    """
    try:
        args = _parser().parse_args(shlex.split(words))
        made = trace(
            args.include,
            args.exclude,
            modules=args.module,
            tracer=args.tracer,
            lines=not args.no_lines,
        )
        with made:
            result = shell.run_cell(cell)
    except (TextpokeError, ValueError) as exc:
        print(f"textpoke: error: {exc}")  # noqa: T201 - what a cell shows
        return None
    if args.out:
        shell.user_ns[args.out] = made
    result.raise_error()
    return made


def load(shell: Any) -> None:  # noqa: ANN401 - IPython's
    """`%load_ext textpoke`."""

    def magic(words: str, cell: str) -> OwnTrace | None:
        return run_cell(shell, words, cell)

    magic.__doc__ = _HELP
    shell.register_magic_function(magic, "cell", "textpoke")
