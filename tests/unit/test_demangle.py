# SPDX-License-Identifier: Apache-2.0
"""Symbols of C++ and Rust become the names that their authors wrote."""

from __future__ import annotations

import ctypes
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from textpoke import demangle as module
from textpoke.demangle import demangle, demangle_one, without_parameters
from textpoke.rust import demangle_legacy, demangle_v0

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture
def fresh_runtime() -> Iterator[None]:
    """Forget which C++ runtime library was loaded, before and after a test."""
    module._cxx.cache_clear()
    yield
    module._cxx.cache_clear()


@pytest.mark.parametrize(
    ("symbol", "name"),
    [
        ("main", "main"),
        ("", ""),
        ("_Zebra", "_Zebra"),
        ("_ZN4shop4Cart3addEi", "shop::Cart::add(int)"),
        ("_ZN4shop4CartC2Ev", "shop::Cart::Cart()"),
        ("_ZN4shop4Cart3addEi.part.0", "shop::Cart::add(int) [clone .part.0]"),
        ("_ZN12_GLOBAL__N_16hiddenEi", "(anonymous namespace)::hidden(int)"),
    ],
)
def test_cplusplus(symbol: str, name: str) -> None:
    assert demangle([symbol, "main"]) == [name, "main"]
    assert demangle_one(symbol) == name


def test_one_buffer_serves_names_of_every_length() -> None:
    names = [f"_Z{len(name)}{name}v" for name in ("a" * n for n in (1, 500, 3, 900, 2))]
    assert demangle(names) == [f"{'a' * n}()" for n in (1, 500, 3, 900, 2)]


@pytest.mark.usefixtures("fresh_runtime")
def test_without_a_runtime_library_names_stay_raw(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_library(name: str) -> None:
        raise OSError(name)

    monkeypatch.setattr(ctypes, "CDLL", no_library)
    assert demangle(["_ZN4shop4Cart3addEi", "_RNvCs1_1a1f"]) == ["_ZN4shop4Cart3addEi", "a::f"]


@pytest.mark.parametrize(
    ("function", "base"),
    [
        ("main", "main"),
        ("f()", "f"),
        ("f(int (*)(int), char) const", "f"),
        ("shop::Cart::operator()(int) const", "shop::Cart::operator()"),
        ("shop::Cart::operator int (*)(int)() const", "shop::Cart::operator int (*)(int)"),
        ("(anonymous namespace)::f(int)", "(anonymous namespace)::f"),
        ("main::{lambda(int)#1}::operator()(int) const", "main::{lambda(int)#1}::operator()"),
        ("f(int) [clone .part.0]", "f"),
        ("f[abi:cxx11](int)", "f[abi:cxx11]"),
        ("unsigned long ns::pick<int>(int)", "ns::pick<int>"),
        ("std::map<int, int> pick<std::map<int, int> >(int)", "pick<std::map<int, int> >"),
        ("void (anonymous namespace)::f<int>(int)", "(anonymous namespace)::f<int>"),
        ("std::ostream& operator<< <char>(std::ostream&)", "std::ostream& operator<< <char>"),
        (")", ")"),
        ("", ""),
    ],
)
def test_parameters_and_return_types_come_off(function: str, base: str) -> None:
    assert without_parameters(function) == base


# What rustc 1.95 wrote; the names are those of rustc-demangle's alternate form.
@pytest.mark.parametrize(
    ("symbol", "name"),
    [
        ("_ZN1a4main17h3d6d5cb92d9bb9f1E", "a::main"),
        ("_ZN1a13gr$uf6$$udf$e17haec2afa75ba1261fE", "a::größe"),
        (
            "_ZN4core3num23_$LT$impl$u20$usize$GT$13unchecked_add18precondition_check17hb619c4918f47c43dE",
            "core::num::<impl usize>::unchecked_add::precondition_check",
        ),
        (
            "_ZN60_$LT$alloc..string..String$u20$as$u20$core..fmt..Display$GT$3fmt17h0123456789abcdefE",
            "<alloc::string::String as core::fmt::Display>::fmt",
        ),
        ("_ZN1a1f17h0123456789abcdefE.llvm.123", "a::f"),
    ],
)
def test_rust_legacy_names_lose_their_hash(symbol: str, name: str) -> None:
    assert demangle([symbol]) == [name]


@pytest.mark.parametrize(
    "symbol",
    [
        "_ZN4shop4Cart3addEi",
        "_ZN1a1f17h0123456789abcdeE",  # a hash that is too short
        "_ZN1a1f17h0123456789abcdegE",  # not hexadecimal
        "_ZN1a1f17h0123456789abcdef",  # no end
        "_ZN",
        "_Z",
        "_ZN99999999999999999999999a",
    ],
)
def test_other_names_are_not_taken_for_rust(symbol: str) -> None:
    assert demangle_legacy(symbol) == ""


@pytest.mark.parametrize(
    ("symbol", "name"),
    [
        ("_RNvC6_123foo3bar", "123foo::bar"),
        ("_RNvNtCs1234_7mycrate3foo3bar", "mycrate::foo::bar"),
        ("_RINvCs6xxl1lAjzDf_1a5applyNCNvB2_4mains_0EB2_", "a::apply::<a::main::{closure#1}>"),
        ("_RINvCs6xxl1lAjzDf_1a7genericFlElEB2_", "a::generic::<fn(i32) -> i32>"),
        (
            "_RINvCs6xxl1lAjzDf_1a7genericINtNtCslNYArtu3iFV_5alloc3vec3VecTNtNtBv_6string6StringcEEEB2_",
            "a::generic::<alloc::vec::Vec<(alloc::string::String, char)>>",
        ),
        (
            "_RINvCs6xxl1lAjzDf_1a7genericRSINtNtCsgEmfK2I1SDS_4core6option6OptionfEEB2_",
            "a::generic::<&[core::option::Option<f32>]>",
        ),
        ("_RINvCs6xxl1lAjzDf_1a7genericThAxj3_ReEEB2_", "a::generic::<(u8, [i64; 3], &str)>"),
        ("_RINvC1a1fThEE", "a::f::<(u8,)>"),
        ("_RINvC1a1fFUKCPhOtEuE", 'a::f::<unsafe extern "C" fn(*const u8, *mut u16)>'),
        ("_RINvC1a1fFG_RL0_hEuE", "a::f::<for<'a> fn(&'a u8)>"),
        ("_RINvC1a1fQL_hE", "a::f::<&mut u8>"),
        ("_RINvC1a1fKb1_Kc78_Kan80_E", "a::f::<true, 'x', -128>"),
        ("_RINvC1a1fDNtC1b1Tp4Itemhp3KeyeEL_E", "a::f::<dyn b::T<Item = u8, Key = str>>"),
        ("_RINvC1a1fDINtC1b1ThENtC1b4SendEL_E", "a::f::<dyn b::T<u8> + b::Send>"),
        ("_RNvXC1aNtC1a1SNtC1b1T1f", "<a::S as b::T>::f"),
        ("_RNvMC1aNtC1a1S1f", "<a::S>::f"),
        ("_RNvYNtC1a1SNtC1b1T1f", "<a::S as b::T>::f"),
        ("_RNSC1a4shim", "a::{shim:shim#0}"),
        ("_RNvCs6xxl1lAjzDf_1au9gre_6ka8i", "a::größe"),
        ("_RNvC1a1f.llvm.1234", "a::f"),
    ],
)
def test_rust_v0_names(symbol: str, name: str) -> None:
    assert demangle([symbol]) == [name]


@pytest.mark.parametrize(
    "symbol",
    [
        "_R",
        "_RNv",
        "_RNvC1a9f",
        "_RB_",
        "_RNvB9_1f",
        "_RINvC1a1fL5_E",
        "_RINvC1a1fKq0_E",
        "_R" + "Nv" * 9000,
    ],
)
def test_damaged_v0_names_stay_raw(symbol: str) -> None:
    assert demangle([symbol]) == [symbol]


def test_back_references_cannot_grow_a_name_without_end() -> None:
    # Each tuple names the one before it twice: 2**40 leaves.
    text, places = "INvC1a1f", [8]
    for _ in range(40):
        places.append(len(text))
        text += f"TB{places[-2]:x}_B{places[-2]:x}_E"
    assert demangle_v0("_R" + text + "E") == ""


@given(st.text(alphabet="NvCIsEBTRQDFKGLMXYAS_0123abhju ", max_size=60))
def test_any_text_is_taken_without_error(text: str) -> None:
    demangle_v0(f"_R{text}")
    demangle_legacy(f"_ZN{text}")


def _bomb(depth: int) -> str:
    """A symbol whose every part says twice what the part before it said."""
    digits = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZ"
    return "_Z1f1aIiE" + "".join(f"S_I{f'S{digits[k]}_' * 2}E" for k in range(depth))


def test_a_symbol_that_stands_for_gigabytes_stays_raw_and_harms_no_other() -> None:
    names = ["_Z1fv", _bomb(33), "_Z1gv", _bomb(7), _bomb(34)[:-1], "_Z1hv"]
    found = demangle(names)
    assert found[0::2] == ["f()", "g()", names[4]]
    assert found[1] == names[1]
    assert found[3].startswith("f(a<int>, a<a<int>, a<int> >")
    assert found[5] == "h()"
    assert demangle_one(_bomb(33)) == _bomb(33)


def test_a_long_but_honest_symbol_is_read_by_the_helper() -> None:
    parameters = "".join(f"RKSt6vectorI{len(n)}{n}SaIS{i}_EE" for i, n in [(0, "alpha")])
    name = f"_Z1f{parameters}" + "S1_" * 40
    assert demangle([name, "_Z1fv"])[1] == "f()"
    assert demangle([name])[0].startswith("f(std::vector<alpha")


def test_references_that_lead_to_long_parts_of_a_rust_name_are_counted() -> None:
    def name(long: int, often: int) -> str:
        return "_RIC1a" + "IC1b" + "L_" * long + "E" + "B3_" * often + "E"

    few = "b<'_, '_>"
    assert demangle([name(2, 2)]) == [f"a::<{few}, {few}, {few}>"]
    assert demangle([name(5000, 1500)]) == [name(5000, 1500)]
