# SPDX-License-Identifier: Apache-2.0
"""Every address gets one name, the one that people know, and always the same one."""

from __future__ import annotations

import subprocess
from typing import TYPE_CHECKING

import pytest
from targets import nm

from textpoke import elf
from textpoke.symbols import Symbols

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from conftest import Compile

ALIASES = """
        .text
        .macro also name
        .globl \\name
        .type \\name, @function
        .set \\name, {start}
        .size \\name, 8
        .endm
{start}:
        .type {start}, @function
        nop
        .fill 7, 1, 0xcc
        .size {start}, 8
{rest}
        .section .note.GNU-stack, "", @progbits
"""


@pytest.fixture
def assemble(tmp_path: Path) -> Callable[..., Path]:
    """Return a function that makes a shared object from assembly."""

    def run(text: str, *flags: str) -> Path:
        source, library = tmp_path / "code.s", tmp_path / "code.so"
        source.write_text(text)
        subprocess.run(["gcc", "-shared", *flags, str(source), "-o", str(library)], check=True)
        return library

    return run


def name_of(path: Path, symbol: str) -> str:
    """Return the name chosen for the address of `symbol`."""
    with elf.Image.open(str(path)) as image:
        return Symbols(image, path.name).name(nm(path)[symbol])


@pytest.mark.parametrize(
    ("start", "others", "chosen"),
    [
        ("local_read", ["read"], "read"),
        ("__GI_read", ["__libc_read", "__read", "read"], "read"),
        ("zebra", ["ant", "beetle"], "ant"),
        ("local", ["longer_name", "short"], "short"),
    ],
)
def test_the_best_known_alias_wins(
    start: str, others: list[str], chosen: str, assemble: Callable[..., Path]
) -> None:
    rest = "\n".join(f"also {name}" for name in others)
    text = ALIASES.format(start=start, rest=rest)
    assert name_of(assemble(text), start) == chosen
    backwards = "\n".join(f"also {name}" for name in reversed(others))
    assert name_of(assemble(ALIASES.format(start=start, rest=backwards)), start) == chosen


def test_weak_aliases_come_second(assemble: Callable[..., Path]) -> None:
    rest = "also strong\n.weak aweak\n.type aweak, @function\n.set aweak, inner\n"
    assert name_of(assemble(ALIASES.format(start="inner", rest=rest)), "inner") == "strong"


def test_assembly_without_types_has_names(assemble: Callable[..., Path]) -> None:
    path = assemble(
        '.text\n.globl untyped\nuntyped: ret\n.section .note.GNU-stack, "", @progbits\n'
    )
    assert name_of(path, "untyped") == "untyped"


def test_local_labels_are_no_functions(assemble: Callable[..., Path]) -> None:
    path = assemble('.text\nlabel: ret\n.section .note.GNU-stack, "", @progbits\n')
    with elf.Image.open(str(path)) as image:
        assert nm(path)["label"] not in Symbols(image, "m").starts
    assert name_of(path, "label").startswith("code.so+0x")


def test_versions_are_no_part_of_a_name(assemble: Callable[..., Path], tmp_path: Path) -> None:
    script = tmp_path / "versions"
    script.write_text("V1 { global: fresh; local: *; };\n")
    text = ALIASES.format(start="inner", rest=".globl inner\n.symver inner, fresh@@V1, remove\n")
    path = assemble(text, f"-Wl,--version-script={script}")
    assert name_of(path, "fresh@@V1") == "fresh"


def test_names_that_are_not_ascii_survive(assemble: Callable[..., Path]) -> None:
    path = assemble(
        '.text\n.type größe, @function\ngröße: ret\n.section .note.GNU-stack, "", @progbits\n'
    )
    with elf.Image.open(str(path)) as image:
        symbols = Symbols(image, "m")
        vaddr = next(v for name, v in nm(path).items() if name.endswith("e"))
        assert symbols.name(vaddr) == "größe"
        assert symbols.names([vaddr]) == ["größe"]


def test_addresses_inside_and_outside_of_functions(assemble: Callable[..., Path]) -> None:
    path = assemble(ALIASES.format(start="inner", rest="also fun\n"))
    with elf.Image.open(str(path)) as image:
        symbols = Symbols(image, "code.so")
        start = nm(path)["fun"]
        assert symbols.name(start + 7) == "fun+0x7"
        assert symbols.name(start + 4096) == f"code.so+{start + 4096:#x}"
        assert symbols.name(0) == "code.so+0x0"
        assert symbols.names([start, start + 7, 0]) == ["fun", "fun+0x7", "code.so+0x0"]


def test_stripped_shared_objects_keep_dynamic_names(compile_target: Compile) -> None:
    library = compile_target("nops.c", "-shared", "-fPIC", "-s")
    with elf.Image.open(str(library)) as image:
        symbols = Symbols(image, "lib")
        for name, vaddr in nm(library, "-D", "--defined-only").items():
            assert symbols.name(vaddr) == name


def test_stripped_programs_keep_their_starts(compile_target: Compile) -> None:
    flags = ("-pie", "-fPIE")
    with elf.Image.open(str(compile_target("nops.c", *flags, "-s"))) as image:
        symbols = Symbols(image, "prog")
        alpha = nm(compile_target("nops.c", *flags))["alpha"]
        assert alpha in symbols.starts
        assert symbols.name(alpha) == f"prog+{alpha:#x}"
