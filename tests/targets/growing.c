// SPDX-License-Identifier: Apache-2.0
/**
 * @file
 * A main stack below a signal handler that has stopped its thread at the second instruction of
 * work(): "go" begins that ("inside"), and a moment later the thread goes on there and says what
 * came out. Meanwhile the stack grows all the time; after "go below" the stack pointer stands far
 * below all that it has touched.
 */
#define _GNU_SOURCE
#include <stdbool.h>
#include <stdint.h>
#include <sys/resource.h>
#include <time.h>
#include <ucontext.h>

#include "target.h"

enum { STEP_NS = 40000, GROWTH_NS = 400000000, STACK_BYTES = 512 << 20 };

static volatile bool is_below;

int work(int x);
__asm__(".pushsection .text\n.p2align 4\n.globl work\n.type work, @function\n"
	"work: push %rbp\nmov %rsp, %rbp\nmov %edi, %eax\npop %rbp\nret\n.size work, . - work\n"
	".p2align 4\n.popsection\n");

PLAIN static int64_t now_ns(void)
{
	struct timespec now;

	clock_gettime(CLOCK_MONOTONIC, &now);
	return now.tv_sec * 1000000000ll + now.tv_nsec;
}

PLAIN static int grow(int64_t until_ns)
{
	volatile char page[4096];
	int64_t next_ns = now_ns() + STEP_NS;

	page[0] = page[sizeof(page) - 1] = 1;
	while (now_ns() < next_ns)
		;
	return next_ns < until_ns ? grow(until_ns) + page[0] : 0;
}

PLAIN static void wait_below(int64_t until_ns)
{
	while (now_ns() < until_ns) {
		int64_t turns = 50000000;

		__asm__ volatile("sub $0x300000, %%rsp\n1: dec %0\njnz 1b\nadd $0x300000, %%rsp"
				 : "+r"(turns)
				 :
				 : "cc", "memory");
	}
}

PLAIN static void on_step(int signal, siginfo_t *info, void *context)
{
	greg_t *regs = ((ucontext_t *)context)->uc_mcontext.gregs;

	(void)signal;
	(void)info;
	if ((uint64_t)regs[REG_RIP] != (uint64_t)work + 1)
		return;
	regs[REG_EFL] &= ~0x100l;
	say("inside");
	if (is_below)
		wait_below(now_ns() + GROWTH_NS);
	else
		grow(now_ns() + GROWTH_NS);
}

PLAIN int main(int argc, char **argv)
{
	const struct rlimit room = { STACK_BYTES, STACK_BYTES };
	struct sigaction action = { .sa_sigaction = on_step, .sa_flags = SA_SIGINFO | SA_NODEFER };
	char *const again[] = { argv[0], "again", NULL };
	int result;

	if (argc == 1 && !setrlimit(RLIMIT_STACK, &room)) /* it counts from the next exec on */
		execv("/proc/self/exe", again);
	sigaction(SIGTRAP, &action, NULL);
	say_ready();
	is_below = !strcmp(hear(), "go below");
	__asm__ volatile("pushfq\norq $0x100, (%%rsp)\npopfq\ncall work"
			 : "=a"(result)
			 : "D"(77)
			 : "rcx", "rdx", "rsi", "r8", "r9", "r10", "r11", "memory", "cc");
	say("%s", result == 77 ? "right" : "wrong");
	hear();
	return 0;
}
