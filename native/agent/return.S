/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Where a redirected return arrives. The trampoline of a frame is `push $number; jmp` to the copy of
 * this that stands before the trampolines; the number then stands where the return address stood, and
 * says so to all who look for live frames, until the frame is popped.
 */
#include "probe.inc"

#define SAVED_BYTES	48

	.text
	.globl	tpa_return
	.hidden	tpa_return
	.type	tpa_return, @function
	.balign	64
tpa_return:
	.cfi_startproc
	.cfi_undefined %rip
	endbr64
	keep	%rdx
	keep	%rax
	lahf
	seto	%al
	push_word %rax
	keep	%rcx
	keep	%rsi
	keep	%rdi
	movl	SAVED_BYTES(%rsp), %esi
	movl	%esi, %edi
	shrl	$DEPTH_SHIFT, %edi
	shlq	$HEAD_SHIFT, %rdi
	addq	.Lshadows(%rip), %rdi
	shlq	$FRAME_SHIFT, %rsi
	addq	.Lframes(%rip), %rsi
	jmp	*FRAME_EXIT(%rsi)
	.balign	8, 0xcc
	.globl	tpa_return_words
	.hidden	tpa_return_words
tpa_return_words:
.Lshadows:	.quad	0
.Lframes:	.quad	0
	.cfi_endproc
	.size	tpa_return, . - tpa_return

	.section .note.GNU-stack, "", @progbits
