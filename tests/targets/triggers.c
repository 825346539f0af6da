// SPDX-License-Identifier: Apache-2.0
/**
 * @file
 * Threads that work() all the time while another one calls quiet() and loud() in turns, and once in
 * a while slow(), which takes some milliseconds. The argument is the number of working threads.
 */
#include <pthread.h>
#include <time.h>

#include "target.h"

static volatile unsigned long sum;

TRACED void work(unsigned long x)
{
	sum += x;
}

TRACED void quiet(void)
{
	sum++;
}

TRACED void loud(void)
{
	sum--;
}

PLAIN static void pause_us(long us)
{
	nanosleep(&(struct timespec){ .tv_nsec = us * 1000 }, NULL);
}

TRACED void slow(void)
{
	pause_us(5000);
}

PLAIN static void *run(void *unused)
{
	for (;;) {
		for (int i = 0; i < 200; i++)
			work(1);
		pause_us(100);
	}
	return unused;
}

PLAIN int main(int argc, char **argv)
{
	pthread_t thread;

	for (int i = 0; i < (argc > 1 ? atoi(argv[1]) : 2); i++)
		pthread_create(&thread, NULL, run, NULL);
	say_ready();
	for (int i = 0;; i++) {
		quiet();
		pause_us(300);
		loud();
		pause_us(500);
		if (i % 100 == 99)
			slow();
	}
}
