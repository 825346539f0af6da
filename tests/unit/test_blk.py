# SPDX-License-Identifier: Apache-2.0
"""I/O out of calls: which file a descriptor was, bytes, errors, latency."""

from __future__ import annotations

from call_tables import Call, call, table

from textpoke.blk import Sums, Transfers, sums, transfers
from textpoke.descriptors import Look, looks

AT_FDCWD = -100


def opened(start: int, path: str, fd: int, tid: int = 1) -> Call:
    return call(tid, "open", start, start + 5, fd, path=path)


def closed(start: int, fd: int, result: int = 0) -> Call:
    return call(1, "close", start, start + 5, result, fd=fd)


def read(start: int, fd: int, result: int, tid: int = 1, caller: int = 0) -> Call:
    return call(tid, "read", start, start + 7, result, fd=fd, caller=caller)


def write(start: int, fd: int, result: int) -> Call:
    return call(1, "write", start, start + 3, result, fd=fd)


def moved(calls: list[Call], *seen: Look) -> Transfers:
    return transfers(*table("blk", calls), seen)


def files(found: Transfers) -> list[str | None]:
    return [found.files[file] if file >= 0 else None for file in found.file.tolist()]


def by_file(found: Transfers) -> dict[str | None, tuple[int, ...]]:
    rows = sums(found, found.file)
    names = [found.files[key] if key >= 0 else None for key in rows.latency.key.tolist()]
    return dict(zip(names, zip(*_columns(rows), strict=True), strict=True))


def _columns(rows: Sums) -> list[list[int]]:
    columns = (rows.calls, rows.failed, rows.bytes_read, rows.bytes_written)
    return [column.tolist() for column in columns]


def test_a_descriptor_is_the_file_that_was_opened_last() -> None:
    calls = [
        opened(0, "/a", 3),
        read(10, 3, 100),
        closed(20, 3),
        opened(30, "/b", 3),
        read(40, 3, 50),
        write(50, 3, 8),
        read(60, 9, 1),
    ]
    found = moved(calls)
    assert files(found) == ["/a", "/a", "/a", "/b", "/b", "/b", None]
    assert found.fd.tolist() == [3, 3, 3, 3, 3, 3, 9]
    assert by_file(found) == {
        "/a": (3, 0, 100, 0),
        "/b": (3, 0, 50, 8),
        None: (1, 0, 1, 0),
    }


def test_failed_calls_move_nothing_and_are_counted() -> None:
    found = moved([opened(0, "/nowhere", -1), read(10, 3, -1), closed(20, 3, -1)])
    assert found.bytes.tolist() == [0, 0, 0]
    assert found.failed.tolist() == [True, True, True]
    assert files(found) == ["/nowhere", None, None]


def test_a_call_that_never_returned_has_no_latency() -> None:
    found = moved([call(1, "read", 0, None, fd=3), read(10, 4, 5, tid=2)])
    assert found.latency_ns.tolist() == [-1, 7]
    assert found.failed.tolist() == [False, False]
    rows = sums(found, found.fd)
    assert rows.latency.count.tolist() == [1, 0]
    assert rows.calls.tolist() == [1, 1]


def test_looks_at_proc_tell_what_was_open_before() -> None:
    look = Look(5, {3: "/log", 4: "socket:[7]"})
    assert files(moved([read(10, 3, 1), read(20, 4, 1), read(30, 5, 1)], look)) == [
        "/log",
        "socket:[7]",
        None,
    ]


def test_a_later_look_tells_of_what_nobody_saw_being_made() -> None:
    calls = [closed(0, 3), read(10, 3, 1), closed(50, 3), read(60, 3, 1)]
    assert files(moved(calls, Look(30, {3: "/late"}))) == [None, "/late", "/late", None]


def test_what_a_look_lacks_has_been_closed() -> None:
    calls = [opened(0, "/a", 3), read(10, 3, 1), read(30, 3, 1)]
    assert files(moved(calls, Look(20, {}))) == ["/a", "/a", None]


def test_copies_and_connections_say_where_they_come_from() -> None:
    calls = [
        opened(0, "/a", 3),
        call(1, "dup2", 10, 11, 7, fd=3, new=7),
        closed(20, 3),
        read(30, 7, 1),
        call(1, "socket", 40, 41, 4, domain=2, type=1 | 0o4000),
        call(1, "accept4", 50, 51, 5, fd=4),
        read(60, 5, 1),
        call(1, "accept", 70, 71, 6, fd=99),
        read(80, 6, 1),
    ]
    assert files(moved(calls)) == [
        *("/a", "/a", "/a", "/a"),
        *("socket (inet stream)",) * 2,
        "accepted from socket (inet stream)",
        None,
        "accepted from descriptor 99",
    ]


def test_paths_relative_long_or_unreadable() -> None:
    long = "/" + "x" * 300
    calls = [
        call(1, "openat", 0, 5, 3, directory=AT_FDCWD, path=long),
        call(1, "open", 10, 15, 4, path="<fault>"),
        read(20, 4, 1),
    ]
    unread = "a path that could not be read"
    assert files(moved(calls)) == [long[:128] + "...", unread, unread]


def test_a_call_within_a_call_of_its_kind_counts_once() -> None:
    calls = [
        call(1, "recv", 0, 50, 10, fd=3, count=10),
        call(1, "recvfrom", 5, 45, 10, fd=3, count=10),
        call(2, "read", 0, 50, 4, fd=3),
        call(2, "write", 10, 20, 6, fd=4),  # a handler's
    ]
    found = moved(calls)
    assert sorted(found.bytes.tolist()) == [4, 6, 10]


def test_bytes_of_reads_writes_and_copies() -> None:
    calls = [
        call(1, "readv", 0, 5, 11, fd=3),
        call(1, "sendfile", 10, 15, 20, fd=4, **{"from": 3}),
        call(1, "lseek", 20, 25, 1000, fd=3),
        call(1, "sendmmsg", 30, 35, 2, fd=4),
        call(1, "fsync", 40, 45, 0, fd=3),
    ]
    found = moved(calls)
    assert found.bytes.tolist() == [11, 20, 0, 0, 0]
    assert [found.bytes[found.reads].sum(), found.bytes[found.writes].sum()] == [11, 20]


def test_looks_of_another_shape_are_passed_over() -> None:
    blocks: list[dict[str, object]] = [
        {"fds": [{"monotonic_ns": 150, "files": {"3": "/a", "x": "/b", "4": 5}}]},
        {"fds": 7},
        {"fds": [3, {"monotonic_ns": "1", "files": {}}, {"monotonic_ns": 120, "files": {}}]},
        {},
    ]
    assert looks(blocks, 100) == [Look(20, {}), Look(50, {3: "/a"})]


def test_nothing_at_all() -> None:
    found = moved([])
    assert len(found) == 0
    assert len(sums(found, found.file).latency) == 0
