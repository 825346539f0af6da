// SPDX-License-Identifier: Apache-2.0
/**
 * @file
 * A program that gets a signal every two milliseconds, also in the midst of waits that set a mask,
 * and whose handler is traced. "calls" says how many calls the handler has made.
 */
#define _GNU_SOURCE
#include <poll.h>
#include <time.h>

#include "target.h"

enum { CALLS = 20000, PERIOD_NS = 2000000 };

static volatile int sum;
static volatile unsigned long calls;

TRACED int work(int x)
{
	return x + 1;
}

PLAIN static void on_signal(int signal)
{
	(void)signal;
	for (int i = 0; i < CALLS; i++)
		sum += work(i);
	calls += CALLS;
}

PLAIN int main(void)
{
	struct itimerspec often = { { 0, PERIOD_NS }, { 0, PERIOD_NS } };
	struct sigevent event = { .sigev_notify = SIGEV_SIGNAL, .sigev_signo = SIGUSR1 };
	struct sigaction action = { .sa_handler = on_signal };
	struct pollfd input = { .fd = STDIN_FILENO, .events = POLLIN };
	struct timespec wait = { 0, 100000 };
	sigset_t most;
	timer_t timer;

	sigaction(SIGUSR1, &action, NULL);
	sigfillset(&most);
	sigdelset(&most, SIGUSR1);
	timer_create(CLOCK_MONOTONIC, &event, &timer);
	timer_settime(timer, 0, &often, NULL);
	say_ready();
	for (;;) {
		if (ppoll(&input, 1, &wait, &most) > 0) {
			if (strcmp(hear(), "calls"))
				return 0;
			say("%lu", calls);
		}
		for (volatile int i = 0; i < 200000; i++)
			;
	}
}
