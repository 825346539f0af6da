# SPDX-License-Identifier: Apache-2.0
"""Options of `record` that the tracer cannot honour: refused, not taken without a word."""

from __future__ import annotations

from typing import TYPE_CHECKING

from textpoke.cli import _parser
from textpoke.tracer_names import GRAPH
from textpoke.tracer_options import WHY_NOT, why_not

if TYPE_CHECKING:
    import argparse

_NAMES = {"arguments": "-A", "result": "-R"}
_USUAL = {"sample": 1}


def require_meaning(args: argparse.Namespace) -> None:
    """Raise UsageError for an option that means nothing with the tracer that is asked for."""
    for option in WHY_NOT:
        value, why = getattr(args, option), why_not(option, args.tracer)
        if why and value and value != _USUAL.get(option):
            name = _NAMES.get(option, "--" + option.replace("_", "-"))
            raise _parser.UsageError(f"{name}: {why}: record without it, or with -t {GRAPH}")
