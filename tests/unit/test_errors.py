# SPDX-License-Identifier: Apache-2.0
"""Exceptions carry their data, fit the builtins, read as one line, and travel between processes."""

from __future__ import annotations

import inspect
import pickle

import pytest
from targets import site

from textpoke import _errors
from textpoke._errors import (
    AgentFailed,
    AgentTimeout,
    AgentVersion,
    ArgumentSpec,
    AttachDenied,
    BadElf,
    BadFilter,
    BadTrigger,
    BatchFailed,
    BatchRefused,
    BytesDiffer,
    CaptureExists,
    CaptureFormat,
    CaptureWrite,
    ControlBusy,
    ControlFailed,
    ControlUnsafe,
    MissingLibrary,
    ModuleUnavailable,
    NobodyRecords,
    NoSites,
    NoSuchTarget,
    NotPatchable,
    SpansNotSent,
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

# One of each, the builtin that it fits, and what its message must hold.
CASES: list[tuple[TextpokeError, type[Exception], list[str]]] = [
    (NoSuchTarget(7), ProcessLookupError, ["pid 7"]),
    (AttachDenied(7, ["uid 0", "ptrace_scope 2"]), PermissionError, ["uid 0; ptrace_scope 2"]),
    (TargetExited(7, "record"), ProcessLookupError, ["pid 7 exited during record"]),
    (TargetExited(7), ProcessLookupError, ["pid 7 exited"]),
    (TargetBusy(7, "textpoke (pid 9)"), TargetError, ["textpoke (pid 9)", "status -p 7"]),
    (UnsupportedTarget(7, "zombie", "it ended"), TargetError, ["pid 7 (zombie): it ended"]),
    (BadElf("a.so", 64, "cut off"), ValueError, ["a.so", "cut off", "0x40"]),
    (ModuleUnavailable("a.so", "replaced"), OSError, ["a.so: replaced"]),
    (UnknownFunction("f*", ["fun", "fan"]), LookupError, ["'f*'", "fun, fan", "textpoke sites"]),
    (UnknownFunction("f*"), LookupError, ["'f*'"]),
    (UnknownTracer("hwlat", ["nop", "blk"]), ValueError, ["'hwlat'", "nop, blk"]),
    (TraceExists(7, "mem"), TextpokeError, ["pid 7", "'mem'"]),
    (NoSites("prog", "build it so"), LookupError, ["prog", "build it so"]),
    (NotPatchable(site("f"), "too short"), TextpokeError, ["prog!f at 0x1000", "too short"]),
    (ArgumentSpec("f(a", 4, "')' is missing"), ValueError, ["'f(a', column 4: ')' is missing"]),
    (BatchRefused("no opcode"), TextpokeError, ["nothing was written", "no opcode"]),
    (
        BytesDiffer(0x1000, "f", b"\x90", b"\xcc", "a debugger"),
        BatchRefused,
        ["f at 0x1000 holds cc, expected 90 (probably a debugger)", "nothing was written"],
    ),
    (
        BatchFailed("tail", 3, 0x1000, recovered=True),
        TextpokeError,
        ["tail", "site 3", "0x1000", "put back"],
    ),
    (
        BatchFailed("tail", 3, 0x1000, recovered=False, detail="EIO"),
        TextpokeError,
        ["EIO", "NOT all"],
    ),
    (AgentTimeout("toggling", 1.5), TimeoutError, ["1.5 s", "toggling"]),
    (AgentVersion(2, 3), TextpokeError, ["version 2", "needs 3"]),
    (AgentFailed("mapping the agent", 12), TextpokeError, ["mapping the agent", "ENOMEM"]),
    (CaptureFormat("a.tptrace", 9, "bad magic"), ValueError, ["a.tptrace", "bad magic", "byte 9"]),
    (CaptureExists("a.tptrace"), FileExistsError, ["a.tptrace exists", "-f"]),
    (CaptureWrite("a.tptrace", 28), OSError, ["a.tptrace", "ENOSPC"]),
    (CaptureWrite("a.tptrace", 9999), OSError, ["a.tptrace", "9999"]),
    (BadFilter("f:x:y", 3, "no such command"), ValueError, ["'f:x:y', column 3: no such"]),
    (BadTrigger("f:", 3, "what for?"), ValueError, ["'f:', column 3: what for?"]),
    (NobodyRecords(7), LookupError, ["no textpoke is recording pid 7", "record -p 7"]),
    (ControlBusy(7, "textpoke (pid 9)"), TextpokeError, ["textpoke (pid 9)", "pid 7"]),
    (ControlUnsafe("/tmp/x", "mode 777"), PermissionError, ["/tmp/x", "mode 777"]),
    (ControlFailed("switch", "no tracer 'x'", "ValueError"), TextpokeError, ["no tracer 'x'"]),
    (ViewError("/tmp/perf-1.map", "no space", 28), OSError, ["/tmp/perf-1.map: no space"]),
    (SpansNotSent("http://x", "refused", 0), ConnectionError, ["http://x: refused", "--endpoint"]),
    (SpansNotSent("http://x", "busy", 512), ConnectionError, ["http://x after 512 spans: busy"]),
    (MissingLibrary("textual", "top"), ImportError, ["pip install 'textpoke[top]'"]),
]
IDS = [f"{type(case[0]).__name__} {number}" for number, case in enumerate(CASES)]


@pytest.mark.parametrize(("error", "builtin", "parts"), CASES, ids=IDS)
def test_messages_are_one_line_with_their_data(
    error: TextpokeError, builtin: type[Exception], parts: list[str]
) -> None:
    assert isinstance(error, TextpokeError)
    assert isinstance(error, builtin)
    assert "\n" not in str(error)
    for part in parts:
        assert part in str(error)


@pytest.mark.parametrize("error", [case[0] for case in CASES], ids=IDS)
def test_exceptions_survive_pickling(error: TextpokeError) -> None:
    copy = pickle.loads(pickle.dumps(error))
    assert type(copy) is type(error)
    assert (str(copy), vars(copy)) == (str(error), vars(error))
    assert getattr(copy, "errno", None) == getattr(error, "errno", None)


def test_fields_hold_the_data() -> None:
    assert AttachDenied(7, ("a", "b")).causes == ["a", "b"]
    assert CaptureWrite("x", 28).errno == 28
    assert NoSuchTarget(7).errno == 3
    failed = BatchFailed("first byte", 3, 0x1000, recovered=False)
    assert (failed.phase, failed.fail_count, failed.fail_addr, failed.recovered) == (
        "first byte",
        3,
        4096,
        False,
    )


def test_exit_codes() -> None:
    for error, _, _ in CASES:
        usage = isinstance(error, (_errors.BadExpression, UnknownTracer))
        assert error.exit_code == (3 if isinstance(error, TargetError) else 2 if usage else 1)


def test_the_tree_in_the_docstring_is_the_tree() -> None:
    assert _errors.__doc__ is not None
    rows = [line.split() for line in _errors.__doc__.splitlines() if "-- " in line]
    drawn = {next(word for word in row if word[0].isalpha()): row for row in rows}
    real = {
        name
        for name, value in vars(_errors).items()
        if inspect.isclass(value) and issubclass(value, TextpokeError)
    }
    assert drawn.keys() == real - {"TextpokeError"}
    for error, builtin, _ in CASES:
        row = drawn[type(error).__name__]
        assert all(hasattr(error, word[1:]) for word in row if word[0] == ".")
        if builtin.__module__ == "builtins":
            assert builtin.__name__ in row
