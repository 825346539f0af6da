# SPDX-License-Identifier: Apache-2.0
"""'MODULE!GLOB': the patterns by which people choose functions."""

from __future__ import annotations

import functools
import re
from typing import TYPE_CHECKING

from textpoke.demangle import is_cxx, without_parameters

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from textpoke.model import Site

# C++ names may hold "operator!" and "operator!=", globs "[!a-z]".
_BORDER = re.compile(r"(?<!operator)(?<!\[)!")
_WILDCARDS = re.compile(r"[*?\[\\]")
# Rules of the kernel's lib/glob.c: "]" right after the opening is a member, "!" turns the class
# round, a backslash takes the next character as it is, what is no whole class is a plain "[".
_TOKENS = re.compile(r"(\*+)|(\?)|\[(!?+)(\][^\]]*|[^\]]+)\]|\\(.)|(.)", re.DOTALL)
_RANGES = re.compile(r"(.)-(.)|(.)", re.DOTALL)
_CLOSE_NAMES = 3


class Pattern:
    """One 'MODULE!GLOB', case-sensitive, with `*`, `?`, `[...]` and backslash as in the kernel.

    The glob is tried on the demangled name, that name without its parameter list (C++) or
    clone suffix ("f.constprop.0" is f), and the raw symbol. MODULE is a glob on the file's
    basename, or the basename itself, what stands before its ".so", or a beginning of it that
    ends at the end of a word: "redis" is redis-server, "libz" is libz.so.1 but not
    libzstd.so.1. Without "!" any module will do.

    Attributes:
        text: As it was written.
        is_name: Tells whether the glob chooses a name.
    """

    def __init__(self, text: str) -> None:
        self.text = text
        parts = _BORDER.split(text, maxsplit=1)
        self._module = parts[0] if len(parts) > 1 else ""
        self.is_name = name_test(parts[-1] or "*")
        self._modules: dict[str, bool] = {}

    @property
    def names_module(self) -> bool:
        """True when the pattern says in which modules to look."""
        return bool(self._module)

    def matches_module(self, name: str) -> bool:
        """Tell whether the pattern looks in a module."""
        return self._in_module(name)

    def matches(self, site: Site) -> bool:
        """Tell whether the pattern chooses this site."""
        return self.chooses(site.module, site.function, site.symbol)

    def chooses(self, module: str, function: str, symbol: str) -> bool:
        """The same by its names; of a capture the function's name is all that is known."""
        is_name = self.is_name
        return self._in_module(module) and bool(
            is_name(function) or is_name(symbol) or is_name(_known_base(function, symbol))
        )

    def close_names(self, sites: Iterable[Site]) -> list[str]:
        """Return up to three patterns that look like this one: modules when none matched."""
        import difflib

        sites = list(sites)
        inside = [site for site in sites if self._in_module(site.module)]
        functions = {_known_base(site.function, site.symbol) for site in inside}
        names = sorted(functions or {site.module for site in sites})
        wanted = _BORDER.split(self.text, maxsplit=1)[-1] if functions else self._module
        wanted = _WILDCARDS.sub("", wanted).replace("]", "")
        if not wanted:
            return []
        folded = [name for name in names if wanted.lower() in name.lower()]
        folded.sort(key=len)
        close = difflib.get_close_matches(wanted, names, _CLOSE_NAMES)
        return list(dict.fromkeys(folded[:_CLOSE_NAMES] + close))[:_CLOSE_NAMES]

    def _in_module(self, name: str) -> bool:
        known = self._modules.get(name)
        if known is None:
            known = self._modules[name] = is_module(self._module, name)
        return known


def is_module(pattern: str, name: str) -> bool:
    """Tell whether a module of this name is meant, as `Pattern` has it; "" means every one."""
    if not pattern or name_test(pattern)(name):
        return True
    return name.startswith(pattern) and not name[len(pattern) : len(pattern) + 1].isalnum()


@functools.lru_cache(maxsize=256)
def name_test(glob: str) -> Callable[[str], object]:
    """A function that tells whether a name fits a glob; the frequent shapes need no expression."""
    core = glob.strip("*")
    if not _WILDCARDS.search(core):
        if core == glob:
            return glob.__eq__
        front, back = glob.startswith("*"), glob.endswith("*")
        if front and back:
            return lambda name: core in name
        # A name of C++ may be a wildcard by accident ("operator*"), so equality counts too.
        return (lambda name: name.endswith(core)) if front else lambda name: name.startswith(core)
    return re.compile(f"(?s:{_expression(glob)}|{re.escape(glob)})\\Z").match


def _expression(glob: str) -> str:
    # Between two stars the first fit will do, as in fnmatch: no time is lost with others.
    parts = [""]
    for stars, one, turned, members, escaped, plain in _TOKENS.findall(glob):
        if stars:
            parts.append("")
        elif one:
            parts[-1] += "."
        elif members:
            parts[-1] += _class(members, turned=bool(turned))
        else:
            parts[-1] += re.escape(escaped or plain)
    if len(parts) == 1:
        return parts[0]
    first, *middle, last = parts
    return first + "".join(f"(?>.*?{part})" for part in middle) + f".*{last}"


def _class(members: str, *, turned: bool) -> str:
    found = ""
    for low, high, one in _RANGES.findall(members):
        if one:
            found += re.escape(one)
        elif low <= high:
            found += f"{re.escape(low)}-{re.escape(high)}"
    if not found:  # ranges that go backwards hold nothing
        return "." if turned else r"(?!)"
    return f"[{'^' if turned else ''}{found}]"


def base_name(function: str, symbol: str) -> str:
    """The demangled name without parameter list (C++) or clone suffix."""
    if function == symbol:
        return symbol.partition(".")[0]
    return without_parameters(function) if is_cxx(symbol) else function


_known_base = functools.lru_cache(maxsize=1 << 16)(base_name)
