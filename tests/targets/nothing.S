// SPDX-License-Identifier: Apache-2.0
// A program of one function, which cannot be patched: it begins with a system call (rax is 0 then: a
// read of nothing). It says "ready" and waits for a signal. Link with -nostdlib -static.
	.globl	_start
	.type	_start, @function
_start:
	syscall
	mov	$1, %eax	// write
	mov	$1, %edi
	lea	ready(%rip), %rsi
	mov	$6, %edx
	syscall
1:	mov	$34, %eax	// pause
	syscall
	jmp	1b
	.size	_start, . - _start
ready:	.ascii	"ready\n"
	.section .note.GNU-stack, "", @progbits
