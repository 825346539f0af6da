/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The probe of the profile tracer: no events. Hits, time and a histogram of each function stand in
 * a table in the thread's ring (struct tp_profile), which only this thread writes.
 *
 * A call goes to the histogram and the squares when the next one returns: where its bucket is
 * depends on rdtsc, and what comes behind a store to an unknown place waits. A nested handler may
 * run anywhere in here, so a call's time is put and the one before taken by one instruction.
 */
#include "probe.inc"

#define SAVED_BYTES	48
#define HASH		0x9e3779b1
#define HASH_SHIFT	12

#define PROFILE_HITS	8
#define PROFILE_TOTAL	16
#define PROFILE_SELF	24
#define PROFILE_MAX	32
#define PROFILE_SQUARES	40
#define PROFILE_LAST	56
#define PROFILE_BUCKETS	64
#define LEAST_TICKS	16		/* of the first bucket but one */
#define BUCKETS_BELOW	(4 * 4 + 4 - 1)
#define LAST_BUCKET	111

	begin_probe tpa_profile
	keep_first fs_base=0
	keep	%rdi
	guess_slot
.Lloaded:
	movq	SLOT_SHADOW(%rsi,%rax), %rdi
	movq	SLOT_RING(%rsi,%rax), %rsi
	check_ring
	check_shadow
.Lclaimed:
	movq	SAVED_BYTES(%rsp), %rdx
	imull	$HASH, %edx, %eax
	shrl	$HASH_SHIFT, %eax
	andl	RING_MASK(%rsi), %eax	/* a place is 16 bytes */
	cmpq	%rdx, RING_EVENTS(%rsi,%rax)
	jne	.Lfind
.Lplace:
	movq	RING_EVENTS+8(%rsi,%rax), %rsi
	testq	%rsi, %rsi
	jz	.Lout
.Lfound:
	push_frame SAVED_BYTES, %rsi
	read_ticks
	movq	%rax, FRAME_TSC(%rdi)
.Lout:
	.cfi_remember_state
	back	%rdi
	back_first
	leave_probe tpa_profile
	.cfi_restore_state
.Lfind:
	movl	$MOST_PROBES, %ecx
1:	cmpq	$0, RING_EVENTS(%rsi,%rax)
	je	.Lnew
	addl	$16, %eax
	andl	RING_MASK(%rsi), %eax
	cmpq	%rdx, RING_EVENTS(%rsi,%rax)
	je	.Lplace
	decl	%ecx
	jnz	1b
.Lnew:
	keep	%rdi
	movq	%rsi, %rdi
	movq	%rdx, %rsi
	call_c	.Lcall(%rip)		/* tpa_profile_find: ring, site; its row, or NULL */
	back	%rdi
	movq	%rax, %rsi
	testq	%rsi, %rsi
	jnz	.Lfound
	jmp	.Lout
	push_frame_slow SAVED_BYTES, has_ring=0
.Loverrun:				/* rsi is the row here */
	rdfsbase %rdi
	movq	.Lset(%rip), %rsi
	call_c	.Lother(%rip)		/* tpa_count_overrun */
	jmp	.Lout
	probe_further
	claim_both .Lclaimed

	.balign	32
	.globl	tpa_profile_exit
	.hidden	tpa_profile_exit
tpa_profile_exit:
	leaq	FRAME_BYTES(%rsi), %rax
	cmpq	%rax, SHADOW_TOP(%rdi)
	jne	.Lbelow
	movq	.Lgate(%rip), %rax
	cmpq	$0, (%rax)
	je	.Lclosed
	read_ticks
	require_own %rcx		/* in the shadow of rdtsc: 1.5 ns less than before it */
	subq	FRAME_TSC(%rsi), %rax
	addq	%rax, FRAME_CHILD-FRAME_BYTES(%rsi)	/* of who called: the frame below */
	movq	%rax, %rdx
	subq	FRAME_CHILD(%rsi), %rdx
	movq	%rax, %rcx
	leaq	FRAME_BYTES(%rsi), %rax
	push_word FRAME_AUX(%rsi)
	give_back
	jne	.Lnot_top
	pop_word %rdi
	movq	%rcx, %rsi		/* rsi: ticks, rdx: of them its own, rdi: the row */
.Lcount:
	incq	PROFILE_HITS(%rdi)
	addq	%rsi, PROFILE_TOTAL(%rdi)
	addq	%rdx, PROFILE_SELF(%rdi)
	movq	PROFILE_MAX(%rdi), %rax
	cmpq	%rax, %rsi
	ja	.Lmost
.Lnot_most:
	movq	PROFILE_LAST(%rdi), %rax
1:	cmpxchgq %rsi, PROFILE_LAST(%rdi)
	jne	1b
	xorl	%edx, %edx		/* rax: ticks of the call before */
	cmpq	$LEAST_TICKS, %rax
	jb	.Lbucket
	movl	$1, %esi
	lzcntq	%rsi, %rsi		/* 63; 0 on a CPU that takes it for BSR, which is microcode: */
	lzcntq	%rax, %rcx		/* 4 ns more on AMD */
	xorl	%esi, %ecx		/* the first bit of rax */
	leal	(,%rcx,4), %esi
	subl	$2, %ecx
	movq	%rax, %rdx
	shrq	%cl, %rdx		/* 4 to 7: the first bits */
	leal	-BUCKETS_BELOW(%rdx,%rsi), %edx
	cmpl	$LAST_BUCKET, %edx
	ja	.Llast
.Lbucket:
	incl	PROFILE_BUCKETS(%rdi,%rdx,4)
	imulq	%rax, %rax
	addq	%rax, PROFILE_SQUARES(%rdi)
	jc	.Lcarry
	return_from_probe
.Lmost:
	cmpxchgq %rsi, PROFILE_MAX(%rdi)
	je	.Lnot_most
	cmpq	%rax, %rsi
	ja	.Lmost
	jmp	.Lnot_most
.Llast:					/* from 2^31 on: the square takes two words */
	incl	PROFILE_BUCKETS+4*LAST_BUCKET(%rdi)
	mulq	%rax
	addq	%rax, PROFILE_SQUARES(%rdi)
	adcq	%rdx, PROFILE_SQUARES+8(%rdi)
	jmp	.Lreturn
.Lcarry:
	incq	PROFILE_SQUARES+8(%rdi)
	jmp	.Lreturn
.Lbelow:				/* what stands above was left, by a jump that nobody saw */
	require_own %rdx
	movq	.Lgate(%rip), %rax
	cmpq	$0, (%rax)
	je	.Lforeign
	read_ticks
	subq	FRAME_TSC(%rsi), %rax
	addq	%rax, FRAME_CHILD-FRAME_BYTES(%rsi)
	movq	%rax, %rcx
	subq	FRAME_CHILD(%rsi), %rcx
	movb	$0, FRAME_STATE(%rsi)
	push_word FRAME_REAL(%rsi)
	pop_word KEPT_BYTES(%rsp)
	push_word %rax
	push_word %rcx
	push_word FRAME_AUX(%rsi)
	rdfsbase %rdx
	movq	.Lset(%rip), %rcx
	xchgq	%rsi, %rdi
	call_c	.Lpop(%rip)
	pop_word %rdi
	pop_word %rdx
	pop_word %rsi
	jmp	.Lcount
.Lclosed:
	require_own %rdx
	leaq	FRAME_BYTES(%rsi), %rax
	push_word %rax
	give_back
	jne	.Lnot_top
	pop_word %rax
	jmp	.Lreturn
	not_top
	movb	$0, FRAME_STATE(%rsi)
	push_word FRAME_REAL(%rsi)
	pop_word KEPT_BYTES(%rsp)
	movq	.Lset(%rip), %rcx
	xchgq	%rsi, %rdi
	call_c	.Lpop(%rip)		/* not counted: the row belongs to another thread, perhaps */
	jmp	.Lreturn
	end_probe tpa_profile

	.section .note.GNU-stack, "", @progbits
