# SPDX-License-Identifier: Apache-2.0
"""textual's terminal, for one that may go away: whoever watches a process must still let it go."""

from __future__ import annotations

import contextlib
import threading
from typing import TYPE_CHECKING, Any

from textual.drivers.linux_driver import LinuxDriver

if TYPE_CHECKING:
    from typing import IO


class Terminal(LinuxDriver):
    """Writes to a terminal; when that fails it goes on without, and `gone` is set.

    textual's own thread for output would end with the error, and quitting wait for it for ever.
    """

    gone = threading.Event()

    def __init__(self, *args: Any, **options: Any) -> None:  # noqa: ANN401 - textual's own
        super().__init__(*args, **options)
        self._file: Any = _Output(self._file, self.gone)


class _Output:
    def __init__(self, file: IO[str], gone: threading.Event) -> None:
        self._file = file
        self._gone = gone

    def write(self, text: str) -> None:
        if self._gone.is_set():
            return
        try:
            self._file.write(text)
        except OSError:
            self._gone.set()

    def flush(self) -> None:
        if self._gone.is_set():
            return
        try:
            self._file.flush()
        except OSError:
            self._gone.set()
            with contextlib.suppress(OSError):  # what it still holds goes nowhere
                self._file.flush()

    def fileno(self) -> int:
        return self._file.fileno()
