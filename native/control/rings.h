/* SPDX-License-Identifier: Apache-2.0 */
/** @file What draining rings (ring_read.c) and copying from running ones (ring_copy.c) share. */
#ifndef TP_RINGS_H
#define TP_RINGS_H

#include "textpoke.h"

/** Events of one ring that go out together. */
struct tp_block {
	uint64_t sequence; /* index in its ring of the first */
	uint64_t events;
	uint64_t lost; /* behind them, or before them */
	uint64_t at;   /* where they are in the buffer: so many events from its begin */
	int older;     /* before them: a ring that overwrites loses its oldest */
};

static inline struct tp_ring *ring_at(const struct tp_rings *rings, uint32_t i)
{
	return (struct tp_ring *)(rings->map + rings->ring_offset +
				  (uint64_t)i * rings->ring_stride);
}

static inline const struct tp_event *events_of(const struct tp_ring *ring)
{
	return (const struct tp_event *)((const uint8_t *)ring + TP_PAGE_BYTES);
}

static inline uint64_t capacity_of(const struct tp_rings *rings)
{
	return rings->ring_bytes / sizeof(struct tp_event);
}

/** Is this what the event at @index leaves, and not one that a lap before or after does? */
static inline int is_whole(uint64_t word, uint64_t index)
{
	return (word & 0xf) && ((word >> 4) & TP_LAP_MASK) == ((index >> 12) & TP_LAP_MASK);
}

uint64_t tp_skip_stale(struct tp_rings *rings, uint32_t i, uint64_t tail, uint64_t head);
uint64_t tp_copy_whole(const struct tp_rings *rings, const struct tp_event *events, uint64_t from,
		       uint64_t to, struct tp_event *copy);
int tp_free_dead_ring(struct tp_rings *rings, uint32_t i, uint64_t quiet_ns);
int tp_write_block(const struct tp_rings *rings, uint32_t i, int fd, struct tp_packer *packer,
		   const struct tp_block *block, uint64_t *bytes);

#endif
