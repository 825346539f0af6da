# SPDX-License-Identifier: Apache-2.0
"""Options of `record` that a tracer cannot honour: refused, not taken without a word."""

from __future__ import annotations

from typing import TYPE_CHECKING

from textpoke.cli import _parser
from textpoke.tracer_names import BRANCH, FUNCTION, GRAPH, IRQSOFF, NOP, PROFILE, WAKEUP

if TYPE_CHECKING:
    import argparse

_NO_RETURNS = "sees no returns"
_EVERY_CALL = "pairs calls with each other, so it needs all of them"
_COUNTS = "counts in the target whatever thread calls, and writes no events"
_NOTHING = "records nothing"
_PAIRING = {WAKEUP: _EVERY_CALL, IRQSOFF: _EVERY_CALL, NOP: _NOTHING}
_COUNTING = {PROFILE: _COUNTS, BRANCH: _COUNTS}

_WHY_NOT = {
    "threshold": {FUNCTION: _NO_RETURNS, **_COUNTING, **_PAIRING, BRANCH: _NO_RETURNS},
    "depth": {FUNCTION: _NO_RETURNS, BRANCH: _NO_RETURNS, **_PAIRING},
    "sample": {**_COUNTING, **_PAIRING},
    "thread": _COUNTING,
    "no_thread": _COUNTING,
    "arguments": {**_COUNTING, NOP: _NOTHING},
    "result": {FUNCTION: _NO_RETURNS, **_COUNTING, NOP: _NOTHING},
    "overwrite": _COUNTING,
    "flight": _COUNTING,
    "budget": _COUNTING,
}
_NAMES = {"arguments": "-A", "result": "-R"}
_USUAL = {"sample": 1}


def require_meaning(args: argparse.Namespace) -> None:
    """Raise UsageError for an option that means nothing with the tracer that is asked for."""
    for option, why_not in _WHY_NOT.items():
        value = getattr(args, option)
        why = why_not.get(args.tracer)
        if why and value and value != _USUAL.get(option):
            name = _NAMES.get(option, "--" + option.replace("_", "-"))
            raise _parser.UsageError(
                f"{name}: the {args.tracer} tracer {why}: record without it, or with -t {GRAPH}"
            )
