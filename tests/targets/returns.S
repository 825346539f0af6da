// SPDX-License-Identifier: Apache-2.0
/*
 * What a call leaves in every register when its callee touches none: regs_checked() fills all of
 * them, calls a function of nothing but NOPs and a RET, and compares. Besides a switch of stacks as
 * boost.context does it, a function that loops to its own first byte, and two that jump to each other.
 */
	.macro function name
	.globl \name
	.type \name, @function
	.p2align 4
\name:
	.cfi_startproc
	.endm
	.macro finish name
	.cfi_endproc
	.size \name, . - \name
	.endm
	.macro entry
	.section __patchable_function_entries, "awo", @progbits, .text
	.quad 0f
	.text
0:	.fill 5, 1, 0x90
	.endm

	.text
	function touches_nothing
	entry
	ret
	finish touches_nothing

	function calls_nothing
	entry
	jmp touches_nothing
	finish calls_nothing

	/* long takes_words(long, long): on the stack, and it takes them away. */
	function takes_words
	entry
	movq 8(%rsp), %rax
	subq 16(%rsp), %rax
	ret $16
	finish takes_words

	/* long pushes_words(void): 42 */
	function pushes_words
	entry
	pushq %rbx
	.cfi_adjust_cfa_offset 8
	movq $7, %rbx
	pushq $-5
	.cfi_adjust_cfa_offset 8
	pushq $30
	.cfi_adjust_cfa_offset 8
	call takes_words
	.cfi_adjust_cfa_offset -16
	addq %rbx, %rax
	popq %rbx
	.cfi_adjust_cfa_offset -8
	ret
	finish pushes_words

	.macro differs
	jne .Lwrong
	.endm

	/* int regs_checked(void): 0 when nothing has changed. */
	function regs_checked
	pushq %rbx
	.cfi_adjust_cfa_offset 8
	pushq %rbp
	.cfi_adjust_cfa_offset 8
	pushq %r12
	.cfi_adjust_cfa_offset 8
	pushq %r13
	.cfi_adjust_cfa_offset 8
	pushq %r14
	.cfi_adjust_cfa_offset 8
	pushq %r15
	.cfi_adjust_cfa_offset 8
	subq $72, %rsp
	.cfi_adjust_cfa_offset 72
	stmxcsr 60(%rsp)
	movl $0x3f80, 56(%rsp)		/* another rounding mode */
	ldmxcsr 56(%rsp)
	fninit
	fldpi
	fld1
	fldl2e
	.irp n, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15
	vmovdqu pattern+32*\n(%rip), %ymm\n
	.endr
	movabsq $0x0101010101010101, %rax
	movabsq $0x0202020202020202, %rbx
	movabsq $0x0303030303030303, %rcx
	movabsq $0x0404040404040404, %rdx
	movabsq $0x0505050505050505, %rsi
	movabsq $0x0606060606060606, %rdi
	movabsq $0x0707070707070707, %rbp
	movabsq $0x0808080808080808, %r8
	movabsq $0x0909090909090909, %r9
	movabsq $0x0a0a0a0a0a0a0a0a, %r10
	movabsq $0x0b0b0b0b0b0b0b0b, %r11
	movabsq $0x0c0c0c0c0c0c0c0c, %r12
	movabsq $0x0d0d0d0d0d0d0d0d, %r13
	movabsq $0x0e0e0e0e0e0e0e0e, %r14
	movabsq $0x0f0f0f0f0f0f0f0f, %r15
	pushq $0x8d5			/* of OF SF ZF AF PF CF: all */
	popfq
	call calls_nothing
	jno .Lflags
	jns .Lflags
	jnz .Lflags
	jnp .Lflags
	jnc .Lflags
	pushfq
	testb $0x10, (%rsp)
	leaq 8(%rsp), %rsp
	jz .Lflags
	pushq $0x202			/* and none */
	popfq
	call calls_nothing
	jo .Lflags
	js .Lflags
	jz .Lflags
	jp .Lflags
	jc .Lflags
	pushq %r15
	movabsq $0x0101010101010101, %r15
	.irp reg, rax, rbx, rcx, rdx, rsi, rdi, rbp, r8, r9, r10, r11, r12, r13, r14
	cmpq %r15, %\reg
	jne .Lwrong_popped
	pushq %rax
	movabsq $0x0101010101010101, %rax
	addq %rax, %r15
	popq %rax
	.endr
	popq %rax
	cmpq %r15, %rax
	differs
	.irp n, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14
	vpcmpeqb pattern+32*\n(%rip), %ymm\n, %ymm\n
	vpmovmskb %ymm\n, %eax
	cmpl $-1, %eax
	differs
	.endr
	vpcmpeqb pattern+32*15(%rip), %ymm15, %ymm15
	vpmovmskb %ymm15, %eax
	cmpl $-1, %eax
	differs
	stmxcsr 52(%rsp)
	movl 52(%rsp), %eax
	cmpl 56(%rsp), %eax
	differs
	fldl2e
	fcomip %st(1), %st
	differs
	fstp %st(0)
	fld1
	fcomip %st(1), %st
	differs
	fstp %st(0)
	fldpi
	fcomip %st(1), %st
	differs
	fstp %st(0)
	xorl %eax, %eax
	jmp .Lend
.Lwrong_popped:
	popq %r15
.Lwrong:
	movl $1, %eax
	jmp .Lend
.Lflags:
	movl $2, %eax
.Lend:
	fninit
	vzeroupper
	ldmxcsr 60(%rsp)
	addq $72, %rsp
	.cfi_adjust_cfa_offset -72
	popq %r15
	.cfi_adjust_cfa_offset -8
	popq %r14
	.cfi_adjust_cfa_offset -8
	popq %r13
	.cfi_adjust_cfa_offset -8
	popq %r12
	.cfi_adjust_cfa_offset -8
	popq %rbp
	.cfi_adjust_cfa_offset -8
	popq %rbx
	.cfi_adjust_cfa_offset -8
	ret
	finish regs_checked

	/* void switch_stack(void **from, void *to): boost.context's, in essence */
	function switch_stack
	pushq %rbp
	pushq %rbx
	pushq %r12
	pushq %r13
	pushq %r14
	pushq %r15
	movq %rsp, (%rdi)
	movq %rsi, %rsp
	popq %r15
	popq %r14
	popq %r13
	popq %r12
	popq %rbx
	popq %rbp
	popq %rax
	jmp *%rax
	finish switch_stack

	/* long loops_to_its_start(long n): n times back to the first byte */
	function loops_to_its_start
	entry
	movq %rdi, %rax
	decq %rdi
	jg loops_to_its_start
	ret
	finish loops_to_its_start

	/* long tail_ping(long n): jumps to tail_pong and back, n times in all */
	function tail_ping
	entry
	movq %rdi, %rax
	decq %rdi
	jg tail_pong
	ret
	finish tail_ping
	function tail_pong
	entry
	movq %rdi, %rax
	decq %rdi
	jg tail_ping
	ret
	finish tail_pong

	.data
pattern:
	.set i, 0
	.rept 64
	.quad 0x1122334455667788 + i * 0x0101010101010101
	.set i, i + 1
	.endr
	.section .note.GNU-stack, "", @progbits
