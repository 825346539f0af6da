# SPDX-License-Identifier: Apache-2.0
"""Readable names for C++ and Rust symbols.

C++ goes through the C++ runtime's own demangler, by ctypes. Rust's names are decoded in `rust`:
of the packages on PyPI, rust-demangler prints to stdout and fails on names of Rust's standard
library, and cxxfilt leaves v0 names alone.
"""

from __future__ import annotations

import functools
import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

# The demanglers recurse; a longer name is damage or of no use to a reader.
_LONGEST = 16 * 1024
_RUST_HASH = re.compile(r"17h[0-9a-f]{16}E")
_BRACKETS = re.compile(r"[()]")


def demangle(names: Iterable[str]) -> list[str]:
    """Return a readable name for each symbol; what is not mangled or not decodable stays raw.

    C++ names stay raw where no C++ runtime library can be loaded.
    """
    return [demangle_one(name) if name.startswith(("_Z", "_R")) else name for name in names]


def demangle_one(name: str) -> str:
    """Return a readable name for one symbol, the symbol itself where there is none."""
    if len(name) > _LONGEST:
        return name
    if is_cxx(name):
        return _cxx()(name) or name
    if not name.startswith(("_R", "_Z")):
        return name
    from textpoke import rust

    return rust.demangle_v0(name) or rust.demangle_legacy(name) or name


def is_cxx(symbol: str) -> bool:
    """Tell whether a symbol is mangled by C++'s rules and not one of Rust's legacy names."""
    return symbol.startswith("_Z") and not _RUST_HASH.search(symbol)


def without_parameters(function: str) -> str:
    """Return a demangled C++ name without parameter list and, for templates, return type.

    >>> without_parameters("ns::Stack<void (*)(int)>::push(int) const")
    'ns::Stack<void (*)(int)>::push'
    >>> without_parameters("unsigned long ns::pick<int>(int)")
    'ns::pick<int>'
    """
    depth = 0
    for bracket in reversed(list(_BRACKETS.finditer(function))):
        depth += 1 if bracket[0] == ")" else -1
        if not depth:
            return _without_return_type(function[: bracket.start()])
    return function


def _without_return_type(name: str) -> str:
    # Only template functions are demangled with one; operators have "<", ">" and spaces of
    # their own, so they are left alone.
    if not name.endswith(">") or "operator" in name:
        return name
    depth = 0
    for i in range(len(name) - 1, 0, -1):
        depth += (name[i] in ")>") - (name[i] in "(<")
        if name[i] == " " and not depth:
            return name[i + 1 :]
    return name


@functools.cache
def _cxx() -> Callable[[str], str]:
    """Return a function that demangles one C++ name, "" where it cannot."""
    import ctypes

    for library in ("libstdc++.so.6", "libc++abi.so.1", "libc++.so.1"):
        try:
            run = ctypes.CDLL(library)["__cxa_demangle"]
        except (OSError, AttributeError):
            continue
        break
    else:
        return lambda _: ""
    run.restype = ctypes.c_void_p
    run.argtypes = [ctypes.c_char_p, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_void_p]
    # __cxa_demangle grows the buffer that it is given, and says so: one for all names.
    buffer = ctypes.c_void_p()
    size = ctypes.c_size_t()
    status = ctypes.c_int()
    size_ref, status_ref = ctypes.byref(size), ctypes.byref(status)

    def demangle_cxx(name: str) -> str:
        text = run(name.encode(), buffer, size_ref, status_ref)
        if not text:
            return ""
        buffer.value = text
        return ctypes.string_at(text).decode("utf-8", "backslashreplace")

    return demangle_cxx
