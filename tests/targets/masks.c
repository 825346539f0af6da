// SPDX-License-Identifier: Apache-2.0
/**
 * @file
 * A program that runs traced functions with all signals blocked, for a moment at a time, as
 * programs do around vfork: "masks SECONDS". It ends with 7 when all results were right.
 */
#define _GNU_SOURCE
#include <time.h>

#include "target.h"

enum { ALL_WELL = 7, WRONG = 1, CALLS_MASKED = 3000, CALLS_OPEN = 30000 };

TRACED unsigned long work(unsigned long x)
{
	return x * 5 + 3;
}

PLAIN static int work_is_right(unsigned long count)
{
	for (unsigned long i = 0; i < count; i++)
		if (work(i) != i * 5 + 3)
			return 0;
	return 1;
}

PLAIN int main(int argc, char **argv)
{
	time_t end_s = time(NULL) + (argc > 1 ? atoi(argv[1]) : 1);
	sigset_t all, before;

	sigfillset(&all);
	say_ready();
	while (time(NULL) < end_s) {
		sigprocmask(SIG_SETMASK, &all, &before);
		if (!work_is_right(CALLS_MASKED))
			return WRONG;
		sigprocmask(SIG_SETMASK, &before, NULL);
		if (!work_is_right(CALLS_OPEN))
			return WRONG;
	}
	return ALL_WELL;
}
