# SPDX-License-Identifier: Apache-2.0
"""What the verbs share that speak to a running recording."""

from __future__ import annotations

from typing import TYPE_CHECKING

from textpoke.cli import _parser

if TYPE_CHECKING:
    import argparse
    from collections.abc import Sequence


def add_running(
    parser: _parser.VerbParser, usage: str, *, instance: bool = True, required: bool = True
) -> None:
    """Add `-p` and `--instance` (`args.instance`), and say how the verb is used."""
    _parser.add_target(parser, command=False, required=required)
    parser.usage = f"{parser.prog} {usage}"
    if instance:
        parser.add_argument(
            "--instance",
            default="",
            metavar="NAME",
            help="the recording, as textpoke instances lists them (default: the first)",
        )


def ask(args: argparse.Namespace, verb: str, **fields: object) -> dict[str, object]:
    """One question to the textpoke that records `args.pid`.

    Raises:
        NobodyRecords, ControlFailed, ControlUnsafe: As `control.ControlClient`.
    """
    from textpoke.control import ControlClient

    fds = fields.pop("fds", ())
    with ControlClient(args.pid) as client:
        return client.ask(verb, fds=fds, **fields)  # type: ignore[arg-type]


def texts_of(result: dict[str, object], name: str) -> list[str]:
    """A list of strings in an answer."""
    items = result.get(name)
    return [str(item) for item in items] if isinstance(items, list) else []


def rows_of(result: dict[str, object], name: str) -> list[dict[str, object]]:
    """A list of objects in an answer."""
    items = result.get(name)
    return [i for i in items if isinstance(i, dict)] if isinstance(items, list) else []


def count(result: dict[str, object], name: str) -> int:
    """A number in an answer; 0 when absent."""
    value = result.get(name)
    return value if isinstance(value, int) else 0


def expressions(patterns: Sequence[str]) -> list[str]:
    """The expressions of the filter language, with those in files ("@FILE") in their place.

    Raises:
        BadFilter, OSError: Before anybody is asked.
    """
    from textpoke.filters import parse_rules

    return [rule.text for rule in parse_rules(patterns)]
