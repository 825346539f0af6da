// SPDX-License-Identifier: Apache-2.0
/**
 * @file
 * Wants to harm the tool: once an agent is in, threads scribble over what it shares with the tool and
 * over its private memory. Lines of stdin: "start WHERE HOW" and "stop".
 *
 * WHERE is a sum: 1 rings, 2 header, 4 command block and outcome, 8 head of the agent's image. HOW: 0
 * numbers near borders, 1 all ones, 2 zeros, 3 a copy of what was there with one word changed.
 */
#include <pthread.h>
#include <stdint.h>

#include "target.h"

#define PAGE 4096ul
#define MAGIC 0x454b4f5054584554ull

struct area {
	volatile uint64_t *words;
	uint64_t count;
};

static struct area shared, image;
static volatile int where, how;
static volatile unsigned long calls;

TRACED unsigned long leaf(unsigned long a)
{
	return a * 3 + 1;
}

TRACED unsigned long middle(unsigned long a)
{
	return leaf(a) + leaf(a + 1);
}

/* Our own maps tell where the agent's memory is, as they would tell any enemy. */
PLAIN static void find_agent(void)
{
	FILE *maps = fopen("/proc/self/maps", "r");
	char line[512];

	shared.words = image.words = NULL;
	while (maps && fgets(line, sizeof(line), maps)) {
		unsigned long start, end;
		char perms[8];

		if (sscanf(line, "%lx-%lx %7s", &start, &end, perms) != 3 || perms[1] != 'w')
			continue;
		if (strstr(line, "/memfd:textpoke"))
			shared = (struct area){ (volatile uint64_t *)start, (end - start) / 8 };
		else if (!strstr(line, "[stack") && *(volatile uint64_t *)start == MAGIC)
			image = (struct area){ (volatile uint64_t *)start, PAGE / 8 };
	}
	if (maps)
		fclose(maps);
}

PLAIN static uint64_t next(uint64_t *state)
{
	*state = *state * 6364136223846793005ull + 1442695040888963407ull;
	return *state >> 11 ^ *state;
}

PLAIN static uint64_t lie(uint64_t *state, uint64_t old)
{
	uint64_t number = next(state);

	switch (how) {
	case 1:
		return UINT64_MAX;
	case 2:
		return 0;
	case 3:
		return old ^ 1ull << (number & 63);
	default:
		return number & 1 ? number >> (number >> 2 & 63) : (1ull << (number >> 2 & 63)) - 1;
	}
}

PLAIN static void scribble(struct area area, uint64_t from, uint64_t to, uint64_t *state)
{
	if (!area.words || to > area.count)
		return;
	uint64_t at = from + next(state) % (to - from);

	area.words[at] = lie(state, area.words[at]);
}

PLAIN static void *enemy(void *unused)
{
	uint64_t state = (uint64_t)(uintptr_t)&state;

	(void)unused;
	for (;;) {
		if (!where) {
			usleep(1000);
			continue;
		}
		if (where & 1) { /* the heads of all rings: every page may be one */
			uint64_t page = next(&state) % (shared.count / 512);

			scribble(shared, page * 512, page * 512 + 18, &state);
		}
		if (where & 2)
			scribble(shared, 0, 9, &state);
		if (where & 4)
			scribble(shared, 9, 512, &state);
		if (where & 8)
			scribble(image, 0, 512, &state);
		if (next(&state) % 64 == 0)
			usleep(50);
	}
	return NULL;
}

PLAIN static void *work(void *unused)
{
	(void)unused;
	for (;;) {
		calls += middle(calls) & 1;
		if (calls % 1024 == 0)
			usleep(100);
	}
	return NULL;
}

PLAIN int main(void)
{
	pthread_t thread;

	setvbuf(stdin, NULL, _IONBF, 0);
	pthread_create(&thread, NULL, work, NULL);
	pthread_create(&thread, NULL, enemy, NULL);
	say_ready();
	for (;;) {
		const char *line = hear();
		int place, manner;

		if (sscanf(line, "start %d %d", &place, &manner) == 2) {
			find_agent();
			how = manner;
			where = shared.words && (image.words || !(place & 8)) ? place : 0;
			say("%s", where ? "started" : "no agent");
		} else {
			where = 0;
			say("stopped");
		}
	}
}
