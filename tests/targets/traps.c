// SPDX-License-Identifier: Apache-2.0
/**
 * @file
 * A program that uses SIGTRAP itself, by every way there is to raise one, and tells what its
 * handler saw. Lines: "own", "trap", "take", "give", "die", "storm", "count", "quit".
 */
#define _GNU_SOURCE
#include <errno.h>
#include <pthread.h>
#include <ucontext.h>

#include "target.h"

struct seen {
	int code;
	int value;
	long offset; /* of rip behind plain_int3; -1: elsewhere */
	int self_blocked;
	int other_blocked;
};

static struct seen seen[16];
static int seen_count;
static struct sigaction taken;
static volatile unsigned long sum;
static volatile int storm_signals;

extern char plain_int3[]; /* int3; int $3 */

TRACED void work(unsigned long x)
{
	sum += x;
}

PLAIN static void on_sigtrap(int signal, siginfo_t *info, void *context)
{
	const ucontext_t *frame = context;
	long rip = (long)frame->uc_mcontext.gregs[REG_RIP];
	struct seen *now = &seen[seen_count++ % 16];
	sigset_t mask;

	(void)signal;
	pthread_sigmask(SIG_BLOCK, NULL, &mask);
	now->code = info->si_code;
	now->value = info->si_code == SI_QUEUE ? info->si_value.sival_int : 0;
	now->offset = rip - (long)plain_int3;
	if (now->offset < 0 || now->offset > 3)
		now->offset = -1;
	now->self_blocked = sigismember(&mask, SIGTRAP);
	now->other_blocked = sigismember(&mask, SIGUSR2);
	work(1); /* a traced function inside a handler */
}

PLAIN static void install(struct sigaction *old)
{
	struct sigaction action = { .sa_sigaction = on_sigtrap, .sa_flags = SA_SIGINFO };

	sigemptyset(&action.sa_mask);
	sigaddset(&action.sa_mask, SIGUSR2);
	sigaction(SIGTRAP, &action, old);
}

PLAIN static void trap_every_way(void)
{
	union sigval value = { .sival_int = 42 };

	seen_count = 0;
	raise(SIGTRAP);
	kill(getpid(), SIGTRAP);
	sigqueue(getpid(), SIGTRAP, value);
	__asm__ volatile(".globl plain_int3\nplain_int3: int3\n.byte 0xcd, 0x03");
	for (int i = 0; i < seen_count; i++)
		say("%d %d %ld %d %d", seen[i].code, seen[i].value, seen[i].offset,
		    seen[i].self_blocked, seen[i].other_blocked);
	say("end");
}

PLAIN static void mask(int how)
{
	sigset_t set;

	sigemptyset(&set);
	sigaddset(&set, SIGTRAP);
	pthread_sigmask(how, &set, NULL);
}

PLAIN static void on_storm(int signal)
{
	(void)signal;
	__atomic_add_fetch(&storm_signals, 1, __ATOMIC_SEQ_CST);
	work(1);
}

/* Real-time signals are queued one by one: none may get lost. It works until it is told to stop. */
PLAIN static void *work_on(void *argument)
{
	for (;;)
		work(1);
	return argument;
}

PLAIN static void start_storm(void)
{
	struct sigaction action = { .sa_handler = on_storm, .sa_flags = SA_RESTART };
	pthread_t thread;

	sigaction(SIGRTMIN + 3, &action, NULL);
	pthread_create(&thread, NULL, work_on, NULL);
	say("%d", SIGRTMIN + 3);
}

PLAIN int main(void)
{
	say_ready();
	for (;;) {
		const char *line = hear();

		work(1);
		if (!strcmp(line, "own"))
			install(NULL), say("owned");
		else if (!strcmp(line, "take"))
			install(&taken), say("taken");
		else if (!strcmp(line, "give"))
			sigaction(SIGTRAP, &taken, NULL), say("given");
		else if (!strcmp(line, "trap"))
			trap_every_way();
		else if (!strcmp(line, "block") || !strcmp(line, "unblock"))
			mask(line[0] == 'b' ? SIG_BLOCK : SIG_UNBLOCK), say("masked");
		else if (!strcmp(line, "storm"))
			start_storm();
		else if (!strcmp(line, "count"))
			say("%d", storm_signals);
		else if (!strcmp(line, "die"))
			raise(SIGTRAP);
		else
			return 0;
	}
}
