# SPDX-License-Identifier: Apache-2.0
"""A terminal to drive and to look at: a tmux of our own, with one shell in it."""

from __future__ import annotations

import os
import re
import subprocess
import time
from typing import TYPE_CHECKING, Self

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

PATIENCE_S = 30.0
_PROMPT = "ready> "
_SGR = re.compile(r"\x1b\[([\d;:]*)m")


class Terminal:
    """A context manager; its end kills what runs in it."""

    def __init__(self, directory: Path, size: tuple[int, int]) -> None:
        self._socket = directory / "tmux"
        self._size = size

    def __enter__(self) -> Self:
        columns, rows = map(str, self._size)
        shell = f"env PS1='{_PROMPT}' ENV= HISTFILE= sh"
        self._tmux("-f", "/dev/null", "new-session", "-d", "-x", columns, "-y", rows, shell)
        self.wait_for(_PROMPT.strip())
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """The terminal goes away, as when ssh does."""
        words = ["tmux", "-S", str(self._socket), "kill-server"]
        subprocess.run(words, capture_output=True, check=False, timeout=PATIENCE_S)

    def _tmux(self, *words: str) -> str:
        environment = {**os.environ, "TERM": "xterm-256color", "LC_ALL": "C.UTF-8"}
        done = subprocess.run(
            ["tmux", "-S", str(self._socket), *words],
            capture_output=True,
            text=True,
            check=True,
            timeout=PATIENCE_S,
            env=environment,
        )
        return done.stdout

    def run(self, *words: object) -> None:
        """Have the shell begin a command, on an empty screen."""
        self._tmux("send-keys", "-l", "clear; " + " ".join(map(str, words)))
        self.keys("Enter")

    def keys(self, *names: str) -> None:
        """Press keys, by tmux's names."""
        self._tmux("send-keys", *names)

    def type(self, text: str) -> None:
        self._tmux("send-keys", "-l", text)

    def lines(self, *, colours: bool = False) -> list[str]:
        """What is on the screen."""
        return self._tmux("capture-pane", "-p", *(["-e"] if colours else [])).split("\n")[:-1]

    def reversed(self) -> str:
        """The line that is shown in reverse."""
        for line in self.lines(colours=True):
            first = _SGR.match(line)
            if first and "7" in re.split("[;:]", first[1]):
                return _SGR.sub("", line)
        return ""

    def state(self) -> tuple[str, ...]:
        """What a program may leave behind in a terminal: other screen, no cursor, modes."""
        names = ("alternate_on", "cursor_flag", "insert_flag", "keypad_flag", "mouse_any_flag")
        return tuple(self._tmux("display-message", "-p", f"#{{{name}}}").strip() for name in names)

    def pane_pid(self) -> int:
        """Process id of the shell."""
        return int(self._tmux("display-message", "-p", "#{pane_pid}"))

    def wait_until(self, true: Callable[[], object], what: str) -> None:
        deadline_s = time.monotonic() + PATIENCE_S
        while not true():
            assert time.monotonic() < deadline_s, "\n".join([f"not seen: {what}", *self.lines()])
            time.sleep(0.05)

    def wait_for(self, text: str) -> None:
        self.wait_until(lambda: text in "\n".join(self.lines()), text)

    def answer(self, command: str) -> list[str]:
        """What a command prints, by the shell's next prompt."""
        self.run(command)

        def ended() -> bool:
            shown = [line for line in self.lines() if line]
            return len(shown) > 1 and shown[-1].strip() == _PROMPT.strip()

        self.wait_until(ended, f"the end of {command}")
        return [line for line in self.lines() if line][:-1]
