/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The probe of the function tracer: one event an entry. Its return address names the site.
 */
#include "probe.inc"

#define SAVED_BYTES	40

	begin_probe tpa_thunk_function
	keep_first
	find_slot
.Lloaded:
	movq	SLOT_RING(%rsi,%rax), %rsi
	check_ring
.Lwrite:
	take_event .Ldrop
	movq	SAVED_BYTES(%rsp), %rax
	shlq	$16, %rax
	leaq	EVENT_ENTRY(%rax,%rcx), %rcx
	write_event
.Lout:
	.cfi_remember_state
	back_first
	leave_probe tpa_thunk_function
	.cfi_restore_state
.Ldrop:
	incq	RING_DROPPED(%rsi)
	jmp	.Lout
	probe_further
.Lslow:
	keep	%rdi
	movq	%rdx, %rdi
	movq	.Lset(%rip), %rsi
	call_c	.Lclaim(%rip)
	back	%rdi
	testq	%rax, %rax
	jz	.Lout
	movq	SLOT_RING(%rax), %rsi
	jmp	.Lwrite
	end_probe tpa_thunk_function

	.section .note.GNU-stack, "", @progbits
