// SPDX-License-Identifier: Apache-2.0
/* Function entries as clang, other versions of GCC and odd flags leave them, byte by byte. */

	/* The table names `first`, the address of the first NOP. */
	.macro entry name first
	.section __patchable_function_entries, "aw", @progbits
	.quad \first
	.text
	.endm

	.macro function name
	.globl \name
	.type \name, @function
\name:
	.endm

	.macro finish name
	ret
	.size \name, . - \name
	.p2align 4
	.endm

	.text
	.p2align 4

	/* clang, N=5 */
	function clang5
	.byte 0x0f, 0x1f, 0x44, 0x00, 0x08
	finish clang5
	entry clang5 clang5

	/* clang, N=5, -fcf-protection: the table names the NOP behind endbr64 */
	function clang5_cet
	endbr64
0:	.byte 0x0f, 0x1f, 0x44, 0x00, 0x08
	finish clang5_cet
	entry clang5_cet 0b

	/* clang, N=16: one NOP of 15 bytes and one of one */
	function clang16
	.byte 0x66, 0x66, 0x66, 0x66, 0x66, 0x66, 0x2e, 0x0f, 0x1f, 0x84, 0, 0, 2, 0, 0
	.byte 0x90
	finish clang16
	entry clang16 clang16

	/* clang, N=10, M=5: NOPs with a local label, the function's label, NOP */
leading:
	.fill 5, 1, 0x90
	function clang10_5
	.byte 0x0f, 0x1f, 0x44, 0x00, 0x08
	finish clang10_5
	entry clang10_5 leading

	/* clang, N=5, M=2 with CET: two bytes, label, endbr64, three bytes */
0:	.fill 2, 1, 0x90
	function clang5_2
	endbr64
	.byte 0x0f, 0x1f, 0x00
	finish clang5_2
	entry clang5_2 0b

	/* enough bytes in all, but no single NOP of five */
	function pieces
	.byte 0x0f, 0x1f, 0x40, 0x00
	.byte 0x66, 0x90
	finish pieces
	entry pieces pieces

	/* GCC, N=16, M=3 with CET: NOPs, label, endbr64, NOPs */
0:	.fill 3, 1, 0x90
	function gcc16_3
	endbr64
	.fill 13, 1, 0x90
	finish gcc16_3
	entry gcc16_3 0b

	/* N,N: nothing left behind the label */
0:	.fill 5, 1, 0x90
	function before_only
	finish before_only
	entry before_only 0b

	/* a second way in, right among the NOPs */
	function two_doors
	.fill 3, 1, 0x90
	.globl back_door
	.type back_door, @function
back_door:
	.fill 2, 1, 0x90
	finish two_doors
	entry two_doors two_doors

	/* a second label behind endbr64, and the table names both */
	function with_landing
	endbr64
	function behind_landing
	.fill 5, 1, 0x90
	finish with_landing
	entry with_landing with_landing
	entry behind_landing behind_landing

	/* somebody has patched the file */
	function no_nop
	.byte 0xe8, 0, 0, 0, 0
	finish no_nop
	entry no_nop no_nop

	/* neither a symbol nor an unwind entry */
0:	.fill 5, 1, 0x90
	ret
	.p2align 4
	entry nameless 0b

	/* the same function twice, as after identical code folding */
	function folded
	.fill 5, 1, 0x90
	finish folded
	entry folded folded
	entry folded folded

	/* not code at all */
	entry outside outside
	.data
outside:
	.fill 5, 1, 0x90
	.text

	/* a function that was discarded */
	.section __patchable_function_entries, "aw", @progbits
	.quad 0
	.text

	function main
	xor %eax, %eax
	ret
	.size main, . - main
	.section .note.GNU-stack, "", @progbits
