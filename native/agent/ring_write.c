/* SPDX-License-Identifier: Apache-2.0 */
/**
 * @file
 * Giving a thread its ring: the slow path of the thunk, once a thread. Runs on the program's own
 * threads, so: no locks, no allocation, and a nested signal handler may do the same meanwhile.
 */
#include <linux/futex.h>

#include "agent.h"

#define DESCRIPTOR_BYTES 4096 /* probe.inc */

struct tp_ring *tpa_ring(const struct tpa_set *set, uint32_t i)
{
	return (struct tp_ring *)((char *)set->wire + set->wire->ring_offset +
				  (uint64_t)i * set->wire->ring_stride);
}

/* The thread's slot, or NULL when the table is full. Linear probing; slots are never emptied. */
static struct tpa_slot *find_slot(const struct tpa_set *set, uint64_t fs_base)
{
	uint32_t start = (uint32_t)(fs_base >> 12);

	for (uint32_t i = 0; i < TPA_SLOT_COUNT; i++) {
		struct tpa_slot *slot = &set->slots[(start + i) % TPA_SLOT_COUNT];
		uint64_t free = 0;

		if (__atomic_load_n(&slot->fs_base, __ATOMIC_ACQUIRE) == fs_base ||
		    __atomic_compare_exchange_n(&slot->fs_base, &free, fs_base, 0, __ATOMIC_ACQ_REL,
						__ATOMIC_ACQUIRE) ||
		    free == fs_base)
			return slot;
	}
	return NULL;
}

static struct tp_ring *take_free_ring(const struct tpa_set *set)
{
	for (uint32_t i = 0; i < set->wire->ring_count; i++) {
		struct tp_ring *ring = tpa_ring(set, i);
		uint32_t free = TP_RING_FREE;

		if (__atomic_load_n(&ring->state, __ATOMIC_RELAXED) == TP_RING_FREE &&
		    __atomic_compare_exchange_n(&ring->state, &free, TP_RING_CLAIMED, 0,
						__ATOMIC_ACQ_REL, __ATOMIC_RELAXED))
			return ring;
	}
	return NULL;
}

/*
 * Compare memory that may not be there with @value: the kernel does, and no filter forbids a thread
 * this call; the program may have put itself under seccomp since we came. Nobody is waked or moved. 0,
 * -EAGAIN or -EFAULT. (To wait for the value, without time, would take the timer's slack: 50 us.)
 */
static long compare(uint64_t at, uint32_t value)
{
	return sys6(__NR_futex, (long)at, FUTEX_CMP_REQUEUE_PRIVATE, 0, 0, (long)at, value);
}

static int holds_half(uint64_t at, uint32_t value)
{
	return compare(at, value) == 0;
}

/** Is there memory at @at, a multiple of four, that can be read? */
int tpa_is_readable(uint64_t at)
{
	return compare(at, 0) != -14; /* EFAULT */
}

/** Is there readable memory that holds @value? No fault, whatever @at is. */
int tpa_holds(uint64_t at, uint64_t value)
{
	return holds_half(at, (uint32_t)value) && holds_half(at + 4, (uint32_t)(value >> 32));
}

/*
 * libc keeps the thread id at a fixed place behind the fs base. Where this thread's is readable and
 * right, the thunk compares it on every event, and a reused stack is noticed at once. Elsewhere it
 * compares with the ring's own copy, which tpa_retire_rings() clears when the thread is gone.
 */
static uint64_t where_tid_is(struct tp_ring *ring, uint64_t fs_base, uint32_t tid)
{
	uint64_t at = fs_base + tpa_image.tid_offset;

	if (tpa_image.tid_offset && holds_half(at, tid))
		return at;
	ring->tid_copy = tid;
	return (uint64_t)&ring->tid_copy;
}

/**
 * Is a ring that was found by @fs_base its thread's? It may be another thread's by now, whose descriptor
 * has gone: as check_ring of probe.inc. @tid: of the thread, where that is known; or 0.
 */
int tpa_is_ring_of(const struct tp_ring *ring, uint64_t fs_base, uint32_t tid)
{
	uint64_t at = ring ? __atomic_load_n(&ring->tid_at, __ATOMIC_RELAXED) : 0;

	if (!ring || (tid && ring->tid != tid))
		return 0;
	if (at - fs_base < DESCRIPTOR_BYTES || at == (uint64_t)&ring->tid_copy)
		return *(const uint32_t *)at == ring->tid;
	return 0;
}

static struct tpa_slot *no_ring(const struct tpa_set *set)
{
	__atomic_add_fetch(&set->wire->events_without_ring, 1, __ATOMIC_RELAXED);
	return NULL;
}

/** The calling thread's slot with a ring of its own; NULL: none left, the event is counted as lost. */
struct tpa_slot *tpa_claim(uint64_t fs_base, struct tpa_set *set)
{
	uint32_t tid = (uint32_t)sys0(__NR_gettid);
	struct tpa_slot *slot = fs_base ? find_slot(set, fs_base) : NULL;
	struct tp_ring *old, *ring;

	if (!slot)
		return no_ring(set);
	old = __atomic_load_n(&slot->ring, __ATOMIC_ACQUIRE);
	if (tpa_is_ring_of(old, fs_base,
			   tid)) { /* a probe past its home slot, or without a shadow stack */
		if (!slot->shadow)
			slot->shadow = tpa_shadow_claim(fs_base, tid);
		return slot;
	}
	ring = take_free_ring(set);
	if (!ring)
		return no_ring(set);
	ring->tid = tid;
	ring->fs_base = fs_base;
	ring->tid_at = where_tid_is(ring, fs_base, tid);
	ring->generation++;
	slot->shadow = tpa_shadow_claim(fs_base, tid);
	if (!__atomic_compare_exchange_n(&slot->ring, &old, ring, 0, __ATOMIC_ACQ_REL,
					 __ATOMIC_ACQUIRE)) {
		__atomic_store_n(&ring->state, TP_RING_FREE, __ATOMIC_RELEASE);
		return slot; /* a nested signal handler was first */
	}
	if (old)
		__atomic_store_n(&old->state, TP_RING_DEAD, __ATOMIC_RELEASE);
	__atomic_store_n(&ring->state, TP_RING_LIVE, __ATOMIC_RELEASE);
	__atomic_add_fetch(&set->wire->claims, 1, __ATOMIC_RELAXED);
	return slot;
}

/** A call of the calling thread whose return is not waited for; where the probe has no ring at hand. */
void tpa_count_overrun(uint64_t fs_base, struct tpa_set *set)
{
	struct tpa_slot *slot = find_slot(set, fs_base); /* its ring was just checked */

	if (slot && slot->ring)
		slot->ring->overruns++;
}

/** Give every ring its size. The heads stay zero: nothing has been written. */
void tpa_init_rings(const struct tpa_set *set)
{
	uint64_t events = set->wire->ring_bytes / sizeof(struct tp_event);
	uint64_t places = 64;

	while (places < 2ull * set->profiled)
		places *= 2;
	for (uint32_t i = 0; i < set->wire->ring_count; i++) {
		struct tp_ring *ring = tpa_ring(set, i);

		/* of a profile: the place's offset, 16 bytes each */
		ring->mask = set->profiled ? 16 * (places - 1) : events - 1;
		ring->limit = events;
		ring->bytes = set->wire->ring_bytes;
	}
}

/** Events that may wait in a ring: up to its size it drops, above any count it overwrites. */
void tpa_set_limits(const struct tpa_set *set, uint64_t waiting)
{
	for (uint32_t i = 0; i < set->wire->ring_count; i++) {
		struct tp_ring *ring = tpa_ring(set, i);

		__atomic_store_n(&ring->limit, ring->tail + waiting, __ATOMIC_RELAXED);
	}
}

static void retire_rings_of(const struct tpa_set *set)
{
	for (uint32_t i = 0; i < set->wire->ring_count; i++) {
		struct tp_ring *ring = tpa_ring(set, i);

		if (__atomic_load_n(&ring->state, __ATOMIC_ACQUIRE) != TP_RING_LIVE)
			continue;
		if (sys3(__NR_tgkill, tpa.pid, ring->tid, 0) != -3) /* ESRCH */
			continue;
		ring->tid_copy = 0;
		__atomic_store_n(&ring->state, TP_RING_DEAD, __ATOMIC_RELEASE);
	}
}

/** Mark the rings of threads that are gone, so that the reader may give them back. */
void tpa_retire_rings(void)
{
	for (uint32_t i = 0; i < tpa.set_count; i++)
		retire_rings_of(&tpa.sets[i]);
}

/** A call that took long enough: its EXIT, with its duration as data. */
void tpa_write_long(struct tp_ring *ring, uint64_t word, uint64_t now, uint64_t ticks)
{
	struct tp_event *events = (struct tp_event *)((char *)ring + TP_PAGE_BYTES);
	uint64_t data = (uint64_t)(TP_DATA_OF_EXIT | 1 << 8) << 16 | TP_EVENT_DATA;
	uint64_t head = 2;

	if (ring->head + 2 > ring->limit) {
		ring->dropped += 2;
		return;
	}
	__asm__ volatile("xaddq %0, %1" : "+r"(head), "+m"(ring->head) : : "memory", "cc");
	events[head & ring->mask] = (struct tp_event){ now, word | (head >> 8 & 0xfff0) };
	head++;
	events[head & ring->mask] = (struct tp_event){ ticks, data | (head >> 8 & 0xfff0) };
}
