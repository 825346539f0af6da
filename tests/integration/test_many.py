# SPDX-License-Identifier: Apache-2.0
"""Twenty thousand sites: the number of syncs and writes does not grow with them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from observe import ask, hear_until_end, tell, untouched

import textpoke

if TYPE_CHECKING:
    from conftest import Compile, Start

COUNT = 20_000
ENTRIES = {
    "nop5": ("0x0f,0x1f,0x44,0x00,0x00", 3),
    "nop-run": ("0x90,0x90,0x90,0x90,0x90", 2),
}


@pytest.mark.parametrize("kind", ENTRIES)
def test_a_batch_of_many_sites_costs_what_one_site_costs(
    compile_target: Compile, start_target: Start, kind: str
) -> None:
    entry, phases = ENTRIES[kind]
    program = compile_target("many.c", f"-DENTRY_BYTES={entry}", "-fPIE", "-pie")
    process = start_target(program)
    ask(process, "run 2")
    tell(process, "stop")
    hear_until_end(process)
    with untouched(process):
        ask(process, "run 2")
        with textpoke.attach(process.pid, rings=8) as target:
            for _ in range(2):
                with target.trace("f*", mode="int3") as trace:
                    assert trace.refused == []
                for outcome in (trace.on, trace.off):
                    assert outcome is not None
                    assert outcome.sites == outcome.finished == COUNT
                    assert outcome.syncs == phases
                    assert outcome.pages >= COUNT * 16 // 4096
                    assert outcome.writes <= phases * outcome.pages
                    assert outcome.conflicts == 0
        tell(process, "stop")
        rows = hear_until_end(process)
        assert target.report is not None
        assert target.report.residue == []
        assert target.report.sites == COUNT
    assert all(rounds > 0 and wrong == 0 for rounds, wrong in rows)
