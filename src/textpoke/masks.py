# SPDX-License-Identifier: Apache-2.0
"""Whether a program may block signals in its own code, at any moment: then no int3 is safe in it.

A look at the threads' masks tells of this moment only. CPython blocks all signals around vfork, in
functions of its own: an int3 written a moment after the look kills it.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from textpoke import elf, target
from textpoke._errors import ModuleUnavailable, SiteError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from textpoke.model import Module

# The C library runs parts of itself with all signals blocked (clone, spawn, abort).
_RUNTIME = re.compile(r"/(?:libc|ld|libpthread)[.-](?:[^/]*\.)?so\b[^/]*$")
# What sets a mask, for good or for the time of a wait, in which handlers run.
_MASKING = (
    *("sigprocmask", "pthread_sigmask", "sigsuspend", "ppoll", "pselect", "epoll_pwait"),
    *("epoll_pwait2", "sigblock", "sigsetmask", "sighold", "sigset", "thr_sigsetmask"),
    *("__ppoll_chk", "sigpause", "__sigpause", "__xpg_sigpause", "pthread_attr_setsigmask_np"),
    *("setcontext", "swapcontext"),
)
# What installs a handler, that may run with all signals blocked; or takes SIGTRAP itself.
_HANDLING = ("sigaction", "signal", "bsd_signal", "sysv_signal", "__sysv_signal", "sigvec")
_PT_INTERP = 3


def is_runtime(path: str) -> bool:
    """True for the C library and the dynamic loader."""
    return _RUNTIME.search(path) is not None


def why_masking(pid: int) -> str:
    """Which module of a process may block signals in its own code, and by what; "" when none may.

    Raises:
        NoSuchTarget, AttachDenied: As `target.read_modules`.
    """
    return _why(pid, _MASKING, "it may block SIGTRAP at any moment")


def why_handling(pid: int) -> str:
    """Which module may install a signal handler, and by what; "" when none may.

    A handler may run with SIGTRAP blocked, or be one for SIGTRAP. Those of now are looked at before
    a batch; an int3 that stays meets those of later, too. Raises as `why_masking`.
    """
    return _why(pid, _HANDLING, "its handlers may block SIGTRAP, or take it")


def _why(pid: int, names: Sequence[str], so: str) -> str:
    for module in target.read_modules(pid):
        if not is_runtime(module.path):
            why = _why_module(pid, module, names)
            if why:
                return f"{module.name} {why}: {so}"
    return ""


def _why_module(pid: int, module: Module, wanted: Sequence[str]) -> str:
    try:
        with elf.Image.open(target.open_module(pid, module)) as image:
            if module.is_main and not any(s.type == _PT_INTERP for s in image.segments):
                return "is linked statically"
            names = next((s for s in image.sections if s.name == ".dynstr"), None)
            if names is None:
                return "does not tell what it uses"
            text = image.contents(names)
    except (ModuleUnavailable, SiteError):
        return "cannot be read"
    found = next((name for name in wanted if b"\0%b\0" % name.encode() in text), "")
    return f"uses {found}" if found else ""
