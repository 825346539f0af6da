# SPDX-License-Identifier: Apache-2.0
"""Parquet: a row per call, for DuckDB, pandas, Polars and whatever else reads columns."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from textpoke.calls import UNFINISHED
from textpoke.optional import needed
from textpoke.report.names import encodable

if TYPE_CHECKING:
    from collections.abc import Iterable
    from types import ModuleType
    from typing import BinaryIO

    from numpy.typing import NDArray
    from pyarrow import Array, Schema

    from textpoke.calls import Calls
    from textpoke.export.source import Source


def write(source: Source, file: BinaryIO) -> None:
    """Write all calls; docs/formats.md has the columns.

    Raises:
        CaptureFormat: the capture changed while it was read.
        MissingLibrary: pyarrow is not installed.
        OSError: the file cannot be written.
    """
    pa, pq = needed("pyarrow", "parquet"), needed("pyarrow.parquet", "parquet")
    schema = _schema(pa, source)
    names = _Names(pa, source)
    with pq.ParquetWriter(file, schema, compression="zstd") as writer:
        for tid in source.tids():
            for calls in source.calls(tid):
                for part in source.parts(len(calls)):
                    columns = _columns(pa, source, calls, part, names)
                    writer.write_table(pa.table(columns, schema=schema))


def _schema(pa: ModuleType, source: Source) -> Schema:
    text = pa.dictionary(pa.int32(), pa.string())
    meta = source.capture.meta
    about = {
        "textpoke.pid": str(source.pid),
        "textpoke.exe": meta.exe,
        "textpoke.start_realtime_ns": str(meta.clock.realtime_ns),
        "textpoke.events_lost": str(source.lost),
        "textpoke.time_known": str(source.decoder.clock.known).lower(),
    }
    return pa.schema(
        [
            pa.field("tid", pa.uint32(), nullable=False),
            pa.field("thread", text),
            pa.field("module", text),
            pa.field("function", text),
            pa.field("start_ns", pa.int64(), nullable=False),
            pa.field("duration_ns", pa.int64()),
            pa.field("self_ns", pa.int64()),
            pa.field("depth", pa.uint32()),
            pa.field("caller", text),
            pa.field("tracer", text, nullable=False),
        ],
        metadata={key: value.encode("utf-8", "replace") for key, value in about.items()},
    )


class _Names:
    # Every name once: rows have its number.

    def __init__(self, pa: ModuleType, source: Source) -> None:
        self._pa = pa
        sites = source.capture.meta.sites
        self._module, self._modules = _numbered(pa, [site.module for site in sites])
        self._function, self._functions = _numbered(pa, [site.function for site in sites])

    def modules(self, site: NDArray[np.int32]) -> Array:
        return self._of(site, self._module, self._modules)

    def functions(self, site: NDArray[np.int32]) -> Array:
        return self._of(site, self._function, self._functions)

    def one(self, name: str, count: int) -> Array:
        index = self._pa.array(np.zeros(count, np.int32))
        return self._pa.DictionaryArray.from_arrays(index, _strings(self._pa, [name]))

    def _of(self, site: NDArray[np.int32], places: NDArray[np.int32], names: Array) -> Array:
        # -1, of no site, finds the one that is appended; it becomes a null.
        index = self._pa.array(np.append(places, 0)[site].astype(np.int32), mask=site < 0)
        return self._pa.DictionaryArray.from_arrays(index, names)


def _numbered(pa: ModuleType, names: list[str]) -> tuple[NDArray[np.int32], Array]:
    place = {name: i for i, name in enumerate(dict.fromkeys(names))}
    return np.array([place[name] for name in names], np.int32), _strings(pa, place)


def _strings(pa: ModuleType, names: Iterable[str]) -> Array:
    return pa.array([encodable(name) for name in names], pa.string())


def _columns(
    pa: ModuleType,
    source: Source,
    calls: Calls,
    part: slice,
    names: _Names,
) -> dict[str, Any]:
    site, parent = calls.site[part], calls.parent[part]
    tid = int(calls.tid[part.start])
    is_open = calls.end_ns[part] == UNFINISHED
    no_stack = np.full(len(site), not source.has_exits)
    caller = np.where(parent < 0, -1, calls.site[parent])
    return {
        "tid": calls.tid[part],
        "thread": names.one(source.thread_name(tid), len(site)),
        "module": names.modules(site),
        "function": names.functions(site),
        "start_ns": calls.start_ns[part],
        "duration_ns": pa.array(calls.end_ns[part] - calls.start_ns[part], mask=is_open),
        "self_ns": pa.array(calls.self_ns[part], mask=is_open),
        "depth": pa.array(calls.depth[part], mask=no_stack),
        "caller": names.functions(caller.astype(np.int32)),
        "tracer": names.one(source.capture.meta.tracer, len(site)),
    }
