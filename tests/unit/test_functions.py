# SPDX-License-Identifier: Apache-2.0
"""Every function of an unmodified binary is found once, wherever its name was left."""

from __future__ import annotations

import collections
import lzma
import os
import random
import re
import shutil
import struct
import subprocess
import textwrap
from typing import TYPE_CHECKING

import pytest
from targets import (
    ENDBR64,
    LINKS,
    compilers,
    linkers,
    memory_at,
    module_of,
    nm,
    reported,
    supports_relr,
)

from textpoke import _debug_files, _survey_cache, elf, functions
from textpoke._errors import BadElf
from textpoke._function_tables import FunctionTables
from textpoke._native import lib
from textpoke.functions import REASONS, Functions, find_functions
from textpoke.model import SiteKind
from textpoke.symbols import Symbols
from textpoke.target import open_module, read_modules

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    from conftest import Compile, Start

COLD = REASONS[lib.TP_REFUSE_COLD]
KNOWN_LINKS = [name for name in LINKS if name != "relr" or supports_relr()]
NO_FRAMES = ("-fno-asynchronous-unwind-tables", "-fno-unwind-tables")


@pytest.fixture(autouse=True)
def no_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TEXTPOKE_CACHE", "off")


def functions_of(path: Path | str, bias: int = 0) -> Functions:
    """Return the functions of a file that no process has mapped."""
    with elf.Image.open(str(path)) as image:
        return find_functions(image, module_of(path, bias))


def build(path: Path, text: str, *flags: str, compiler: str = "gcc") -> Path:
    """Compile a source; the program's name says its language ("x.c" gives "x")."""
    path.write_text(textwrap.dedent(text))
    program = path.with_suffix("")
    command = [compiler, "-O2", *flags, str(path), "-o", str(program)]
    subprocess.run(command, check=True)
    return program


def run(*words: str | Path) -> None:
    """Run a tool."""
    subprocess.run(list(map(str, words)), check=True)


def by_name(found: Functions) -> dict[str, int]:
    """Return indexes by raw name."""
    return dict(zip(found.names(found), found, strict=True))


def entries_of(found: Functions) -> set[int]:
    """Return the ELF addresses (of a module without bias)."""
    return {found.entry(i) for i in found}


def sources_of(found: Functions, indexes: Iterable[int]) -> set[str]:
    """Return what named them."""
    return {found.source(i) for i in indexes}


def typed(path: Path | str, *flags: str) -> dict[str, int]:
    """Return the functions by type in a symbol table, as readelf sees it."""
    text = subprocess.check_output(["readelf", "-sW", *flags, str(path)], text=True)
    rows = [line.split() for line in text.splitlines()]
    return {
        row[7].partition("@")[0]: int(row[1], 16)
        for row in rows
        if len(row) >= 8 and row[3] in ("FUNC", "IFUNC") and row[6] != "UND"
    }


def sections_of(path: Path | str) -> dict[str, elf.Section]:
    """Return the sections by name."""
    with elf.Image.open(str(path)) as image:
        return {section.name: section for section in image.sections}


def keep_symbols(program: Path, kept: Path) -> None:
    """Put the symbols into another file, take them out of the program."""
    kept.parent.mkdir(parents=True, exist_ok=True)
    run("objcopy", "--only-keep-debug", program, kept)
    run("strip", program)


def test_every_refusal_has_a_reason_for_people() -> None:
    assert REASONS.keys() == set(range(lib.TP_REFUSE_NOTHING + 1, lib.TP_REFUSALS))
    assert len(set(REASONS.values())) == len(REASONS)


# Each function where it runs


@pytest.mark.parametrize("protection", ["none", "full"])
@pytest.mark.parametrize("link", KNOWN_LINKS)
def test_each_function_is_found_once_where_it_runs(
    link: str, protection: str, compile_target: Compile, start_target: Start
) -> None:
    program = compile_target("nops.c", *LINKS[link], f"-fcf-protection={protection}")
    process = start_target(program)
    addresses = reported(process)
    module = next(m for m in read_modules(process.pid) if m.is_main)
    with elf.Image.open(open_module(process.pid, module)) as image:
        found = find_functions(image, module)
    assert [found.entry(i) for i in found] == sorted({found.entry(i) for i in found})
    sites = {site.entry: site for site in found.sites(found)}
    assert len(sites) == len(found)
    named = "stripped" not in link
    for name, address in addresses.items():
        site, index = sites[address], found.index_of(address - module.bias)
        landing = memory_at(process.pid, address, 4) == ENDBR64
        assert landing == (protection == "full")
        assert (site.kind, site.reason, site.length) == (SiteKind.ENTRY, None, 5)
        assert site.address == found.site(index) == address + 4 * landing
        assert site.displaced == memory_at(process.pid, site.address, found.window(index))
        assert site.displaced == found.displaced(index)
        assert site.old == site.displaced[:5]
        assert site.heads == found.heads(index)
        assert site.source == ("symtab" if named else "frame")
        if named:
            assert (site.function, site.symbol, found.name(index)) == (name, name, name)
    assert found.found == len(found)
    kinds = collections.Counter(site.kind for site in sites.values())
    assert found.displaceable == kinds[SiteKind.ENTRY]
    assert found.displaceable_indexes() == [i for i in found if found.reason(i) is None]
    assert found.by_reason == collections.Counter(filter(None, map(found.reason, found)))
    for i, site in enumerate(sites.values()):
        # One instruction alone may be displaced where five bytes cannot be.
        assert site.reason == (None if found.first(i) else found.reason(i))
        if found.first(i):
            assert (site.kind, len(site.displaced)) == (SiteKind.PUN, found.first(i))


def test_bias_moves_addresses_and_nothing_else(compile_target: Compile) -> None:
    program = compile_target("nops.c")
    here, there = functions_of(program), functions_of(program, 0x7F12_3456_7000)
    assert here.names(here) == there.names(there)
    for a, b in zip(here.sites(here), there.sites(there), strict=True):
        assert b.address - a.address == b.entry - a.entry == 0x7F12_3456_7000
        assert a.address == a.vaddr == b.vaddr


def test_what_is_not_mapped_is_refused(compile_target: Compile, start_target: Start) -> None:
    program = compile_target("nops.c")
    process = start_target(program)
    module = next(m for m in read_modules(process.pid) if m.is_main)
    data_only = tuple(m for m in module.mappings if "x" not in m.perms)
    unmapped = type(module)(module.name, module.path, module.bias, module.is_main, data_only)
    with elf.Image.open(str(program)) as image:
        found = find_functions(image, unmapped)
    assert found.displaceable
    for site in found.sites(found.displaceable_indexes()):
        assert (site.kind, site.displaced, site.heads) == (None, b"", 0)
        assert site.reason == "its address is not in the module's code as it is mapped"


@pytest.mark.parametrize("compiler", compilers())
@pytest.mark.parametrize("linker", linkers())
def test_every_installed_compiler_and_linker(compiler: str, linker: str, tmp_path: Path) -> None:
    text = """
        __attribute__((noinline)) static int one(int x) { return x * 3 + 1; }
        int two(int x) { return one(x) - one(x + 2); }
        int main(int count, char **words) { return two(count); }
    """
    program = build(tmp_path / "x.c", text, f"-fuse-ld={linker}", compiler=compiler)
    full = by_name(functions_of(program))
    assert {"two", "main"} < full.keys()
    places = {name: typed(program)[name] for name in ("two", "main")}
    run("strip", program)
    assert set(places.values()) < entries_of(functions_of(program))


# Names


@pytest.mark.parametrize("link", ["pie", "non-pie", "static"])
def test_names_are_those_of_symbols(link: str, compile_target: Compile) -> None:
    program = compile_target("nops.c", *LINKS[link])
    found = functions_of(program)
    own = [i for i in found if found.source(i) in ("symtab", "dynsym")]
    assert len(own) > 5
    with elf.Image.open(str(program)) as image:
        symbols = Symbols(image, program.name)
        assert found.names(own) == symbols.names([found.entry(i) for i in own])
    assert set(typed(program).values()) <= entries_of(found)


def test_names_of_cplusplus_are_readable(compile_target: Compile) -> None:
    found = functions_of(compile_target("names.cc"))
    names = by_name(found)
    sites = found.sites([names["_ZN4shop4Cart3addEi"], names["_ZN4shop4Cart3addEPKc"]])
    assert [site.function for site in sites] == [
        "shop::Cart::add(int)",
        "shop::Cart::add(char const*)",
    ]
    assert found.readable_names(found) == [site.function for site in found.sites(found)]


def test_aliases_are_one_function_with_the_name_that_people_know(tmp_path: Path) -> None:
    text = """
        int __secret_read(int x) { return x + 4; }
        int read_it(int) __attribute__((alias("__secret_read")));
        int _read_it(int) __attribute__((weak, alias("__secret_read")));
        int main(int count, char **words) { return read_it(count); }
    """
    names = by_name(functions_of(build(tmp_path / "x.c", text)))
    assert {"read_it", "_read_it", "__secret_read"} & names.keys() == {"read_it"}


def test_resolvers_of_indirect_functions_are_told_from_functions(tmp_path: Path) -> None:
    text = """
        static int plain(int x) { return x + 7; }
        static void *pick(void) { return plain; }
        int chosen(int) __attribute__((ifunc("pick")));
        int main(int count, char **words) { return chosen(count); }
    """
    for flags in ((), ("-static",), ("-static-pie",)):
        program = build(tmp_path / "x.c", text, *flags)
        found = functions_of(program)
        names = by_name(found)
        assert found.is_resolver(names["chosen"])
        assert found.entry(names["chosen"]) == typed(program)["pick"]
        assert not found.is_resolver(names["main"])
        if flags:
            slot = names["chosen@plt"]
            assert (found.source(slot), found.is_resolver(slot)) == ("plt", False)


def test_stripped_library_keeps_its_exported_names(compile_target: Compile) -> None:
    library = compile_target("nops.c", "-shared", "-fPIC", "-s")
    found = functions_of(library)
    names = by_name(found)
    assert {"alpha", "delta_weak", "report", "main"} < names.keys()
    assert sources_of(found, (names["alpha"], names["main"])) == {"dynsym"}
    nameless = [i for i in found if found.source(i) == "frame"]
    assert len(nameless) >= 2  # beta and gamma_hidden
    assert found.names(nameless) == [f"{library.name}+{found.entry(i):#x}" for i in nameless]


# Symbols that strip has put elsewhere


@pytest.fixture
def debug_root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    root = tmp_path / "debug-root"
    monkeypatch.setattr(_debug_files, "DEBUG_ROOT", str(root))
    return root


@pytest.fixture
def program(tmp_path: Path, compile_target: Compile) -> Path:
    copy = tmp_path / "program"
    shutil.copy(compile_target("nops.c", "-Wl,--build-id"), copy)
    return copy


def place_of(program: Path, root: Path) -> Path:
    """Return where a debug file of this build id is looked for."""
    with elf.Image.open(str(program)) as image:
        name = elf.build_id(image).hex()
    return root / ".build-id" / name[:2] / f"{name[2:]}.debug"


def assert_full(found: Functions, before: Functions, source: str) -> None:
    """Check that nothing is lost but the place that the names come from."""
    assert found.names(found) == before.names(before)
    own = [i for i in before if before.source(i) == "symtab"]
    assert sources_of(found, own) == {source}
    assert [found.reason(i) for i in found] == [before.reason(i) for i in before]


def assert_nameless(found: Functions) -> None:
    assert sources_of(found, found) <= {"frame", "dynsym", "plt"}
    assert "beta" not in by_name(found)


def test_debug_file_is_found_by_build_id(program: Path, debug_root: Path) -> None:
    before = functions_of(program)
    keep_symbols(program, place_of(program, debug_root))
    assert_full(functions_of(program), before, "debugfile")


def test_debug_file_of_another_build_is_not_believed(
    program: Path, debug_root: Path, compile_target: Compile
) -> None:
    place = place_of(program, debug_root)
    other = compile_target("nops.c", "-Wl,--build-id", "-O1")
    place.parent.mkdir(parents=True)
    shutil.copy(other, place)
    run("strip", program)
    assert_nameless(functions_of(program))


@pytest.mark.parametrize("build_id", [True, False])
@pytest.mark.parametrize("where", ["next to it", ".debug", "root"])
def test_debug_file_is_found_by_link(
    where: str, build_id: bool, program: Path, debug_root: Path, compile_target: Compile
) -> None:
    if not build_id:
        shutil.copy(compile_target("nops.c", "-Wl,--build-id=none"), program)
    before = functions_of(program)
    place = {
        "next to it": program.parent,
        ".debug": program.parent / ".debug",
        "root": debug_root / str(program.parent).lstrip("/"),
    }[where] / "program.debug"
    keep_symbols(program, place)
    run("objcopy", f"--add-gnu-debuglink={place}", program)
    assert_full(functions_of(program), before, "debugfile")
    with place.open("r+b") as file:  # CRC and build id must hold, not the name
        if build_id:
            content = file.read()
            with elf.Image.open(str(program)) as image:
                file.seek(content.index(elf.build_id(image)))
        else:
            file.seek(-1, os.SEEK_END)
        file.write(b"\x99")
    assert_nameless(functions_of(program))


@pytest.mark.parametrize("name", ["../elsewhere.debug", "/elsewhere.debug", "..", ".", ""])
def test_debug_link_that_leads_elsewhere_is_not_followed(
    name: str, program: Path, debug_root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run("strip", program)
    link = program.with_name("link")
    padded = name.encode() + b"\0" * (4 - len(name) % 4)
    link.write_bytes(padded + struct.pack("<I", 0))
    run("objcopy", "--add-section", f".gnu_debuglink={link}", program)
    opened: list[str] = []
    real = _debug_files._open
    monkeypatch.setattr(_debug_files, "_open", lambda path: opened.append(path) or real(path))
    assert_nameless(functions_of(program))
    assert opened == [str(place_of(program, debug_root))]


@pytest.mark.parametrize("damage", ["cut off", "not xz", "not ELF", "too much", "no symbols"])
def test_debug_data_is_unpacked(
    damage: str, program: Path, debug_root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = functions_of(program)
    mini = debug_root.with_name("mini")
    keep_symbols(program, mini)
    packed = lzma.compress(mini.read_bytes())
    stripped = program.read_bytes()

    def found_with(content: bytes) -> Functions:
        mini.write_bytes(content)
        program.write_bytes(stripped)
        run("objcopy", "--add-section", f".gnu_debugdata={mini}", program)
        return functions_of(program)

    found = found_with(packed)
    assert set(by_name(before)) == set(by_name(found))
    assert found.source(by_name(found)["beta"]) == "debugdata"
    if damage == "too much":
        monkeypatch.setattr(_debug_files, "_MOST_UNPACKED_BYTES", 1000)
    broken = {
        "cut off": packed[:-20],
        "not xz": b"hello" * 100,
        "not ELF": lzma.compress(b"hello"),
        "too much": packed,
        "no symbols": lzma.compress(stripped),
    }[damage]
    assert_nameless(found_with(broken))


# Parts of functions

EXCEPTIONS = """
    #include <stdexcept>
    #include <string>
    struct Guard { int *n; explicit Guard(int *x) : n(x) { ++*n; } ~Guard() { --*n; } };
    __attribute__((noinline)) int risky(int x)
    {
        if (x > 3) throw std::runtime_error("x");
        return x;
    }
    int middle(int x, int *n)
    {
        Guard a(n);
        try { Guard b(n); return risky(x) + risky(x + 1); }
        catch (const std::logic_error &) { return 1; }
        catch (...) { std::string s("caught"); return risky((int)s.size() - 6); }
    }
    __attribute__((cold, noinline)) void rare(void) { asm volatile(""); }
    int mixed(int x, int y)
    {
        int keep[64];
        for (int i = 0; i < 64; i++) keep[i] = risky(i & 1);
        if (__builtin_expect(x == y, 0)) { rare(); x += keep[x & 63]; rare(); y *= x; rare(); }
        return x + y + keep[y & 63];
    }
    int main(int count, char **words) { int n = 0; return middle(count, &n) + mixed(count, n); }
"""


@pytest.mark.parametrize("link", ["pie", "non-pie"])
def test_cold_parts_are_no_entries_with_symbols_or_without(link: str, tmp_path: Path) -> None:
    program = build(tmp_path / "x.cc", EXCEPTIONS, *LINKS[link], compiler="g++")
    found = functions_of(program)
    names = by_name(found)
    cold = {name for name in names if ".cold" in name}
    assert len(cold) >= 2
    assert {found.reason(names[name]) for name in cold} == {COLD}
    # What throws before it has pushed anything goes on elsewhere as if it had been called.
    alike = {"_Z5riskyi.cold"}
    parts = {found.entry(names[name]) for name in cold - alike}
    whole = {found.entry(i) for i in found if found.reason(i) != COLD}
    run("strip", program)
    found = functions_of(program)
    assert parts < entries_of(found)
    for i in found:
        if found.entry(i) in parts:
            assert found.reason(i) == COLD
        elif found.entry(i) in whole:
            assert found.reason(i) != COLD


def test_a_function_by_its_type_is_one_whatever_its_frame_says(tmp_path: Path) -> None:
    text = """
        .text
        .globl pushed, inner
        .type pushed, @function
        pushed: .cfi_startproc
        .cfi_def_cfa_offset 24
        xor %eax, %eax; add $1, %eax; ret
        .cfi_endproc
        .size pushed, . - pushed
        .p2align 4
        untyped: .cfi_startproc
        .cfi_def_cfa_offset 24
        xor %eax, %eax; add $1, %eax; ret
        .cfi_endproc
        .section .note.GNU-stack,"",@progbits
    """
    program = build(tmp_path / "x.S", text, "-shared")
    found = functions_of(program)
    names = by_name(found)
    assert found.reason(names["pushed"]) is None
    (part,) = [i for i in found if found.source(i) == "frame" and found.reason(i) == COLD]
    assert found.name(part) == f"x+{found.entry(part):#x}"


def test_every_landing_pad_is_known(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # With -fcf-protection, GCC begins each landing pad with an endbr64.
    program = build(tmp_path / "x.cc", EXCEPTIONS, "-fcf-protection=full", compiler="g++")
    targets: list[int] = []
    real = lib.tp_survey

    class Watch:
        def __getattr__(self, name: str):
            return getattr(lib, name)

        def tp_survey(self, survey, out) -> int:
            targets.extend(survey.targets[i] for i in range(survey.target_count))
            return real(survey, out)

    monkeypatch.setattr(functions, "lib", Watch())
    found = functions_of(program)
    with elf.Image.open(str(program)) as image:
        places = {
            vaddr + match.start()
            for vaddr, content in image.code
            for match in re.finditer(re.escape(ENDBR64), content)
        }
    slots = {found.entry(i) for i in found if found.source(i) == "plt"}
    lazy = sections_of(program)[".plt"]
    others = {p for p in places if lazy.vaddr <= p < lazy.vaddr + lazy.size} | slots
    pads = places - entries_of(found) - others
    assert len(pads) >= 3
    assert pads <= set(targets)


def test_ways_back_from_signal_handlers_are_refused(compile_target: Compile) -> None:
    program = compile_target("nops.c", "-static")
    found = functions_of(program)
    index = by_name(found)["__restore_rt"]
    assert found.reason(index) == REASONS[lib.TP_REFUSE_SIGRETURN]
    stripped = functions_of(compile_target("nops.c", "-static", "-s"))
    again = stripped.index_of(found.entry(index))
    assert stripped.flags(again) & lib.TP_FUNCTION_SIGRETURN
    assert stripped.reason(again) is not None
    # Its unwind entry begins a byte before it; that is no second function.
    assert stripped.index_of(found.entry(index) - 1) == found.index_of(found.entry(index) - 1) == -1


@pytest.mark.parametrize("code", ["mov $15, %rax", "mov $15, %eax"])
def test_ways_back_from_signal_handlers_without_unwind_entry(code: str, tmp_path: Path) -> None:
    text = f"""
        .text
        .globl back, other
        .type back, @function
        .type other, @function
        back: {code}; syscall
        .size back, . - back
        .p2align 4
        other: mov $14, %rax; syscall; ret
        .size other, . - other
        .section .note.GNU-stack,"",@progbits
    """
    found = functions_of(build(tmp_path / "x.S", text, "-shared"))
    names = by_name(found)
    assert found.reason(names["back"]) == REASONS[lib.TP_REFUSE_SIGRETURN]
    assert found.reason(names["other"]) is None


# Assembly


def test_assembly_without_unwind_entries(tmp_path: Path) -> None:
    text = """
        .text
        .globl typed, plain, inside, main
        .type typed, @function
        typed: mov $1, %eax; add $2, %eax; ret
        .size typed, . - typed
        .p2align 4
        plain: mov $1, %eax; add $2, %eax; ret
        .p2align 4
        local: mov $1, %eax; add $2, %eax; ret
        .p2align 4
        .type main, @function
        main: .cfi_startproc
        xor %eax, %eax
        nop; nop; nop
        inside: xor %eax, %eax
        ret
        .cfi_endproc
        .size main, . - main
        .globl at_the_end
        at_the_end:
        .section .note.GNU-stack,"",@progbits
    """
    program = build(tmp_path / "x.S", text)
    symbols = subprocess.check_output(["nm", str(program)], text=True)
    assert all(name in symbols for name in ("inside", "local", "at_the_end"))
    found = functions_of(program)
    names = by_name(found)
    assert {"typed", "plain", "main"} < names.keys()
    assert not {"local", "inside", "at_the_end"} & names.keys()
    # The label inside main is not to be covered by a jump: somebody may know its address.
    assert found.displaceable == sum(found.reason(i) is None for i in found)


def test_a_label_in_the_first_bytes_of_a_function_keeps_it_as_it_is(tmp_path: Path) -> None:
    text = """
        .text
        .globl outer, label
        .type outer, @function
        outer: .cfi_startproc
        xor %eax, %eax
        label: xor %edx, %edx
        xor %ecx, %ecx
        ret
        .cfi_endproc
        .size outer, . - outer
        .section .note.GNU-stack,"",@progbits
    """
    found = functions_of(build(tmp_path / "x.S", text, "-shared"))
    names = by_name(found)
    assert "label" not in names
    assert found.reason(names["outer"]) == REASONS[lib.TP_REFUSE_TABLE]


def test_functions_inside_functions_stay_functions(tmp_path: Path) -> None:
    text = """
        .text
        .globl outer, inner
        .type outer, @function
        .type inner, @function
        outer: .cfi_startproc
        mov $1, %eax; add $2, %eax
        inner: mov $3, %eax; add $4, %eax; ret
        .cfi_endproc
        part: .cfi_startproc
        mov $3, %eax; add $4, %eax; ret
        .cfi_endproc
        .size inner, . - inner
        .size outer, . - outer
        .section .note.GNU-stack,"",@progbits
    """
    found = functions_of(build(tmp_path / "x.S", text, "-shared"))
    names = by_name(found)
    assert found.reason(names["outer"]) is None
    assert found.reason(names["inner"]) is None
    (part,) = [i for i in found if found.source(i) == "frame" and "outer" in found.name(i)]
    assert found.name(part) == "outer+0x11"
    assert found.reason(part) == COLD


def test_unwind_entries_that_begin_with_padding(tmp_path: Path) -> None:
    text = """
        .text
        .p2align 4
        .globl known
        ret
        .cfi_startproc
        .p2align 4
        .type known, @function
        known: mov $3, %eax; add $4, %eax; ret
        .cfi_endproc
        .size known, . - known
        .cfi_startproc
        .p2align 4
        hidden: mov $3, %eax; add $4, %eax; ret
        .cfi_endproc
        .section .note.GNU-stack,"",@progbits
    """
    program = build(tmp_path / "x.S", text, "-shared", "-nostartfiles")
    found = functions_of(program)
    (start,) = (found.entry(i) for i in found if found.name(i) == "known")
    assert entries_of(found) == {start, start + 16}
    run("strip", program)
    assert entries_of(functions_of(program)) == {start, start + 16}


def test_go_code_is_refused_and_c_code_beside_it_is_not(tmp_path: Path) -> None:
    text = """
        __asm__(".text; .globl go; .type go, @function; go: mov $1, %eax; add $2, %eax; ret;"
                ".size go, . - go");
        int cgo(int x) { return x * 1000 + 7; }
        int main(int count, char **words) { return cgo(count); }
    """
    program = build(tmp_path / "x.c", text)
    note = tmp_path / "note"
    note.write_bytes(b"\xff Go buildinf:")
    before = functions_of(program)
    assert before.reason(by_name(before)["go"]) is None
    for section in (".gopclntab", ".go.buildinfo", ".data.rel.ro.gopclntab"):
        marked = tmp_path / section
        run("objcopy", "--add-section", f"{section}={note}", program, marked)
        found = functions_of(marked)
        names = by_name(found)
        assert found.reason(names["go"]) == REASONS[lib.TP_REFUSE_GO]
        assert found.reason(names["cgo"]) is None


# The procedure linkage table

CALLS = """
    #include <stdio.h>
    #include <stdlib.h>
    #include <string.h>
    int main(int count, char **words)
    {
        int (*called)(const char *) = puts;
        void (*leave)(int) = exit;
        printf("%s %zu\\n", words[0], strlen(words[0]));
        called(getenv("HOME"));
        if (count > 3)
            leave(3);
        puts("x");
        return atoi(words[0]);
    }
"""
PLTS = {
    "lazy": ("-Wl,-z,lazy", "-fcf-protection=none"),
    "now": ("-Wl,-z,now", "-fcf-protection=none"),
    "lazy cet": ("-Wl,-z,lazy", "-fcf-protection=full"),
    "now cet": ("-Wl,-z,now", "-fcf-protection=full"),
    "ibtplt": ("-Wl,-z,lazy", "-Wl,-z,ibtplt"),
    "non-pie": ("-no-pie", "-fno-pie", "-Wl,-z,lazy"),
    "stripped": ("-s",),
}


@pytest.mark.parametrize("form", PLTS)
def test_slots_of_the_plt_are_named_as_objdump_names_them(form: str, tmp_path: Path) -> None:
    program = build(tmp_path / "x.c", CALLS, "-O1", "-fno-builtin", *PLTS[form])
    found = functions_of(program)
    slots = {found.name(i): i for i in found if found.source(i) == "plt"}
    assert {"printf@plt", "strlen@plt", "getenv@plt", "puts@plt"} <= slots.keys()
    sections = sections_of(program)
    second = ".plt.sec" in sections
    names = [".plt.got", ".plt.sec" if second else ".plt"]
    text = "".join(
        subprocess.check_output(["objdump", "-d", "-j", name, str(program)], text=True)
        for name in names
        if name in sections
    )
    wanted = {
        row[1].partition("@")[0] + "@plt": int(row[0], 16)
        for row in re.findall(r"^([0-9a-f]+) <([^>]+)@plt>:", text, re.MULTILINE)
    }
    assert {name: found.entry(i) for name, i in slots.items()} == wanted
    ranges = [(s.vaddr, s.vaddr + s.size) for n, s in sections.items() if n.startswith(".plt")]
    inside = {e for e in entries_of(found) for start, end in ranges if start <= e < end}
    assert inside == set(wanted.values())
    for site in found.sites(slots.values()):
        assert site.reason is None
        assert site.displaced.startswith((b"\xff\x25", b"\xf2\xff\x25"))
        assert site.function == site.symbol


def test_slots_of_cplusplus_have_readable_names(tmp_path: Path) -> None:
    program = build(tmp_path / "x.cc", EXCEPTIONS, compiler="g++")
    found = functions_of(program)
    slots = [i for i in found if found.source(i) == "plt"]
    names = dict(zip(found.names(slots), found.readable_names(slots), strict=True))
    assert names["_ZNSt13runtime_errorC1EPKc@plt"] == (
        "std::runtime_error::runtime_error(char const*)@plt"
    )


# Damage


def test_program_without_functions_has_none(tmp_path: Path) -> None:
    source = '.section .note.GNU-stack,"",@progbits\n'
    program = build(tmp_path / "x.S", source, "-nostdlib", "-shared")
    found = functions_of(program)
    assert (len(found), found.displaceable, found.by_reason) == (0, 0, {})
    assert found.sites(found) == []
    assert found.index_of(0x1000) == -1


@pytest.mark.parametrize("link", ["pie", "non-pie", "static", "relr"])
def test_section_headers_are_not_needed(link: str, compile_target: Compile, tmp_path: Path) -> None:
    program = tmp_path / "x"
    shutil.copy(compile_target("nops.c", *LINKS[link], "-s"), program)
    before = functions_of(program)
    content = bytearray(program.read_bytes())
    content[40:48] = bytes(8)
    content[58:64] = bytes(6)
    program.write_bytes(content)
    found = functions_of(program)
    frames = {before.entry(i) for i in before if before.source(i) == "frame"}
    assert frames <= entries_of(found)
    assert found.displaceable
    assert sources_of(found, found) <= {"frame", "dynsym"}


def test_exported_names_are_found_without_section_headers(
    compile_target: Compile, tmp_path: Path
) -> None:
    for style in ("gnu", "sysv"):
        flags = ("-shared", "-fPIC", f"-Wl,--hash-style={style}")
        program = tmp_path / style
        shutil.copy(compile_target("nops.c", *flags), program)
        content = bytearray(program.read_bytes())
        content[40:48] = bytes(8)
        content[58:64] = bytes(6)
        program.write_bytes(content)
        assert {"alpha", "delta_weak", "report", "main"} < by_name(functions_of(program)).keys()


def test_pointers_of_relocations_are_targets(compile_target: Compile) -> None:
    for link in ("pie", *(["relr"] if supports_relr() else [])):
        with elf.Image.open(str(compile_target("nops.c", *LINKS[link]))) as image:
            tables = FunctionTables(image, "")
            assert len(tables.rela) >= 1
            assert bool(tables.relr) == (link == "relr")


def test_tables_that_point_outside_of_the_file_raise(compile_target: Compile) -> None:
    content = compile_target("nops.c").read_bytes()
    image = elf.Image(content)
    symtab = next(i for i, s in enumerate(image.sections) if s.type == elf.SHT_SYMTAB)
    headers = struct.unpack_from("<Q", content, 40)[0]
    damaged = bytearray(content)
    struct.pack_into("<Q", damaged, headers + 64 * symtab + 24, len(content))
    with pytest.raises(BadElf):
        find_functions(elf.Image(bytes(damaged)), module_of("x"))


def test_damaged_files_raise_or_have_other_functions(
    compile_target: Compile, tmp_path: Path
) -> None:
    rng = random.Random(7)
    seeds = [
        compile_target("nops.c", *LINKS["stripped"]).read_bytes(),
        build(tmp_path / "x.cc", EXCEPTIONS, compiler="g++").read_bytes(),
    ]
    raised = 0
    for _ in range(300):
        content = bytearray(rng.choice(seeds))
        hot = [
            (s.offset, s.size)
            for s in elf.Image(bytes(content)).sections
            if s.size and s.name.startswith((".eh_", ".gcc", ".sym", ".dyn", ".rel", ".plt"))
        ]
        hot += [(16, 48), (64, 56 * 13), (len(content) - 64 * 30, 64 * 30)] * 2
        for _ in range(rng.randrange(1, 9)):
            start, size = rng.choice(hot)
            at = min(start + rng.randrange(size), len(content) - 8)
            value = rng.choice((0, 1, 1 << 31, (1 << 63) - 1, (1 << 64) - 1, rng.getrandbits(64)))
            struct.pack_into("<Q", content, at, value)
        try:
            found = find_functions(elf.Image(bytes(content)), module_of("x"))
            found.sites(found)
        except BadElf:
            raised += 1
    assert 0 < raised < 300


# The cache

PARTS = (b"rows" * 100, b"labels" * 7)
BUILD_ID = b"\x12" * 20


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.delenv("TEXTPOKE_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(functions, "_WORTH_KEEPING_BYTES", 0)
    return tmp_path / "cache" / "textpoke"


@pytest.fixture
def surveys(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Return the paths of the files that were surveyed, not taken from the cache."""
    made: list[str] = []
    real = functions._survey
    monkeypatch.setattr(
        functions, "_survey", lambda image, tables: made.append(image.path) or real(image, tables)
    )
    return made


def same(a: Functions, b: Functions) -> bool:
    return a.sites(a) == b.sites(b) and [a.flags(i) for i in a] == [b.flags(i) for i in b]


def key(content: bytes = b"") -> bytes:
    return _survey_cache.key_of(content)


def test_second_survey_comes_from_the_cache(
    cache: Path, surveys: list[str], compile_target: Compile
) -> None:
    for flags in (("-O1",), ("-static", "-s"), ("-shared", "-fPIC", "-s")):
        program = compile_target("nops.c", *flags)
        first, second = functions_of(program), functions_of(program)
        assert surveys.count(str(program)) == 1
        assert same(first, second)
    assert cache.stat().st_mode & 0o777 == 0o700
    assert {path.stat().st_mode & 0o777 for path in cache.iterdir()} == {0o600}
    assert len(list(cache.iterdir())) == 3


def test_packed_names_are_there_on_the_second_time(
    cache: Path, program: Path, debug_root: Path
) -> None:
    mini = debug_root.with_name("mini")
    keep_symbols(program, mini)
    mini.write_bytes(lzma.compress(mini.read_bytes()))
    run("objcopy", "--add-section", f".gnu_debugdata={mini}", program)
    first, second = functions_of(program), functions_of(program)
    assert len(list(cache.iterdir())) == 1
    assert same(first, second)
    assert "beta" in by_name(second)


def test_another_file_with_the_same_build_id_has_its_own_survey(
    cache: Path, surveys: list[str], compile_target: Compile, tmp_path: Path
) -> None:
    honest = compile_target("nops.c", "-Wl,--build-id=0x1234")
    vaddr = nm(honest)["alpha"]
    with elf.Image.open(str(honest)) as image:
        offset = image.offset_of(vaddr)
    content = bytearray(honest.read_bytes())
    content[offset : offset + 2] = b"\x0f\x0b"  # ud2
    hostile = tmp_path / "hostile"
    hostile.write_bytes(content)
    assert functions_of(hostile).reason(functions_of(hostile).index_of(vaddr)) is not None
    found = functions_of(honest)
    assert found.reason(found.index_of(vaddr)) is None
    assert len(surveys) == len(list(cache.iterdir())) == 2


@pytest.mark.parametrize("part", [".eh_frame", ".symtab", ".strtab", ".rela.dyn", ".data"])
def test_every_table_counts(
    part: str, cache: Path, surveys: list[str], compile_target: Compile, tmp_path: Path
) -> None:
    assert not cache.exists()
    original = compile_target("nops.c", "-Wl,--build-id=0x1234")
    section = sections_of(original)[part]
    content = bytearray(original.read_bytes())
    content[section.offset + section.size - 1] ^= 0x40
    changed = tmp_path / "changed"
    changed.write_bytes(content)
    functions_of(original)
    functions_of(changed)
    assert len(surveys) == 2


def test_debug_file_counts(
    cache: Path, surveys: list[str], program: Path, debug_root: Path
) -> None:
    place = place_of(program, debug_root)
    keep_symbols(program, place)
    assert "beta" in by_name(functions_of(program))
    place.unlink()
    assert "beta" not in by_name(functions_of(program))
    assert len(surveys) == len(list(cache.iterdir())) == 2


def test_other_code_makes_other_surveys(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = key()
    _survey_cache.store(BUILD_ID, before, PARTS)
    assert cache.exists()
    monkeypatch.setattr(_survey_cache, "_maker", lambda: b"another build")
    assert key() != before
    assert _survey_cache.load(BUILD_ID, key()) is None


def test_what_was_stored_is_loaded(cache: Path) -> None:
    for parts in (PARTS, (), (b"",), (b"a", b"", b"b", b"c")):
        _survey_cache.store(BUILD_ID, key(), parts)
        assert _survey_cache.load(BUILD_ID, key()) == list(parts)
    assert _survey_cache.load(BUILD_ID, key(b"other")) is None
    assert _survey_cache.load(b"", key()) is None
    assert len(list(cache.iterdir())) == 1


def test_damage_is_noticed_and_made_good(
    cache: Path, surveys: list[str], compile_target: Compile
) -> None:
    program = compile_target("nops.c", "-O1")
    first = functions_of(program)
    (path,) = cache.iterdir()
    sound = path.read_bytes()
    rng = random.Random(3)
    for turn in range(60):
        damaged = bytearray(sound)
        if turn % 3:
            damaged[rng.randrange(len(damaged))] ^= 1 << rng.randrange(8)
        else:
            del damaged[rng.randrange(len(damaged)) :]
        path.write_bytes(damaged)
        assert same(functions_of(program), first)
        assert path.read_bytes() == sound
    assert len(surveys) == 61


def test_directories_that_others_could_use_are_not_used(cache: Path, tmp_path: Path) -> None:
    _survey_cache.store(BUILD_ID, key(), PARTS)
    for mode in (0o755, 0o770, 0o701):
        cache.chmod(mode)
        assert _survey_cache.load(BUILD_ID, key()) is None
        _survey_cache.store(BUILD_ID, key(b"more"), PARTS)
        assert len(list(cache.iterdir())) == 1
    cache.chmod(0o700)
    assert _survey_cache.load(BUILD_ID, key()) == list(PARTS)
    moved = tmp_path / "moved"
    cache.rename(moved)
    cache.symlink_to(moved)
    assert _survey_cache.load(BUILD_ID, key()) is None


def test_directory_of_another_user_is_not_used(
    cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _survey_cache.store(BUILD_ID, key(), PARTS)
    monkeypatch.setattr(os, "geteuid", lambda: 12345)
    assert cache.exists()
    assert _survey_cache.load(BUILD_ID, key()) is None
    cache.rename(cache.with_name("moved"))
    _survey_cache.store(BUILD_ID, key(), PARTS)
    assert not cache.exists()  # nor is one made in their directory


def test_unwritable_cache_is_skipped(
    cache: Path, surveys: list[str], compile_target: Compile
) -> None:
    cache.parent.mkdir()
    cache.write_text("a file where the directory should be")
    program = compile_target("nops.c", "-O1")
    assert same(functions_of(program), functions_of(program))
    assert len(surveys) == 2


def test_links_in_the_cache_are_not_followed(cache: Path, tmp_path: Path) -> None:
    _survey_cache.store(BUILD_ID, key(), PARTS)
    (path,) = cache.iterdir()
    path.rename(tmp_path / "elsewhere")
    path.symlink_to(tmp_path / "elsewhere")
    assert _survey_cache.load(BUILD_ID, key()) is None


@pytest.mark.parametrize("word", ["off", "OFF", "0"])
def test_cache_can_be_turned_off(
    word: str,
    cache: Path,
    surveys: list[str],
    compile_target: Compile,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("TEXTPOKE_CACHE", word)
    program = compile_target("nops.c", "-O1")
    assert same(functions_of(program), functions_of(program))
    assert len(surveys) == 2
    assert not cache.exists()


def test_relative_cache_home_is_ignored(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")
    monkeypatch.setenv("HOME", str(tmp_path))
    _survey_cache.store(BUILD_ID, key(), PARTS)
    assert len(list((tmp_path / ".cache" / "textpoke").iterdir())) == 1


def test_what_was_not_used_for_long_goes_first(
    cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_survey_cache, "MOST_BYTES", 5000)
    content = (bytes(1000),)
    keys = [key(bytes([i])) for i in range(5)]
    for i, one in enumerate(keys[:4]):
        _survey_cache.store(BUILD_ID, one, content)
        name = _survey_cache._name(BUILD_ID, one)
        os.utime(cache / name, (1000 + i, 1000 + i))
    assert _survey_cache.load(BUILD_ID, keys[0]) is not None  # and is the newest now
    _survey_cache.store(BUILD_ID, keys[4], content)
    kept = [_survey_cache.load(BUILD_ID, one) is not None for one in keys]
    assert kept == [True, False, True, True, True]
    _survey_cache.store(BUILD_ID, key(b"large"), (bytes(3000),))
    assert _survey_cache.load(BUILD_ID, key(b"large")) is None


def test_what_a_killed_tool_left_is_removed(cache: Path) -> None:
    _survey_cache.store(BUILD_ID, key(), PARTS)
    old, new, foreign = (cache / name for name in (".new-1-ab", ".new-2-cd", "notes.txt"))
    for path in (old, new, foreign):
        path.write_bytes(b"x")
        os.utime(path, (1000, 1000))
    os.utime(new)
    _survey_cache.store(BUILD_ID, key(b"more"), PARTS)
    assert (old.exists(), new.exists(), foreign.exists()) == (False, True, True)
