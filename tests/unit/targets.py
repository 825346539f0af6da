# SPDX-License-Identifier: Apache-2.0
"""What the tests of sites, symbols and modules share: real programs and what is true of them."""

from __future__ import annotations

import os
import shutil
import subprocess
from typing import TYPE_CHECKING

from textpoke import elf
from textpoke.model import Module, Site, SiteKind
from textpoke.sites import find_sites
from textpoke.target import open_module, read_modules

if TYPE_CHECKING:
    from pathlib import Path

PATCHABLE = "-fpatchable-function-entry="
MCOUNT = ("-pg", "-mfentry", "-mnop-mcount", "-mrecord-mcount", "-fno-pie", "-no-pie")
PACK_RELATIVE = "-Wl,-z,pack-relative-relocs"

# Each way to link a program, and each way to compile it, that a site finder must understand.
LINKS = {
    "pie": ("-pie", "-fPIE"),
    "non-pie": ("-no-pie", "-fno-pie"),
    "static": ("-static",),
    "static-pie": ("-static-pie", "-fPIE"),
    "gc-sections": ("-ffunction-sections", "-Wl,--gc-sections"),
    "relr": ("-pie", "-fPIE", PACK_RELATIVE),
    "stripped": ("-pie", "-fPIE", "-s"),
    "stripped non-pie": ("-no-pie", "-fno-pie", "-s"),
    "stripped static": ("-static", "-s"),
}
CODES = {
    "5": (f"{PATCHABLE}5",),
    "5 with endbr64": (f"{PATCHABLE}5", "-fcf-protection=full"),
    "5 without endbr64": (f"{PATCHABLE}5", "-fcf-protection=none"),
    "16": (f"{PATCHABLE}16",),
    "10,3": (f"{PATCHABLE}10,3",),
    "10,3 with endbr64": (f"{PATCHABLE}10,3", "-fcf-protection=full"),
    "-O0": (f"{PATCHABLE}5", "-O0"),
}
TOO_SHORT = {
    "5,2": (3, f"{PATCHABLE}5,2"),
    "5,2 with endbr64": (3, f"{PATCHABLE}5,2", "-fcf-protection=full"),
    "2": (2, f"{PATCHABLE}2"),
}
ENDBR64 = bytes.fromhex("f3 0f 1e fa")
# Functions of tests/targets/nops.c that have NOPs and say where they are when they run.
REPORTED = {"alpha", "beta", "gamma_hidden", "delta_weak", "report"}


def supports_relr(compiler: str = "gcc") -> bool:
    """Tell whether the linker knows -z pack-relative-relocs (GNU ld 2.38)."""
    probe = subprocess.run(
        [compiler, PACK_RELATIVE, "-Wl,--version"], capture_output=True, check=False
    )
    return probe.returncode == 0


def compilers() -> list[str]:
    """Return gcc and every clang that is installed."""
    return ["gcc", *filter(shutil.which, ("clang", "clang-19"))]


def linkers() -> list[str]:
    """Return the linkers that gcc and clang can use by -fuse-ld."""
    return [name for name in ("bfd", "lld") if shutil.which(f"ld.{name}")]


def module_of(path: Path | str, bias: int = 0) -> Module:
    """Return a module for a file that no process has mapped."""
    name = os.path.basename(path)
    return Module(name, str(path), bias, is_main=True, mappings=())


def sites_of(path: Path | str, bias: int = 0) -> list[Site]:
    """Return the sites of a file."""
    with elf.Image.open(str(path)) as image:
        return find_sites(image, module_of(path, bias))


def running_sites(pid: int, name: str = "") -> list[Site]:
    """Return the sites in all modules of a running process, or in those of one name."""
    found: list[Site] = []
    for module in read_modules(pid):
        if name in ("", module.name):
            with elf.Image.open(open_module(pid, module)) as image:
                found += find_sites(image, module)
    return found


def reported(process: subprocess.Popen[str]) -> dict[str, int]:
    """Return the addresses that a running tests/targets/nops.c prints."""
    assert process.stdout is not None
    found: dict[str, int] = {}
    for line in process.stdout:
        name, address = line.split()
        if name == "end":
            break
        found[name] = int(address, 16)
    assert found.keys() == REPORTED
    return found


def nm(path: Path | str, *flags: str) -> dict[str, int]:
    """Return names and addresses of the functions in a file, as binutils sees them."""
    rows = subprocess.check_output(["nm", *flags, str(path)], text=True).splitlines()
    columns = [row.split() for row in rows]
    return {c[2]: int(c[0], 16) for c in columns if len(c) == 3 and c[1] in "TtWwi"}


def memory_at(pid: int, address: int, size: int) -> bytes:
    """Return bytes of a running process."""
    with open(f"/proc/{pid}/mem", "rb", buffering=0) as memory:
        return os.pread(memory.fileno(), size, address)


def site(name: str, module: str = "prog", symbol: str = "", reason: str | None = None) -> Site:
    """Return a made-up site."""
    kind = None if reason else SiteKind.NOP_RUN
    old = b"\x90" * 5
    symbol = symbol or name
    return Site(4096, 5, kind, module, name, symbol, 4096, old, "patchable", reason, 4096)
