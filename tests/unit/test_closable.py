# SPDX-License-Identifier: Apache-2.0
"""Which modules stay mapped as long as their program lives, and which it may close."""

from __future__ import annotations

from typing import TYPE_CHECKING

from textpoke import closable, elf
from textpoke.target import read_modules

if TYPE_CHECKING:
    import subprocess
    from pathlib import Path

    from conftest import Compile, Start

OBJECT = ("-shared", "-fPIC")


def names_of(pid: int) -> tuple[set[str], set[str]]:
    """Modules that stay, and the others."""
    ranges = closable.lasting(pid)
    stays, others = set(), set()
    for module in read_modules(pid):
        code = [(m.start, m.end) for m in module.mappings if "x" in m.perms]
        (stays if set(code) <= set(ranges) else others).add(module.name)
    return stays, others


def linked(path: Path) -> closable.Linked:
    with elf.Image.open(str(path)) as image:
        return closable.linked(image)


def ask(process: subprocess.Popen[str], line: str) -> str:
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.write(f"{line}\n")
    process.stdin.flush()
    return process.stdout.readline().strip()


def test_what_a_file_tells_the_loader(compile_target: Compile) -> None:
    library = compile_target("plugin.c", *OBJECT, "-Wl,-soname,libplug.so.1", "-Wl,-z,nodelete")
    assert linked(library) == closable.Linked("libplug.so.1", (), stays=True)
    program = linked(compile_target("plugins.c"))
    assert (program.name, program.stays) == ("", False)
    assert program.needs == ("libc.so.6",)
    assert program.interpreter.endswith("/ld-linux-x86-64.so.2")
    assert linked(compile_target("nops.c", "-static")) == closable.Linked()


def test_what_a_program_opens_it_may_close(compile_target: Compile, start_target: Start) -> None:
    plain = str(compile_target("plugin.c", *OBJECT))
    kept = str(compile_target("plugin.c", *OBJECT, "-Wl,-z,nodelete", "-DFACTOR=5"))
    process = start_target(compile_target("plugins.c"), plain, kept)
    stays, others = names_of(process.pid)
    assert {"libc.so.6", "ld-linux-x86-64.so.2"} < stays
    assert others == set()
    assert ask(process, "open 0") == "0"
    assert ask(process, "open 1") == "0"
    now, others = names_of(process.pid)
    assert now == stays | {kept.rpartition("/")[2]}
    assert others == {plain.rpartition("/")[2]}


def test_a_static_program_stays(compile_target: Compile, start_target: Start) -> None:
    process = start_target(compile_target("nops.c", "-static"))
    assert names_of(process.pid)[1] == set()


def test_a_damaged_dynamic_section_says_nothing(compile_target: Compile, tmp_path: Path) -> None:
    data = bytearray(compile_target("plugin.c", *OBJECT).read_bytes())
    with elf.Image.open(str(compile_target("plugin.c", *OBJECT))) as image:
        (dynamic,) = (s for s in image.segments if s.type == 2)
    data[dynamic.offset : dynamic.offset + dynamic.file_size] = b"\xff" * dynamic.file_size
    (tmp_path / "odd.so").write_bytes(data)
    assert linked(tmp_path / "odd.so") == closable.Linked()
