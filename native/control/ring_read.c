/* SPDX-License-Identifier: Apache-2.0 */
/**
 * @file
 * The reading side of the rings: copy whole events out, write them to the capture as blocks. The
 * rings lie in memory that the target can write: nothing read there is used as an address or size.
 */
#include <errno.h>
#include <string.h>
#include <x86intrin.h>

#include "held.h"
#include "rings.h"

#define DEAD_NS 1000000000ull  /* a thunk may still be writing its last event */
#define MOST_LOST (1ull << 48) /* of one ring in one drain; more is a target that lies */

uint64_t tp_rdtsc(void)
{
	return __rdtsc();
}

static int is_of_a_site(const struct tp_rings *rings, uint64_t address)
{
	uint64_t low = 0, high = rings->site_count;

	while (low < high) {
		uint64_t middle = low + (high - low) / 2;

		if (rings->sites[middle] == address)
			return 1;
		if (rings->sites[middle] < address)
			low = middle + 1;
		else
			high = middle;
	}
	return !rings->site_count;
}

/**
 * A thread that was on its way to an earlier trace's probe when that ended writes its event now: it is
 * the first that the thread writes (but for signal handlers). Returns the tail behind such.
 */
uint64_t tp_skip_stale(struct tp_rings *rings, uint32_t i, uint64_t tail, uint64_t head)
{
	const struct tp_event *events = events_of(ring_at(rings, i));
	uint64_t mask = capacity_of(rings) - 1;

	for (; !rings->begun[i] && tail < head; tail++) {
		uint64_t word = __atomic_load_n(&events[tail & mask].word, __ATOMIC_ACQUIRE);

		if (!is_whole(word, tail))
			break;
		rings->begun[i] = (word & 0xf) != TP_EVENT_DATA && is_of_a_site(rings, word >> 16);
		if (rings->begun[i])
			break;
	}
	return tail;
}

/** Copy events [from, to) as far as they are whole: right lap, type set. Returns how many. */
uint64_t tp_copy_whole(const struct tp_rings *rings, const struct tp_event *events, uint64_t from,
		       uint64_t to, struct tp_event *copy)
{
	uint64_t mask = capacity_of(rings) - 1;
	uint64_t i;

	for (i = from; i < to; i++) {
		const struct tp_event *event = &events[i & mask];
		uint64_t word = __atomic_load_n(&event->word, __ATOMIC_ACQUIRE);

		if (!is_whole(word, i))
			break;
		copy[i - from] = (struct tp_event){ event->tsc, word };
	}
	return i - from;
}

/** The ring of a thread that is gone and has been quiet for @quiet_ns may serve another: does it now? */
int tp_free_dead_ring(struct tp_rings *rings, uint32_t i, uint64_t quiet_ns)
{
	struct tp_ring *ring = ring_at(rings, i);
	uint64_t now = tp_now_ns();

	if (__atomic_load_n(&ring->state, __ATOMIC_ACQUIRE) != TP_RING_DEAD)
		return 0;
	if (!rings->dead_since_ns[i])
		rings->dead_since_ns[i] = now;
	if (now - rings->dead_since_ns[i] < quiet_ns)
		return 0;
	rings->dead_since_ns[i] = 0;
	rings->begun[i] = 0;
	__atomic_store_n(&ring->state, TP_RING_FREE, __ATOMIC_RELEASE);
	return 1;
}

static uint64_t plausible(uint64_t lost)
{
	return lost < MOST_LOST ? lost : MOST_LOST;
}

static int write_block(const struct tp_rings *rings, uint32_t i, const struct tp_block *block,
		       struct tp_drained *out)
{
	out->events += block->events;
	out->lost += block->lost;
	out->blocks++;
	return tp_write_block(rings, i, rings->fd, rings->packer, block, &out->bytes);
}

static int drain_ring(struct tp_rings *rings, uint32_t i, int final, struct tp_drained *out)
{
	struct tp_ring *ring = ring_at(rings, i);
	const struct tp_event *events = events_of(ring);
	uint64_t capacity = capacity_of(rings);
	uint64_t head = __atomic_load_n(&ring->head, __ATOMIC_ACQUIRE);
	uint64_t dropped = __atomic_load_n(&ring->dropped, __ATOMIC_RELAXED);
	uint64_t tail = rings->tails[i], lost = dropped - rings->dropped[i], whole;
	int error = 0;

	if (head == tail && !lost) {
		out->rings_freed += (uint32_t)tp_free_dead_ring(rings, i, DEAD_NS);
		return 0;
	}
	if (head - tail > capacity) { /* overwritten, or a target that lies */
		lost = plausible(lost) + plausible(head - tail - capacity);
		tail = head - capacity;
	}
	lost = plausible(lost);
	tail = tp_skip_stale(rings, i, tail, head);
	if (head - tail > out->fullest)
		out->fullest = head - tail;
	whole = tp_copy_whole(rings, events, tail, head, (struct tp_event *)rings->buffer);
	if (whole || lost)
		error = write_block(
			rings, i,
			&(struct tp_block){ tail, whole, lost, 0, rings->waiting > capacity }, out);
	tail += whole;
	if (tail != head && final) { /* reserved by a thread that never came back to write it */
		lost = 1;
		out->lost++;
		tail++;
	}
	out->incomplete += (uint32_t)(head - tail);
	rings->tails[i] = tail;
	rings->dropped[i] = dropped;
	__atomic_store_n(&ring->tail, tail, __ATOMIC_RELEASE);
	__atomic_store_n(&ring->limit, tail + rings->waiting, __ATOMIC_RELEASE);
	return error;
}

/* Whole rings of 2^n events, all of them inside of what is mapped? */
static int is_sane(const struct tp_rings *rings)
{
	uint64_t bytes = (uint64_t)rings->ring_count * rings->ring_stride;

	return rings->ring_bytes >= TP_PAGE_BYTES &&
	       !(rings->ring_bytes & (rings->ring_bytes - 1)) &&
	       rings->ring_stride == TP_PAGE_BYTES + rings->ring_bytes &&
	       rings->ring_offset % TP_PAGE_BYTES == 0 && rings->ring_offset <= rings->map_bytes &&
	       bytes <= rings->map_bytes - rings->ring_offset;
}

/** Begin at what is in the rings now: earlier events belong to another session. */
int tp_rings_start(struct tp_rings *rings)
{
	if (!is_sane(rings))
		return -EINVAL;
	for (uint32_t i = 0; i < rings->ring_count; i++) {
		struct tp_ring *ring = ring_at(rings, i);

		rings->begun[i] = 0;
		rings->tails[i] = __atomic_load_n(&ring->head, __ATOMIC_ACQUIRE);
		rings->dropped[i] = __atomic_load_n(&ring->dropped, __ATOMIC_RELAXED);
		__atomic_store_n(&ring->tail, rings->tails[i], __ATOMIC_RELEASE);
	}
	return 0;
}

/**
 * Take what all rings hold to the capture. With @final, step over an event that was reserved but
 * never written. Returns 0 or -errno of the capture's write.
 */
int tp_drain_rings(struct tp_rings *rings, int final, struct tp_drained *out)
{
	int error = 0;

	memset(out, 0, sizeof(*out));
	for (uint32_t i = 0; !error && i < rings->ring_count; i++)
		error = drain_ring(rings, i, final, out);
	return error;
}
