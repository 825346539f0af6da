// SPDX-License-Identifier: Apache-2.0
/**
 * @file
 * A program that counts its own calls, thread by thread, and checks its own results.
 *
 * With -DENTRY_BYTES="0x0f, ..." the traced functions begin with those bytes; with -DPART_OBJECT
 * it is a shared object with the functions alone, with -DPART_MAIN the program that opens it.
 * Lines it understands: "ping", "phase CALLS THREADS", "hot THREADS", "stop", "unload",
 * "reload", "quit STATUS".
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <pthread.h>

#include "target.h"

#ifdef MASKS
#include <signal.h>
/* A program that could block SIGTRAP. */
int (*volatile mask_signals)(int, const sigset_t *, sigset_t *) = sigprocmask;
#endif

enum { MOST_THREADS = 16, EVENTS_PER_TOP = 5 };

struct tally {
	unsigned long top, middle, leaf;
	unsigned long wrong;
	unsigned long calls; /* to make; 0: until told to stop */
	int tid;
};

typedef unsigned long traced_fn(struct tally *tally, unsigned long x);

#ifdef ENTRY_BYTES
#define TEXT(...) #__VA_ARGS__
#define BYTES(...) TEXT(__VA_ARGS__)
#define FUNCTION(name)                                                                                \
	traced_fn name;                                                                               \
	__asm__(".pushsection .text\n.p2align 4\n.globl " #name "\n.type " #name                      \
		", @function\n" #name ":\n77: .byte " BYTES(                                          \
			ENTRY_BYTES) "\n"                                                             \
				     "jmp body_" #name "\n.size " #name ", . - " #name                \
				     "\n.popsection\n"                                                \
				     ".pushsection __patchable_function_entries, \"aw\", @progbits\n" \
				     ".quad 77b\n.popsection\n");                                     \
	__attribute__((used)) PLAIN static unsigned long body_##name(struct tally *tally,             \
								     unsigned long x)
#else
#define FUNCTION(name) TRACED unsigned long name(struct tally *tally, unsigned long x)
#endif

#ifndef PART_MAIN
FUNCTION(leaf)
{
	tally->leaf++;
	return x * 3 + 1;
}

FUNCTION(middle)
{
	tally->middle++;
	return leaf(tally, x) ^ leaf(tally, x >> 1);
}

FUNCTION(top)
{
	tally->top++;
	return middle(tally, x) + leaf(tally, x + 7);
}
#endif

#ifndef PART_OBJECT
static traced_fn *run_top;
static volatile int stop;
static struct tally tallies[MOST_THREADS];
static pthread_t threads[MOST_THREADS];
static int thread_count;

PLAIN static unsigned long expected(unsigned long x)
{
	return ((x * 3 + 1) ^ ((x >> 1) * 3 + 1)) + (x + 7) * 3 + 1;
}

PLAIN static void *work(void *argument)
{
	struct tally *tally = argument;

	tally->tid = (int)syscall(SYS_gettid);
	for (unsigned long i = 0; tally->calls ? i < tally->calls : !stop; i++)
		tally->wrong += run_top(tally, i) != expected(i);
	return NULL;
}

PLAIN static void start(int count, unsigned long calls)
{
	stop = 0;
	thread_count = count < MOST_THREADS ? count : MOST_THREADS;
	for (int i = 0; i < thread_count; i++) {
		tallies[i] = (struct tally){ .calls = calls };
		pthread_create(&threads[i], NULL, work, &tallies[i]);
	}
}

/* One line a thread: its id, calls of top, middle and leaf, wrong results. */
PLAIN static void finish(void)
{
	for (int i = 0; i < thread_count; i++) {
		const struct tally *t = &tallies[i];

		pthread_join(threads[i], NULL);
		say("%d %lu %lu %lu %lu", t->tid, t->top, t->middle, t->leaf, t->wrong);
	}
	thread_count = 0;
	say("end");
}

#ifdef PART_MAIN
static void *object;

PLAIN static traced_fn *find_top(const char *path)
{
	object = dlopen(path, RTLD_NOW);

	if (!object) {
		say("%s", dlerror());
		exit(1);
	}
	return (traced_fn *)dlsym(object, "top");
}

/* The functions go away, and perhaps come back to the very same place. */
PLAIN static void reload(const char *path)
{
	dlclose(object);
	if (path)
		run_top = find_top(path);
	say("reloaded");
}
#else
PLAIN static traced_fn *find_top(const char *path)
{
	(void)path;
	return top;
}

PLAIN static void reload(const char *path)
{
	say("%s", path ? "not loaded" : "not unloaded");
}
#endif

PLAIN static void obey(const char *line, const char *path)
{
	struct tally mine = { 0 };
	unsigned long calls;
	int count;

	if (sscanf(line, "phase %lu %d", &calls, &count) == 2) {
		start(count, calls);
		finish();
	} else if (sscanf(line, "hot %d", &count) == 1) {
		start(count, 0);
		say("hot");
	} else if (!strcmp(line, "stop")) {
		stop = 1;
		finish();
	} else if (!strcmp(line, "ping")) {
		say("%s", run_top(&mine, 5) == expected(5) ? "pong" : "wrong");
	} else if (!strcmp(line, "unload")) {
		reload(NULL);
	} else if (!strcmp(line, "reload")) {
		reload(path);
	} else if (sscanf(line, "quit %d", &count) == 1) {
		exit(count);
	}
}

PLAIN int main(int argc, char **argv)
{
	run_top = find_top(argc > 1 ? argv[1] : NULL);
	say_ready();
	for (;;)
		obey(hear(), argv[1]);
}
#endif
