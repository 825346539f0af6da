# SPDX-License-Identifier: Apache-2.0
"""Options that a tracer cannot honour, and why: refused or at rest, not taken without a word."""

from __future__ import annotations

from textpoke.tracer_names import BRANCH, FUNCTION, IRQSOFF, NOP, PROFILE, WAKEUP

_NO_RETURNS = "sees no returns"
_EVERY_CALL = "pairs calls with each other, so it needs all of them"
_COUNTS = "counts in the target whatever thread calls, and writes no events"
_NOTHING = "records nothing"
_PAIRING = {WAKEUP: _EVERY_CALL, IRQSOFF: _EVERY_CALL, NOP: _NOTHING}
_COUNTING = {PROFILE: _COUNTS, BRANCH: _COUNTS}

WHY_NOT = {
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
"""By option, as `record` names it, and tracer: what that tracer does instead."""


def why_not(option: str, tracer: str) -> str:
    """Why an option of WHY_NOT means nothing with a tracer; "" where it has a meaning."""
    why = WHY_NOT[option].get(tracer)
    return f"the {tracer} tracer {why}" if why else ""
