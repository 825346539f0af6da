# SPDX-License-Identifier: Apache-2.0
"""`textpoke doctor`: whether a process can be traced, from facts that it prints."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from textpoke.cli import _parser
from textpoke.cli._console import Console, escape

if TYPE_CHECKING:
    import argparse

    from textpoke.model import Finding

_EXIT_CANNOT_TRACE = 3
_ADVICE = frozenset(("kernel", "agent"))
"""Checks that an attach does not insist on."""
_OF_MACHINE = frozenset(("yama", "fsgsbase", "membarrier", "kernel"))
"""Checks whose answer is the same for every process (asked of our own)."""


def add_arguments(parser: _parser.VerbParser) -> None:
    """Add this verb's arguments."""
    _parser.add_target(parser, command=False, required=False)
    _parser.add_json(parser)
    _parser.examples(
        parser,
        "textpoke doctor            # the machine only",
        "textpoke doctor -p 1234    # exit code 3 when it cannot be traced",
    )


def run(args: argparse.Namespace) -> int:
    """Print the findings; 0 when nothing speaks against tracing, else 3."""
    from textpoke.target import check_attach

    console = Console.from_args(args)
    pid = os.getpid() if args.pid is None else args.pid
    findings = check_attach(pid)
    if args.pid is None:
        findings = [finding for finding in findings if finding.check in _OF_MACHINE]
    failed = [f for f in findings if not f.ok and f.check not in _ADVICE]
    if args.json:
        console.json(_record(args.pid, findings, ok=not failed))
    else:
        _print(findings, console)
        console.say(_conclusion(args.pid, len(failed)))
    return _EXIT_CANNOT_TRACE if failed else 0


def _print(findings: list[Finding], console: Console) -> None:
    width = max(len(finding.check) for finding in findings)
    for finding in findings:
        mark, color = _mark(finding)
        value = escape(finding.value)
        console.out(f"{console.style(f'{mark:<4}', color)}  {finding.check:<{width}}  {value}")
        if finding.cure:
            console.out(f"{'':<4}  {'':<{width}}  {escape(finding.cure)}")


def _mark(finding: Finding) -> tuple[str, str]:
    if finding.ok:
        return "ok", "green"
    return ("warn", "yellow") if finding.check in _ADVICE else ("FAIL", "red")


def _conclusion(pid: int | None, failed: int) -> str:
    if pid is None:
        what, way = "this machine", "; check a process with: textpoke doctor -p PID"
    else:
        what, way = f"pid {pid}", ""
    if not failed:
        return f"{what} can be traced{way}"
    return f"{what} cannot be traced: {failed} {'check' if failed == 1 else 'checks'} failed"


def _record(pid: int | None, findings: list[Finding], *, ok: bool) -> dict[str, object]:
    return {
        "pid": pid,
        "ok": ok,
        "findings": [
            {"check": f.check, "ok": f.ok, "value": f.value, "cure": f.cure} for f in findings
        ],
    }
