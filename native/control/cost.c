/* SPDX-License-Identifier: Apache-2.0 */
/** @file What an event costs on this machine: the function probe, run here on a ring of our own. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <x86intrin.h>

#include "textpoke.h"

#define SLOTS 4096u /* TPA_SLOT_COUNT */
#define CALLS 2000u
#define RUNS 16u
#define RING_BYTES (1u << 14)
#define NO_LIMIT (1ull << 62)

struct slot { /* struct tpa_slot */
	uint64_t fs_base;
	struct tp_ring *ring;
	uint64_t reserved[2];
};

struct place {
	struct slot slots[SLOTS];
	struct slot *gate;
	struct tp_ring *ring;
};

static uint64_t fs_base(void)
{
	uint64_t base;

	__asm__ volatile("rdfsbase %0" : "=r"(base));
	return base;
}

static struct place *make(void)
{
	struct place *place = calloc(1, sizeof(*place));
	struct slot *slot;

	if (!place)
		return NULL;
	place->ring = aligned_alloc(TP_PAGE_BYTES, TP_PAGE_BYTES + RING_BYTES);
	if (!place->ring) {
		free(place);
		return NULL;
	}
	memset(place->ring, 0, TP_PAGE_BYTES + RING_BYTES);
	place->ring->mask = RING_BYTES / sizeof(struct tp_event) - 1;
	place->ring->limit = NO_LIMIT;
	place->ring->tid_at = (uint64_t)&place->ring->tid_copy;
	slot = &place->slots[(fs_base() >> 12) % SLOTS];
	*slot = (struct slot){ fs_base(), place->ring, { 0, 0 } };
	place->gate = place->slots;
	return place;
}

/* A probe keeps every register and the flags; the red zone is the caller's. */
static uint64_t run(const void *code)
{
	uint64_t start = __rdtsc();

	for (uint32_t i = 0; i < CALLS; i++)
		__asm__ volatile("leaq -128(%%rsp), %%rsp\n\tcall *%0\n\tleaq 128(%%rsp), %%rsp"
				 :
				 : "r"(code)
				 : "memory", "cc");
	return __rdtsc() - start;
}

/**
 * Ticks of 1,000 calls of a function probe: the least of some runs. @code: a copy of it that can be
 * executed; @words: those of that copy, which get a gate of our own. 0 or -errno.
 */
int tp_probe_cost(const void *code, struct tp_probe_words *words, uint64_t *ticks)
{
	struct place *place = make();
	uint64_t least = UINT64_MAX;

	if (!place)
		return -ENOMEM;
	words->gate = (uint64_t)&place->gate;
	for (uint32_t i = 0; i < RUNS; i++) {
		uint64_t took = run(code);

		least = took < least ? took : least;
	}
	*ticks = least * 1000 / CALLS;
	words->gate = 0;
	free(place->ring);
	free(place);
	return 0;
}
