# SPDX-License-Identifier: Apache-2.0
"""The shared objects of a Python package, among those that are mapped."""

from __future__ import annotations

import importlib
import importlib.util
import os
from typing import TYPE_CHECKING

from textpoke._errors import NoSites
from textpoke.patterns import is_module

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from importlib.machinery import ModuleSpec

    from textpoke.model import Module

_IN_NAMES = "*?[\\!"


def patterns_of(name: str, mapped: Sequence[Module]) -> list[str]:
    """What chooses every function of a package, or of the shared objects of a name.

    A Python package or extension module brings the objects in its directory and, as wheels have
    them, in the directory `NAME.libs` beside it. Any other name is looked for as a `MODULE`
    pattern: "libz" is libz.so.1.

    Raises:
        NoSites: There are none; the package is pure Python, or loads its code later.
    """
    places = _places(name)
    found = [m.name for m in mapped if _is_under(m.path, places)]
    found = found or [m.name for m in mapped if is_module(name, m.name)]
    if not found:
        hint = f"no shared object of that package or name is mapped; import what loads {name}"
        raise NoSites(f"{name!r}, which this process was asked to trace", hint)
    return [f"{_as_it_is(module)}!*" for module in dict.fromkeys(found)]


def folders_of(name: str) -> list[str]:
    """The folders of a package, each with a separator at its end; none of what is no package."""
    return [place for place in _places(name) if place.endswith(os.sep)]


def import_them(names: Iterable[str]) -> None:
    """Import those that are Python modules: what is not mapped cannot be patched."""
    for name in names:
        if _spec_of(name) is not None:
            importlib.import_module(name)


def _places(name: str) -> list[str]:
    spec = _spec_of(name)
    if spec is None:
        return []
    folders = [os.path.realpath(folder) for folder in spec.submodule_search_locations or ()]
    files = [os.path.realpath(spec.origin)] if spec.has_location and spec.origin else []
    return [*(f"{folder}{end}" for folder in folders for end in (os.sep, ".libs/")), *files]


def _spec_of(name: str) -> ModuleSpec | None:
    if not all(part.isidentifier() for part in name.split(".")):
        return None
    try:
        return importlib.util.find_spec(name)
    except (ImportError, ValueError):  # of a package that is not there, or of __main__
        return None


def _is_under(path: str, places: Iterable[str]) -> bool:
    return any(
        path.startswith(place) if place.endswith(os.sep) else path == place for place in places
    )


def _as_it_is(name: str) -> str:
    return "".join(f"\\{char}" if char in _IN_NAMES else char for char in name)
