/* SPDX-License-Identifier: Apache-2.0 */
/** @file ring_copy.c: a stretch of time out of rings that are overwritten, also while they are. */
#include <pthread.h>
#include <stdlib.h>
#include <time.h>
#include <unistd.h>

#include "check.h"
#include "held.h"
#include "rings.h"

enum { RINGS = 2, CAPACITY = 1 << 13, HEADER = 48, ADDRESS = 0x401005 };

/* The tool's is in seize.c, which needs everything. */
uint64_t tp_now_ns(void)
{
	struct timespec now;

	clock_gettime(CLOCK_MONOTONIC, &now);
	return (uint64_t)now.tv_sec * 1000000000ull + (uint64_t)now.tv_nsec;
}

struct rig {
	struct tp_rings rings;
	struct tp_span span;
	struct tp_copied out;
	uint64_t tails[RINGS], dropped[RINGS], dead[RINGS], given[RINGS], touched[RINGS];
	uint8_t begun[RINGS];
	struct tp_event *found; /* what the last copy has written, of all rings */
	uint64_t count, lost;
	FILE *file;
};

static struct rig *make(void)
{
	struct rig *rig = calloc(1, sizeof(*rig));
	struct tp_rings *rings = &rig->rings;

	rings->ring_count = RINGS;
	rings->ring_bytes = CAPACITY * sizeof(struct tp_event);
	rings->ring_stride = TP_PAGE_BYTES + rings->ring_bytes;
	rings->map_bytes = (uint64_t)RINGS * rings->ring_stride;
	rings->map = aligned_alloc(TP_PAGE_BYTES, rings->map_bytes);
	memset(rings->map, 0, rings->map_bytes);
	rings->buffer = malloc(rings->ring_bytes + HEADER);
	rings->tails = rig->tails;
	rings->dropped = rig->dropped;
	rings->dead_since_ns = rig->dead;
	rings->begun = rig->begun;
	rig->file = tmpfile();
	rig->span = (struct tp_span){ .to_tsc = UINT64_MAX,
				      .given = rig->given,
				      .fd = fileno(rig->file) };
	rig->found = malloc(2 * rings->map_bytes);
	for (uint32_t i = 0; i < RINGS; i++) {
		ring_at(rings, i)->tid = 100 + i;
		ring_at(rings, i)->mask = CAPACITY - 1;
	}
	CHECK_EQ(tp_rings_start(rings), 0);
	return rig;
}

static void drop(struct rig *rig)
{
	fclose(rig->file);
	free(rig->rings.map);
	free(rig->rings.buffer);
	free(rig->found);
	free(rig);
}

static uint64_t word_of(uint64_t index, uint64_t ip, uint64_t type)
{
	return ip << 16 | (index >> 12 & TP_LAP_MASK) << 4 | type;
}

/* As a thread does: reserve, time, word. */
static void write_one(struct tp_ring *ring, uint64_t tsc, uint64_t ip, uint64_t type)
{
	struct tp_event *events = (struct tp_event *)((uint8_t *)ring + TP_PAGE_BYTES);
	uint64_t index = __atomic_fetch_add(&ring->head, 1, __ATOMIC_SEQ_CST);
	struct tp_event *event = &events[index & (CAPACITY - 1)];

	__atomic_store_n(&event->tsc, tsc, __ATOMIC_RELAXED);
	__atomic_store_n(&event->word, word_of(index, ip, type), __ATOMIC_RELEASE);
}

/* Events of ticks [from, to), one a tick. */
static void fill(struct rig *rig, uint32_t i, uint64_t from, uint64_t to)
{
	for (uint64_t tsc = from; tsc < to; tsc++)
		write_one(ring_at(&rig->rings, i), tsc, ADDRESS, TP_EVENT_ENTRY);
}

/* Copy [from, to] and read what was written. */
static void copy(struct rig *rig, uint64_t from, uint64_t to)
{
	uint8_t header[HEADER];
	uint64_t payload, lost;

	CHECK(!ftruncate(rig->span.fd, 0) && !lseek(rig->span.fd, 0, SEEK_SET));
	rig->span.from_tsc = from;
	rig->span.to_tsc = to;
	CHECK_EQ(tp_copy_rings(&rig->rings, &rig->span, &rig->out), 0);
	rig->count = rig->lost = 0;
	lseek(rig->span.fd, 0, SEEK_SET);
	while (read(rig->span.fd, header, HEADER) == HEADER) {
		memcpy(&payload, header + 8, 8);
		memcpy(&lost, header + 16, 8);
		CHECK_EQ(read(rig->span.fd, rig->found + rig->count, payload), payload);
		rig->count += payload / sizeof(struct tp_event);
		rig->lost += lost;
	}
	CHECK_EQ(rig->count, rig->out.events);
	CHECK_EQ(rig->lost, rig->out.lost);
}

TEST(a_stretch_of_time_is_copied_to_the_event)
{
	struct rig *rig = make();

	fill(rig, 0, 1000, 2000);
	fill(rig, 1, 1500, 1600);
	copy(rig, 1550, 1699);
	CHECK_EQ(rig->count, 150 + 50);
	CHECK_EQ(rig->found[0].tsc, 1550);
	CHECK_EQ(rig->found[149].tsc, 1699);
	CHECK_EQ(rig->found[150].tsc, 1550);
	CHECK_EQ(rig->out.lost, 0);
	CHECK_EQ(rig->out.short_from_tsc, 0);
	drop(rig);
}

TEST(no_event_is_copied_twice_unless_that_is_asked_for)
{
	struct rig *rig = make();

	fill(rig, 0, 1000, 2000);
	copy(rig, 1100, 1199);
	CHECK_EQ(rig->count, 100);
	copy(rig, 1150, 1299);
	CHECK_EQ(rig->count, 100);
	CHECK_EQ(rig->found[0].tsc, 1200);
	rig->span.again = 1;
	copy(rig, 0, UINT64_MAX);
	CHECK_EQ(rig->count, 1000);
	rig->span.again = 0;
	copy(rig, 0, UINT64_MAX);
	CHECK_EQ(rig->count, 700);
	drop(rig);
}

TEST(a_ring_that_is_too_small_is_told)
{
	struct rig *rig = make();

	fill(rig, 0, 1000, 1010);
	fill(rig, 1, 1000, 1000 + 3 * CAPACITY);
	copy(rig, 1000, UINT64_MAX);
	CHECK_EQ(rig->count, 10 + CAPACITY);
	CHECK_EQ(rig->out.short_from_tsc, 1000 + 2 * CAPACITY);
	CHECK_EQ(rig->out.short_until_tsc, 1000 + 3 * CAPACITY - 1);
	CHECK_EQ(rig->out.short_events, CAPACITY);
	CHECK_EQ(rig->out.short_tid, 101);
	fill(rig, 1, 90000, 90010); /* what is missing now was copied before */
	copy(rig, 1000, UINT64_MAX);
	CHECK_EQ(rig->count, 10);
	CHECK_EQ(rig->out.short_from_tsc, 0);
	drop(rig);
}

TEST(what_is_there_already_belongs_to_somebody_else)
{
	struct rig *rig = make();

	fill(rig, 0, 1000, 2000);
	CHECK_EQ(tp_rings_start(&rig->rings), 0);
	fill(rig, 0, 2000, 2010);
	rig->span.again = 1;
	copy(rig, 0, UINT64_MAX);
	CHECK_EQ(rig->count, 10);
	CHECK_EQ(rig->out.short_from_tsc, 0);
	drop(rig);
}

/* The thread was on the way to its probe when the trace before ended. */
TEST(the_late_event_of_an_earlier_trace_is_not_taken)
{
	static const uint64_t sites[] = { 0x1000, ADDRESS, 0x500000 };

	for (int drains = 0; drains < 2; drains++) {
		struct rig *rig = make();
		struct tp_ring *ring = ring_at(&rig->rings, 0);
		struct tp_drained out;

		rig->rings.sites = sites;
		rig->rings.site_count = 3;
		rig->rings.waiting = CAPACITY;
		write_one(ring, 1000, ADDRESS + 5, TP_EVENT_ENTRY);
		write_one(ring, 7, 1 << 8, TP_EVENT_DATA);
		write_one(ring, 1001, ADDRESS + 9, TP_EVENT_EXIT);
		copy(rig, 0, drains ? 0 : UINT64_MAX);
		CHECK_EQ(rig->count, 0);
		write_one(ring, 1002, ADDRESS, TP_EVENT_ENTRY);
		write_one(ring, 1003, ADDRESS + 5, TP_EVENT_ENTRY); /* of a site that came later */
		if (drains) {
			CHECK_EQ(tp_drain_rings(&rig->rings, 0, &out), 0);
			CHECK_EQ(out.events, 2);
			CHECK_EQ(out.lost, 0);
		} else {
			copy(rig, 0, UINT64_MAX);
			CHECK_EQ(rig->count, 2);
			CHECK_EQ(rig->found[0].tsc, 1002);
		}
		drop(rig);
	}
}

TEST(data_has_the_time_of_its_event)
{
	struct rig *rig = make();
	struct tp_ring *ring = ring_at(&rig->rings, 0);

	for (uint64_t tsc = 1000; tsc < 1100; tsc++) {
		write_one(ring, tsc, ADDRESS, TP_EVENT_EXIT);
		for (uint64_t k = 0; k < 3; k++)
			write_one(ring, k ? UINT64_MAX : 0, TP_DATA_OF_EXIT | 3 << 8 | k,
				  TP_EVENT_DATA);
	}
	copy(rig, 1020, 1029);
	CHECK_EQ(rig->count, 40);
	CHECK_EQ(rig->found[0].tsc, 1020);
	CHECK_EQ(rig->found[36].tsc, 1029);
	drop(rig);
}

TEST(an_event_that_was_never_written_is_stepped_over)
{
	struct rig *rig = make();

	fill(rig, 0, 1000, 1050);
	ring_at(&rig->rings, 0)->head++;
	fill(rig, 0, 1051, 1100);
	ring_at(&rig->rings, 0)->head++; /* this one may yet be: it is not lost */
	copy(rig, 1040, 1060);
	CHECK_EQ(rig->count, 20);
	CHECK_EQ(rig->out.lost, 1);
	copy(rig, 1040, UINT64_MAX - 1);
	CHECK_EQ(rig->count, 39);
	CHECK_EQ(rig->out.lost, 0);
	drop(rig);
}

TEST(threads_are_chosen)
{
	struct rig *rig = make();
	uint32_t tid = 101;

	fill(rig, 0, 1000, 1010);
	fill(rig, 1, 1000, 1020);
	rig->span.tids = &tid;
	rig->span.tid_count = 1;
	copy(rig, 0, UINT64_MAX);
	CHECK_EQ(rig->count, 20);
	rig->span.tid_count = 0;
	rig->span.again = 1;
	copy(rig, 0, UINT64_MAX);
	CHECK_EQ(rig->count, 0);
	drop(rig);
}

TEST(the_ring_of_a_thread_that_is_gone_serves_another)
{
	struct rig *rig = make();

	fill(rig, 0, 1000, 1010);
	ring_at(&rig->rings, 0)->state = TP_RING_DEAD;
	CHECK_EQ(tp_look_at_rings(&rig->rings, 1000000000000ull, rig->touched), 10);
	CHECK_EQ(ring_at(&rig->rings, 0)->state, TP_RING_DEAD);
	CHECK_EQ(tp_look_at_rings(&rig->rings, 0, rig->touched), 10);
	CHECK_EQ(ring_at(&rig->rings, 0)->state, TP_RING_FREE);
	fill(rig, 0, 2000, 2005);
	copy(rig, 0, UINT64_MAX);
	CHECK_EQ(rig->count, 5);
	drop(rig);
}

static int stop_writing;

static void *write_on(void *ring)
{
	uint64_t tsc = 0;

	while (!__atomic_load_n(&stop_writing, __ATOMIC_RELAXED))
		write_one(ring, ++tsc, ADDRESS, TP_EVENT_ENTRY);
	return NULL;
}

/* Every event is whole, and one follows the other but where that is told. */
TEST(a_running_writer_tears_nothing)
{
	struct rig *rig = make();
	uint64_t last = 0, copies = 0, events = 0, gaps = 0;
	pthread_t thread;

	__atomic_store_n(&stop_writing, 0, __ATOMIC_RELAXED);
	pthread_create(&thread, NULL, write_on, ring_at(&rig->rings, 0));
	for (; events < 4000000 && copies < 20000; copies++) {
		copy(rig, 0, UINT64_MAX - 1);
		events += rig->count;
		for (uint64_t k = 0; k < rig->count; k++) {
			CHECK_EQ(rig->found[k].word >> 16, ADDRESS);
			CHECK_EQ(rig->found[k].word & 0xf, TP_EVENT_ENTRY);
			/* the writer's ticks are its indexes + 1 */
			CHECK_EQ(rig->found[k].word >> 4 & TP_LAP_MASK,
				 (rig->found[k].tsc - 1) >> 12 & TP_LAP_MASK);
			if (rig->found[k].tsc != last + 1) {
				CHECK(rig->found[k].tsc > last);
				gaps++;
				CHECK(rig->out.short_from_tsc || rig->out.lost);
			}
			last = rig->found[k].tsc;
		}
	}
	__atomic_store_n(&stop_writing, 1, __ATOMIC_RELAXED);
	pthread_join(thread, NULL);
	CHECK(events > CAPACITY);
	printf("# %" PRIu64 " copies, %" PRIu64 " events, %" PRIu64 " gaps\n", copies, events,
	       gaps);
	drop(rig);
}
