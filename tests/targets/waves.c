// SPDX-License-Identifier: Apache-2.0
/**
 * @file
 * Waves of threads that live for 10 ms, up to a hundred at a time, on stacks of many sizes: libc unmaps
 * them and maps others, and descriptors of other threads come to the same places.
 */
#define _GNU_SOURCE
#include <pthread.h>

#include "target.h"

enum { MOST = 104, LEAST_STACK = 64 << 10, SIZES = 8, CALLS = 20, PAUSE_US = 500 };

static volatile unsigned long called;

TRACED int inner(int n)
{
	called++;
	return n + 1;
}

TRACED int outer(int n)
{
	return inner(n) + 1;
}

PLAIN static void *live(void *unused)
{
	for (int i = 0; i < CALLS; i++) {
		outer(i);
		usleep(PAUSE_US);
	}
	return unused;
}

PLAIN int main(void)
{
	pthread_t threads[MOST];
	unsigned int chosen = 1;

	say_ready();
	for (;;) {
		int wanted, count = 0;

		chosen = chosen * 1103515245 + 12345;
		wanted = 5 + (int)((chosen >> 16) % (MOST - 4));
		for (int i = 0; i < wanted; i++) {
			pthread_attr_t attributes;

			pthread_attr_init(&attributes);
			chosen = chosen * 1103515245 + 12345;
			pthread_attr_setstacksize(&attributes,
						  (size_t)LEAST_STACK << (chosen >> 16) % SIZES);
			count += !pthread_create(&threads[count], &attributes, live, NULL);
			pthread_attr_destroy(&attributes);
		}
		for (int i = 0; i < count; i++)
			pthread_join(threads[i], NULL);
	}
}
