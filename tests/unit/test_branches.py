# SPDX-License-Identifier: Apache-2.0
"""Which branches are found in real object code, and how their sites are planned."""

import os
import re
import shutil
import subprocess

import pytest

from textpoke import branch_stubs, elf, functions
from textpoke._native import lib
from textpoke.branches import REASONS, entries_of, find_branches
from textpoke.model import Mapping, Module, SiteKind
from textpoke.plan import BranchPlan, Planner, Space

SOURCE = """
int counter;
__attribute__((noipa)) int work(int n)
{
    int s = 0;
#ifdef SEQUENCE
    __asm__ volatile("1: nop\\n2: nop\\n3: nop\\n"
                     ".pushsection __rseq_cs, \\"aw\\"\\n.balign 32\\n.long 0, 0\\n"
                     ".quad 1b, 2b - 1b, 3b\\n.popsection");
#endif
    for (int i = 0; i < n; i++) {
        switch (i % 9) {
        case 0: s += 3; break;
        case 1: s ^= n; break;
        case 2: s -= i; break;
        case 3: s *= 5; break;
        case 4: s += counter; break;
        case 5: s |= 1; break;
        default: if (s > 100 && n & 1) s /= 2;
        }
    }
    return s;
}
int main(int argc, char **argv) { return work(argc) && argv[0] ? 3 : 4; }
"""
BASE = 0x5555_0000_0000

pytestmark = pytest.mark.skipif(
    not all(map(shutil.which, ("gcc", "objdump"))), reason="needs gcc and binutils"
)


def build(tmp_path, *flags):
    (tmp_path / "b.c").write_text(SOURCE)
    out = tmp_path / "b"
    subprocess.run(["gcc", *flags, "-o", out, tmp_path / "b.c"], check=True)
    return str(out)


def module_of(path, base=BASE):
    start = base or 0x400000
    whole = Mapping(start, start + (1 << 20), "r-xp", 0, "0:0", 1, path)
    return Module(os.path.basename(path), path, base, True, (whole,))


def find(path):
    with elf.Image.open(path) as image:
        module = module_of(path, 0 if image.type == elf.ET_EXEC else BASE)
        known = functions.find_functions(image, module)
        sites = known.sites(known)
        return find_branches(image, module, entries_of(module, sites))


def jumps_by_objdump(path, function):
    text = subprocess.run(["objdump", "-d", path], capture_output=True, text=True, check=True)
    body = text.stdout.split(f"<{function}>:\n")[1].split("\n\n")[0]
    jumps = re.findall(r"^\s+([0-9a-f]+):\t[^\t]*\tj(?!mp)\w+\s+([0-9a-f]+)", body, re.MULTILINE)
    return {int(at, 16): int(target, 16) for at, target in jumps}


def test_every_refusal_has_words():
    unused = {lib.TP_REFUSE_NOTHING, lib.TP_REFUSE_COLD, lib.TP_REFUSE_ENTRY, lib.TP_REFUSE_OUTSIDE}
    assert REASONS.keys() == set(range(lib.TP_BRANCH_REFUSALS)) - unused
    assert len(set(REASONS.values())) == len(REASONS)


@pytest.mark.parametrize("flags", [["-O0"], ["-O2"], ["-O3"], ["-O2", "-no-pie"], ["-Os"]])
def test_branches_are_those_of_objdump(tmp_path, flags):
    path = build(tmp_path, *flags)
    found = find(path)
    for function in ("work", "main"):
        ours = {
            b.vaddr: b.target - b.address + b.vaddr
            for b in found.branches
            if b.function == function
        }
        assert ours == jumps_by_objdump(path, function)


@pytest.mark.parametrize("flags", [["-O0"], ["-O2"], ["-O3"], ["-O2", "-no-pie"], ["-Os"]])
def test_windows_do_not_overlap_and_hold_the_files_bytes(tmp_path, flags):
    path = build(tmp_path, *flags)
    found = find(path)
    counted = [branch for site in found.sites for branch in site.branches]
    assert counted == [branch for branch in found.branches if branch.reason is None]
    own = [branch for branch in found.branches if branch.function in ("work", "main")]
    assert len(counted) > 0.8 * len(own)
    end = 0
    for site in sorted(found.sites, key=lambda site: site.address):
        assert site.address >= end
        end = site.address + len(site.displaced)
        assert site.kind is SiteKind.BRANCH
        assert site.old == site.displaced[:5]
        for branch in site.branches:
            assert site.address <= branch.address < end
    targets = {branch.target for branch in found.branches}
    interior = {site.address + i for site in found.sites for i in range(1, 5)}
    assert not targets & interior


def test_functions_without_unwind_entries_are_refused(tmp_path):
    """As V8's builtins are: exceptions go to places in them that only V8 knows."""
    reasons = {b.function: b.reason for b in find(build(tmp_path, "-O2")).branches}
    assert "no unwind entry" in reasons["_init"]
    assert "no unwind entry" not in str(reasons["work"])


def test_functions_with_restartable_sequences_are_refused(tmp_path):
    path = build(tmp_path, "-O2", "-DSEQUENCE")
    found = find(path)
    reasons = {b.reason for b in found.branches if b.function == "work"}
    assert len(reasons) == 1
    assert "restartable" in reasons.pop()
    assert {site.function for site in found.sites}.isdisjoint({"work"})
    assert "main" in {site.function for site in found.sites}


def test_a_plan_has_a_stub_for_every_site_and_counters_for_every_branch(tmp_path):
    found = find(build(tmp_path, "-O2"))
    planner = Planner(b"\xc3" * 64)
    space = Space(module_of("x").mappings)
    plan = planner.plan(found.sites, space)
    assert [p.site for p in plan.sites] == sorted(found.sites, key=lambda site: site.address)
    [(code, code_bytes)], [(counters, counter_bytes)] = plan.regions, plan.counters
    assert code + code_bytes == counters
    taken = []
    for planned in plan.sites:
        assert isinstance(planned, BranchPlan)
        stub = planned.site.address + 5 + int.from_bytes(planned.on[1:], "little", signed=True)
        assert code <= stub < code + code_bytes
        count = len(planned.site.branches)
        taken += range(planned.counters, planned.counters + 16 * count, 16)
        heads = {i for i in range(1, 5) if planned.site.heads >> i & 1}
        assert heads == {i for i in range(1, 5) if planned.copies[i - 1]}
    assert len(set(taken)) == len(taken)
    assert min(taken) == counters
    assert max(taken) + 16 <= counters + counter_bytes
    again = planner.plan(found.sites, space)
    assert again.sites == plan.sites
    assert (again.regions, again.counters) == ([], [])


def test_sites_without_room_are_refused(tmp_path):
    found = find(build(tmp_path, "-O2"))
    wall = Mapping(0, 1 << 47, "---p", 0, "0:0", 0, "")
    plan = Planner(b"\xc3").plan(found.sites, Space([wall]))
    assert plan.sites == []
    assert len(plan.refused) == len(found.sites)


def test_what_cannot_be_moved_is_not_measured(tmp_path):
    found = find(build(tmp_path, "-O2"))
    site = found.sites[0]
    bad = type(site)(
        **{name: getattr(site, name) for name in site.__dataclass_fields__}
        | {"displaced": b"\x74\x00\x0f\x0b\x90"}
    )
    good, _, refused = branch_stubs.measure([site, bad])
    assert good == [site]
    assert refused == [(bad, "its instructions do not work elsewhere")]
