# SPDX-License-Identifier: Apache-2.0
"""A word on what takes long, for who sits in front of it: a terminal, or a notebook."""

from __future__ import annotations

import contextlib
import sys
import threading
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

QUIET_S = 1.0  # what takes no longer needs no word


def to_somebody() -> Callable[[str], None] | None:
    """What writes to stderr where that is a terminal or a notebook's; else None."""
    stream = sys.stderr
    # A notebook's stream is no terminal; ipykernel's own class has the thread that publishes it.
    if stream is None or not (stream.isatty() or hasattr(stream, "pub_thread")):
        return None

    def say(text: str) -> None:
        print(f"textpoke: {text} ...", file=stream, flush=True)

    return say


@contextlib.contextmanager
def said(
    text: Callable[[], str], say: Callable[[str], None] | None, quiet_s: float = QUIET_S
) -> Iterator[None]:
    """Say what is done, if the block takes longer than `quiet_s`; nobody is told where None is.

    Args:
        text: Asked when it is said.
        say: Told once, by another thread; it has ended when the block has.
        quiet_s: In seconds.
    """
    if say is None:
        yield
        return
    timer = threading.Timer(quiet_s, lambda: say(text()))
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()
        timer.join()
