# SPDX-License-Identifier: Apache-2.0
"""The formats by name; the module of one is imported only when it is written."""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, BinaryIO

if TYPE_CHECKING:
    from textpoke.export.source import Source


@dataclass(frozen=True, slots=True)
class Format:
    """A format that a capture can be written in.

    Attributes:
        name: Also of its module here, whose `write(source, file)` writes it.
        suffix: Of its files, by which it is known.
        what: One line of help.
        next_step: What to do with the file; `{}` stands for its name.
        is_text: Whether it can be shown on a terminal.
    """

    name: str
    suffix: str
    what: str
    next_step: str
    is_text: bool = False

    def write(self, source: Source, file: BinaryIO) -> None:
        """Write the calls of a capture.

        Raises:
            CaptureFormat: the capture changed while it was read.
            MissingLibrary: the format needs a library that is not installed.
            OSError: the file cannot be written.
        """
        importlib.import_module(f"textpoke.export.{self.name}").write(source, file)


_PERFETTO = "open it at https://ui.perfetto.dev: {}"

FORMATS = {
    format_.name: format_
    for format_ in (
        Format(
            "flamegraph", ".html", "flame graph, one HTML file", "open it in a browser: {}", True
        ),
        Format("perfetto", ".pftrace", "Perfetto's own format", _PERFETTO),
        Format("chrome", ".json", "Trace Event JSON, of chrome://tracing; large", _PERFETTO, True),
        Format(
            "speedscope",
            ".speedscope.json",
            "speedscope's own JSON",
            "open it at https://www.speedscope.app: {}",
            True,
        ),
        Format("pprof", ".pb.gz", "pprof's profile.proto", "go tool pprof -top {}"),
        Format(
            "parquet",
            ".parquet",
            "a row per call, for DuckDB, pandas and others; needs pyarrow",
            "duckdb -c \"SELECT function, count(*), sum(self_ns) AS self_ns FROM '{}' "
            'GROUP BY ALL ORDER BY self_ns DESC LIMIT 10"',
        ),
        Format("folded", ".folded", "folded stacks", "flamegraph.pl {} > flame.svg", True),
    )
}

OTLP = "otlp"
"""The one that is sent to somebody and no file: `otlp.send`."""


def by_suffix(path: str) -> Format | None:
    """The format of a file by its name, the longest suffix first; None for an unknown one."""
    known = sorted(FORMATS.values(), key=lambda f: -len(f.suffix))
    return next((f for f in known if path.endswith(f.suffix)), None)
