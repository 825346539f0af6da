# SPDX-License-Identifier: Apache-2.0
"""The language of -A and -R: what it means, and errors that point at the place."""

from __future__ import annotations

import string

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from textpoke._arguments_parse import (
    Address,
    Deref,
    Format,
    Index,
    Member,
    Name,
    Plus,
    Spec,
    parse,
)
from textpoke._errors import ArgumentSpec


def only(text: str) -> tuple[object, Format | None]:
    """Return the expression and format of the only value."""
    values = parse(f"f({text})").values
    assert values is not None
    (value,) = values
    return value.expression, value.format


def test_a_function_alone_means_all_parameters() -> None:
    assert parse("set*Command") == Spec("set*Command", "set*Command", False, None)
    assert parse(" redis!set* ").pattern == "redis!set*"


def test_values_have_their_text_as_name() -> None:
    values = parse("setCommand(c -> id,  c->argc/x , * p)").values
    assert values is not None
    assert [value.text for value in values] == ["c->id", "c->argc", "*p"]
    assert [value.format and value.format.name for value in values] == [None, "x", None]


@pytest.mark.parametrize(
    ("text", "expression"),
    [
        ("a", Name(2, "a")),
        ("a->b.c", Member(6, Member(3, Name(2, "a"), "b", True), "c", False)),
        ("a[2]", Index(3, Name(2, "a"), 2)),
        ("a[-0x10]", Index(3, Name(2, "a"), -16)),
        ("*a", Deref(2, Name(2 + 1, "a"))),
        ("*a->b", Deref(2, Member(4, Name(3, "a"), "b", True))),
        ("(*a).b", Member(6, Deref(3, Name(4, "a")), "b", False)),
        ("&a.b", Address(2, Member(4, Name(3, "a"), "b", False))),
        ("*(arg1 + 8)", Deref(2, Plus(4, Name(4, "arg1"), 8))),
        ("a-3", Plus(2, Name(2, "a"), -3)),
    ],
)
def test_expressions_are_c(text: str, expression: object) -> None:
    assert only(text) == (expression, None)


@pytest.mark.parametrize(
    ("text", "name", "size"),
    [
        ("s", "s", 32),
        ("s1", "s", 1),
        ("s256", "s", 256),
        ("x", "x", 0),
        ("i8", "i8", 0),
        ("u64", "u64", 0),
        ("f32", "f32", 0),
    ],
)
def test_formats(text: str, name: str, size: int) -> None:
    assert only(f"a/{text}")[1] == Format(4, name, size)


def test_names_of_cxx_keep_their_operators() -> None:
    for name in ("operator()", "vec::operator/", "operator/=", "a!ns::operator ()"):
        assert parse(name).pattern == name
        assert parse(f"{name}(arg1)").pattern == name


def test_a_format_stands_behind_the_function_of_a_return() -> None:
    spec = parse("f/s16", returns=True)
    assert (spec.returns, spec.values, spec.format) == (True, None, Format(2, "s", 16))
    assert parse("f(retval->x)", returns=True).values is not None


@pytest.mark.parametrize(
    ("text", "column", "part"),
    [
        ("", 1, "function's name"),
        ("  (a)", 3, "function's name"),
        ("f(", 3, "value is missing"),
        ("f()", 3, "value is missing"),
        ("f(a,)", 5, "value is missing"),
        ("f(a", 4, "')' is missing"),
        ("f(a))", 5, "nothing may follow"),
        ("f(a) b", 6, "nothing may follow"),
        ("f(a b)", 5, "')' is missing"),
        ("f(a->)", 6, "member's name"),
        ("f(a.3)", 5, "member's name"),
        ("f(a[b])", 5, "number is missing"),
        ("f(a[1)", 6, "']' is missing"),
        ("f(a[99999999999])", 5, "too large"),
        ("f(*)", 4, "a value is missing"),
        ("f(3)", 3, "a value is missing"),
        ("f(a/)", 5, "no such format"),
        ("f(a/q)", 5, "no such format"),
        ("f(a/s0)", 5, "1 to 256"),
        ("f(a/s257)", 5, "1 to 256"),
        ("f(a/s x)", 7, "')' is missing"),
        ("f(a+b)", 5, "number is missing"),
        ("f(#)", 3, "a value is missing"),
        ("f/x", 2, "behind a value"),
        ("f(" + "(" * 20 + "a" + ")" * 21, 19, "too many"),
        ("f(" + "*" * 20 + "a)", 18, "too many"),
        ("f(a" + ".b" * 20 + ")", 36, "too many"),
        ("f(" + ",".join("a" * 33) + ")", 67, "more than 32"),
        ("f" * 5000, 4097, "longer than"),
    ],
)
def test_errors_point_at_the_column(text: str, column: int, part: str) -> None:
    with pytest.raises(ArgumentSpec) as caught:
        parse(text)
    assert part in caught.value.problem
    assert (caught.value.text, caught.value.column) == (text, column)


@given(st.text(max_size=60) | st.text("fab01*&()[]->./+,sxu!: ", max_size=60))
@settings(max_examples=2000, deadline=None)
def test_any_text_is_read_or_refused_at_a_column_of_it(text: str) -> None:
    for returns in (False, True):
        column = 1
        try:
            spec = parse(text, returns=returns)
            assert spec.pattern
            assert all(value.text for value in spec.values or ())
        except ArgumentSpec as exc:
            column = exc.column
        assert 1 <= column <= len(text) + 1


NAMES = st.text(string.ascii_letters + "_", min_size=1, max_size=6)


@st.composite
def expressions(draw: st.DrawFn) -> str:
    """Draw the text of an expression that is right."""
    text = draw(NAMES)
    for _ in range(draw(st.integers(0, 3))):
        step = draw(st.sampled_from(["->", ".", "[", "*", "&", "+", "-"]))
        if step in ("->", "."):
            text += step + draw(NAMES)
        elif step == "[":
            text += f"[{draw(st.integers(-9, 99))}]"
        elif step in "*&":
            text = f"({step}{text})"
        else:
            text = f"({text}{step}{draw(st.integers(0, 99))})"
    return text


@given(st.lists(expressions(), min_size=1, max_size=5), st.sampled_from(["", "/s", "/s9", "/i32"]))
def test_what_is_right_is_read_whatever_the_spaces(texts: list[str], fmt: str) -> None:
    spec = parse(f"m!g*({','.join(text + fmt for text in texts)})")
    assert spec.values is not None
    assert [value.text for value in spec.values] == texts
    spaced = parse(f"m!g* ( {' , '.join(text + fmt.replace('/', ' / ') for text in texts)} ) ")
    assert spaced.values is not None
    assert [value.text for value in spaced.values] == texts
