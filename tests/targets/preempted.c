// SPDX-License-Identifier: Apache-2.0
/**
 * @file
 * User-level threads that are preempted: a timer's handler switches contexts, and lays one aside
 * that it met outside of the program's own code. Says "parked" then, "alive" once that one has run on
 * after the line "resume".
 */
#define _GNU_SOURCE
#include <sys/time.h>
#include <ucontext.h>

#include "target.h"

extern char __executable_start, etext;
static ucontext_t scheduler, worker;
static volatile int parked;
static volatile unsigned long worked;

TRACED unsigned long work(unsigned long x)
{
	return x * 5 + 3;
}

PLAIN static void preempt(int signal, siginfo_t *info, void *context)
{
	const ucontext_t *met = context;
	char *rip = (char *)met->uc_mcontext.gregs[REG_RIP];

	(void)signal;
	(void)info;
	if (parked || (rip >= &__executable_start && rip < &etext))
		return;
	parked = 1;
	swapcontext(&worker, &scheduler);
}

PLAIN static void work_on(void)
{
	for (;;)
		if (work(worked++) && parked) {
			say("alive");
			_exit(0);
		}
}

PLAIN int main(void)
{
	static char stack[1 << 16];
	struct sigaction action = { .sa_sigaction = preempt, .sa_flags = SA_SIGINFO };
	struct itimerval often = { { 0, 1000 }, { 0, 1000 } };

	sigaction(SIGPROF, &action, NULL);
	say_ready();
	setitimer(ITIMER_PROF, &often, NULL);
	getcontext(&worker);
	worker.uc_stack.ss_sp = stack;
	worker.uc_stack.ss_size = sizeof(stack);
	makecontext(&worker, work_on, 0);
	swapcontext(&scheduler, &worker);
	say("parked");
	hear();
	setcontext(&worker); /* whose code must still be there; it says so itself */
	return 0;
}
