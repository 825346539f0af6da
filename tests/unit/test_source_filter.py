# SPDX-License-Identifier: Apache-2.0
"""Sources for `:file:`: each module is opened once, what cannot be read is unknown."""

from __future__ import annotations

import subprocess
from typing import TYPE_CHECKING

import pytest
from targets import module_of, sites_of

from textpoke._errors import ModuleUnavailable
from textpoke.filters import FilterSet, SiteNames
from textpoke.source_filter import ModuleSources

if TYPE_CHECKING:
    from pathlib import Path

    from textpoke.model import Module

BIAS = 0x5500_0000_0000


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A program of two sources: main and f in a.c, g in b.c."""
    directory = tmp_path_factory.mktemp("sources")
    main = "int g(int); int f(int x) { return g(x); } int main() { return f(0); }"
    (directory / "a.c").write_text(main)
    (directory / "b.c").write_text("int g(int x) { return x * 3; }")
    flags = ["-g", "-O1", "-fpatchable-function-entry=5", "-fcf-protection=full"]
    subprocess.run(["gcc", *flags, "-o", "prog", "a.c", "b.c"], check=True, cwd=directory)
    return directory / "prog"


def addr2line(image: object, path: str, vaddrs: list[int]) -> dict[int, str]:
    """An opinion that is not ours."""
    del image
    words = ["addr2line", "-e", path, *map(hex, vaddrs)]
    lines = subprocess.check_output(words, text=True).splitlines()
    return {v: line.rpartition(":")[0] for v, line in zip(vaddrs, lines, strict=True)}


def test_functions_by_their_source(program: Path) -> None:
    calls: list[int] = []

    def counted(image: object, path: str, vaddrs: list[int]) -> dict[int, str]:
        calls.append(len(vaddrs))
        return addr2line(image, path, vaddrs)

    sites = sites_of(program, BIAS)
    module = module_of(program, BIAS)
    sources = ModuleSources(lambda: [module], lambda module: module.path, counted)
    names = SiteNames(sites, main="prog", files=sources)
    chosen = [sites[i].function for i in FilterSet.of("*:file:a.c").choose(names)]
    assert sorted(chosen) == ["f", "main"]
    assert [sites[i].function for i in FilterSet.of(":file:b.c").choose(names)] == ["g"]
    assert calls == [3]  # once


def test_what_cannot_be_read_is_unknown(program: Path) -> None:
    def gone(module: Module) -> str:
        raise ModuleUnavailable(module.path, "gone")

    sites = sites_of(program)
    sources = ModuleSources(lambda: [module_of(program)], gone, addr2line)
    assert sources(sites) == [""] * len(sites)
    nowhere = ModuleSources(list, lambda module: module.path, addr2line)
    assert nowhere(sites) == [""] * len(sites)
