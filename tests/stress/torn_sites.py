# SPDX-License-Identifier: Apache-2.0
"""Writes the assembly of the torn-execution target: thousands of sites of every kind.

A slot is an entry, a site and what follows it. Slot N returns 2N when the old instruction was
executed and 2N+1 for the new one; anything else is a torn execution. It also counts at 0(%rdi) or
8(%rdi), so an instruction that was run twice or not at all shows. A slot touches rax, rcx, rdx and
the flags alone; the flags it starts with are those of the caller, given in rdx.

Every kind stands at every cut: the border of a cache line, and that of a page, behind each of the
site's bytes.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

LINE, PAGE = 64, 4096
CONDITIONS = ("o", "c", "z", "be", "s", "p", "l", "le")
TRACED = 64  # functions for the tracer, half of them with a NOP run
_NOPS = {
    1: "0x90",
    2: "0x66, 0x90",
    3: "0x0f, 0x1f, 0x00",
    4: "0x0f, 0x1f, 0x40, 0x00",
    5: "0x0f, 0x1f, 0x44, 0x00, 0x00",
    6: "0x66, 0x0f, 0x1f, 0x44, 0x00, 0x00",
    7: "0x0f, 0x1f, 0x80, 0, 0, 0, 0",
}


def nop(length: int) -> str:
    """The bytes of one NOP instruction."""
    return _NOPS.get(length) or ", ".join(
        ["0x66"] * (length - 8) + ["0x0f, 0x1f, 0x84, 0, 0, 0, 0, 0"]
    )


@dataclass(frozen=True)
class Kind:
    """One way to change an instruction.

    Attributes:
        name: What results call it.
        length: Bytes of the site.
        before: Code that leads to the site; the jump there is added.
        old: The site's first instruction, as assembly.
        after: Code behind the site.
        new: Directives for the other instruction.
        handler: Label where a trapped thread goes on, if it is not to be emulated.
    """

    name: str
    length: int
    before: str
    old: str
    after: str
    new: str
    handler: str = "0"


_DID_OLD = "incq (%rdi)\n movl $2*{n}, %eax\n ret\n"
_DID_NEW = "incq 8(%rdi)\n movl $2*{n}+1, %eax\n ret\n"
_TWO_ENDS = f"old_{{n}}: {_DID_OLD}new_{{n}}: {_DID_NEW}"
_JUMP = ".byte 0xe9\n .long new_{n} - site_{n} - 5"
_SHORT = ".byte 0xeb, new_{n} - site_{n} - 2"
_CALL_NEW = ".byte 0xe8\n .long did_new - site_{n} - {length}"
_CALLED = "testl %eax, %eax\n jnz 1f\n incq (%rdi)\n1: leal 2*{n}(%rax), %eax\n ret\n"
_FLAGS = "pushq %rdx\n popfq\n set{c} %cl\n"
_BY_CONDITION = (  # cl says whether the old condition held, where we are says who jumped
    "movl $1, %eax\n jmp 8f\n"
    "old_{n}: xorl %eax, %eax\n jmp 7f\n"
    "new_{n}: movl $2, %eax\n"
    "7: testl %eax, %eax\n jz 5f\n"
    " testb %cl, %cl\n jnz 9f\n incq 8(%rdi)\n movl $2*{n}+1, %eax\n ret\n"
    "5: testb %cl, %cl\n jz 9f\n incq (%rdi)\n movl $2*{n}, %eax\n ret\n"
    "8: movzbl %cl, %eax\n incq (%rdi,%rax,8)\n leal 2*{n}(%rax), %eax\n ret\n"
    "9: movl $-2, %eax\n ret\n"
)


def _conditional() -> Iterator[Kind]:
    for c in CONDITIONS:
        flags = _FLAGS.replace("{c}", c)
        code = f"cond_{c} + 1"  # the negated condition, at another place
        yield Kind(
            f"jcc8 {c}",
            2,
            flags,
            f".byte cond_{c} + 0x70, old_{{n}} - site_{{n}} - 2",
            _BY_CONDITION,
            f".byte {code} + 0x70, new_{{n}} - site_{{n}} - 2",
        )
        yield Kind(
            f"jcc32 {c}",
            6,
            flags,
            f".byte 0x0f, cond_{c} + 0x80\n .long old_{{n}} - site_{{n}} - 6",
            _BY_CONDITION,
            f".byte 0x0f, {code} + 0x80\n .long new_{{n}} - site_{{n}} - 6",
        )


def _of_nops() -> Iterator[Kind]:
    for length in range(5, 16):
        prefixes = ", ".join(["0x2e"] * (length - 5))
        call = f"{f'.byte {prefixes}' if prefixes else ''}\n {_CALL_NEW}"
        yield Kind(
            f"nop{length} -> call",
            length,
            "xorl %eax, %eax\n",
            f".byte {nop(length)}",
            _CALLED,
            call,
        )
    for length in range(2, 16):
        jump, size = (_JUMP, 5) if length >= 5 else (_SHORT, 2)
        padding = "\n" + _skip(length - size)
        yield Kind(
            f"nop{length} -> jmp", length, "", f".byte {nop(length)}", _TWO_ENDS, jump + padding
        )


def _of_returns() -> Iterator[Kind]:
    either = (
        "incq (%rdi)\n movl $2*{n}, %eax\n"  # the old one leaves at once: taken back by the new
    )
    other = "decq (%rdi)\n" + _DID_NEW
    yield Kind("ret -> nop", 1, either, "ret", other, ".byte 0x90")
    yield Kind("rep ret -> nop2", 2, either, ".byte 0xf3, 0xc3", other, ".byte 0x66, 0x90")
    # Called with rcx = rsp and two words pushed: what was popped tells them apart.
    calls = "movq %rsp, %rcx\n pushq $0\n pushq $0\n call 1f\n jmp 2f\n1: "
    popped = (
        "2: subq %rsp, %rcx\n xorl %eax, %eax\n testq %rcx, %rcx\n setz %al\n"
        " leaq (%rsp,%rcx), %rsp\n cmpq $8, %rcx\n ja 3f\n"
        " incq (%rdi,%rax,8)\n leal 2*{n}(%rax), %eax\n ret\n3: movl $-3, %eax\n ret\n"
    )
    yield Kind("ret 8 -> ret 16", 3, calls, "ret $8", popped, ".byte 0xc2, 0x10, 0x00")


def kinds() -> list[Kind]:
    """Every way that the target knows."""
    called = "leal 2*{n}(%rax), %eax\n ret\n"
    moved = "movl %eax, %ecx\n andl $1, %ecx\n incq (%rdi,%rcx,8)\n ret\n"
    handler = "handled_{n}: movl $2*{n}+1, %eax\n jmp moved_{n}\n"
    return [
        Kind("call -> call", 5, "", "call did_old", called, _CALL_NEW),
        Kind(
            "nop run -> call",
            5,
            "xorl %eax, %eax\n",
            ".fill 5, 1, 0x90",
            _CALLED,
            ".byte 0xe8\n .fill 4, 1, 0x90",
        ),
        Kind("jmp -> jmp", 5, "", ".byte 0xe9\n .long old_{n} - site_{n} - 5", _TWO_ENDS, _JUMP),
        Kind("jmp8 -> jmp8", 2, "", ".byte 0xeb, old_{n} - site_{n} - 2", _TWO_ENDS, _SHORT),
        Kind(
            "mov -> jmp",
            5,
            "",
            "movl $2*{n}, %eax",
            "incq (%rdi)\n ret\nnew_{n}: " + _DID_NEW,
            _JUMP,
        ),
        Kind(
            "mov -> mov (handler)",
            5,
            "",
            "movl $2*{n}, %eax",
            "moved_{n}: " + moved + handler,
            ".byte 0xb8\n .long 2*{n}+1",
            "handled_{n}",
        ),
        *_conditional(),
        *_of_nops(),
        *_of_returns(),
    ]


def _skip(count: int) -> str:
    return f".skip {count}, 0xcc" if count else ""


def _slot(kind: Kind, number: int, cut: int, border: int, kind_number: int) -> str:
    def fill(text: str) -> str:
        return text.replace("{n}", str(number)).replace("{length}", str(kind.length))

    return fill(
        f"entry_{{n}}: {kind.before} jmp site_{{n}}\n"
        f".balign {border}, 0xcc\n{_skip((border - cut) % border)}\n"
        f'site_{{n}}: {kind.old}\n.if . - site_{{n}} - {kind.length}\n.error "length"\n.endif\n'
        f"{kind.after}"
        '.pushsection .torn, "aw"\n.balign 64\n'
        f".quad entry_{{n}}, site_{{n}}, {kind.handler}\n.byte {kind.length}, {kind_number}\n"
        f'9: {kind.new}\n.if . - 9b - {kind.length}\n.error "length of new"\n.endif\n'
        ".popsection\n"
    )


def _traced() -> str:
    """Functions for the tracer: number K returns K."""
    text = [".balign 4096, 0xcc\n"]
    for k in range(TRACED):
        entry = ".fill 5, 1, 0x90" if k % 2 else f".byte {nop(5)}"
        text.append(
            f".balign 32, 0xcc\n.globl traced_{k}\n.type traced_{k}, @function\n"
            f"traced_{k}: {entry}\n movl ${k}, %eax\n ret\n.size traced_{k}, . - traced_{k}\n"
            f'.pushsection __patchable_function_entries, "aw"\n.quad traced_{k}\n.popsection\n'
            f'.pushsection .torn_traced, "aw"\n.quad traced_{k}\n.popsection\n'
        )
    return "".join(text) + ".balign 4096, 0xcc\n"


def assembly(copies: int) -> str:
    """The whole file; `copies` is how often each kind stands at each place in a cache line."""
    head = [
        "/* SPDX-License-Identifier: Apache-2.0 */\n/* Written by tests/stress/torn_sites.py. */\n",
        *(f".set cond_{c}, {2 * i}\n" for i, c in enumerate(CONDITIONS)),
        '.section .torn, "aw"\n.balign 64\n.globl torn_slots\ntorn_slots:\n',
        '.section .torn_traced, "aw"\n.globl torn_traced\ntorn_traced:\n',
        ".text\n",
        _traced(),
        "did_old: incq (%rdi)\n xorl %eax, %eax\n ret\n",
        ".globl did_new\ndid_new: incq 8(%rdi)\n movl $1, %eax\n ret\n",
    ]
    slots: list[str] = []
    add: Callable[[str], None] = slots.append
    for copy in range(copies):
        for i, kind in enumerate(kinds()):
            for cut in range(kind.length):
                add(_slot(kind, len(slots), cut, LINE, i))
                if copy == 0 and cut:
                    add(_slot(kind, len(slots), cut, PAGE, i))
    tail = [
        '.pushsection .torn, "aw"\n.balign 64\n.globl torn_slots_end\n',
        "torn_slots_end:\n.popsection\n",
        '.section .note.GNU-stack, "", @progbits\n',
    ]
    return "".join(head + slots + tail)


if __name__ == "__main__":
    sys.stdout.write(assembly(int(sys.argv[1])))
