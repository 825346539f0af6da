# SPDX-License-Identifier: Apache-2.0
"""Print textpoke.1, made from the parsers of all verbs.

argparse-manpage would do, but loses lines that begin with a quote and fills the examples.
"""

from __future__ import annotations

import datetime as dt
import textwrap
from typing import TYPE_CHECKING

from reference_pages import examples, forms, groups, help_of, usage

import textpoke
from textpoke.cli import _parser
from textpoke.tracer_names import TRACERS

if TYPE_CHECKING:
    import argparse
    from collections.abc import Iterator

EXIT_CODES = {
    "0": "done",
    "1": "failed",
    "2": "the command line makes no sense",
    "3": "the target cannot be traced; textpoke doctor -p PID says why",
    "130": "interrupted",
}
ENVIRONMENT = {
    "NO_COLOR": "no colours, when it is set and --color does not say otherwise",
    "TEXTPOKE_CACHE": '"off": surveys of modules are not kept',
    "XDG_CACHE_HOME": "where surveys are kept, in a directory textpoke",
    "XDG_RUNTIME_DIR": "where the control socket of a recording is, in a directory textpoke",
}


def manpage() -> Iterator[str]:
    root = _parser.tree()
    today = dt.datetime.now(dt.UTC).date()
    yield f'.TH TEXTPOKE 1 "{today}" "textpoke {textpoke.__version__}" "User Commands"'
    yield ".SH NAME"
    yield "textpoke \\- ftrace for user space"
    yield ".SH SYNOPSIS"
    yield filled(usage(root))
    yield ".SH DESCRIPTION"
    yield filled(root.description or "")
    yield ".SH VERBS"
    for parser in _parser.parsers(root).values():
        yield from verb(parser)
    yield ".SH TRACERS"
    yield from tagged(TRACERS)
    yield ".SH EXIT STATUS"
    yield from tagged(EXIT_CODES)
    yield ".PP"
    yield filled("record -- CMD returns the exit status of CMD.")
    yield ".SH ENVIRONMENT"
    yield from tagged(ENVIRONMENT)
    yield ".SH SEE ALSO"
    yield ".BR perf (1),\n.BR gdb (1),\n.BR ptrace (2)"


def verb(parser: argparse.ArgumentParser) -> Iterator[str]:
    yield f".SS {text(parser.prog)}"
    yield filled(usage(parser))
    yield ".PP"
    yield filled(parser.description or "")
    for title, actions in groups(parser):
        yield f".PP\n{text(title[0].upper() + title[1:])}:"
        yield from tagged({", ".join(forms(a)): help_of(parser, a) for a in actions})
    if parser.epilog:
        yield ".PP\nExamples:\n.PP\n.nf\n.RS"
        yield from map(text, examples(parser).splitlines())
        yield ".RE\n.fi"


def tagged(rows: dict[str, str]) -> Iterator[str]:
    for tag, words in rows.items():
        yield f".TP\n.B {text(tag)}\n{filled(words)}"


def filled(words: str) -> str:
    return "\n".join(map(text, textwrap.wrap(words, 70, break_on_hyphens=False)))


def text(words: str) -> str:
    """Words that troff shows as they are: no escapes, dashes that can be pasted, no requests."""
    shown = words.replace("\\", "\\e").replace("-", "\\-").replace('"', "\\(dq")
    shown = shown.replace("'", "\\(aq").replace("`", "\\(ga")
    return f"\\&{shown}" if shown.startswith(".") else shown


if __name__ == "__main__":
    print("\n".join(manpage()))
