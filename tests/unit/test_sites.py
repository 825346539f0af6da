# SPDX-License-Identifier: Apache-2.0
"""Every function with NOPs is found once, at its running address, or refused with a reason."""

from __future__ import annotations

import itertools
import subprocess
from typing import TYPE_CHECKING

import pytest
from targets import (
    CODES,
    ENDBR64,
    LINKS,
    MCOUNT,
    PATCHABLE,
    REPORTED,
    TOO_SHORT,
    compilers,
    linkers,
    memory_at,
    nm,
    reported,
    running_sites,
    site,
    sites_of,
    supports_relr,
)

from textpoke._errors import NoSites, UnknownFunction
from textpoke.model import SiteKind
from textpoke.sites import match, nop_length

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from pathlib import Path

    from conftest import Compile, Start

    from textpoke.model import Site

KNOWN_LINKS = [name for name in LINKS if name != "relr" or supports_relr()]


def assert_found_once(
    pid: int, sites: Sequence[Site], addresses: dict[str, int], named: bool
) -> None:
    """Check the sites of the functions that the program itself has reported."""
    by_entry = {site.entry: site for site in sites}
    assert len(by_entry) == len(sites)
    for name, address in addresses.items():
        found = by_entry[address]
        landing = memory_at(pid, address, 4) == ENDBR64
        assert found.address == address + 4 * landing
        assert found.old == memory_at(pid, found.address, found.length)
        if named:
            assert (found.function, found.symbol) == (name, name)


@pytest.mark.parametrize("code", CODES)
@pytest.mark.parametrize("link", KNOWN_LINKS)
def test_each_function_is_found_once_where_it_runs(
    link: str, code: str, compile_target: Compile, start_target: Start
) -> None:
    program = compile_target("nops.c", *LINKS[link], *CODES[code])
    process = start_target(program)
    addresses = reported(process)
    sites = running_sites(process.pid)
    assert_found_once(process.pid, sites, addresses, named="stripped" not in link)
    for found in sites:
        assert (found.kind, found.length, found.old) == (SiteKind.NOP_RUN, 5, b"\x90" * 5)
        assert found.source == "patchable"
        assert found.patchable
    if "stripped" not in link:
        kept = {"unused"} & nm(program).keys()  # --gc-sections may drop it
        assert {s.function for s in sites} == REPORTED | {"main"} | kept


@pytest.mark.parametrize("flags", TOO_SHORT.values(), ids=TOO_SHORT.keys())
def test_too_few_nops_after_the_entry_are_refused(
    flags: tuple[int | str], compile_target: Compile, start_target: Start
) -> None:
    left, *options = flags
    process = start_target(compile_target("nops.c", *map(str, options)))
    addresses = reported(process)
    sites = running_sites(process.pid)
    assert_found_once(process.pid, sites, addresses, named=True)
    assert {s.reason for s in sites} == {f"only {left} NOP bytes after the entry"}
    assert {s.kind for s in sites} == {None}


@pytest.mark.parametrize("flags", [(), ("-s",), ("-Wl,--build-id=none",), (f"{PATCHABLE}10,3",)])
def test_shared_objects_are_found_at_every_place_they_are_loaded(
    flags: tuple[str, ...], compile_target: Compile, start_target: Start
) -> None:
    options = ("-shared", "-fPIC", f"{PATCHABLE}5", *flags)
    library = compile_target("nops.c", *options)
    process = start_target(compile_target("load.c"), str(library), str(library))
    first, second = reported(process), reported(process)
    assert first["alpha"] != second["alpha"]
    sites = running_sites(process.pid, library.name)
    assert_found_once(process.pid, sites, first, named="-s" not in flags)
    assert_found_once(process.pid, sites, second, named="-s" not in flags)


def test_stripped_shared_object_keeps_its_exported_names(compile_target: Compile) -> None:
    library = compile_target("nops.c", "-shared", "-fPIC", "-s", f"{PATCHABLE}5")
    names = {s.function for s in sites_of(library)}
    assert {"alpha", "delta_weak", "report"} < names
    hidden = names - {"alpha", "delta_weak", "report", "unused", "main"}
    assert len(hidden) == 2  # beta and gamma_hidden
    assert all(name.startswith(f"{library.name}+0x") for name in hidden)


@pytest.mark.parametrize("protection", ["none", "full"])
def test_mcount_nops_are_single_instructions(
    protection: str, compile_target: Compile, start_target: Start
) -> None:
    program = compile_target("nops.c", *MCOUNT, f"-fcf-protection={protection}")
    process = start_target(program)
    addresses = reported(process)
    sites = running_sites(process.pid)
    assert_found_once(process.pid, sites, addresses, named=True)
    # With -pg the attribute patchable_function_entry(0) has no say: `bare` has its NOP too.
    assert {s.function for s in sites} == REPORTED | {"main", "unused", "bare"}
    assert {s.old.hex() for s in sites} == {"0f1f440000"}
    assert {(s.kind, s.source, s.reason) for s in sites} == {(SiteKind.NOP5, "mcount", None)}


@pytest.mark.parametrize("link", ["pie", "non-pie"])
def test_calls_of_fentry_are_refused(link: str, compile_target: Compile) -> None:
    flags = ("-pg", "-mfentry", "-mrecord-mcount")
    sites = sites_of(compile_target("nops.c", *flags, *LINKS[link]))
    assert {s.function for s in sites} > REPORTED
    assert {s.reason for s in sites} == {"call __fentry__: not a NOP"}


def test_mcount_behind_a_prologue_is_refused(compile_target: Compile) -> None:
    flags = ("-pg", "-mrecord-mcount", "-fno-omit-frame-pointer", "-no-pie", "-fno-pie")
    sites = sites_of(compile_target("nops.c", *flags))
    assert {s.reason for s in sites} == {"the call to mcount is not at the function's entry"}


def test_both_tables_give_one_site_for_each_function(compile_target: Compile) -> None:
    program = compile_target("nops.c", *MCOUNT, f"{PATCHABLE}5")
    sites = sites_of(program)
    assert len({s.entry for s in sites}) == len(sites)
    assert {s.function for s in sites} == REPORTED | {"main", "unused", "bare"}
    assert all(s.patchable for s in sites)


def test_program_without_nops_has_no_sites(compile_target: Compile) -> None:
    assert sites_of(compile_target("nops.c")) == []


def test_bias_moves_addresses_and_nothing_else(compile_target: Compile) -> None:
    program = compile_target("nops.c", f"{PATCHABLE}5", "-fcf-protection=full")
    bias = 0x7F12_3456_7000
    for here, there in zip(sites_of(program), sites_of(program, bias), strict=True):
        assert (there.address, there.entry) == (here.address + bias, here.entry + bias)
        assert here.address == here.vaddr == there.vaddr == here.entry + 4
        assert nm(program)[here.symbol] == here.entry


@pytest.mark.parametrize("compiler", compilers())
@pytest.mark.parametrize("linker", linkers())
def test_every_installed_compiler_and_linker(compiler: str, linker: str, tmp_path: Path) -> None:
    source = tmp_path / "one.c"
    source.write_text("int one(void) { return 1; }\nint main(void) { return one(); }\n")
    for cet, nops in itertools.product(("none", "full"), ("5", "16", "10,5")):
        program = tmp_path / f"{cet}-{nops}"
        options = [f"{PATCHABLE}{nops}", f"-fcf-protection={cet}", "-fPIE", "-pie"]
        options.append(f"-fuse-ld={linker}")
        subprocess.run([compiler, *options, str(source), "-o", str(program)], check=True)
        symbols = nm(program)
        found = {s.symbol: s for s in sites_of(program)}
        for name in ("one", "main"):
            assert found[name].entry == symbols[name]
        assert all(
            s.patchable and s.address == s.entry + 4 * (cet == "full") for s in found.values()
        )


@pytest.fixture(scope="module")
def entries(compile_target: Compile) -> dict[str, Site]:
    """Return the sites of tests/targets/entries.S by function."""
    return {s.function: s for s in sites_of(compile_target("entries.S"))}


@pytest.mark.parametrize(
    ("function", "skipped", "length"),
    [
        ("clang5", 0, 5),
        ("clang5_cet", 4, 5),
        ("clang16", 0, 15),
        ("clang10_5", 0, 5),
    ],
)
def test_clang_nops_are_one_instruction(
    function: str, skipped: int, length: int, entries: dict[str, Site]
) -> None:
    found = entries[function]
    assert (found.kind, found.length, found.reason) == (SiteKind.NOP5, length, None)
    assert found.address == found.entry + skipped
    assert nop_length(found.old) == length == len(found.old)


def test_nops_around_label_and_endbr64_are_told_apart(
    entries: dict[str, Site], compile_target: Compile
) -> None:
    found = entries["gcc16_3"]
    assert found.entry == nm(compile_target("entries.S"))["gcc16_3"]
    assert (found.address, found.kind) == (found.entry + 4, SiteKind.NOP_RUN)


def test_two_entries_before_the_same_nops_give_one_site(entries: dict[str, Site]) -> None:
    assert len({"with_landing", "behind_landing"} & entries.keys()) == 1


def test_functions_folded_into_one_give_one_site(entries: dict[str, Site]) -> None:
    assert entries["folded"].patchable


@pytest.mark.parametrize(
    ("function", "reason"),
    [
        ("clang5_2", "only 3 NOP bytes after the entry"),
        ("pieces", "NOPs of 4, 2 bytes, none of 5 or more in front"),
        ("before_only", "no NOP after the entry but c3"),
        ("no_nop", "no NOP after the entry but e8 00 00 00 00"),
        ("two_doors", "another function starts inside the NOPs"),
    ],
)
def test_refusals_name_their_reason(function: str, reason: str, entries: dict[str, Site]) -> None:
    found = entries[function]
    assert found.reason is not None
    assert found.reason.startswith(reason)
    assert (found.kind, found.patchable) == (None, False)


def test_unknown_entries_and_addresses_are_refused(entries: dict[str, Site]) -> None:
    reasons = [s.reason for name, s in entries.items() if "+0x" in name]
    assert reasons == [
        "the function's entry is unknown: neither a symbol nor an unwind entry",
        "the address is outside of the module's code",
    ]


@pytest.mark.parametrize(
    "name", ["libcurl.so.4", "ldd", "ld.lld", "libc++.so.1", "ld", "libcap.so"]
)
def test_other_libraries_are_not_taken_for_the_c_library(
    name: str, compile_target: Compile, tmp_path: Path
) -> None:
    library = tmp_path / name
    library.write_bytes(compile_target("nops.c", "-shared", "-fPIC", f"{PATCHABLE}5").read_bytes())
    assert all(s.patchable for s in sites_of(library))


@pytest.mark.parametrize(
    ("code", "length"),
    [
        ("90", 1),
        ("66 90", 2),
        ("2e 66 90", 3),
        ("48 90", 2),
        ("0f 1f 00", 3),
        ("0f 1f 40 00", 4),
        ("0f 1f 44 00 00", 5),
        ("66 0f 1f 44 00 00", 6),
        ("0f 1f 80 00 00 00 00", 7),
        ("0f 1f 84 00 00 00 00 00", 8),
        ("66 2e 0f 1f 84 00 00 02 00 00", 10),
        ("0f 1f 05 00 00 00 00", 7),  # RIP-relative
        ("0f 1f 04 25 00 00 00 00", 8),  # SIB without base
        ("0f 1f c0", 3),
        ("f3 90", 0),  # PAUSE
        ("41 90", 0),  # xchg r8, rax
        ("0f 1f 48 00", 0),  # reserved, not 0F 1F /0
        ("0f 1f 44 00", 0),  # cut off
        ("66", 0),
        ("", 0),
        ("66 " * 20 + "90", 0),
        ("cc", 0),
    ],
)
def test_nop_length_agrees_with_the_manual(code: str, length: int) -> None:
    assert nop_length(bytes.fromhex(code)) == length


def functions(sites: Iterable[Site]) -> list[str]:
    """Return 'module!function' of each site."""
    return [str(s) for s in sites]


SHOP = [
    site("setCommand", "redis-server"),
    site("getCommand", "redis-server"),
    site("inflate", "libz.so.1"),
    site("ZSTD_compress", "libzstd.so.1"),
    site("shop::Cart::add(int)", "shop", "_ZN4shop4Cart3addEi"),
    site("shop::Cart::operator!() const", "shop", "_ZNK4shop4CartntEv"),
    site("unsigned long shop::total<int>(int)", "shop", "_ZN4shop5totalIiEEmT_"),
    site("parse.constprop.0", "shop"),
    site("tiny", "shop", reason="only 2 NOP bytes after the entry"),
]


@pytest.mark.parametrize(
    ("pattern", "names"),
    [
        ("setCommand", ["redis-server!setCommand"]),
        ("*Command", ["redis-server!setCommand", "redis-server!getCommand"]),
        ("redis!*Command", ["redis-server!setCommand", "redis-server!getCommand"]),
        ("redis-server!?etCommand", ["redis-server!setCommand", "redis-server!getCommand"]),
        ("[g]etCommand", ["redis-server!getCommand"]),
        ("libz!*", ["libz.so.1!inflate"]),
        ("libz.so!", ["libz.so.1!inflate"]),
        ("libz*!", ["libz.so.1!inflate", "libzstd.so.1!ZSTD_compress"]),
        ("!inflate", ["libz.so.1!inflate"]),
        ("shop::Cart::add", ["shop!shop::Cart::add(int)"]),
        ("shop::Cart::add(int)", ["shop!shop::Cart::add(int)"]),
        ("_ZN4shop4Cart3addEi", ["shop!shop::Cart::add(int)"]),
        ("shop::Cart::operator!", ["shop!shop::Cart::operator!() const"]),
        ("shop!shop::Cart::operator!", ["shop!shop::Cart::operator!() const"]),
        ("shop::total<*", ["shop!unsigned long shop::total<int>(int)"]),
        ("shop::total<int>", ["shop!unsigned long shop::total<int>(int)"]),
        ("parse", ["shop!parse.constprop.0"]),
        ("tiny", ["shop!tiny"]),
    ],
)
def test_patterns_choose(pattern: str, names: list[str]) -> None:
    assert functions(match(SHOP, [pattern])) == names


def test_patterns_add_up_in_the_order_of_the_sites() -> None:
    assert functions(match(SHOP, ["inflate", "set*", "inflate"])) == [
        "redis-server!setCommand",
        "libz.so.1!inflate",
    ]
    assert match(SHOP, []) == SHOP


def test_exclude_wins_over_include() -> None:
    assert functions(match(SHOP, ["redis!*"], ["get*"])) == ["redis-server!setCommand"]
    assert functions(match(SHOP, [], ["redis!", "shop!"])) == [
        "libz.so.1!inflate",
        "libzstd.so.1!ZSTD_compress",
    ]
    assert match(SHOP, [], ["no_such_function"]) == SHOP
    with pytest.raises(NoSites) as caught:
        match(SHOP, ["inflate"], ["libz!"], where="pid 7")
    assert caught.value.where == "pid 7"


@pytest.mark.parametrize(
    ("pattern", "near"),
    [
        ("setComand", ["setCommand"]),
        ("setcommand", ["setCommand", "getCommand"]),
        ("cart::ad", ["shop::Cart::add"]),
        ("shop::Card::add", ["shop::Cart::add"]),
        ("redis!inflate", []),
        ("libzs!inflate", ["libzstd.so.1"]),
        ("q*?[z]", []),
        ("Setcommand", ["setCommand", "getCommand"]),
    ],
)
def test_unknown_function_names_what_is_close(pattern: str, near: list[str]) -> None:
    with pytest.raises(UnknownFunction) as caught:
        match(SHOP, ["inflate", pattern])
    assert caught.value.pattern == pattern
    assert caught.value.near[: len(near)] == near
    assert isinstance(caught.value, LookupError)


def test_nothing_patchable_says_how_to_build() -> None:
    with pytest.raises(NoSites, match="-fpatchable-function-entry=5"):
        match([], ["main"])
    with pytest.raises(NoSites, match=r"all 1 sites are refused: only 2 NOP bytes .* \(1\)"):
        match([s for s in SHOP if s.reason], [])


def test_cplusplus_sites_carry_readable_names(compile_target: Compile) -> None:
    sites = sites_of(compile_target("names.cc", f"{PATCHABLE}5"))
    chosen = match(sites, ["shop::Cart::add"])
    assert [s.function for s in chosen] == ["shop::Cart::add(int)", "shop::Cart::add(char const*)"]
    assert [s.symbol for s in chosen] == ["_ZN4shop4Cart3addEi", "_ZN4shop4Cart3addEPKc"]
    for pattern in (
        "shop::Cart::Cart",
        "shop::Cart::operator!",
        "*hidden",
        "shop::total<int>",
        "main",
    ):
        assert len(match(sites, [pattern])) == 1
