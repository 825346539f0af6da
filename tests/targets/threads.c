// SPDX-License-Identifier: Apache-2.0
/**
 * @file
 * A program whose threads come and go. The first argument says how it ends or lives:
 * "churn" (lines "churn THREADS ABREAST CALLS", "exit": the only thread leaves by a raw exit, "bare
 * CALLS" and "twin CALLS": a thread without an fs base, or with its parent's, "exec", "ping"), "leave" (the first thread leaves by a raw exit, a second works on until the end of stdin and
 * leaves likewise), "leader-exits" (the first thread leaves, a second obeys lines).
 */
#define _GNU_SOURCE
#include <asm/prctl.h>
#include <pthread.h>
#include <sched.h>
#include <sys/wait.h>

#include "target.h"

enum { MOST_ABREAST = 8, MOST_THREADS = 4096, FIRST_STATUS = 3, SECOND_STATUS = 5 };

static int tids[MOST_THREADS];
static int started;
static int calls;
static volatile unsigned long sum;

TRACED void work(unsigned long x)
{
	sum += x;
}

PLAIN static void *short_life(void *slot)
{
	*(int *)slot = (int)syscall(SYS_gettid);
	for (int i = 0; i < calls; i++)
		work(1);
	return NULL;
}

PLAIN static void churn(int count, int abreast)
{
	pthread_t threads[MOST_ABREAST];

	started = 0;
	while (started < count) {
		int now = 0;

		for (; now < abreast && started < count; now++)
			if (pthread_create(&threads[now], NULL, short_life, &tids[started++]))
				exit(1);
		while (now)
			pthread_join(threads[--now], NULL);
	}
	for (int i = 0; i < started; i++)
		say("%d", tids[i]);
	say("end");
}

/* A thread that libc knows nothing of: without an fs base, or with its parent's. It may call
 * nothing of libc, whose functions look there. */
PLAIN static int bare_life(void *without)
{
	if (without)
		__asm__ volatile("syscall"
				 :
				 : "a"(SYS_arch_prctl), "D"(ARCH_SET_FS), "S"(0)
				 : "rcx", "r11", "memory");
	for (int i = 0; i < calls; i++)
		work(1);
	return 0;
}

PLAIN static void live_bare(const char *how)
{
	static char stack[1 << 16] __attribute__((aligned(16)));
	static volatile int alive;
	const int flags = CLONE_VM | CLONE_FS | CLONE_FILES | CLONE_SIGHAND | CLONE_THREAD |
			  CLONE_SYSVSEM | CLONE_CHILD_CLEARTID;

	alive = 1;
	clone(bare_life, stack + sizeof(stack), flags, strcmp(how, "bare") ? NULL : stack, NULL,
	      NULL, &alive);
	while (alive)
		work(1);
	say("done");
}

PLAIN static void obey(void)
{
	char how[8];

	int count, abreast;

	for (;;) {
		const char *line = hear();

		if (sscanf(line, "churn %d %d %d", &count, &abreast, &calls) == 3)
			churn(count, abreast);
		else if (sscanf(line, "%7s %d", how, &calls) == 2)
			live_bare(how);
		else if (!strcmp(line, "exit"))
			syscall(SYS_exit, 7);
		else if (!strcmp(line, "exec"))
			execlp("sleep", "sleep", "30", NULL);
		else if (!strcmp(line, "ping"))
			work(1), say("%d", (int)syscall(SYS_gettid));
		else
			exit(0);
	}
}

PLAIN static void *obey_in_thread(void *nothing)
{
	usleep(50000); /* the first thread is gone by now */
	say_ready();
	obey();
	return nothing;
}

PLAIN static void *outlive(void *nothing)
{
	char byte;

	say_ready();
	while (read(0, &byte, 1) == 1)
		work(1);
	syscall(SYS_exit, SECOND_STATUS);
	return nothing;
}

PLAIN int main(int argc, char **argv)
{
	const char *way = argc > 1 ? argv[1] : "churn";
	pthread_t thread;

	if (!strcmp(way, "leave")) {
		pthread_create(&thread, NULL, outlive, NULL);
		syscall(SYS_exit, FIRST_STATUS);
	} else if (!strcmp(way, "leader-exits")) {
		pthread_create(&thread, NULL, obey_in_thread, NULL);
		syscall(SYS_exit, FIRST_STATUS);
	}
	say_ready();
	obey();
	return 0;
}
