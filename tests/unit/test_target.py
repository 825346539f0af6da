# SPDX-License-Identifier: Apache-2.0
"""A process as proc shows it: mappings, threads, modules, and the very file behind each module."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from typing import TYPE_CHECKING

import pytest
from targets import PATCHABLE, nm, reported, running_sites

from textpoke import elf, proc
from textpoke._errors import AttachDenied, ModuleUnavailable, NoSuchTarget
from textpoke.model import Mapping
from textpoke.target import open_module, read_maps, read_modules, read_threads

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from conftest import Compile, Start

NOBODY = 65534
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="the kernel allows it to root only")
LIBRARY = ("-shared", "-fPIC", f"{PATCHABLE}5")


def wait_until(condition: Callable[[], object]) -> None:
    """Wait up to five seconds for something to become true."""
    deadline = time.monotonic() + 5
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_maps_lines_are_taken_apart(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    directory = tmp_path / "7"
    directory.mkdir()
    (directory / "status").write_text("Name:\tx\nState:\tS (sleeping)\n")
    (directory / "maps").write_bytes(
        b"00400000-00401000 r-xp 00002000 fd:01 123  /opt/a b/prog\n"
        b"7f0000000000-7f0000001000 rw-p 00000000 00:00 0 \n"
        b"7f0000001000-7f0000002000 r--p 00000000 00:00 0  [vvar]\n"
        b"7f0000002000-7f0000003000 r-xp 00000000 00:1f 9  /tmp/new\\012line \xff (deleted)\n"
    )
    monkeypatch.setattr(proc, "ROOT", str(tmp_path))
    assert read_maps(7) == [
        Mapping(0x400000, 0x401000, "r-xp", 0x2000, "fd:01", 123, "/opt/a b/prog"),
        Mapping(0x7F0000000000, 0x7F0000001000, "rw-p", 0, "00:00", 0, ""),
        Mapping(0x7F0000001000, 0x7F0000002000, "r--p", 0, "00:00", 0, "[vvar]"),
        Mapping(
            0x7F0000002000, 0x7F0000003000, "r-xp", 0, "00:1f", 9, "/tmp/new\nline \udcff (deleted)"
        ),
    ]


def test_threads_carry_names_and_masks(compile_target: Compile, start_target: Start) -> None:
    process = start_target(compile_target("signals.c"), "plain", "masked")
    main, plain, masked = read_threads(process.pid)
    assert [t.name for t in (plain, masked)] == ["plain", "masked"]
    assert main.tid == process.pid
    assert masked.sig_blocked == 1 << signal.SIGTRAP - 1
    assert (plain.sig_blocked, plain.sig_pending, plain.seccomp, plain.tracer_pid) == (0, 0, 0, 0)
    assert {t.state for t in (plain, masked)} == {"S"}


def test_more_threads_than_there_is_room_for_at_first() -> None:
    script = (
        "import threading, time\n"
        "for _ in range(150):\n"
        "    threading.Thread(target=time.sleep, args=(60,), daemon=True).start()\n"
        "print('ready', flush=True); time.sleep(60)"
    )
    process = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        tids = [thread.tid for thread in read_threads(process.pid)]
        assert len(set(tids)) == 151
        assert tids == sorted(tids)
        assert proc.read_thread(process.pid, tids[-1]).tid == tids[-1]
    finally:
        process.kill()
        process.wait()
        process.stdout.close()
    with pytest.raises(NoSuchTarget):
        proc.read_thread(process.pid, tids[-1])


@pytest.mark.parametrize("read", [read_maps, read_threads, read_modules])
def test_no_such_process(read: Callable[[int], object]) -> None:
    with pytest.raises(NoSuchTarget) as caught:
        read(1 << 22)
    assert caught.value.pid == 1 << 22
    assert isinstance(caught.value, ProcessLookupError)


@pytest.mark.parametrize(
    "link", [("-pie", "-fPIE"), ("-no-pie", "-fno-pie"), ("-static-pie", "-fPIE")]
)
def test_bias_is_where_the_program_runs(
    link: tuple[str, ...], compile_target: Compile, start_target: Start
) -> None:
    program = compile_target("nops.c", *link)
    process = start_target(program)
    main = read_modules(process.pid)[0]
    assert (main.is_main, main.name, main.path) == (True, program.name, str(program))
    assert main.bias == reported(process)["alpha"] - nm(program)["alpha"]
    assert any("x" in mapping.perms for mapping in main.mappings)
    assert {mapping.path for mapping in main.mappings} == {str(program)}


@pytest.mark.parametrize(
    ("file", "link", "name"),
    [
        ("redis-check-rdb", "redis-server", "redis-server"),
        ("python3.11", "python3", "python3.11"),  # a beginning is no other name
        ("vim.basic", "vi", "vim.basic"),
        ("busybox", "a-name-of-twenty-two-x", "busybox"),  # the kernel has cut it off
    ],
)
def test_a_program_is_called_as_it_was_started(
    file: str, link: str, name: str, compile_target: Compile, start_target: Start, tmp_path: Path
) -> None:
    shutil.copy(compile_target("nops.c"), tmp_path / file)
    (tmp_path / link).symlink_to(file)
    process = start_target(tmp_path / link)
    main = read_modules(process.pid)[0]
    assert (main.is_main, main.name, main.path) == (True, name, str(tmp_path / file))


def test_a_name_that_is_another_file_is_not_the_programs(
    compile_target: Compile, start_target: Start, tmp_path: Path
) -> None:
    shutil.copy(compile_target("nops.c"), tmp_path / "file")
    (tmp_path / "link").symlink_to("file")
    process = start_target(tmp_path / "link")
    (tmp_path / "link").unlink()
    shutil.copy("/bin/true", tmp_path / "link")
    assert read_modules(process.pid)[0].name == "file"


def test_modules_are_files_with_code(compile_target: Compile, start_target: Start) -> None:
    process = start_target(compile_target("nops.c"))
    modules = read_modules(process.pid)
    assert [module.is_main for module in modules] == [True] + [False] * (len(modules) - 1)
    names = [module.name for module in modules]
    assert {"libc.so.6", "ld-linux-x86-64.so.2"} <= set(names)
    assert len(names) == len(set(names))
    for module in modules:
        with elf.Image.open(open_module(process.pid, module)) as image:
            assert os.stat(image.path).st_ino == module.mappings[0].inode
            assert module.bias + image.loads[0].vaddr == module.mappings[0].start


def test_code_that_is_split_keeps_its_bias(compile_target: Compile, start_target: Start) -> None:
    # A page of the program's text gets other rights and so a mapping of its own.
    process = start_target(compile_target("split.c", f"{PATCHABLE}5"))
    main = read_modules(process.pid)[0]
    assert sum("x" in mapping.perms for mapping in main.mappings) >= 2
    assert [module.is_main for module in read_modules(process.pid)].count(True) == 1


@pytest.fixture
def loaded(
    compile_target: Compile, start_target: Start, tmp_path: Path
) -> tuple[int, Path, dict[str, int]]:
    """Return the pid of a program, a library of its own that it has loaded, and addresses in it."""
    library = tmp_path / "libplugin.so"
    shutil.copy(compile_target("nops.c", *LIBRARY), library)
    process = start_target(compile_target("load.c"), str(library))
    return process.pid, library, reported(process)


@needs_root
def test_a_deleted_library_is_reached_as_root(loaded: tuple[int, Path, dict[str, int]]) -> None:
    pid, library, addresses = loaded
    library.unlink()
    found = {site.function: site.entry for site in running_sites(pid, library.name)}
    assert found.items() >= addresses.items()


@needs_root
def test_a_replaced_library_is_reached_as_root(
    loaded: tuple[int, Path, dict[str, int]], compile_target: Compile
) -> None:
    pid, library, addresses = loaded
    other = library.with_name("other.so")
    shutil.copy(compile_target("nops.c", *LIBRARY, "-O0"), other)
    other.replace(library)
    found = {site.function: site.entry for site in running_sites(pid, library.name)}
    assert found.items() >= addresses.items()


@pytest.mark.parametrize("replaced", [False, True])
def test_a_file_that_is_gone_says_so(
    replaced: bool, loaded: tuple[int, Path, dict[str, int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    pid, library, _ = loaded
    (module,) = (m for m in read_modules(pid) if m.name == library.name)
    library.rename(library.with_name("moved.so"))
    if replaced:
        library.write_bytes(b"something else")
    # Users other than root may not follow these links.
    monkeypatch.setattr(os, "access", lambda path, _mode: "map_files" not in path)
    with pytest.raises(ModuleUnavailable) as caught:
        open_module(pid, module)
    reason = "was replaced while the program runs" if replaced else "was deleted"
    assert reason in caught.value.reason
    assert caught.value.path == str(library)
    assert library.name not in {m.name for m in read_modules(pid)}


def test_other_inode_numbers_are_settled_by_the_build_id(
    loaded: tuple[int, Path, dict[str, int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    # overlayfs and btrfs show one inode number in maps and another in stat: a copy does the same.
    pid, library, _ = loaded
    (module,) = (m for m in read_modules(pid) if m.name == library.name)
    copy = library.with_name("copy.so")
    shutil.copy(library, copy)
    copy.replace(library)
    monkeypatch.setattr(os, "access", lambda path, _mode: "map_files" not in path)
    assert open_module(pid, module) == f"/proc/{pid}/root{library}"


def test_a_deleted_program_is_still_opened(
    compile_target: Compile, start_target: Start, tmp_path: Path
) -> None:
    program = tmp_path / "gone"
    shutil.copy(compile_target("nops.c", f"{PATCHABLE}5"), program)
    process = start_target(program)
    program.unlink()
    main = read_modules(process.pid)[0]
    assert (main.is_main, main.name) == (True, "gone")
    assert {s.function: s.entry for s in running_sites(process.pid, "gone")}.items() >= reported(
        process
    ).items()


@needs_root
def test_a_program_in_a_chroot_is_found(
    compile_target: Compile, start_target: Start, tmp_path: Path
) -> None:
    shutil.copy(compile_target("nops.c", "-static", f"{PATCHABLE}5"), tmp_path / "prog")
    enter = f"import os; os.chroot({str(tmp_path)!r}); os.chdir('/'); os.execv('/prog', ['prog'])"
    process = start_target(sys.executable, "-S", "-c", enter)
    sites = running_sites(process.pid, "prog")
    assert {s.function: s.entry for s in sites}.items() >= reported(process).items()


def test_a_program_whose_first_thread_has_exited_is_found(
    compile_target: Compile, start_target: Start
) -> None:
    process = start_target(compile_target("signals.c"), "leader-exits", "plain")
    wait_until(lambda: read_threads(process.pid)[0].state == "Z")
    main, *others = read_modules(process.pid)
    assert main.is_main
    assert open_module(process.pid, main).endswith("/exe")
    assert "libc.so.6" in {module.name for module in others}
    assert all("/root/" in open_module(process.pid, module) for module in others)


@needs_root
def test_another_users_process_is_refused(compile_target: Compile, start_target: Start) -> None:
    process = start_target(compile_target("nops.c"))
    code = f"""
import os, sys
from textpoke.target import read_maps
os.setgid({NOBODY}); os.setuid({NOBODY})
try:
    read_maps({process.pid})
except PermissionError as exc:
    print(type(exc).__name__, exc.pid, exc.causes)
"""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    found = subprocess.check_output([sys.executable, "-c", code], text=True, env=environment)
    assert found.startswith(f"{AttachDenied.__name__} {process.pid} [")
