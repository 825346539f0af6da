// SPDX-License-Identifier: Apache-2.0
/**
 * @file
 * Loops of one conditional branch each, for bench/branches.py. Lines: "dead N THREADS", "live N THREADS"; it
 * answers with nanoseconds.
 */
#define _GNU_SOURCE
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

static unsigned long turns;

/* What follows on both ways writes all flags. */
__attribute__((noipa)) void *dead(void *unused)
{
	__asm__ volatile("1: add $-1, %0\nmov %0, %%rax\njne 1b\nadd $1, %%rax"
			 :
			 : "r"(turns)
			 : "rax", "cc");
	return unused;
}

/* dec leaves the carry as it is, so it may be looked at. */
__attribute__((noipa)) void *live(void *unused)
{
	__asm__ volatile("1: dec %0\nmov %0, %%rax\njne 1b\ninc %%rax"
			 :
			 : "r"(turns)
			 : "rax", "cc");
	return unused;
}

int main(void)
{
	char line[80], kind[8];
	int threads;

	puts("ready");
	fflush(stdout);
	while (fgets(line, sizeof(line), stdin) &&
	       sscanf(line, "%7s %lu %d", kind, &turns, &threads) == 3) {
		void *(*loop)(void *) = strcmp(kind, "dead") ? live : dead;
		struct timespec from, to;
		pthread_t ids[64];

		clock_gettime(CLOCK_MONOTONIC, &from);
		for (int i = 0; i < threads && i < 64; i++)
			pthread_create(&ids[i], NULL, loop, NULL);
		for (int i = 0; i < threads && i < 64; i++)
			pthread_join(ids[i], NULL);
		clock_gettime(CLOCK_MONOTONIC, &to);
		printf("%ld\n", (to.tv_sec - from.tv_sec) * 1000000000 + to.tv_nsec - from.tv_nsec);
		fflush(stdout);
	}
	return 0;
}
