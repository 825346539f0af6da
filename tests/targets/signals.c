// SPDX-License-Identifier: Apache-2.0
/** @file States in which a process cannot be traced; each argument is one of them. */
#define _GNU_SOURCE
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/ptrace.h>
#include <unistd.h>

static void block_sigtrap(void)
{
	sigset_t set;

	sigemptyset(&set);
	sigaddset(&set, SIGTRAP);
	pthread_sigmask(SIG_BLOCK, &set, NULL);
}

static void *sleep_forever(void *name)
{
	pthread_setname_np(pthread_self(), name);
	if (!strcmp(name, "masked"))
		block_sigtrap();
	if (!strcmp(name, "textpoke")) {
		sigset_t all;

		sigfillset(&all);
		pthread_sigmask(SIG_BLOCK, &all, NULL);
	}
	for (;;)
		pause();
	return NULL;
}

static void say_ready(void)
{
	usleep(50000); /* the threads have set their names and masks */
	puts("ready");
	fflush(stdout);
}

int main(int argc, char **argv)
{
	pthread_t thread;
	char byte;

	for (int i = 1; i < argc; i++) {
		if (!strcmp(argv[i], "masked") || !strcmp(argv[i], "textpoke") ||
		    !strcmp(argv[i], "plain"))
			pthread_create(&thread, NULL, sleep_forever, argv[i]);
		if (!strcmp(argv[i], "ignored"))
			signal(SIGTRAP, SIG_IGN);
		if (!strcmp(argv[i], "traced"))
			ptrace(PTRACE_TRACEME, 0, 0, 0);
		if (!strcmp(argv[i], "secret"))
			prctl(PR_SET_DUMPABLE, 0);
	}
	say_ready();
	if (argc > 1 && !strcmp(argv[1], "seccomp"))
		prctl(PR_SET_SECCOMP, 1);
	if (argc > 1 && !strcmp(argv[1], "leader-exits"))
		pthread_exit(NULL);
	return read(0, &byte, 1) != 0;
}
