/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The probe of function_graph: an event at the entry, another at the return. The return address
 * moves to a frame of the thread's shadow stack, and a trampoline that belongs to that frame alone
 * takes its place: whoever returns there, on whatever stack, is known by it (shadow.c).
 */
#include "probe.inc"

#define SAVED_BYTES	48

	begin_probe tpa_graph
	keep_first
	keep	%rdi
	find_slot
.Lloaded:
	movq	SLOT_SHADOW(%rsi,%rax), %rdi
	movq	SLOT_RING(%rsi,%rax), %rsi
	check_ring
	check_shadow
	push_frame SAVED_BYTES, %rsi
	cmpq	$0, .Lthreshold(%rip)
	jne	.Lstamp
	take_event .Ldrop
	orq	FRAME_WORD(%rdi), %rcx
	xorq	$ENTRY_TO_EXIT, %rcx
	write_event
.Lout:
	.cfi_remember_state
	back	%rdi
	back_first
	leave_probe tpa_graph
	.cfi_restore_state
.Lstamp:
	read_ticks
	movq	%rax, FRAME_TSC(%rdi)
	jmp	.Lout
.Ldrop:
	incq	RING_DROPPED(%rsi)
	jmp	.Lout
	push_frame_slow SAVED_BYTES
	probe_further
	claim_both .Lpush

	.balign	32
	.globl	tpa_graph_exit
	.hidden	tpa_graph_exit
tpa_graph_exit:
	pop_frame
	cmpq	$0, .Lthreshold(%rip)
	jne	.Llong
	take_event .Ldropped
	orq	%rdi, %rcx
	write_event
	return_from_probe
.Ldropped:
	incq	RING_DROPPED(%rsi)
	jmp	.Lreturn
.Llong:
	movq	%rdx, %rcx
	rdtsc
	shlq	$32, %rdx
	orq	%rax, %rdx
	movq	%rdx, %rax
	subq	%rcx, %rax
	cmpq	.Lthreshold(%rip), %rax
	jb	.Lreturn
	xchgq	%rdi, %rsi		/* ring, word, now, ticks */
	movq	%rax, %rcx
	call_c	.Lcall(%rip)		/* tpa_write_long */
	jmp	.Lreturn
	pop_frame_slow
	end_probe tpa_graph

	.section .note.GNU-stack, "", @progbits
