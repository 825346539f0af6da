# SPDX-License-Identifier: Apache-2.0
"""textpoke top: order, search and selection."""

from __future__ import annotations

import pytest
from top_samples import FUNCTIONS, model, sample

from textpoke.top.model import Function, Model
from textpoke.top.view import SORTS, View

CALLS = {0: 10, 1: 20, 2: 30}


def names(view: View) -> list[str]:
    return [FUNCTIONS[i].name for i in view.rows.tolist()]


def view_of(found: Model, **options: object) -> View:
    view = View(**options)  # type: ignore[arg-type]
    view.update(found.table, found.functions)
    return view


@pytest.mark.parametrize(
    ("sort", "expected"),
    [
        ("calls", ["malloc", "getCommand", "setCommand"]),
        ("total", ["malloc", "getCommand", "setCommand"]),
        ("function", ["getCommand", "malloc", "setCommand"]),
        ("module", ["malloc", "getCommand", "setCommand"]),
    ],
)
def test_rows_are_sorted(sort: str, expected: list[str]) -> None:
    found = model(CALLS)
    assert names(view_of(found, sort=sort)) == expected
    assert names(view_of(found, sort=sort, backwards=True)) == expected[::-1] or sort == "module"


@pytest.mark.parametrize("backwards", [False, True])
@pytest.mark.parametrize("sort", SORTS)
def test_every_sort_shows_all_rows(sort: str, backwards: bool) -> None:
    rows = view_of(model(CALLS), sort=sort, backwards=backwards).rows
    assert sorted(rows.tolist()) == [0, 1, 2]


@pytest.mark.parametrize("backwards", [False, True])
def test_what_has_no_time_stands_below(backwards: bool) -> None:
    found = model(CALLS)
    found.step(sample(2.0, {0: 10, 1: 25, 2: 30}), FUNCTIONS)
    view = view_of(found, sort="p99", backwards=backwards)
    assert names(view)[0] == "getCommand"


def test_what_was_never_called_is_listed_by_a_search_only() -> None:
    found = model(CALLS)
    assert "free" not in names(view_of(found))
    assert names(view_of(found, search="free")) == ["free"]
    view = View()
    view.update(found.table, found.functions, keep={3})
    assert "free" in names(view)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("COMMAND", {"setCommand", "getCommand"}),
        ("libc", {"malloc", "free"}),
        ("prog!get", {"getCommand"}),
        ("*et*", {"setCommand", "getCommand"}),
        ("lib*!f*", {"free"}),
        ("xyzzy", set()),
    ],
)
def test_search_takes_parts_and_globs(text: str, expected: set[str]) -> None:
    assert set(names(view_of(model(CALLS), search=text))) == expected


def test_the_function_that_was_chosen_stays_selected() -> None:
    found = model(CALLS)
    view = view_of(found, sort="calls")
    view.move(1)
    assert view.selected == 1
    found.step(sample(2.0, {0: 10, 1: 500, 2: 40}), FUNCTIONS)
    view.update(found.table, found.functions)
    assert (view.selected, view.cursor) == (1, 0)


def many(rates: dict[int, int]) -> tuple[Model, list[Function]]:
    """A model of a thousand functions called ten times, but some so often."""
    functions = [Function("big", f"f{i:05}") for i in range(1000)]
    found = Model(1.0)
    found.step(sample(0.0, {}), functions)
    found.step(sample(1.0, dict.fromkeys(range(1000), 10) | rates), functions)
    return found, functions


@pytest.mark.parametrize("home", [False, True])
def test_at_the_top_the_function_stays_selected_while_it_is_in_sight(home: bool) -> None:
    found, functions = many({7: 900, 8: 800})
    view = view_of(found, sort="calls")
    if home:
        view.move(50)
        view.home()
        view.update(found.table, functions)
    assert view.selected == 7
    found.step(sample(2.0, dict.fromkeys(range(1000), 20) | {7: 910, 8: 1800}), functions)
    view.update(found.table, functions)
    assert (view.selected, view.cursor, view.top) == (7, 1, 0)
    view.sort_by("function")
    view.update(found.table, functions)
    assert (view.selected, view.cursor, view.top) == (7, 7, 0)
    view.sort_by("function")
    view.update(found.table, functions)
    assert (view.selected, view.cursor, view.top) == (999, 0, 0)


def test_a_function_that_is_held_stays_selected_out_of_sight() -> None:
    found, functions = many({7: 900})
    view = view_of(found, sort="calls")
    view.hold()
    for name in (*SORTS, *SORTS[::-1]):
        view.sort_by(name)
        view.update(found.table, functions)
        assert view.selected == 7
        assert 7 in view.shown
    found.step(sample(2.0, dict.fromkeys(range(1000), 20) | {7: 900}), functions)
    view.sort_by("avg")
    view.update(found.table, functions, keep={7})
    assert (view.selected, view.cursor) == (7, 999)  # switched off, say


def test_the_selected_row_is_in_sight() -> None:
    many = [Function("big", f"f{i:05}") for i in range(1000)]
    found = Model(1.0)
    found.step(sample(0.0, dict.fromkeys(range(1000), 1)), many)
    view = view_of(found, sort="function")
    view.resize(10)
    view.move(25)
    assert (view.cursor, view.top) == (25, 16)
    assert view.shown.tolist() == list(range(16, 26))
    view.move(-5)
    assert view.top == 16
    view.end()
    assert (view.cursor, view.top) == (999, 990)
    view.resize(20)
    assert view.top == 980
    view.look_for("f00001")
    view.update(found.table, found.functions)
    assert (view.cursor, view.top, view.selected) == (0, 0, 1)


def test_an_empty_view_selects_nothing() -> None:
    view = view_of(model({}))
    view.move(1)
    assert (view.selected, view.cursor) == (-1, 0)


def test_sorting_by_the_same_column_turns_it_round() -> None:
    view = View(sort="calls")
    view.sort_by("calls")
    assert view.backwards
    view.sort_by("avg")
    assert not view.backwards
    for _ in SORTS:
        view.next_sort()
    assert (view.sort, view.backwards) == ("avg", False)
