# SPDX-License-Identifier: Apache-2.0
"""Which shared objects belong to a Python package."""

from __future__ import annotations

import pytest

from textpoke._errors import NoSites
from textpoke.model import Module
from textpoke.own_modules import patterns_of
from textpoke.patterns import Pattern


def mapped(*paths: str) -> list[Module]:
    return [Module(path.rpartition("/")[2], path, 0, False, ()) for path in paths]


@pytest.fixture
def package(tmp_path, monkeypatch):
    for folder in ("tp_made", "tp_made/inner", "tp_made.libs", "tp_made_too"):
        (tmp_path / folder).mkdir()
    (tmp_path / "tp_made/__init__.py").touch()
    monkeypatch.syspath_prepend(tmp_path)
    return tmp_path


def test_a_package_brings_its_folder_and_the_libraries_of_its_wheel(package) -> None:
    ours = [f"{package}/tp_made/inner/_fast.so", f"{package}/tp_made.libs/libz-12ab.so.1"]
    others = [f"{package}/tp_made_too/_other.so", "/usr/lib/libz.so.1"]
    assert patterns_of("tp_made", mapped(*ours, *others)) == ["_fast.so!*", "libz-12ab.so.1!*"]


def test_a_name_that_is_no_package_is_a_module_of_the_process() -> None:
    assert patterns_of("libz", mapped("/x/libzstd.so.1", "/x/libz.so.1.2")) == ["libz.so.1.2!*"]


def test_an_extension_module_is_one_file(package) -> None:
    (package / "tp_single.py").touch()
    with pytest.raises(NoSites, match="import what loads tp_single"):
        patterns_of("tp_single", mapped("/usr/lib/libz.so.1"))


def test_odd_file_names_are_no_globs() -> None:
    (pattern,) = patterns_of("lib[[]x*", mapped("/x/lib[x].so", "/x/libx.so")[:1])
    assert Pattern(pattern).matches_module("lib[x].so")
    assert not Pattern(pattern).matches_module("libx.so")
