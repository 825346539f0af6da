/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The code that a patched site calls. One thunk serves every site: the return address names it.
 *
 * This is a template: the tool maps a copy of it within CALL reach of the sites, an island, and
 * fills in the two addresses at its end. A jump from there to here would cost 3 to 5 ns a call.
 *
 * Keeps every register and the flags: -O2 code is compiled with -fipa-ra, so callers may rely on
 * registers that the ABI calls clobbered (pitfalls 25). The thread's ring is found by its fs base,
 * without TLS. A nested signal handler may run its own thunk anywhere in here: the index is taken
 * by one instruction (xadd, atomic against signals of this thread, no lock prefix needed).
 *
 * Right at every instruction, the unwind rows are for debuggers: the tool reads them from the file
 * (agent_image.py) and gives each copy of the thunk its own; they are not part of the loaded image.
 */
#define RING_HEAD	0
#define RING_LIMIT	8
#define RING_MASK	16
#define RING_TID_AT	24
#define RING_DROPPED	32
#define RING_TID	40
#define RING_EVENTS	4096
#define SLOT_BYTES_MASK	0xfff0		/* TPA_SLOT_COUNT slots of 16 bytes */
#define MOST_PROBES	64
#define SAVED_BYTES	40
#define SCRUB_BYTES	512

	.macro	keep reg
	pushq	\reg
	.cfi_adjust_cfa_offset 8
	.cfi_rel_offset \reg, 0
	.endm
	.macro	back reg
	popq	\reg
	.cfi_adjust_cfa_offset -8
	.cfi_restore \reg
	.endm

	.text
	.globl	tpa_thunk_function
	.hidden	tpa_thunk_function
	.type	tpa_thunk_function, @function
	.balign	64
tpa_thunk_function:
	.cfi_startproc
	endbr64
	keep	%rdx
	rdfsbase %rdx			/* first: while the front end still follows the jumps, 3 to 5 ns less than later */
	keep	%rax
	lahf
	seto	%al
	pushq	%rax
	.cfi_adjust_cfa_offset 8
	keep	%rcx
	keep	%rsi
	movq	.Lgate(%rip), %rsi
	movq	(%rsi), %rsi		/* slots; a forked child finds the page wiped */
	testq	%rsi, %rsi
	jz	.Lout
	movq	%rdx, %rax
	shrq	$8, %rax
	andl	$SLOT_BYTES_MASK, %eax	/* slot (fs base >> 12) % TPA_SLOT_COUNT, times 16 */
	cmpq	%rdx, (%rsi,%rax)
	jne	.Lprobe
.Lfound:
	movq	8(%rsi,%rax), %rsi
	testq	%rsi, %rsi
	jz	.Lslow
	movq	RING_TID_AT(%rsi), %rcx
	movl	RING_TID(%rsi), %eax
	cmpl	%eax, (%rcx)		/* libc reuses stacks: another thread, the same fs base */
	jne	.Lslow
.Lwrite:
	movq	RING_HEAD(%rsi), %rax
	cmpq	RING_LIMIT(%rsi), %rax
	jae	.Ldrop
	movl	$1, %ecx
	xaddq	%rcx, RING_HEAD(%rsi)
	movq	RING_MASK(%rsi), %rax
	andq	%rcx, %rax
	shlq	$4, %rax
	addq	%rax, %rsi
	movq	SAVED_BYTES(%rsp), %rax
	shlq	$16, %rax
	shrq	$8, %rcx
	andl	$0xfff0, %ecx		/* the lap, so that a reader knows a whole event */
	leaq	1(%rax,%rcx), %rcx	/* 1: TP_EVENT_ENTRY */
	rdtsc				/* last: it waits for what stands before it, 5 ns less than first */
	shlq	$32, %rdx
	orq	%rdx, %rax
	movq	%rax, RING_EVENTS(%rsi)
	movq	%rcx, RING_EVENTS+8(%rsi)
.Lout:
	.cfi_remember_state
	back	%rsi
	back	%rcx
	popq	%rax
	.cfi_adjust_cfa_offset -8
	addb	$0x7f, %al		/* overflow flag back */
	sahf
	back	%rax
	back	%rdx
	ret
	.cfi_restore_state
.Ldrop:
	incq	RING_DROPPED(%rsi)
	jmp	.Lout
.Lprobe:
	movl	$MOST_PROBES, %ecx
1:	cmpq	$0, (%rsi,%rax)
	je	.Lslow
	addl	$16, %eax
	andl	$SLOT_BYTES_MASK, %eax
	cmpq	%rdx, (%rsi,%rax)
	je	.Lfound
	decl	%ecx
	jnz	1b
.Lslow:
	keep	%rdi
	keep	%r8
	keep	%r9
	keep	%r10
	keep	%r11
	keep	%rbp
	movq	%rsp, %rbp
	.cfi_def_cfa_register %rbp
	andq	$-16, %rsp
	movq	%rdx, %rdi
	call	*.Lclaim(%rip)
	movq	%rax, %rsi
	leaq	-SCRUB_BYTES(%rsp), %rdi	/* leave no dead return address: start.S */
	xorl	%eax, %eax
	movl	$SCRUB_BYTES / 8, %ecx
	rep	stosq
	movq	%rbp, %rsp
	.cfi_def_cfa_register %rsp
	back	%rbp
	back	%r11
	back	%r10
	back	%r9
	back	%r8
	back	%rdi
	testq	%rsi, %rsi
	jnz	.Lwrite
	jmp	.Lout
	.balign	8, 0xcc
.Lgate:
	.quad	0			/* tpa_gate */
.Lclaim:
	.quad	0			/* tpa_ring_claim */
	.globl	tpa_thunk_function_end
	.hidden	tpa_thunk_function_end
tpa_thunk_function_end:
	.cfi_endproc
	.size	tpa_thunk_function, . - tpa_thunk_function

	.section .note.GNU-stack, "", @progbits
