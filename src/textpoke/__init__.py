# SPDX-License-Identifier: Apache-2.0
"""textpoke: patch and trace the machine code of running x86-64 Linux programs, live, in batches.

    >>> import textpoke
    >>> with textpoke.attach(1234) as target:
    ...     with target.trace("redis!*Command", output="redis.tptrace") as trace:
    ...         trace.run(seconds=2)
    >>> target.report.clean
    True

The public names load on first use, so that `import textpoke` costs next to nothing.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

from textpoke._version import __version__

if TYPE_CHECKING:
    from textpoke._errors import (
        AgentError,
        AgentFailed,
        AgentTimeout,
        AgentVersion,
        ArgumentSpec,
        AttachDenied,
        BadElf,
        BadExpression,
        BadFilter,
        BadTrigger,
        BatchFailed,
        BatchRefused,
        BytesDiffer,
        CaptureError,
        CaptureExists,
        CaptureFormat,
        CaptureWrite,
        ControlBusy,
        ControlError,
        ControlFailed,
        ControlUnsafe,
        ModuleUnavailable,
        NobodyRecords,
        NoSites,
        NoSuchTarget,
        NotPatchable,
        PokeError,
        SiteError,
        TargetBusy,
        TargetError,
        TargetExited,
        TextpokeError,
        TraceExists,
        UnknownFunction,
        UnknownTracer,
        UnsupportedTarget,
        ViewError,
    )
    from textpoke.bp import TextPokeIter, text_poke_bp, text_poke_bp_list
    from textpoke.capture import Capture
    from textpoke.engine import Batch
    from textpoke.filters import FilterSet, Threads
    from textpoke.leave import DetachReport
    from textpoke.model import Module, Site, SiteKind
    from textpoke.modes import Choice, Mode
    from textpoke.one_trace import Trace
    from textpoke.own_calls import OwnCalls
    from textpoke.own_process import OwnTrace, trace
    from textpoke.poke import Outcome, Poke
    from textpoke.tracer import Target, attach, launch, this_process

_HOME = {
    **dict.fromkeys(("TextPokeIter", "text_poke_bp", "text_poke_bp_list"), "bp"),
    **dict.fromkeys(("Choice", "Mode"), "modes"),
    **dict.fromkeys(("Outcome", "Poke"), "poke"),
    **dict.fromkeys(("Module", "Site", "SiteKind"), "model"),
    **dict.fromkeys(("Target", "attach", "launch", "this_process"), "tracer"),
    "Batch": "engine",
    "Capture": "capture",
    "DetachReport": "leave",
    "FilterSet": "filters",
    "Threads": "filters",
    "OwnCalls": "own_calls",
    "OwnTrace": "own_process",
    "Trace": "one_trace",
    "trace": "own_process",
}

__all__ = [
    "AgentError",
    "AgentFailed",
    "AgentTimeout",
    "AgentVersion",
    "ArgumentSpec",
    "AttachDenied",
    "BadElf",
    "BadExpression",
    "BadFilter",
    "BadTrigger",
    "Batch",
    "BatchFailed",
    "BatchRefused",
    "BytesDiffer",
    "Capture",
    "CaptureError",
    "CaptureExists",
    "CaptureFormat",
    "CaptureWrite",
    "Choice",
    "ControlBusy",
    "ControlError",
    "ControlFailed",
    "ControlUnsafe",
    "DetachReport",
    "FilterSet",
    "Mode",
    "Module",
    "ModuleUnavailable",
    "NoSites",
    "NoSuchTarget",
    "NobodyRecords",
    "NotPatchable",
    "Outcome",
    "OwnCalls",
    "OwnTrace",
    "Poke",
    "PokeError",
    "Site",
    "SiteError",
    "SiteKind",
    "Target",
    "TargetBusy",
    "TargetError",
    "TargetExited",
    "TextPokeIter",
    "TextpokeError",
    "Threads",
    "Trace",
    "TraceExists",
    "UnknownFunction",
    "UnknownTracer",
    "UnsupportedTarget",
    "ViewError",
    "__version__",
    "attach",
    "launch",
    "text_poke_bp",
    "text_poke_bp_list",
    "this_process",
    "trace",
]


def __getattr__(name: str) -> object:
    if name not in __all__:
        raise AttributeError(f"module 'textpoke' has no attribute {name!r}")
    module = importlib.import_module(f"textpoke.{_HOME.get(name, '_errors')}")
    value: object = getattr(module, name)
    globals()[name] = value
    return value


def load_ipython_extension(shell: object) -> None:
    """`%load_ext textpoke` in IPython and Jupyter: see `textpoke.notebook`."""
    importlib.import_module("textpoke.notebook").load(shell)
