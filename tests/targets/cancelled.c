// SPDX-License-Identifier: Apache-2.0
/**
 * @file
 * Threads of a C program that are cancelled, or end by themselves, deep within traced functions: the
 * unwinder is loaded by the first of them. Lines: "run ROUNDS" (answers how many were wrong), "quit".
 */
#include <pthread.h>
#include <semaphore.h>

#include "target.h"

static sem_t there;
static int cleaned;

TRACED void clean(void *what)
{
	cleaned += *(const int *)what;
}

TRACED int wait_here(int depth, int how)
{
	int result;

	pthread_cleanup_push(clean, &(int){ 1 });
	if (depth) {
		result = wait_here(depth - 1, how) + 1;
	} else if (how) {
		pthread_exit(NULL);
	} else {
		sem_post(&there);
		for (;;)
			sleep(100);
	}
	pthread_cleanup_pop(0);
	return result;
}

TRACED void *begin(void *how)
{
	wait_here(9, how != NULL);
	return how;
}

TRACED int one_round(void)
{
	int before = cleaned, wrong = 0;

	for (long how = 0; how < 2; how++) {
		pthread_t thread;
		void *result;

		pthread_create(&thread, NULL, begin, (void *)how);
		if (!how) {
			sem_wait(&there);
			pthread_cancel(thread);
		}
		pthread_join(thread, &result);
		wrong += result != (how ? NULL : PTHREAD_CANCELED);
	}
	return wrong + (cleaned != before + 20);
}

PLAIN int main(void)
{
	sem_init(&there, 0, 0);
	say_ready();
	for (;;) {
		int rounds, wrong = 0;

		if (sscanf(hear(), "run %d", &rounds) != 1)
			return 0;
		while (rounds--)
			wrong += one_round();
		say("%d", wrong);
	}
}
