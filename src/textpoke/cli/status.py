# SPDX-License-Identifier: Apache-2.0
"""`textpoke status`: say what is patched in a process, without touching it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from textpoke.cli import _parser
from textpoke.cli._console import Console, escape

if TYPE_CHECKING:
    import argparse

    from textpoke.status import Status

_SHOWN = 20


def add_arguments(parser: _parser.VerbParser) -> None:
    """Declare the verb's arguments."""
    _parser.add_target(parser, command=False)
    _parser.add_json(parser)
    _parser.examples(
        parser, "textpoke status -p 1234", "textpoke status -p 1234 --json | jq .patched"
    )


def run(args: argparse.Namespace) -> int:
    """Run the verb; returns the exit code."""
    from textpoke.status import read_status

    console = Console.from_args(args)
    status = read_status(args.pid)
    if args.json:
        console.json(status.as_dict())
        return 0
    for line in _lines(status, verbose=console.verbose > 0):
        console.out(escape(line))
    return 0


def _lines(status: Status, *, verbose: bool) -> list[str]:
    if not status.agent_tid:
        return [f"pid {status.pid}: no textpoke agent, nothing is patched"]
    owner = f"in use by {status.owner}" if status.owner else "its tool is gone"
    lines = [
        f"pid {status.pid}: agent thread {status.agent_tid}, {owner}",
        (
            f"{len(status.patched):,} sites patched now, {status.known:,} ever; "
            f"{status.rings_live} threads with a ring, {status.regions} mappings for pads"
        ),
    ]
    shown = status.patched if verbose else status.patched[:_SHOWN]
    lines += [f"  {name}" for name in shown]
    if len(status.patched) > len(shown):
        lines.append(f"  ... and {len(status.patched) - len(shown):,} more (-v shows all)")
    if status.broken:
        lines.append("an earlier recovery failed: int3s of ours may be left; they are handled")
    if status.turned_off:
        lines.append("a tool died while it recorded: the agent has turned the recording off")
    if status.kept:
        lines.append("to be kept: its tool has said so")
    if not status.owner:
        lines.append(f"textpoke detach -p {status.pid}")
    return lines
