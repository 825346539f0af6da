# SPDX-License-Identifier: Apache-2.0
"""The tables of libc's functions, against the C libraries that are here."""

from __future__ import annotations

import ctypes
import itertools
import os
import signal
import threading
import time
from pathlib import Path

import pytest

from textpoke import call_notes, descriptors, elf, proc
from textpoke._capture_json import SiteName
from textpoke.libc_calls import (
    OTHER,
    TRACERS,
    Function,
    find,
    is_inner,
    known,
)
from textpoke.payload import count_words

FUNCTIONS = list(dict.fromkeys(itertools.chain.from_iterable(TRACERS.values())))


def libc() -> tuple[Path, int]:
    """This process's C library, and where it begins."""
    for line in Path("/proc/self/maps").read_text().splitlines():
        words = line.split()
        if len(words) == 6 and Path(words[5]).name.startswith(("libc.", "libc-")):
            return Path(words[5]), int(words[0].partition("-")[0], 16)
    raise AssertionError("no libc in this process")


def found_in(path: Path, table: tuple[Function, ...]) -> dict[int, Function]:
    with elf.Image.open(str(path)) as image:
        return find(image, table)


@pytest.mark.parametrize("tracer", TRACERS)
def test_a_program_gets_the_functions_that_are_found(tracer: str) -> None:
    """The default versions: what the dynamic loader gives to programs of today."""
    path, base = libc()
    ours = ctypes.CDLL(None)
    found = found_in(path, TRACERS[tracer])
    for function in TRACERS[tracer]:
        address = ctypes.cast(getattr(ours, function.name), ctypes.c_void_p).value
        assert address is not None
        assert found[address - base] is function


def test_old_versions_of_a_symbol_are_left_out() -> None:
    path, _ = libc()
    found = found_in(path, TRACERS["wakeup_rt"])
    assert len([f for f in found.values() if f.name == "pthread_cond_wait"]) == 1


def test_aliases_are_one_site_and_inner_names_are_found_too() -> None:
    path, _ = libc()
    found = found_in(path, TRACERS["blk"])
    names = [function.name for function in found.values()]
    assert names.count("pwrite") <= 2  # pwrite64 is the same one; __pwrite64_nocancel is not
    assert names.count("read") == 2  # read and __read_nocancel


def test_musl_has_nearly_all_of_them() -> None:
    lacks = {"clockwait", "clocklock", "clockwrlock", "clockrdlock", "preadv2", "pwritev2"}
    for path in Path("/usr/lib").glob("**/ld-musl-x86_64.so.1"):
        for table in TRACERS.values():
            here = {function.name for function in found_in(path, table).values()}
            missing = {f.name for f in table} - here
            assert {name.rpartition("_")[2] for name in missing} <= lacks


def test_a_static_program_is_searched_by_its_symbol_table(tmp_path: Path) -> None:
    import subprocess

    source, program = tmp_path / "x.c", tmp_path / "x"
    source.write_text("int main(void) { return 0; }\n")
    subprocess.run(["gcc", "-static", source, "-o", program], check=True)
    assert {"read", "write", "close"} <= {
        f.name for f in found_in(program, TRACERS["blk"]).values()
    }


def test_layouts_and_names_are_by_return_address() -> None:
    (function,) = [f for f in TRACERS["blk"] if f.name == "read"]
    assert call_notes.of_sites({0x1005: function}) == {
        "layouts": {
            "4101": {
                "entry": [["caller", "caller"], ["fd", "i32"], ["count", "u64"]],
                "exit": [["result", "i64"]],
            }
        },
        "functions": {"4101": "read"},
    }


@pytest.mark.parametrize("function", FUNCTIONS, ids=lambda f: f"{f.name}")
def test_every_layout_can_be_written(function: Function) -> None:
    assert count_words(function.layout.entry) <= 32
    assert [word.name for word in function.exit] == ["result"]
    assert function.entry[0].source == "caller"
    assert len({word.name for word in function.entry}) == len(function.entry)


@pytest.mark.parametrize("table", TRACERS.values(), ids=TRACERS)
def test_no_name_is_there_twice(table: tuple[Function, ...]) -> None:
    symbols = list(itertools.chain.from_iterable(function.symbols for function in table))
    assert len(set(symbols)) == len(symbols)


def test_sites_are_known_by_note_or_by_symbol() -> None:
    sites = [
        SiteName(1, "libc.so.6", "__read"),
        SiteName(2, "libc.so.6", "qsort"),
        SiteName(3, "server", "read"),
        SiteName(4, "server", "static_write"),
    ]
    names = [f.name for f in known(sites, [{}], "blk")]
    assert names == ["read", "", "", ""]
    notes: list[dict[str, object]] = [{"functions": {"1": "read"}}, {"functions": {"4": "write"}}]
    assert [f.name for f in known(sites, notes, "blk")] == ["read", "", "", "write"]
    assert known(sites, notes, "function") == [OTHER] * 4


def test_what_counts_as_a_part_of_an_outer_call() -> None:
    by_name = {function.name: function for function in FUNCTIONS}

    def inner(outer: str, inner: str) -> bool:
        return is_inner(by_name[outer], by_name[inner])

    assert inner("pthread_cond_wait", "pthread_mutex_unlock")
    assert inner("sigprocmask", "pthread_sigmask")
    assert inner("sem_wait", "sem_timedwait")
    assert not inner("sem_wait", "sem_post")
    assert not inner("read", "write")
    assert not inner("pthread_mutex_lock", "pthread_cond_signal")


def test_a_look_at_proc_is_read_back() -> None:
    read, write = os.pipe()
    name = os.readlink(f"/proc/self/fd/{read}")
    meta = call_notes.at_start(os.getpid(), "blk", {})
    os.close(read)
    os.close(write)
    (look,) = descriptors.looks([meta], 0)
    assert look.files[read] == look.files[write] == name
    assert 0 < look.ts_ns <= time.monotonic_ns()
    assert call_notes.open_files(1 << 22) == {}


def test_threads_that_are_blocked_on_a_futex() -> None:
    semaphore, tids = threading.Semaphore(0), []
    python_thread = threading.Thread(
        target=lambda: (tids.append(threading.get_native_id()), semaphore.acquire())
    )
    python_thread.start()
    deadline = time.monotonic() + 5
    while not (tids and proc.read_futex_wait(os.getpid(), tids[0])):
        assert time.monotonic() < deadline
    waiting = call_notes.Waiting()
    (look,) = waiting.begin(os.getpid()).values()
    assert isinstance(look, dict)
    assert look["threads"][str(tids[0])] == proc.read_futex_wait(os.getpid(), tids[0])
    assert str(threading.get_native_id()) not in look["threads"]
    semaphore.release()
    python_thread.join()
    # It is gone, a moment after the interpreter has let go of it: until then it runs.
    deadline = time.monotonic() + 5
    while proc.read_futex_wait(os.getpid(), tids[0]) is None:
        assert time.monotonic() < deadline
    assert proc.read_futex_wait(os.getpid(), tids[0]) == 0
    assert call_notes.Waiting().begin(1 << 22) == {}


def test_who_was_awake_is_looked_at_again(monkeypatch: pytest.MonkeyPatch) -> None:
    answers = {1: [0], 2: [0x1000], 3: [None] * 12 + [0x2000]}
    monkeypatch.setattr(proc, "task_ids", lambda _pid: iter(answers))
    monkeypatch.setattr(proc, "read_futex_wait", lambda _pid, tid: answers[tid].pop(0))
    waiting = call_notes.Waiting()
    (first,) = waiting.begin(0).values()
    assert first["threads"] == {"2": 0x1000}
    looks: list[dict] = []
    deadline = time.monotonic() + 5
    while not looks and time.monotonic() < deadline:
        looks += waiting.more(0).values()
    assert looks == [{"tsc": first["tsc"], "threads": {"3": 0x2000}}]
    assert not any(answers.values())
    assert waiting.more(0) == {}


def test_masks_of_all_threads() -> None:
    old = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR2])
    meta = call_notes.at_start(os.getpid(), "irqsoff", {})
    signal.pthread_sigmask(signal.SIG_SETMASK, old)
    masks = meta["masks"]
    assert isinstance(masks, dict)
    assert masks[str(threading.get_native_id())] >> (signal.SIGUSR2 - 1) & 1
    assert set(call_notes.at_start(os.getpid(), "wakeup_rt", {})) == {"layouts", "functions"}
