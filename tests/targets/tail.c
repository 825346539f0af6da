/* SPDX-License-Identifier: Apache-2.0 */
/** @file A function that releases its lock by its last jump: who waits for its return is who called it. */
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

static pthread_mutex_t mutex = PTHREAD_MUTEX_INITIALIZER;

__attribute__((noinline)) int hold(void)
{
	pthread_mutex_lock(&mutex);
	usleep(2000);
	return pthread_mutex_unlock(&mutex);
}

__attribute__((noinline)) int hold_and_more(void)
{
	return hold() + 1;
}

/* Argument: how often; none: for ever. */
int main(int argc, char **argv)
{
	int left = argc > 1 ? atoi(argv[1]) : -1;

	printf("ready\n");
	fflush(stdout);
	for (; left; left--, usleep(100))
		if (hold_and_more() != 1)
			return 1;
}
