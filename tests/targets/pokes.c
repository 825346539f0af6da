// SPDX-License-Identifier: Apache-2.0
/**
 * @file
 * Eight functions of a 5-byte NOP each, what they may be turned into, and a look at what they
 * return while that happens. f0..f7 return 0..7; the replacements r0..r7 return 100..107, the
 * handlers h0..h7, which only a trapped thread reaches, 200..207.
 * Lines: "ask", "where", "hot THREADS", "stop", "shared", "unshare", "handled", "quit".
 */
#define _GNU_SOURCE
#include <fcntl.h>
#include <pthread.h>
#include <stdbool.h>
#include <stdint.h>
#include <sys/mman.h>

#include "target.h"

enum { FUNCTIONS = 8, MOST_THREADS = 4, STEP = 32, PAGE = 4096 };

/* STEP bytes each, one behind the other. */
extern char f0[], r0[], h0[];
__asm__(".pushsection .text\n.p2align 12\n"
	".irp i, 0, 1, 2, 3, 4, 5, 6, 7\n.p2align 5\n.globl f\\i\n.type f\\i, @function\n"
	"f\\i: .byte 0x0f, 0x1f, 0x44, 0x00, 0x00\nmovl $\\i, %eax\nret\n.size f\\i, . - f\\i\n"
	".pushsection __patchable_function_entries, \"aw\", @progbits\n.quad f\\i\n.popsection\n"
	".endr\n.p2align 5\n"
	".irp i, 0, 1, 2, 3, 4, 5, 6, 7\n.p2align 5\n.globl r\\i\n.type r\\i, @function\n"
	"r\\i: movl $100 + \\i, %eax\nret\n.size r\\i, . - r\\i\n.endr\n.p2align 5\n"
	".irp i, 0, 1, 2, 3, 4, 5, 6, 7\n.p2align 5\n.globl h\\i\n.type h\\i, @function\n"
	"h\\i: movl $200 + \\i, %eax\nret\n.size h\\i, . - h\\i\n.endr\n"
	".p2align 12\n.popsection\n");

struct watch {
	unsigned long old, replaced, handled, wrong;
};

static struct watch watches[MOST_THREADS];
static pthread_t threads[MOST_THREADS];
static int thread_count;
static volatile int stop;
static volatile unsigned long questions;

/* The seed's is_handled, native: it runs in the signal handler. */
PLAIN __attribute__((used, visibility("default"))) bool is_handled(uint64_t ip)
{
	questions++;
	return ip - 1 >= (uint64_t)f0 && ip - 1 < (uint64_t)f0 + FUNCTIONS * STEP;
}

PLAIN static int run(int i)
{
	int (*function)(void) = (int (*)(void))(f0 + i * STEP);

	return function();
}

PLAIN static void *watch(void *argument)
{
	struct watch *mine = argument;

	while (!stop)
		for (int i = 0; i < FUNCTIONS; i++) {
			int result = run(i);

			mine->old += result == i;
			mine->replaced += result == 100 + i;
			mine->handled += result == 200 + i;
			mine->wrong += result % 100 != i || result < 0 || result >= 300;
		}
	return NULL;
}

PLAIN static void finish(void)
{
	stop = 1;
	for (int i = 0; i < thread_count; i++) {
		pthread_join(threads[i], NULL);
		say("%lu %lu %lu %lu", watches[i].old, watches[i].replaced, watches[i].handled,
		    watches[i].wrong);
	}
	say("end");
}

PLAIN static void start(int count)
{
	stop = 0;
	thread_count = count < MOST_THREADS ? count : MOST_THREADS;
	memset(watches, 0, sizeof(watches));
	for (int i = 0; i < thread_count; i++)
		pthread_create(&threads[i], NULL, watch, &watches[i]);
	say("hot");
}

static void *shared;

/* The page of f0 once more, shared with the file: readable, but nobody can write there. */
PLAIN static void share(void)
{
	int fd = open("/proc/self/exe", O_RDONLY);
	char page[PAGE];

	for (off_t at = 0; pread(fd, page, PAGE, at) == PAGE; at += PAGE)
		if (!memcmp(page, f0, PAGE))
			shared = mmap(NULL, PAGE, PROT_READ | PROT_EXEC, MAP_SHARED, fd, at);
	close(fd);
	say("%lu", (unsigned long)shared);
}

PLAIN int main(void)
{
	int count;

	say_ready();
	for (;;) {
		const char *line = hear();

		if (!strcmp(line, "ask"))
			say("%d %d %d %d %d %d %d %d", run(0), run(1), run(2), run(3), run(4),
			    run(5), run(6), run(7));
		else if (!strcmp(line, "where"))
			say("%lu %lu %lu %lu", (unsigned long)f0, (unsigned long)r0,
			    (unsigned long)h0, (unsigned long)is_handled);
		else if (sscanf(line, "hot %d", &count) == 1)
			start(count);
		else if (!strcmp(line, "stop"))
			finish();
		else if (!strcmp(line, "shared"))
			share();
		else if (!strcmp(line, "unshare"))
			munmap(shared, PAGE);
		else if (!strcmp(line, "handled"))
			say("%lu", questions);
		else
			return 0;
	}
}
