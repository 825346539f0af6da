/* SPDX-License-Identifier: Apache-2.0 */
/*
 * How the agent's thread is born, and the return path of its signal handler.
 *
 * tpa_bootstrap is entered by the seized thread with the registers of clone(2) already loaded by
 * the tool (the child must be born in our own code: pitfalls 11). The parent is stopped at the exit
 * of that system call and gets its own registers back; in this process it simply returns.
 */
#define SCRUB_BYTES 512

	.text
	.globl	tpa_bootstrap
	.hidden	tpa_bootstrap
	.type	tpa_bootstrap, @function
tpa_bootstrap:
	endbr64
	syscall
	testq	%rax, %rax
	jz	1f
	ret
1:	/* the child shares its parent's stack pointer: no push before it has its own stack */
	leaq	tpa_image(%rip), %rdi
	leaq	tpa_image_end(%rip), %rsi
	subq	%rdi, %rsi
	movl	$3, %edx		/* PROT_READ | PROT_WRITE: mapped r-x until here */
	movl	$10, %eax		/* mprotect */
	syscall
	testq	%rax, %rax
	jnz	2f
	leaq	tpa_stack_end(%rip), %rsp
	xorl	%ebp, %ebp
	call	tpa_main
2:	movl	$1, %edi
	movl	$60, %eax		/* exit: this thread only */
	syscall
	hlt
	.size	tpa_bootstrap, . - tpa_bootstrap

/*
 * The SIGTRAP handler's outer shell. It wipes what the C part leaves below the stack pointer: a
 * dead return address there would look, at detach, like a thread that will return to us.
 */
	.globl	tpa_sigtrap
	.hidden	tpa_sigtrap
	.type	tpa_sigtrap, @function
tpa_sigtrap:
	endbr64
	subq	$8, %rsp
	call	tpa_on_sigtrap
	leaq	-SCRUB_BYTES(%rsp), %rdi
	xorl	%eax, %eax
	movl	$SCRUB_BYTES / 8, %ecx
	cld
	rep	stosq
	addq	$8, %rsp
	ret
	.size	tpa_sigtrap, . - tpa_sigtrap

	.globl	tpa_restorer
	.hidden	tpa_restorer
	.type	tpa_restorer, @function
tpa_restorer:
	movl	$15, %eax		/* rt_sigreturn */
	syscall
	hlt
	.size	tpa_restorer, . - tpa_restorer

	.section .tp_gate, "aw", @nobits
	.globl	tpa_gate
	.hidden	tpa_gate
	.balign	4096
tpa_gate:
	.skip	4096

	.section .tp_stack, "aw", @nobits
	.balign	4096
	.skip	32768
	.globl	tpa_stack_end
	.hidden	tpa_stack_end
tpa_stack_end:

	.section .note.GNU-stack, "", @progbits
