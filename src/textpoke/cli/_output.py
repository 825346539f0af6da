# SPDX-License-Identifier: Apache-2.0
"""Files that verbs write: whole, or not there; for their owner only, as captures are."""

from __future__ import annotations

import contextlib
import os
import tempfile
from typing import TYPE_CHECKING, BinaryIO

from textpoke._errors import CaptureWrite
from textpoke.cli import _parser

if TYPE_CHECKING:
    from collections.abc import Iterator


def require_another(output: str, *captures: str | None) -> None:
    """Raise UsageError for an output that is one of the captures that are read."""
    if not os.path.exists(output):
        return
    if any(os.path.samefile(output, path) for path in captures if path):
        raise _parser.UsageError(f"{output} is the capture itself: give another name")


@contextlib.contextmanager
def opened(output: str) -> Iterator[BinaryIO]:
    """A file that takes its name when it is whole; what had the name before is there until then.

    Raises:
        CaptureWrite: It cannot be written.
    """
    is_special = os.path.exists(output) and not os.path.isfile(output)
    try:  # a pipe, a device: never replaced
        with open(output, "wb") if is_special else _replaced(output) as file:
            yield file
    except OSError as exc:
        raise CaptureWrite(output, exc.errno or 0) from exc


@contextlib.contextmanager
def _replaced(output: str) -> Iterator[BinaryIO]:
    directory, name = os.path.split(output)
    fd, path = tempfile.mkstemp(prefix=f".{name}.", dir=directory or ".")
    try:
        with open(fd, "wb", buffering=1 << 20) as file:
            yield file
        os.replace(path, output)
    finally:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(path)
