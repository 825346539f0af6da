# SPDX-License-Identifier: Apache-2.0
"""Names that came from a target or a file, made safe to show on a terminal."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from textpoke.capture import Capture

NAME_WIDTH = 16
TID_WIDTH = 7
"""Of a thread's label in columns."""


def escape(text: str) -> str:
    """The text with everything that does not print (controls, bidi marks, ...) escaped."""
    if text.isprintable():
        return text
    return "".join(char if char.isprintable() else _escaped(char) for char in text)


def encodable(text: str) -> str:
    """The text without what UTF-8 cannot hold: lone surrogates become question marks."""
    return text.encode("utf-8", "replace").decode()


def file_name(text: str) -> str:
    """The text as a file name that is easy to type: nothing that does not print, no directory."""
    safe = "".join(char if char.isprintable() and char != "/" else "_" for char in text)
    return safe.lstrip("-.") or "process"


def _escaped(char: str) -> str:
    code = ord(char)
    if code <= 0xFF:
        return f"\\x{code:02x}"
    return f"\\u{code:04x}" if code <= 0xFFFF else f"\\U{code:08x}"


def thread_label(capture: Capture, tid: int) -> str:
    """A thread as ftrace writes it: `NAME-TID`, with `<...>` for a name that nobody knows."""
    return f"{escape(capture.threads.get(tid, '<...>'))}-{tid}"


def site_label(capture: Capture, site: int) -> str:
    """A site as `MODULE!FUNCTION`, "[unknown]" for -1."""
    if site < 0:
        return "[unknown]"
    name = capture.meta.sites[site]
    return escape(f"{name.module}!{name.function}")


def program_name(capture: Capture) -> str:
    """The name of the target's program."""
    return escape(capture.meta.program or "?")


def padded_label(capture: Capture, tid: int) -> str:
    """The same in columns, 25 wide unless the name is long."""
    name, _, number = thread_label(capture, tid).rpartition("-")
    return f"{name:>{NAME_WIDTH}}-{number:<{TID_WIDTH}} "


def function_labels(capture: Capture) -> list[str]:
    """By site index, functions outside of the main program with their module in brackets.

    One more at the end, for what index -1 finds.
    """
    main = program_name(capture)
    functions = [
        escape(site.function if site.module == main else f"{site.function} [{site.module}]")
        for site in capture.meta.sites
    ]
    return [*functions, "[unknown]"]
