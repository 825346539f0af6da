# SPDX-License-Identifier: Apache-2.0
"""Watch a process's memory map while it is patched: nothing may be writable and executable."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Self

if TYPE_CHECKING:
    from types import TracebackType

_SELDOM_S = 0.05
_OFTEN_S = 0.0005


class MapsWatch:
    """Reads proc/PID/maps again and again on a thread of its own; a context manager.

    Args:
        pid: The process.
        text: Addresses [start, end) of its code: may not even be writable without being executable.

    Attributes:
        samples: Looks so far.
        bad: Lines of mappings that were writable and executable, or writable code.
    """

    def __init__(self, pid: int, text: tuple[int, int]) -> None:
        self.samples = 0
        self.bad: set[str] = set()
        self._path = f"/proc/{pid}/maps"
        self._text = text
        self._pause_s = _SELDOM_S
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="watch", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._stop.set()
        self._thread.join()

    def look_often(self, *, often: bool) -> None:
        """Look all the time instead of now and then; disturbs what is being timed."""
        self._pause_s = _OFTEN_S if often else _SELDOM_S

    def _run(self) -> None:
        while not self._stop.wait(self._pause_s):
            try:
                with open(self._path, encoding="utf-8", errors="replace") as file:
                    lines = file.read().splitlines()
            except OSError:
                return
            self.bad.update(filter(self._is_bad, lines))
            self.samples += bool(lines)

    def _is_bad(self, line: str) -> bool:
        span, perms = line.split()[:2]
        if "w" not in perms:
            return False
        start, end = (int(word, 16) for word in span.split("-"))
        return "x" in perms or (start < self._text[1] and end > self._text[0])
