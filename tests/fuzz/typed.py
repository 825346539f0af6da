# SPDX-License-Identifier: Apache-2.0
"""Damaged debug information, and requests for arguments that nobody would make."""

from __future__ import annotations

import contextlib
import functools
import os
import subprocess
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from files import scratch
from mutate import mutate, text

from textpoke import elf
from textpoke._errors import ArgumentSpec
from textpoke.arguments import Resolver, parse
from textpoke.model import Module, Site
from textpoke.payload import words_of

if TYPE_CHECKING:
    import random

SOURCE = """
enum colour { RED, GREEN = -7 };
struct pair { int a : 3; long b; union { float f; char text[8]; }; };
struct node { struct node *next; struct pair pair, *other; enum colour colour; long at[3]; };
volatile long sink;
typedef const struct node *nodes;
__attribute__((noipa)) long f(nodes n, struct pair p, char *s, enum colour c, double d)
{ sink += n->colour + p.b + *s + c + (long)d; return sink; }
__attribute__((noipa)) struct pair g(int a, struct node n) { sink += a; return n.pair; }
void _start(void) { struct node n = {0}; for (;;) { f(&n, n.pair, "x", RED, 1); g(1, n); } }
"""
BUILDS = (
    ("-g", "-O2"),
    ("-gdwarf-4", "-O1", "-fdebug-types-section"),
    ("-gdwarf-2", "-gstrict-dwarf", "-O0"),
    ("-g", "-O2", "-gz"),
)
REQUESTS = (
    "f",
    "g",
    "f(n->next->next->pair.b, n->pair.a, n->other->text, p.a, p.f, s/s9, c, d, arg1[2])",
    "g(a, n.at[1], n.colour, *n.other, &n.pair)",
)
ALPHABET = "npcsad*&()[]->./, 0123456789xsiu+"


@functools.cache
def programs() -> list[tuple[bytes, list[tuple[int, int]], dict[str, int]]]:
    """Small programs, the ranges of their debug information, the addresses of f and g."""
    made = []
    with tempfile.TemporaryDirectory() as directory:
        source, path = Path(directory) / "x.c", Path(directory) / "x"
        source.write_text(SOURCE)
        for flags in BUILDS:
            subprocess.run(["gcc", *flags, "-nostdlib", source, "-o", path], check=True)
            rows = subprocess.check_output(["nm", path], text=True).split("\n")
            names = {row.split()[2]: int(row.split()[0], 16) for row in rows if row}
            data = path.read_bytes()
            sections = [s for s in elf.Image(data).sections if s.name.startswith(".debug_")]
            hot = [(s.offset, s.offset + s.size) for s in sections]
            hot += [r for s, r in zip(sections, hot, strict=True) if "info" in s.name] * 8
            hot += [r for s, r in zip(sections, hot, strict=False) if "abbrev" in s.name] * 4
            made.append((data, hot, {name: names[name] for name in "fg"}))
    return made


def fuzz_arguments(rng: random.Random) -> None:
    """Programs for all parameters and for expressions, from damaged debug information."""
    seed, hot, names = rng.choice(programs())
    fd = scratch()
    os.ftruncate(fd, 0)
    os.pwrite(fd, mutate(rng, seed, hot), 0)
    module = Module("x", f"/proc/self/fd/{fd}", 0, is_main=True, mappings=())
    resolver = Resolver()
    for request in (*REQUESTS, f"f({text(rng, ALPHABET)})"):
        address = names[request[0]]
        site = Site(address, 5, None, "x", "f", "f", address, b"", "symtab", None, address)
        for returns in (False, True):
            with contextlib.suppress(ArgumentSpec):
                spec = parse(request, returns=returns)
                program = resolver.program(spec, site, module)
                layout = program.entry_layout + program.exit_layout
                assert sum(words_of(kind) for _, kind in layout) <= 64
