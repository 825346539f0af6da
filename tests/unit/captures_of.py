# SPDX-License-Identifier: Apache-2.0
"""Compiles a program whose functions call a hook, and runs capture programs in it."""

from __future__ import annotations

import dataclasses
import functools
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

from targets import module_of, nm, site

from textpoke.arguments import CaptureProgram, Resolver, parse
from textpoke.payload import Field, Formatter, split

if TYPE_CHECKING:
    from collections.abc import Sequence

ROOT = Path(__file__).parents[2]
TARGETS = ROOT / "tests/targets"
INCLUDES = [f"-I{ROOT}/native/{name}" for name in ("include", "engine", "agent")]


def build_hook(directory: Path) -> list[Path]:
    """Compile the hook and the agent's interpreter."""
    objects = []
    for path in (TARGETS / "capture_hook.c", ROOT / "native/agent/capture.c"):
        objects.append(directory / f"{path.stem}.o")
        subprocess.run(["gcc", "-O2", "-g", "-c", *INCLUDES, path, "-o", objects[-1]], check=True)
    return objects


def build(directory: Path, source: str, *flags: str, compiler: str = "gcc") -> Path:
    """Compile a source of tests/targets with the hook at its functions."""
    program, objects = directory / "program", build_hook(directory)
    traced = [str(TARGETS / source), "-pg", "-mfentry", *flags]
    if source.endswith(".cc"):
        compiler = "g++"
    subprocess.run([compiler, *traced, "-c", "-o", directory / "traced.o"], check=True)
    subprocess.run([compiler, *flags, directory / "traced.o", *objects, "-o", program], check=True)
    return program


class Program:
    """A built program, and what captures give in it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.module = module_of(path)
        self.symbols = nm(path)
        self.resolver = Resolver()

    def resolve(self, text: str, symbol: str = "", *, returns: bool = False) -> CaptureProgram:
        spec = parse(text, returns=returns)
        symbol = symbol or spec.pattern
        found = dataclasses.replace(
            site(symbol, self.module.name), entry=self.symbols[symbol], address=self.symbols[symbol]
        )
        return self.resolver.program(spec, found, self.module)

    def entries(self, text: str, symbol: str = "") -> list[dict[str, str]]:
        """What is captured at each entry: names and values as text."""
        resolved = self.resolve(text, symbol)
        return self._run(symbol or parse(text).pattern, resolved)["entry"]

    def exits(self, text: str, symbol: str = "") -> list[dict[str, str]]:
        """The same at each return."""
        resolved = self.resolve(text, symbol, returns=True)
        return self._run(symbol or parse(text, returns=True).pattern, resolved)["exit"]

    def entry(self, text: str, symbol: str = "") -> list[str]:
        """The values of the only entry."""
        (only,) = self.entries(text, symbol)
        return list(only.values())

    def exit(self, text: str, symbol: str = "") -> list[str]:
        """The values of the only return."""
        (only,) = self.exits(text, symbol)
        return list(only.values())

    def _run(self, symbol: str, program: CaptureProgram) -> dict[str, list[dict[str, str]]]:
        offset = self.symbols[symbol] - self.start
        done = subprocess.run(
            [self.path, hex(offset), program.entry_ops.hex(), program.exit_ops.hex()],
            check=True,
            capture_output=True,
            text=True,
            cwd=self.path.parent,
        )
        layouts = {"entry": program.entry_layout, "exit": program.exit_layout}
        found: dict[str, list[dict[str, str]]] = {"entry": [], "exit": []}
        for line in done.stdout.splitlines():
            what, *words = line.split()
            found[what].append(self._shown(layouts[what], program, [int(w, 16) for w in words]))
        return found

    @functools.cached_property
    def start(self) -> int:
        rows = subprocess.check_output(["nm", str(self.path)], text=True).splitlines()
        return next(int(row.split()[0], 16) for row in rows if row.endswith(" __executable_start"))

    def _shown(
        self, layout: Sequence[tuple[str, str]], program: CaptureProgram, words: list[int]
    ) -> dict[str, str]:
        fields = [Field(name, kind) for name, kind in layout]
        assert sum(field.words for field in fields) == len(words)
        formatter = Formatter(program.enums)
        return {f.name: formatter.text(f.kind, part) for f, part in split(fields, words)}
