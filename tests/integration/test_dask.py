# SPDX-License-Identifier: Apache-2.0
"""Native functions on all workers of a Dask cluster, as one dataset."""

from __future__ import annotations

import os
import signal
import time
import zlib

import duckdb
import pytest
from distributed import Client, LocalCluster, get_worker

from textpoke.dask import trace_cluster

WORKERS, TASKS = 4, 40
SLOWEST = """
    SELECT worker, sum(self_ns) AS spent, count(*) AS calls
    FROM read_parquet($1) GROUP BY worker ORDER BY spent DESC
"""


def squeeze(size):
    zlib.compress(os.urandom(size))
    return get_worker().address


@pytest.fixture
def client():
    with (
        LocalCluster(
            n_workers=WORKERS, threads_per_worker=1, processes=True, dashboard_address=None
        ) as cluster,
        Client(cluster) as connected,
    ):
        connected.wait_for_workers(WORKERS)
        yield connected


def spread(client, slow):
    """Each worker does its share; one has to compress a hundred times as much at a time."""
    workers = sorted(client.scheduler_info(n_workers=-1)["workers"])
    size = {worker: 1_000_000 if worker == slow else 10_000 for worker in workers}
    tasks = [
        client.submit(squeeze, size[worker], workers=[worker], pure=False)
        for worker in workers
        for _ in range(TASKS // WORKERS)
    ]
    return client.gather(tasks)


def test_one_query_names_the_slowest_worker(client, tmp_path):
    slow = sorted(client.scheduler_info(n_workers=-1)["workers"])[2]
    with trace_cluster(client, "libz!deflate") as traced:
        assert len(traced.workers) == WORKERS
        spread(client, slow)
    assert traced.complete
    path = tmp_path / "calls.parquet"
    traced.to_parquet(path)
    rows = duckdb.execute(SLOWEST, [str(path)]).fetchall()
    assert rows[0][0] == slow
    assert rows[0][1] > 5 * rows[1][1]
    assert [calls for _, _, calls in rows[1:]] == [TASKS // WORKERS] * (WORKERS - 1)
    assert duckdb.execute("SELECT sum(lost) FROM read_parquet($1)", [str(path)]).fetchone() == (0,)


def test_a_killed_worker_costs_its_own_data_only(client):
    addresses = client.run(os.getpid)
    victim, pid = min(addresses.items())
    with trace_cluster(client, "libz!deflate") as traced:
        spread(client, victim)
        os.kill(pid, signal.SIGKILL)
        deadline = time.monotonic() + 20
        while victim in client.scheduler_info(n_workers=-1)["workers"]:
            assert time.monotonic() < deadline
            time.sleep(0.05)
    assert list(traced.problems) == [victim]
    assert not traced.complete
    assert victim in repr(traced)
    counts = traced.to_arrow().group_by("worker").aggregate([("self_ns", "count")]).to_pydict()
    assert sorted(counts["worker"]) == sorted(addresses.keys() - {victim})
    assert counts["self_ns_count"] == [TASKS // WORKERS] * (WORKERS - 1)


def test_what_cannot_be_traced_is_told(client):
    with pytest.raises(RuntimeError, match=r"no worker can be traced.*no function matches"):
        trace_cluster(client, "libz!nosuch").__enter__()
    with trace_cluster(client, "libz!deflate"):
        spread(client, "")
