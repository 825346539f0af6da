/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Runs a capture program at every entry and return of one function, compiled with -pg -mfentry, and
 * prints the words: what the agent's thunks do, in the own process. Linked with native/agent/capture.c.
 *
 * usage: PROGRAM OFFSET ENTRY_OPS EXIT_OPS; OFFSET is the function's from __executable_start, the
 * operations are hexadecimal.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "agent.h"

extern char __executable_start[];
void run_everything(void);
void hook_entry(struct tpa_regs *regs, uint64_t inside);
void hook_exit(struct tpa_regs *regs);
uint64_t hook_real;

/* Of these the other unit knows the name alone. */
struct opaque {
	int first;
	double second;
};
struct opaque *only_declared(void);
struct opaque *only_declared(void)
{
	static struct opaque one = { 8, 1.25 };

	return &one;
}

struct tpa_state tpa;

/* No return is redirected here. */
uint64_t tpa_final_return(uint64_t real)
{
	return real;
}
static struct tp_capture_op ops[2][TP_CAPTURE_MOST_OPS];
static uint32_t counts[2];
static uint64_t wanted;
static int off;

static void show(const char *what, int index, const struct tpa_regs *regs)
{
	uint64_t words[TP_CAPTURE_MOST_WORDS];
	uint32_t count;

	off = 1;
	count = tpa_capture(ops[index], counts[index], regs, true, words, TP_CAPTURE_MOST_WORDS);
	printf("%s", what);
	for (uint32_t i = 0; i < count; i++)
		printf(" %lx", words[i]);
	printf("\n");
	fflush(stdout);
	off = 0;
}

extern void hook_return(void);

/* Behind a call of five or six bytes at the entry, or behind endbr64 and that. */
void hook_entry(struct tpa_regs *regs, uint64_t inside)
{
	if (off || inside < wanted + 5 || inside > wanted + 10)
		return;
	show("entry", 0, regs);
	hook_real = *(uint64_t *)regs->slot;
	*(uint64_t *)regs->slot = (uint64_t)hook_return;
}

void hook_exit(struct tpa_regs *regs)
{
	*(uint64_t *)regs->slot = hook_real;
	show("exit", 1, regs);
}

#define SAVE                                                                     \
	"	subq $208, %rsp\n"                                                     \
	"	movq %rax, 0(%rsp); movq %rdx, 8(%rsp); movq %rcx, 16(%rsp)\n"         \
	"	movq %rbx, 24(%rsp); movq %rsi, 32(%rsp); movq %rdi, 40(%rsp)\n"       \
	"	movq %rbp, 48(%rsp); movq %r8, 64(%rsp); movq %r9, 72(%rsp)\n"         \
	"	movq %r10, 80(%rsp); movq %r11, 88(%rsp); movq %r12, 96(%rsp)\n"       \
	"	movq %r13, 104(%rsp); movq %r14, 112(%rsp); movq %r15, 120(%rsp)\n"    \
	"	movq %xmm0, 128(%rsp); movq %xmm1, 136(%rsp); movq %xmm2, 144(%rsp)\n" \
	"	movq %xmm3, 152(%rsp); movq %xmm4, 160(%rsp); movq %xmm5, 168(%rsp)\n" \
	"	movq %xmm6, 176(%rsp); movq %xmm7, 184(%rsp)\n"
__asm__(".globl __fentry__\n"
	"__fentry__:\n" SAVE "	leaq 216(%rsp), %rax\n" /* the function's return address */
	"	movq %rax, 192(%rsp); movq %rax, 56(%rsp)\n"
	"	movq %rsp, %rdi\n"
	"	movq 208(%rsp), %rsi\n"
	"	movq %rsp, %rbx\n"
	"	subq $528, %rsp; andq $-64, %rsp; fxsave (%rsp)\n"
	"	call hook_entry\n"
	"	fxrstor (%rsp); movq %rbx, %rsp\n"
	"	jmp hook_back\n"
	".globl hook_return\n"
	"hook_return:\n"
	"	pushq %rax\n" /* where the return address was; the next line overwrites it */
	SAVE "	leaq 208(%rsp), %rax\n"
	"	movq %rax, 192(%rsp); movq %rax, 56(%rsp)\n"
	"	movq %rsp, %rdi\n"
	"	movq %rsp, %rbx\n"
	"	subq $528, %rsp; andq $-64, %rsp; fxsave (%rsp)\n"
	"	call hook_exit\n"
	"	fxrstor (%rsp); movq %rbx, %rsp\n"
	"hook_back:\n"
	"	movq 0(%rsp), %rax; movq 8(%rsp), %rdx; movq 16(%rsp), %rcx\n"
	"	movq 24(%rsp), %rbx; movq 32(%rsp), %rsi; movq 40(%rsp), %rdi\n"
	"	movq 64(%rsp), %r8; movq 72(%rsp), %r9; movq 80(%rsp), %r10\n"
	"	movq 88(%rsp), %r11\n"
	"	addq $208, %rsp\n"
	"	ret\n");

static uint32_t parse(const char *text, struct tp_capture_op *to)
{
	size_t bytes = strlen(text) / 2;

	for (size_t i = 0; i < bytes && i < sizeof(ops[0]); i++) {
		unsigned int byte = 0;

		sscanf(text + 2 * i, "%2x", &byte);
		((uint8_t *)to)[i] = (uint8_t)byte;
	}
	return (uint32_t)(bytes / sizeof(*to));
}

int main(int argc, char **argv)
{
	if (argc != 4)
		return 2;
	tpa.pid = getpid();
	wanted = (uint64_t)__executable_start + strtoul(argv[1], NULL, 0);
	counts[0] = parse(argv[2], ops[0]);
	counts[1] = parse(argv[3], ops[1]);
	run_everything();
	return 0;
}
