/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The probe of functions whose arguments or results are recorded: all registers go to C (rich.c).
 * With an exit address it waits for the return as the graph probe does.
 */
#include "probe.inc"

#define REGS_BYTES	208		/* struct tpa_regs, and a word to keep the stack aligned */
#define REGS_SLOT	192
#define RICH_SCRUB	2048

	.macro	store_rest
	movq	%rbx, 24(%rsp)
	movq	%rbp, 48(%rsp)
	movq	%r8, 64(%rsp)
	movq	%r9, 72(%rsp)
	movq	%r10, 80(%rsp)
	movq	%r11, 88(%rsp)
	movq	%r12, 96(%rsp)
	movq	%r13, 104(%rsp)
	movq	%r14, 112(%rsp)
	movq	%r15, 120(%rsp)
	movq	%xmm0, 128(%rsp)
	movq	%xmm1, 136(%rsp)
	movq	%xmm2, 144(%rsp)
	movq	%xmm3, 152(%rsp)
	movq	%xmm4, 160(%rsp)
	movq	%xmm5, 168(%rsp)
	movq	%xmm6, 176(%rsp)
	movq	%xmm7, 184(%rsp)
	.endm

	/* What the ABI lets a call change, but rax, rcx, rdx, rsi, rdi. */
	.macro	load_rest
	movq	64(%rsp), %r8
	movq	72(%rsp), %r9
	movq	80(%rsp), %r10
	movq	88(%rsp), %r11
	.endm

	begin_probe tpa_rich
	pushfq
	.cfi_adjust_cfa_offset 8
	subq	$REGS_BYTES, %rsp
	.cfi_adjust_cfa_offset REGS_BYTES
	movq	%rax, (%rsp)
	movq	%rdx, 8(%rsp)
	movq	%rcx, 16(%rsp)
	movq	%rsi, 32(%rsp)
	movq	%rdi, 40(%rsp)
	store_rest
	movq	.Loffset(%rip), %rax
	leaq	REGS_BYTES+8(%rsp,%rax), %rax
	movq	%rax, REGS_SLOT(%rsp)
	movq	%rax, 56(%rsp)		/* the function's rsp */
	movq	%rsp, %rdi
	movq	REGS_BYTES+8(%rsp), %rsi	/* the site */
	leaq	.Lgate(%rip), %rdx
	call_c	.Lcall(%rip), RICH_SCRUB
	load_rest
	movq	40(%rsp), %rdi
	movq	32(%rsp), %rsi
	movq	16(%rsp), %rcx
	movq	8(%rsp), %rdx
	movq	(%rsp), %rax
	leaq	REGS_BYTES(%rsp), %rsp
	.cfi_adjust_cfa_offset -REGS_BYTES
	.cfi_remember_state
	popfq
	.cfi_adjust_cfa_offset -8
	leave_probe tpa_rich
	.cfi_restore_state

	.balign	32
	.globl	tpa_rich_exit
	.hidden	tpa_rich_exit
	.cfi_adjust_cfa_offset KEPT_BYTES-8
tpa_rich_exit:
	subq	$REGS_BYTES, %rsp
	.cfi_adjust_cfa_offset REGS_BYTES
	store_rest
	movq	%rsi, %rdx		/* the frame */
	movq	%rdi, %rcx		/* the shadow stack */
	movq	REGS_BYTES+32(%rsp), %rax
	movq	%rax, (%rsp)
	movq	REGS_BYTES+40(%rsp), %rax
	movq	%rax, 8(%rsp)
	leaq	REGS_BYTES+KEPT_BYTES(%rsp), %rax
	movq	%rax, REGS_SLOT(%rsp)
	movq	%rsp, %rdi
	leaq	.Lgate(%rip), %rsi
	call_c	.Lother(%rip), RICH_SCRUB
	load_rest
	addq	$REGS_BYTES, %rsp
	.cfi_adjust_cfa_offset -REGS_BYTES
	return_from_probe
	end_probe tpa_rich

	.section .note.GNU-stack, "", @progbits
