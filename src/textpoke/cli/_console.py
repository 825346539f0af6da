# SPDX-License-Identifier: Apache-2.0
"""What a user sees: data on stdout, talk on stderr, colours where they are wanted."""

from __future__ import annotations

import json
import os
import sys
from typing import TYPE_CHECKING, TextIO

from textpoke.report.names import escape

if TYPE_CHECKING:
    import argparse

__all__ = ["Console", "escape"]

_SGR = {"bold": "1", "dim": "2", "red": "31", "green": "32", "yellow": "33"}
_CLEAR_TO_END = "\x1b[K"
_FALLBACK_COLUMNS = 80


class Console:
    """Writes to the user; escapes nothing itself: names go through `escape` first.

    Args:
        color: "auto", "always" or "never"; auto heeds NO_COLOR (no-color.org) and TERM=dumb.
        quiet: Say nothing but warnings.
        verbose: How many details to say.
    """

    def __init__(self, *, color: str = "auto", quiet: bool = False, verbose: int = 0) -> None:
        self._color = color
        self.quiet = quiet
        self.verbose = verbose
        self._live = False

    @classmethod
    def from_args(cls, args: argparse.Namespace) -> Console:
        """The console that -q, -v and --color ask for."""
        return cls(color=args.color, quiet=args.quiet, verbose=args.verbose)

    def out(self, text: str) -> None:
        """One line, or several, of data."""
        self.raw(f"{text}\n")

    def raw(self, text: str) -> None:
        """Data as it is, without a line end of its own."""
        self.end_live()
        encoding = sys.stdout.encoding or "utf-8"  # not every terminal's has all letters
        sys.stdout.write(text.encode(encoding, "backslashreplace").decode(encoding))

    def json(self, data: object) -> None:
        """Data as one JSON object."""
        self.raw(json.dumps(data, indent=2, allow_nan=False) + "\n")

    def say(self, text: str) -> None:
        """Talk that -q silences."""
        if not self.quiet:
            self._err(text)

    def detail(self, text: str, level: int = 1) -> None:
        """Talk that takes `level` times -v."""
        if self.verbose >= level:
            self.say(text)

    def warn(self, text: str) -> None:
        """Talk that is never silenced."""
        self._err(f"{self.style('warning:', 'yellow', sys.stderr)} {text}")

    def live(self, text: str) -> None:
        """A line that the next one replaces; only on a terminal, never with -q."""
        if self.quiet or not sys.stderr.isatty():
            return
        sys.stderr.write(f"\r{text[: _terminal_columns() - 1]}{_CLEAR_TO_END}")
        sys.stderr.flush()
        self._live = True

    def end_live(self) -> None:
        """Leave the live line standing and go on below it."""
        if self._live:
            self._live = False
            sys.stderr.write("\n")
            sys.stderr.flush()

    def style(self, text: str, name: str, stream: TextIO | None = None) -> str:
        """The text in a style ("bold", "dim", "red", "green", "yellow") if `stream` shows it."""
        if not self._shows_color(sys.stdout if stream is None else stream):
            return text
        return f"\x1b[{_SGR[name]}m{text}\x1b[0m"

    def _err(self, text: str) -> None:
        self.end_live()
        print(text, file=sys.stderr, flush=True)

    def _shows_color(self, stream: TextIO) -> bool:
        if self._color != "auto":
            return self._color == "always"
        plain = os.environ.get("NO_COLOR") or os.environ.get("TERM") == "dumb"
        return not plain and stream.isatty()


def _terminal_columns() -> int:
    try:
        return os.get_terminal_size(sys.stderr.fileno()).columns or _FALLBACK_COLUMNS
    except (OSError, ValueError):
        return _FALLBACK_COLUMNS
