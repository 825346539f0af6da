/* SPDX-License-Identifier: Apache-2.0 */
/** @file Print what one rdtsc costs in nanoseconds: the best of many short runs. */
#include <stdio.h>
#include <time.h>
#include <x86intrin.h>

#define READS 100000
#define RUNS 50

static double now_ns(void)
{
	struct timespec now;

	clock_gettime(CLOCK_MONOTONIC, &now);
	return (double)now.tv_sec * 1e9 + (double)now.tv_nsec;
}

int main(void)
{
	volatile unsigned long long sink;
	double best = 1e9;

	for (int run = 0; run < RUNS; run++) {
		double start = now_ns(), each;

		for (int i = 0; i < READS; i++)
			sink = __rdtsc();
		each = (now_ns() - start) / READS;
		best = each < best ? each : best;
	}
	(void)sink;
	printf("%.2f\n", best);
	return 0;
}
