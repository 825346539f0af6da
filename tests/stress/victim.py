# SPDX-License-Identifier: Apache-2.0
"""A tool to be killed: it says "go" and then does one thing over and over.

victim.py attach|toggle|detach|record PID BOARD: attach and let go; toggle sites without end;
toggle some and let go; what `textpoke record` does, with every module loaded before.
An error of textpoke ends it as it ends the command line: one line and its exit code.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

from torn import Chooser, Counts, Sites

import textpoke
from textpoke.cli import main as command_line
from textpoke.cli import record as _loaded  # noqa: F401  # not while the clock runs

if TYPE_CHECKING:
    import numpy as np


def _attach(pid: int, sites: Sites) -> None:
    assert len(sites.slots)
    while True:
        with textpoke.attach(pid):
            pass


def _chosen(sites: Sites, chooser: Chooser) -> np.ndarray:
    return sites.emulated()[chooser.next()]


def _toggle(pid: int, sites: Sites) -> None:
    chooser = Chooser(len(sites.emulated()), pid)
    with textpoke.attach(pid) as target:
        while True:
            sites.toggle(target, _chosen(sites, chooser), Counts())


def _detach(pid: int, sites: Sites) -> None:
    chooser = Chooser(len(sites.emulated()), pid)
    while True:
        with textpoke.attach(pid) as target:
            sites.toggle(target, _chosen(sites, chooser), Counts())
            sites.is_unsure()
        sites.is_old()
        sites.is_unsure()


def main() -> int:
    """Returns the exit code."""
    what, pid, board = sys.argv[1], int(sys.argv[2]), sys.argv[3]
    if what == "record":
        sys.stdout.write("go\n")
        sys.stdout.flush()
        return command_line(
            ["record", "-q", "-f", "-p", str(pid), "-o", f"{board}.tptrace", "-i", "traced_*"]
        )
    sites = Sites(pid, board)
    sys.stdout.write("go\n")
    sys.stdout.flush()
    try:
        {"attach": _attach, "toggle": _toggle, "detach": _detach}[what](pid, sites)
    except textpoke.TextpokeError as exc:
        print(f"textpoke: error: {exc}", file=sys.stderr)
        return exc.exit_code
    return 0


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parent))
    sys.exit(main())
