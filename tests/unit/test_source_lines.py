# SPDX-License-Identifier: Apache-2.0
"""Source lines by address: held against addr2line, and fed damage."""

import random
import re
import shutil
import subprocess

import pytest

from textpoke import elf, source_lines
from textpoke._errors import BadElf

SOURCE = """
#include <stdio.h>
static inline int twice(int x) {
    if (x > 3)
        return x * 2;
    return x;
}
__attribute__((section(".text.other"))) int sum(int n)
{
    int s = 0;
    for (int i = 0; i < n; i++)
        s += twice(i);
    return s;
}
int main(int argc, char **argv) { printf("%d", sum(argc)); return 0; }
"""

tools = pytest.mark.skipif(
    not all(map(shutil.which, ("gcc", "objdump", "addr2line"))), reason="needs gcc and binutils"
)


def build(tmp_path, *flags):
    (tmp_path / "lines.c").write_text(SOURCE)
    out = tmp_path / "lines"
    subprocess.run(["gcc", "-g", *flags, "-o", out, tmp_path / "lines.c"], check=True)
    return str(out)


def addresses(path):
    text = subprocess.run(["objdump", "-d", path], capture_output=True, text=True, check=True)
    return [int(m[1], 16) for m in re.finditer(r"^\s+([0-9a-f]+):\t", text.stdout, re.MULTILINE)]


def by_addr2line(path, vaddrs):
    lines = subprocess.run(
        ["addr2line", "-e", path],
        input="\n".join(map(hex, vaddrs)),
        capture_output=True,
        text=True,
        check=True,
    ).stdout.splitlines()
    split = (line.split(" (")[0].rpartition(":") for line in lines)
    return {
        vaddr: (file, int(line))
        for vaddr, (file, _, line) in zip(vaddrs, split, strict=True)
        if line not in ("?", "0")
    }


@tools
@pytest.mark.parametrize("flags", [["-gdwarf-4"], ["-gdwarf-5"], ["-gdwarf-5", "-gz=zlib"]])
@pytest.mark.parametrize("level", ["-O0", "-O2"])
def test_lines_are_those_of_addr2line(tmp_path, level, flags):
    path = build(tmp_path, level, *flags)
    vaddrs = addresses(path)
    with elf.Image.open(path) as image:
        lines = source_lines.lines_of(image, path, vaddrs)
    assert lines == by_addr2line(path, vaddrs)
    assert lines


@tools
def test_lines_of_a_stripped_file_come_from_its_debug_file(tmp_path):
    path = build(tmp_path, "-O2")
    vaddrs = addresses(path)
    expected = by_addr2line(path, vaddrs)
    subprocess.run(["objcopy", "--only-keep-debug", path, path + ".debug"], check=True)
    subprocess.run(["strip", path], check=True)
    subprocess.run(["objcopy", f"--add-gnu-debuglink={path}.debug", path], check=True, cwd=tmp_path)
    with elf.Image.open(path) as image:
        assert source_lines.lines_of(image, path, vaddrs) == expected


@tools
def test_files_of_functions(tmp_path):
    path = build(tmp_path, "-O2")
    with elf.Image.open(path) as image:
        symbols = subprocess.run(["nm", path], capture_output=True, text=True, check=True).stdout
        vaddr = int(re.search(r"^([0-9a-f]+) T sum$", symbols, re.MULTILINE)[1], 16)
        assert source_lines.files_of(image, path, [vaddr, 1]) == {vaddr: str(tmp_path / "lines.c")}


@tools
def test_a_file_without_debug_information_has_no_lines(tmp_path):
    path = build(tmp_path, "-g0")
    with elf.Image.open(path) as image:
        assert source_lines.lines_of(image, path, addresses(path)) == {}


@tools
def test_damaged_files_give_lines_or_none(tmp_path):
    path = build(tmp_path, "-O2")
    vaddrs = addresses(path)
    with open(path, "rb") as file:
        good = file.read()
    random.seed(5)
    for _ in range(60):
        bad = bytearray(good)
        for _ in range(20):
            bad[random.randrange(4096, len(bad))] = random.randrange(256)
        try:
            image = elf.Image(bytes(bad), path)
        except BadElf:
            continue
        source_lines.lines_of(image, "/nowhere", vaddrs)
