# SPDX-License-Identifier: Apache-2.0
"""`textpoke sites`: what can be patched in a process, a file or a command; changes nothing."""

from __future__ import annotations

import collections
import os
from typing import TYPE_CHECKING

from textpoke.cli import _parser
from textpoke.cli._console import Console, escape

if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable

    from textpoke.model import Module, Site
    from textpoke.process_sites import Finder


def add_arguments(parser: _parser.VerbParser) -> None:
    """Add this verb's arguments."""
    _parser.add_target(parser, file=True)
    _parser.add_filters(parser)
    _parser.add_everything(parser)
    parser.add_argument(
        "--refused", action="store_true", help="only what cannot be patched, with the reasons"
    )
    _parser.add_json(parser)
    _parser.examples(
        parser,
        "textpoke sites -p 1234 -i 'redis!*Command'",
        "textpoke sites -p 1234 -i 'libc!*' --refused      why not the rest",
        "textpoke sites ./server",
        "textpoke sites -- python3 -c 'import zstandard'   # the program's file and its libraries",
    )


def run(args: argparse.Namespace) -> int:
    """List the sites; raises NoSites when none can be patched."""
    from textpoke._errors import NoSites
    from textpoke.process_sites import Finder

    console = Console.from_args(args)
    where, modules, open_path = _places(args, console)
    finder = Finder(open_path, everything=args.everything, traps=args.traps)
    usual = _usual(finder, modules, console)
    try:
        chosen = finder.choose(modules, args.include, args.exclude, where)
    except NoSites:
        if usual and not (args.include or args.exclude):
            _print(usual, console, args)  # the reasons are what was asked for
        raise
    if args.refused:
        chosen = [site for site in chosen if not site.patchable]
    _print(chosen, console, args)
    return 0


def _places(
    args: argparse.Namespace, console: Console
) -> tuple[str, list[Module], Callable[[Module], str]]:
    """The modules to look into, and how their files are reached."""
    from textpoke.target import open_module, read_modules

    if args.pid is not None:
        pid = args.pid
        return f"pid {pid}", read_modules(pid), lambda module: open_module(pid, module)
    if args.command:
        return args.command[0], _of_command(args.command[0], console), lambda module: module.path
    module = _file_module(os.path.basename(args.file), args.file, is_main=True)
    return args.file, [module], lambda module: module.path


def _usual(finder: Finder, modules: list[Module], console: Console) -> list[Site]:
    """The usual sites; a file that cannot be read is told, the only one raises."""
    usual = finder.usual(modules)
    for module, exc in finder.failures:
        if len(modules) == 1:
            raise exc
        console.warn(escape(f"{module.name} is left out: {exc}"))
    return usual


def _of_command(command: str, console: Console) -> list[Module]:
    from textpoke.cli._needed import needed_files, program_of

    program = program_of(command)
    modules: list[Module] = []
    for name, path in needed_files(program):
        if path is None:
            console.warn(escape(f"{name} is left out: not found"))
        else:
            modules.append(_file_module(name, path, is_main=not modules))
    return modules


def _file_module(name: str, path: str, *, is_main: bool) -> Module:
    from textpoke.model import Module

    return Module(name, path, bias=0, is_main=is_main, mappings=())


def _print(sites: list[Site], console: Console, args: argparse.Namespace) -> None:
    if args.json:
        console.json(_records(sites))
        return
    from textpoke.report.layout import columns

    rows = [[f"{site.address:#x}", _kind(site), escape(_label(site))] for site in sites]
    header, *lines = columns(["ADDRESS", "KIND", "FUNCTION"], rows, left=["KIND", "FUNCTION"])
    console.out("\n".join([console.style(header, "dim"), *lines]))
    console.say(_summary(sites))
    if args.refused:
        reasons = collections.Counter(site.reason for site in sites if site.reason)
        for reason, count in reasons.most_common():
            console.say(f"{count:>9,}  {reason}")


def _kind(site: Site) -> str:
    return site.kind.value if site.patchable and site.kind else "refused"


def _label(site: Site) -> str:
    return f"{site}: {site.reason}" if site.reason else str(site)


def _summary(sites: list[Site]) -> str:
    kinds = collections.Counter(_kind(site) for site in sites)
    refused = kinds.pop("refused", 0)
    by_kind = ", ".join(f"{count:,} {kind}" for kind, count in sorted(kinds.items()))
    modules = len({site.module for site in sites})
    return (
        f"{len(sites):,} sites in {modules} {'module' if modules == 1 else 'modules'}: "
        f"{len(sites) - refused:,} patchable{f' ({by_kind})' if by_kind else ''}, "
        f"{refused:,} refused"
    )


def _records(sites: list[Site]) -> dict[str, object]:
    patchable = sum(site.patchable for site in sites)
    reasons = collections.Counter(site.reason for site in sites if site.reason)
    return {
        "patchable": patchable,
        "refused": len(sites) - patchable,
        "refused_by_reason": dict(reasons.most_common()),
        "sites": [
            {
                "module": site.module,
                "function": site.function,
                "symbol": site.symbol,
                "address": site.address,
                "vaddr": site.vaddr,
                "entry": site.entry,
                "length": site.length,
                "kind": site.kind.value if site.kind else None,
                "source": site.source,
                "old": site.old.hex(),
                "displaced": len(site.displaced),
                "patchable": site.patchable,
                "reason": site.reason,
            }
            for site in sites
        ],
    }
