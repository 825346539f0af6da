# SPDX-License-Identifier: Apache-2.0
"""Functions without NOPs in the very process that asks: traced, counted, left as they were."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from own import CLEAN, run

if TYPE_CHECKING:
    from conftest import Compile


@pytest.mark.parametrize("mode", ["auto", "int3", "stop"])
def test_every_function_of_extensions_at_work_is_traced_and_left_as_it_was(mode: str) -> None:
    said = run(
        """
        refused, events, modes, several = [], [], set(), 0
        with textpoke.this_process() as target:
            for pattern in EXTENSIONS:
                with target.trace(pattern, everything=True, mode=sys.argv[1]) as trace:
                    time.sleep(0.1)
                refused += [str(site) for site, _ in trace.refused]
                events.append(trace.events > 0)
                modes |= {str(choice.mode) for choice in trace.on.choices}
                several += sum(bool(site.heads) for site in trace.chosen)
        end(target, refused=refused, events=events, modes=sorted(modes), several=several > 50)
        """,
        mode,
    )
    modes = said.pop("modes")
    # CPython blocks signals around vfork: nothing in it may meet an int3 unless that is asked for.
    assert "stop" in modes and "int3" not in modes if mode == "auto" else modes == [mode]
    assert said == CLEAN | {"refused": [], "events": [True] * 4, "several": True}


@pytest.mark.parametrize("mode", ["auto", "int3", "stop"])
def test_calls_of_functions_without_nops_are_counted_one_by_one(
    mode: str, compile_target: Compile
) -> None:
    library = compile_target("counter.c", "-DPART_OBJECT", "-shared", "-fPIC")
    said = run(
        """
        library = ctypes.CDLL(sys.argv[2])
        tally = (ctypes.c_ulong * 8)()
        with textpoke.this_process() as target:
            with target.trace("counter*!top", everything=True, mode=sys.argv[1]) as trace:
                for x in range(1000):
                    library.top(tally, x)
            with target.trace("libz!crc32", everything=True, mode=sys.argv[1]) as crc:
                for _ in range(500):
                    zlib.crc32(data)
        end(target, events=[trace.events, crc.events], lost=[trace.lost, crc.lost])
        """,
        mode,
        library,
    )
    assert said == CLEAN | {"events": [1000, 500], "lost": [0, 0]}


@pytest.mark.parametrize("mode", ["auto", "int3"])
def test_extensions_are_toggled_fifty_times_under_their_threads(mode: str) -> None:
    said = run(
        """
        helpers = set()
        with textpoke.this_process() as target:
            for turn in range(50):
                with target.trace(EXTENSIONS[turn % 4], everything=True, mode=sys.argv[1]):
                    helpers.add(target.agent.helper.pid)
        end(target, helpers=len(helpers))
        """,
        mode,
    )
    assert said == CLEAN | {"helpers": 1}


def test_runs_of_nops_are_merged_where_a_flip_has_no_room(compile_target: Compile) -> None:
    """The landing pads of a flip would lie 1.75 GiB below; here something lies there already."""
    flags = ("-fpatchable-function-entry=5", "-DPART_OBJECT", "-shared", "-fPIC")
    library = compile_target("counter.c", *flags)
    said = run(
        """
        from textpoke.plan import Method
        library = ctypes.CDLL(sys.argv[1])
        tally = (ctypes.c_ulong * 8)()
        with textpoke.this_process() as target:
            [site] = target.sites("counter*!top")
            low = (site.address - 0x6f6f6f6b) & -4096
            mmap = ctypes.CDLL(None).mmap
            mmap.restype, mmap.argtypes = ctypes.c_void_p, [ctypes.c_void_p, ctypes.c_size_t,
                ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_long]
            assert mmap(low - 65536, 2 << 16, 0, 0x100022, -1, 0) == low - 65536
            with target.trace("counter*!top") as trace:
                for x in range(100):
                    library.top(tally, x)
                methods = {str(p.method.name) for p in trace.plan.sites}
        end(target, events=trace.events, methods=sorted(methods))
        """,
        library,
    )
    assert said == CLEAN | {"events": 100, "methods": ["MERGE"]}


def test_forked_children_leave_the_parents_recording_alone() -> None:
    said = run(
        """
        with textpoke.this_process() as target:
            with target.trace("libz*!*", everything=True) as trace:
                pids = [os.fork()]
                if not pids[0]:
                    sys.exit(0 if zlib.compress(data) == right[0] else 1)  # through both blocks
                pids.append(os.fork())
                if not pids[1]:
                    time.sleep(60)  # outlives the recording, and holds what it has inherited
                first = os.waitpid(pids[0], 0)[1]
                before = trace.events
                zlib.crc32(data)
                trace.drain()
                counted = trace.events > before
        first_report = target.report.clean
        with textpoke.this_process() as target:
            with target.trace("libz*!*", everything=True) as trace:
                zlib.crc32(data)
        os.kill(pids[1], signal.SIGKILL)
        os.waitpid(pids[1], 0)
        end(target, first=first, counted=counted, clean=first_report, events=trace.events > 0)
        """
    )
    assert said == CLEAN | {"first": 0, "counted": True, "clean": True, "events": True}


def test_a_forked_child_traces_itself() -> None:
    said = run(
        """
        with textpoke.this_process() as target:
            with target.trace("libz*!*", everything=True):
                pid = os.fork()
                if not pid:
                    with textpoke.this_process() as child:
                        with child.trace("libz*!crc32", everything=True) as trace:
                            for _ in range(30):
                                zlib.crc32(data)
                    good = trace.events == 30 and child.report.clean and not others()
                    os._exit(0 if good else 1)
                status = os.waitpid(pid, 0)[1]
        end(target, status=status)
        """
    )
    assert said == CLEAN | {"status": 0}


def test_every_function_of_the_process_is_traced_ours_and_the_c_librarys_too() -> None:
    said = run(
        """
        with textpoke.this_process() as target:
            for _ in range(2):
                with target.trace("*!*", everything=True) as trace:
                    time.sleep(0.05)
            modules = {site.module.split(".")[0] for site in trace.chosen}
        end(target, sites=len(trace.chosen) > 5000, refused=len(trace.refused) < 100,
            modules=sorted(modules & {"_native", "libc", "libz"}), events=trace.events > 1000)
        """
    )
    assert said == CLEAN | {
        "sites": True,
        "refused": True,
        "modules": ["_native", "libc", "libz"],
        "events": True,
    }
