# SPDX-License-Identifier: Apache-2.0
"""The command line: `textpoke VERB`; each verb is a module here, imported only when asked for.

A verb's module has `add_arguments(parser)` and `run(args) -> int`. Exit codes: 0 done, 1 failed,
2 usage, 3 the target cannot be traced, 130 interrupted; `record -- CMD` returns CMD's own status.
"""

from __future__ import annotations

import contextlib
import os
import sys
from typing import TYPE_CHECKING

from textpoke._errors import TextpokeError
from textpoke.cli._console import escape

if TYPE_CHECKING:
    from collections.abc import Sequence

EXIT_FAILED = 1
EXIT_INTERRUPTED = 130


def _require_streams() -> None:
    # A shell may have closed them (`>&-`): then nobody reads what is written.
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))  # noqa: SIM115 - the process keeps it


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code; every error is one line on stderr.

    Args:
        argv: Arguments without the program's name; None for `sys.argv`.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    _require_streams()
    try:
        return _run(words)
    except TextpokeError as exc:
        return _fail(str(exc), exc.exit_code)
    except KeyboardInterrupt:
        return _fail("interrupted", EXIT_INTERRUPTED)
    except BrokenPipeError:
        _abandon_stdout()
        return EXIT_FAILED
    except OSError as exc:
        _abandon_stdout()
        return _fail(_os_error_text(exc), EXIT_FAILED)


def _run(words: list[str]) -> int:
    from textpoke.cli import _parser  # here: Ctrl-C may come while it is read

    try:
        code = _parser.run(words)
    except _parser.UsageError as exc:
        return _fail(str(exc), _parser.EXIT_USAGE)
    sys.stdout.flush()
    return code


def _fail(message: str, code: int) -> int:
    line = escape(" ".join(message.split()))
    with contextlib.suppress(OSError):
        print(f"textpoke: error: {line}", file=sys.stderr)
    return code


def _os_error_text(exc: OSError) -> str:
    what = exc.strerror or str(exc) or type(exc).__name__
    return f"{os.fsdecode(exc.filename)}: {what}" if isinstance(exc.filename, str | bytes) else what


def _abandon_stdout() -> None:
    # Nobody reads any more: what is still buffered must not fail again when Python exits.
    with contextlib.suppress(OSError, ValueError):
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, sys.stdout.fileno())
        os.close(nowhere)
