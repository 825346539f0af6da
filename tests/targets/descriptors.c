// SPDX-License-Identifier: Apache-2.0
/**
 * @file
 * A program that plays with its file descriptors while it is traced: closes all it has, takes
 * every number again for a file of its own, gives up its standard streams.
 * Lines it understands: "reopen PATH", "work CALLS", "close", "quit".
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>

#include "target.h"

enum { NUMBERS = 200 };

static volatile unsigned long sum;

TRACED void work(unsigned long x)
{
	sum += x;
}

PLAIN static int open_numbers(const char *path)
{
	int last = -1;

	for (int fd = 3; fd < 1024; fd++)
		close(fd);
	for (int i = 0; i < NUMBERS; i++)
		last = open(path, O_RDWR | O_CREAT, 0600);
	return last;
}

/* Nobody can hear it any more: it works on and ends with its answer as the exit status. */
PLAIN static void go_on_alone(void)
{
	for (int fd = 0; fd < 3; fd++)
		close(fd);
	for (int i = 0; i < 100; i++) {
		work(1);
		usleep(2000);
	}
	_exit(sum == 100 ? 0 : 1);
}

PLAIN int main(void)
{
	unsigned long calls;
	char path[200];

	say_ready();
	for (;;) {
		const char *line = hear();

		if (sscanf(line, "reopen %199s", path) == 1) {
			say("%d", open_numbers(path));
		} else if (sscanf(line, "work %lu", &calls) == 1) {
			for (unsigned long i = 0; i < calls; i++)
				work(i);
			say("done");
		} else if (!strcmp(line, "close")) {
			go_on_alone();
		} else {
			return 0;
		}
	}
}
