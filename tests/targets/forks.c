// SPDX-License-Identifier: Apache-2.0
/**
 * @file
 * A program that makes processes while it is traced; every child runs traced functions and checks
 * their results. Lines: "fork CHILDREN", "spawn CHILDREN", "vfork CHILDREN", "halt CHILDREN" (a
 * vfork that waits for a signal), "work CALLS", "stay N", "quit".
 */
#define _GNU_SOURCE
#include <errno.h>
#include <pthread.h>
#include <spawn.h>
#include <sys/prctl.h>
#include <sys/wait.h>

#include "target.h"

enum { CALLS_OF_A_CHILD = 50 };

extern char **environ;
static unsigned long calls;

TRACED unsigned long work(unsigned long x)
{
	calls++;
	return x * 5 + 3;
}

PLAIN static int work_is_right(int count)
{
	for (int i = 0; i < count; i++)
		if (work((unsigned long)i) != (unsigned long)i * 5 + 3)
			return 0;
	return 1;
}

/* A child calls what is traced, also in a thread of its own and in a child of its own. */
PLAIN static void *work_in_thread(void *right)
{
	*(int *)right = work_is_right(CALLS_OF_A_CHILD);
	return NULL;
}

PLAIN static void be_a_child(void)
{
	int right = 0, status = 1;
	pthread_t thread;
	pid_t grandchild;

	if (!work_is_right(CALLS_OF_A_CHILD))
		_exit(1);
	if (pthread_create(&thread, NULL, work_in_thread, &right) || pthread_join(thread, NULL))
		_exit(2);
	if (!right)
		_exit(3);
	grandchild = fork();
	if (!grandchild)
		_exit(!work_is_right(CALLS_OF_A_CHILD));
	waitpid(grandchild, &status, 0);
	_exit(status ? 4 : 0);
}

/* A child that works until its parent ends, and tells by its death that something was wrong. */
PLAIN static pid_t stay(void)
{
	pid_t child = fork();

	if (child)
		return child;
	prctl(PR_SET_PDEATHSIG, SIGKILL);
	alarm(LIFE_S);
	while (work_is_right(CALLS_OF_A_CHILD))
		usleep(100);
	abort();
}

PLAIN static pid_t make(char how)
{
	char *words[] = { "/proc/self/exe", "child", NULL };
	pid_t child = -1;

	if (how == 'f') {
		child = fork();
		if (!child)
			be_a_child();
	} else if (how == 's') {
		if (posix_spawn(&child, words[0], NULL, NULL, words, environ))
			return -1;
	} else {
		child = vfork();
		if (!child) {
			if (how == 'h')
				pause();
			work(1); /* in its parent's memory: its parent's call */
			_exit(0);
		}
	}
	return child;
}

/* Returns how many children ended badly; the parent works between them. */
PLAIN static int storm(char how, int count)
{
	int bad = 0, status;

	for (int i = 0; i < count; i++) {
		pid_t child = make(how);

		bad += !work_is_right(3);
		bad += waitpid(child, &status, 0) != child || status != 0;
	}
	return bad;
}

PLAIN int main(int argc, char **argv)
{
	(void)argv;
	char how[16];
	int count, bad;

	if (argc > 1) { /* spawned */
		alarm(LIFE_S);
		return !work_is_right(CALLS_OF_A_CHILD);
	}
	say_ready();
	for (;;) {
		if (sscanf(hear(), "%15s %d", how, &count) != 2)
			return 0;
		if (!strcmp(how, "stay")) {
			say("%d", stay());
			continue;
		}
		calls = 0;
		bad = how[0] == 'w' ? !work_is_right(count) : storm(how[0], count);
		say("%d %lu", bad, calls);
	}
}
