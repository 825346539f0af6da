# SPDX-License-Identifier: Apache-2.0
"""Folded stacks, as Brendan Gregg's flamegraph.pl and many others read them.

One line per stack: thread and functions, outermost first, between semicolons, then its weight:
time in the innermost function in ns, or calls where a capture has no exits.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from textpoke.export.stacks import stacks_of

if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import BinaryIO

    from textpoke.export.source import Source
    from textpoke.export.stacks import Stacks


def write(source: Source, file: BinaryIO) -> None:
    """Write all stacks with a weight.

    Raises:
        CaptureFormat: the capture changed while it was read.
        OSError: the file cannot be written.
    """
    file.writelines(line.encode() for line in lines(stacks_of(source)))


def lines(stacks: Stacks) -> Iterator[str]:
    """The lines, each with its end."""
    # A semicolon in a name (Rust: `[u8; 4]`) would be taken for the next function.
    names = [label.replace(";", ":") for label in stacks.frames]
    weights = stacks.weights
    above: list[str] = []
    for node, depth in stacks.preorder():
        if not depth:
            continue
        del above[depth - 1 :]
        above.append(names[stacks.frame[node]])
        if weights[node]:
            yield f"{';'.join(above)} {weights[node]}\n"
