# SPDX-License-Identifier: Apache-2.0
"""Ways to build tests/targets/counter.c: every kind of site, in every kind of program."""

from __future__ import annotations

from pathlib import Path

TARGETS = Path(__file__).parent.parent / "targets"
NOPS = "-fpatchable-function-entry=5"
PIE = (NOPS, "-fPIE", "-pie")
_NOP5 = "-DENTRY_BYTES=0x0f,0x1f,0x44,0x00,0x00"
_NOP10 = "-DENTRY_BYTES=0x66,0x2e,0x0f,0x1f,0x84,0x00,0x00,0x02,0x00,0x00"
_MCOUNT = ("-pg", "-mfentry", "-mnop-mcount", "-mrecord-mcount", "-fno-pie", "-no-pie")

BUILDS: dict[str, tuple[str, ...]] = {
    "pie": PIE,
    "non-pie": (NOPS, "-fno-pie", "-no-pie"),
    "static": (NOPS, "-static"),
    "static-pie": (NOPS, "-fPIE", "-static-pie"),
    "endbr64": (*PIE, "-fcf-protection=full"),
    "larger-n": ("-fpatchable-function-entry=16", "-fPIE", "-pie"),
    "n-and-m": ("-fpatchable-function-entry=10,3", "-fPIE", "-pie"),
    "nop5": (_NOP5, "-fPIE", "-pie"),
    "nop5-non-pie": (_NOP5, "-fno-pie", "-no-pie"),
    "nop10": (_NOP10, "-fPIE", "-pie"),
    "mcount": _MCOUNT,
}
OBJECT = (NOPS, "-DPART_OBJECT", "-shared", "-fPIC")
OBJECT_USER = ("-DPART_MAIN", "-fPIE", "-pie")

FUNCTIONS = {"top", "middle", "leaf"}
EVENTS_PER_TOP = 5  # top, middle and three times leaf
