// SPDX-License-Identifier: Apache-2.0
/**
 * @file
 * What the programs of the integration tests share: which functions are traced, a line of talk,
 * and an alarm so that none of them outlives its test.
 */
#ifndef TARGET_H
#define TARGET_H

#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

/* Never traced: what counts, talks and waits. */
#define PLAIN __attribute__((noipa, no_instrument_function, patchable_function_entry(0)))
/* Traced: with whatever entry the command line asks for. */
#define TRACED __attribute__((noipa))

#define LIFE_S 300

__attribute__((unused)) PLAIN static void say(const char *format, ...)
{
	va_list args;

	va_start(args, format);
	vprintf(format, args);
	va_end(args);
	putchar('\n');
	fflush(stdout);
}

/* To be called first; the last word is for the test to wait for. */
__attribute__((unused)) PLAIN static void say_ready(void)
{
	alarm(LIFE_S);
	say("ready");
}

/* The next line of stdin without its end; at the end of stdin the program ends. */
__attribute__((unused)) PLAIN static const char *hear(void)
{
	static char line[256];

	if (!fgets(line, sizeof(line), stdin))
		exit(0);
	line[strcspn(line, "\n")] = 0;
	return line;
}

#endif
