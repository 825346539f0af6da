# SPDX-License-Identifier: Apache-2.0
"""SQL over the calls of a capture: DuckDB here, unchanged on any engine that reads the Parquet."""

from __future__ import annotations

import os
import tempfile
from typing import TYPE_CHECKING, Any, NamedTuple, Self

from textpoke._errors import BadQuery
from textpoke.capture import Capture
from textpoke.export import parquet
from textpoke.export.source import Source
from textpoke.optional import needed

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import TracebackType

_PARQUET = b"PAR1"


class Named(NamedTuple):
    """A query that has a name."""

    what: str
    sql: str


# Standard SQL: no engine's own words, so that they run on a cluster's engine, too.
NAMED = {
    "hottest": Named(
        "functions by the time they spent themselves",
        "SELECT function, module, COUNT(*) AS calls, SUM(self_ns) / 1e6 AS self_ms, "
        "SUM(duration_ns) / 1e6 AS total_ms FROM calls GROUP BY function, module "
        "ORDER BY self_ms DESC, calls DESC",
    ),
    "slowest": Named(
        "the longest single calls",
        "SELECT function, duration_ns / 1e6 AS ms, start_ns / 1e9 AS at_s, thread, tid, caller "
        "FROM calls WHERE duration_ns IS NOT NULL ORDER BY duration_ns DESC",
    ),
    "latency": Named(
        "median, p99 and maximum of every function",
        "SELECT function, COUNT(duration_ns) AS calls, "
        "PERCENTILE_CONT(0.5) WITHIN GROUP (ORDER BY duration_ns) / 1e3 AS p50_us, "
        "PERCENTILE_CONT(0.99) WITHIN GROUP (ORDER BY duration_ns) / 1e3 AS p99_us, "
        "MAX(duration_ns) / 1e3 AS max_us FROM calls GROUP BY function ORDER BY p99_us DESC",
    ),
    "callers": Named(
        "who called whom, how often, how long",
        "SELECT caller, function, COUNT(*) AS calls, SUM(duration_ns) / 1e6 AS total_ms "
        "FROM calls WHERE caller IS NOT NULL GROUP BY caller, function ORDER BY total_ms DESC",
    ),
    "threads": Named(
        "threads by the time of their outermost calls",
        "SELECT tid, thread, COUNT(*) AS calls, SUM(self_ns) / 1e6 AS self_ms "
        "FROM calls GROUP BY tid, thread ORDER BY self_ms DESC",
    ),
}


class Rows(NamedTuple):
    """The result of a query: names of the columns, and rows of plain Python values."""

    names: list[str]
    rows: list[tuple[Any, ...]]


class CallsTable:
    """The calls of one file as the SQL table `calls` (docs/formats.md, "Parquet").

    Args:
        path: A capture, or Parquet that `textpoke export` or `textpoke.dask` has written.
        progress: Told how many calls were read since the last time.

    Raises:
        MissingLibrary: DuckDB (or pyarrow, for a capture) is not installed.
        CaptureFormat, NothingToExport: It is neither, or holds no calls.
    """

    def __init__(
        self, path: str | os.PathLike[str], progress: Callable[[int], None] | None = None
    ) -> None:
        duckdb = needed("duckdb", "query")
        self._error = duckdb.Error
        self._temporary = ""
        self._connection = duckdb.connect()
        try:
            file = self._parquet_of(os.fspath(path), progress)
            quoted = file.replace("'", "''")
            self._connection.execute(
                f"CREATE VIEW calls AS SELECT * FROM read_parquet('{quoted}')"  # noqa: S608 - quoted
            )
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Forget the table; a second call does nothing."""
        self._connection.close()
        if self._temporary:
            os.unlink(self._temporary)
            self._temporary = ""

    def ask(self, query: str) -> Rows:
        """Run SQL, or a query by its name (`NAMED`).

        Raises:
            BadQuery: DuckDB does not understand it.
        """
        sql = NAMED[query].sql if query in NAMED else query
        if sql.strip().isidentifier():
            raise BadQuery(query, f"no query has that name; there are {', '.join(NAMED)}")
        try:
            found = self._connection.execute(sql)
            if found is None:
                raise BadQuery(query, "there is no statement")
            return Rows([column[0] for column in found.description or ()], found.fetchall())
        except self._error as exc:
            raise BadQuery(query, str(exc)) from exc

    def _parquet_of(self, path: str, progress: Callable[[int], None] | None) -> str:
        with open(path, "rb") as file:
            if file.read(len(_PARQUET)) == _PARQUET:
                return path
        handle, self._temporary = tempfile.mkstemp(prefix="textpoke-", suffix=".parquet")
        with os.fdopen(handle, "wb") as file, Capture(path) as capture:
            parquet.write(Source(capture, progress), file)
        return self._temporary
