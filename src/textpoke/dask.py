# SPDX-License-Identifier: Apache-2.0
"""Native functions on all workers of a Dask cluster, as one table."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING, Any, Self

from textpoke._errors import TextpokeError
from textpoke.optional import needed
from textpoke.own_process import OwnTrace, trace

if TYPE_CHECKING:
    import os
    from collections.abc import Callable, Sequence
    from types import TracebackType

    import pyarrow as pa
    from distributed import Client

_running: dict[str, OwnTrace] = {}
"""On a worker: what was begun there, by the number that the client gave it."""


class ClusterTrace:
    """A trace of every worker that there is when the block begins; see `trace_cluster`.

    Attributes:
        workers: Addresses of the workers that are traced.
        problems: By address, why a worker is not in the result: it could not be traced, or it has
            ended on the way. Its own data are missing, no others.
    """

    def __init__(self, client: Client, options: dict[str, Any]) -> None:
        self.workers: list[str] = []
        self.problems: dict[str, str] = {}
        self._client, self._options = client, options
        self._number = f"{id(self):x}"
        self._table: pa.Table | None = None

    def __enter__(self) -> Self:
        needed("pyarrow", "dask")
        begun = self._run(_begin, self._options)
        self.workers = [worker for worker, answer in begun.items() if answer == "on"]
        if not self.workers:
            first = next(iter(self.problems.items()), ("the cluster", "it has no workers"))
            raise RuntimeError(f"no worker can be traced; {first[0]}: {first[1]}")
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        ended = self._run(_end, workers=self._still_there())
        for worker in self.workers:
            if worker not in ended:
                self.problems.setdefault(worker, "it ended while it was traced")
        self._table = _joined(ended)

    @property
    def complete(self) -> bool:
        """True when every worker's data are in the result."""
        return not self.problems

    def to_arrow(self) -> pa.Table:
        """A row a call: `OwnCalls.columns` behind `worker`, and `lost`, events of that worker."""
        if self._table is None:
            raise RuntimeError("the block has not ended yet")
        return self._table

    def to_parquet(self, path: str | os.PathLike[str]) -> None:
        """One Parquet file of `to_arrow`."""
        needed("pyarrow.parquet", "dask").write_table(self.to_arrow(), path)

    def __repr__(self) -> str:
        rows = "running" if self._table is None else f"{self._table.num_rows:,} calls"
        missing = f", missing: {self.problems}" if self.problems else ""
        return f"<ClusterTrace, {len(self.workers)} workers, {rows}{missing}>"

    def _still_there(self) -> list[str]:
        there = self._client.scheduler_info(n_workers=-1)["workers"]
        return [worker for worker in self.workers if worker in there]

    def _run(
        self, function: Callable[..., object], *more: object, workers: list[str] | None = None
    ) -> dict[str, Any]:
        """Answers by worker; who failed goes to `problems`."""
        if workers is not None and not workers:
            return {}
        answers = self._client.run(
            function, self._number, *more, workers=workers, on_error="return"
        )
        failed = {w: a for w, a in answers.items() if isinstance(a, BaseException)}
        self.problems |= {w: str(a) or type(a).__name__ for w, a in failed.items()}
        return {w: a for w, a in answers.items() if w not in failed}


def trace_cluster(
    client: Client,
    include: str | Sequence[str] = (),
    exclude: str | Sequence[str] = (),
    *,
    modules: str | Sequence[str] = (),
    depth: int = 0,
) -> ClusterTrace:
    """Trace native functions on all workers of a cluster while a `with` block runs.

        >>> with trace_cluster(client, modules=["numpy"]) as t:
        ...     client.gather(client.map(work, range(100)))
        >>> t.to_parquet("calls.parquet")

    Each worker traces itself, as `textpoke.trace` does; workers must be processes. Who joins later
    is not traced; who ends on the way costs its own data only (`ClusterTrace.problems`).

    Args:
        client: Of `distributed`.
        include: As for `textpoke.trace`.
        exclude: Likewise.
        modules: Likewise.
        depth: Likewise.

    Raises:
        RuntimeError: On entering: no worker can be traced; says why.
    """
    options = {"include": include, "exclude": exclude, "modules": modules, "depth": depth}
    return ClusterTrace(client, options)


def _begin(number: str, options: dict[str, Any]) -> str:
    """On a worker."""
    if _running:
        raise RuntimeError("another trace runs in this worker's process")
    made = trace(**options)
    try:
        made.__enter__()
    except TextpokeError as exc:
        raise RuntimeError(str(exc)) from None  # one that a client without our classes can read
    _running[number] = made
    return "on"


def _end(number: str) -> tuple[bytes, int]:
    """On a worker: its calls as an Arrow stream, and how many events were lost."""
    made = _running.pop(number)
    made.__exit__(None, None, None)
    table = made.to_arrow()
    stream = io.BytesIO()
    with needed("pyarrow", "dask").ipc.new_stream(stream, table.schema) as writer:
        writer.write_table(table)
    return stream.getvalue(), made.lost


def _joined(ended: dict[str, tuple[bytes, int]]) -> pa.Table | None:
    arrow = needed("pyarrow", "dask")
    tables = []
    for worker, (data, lost) in sorted(ended.items()):
        table = arrow.ipc.open_stream(data).read_all()
        rows = table.num_rows
        table = table.add_column(0, "worker", arrow.array([worker] * rows, arrow.string()))
        tables.append(table.append_column("lost", arrow.array([lost] * rows, arrow.int64())))
    return arrow.concat_tables(tables, promote_options="default") if tables else None
