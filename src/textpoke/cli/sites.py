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
    from collections.abc import Iterator

    from textpoke.model import Module, Site


def add_arguments(parser: _parser.VerbParser) -> None:
    """Add this verb's arguments."""
    _parser.add_target(parser, file=True)
    _parser.add_filters(parser)
    _parser.add_json(parser)
    _parser.examples(
        parser,
        "textpoke sites -p 1234 -i 'redis!*Command'",
        "textpoke sites ./server",
        "textpoke sites -- python3 -c 'import zstandard'   # the program's file and its libraries",
    )


def run(args: argparse.Namespace) -> int:
    """List the sites; raises NoSites when none can be patched."""
    from textpoke._errors import NoSites
    from textpoke.sites import match

    console = Console.from_args(args)
    where, sites = _collect(args, console)
    try:
        chosen = match(sites, args.include, args.exclude, where)
    except NoSites:
        if sites and not (args.include or args.exclude):
            _print(sites, console, args)  # the reasons are what was asked for
        raise
    _print(chosen, console, args)
    return 0


def _collect(args: argparse.Namespace, console: Console) -> tuple[str, list[Site]]:
    if args.pid is not None:
        return f"pid {args.pid}", list(_of_process(args.pid, console))
    if args.command:
        return args.command[0], list(_of_command(args.command[0], console))
    return args.file, _of_file(_file_module(os.path.basename(args.file), args.file), args.file)


def _of_process(pid: int, console: Console) -> Iterator[Site]:
    from textpoke._errors import BadElf, ModuleUnavailable
    from textpoke.target import open_module, read_modules

    for module in read_modules(pid):
        try:
            yield from _of_file(module, open_module(pid, module))
        except (BadElf, ModuleUnavailable) as exc:
            console.warn(escape(f"{module.name} is left out: {exc}"))


def _of_command(command: str, console: Console) -> Iterator[Site]:
    from textpoke._errors import BadElf, ModuleUnavailable
    from textpoke.cli._needed import needed_files, program_of

    program = program_of(command)
    for name, path in needed_files(program):
        if path is None:
            console.warn(escape(f"{name} is left out: not found"))
            continue
        try:
            yield from _of_file(_file_module(name, path), path)
        except (BadElf, ModuleUnavailable) as exc:
            console.warn(escape(f"{name} is left out: {exc}"))


def _file_module(name: str, path: str) -> Module:
    from textpoke.model import Module

    return Module(name, path, bias=0, is_main=True, mappings=())


def _of_file(module: Module, path: str) -> list[Site]:
    from textpoke.elf import Image
    from textpoke.sites import find_sites

    with Image.open(path) as image:
        return find_sites(image, module)


def _print(sites: list[Site], console: Console, args: argparse.Namespace) -> None:
    if args.json:
        console.json(_records(sites))
        return
    from textpoke.report.layout import columns

    rows = [[f"{site.address:#x}", _kind(site), escape(_label(site))] for site in sites]
    header, *lines = columns(["ADDRESS", "KIND", "FUNCTION"], rows, left=["KIND", "FUNCTION"])
    console.out("\n".join([console.style(header, "dim"), *lines]))
    console.say(_summary(sites))


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
    return {
        "patchable": patchable,
        "refused": len(sites) - patchable,
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
                "patchable": site.patchable,
                "reason": site.reason,
            }
            for site in sites
        ],
    }
