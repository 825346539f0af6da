/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The probe of functions that unwind the stack, walk it, or leave a part of it. It works whether
 * anybody records or not: redirected frames outlive the trace.
 */
#include "probe.inc"

#define SAVED_BYTES	48

	begin_probe tpa_unwind_probe
	keep_first
	keep	%rdi
	movq	%rdi, %rcx		/* the function's first argument */
	movq	%rdx, %rdi		/* fs base */
	movq	.Largument(%rip), %rsi
	movq	.Loffset(%rip), %rax
	leaq	SAVED_BYTES(%rsp,%rax), %rdx
	call_c	.Lcall(%rip)		/* tpa_unwind */
	.cfi_remember_state
	back	%rdi
	back_first
	leave_probe tpa_unwind_probe
	.cfi_restore_state
	end_probe tpa_unwind_probe

	.section .note.GNU-stack, "", @progbits
