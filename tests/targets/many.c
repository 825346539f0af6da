// SPDX-License-Identifier: Apache-2.0
/**
 * @file
 * COUNT tiny functions f0, f1, ...; each begins with ENTRY_BYTES and returns its own number.
 * Lines: "run THREADS" (until "stop", which tells how many results were wrong), "quit".
 */
#include <pthread.h>

#include "target.h"

#ifndef COUNT
#define COUNT 20000
#endif
#define TEXT(...) #__VA_ARGS__
#define BYTES(...) TEXT(__VA_ARGS__)

enum { STEP = 16, MOST_THREADS = 4 };

extern char f0[];
__asm__(".altmacro\n.macro function i\n.p2align 4\n.globl f\\i\n.type f\\i, @function\n"
	"f\\i: .byte " BYTES(
		ENTRY_BYTES) "\nmovl $\\i, %eax\nret\n.size f\\i, . - f\\i\n"
			     ".pushsection __patchable_function_entries, \"aw\", @progbits\n.quad f\\i\n.popsection\n"
			     ".endm\n.pushsection .text\n.set number, 0\n.rept " BYTES(
				     COUNT) "\nfunction %number\n"
					    ".set number, number + 1\n.endr\n.popsection\n.noaltmacro\n");

static pthread_t threads[MOST_THREADS];
static unsigned long wrong[MOST_THREADS], rounds[MOST_THREADS];
static volatile int stop;

PLAIN static void *run(void *slot)
{
	long mine = (long)slot;

	do {
		for (int i = 0; i < COUNT; i++)
			wrong[mine] += ((int (*)(void))(f0 + (long)i * STEP))() != i;
		rounds[mine]++;
	} while (!stop);
	return NULL;
}

PLAIN int main(void)
{
	int count = 0;

	say_ready();
	for (;;) {
		const char *line = hear();

		if (sscanf(line, "run %d", &count) == 1) {
			stop = 0;
			for (long i = 0; i < count && i < MOST_THREADS; i++)
				pthread_create(&threads[i], NULL, run, (void *)i);
			say("running");
		} else if (!strcmp(line, "stop")) {
			stop = 1;
			for (int i = 0; i < count; i++) {
				pthread_join(threads[i], NULL);
				say("%lu %lu", rounds[i], wrong[i]);
			}
			say("end");
		} else {
			return 0;
		}
	}
}
