// SPDX-License-Identifier: Apache-2.0
/**
 * @file
 * A program that executes itself again and again while somebody attaches: "execs TIMES LIFE_US".
 * It ends with 7 when it has done so often enough and all results were right.
 */
#define _GNU_SOURCE
#include <time.h>

#include "target.h"

enum { ALL_WELL = 7, WRONG = 1 };

TRACED unsigned long work(unsigned long x)
{
	return x * 5 + 3;
}

PLAIN static long now_us(void)
{
	struct timespec now;

	clock_gettime(CLOCK_MONOTONIC, &now);
	return now.tv_sec * 1000000L + now.tv_nsec / 1000;
}

PLAIN int main(int argc, char **argv)
{
	long end_us = now_us() + atol(argv[2]);
	char left[16];
	char *words[] = { argv[0], left, argv[2], "again", NULL };

	alarm(LIFE_S);
	if (argc < 4)
		say_ready();
	for (unsigned long i = 0; now_us() < end_us; i++)
		if (work(i) != i * 5 + 3)
			return WRONG;
	if (atoi(argv[1]) == 0)
		return ALL_WELL;
	snprintf(left, sizeof(left), "%d", atoi(argv[1]) - 1);
	execv("/proc/self/exe", words);
	return WRONG;
}
