// SPDX-License-Identifier: Apache-2.0
/**
 * @file
 * Two threads throw C++ exceptions through traced functions, with destructors on the way. Lines:
 * "go", "stop" (rounds, wrong results), "quit".
 */
#include <atomic>
#include <cstdio>
#include <cstring>
#include <stdexcept>
#include <thread>
#include <unistd.h>

#include "thrown.hh"

static std::atomic<bool> running;

TRACED int rethrow(int &alive)
{
	try {
		return dive(5, alive);
	} catch (const std::runtime_error &) {
		Counted here(alive);
		throw;
	}
}

TRACED int one_round()
{
	int alive = 0;

	try {
		rethrow(alive);
	} catch (const std::exception &what) {
		return alive != 0 || strcmp(what.what(), "bottom") != 0;
	}
	return 1;
}

PLAIN static void storm(unsigned long *totals)
{
	while (running) {
		totals[1] += (unsigned long)one_round();
		totals[0]++;
	}
}

PLAIN int main()
{
	unsigned long totals[2][2] = {};
	std::thread threads[2];
	char line[16];

	alarm(110);
	puts("ready");
	fflush(stdout);
	while (fgets(line, sizeof(line), stdin) && line[0] != 'q') {
		running = line[0] == 'g';
		for (int i = 0; i < 2; i++)
			if (running)
				threads[i] = std::thread(storm, totals[i]);
			else
				threads[i].join();
		printf("%lu %lu\n", totals[0][0] + totals[1][0], totals[0][1] + totals[1][1]);
		fflush(stdout);
	}
	return totals[0][1] + totals[1][1] != 0;
}
