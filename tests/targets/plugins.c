// SPDX-License-Identifier: Apache-2.0
/**
 * @file
 * A program that opens and closes shared objects while it is traced: two names, with other code at
 * the same addresses. Arguments: the objects. Lines: "open I", "close I", "call I COUNT" (its
 * results are right: bad calls, and the address of the function), "storm COUNT CALLS" (open, call, close
 * in turn), "quit".
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <pthread.h>

#include "target.h"

enum { MOST = 4 };

typedef unsigned long plugin_fn(unsigned long);

static const unsigned long factors[MOST] = { 3, 7, 3, 7 };
static char *paths[MOST];
static void *handles[MOST];
static int running;
static unsigned long hot_calls;

TRACED unsigned long work(unsigned long x)
{
	return x * 5 + 3;
}

PLAIN static int call(int i, int count)
{
	plugin_fn *plugin = (plugin_fn *)dlsym(handles[i], "plugin");
	int bad = 0;

	for (unsigned long x = 0; x < (unsigned long)count; x++)
		bad += plugin(x) != (2 * x + 1) * factors[i];
	return bad;
}

PLAIN static int open_plugin(int i)
{
	handles[i] = dlopen(paths[i], RTLD_NOW | RTLD_LOCAL);
	return handles[i] == NULL;
}

PLAIN static int storm(int count, int calls, int plugins)
{
	int bad = 0;

	for (int n = 0; n < count; n++) {
		int i = n % plugins;

		if (open_plugin(i))
			return 1000000;
		bad += call(i, calls);
		bad += dlclose(handles[i]) != 0;
	}
	return bad;
}

PLAIN static void *be_hot(void *bad)
{
	while (__atomic_load_n(&running, __ATOMIC_RELAXED)) {
		*(int *)bad += work(hot_calls) != hot_calls * 5 + 3;
		hot_calls++;
	}
	return NULL;
}

PLAIN int main(int argc, char **argv)
{
	int i, count, bad = 0, hot_bad = 0;
	pthread_t thread;

	for (i = 1; i < argc && i <= MOST; i++)
		paths[i - 1] = argv[i];
	running = 1;
	pthread_create(&thread, NULL, be_hot, &hot_bad);
	say_ready();
	for (;;) {
		const char *line = hear();

		if (sscanf(line, "open %d", &i) == 1)
			say("%d", open_plugin(i));
		else if (sscanf(line, "close %d", &i) == 1)
			say("%d", dlclose(handles[i]));
		else if (sscanf(line, "call %d %d", &i, &count) == 2)
			say("%d %lu", call(i, count), (unsigned long)dlsym(handles[i], "plugin"));
		else if (sscanf(line, "storm %d %d", &count, &i) == 2)
			say("%d", bad += storm(count, i, argc - 1));
		else
			break;
	}
	running = 0;
	pthread_join(thread, NULL);
	return bad || hot_bad;
}
