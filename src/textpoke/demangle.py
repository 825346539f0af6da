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
_LONGEST_CXX = 4096
# 250 bytes of C++ symbol can stand for half a gigabyte of name, when each part of it says twice or
# thrice what the part before it said. What might do so goes to a process with limits.
_REFERENCE = re.compile(r"[ST][0-9A-Z]*_")
_EXPANSION = re.compile(r"Dp|s[pP]")
_SHORT, _FEW = 1000, 18
_MOST_EXPANSIONS = 2
_MOST_BYTES = 16 << 20
_HELPER_MEMORY_BYTES = 1 << 28
_HELPER_SECONDS = 2
_HELPER_TRIES = 2
_LONGEST_RESULT = 64 * 1024
_MOST_TOGETHER = 256 << 20
_RUST_HASH = re.compile(r"17h[0-9a-f]{16}E")
_BRACKETS = re.compile(r"[()]")


def demangle(names: Iterable[str]) -> list[str]:
    """Return a readable name for each symbol; what is not mangled or not decodable stays raw.

    C++ names stay raw where no C++ runtime library can be loaded.
    """
    raw = list(names)
    heavy = [i for i, name in enumerate(raw) if name.startswith("_Z") and _may_explode(name)]
    readable = dict(zip(heavy, _in_helper([raw[i] for i in heavy]), strict=True)) if heavy else {}
    left = _MOST_TOGETHER
    found: list[str] = []
    for i, name in enumerate(raw):
        text = name
        if left > 0 and name.startswith(("_Z", "_R")):
            text = readable.get(i) or demangle_one(name)
            left -= len(text)
        found.append(text)
    return found


def demangle_one(name: str) -> str:
    """Return a readable name for one symbol, the symbol itself where there is none."""
    if len(name) > _LONGEST:
        return name
    if is_cxx(name):
        return name if _may_explode(name) else _cxx()(name) or name
    if not name.startswith(("_R", "_Z")):
        return name
    from textpoke import rust

    return rust.demangle_v0(name) or rust.demangle_legacy(name) or name


def _may_explode(name: str) -> bool:
    # Sizes multiply at most: groups of three references each are the worst that there is.
    if len(name) < _SHORT and name.count("_") < _FEW and "Dp" not in name and "sp" not in name:
        return False  # nearly all; the rest of this takes longer than to demangle them
    if not is_cxx(name):
        return False
    references = len(_REFERENCE.findall(name))
    return (
        len(name) * 3 ** (references / 3) > _MOST_BYTES
        or len(name) > _LONGEST_CXX
        or len(_EXPANSION.findall(name)) > _MOST_EXPANSIONS
    )


def _in_helper(names: list[str]) -> list[str]:
    """Demangle in a process with little memory and time; "" for what did not come back."""
    import subprocess
    import sys

    found: list[str] = []
    for _ in range(_HELPER_TRIES):
        rest = names[len(found) :]
        if not rest:
            break
        words = [sys.executable, "-I", "-S", __file__]
        try:
            text = "\n".join(rest).encode()
            done = subprocess.run(words, input=text, capture_output=True, timeout=30, check=False)
        except (OSError, subprocess.TimeoutExpired):
            break
        lines = done.stdout.decode("utf-8", "backslashreplace").split("\n")
        found += [*lines[:-1], ""]  # the last one asked for too much
    return (found + [""] * len(names))[: len(names)]


def main() -> None:
    """The helper process: a name a line on stdin, readable ones on stdout."""
    import resource
    import sys

    resource.setrlimit(resource.RLIMIT_AS, (_HELPER_MEMORY_BYTES,) * 2)
    resource.setrlimit(resource.RLIMIT_CPU, (_HELPER_SECONDS,) * 2)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    for name in sys.stdin.buffer.read().decode("utf-8", "backslashreplace").split("\n"):
        text = _cxx()(name) if len(name) <= _LONGEST_CXX else ""
        if len(text) > _LONGEST_RESULT or "\n" in text:
            text = ""
        sys.stdout.buffer.write(f"{text}\n".encode("utf-8", "backslashreplace"))
        sys.stdout.buffer.flush()


def is_cxx(symbol: str) -> bool:
    """Tell whether a symbol is mangled by C++'s rules and not one of Rust's legacy names."""
    return symbol.startswith("_Z") and not ("17h" in symbol and _RUST_HASH.search(symbol))


def without_parameters(function: str) -> str:
    """Return a demangled C++ name without parameter list and, for templates, return type.

    >>> without_parameters("ns::Stack<void (*)(int)>::push(int) const")
    'ns::Stack<void (*)(int)>::push'
    >>> without_parameters("unsigned long ns::pick<int>(int)")
    'ns::pick<int>'
    """
    start, end = function.rfind("("), function.rfind(")")
    if 0 <= start < end == function.find(")", start):  # nothing is nested in it: nearly all names
        return _without_return_type(function[:start])
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


if __name__ == "__main__":
    main()
