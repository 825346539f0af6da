/* SPDX-License-Identifier: Apache-2.0 */
/**
 * @file
 * The profile's table in a thread's ring: places of (site, row) by a hash of the site, then the rows.
 * Only its own thread writes; a nested signal handler may meet a place that has no row yet.
 */
#include "agent.h"

#define HASH 0x9e3779b1u /* profile.S */
#define HASH_SHIFT 12

struct place {
	uint64_t site;
	struct tp_profile *row;
};

static uint64_t places_of(const struct tp_ring *ring)
{
	return ring->mask / sizeof(struct place) + 1;
}

static struct tp_profile *new_row(struct tp_ring *ring, struct place *places)
{
	struct tp_profile *rows = (struct tp_profile *)(places + places_of(ring));
	char *end = (char *)places + ring->bytes;
	uint32_t number = 1;

	__asm__ volatile("xaddl %0, %1" : "+r"(number), "+m"(ring->rows) : : "memory", "cc");
	return (char *)(rows + number + 1) > end ? NULL : &rows[number];
}

/* 0: somebody, a nested handler, has the place. */
static int take(struct place *place, uint64_t site)
{
	uint64_t free = 0;

	return __atomic_compare_exchange_n(&place->site, &free, site, 0, __ATOMIC_RELAXED,
					   __ATOMIC_RELAXED);
}

static struct tp_profile *find(struct tp_ring *ring, struct place *places, uint64_t site)
{
	uint64_t start = ((uint32_t)site * HASH >> HASH_SHIFT & ring->mask) / sizeof(struct place);
	uint64_t count = places_of(ring);

	for (uint64_t i = 0; i < count; i++) {
		struct place *place = &places[(start + i) % count];
		struct tp_profile *row;

		if (place->site == site)
			return place->row;
		if (place->site || !take(place, site))
			continue;
		row = new_row(ring, places);
		if (row) {
			row->buckets[0] = ~0u; /* the first call puts one of no time there */
			row->site = site;
		}
		__atomic_store_n(&place->row, row, __ATOMIC_RELEASE);
		return row;
	}
	return NULL;
}

/** The row of @site in the thread's profile, a new one where there is none yet; NULL: no room. */
struct tp_profile *tpa_profile_find(struct tp_ring *ring, uint64_t site)
{
	struct tp_profile *row = find(ring, (struct place *)((char *)ring + TP_PAGE_BYTES), site);

	if (!row)
		ring->dropped++;
	return row;
}
