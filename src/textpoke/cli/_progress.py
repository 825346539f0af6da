# SPDX-License-Identifier: Apache-2.0
"""How far a verb has come that reads a capture's calls."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

    from textpoke.cli._console import Console

_LIVE_S = 0.25
_QUIET_S = 1.0  # what takes no longer needs no progress


def of_calls(console: Console) -> Callable[[int], None]:
    """What is to be told how many calls were read since the last time."""
    began = shown = time.monotonic()
    done = 0

    def tell(calls: int) -> None:
        nonlocal done, shown
        done += calls
        now = time.monotonic()
        if now - began > _QUIET_S and now - shown > _LIVE_S:
            shown = now
            console.live(f"{done:,} calls, {done / (now - began):,.0f}/s")

    return tell
