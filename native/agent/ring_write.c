/* SPDX-License-Identifier: Apache-2.0 */
/**
 * @file
 * Giving a thread its ring: the slow path of the thunk, once a thread. Runs on the program's own
 * threads, so: no locks, no allocation, and a nested signal handler may do the same meanwhile.
 */
#include <linux/futex.h>

#include "agent.h"

struct tp_ring *tpa_ring(uint32_t i)
{
	return (struct tp_ring *)((char *)tpa.wire + tpa.wire->ring_offset +
				  (uint64_t)i * tpa.wire->ring_stride);
}

/* The thread's slot, or NULL when the table is full. Linear probing; slots are never emptied. */
static struct tpa_slot *find_slot(uint64_t fs_base)
{
	uint32_t start = (uint32_t)(fs_base >> 12);

	for (uint32_t i = 0; i < TPA_SLOT_COUNT; i++) {
		struct tpa_slot *slot = &tpa.slots[(start + i) % TPA_SLOT_COUNT];
		uint64_t free = 0;

		if (__atomic_load_n(&slot->fs_base, __ATOMIC_ACQUIRE) == fs_base ||
		    __atomic_compare_exchange_n(&slot->fs_base, &free, fs_base, 0, __ATOMIC_ACQ_REL,
						__ATOMIC_ACQUIRE) ||
		    free == fs_base)
			return slot;
	}
	return NULL;
}

static struct tp_ring *take_free_ring(void)
{
	for (uint32_t i = 0; i < tpa.wire->ring_count; i++) {
		struct tp_ring *ring = tpa_ring(i);
		uint32_t free = TP_RING_FREE;

		if (__atomic_load_n(&ring->state, __ATOMIC_RELAXED) == TP_RING_FREE &&
		    __atomic_compare_exchange_n(&ring->state, &free, TP_RING_CLAIMED, 0,
						__ATOMIC_ACQ_REL, __ATOMIC_RELAXED))
			return ring;
	}
	return NULL;
}

/*
 * Is there readable memory that holds @value? A wait for it that ends at once tells, and no filter
 * forbids a thread that: the program may have put itself under seccomp since we came.
 */
static int holds(uint64_t at, uint32_t value)
{
	const uint64_t at_once[2] = { 0, 0 };

	return sys6(__NR_futex, (long)at, FUTEX_WAIT_PRIVATE, value, (long)at_once, 0, 0) ==
	       -110; /* ETIMEDOUT */
}

/*
 * libc keeps the thread id at a fixed place behind the fs base. Where this thread's is readable and
 * right, the thunk compares it on every event, and a reused stack is noticed at once. Elsewhere it
 * compares with the ring's own copy, which tpa_retire_rings() clears when the thread is gone.
 */
static uint64_t where_tid_is(struct tp_ring *ring, uint64_t fs_base, uint32_t tid)
{
	uint64_t at = fs_base + tpa_image.tid_offset;

	if (tpa_image.tid_offset && holds(at, tid))
		return at;
	ring->padding0[0] = tid;
	return (uint64_t)&ring->padding0[0];
}

static int owned_by(const struct tp_ring *ring, uint32_t tid)
{
	return ring && ring->tid == tid && *(const uint32_t *)ring->tid_at == tid;
}

static struct tp_ring *no_ring(void)
{
	__atomic_add_fetch(&tpa.wire->events_without_ring, 1, __ATOMIC_RELAXED);
	return NULL;
}

/** Find or claim the calling thread's ring; NULL: none left, the event is counted as lost. */
struct tp_ring *tpa_ring_claim(uint64_t fs_base)
{
	uint32_t tid = (uint32_t)sys0(__NR_gettid);
	struct tpa_slot *slot = fs_base ? find_slot(fs_base) : NULL;
	struct tp_ring *old, *ring;

	if (!slot)
		return no_ring();
	old = __atomic_load_n(&slot->ring, __ATOMIC_ACQUIRE);
	if (owned_by(old, tid))
		return old; /* a probe past its home slot */
	ring = take_free_ring();
	if (!ring)
		return no_ring();
	ring->tid = tid;
	ring->fs_base = fs_base;
	ring->tid_at = where_tid_is(ring, fs_base, tid);
	ring->generation++;
	if (!__atomic_compare_exchange_n(&slot->ring, &old, ring, 0, __ATOMIC_ACQ_REL,
					 __ATOMIC_ACQUIRE)) {
		__atomic_store_n(&ring->state, TP_RING_FREE, __ATOMIC_RELEASE);
		return old; /* a nested signal handler was first */
	}
	if (old)
		__atomic_store_n(&old->state, TP_RING_DEAD, __ATOMIC_RELEASE);
	__atomic_store_n(&ring->state, TP_RING_LIVE, __ATOMIC_RELEASE);
	__atomic_add_fetch(&tpa.wire->claims, 1, __ATOMIC_RELAXED);
	return ring;
}

/** Give every ring its size. The heads stay zero: nothing has been written. */
void tpa_init_rings(void)
{
	uint64_t events = tpa.wire->ring_bytes / sizeof(struct tp_event);

	for (uint32_t i = 0; i < tpa.wire->ring_count; i++) {
		struct tp_ring *ring = tpa_ring(i);

		ring->mask = events - 1;
		ring->limit = events;
	}
}

/** Events that may wait in a ring: up to its size it drops, above any count it overwrites. */
void tpa_set_limits(uint64_t waiting)
{
	for (uint32_t i = 0; i < tpa.wire->ring_count; i++) {
		struct tp_ring *ring = tpa_ring(i);

		__atomic_store_n(&ring->limit, ring->tail + waiting, __ATOMIC_RELAXED);
	}
}

/** Mark the rings of threads that are gone, so that the reader may give them back. */
void tpa_retire_rings(void)
{
	for (uint32_t i = 0; i < tpa.wire->ring_count; i++) {
		struct tp_ring *ring = tpa_ring(i);

		if (__atomic_load_n(&ring->state, __ATOMIC_ACQUIRE) != TP_RING_LIVE)
			continue;
		if (sys3(__NR_tgkill, tpa.pid, ring->tid, 0) != -3) /* ESRCH */
			continue;
		ring->padding0[0] = 0;
		__atomic_store_n(&ring->state, TP_RING_DEAD, __ATOMIC_RELEASE);
	}
}
