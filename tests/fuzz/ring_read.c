/* SPDX-License-Identifier: Apache-2.0 */
/**
 * @file
 * Fuzzer of native/control/ring_read.c and ring_copy.c: layouts that the check lets through, ring heads and events
 * full of lies, changed between drains and, in every 64th case, by a second thread during them. The
 * memory is allocated to the byte, so that ASan sees a step outside of it.
 */
#include <pthread.h>
#include <sys/mman.h>
#include <unistd.h>

#include "fuzz.h"
#include "textpoke.h"

#define MOST_RINGS 4
#define HEADER_BYTES 48
#define MOST_LOST (1ull << 62) /* a capture's reader takes no larger number */

static int capture_fd = -1;
static int stop_scribbling;

static void *exactly(uint64_t bytes, uint64_t alignment)
{
	void *memory = NULL;

	if (posix_memalign(&memory, alignment, bytes ? bytes : 1))
		abort();
	memset(memory, 0, bytes);
	return memory;
}

static struct tp_ring *ring_of(const struct tp_rings *rings, uint32_t i)
{
	return (struct tp_ring *)(rings->map + rings->ring_offset +
				  (uint64_t)i * rings->ring_stride);
}

/* Events [from, from + count) as an honest thread leaves them. */
static void write_events(const struct tp_rings *rings, uint32_t i, uint64_t from, uint64_t count)
{
	struct tp_event *events = (struct tp_event *)((uint8_t *)ring_of(rings, i) + TP_PAGE_BYTES);
	uint64_t capacity = rings->ring_bytes / sizeof(*events);

	for (uint64_t k = from; capacity && k != from + count; k++)
		events[k & (capacity - 1)] =
			(struct tp_event){ fuzz_next(),
					   0x401000ull << 16 | ((k >> 12) & TP_LAP_MASK) << 4 | 1 };
}

static void lie_about(const struct tp_rings *rings, uint32_t i)
{
	struct tp_ring *ring = ring_of(rings, i);
	uint64_t *words = (uint64_t *)ring;

	switch (fuzz_below(6)) {
	case 0: /* a little progress, events and all */
		write_events(rings, i, ring->head, 1 + fuzz_below(300));
		ring->head += fuzz_below(300);
		break;
	case 1:
		ring->head = fuzz_number();
		break;
	case 2:
		ring->dropped = fuzz_number();
		break;
	case 3:
		ring->state = (uint32_t)fuzz_below(6);
		break;
	case 4:
		ring->head += fuzz_number();
		write_events(rings, i, ring->head - 64, 64);
		break;
	default:
		words[fuzz_below(sizeof(*ring) / 8)] = fuzz_number();
	}
}

static void *scribble(void *context)
{
	const struct tp_rings *rings = context;
	uint64_t state = 1;

	while (!__atomic_load_n(&stop_scribbling, __ATOMIC_RELAXED)) {
		struct tp_ring *ring = ring_of(rings, (uint32_t)(state % rings->ring_count));

		state = state * 6364136223846793005ull + 1442695040888963407ull;
		__atomic_store_n(&ring->head, state & 1 ? state : state >> 50, __ATOMIC_RELAXED);
		__atomic_store_n(&ring->dropped, state >> 3, __ATOMIC_RELAXED);
		__atomic_store_n(&ring->state, (uint32_t)(state >> 40), __ATOMIC_RELAXED);
	}
	return NULL;
}

static uint32_t fnv(const uint8_t *data, size_t bytes)
{
	uint32_t hash = 0x811c9dc5u;

	for (size_t i = 0; i < bytes; i++)
		hash = (hash ^ data[i]) * 0x01000193u;
	return hash;
}

/* What was written must be blocks that a reader takes: whole, right check, whole events. */
static void check_capture(const struct tp_rings *rings, const struct tp_drained *out)
{
	static uint8_t data[MOST_RINGS * (HEADER_BYTES + (1 << 13))];
	uint64_t at = 0, blocks = 0;

	if (out->bytes > sizeof(data)) {
		FUZZ_CHECK(out->bytes <= sizeof(data));
		return;
	}
	FUZZ_CHECK(pread(capture_fd, data, sizeof(data), 0) == (ssize_t)out->bytes);
	while (at < out->bytes) {
		uint64_t payload, lost;
		uint32_t check;

		memcpy(&payload, data + at + 8, 8);
		memcpy(&lost, data + at + 16, 8);
		memcpy(&check, data + at + 44, 4);
		FUZZ_CHECK(payload <= rings->ring_bytes && payload % sizeof(struct tp_event) == 0);
		FUZZ_CHECK(lost < MOST_LOST);
		FUZZ_CHECK(check == fnv(data + at, 44));
		for (uint64_t k = 0; k < payload && payload <= rings->ring_bytes; k += 16)
			FUZZ_CHECK(data[at + HEADER_BYTES + k + 8] & 0xf);
		if (payload > rings->ring_bytes)
			return;
		at += HEADER_BYTES + payload;
		blocks++;
	}
	FUZZ_CHECK(blocks == out->blocks);
}

static void drain(struct tp_rings *rings, int final)
{
	uint64_t capacity = rings->ring_bytes / sizeof(struct tp_event);
	struct tp_drained out;

	if (ftruncate(capture_fd, 0) || lseek(capture_fd, 0, SEEK_SET))
		abort();
	FUZZ_CHECK(tp_drain_rings(rings, final, &out) == 0);
	FUZZ_CHECK(out.events <= capacity * rings->ring_count);
	FUZZ_CHECK(out.incomplete <= capacity * rings->ring_count);
	FUZZ_CHECK(out.fullest <= capacity);
	FUZZ_CHECK(out.lost < MOST_LOST);
	FUZZ_CHECK(out.rings_freed <= rings->ring_count);
	check_capture(rings, &out);
}

/* A stretch of time out of the same rings, as the flight recorder takes it. */
static void copy(struct tp_rings *rings, uint64_t *given, uint64_t *touched)
{
	uint64_t capacity = rings->ring_bytes / sizeof(struct tp_event), tails[MOST_RINGS];
	uint32_t tid = (uint32_t)fuzz_below(3);
	struct tp_span span = { .from_tsc = fuzz_below(2) ? fuzz_number() : 0,
				.to_tsc = fuzz_below(2) ? fuzz_number() : UINT64_MAX,
				.given = given,
				.tids = fuzz_below(4) ? NULL : &tid,
				.tid_count = 1,
				.again = (uint32_t)fuzz_below(2),
				.fd = -1 };
	struct tp_copied out;

	memcpy(tails, rings->tails, rings->ring_count * sizeof(*tails));
	if (fuzz_below(2)) /* nothing was drained */
		memset(rings->tails, 0, rings->ring_count * sizeof(*tails));
	FUZZ_CHECK(tp_copy_rings(rings, &span, &out) == 0);
	FUZZ_CHECK(out.events + out.lost <= capacity * rings->ring_count);
	FUZZ_CHECK(out.short_events <= UINT64_MAX / 2);
	memcpy(rings->tails, tails, rings->ring_count * sizeof(*tails));
	tp_look_at_rings(rings, fuzz_number(), touched);
}

static void drain_often(struct tp_rings *rings)
{
	uint64_t given[MOST_RINGS] = { 0 }, touched[MOST_RINGS] = { 0 };
	pthread_t thread;
	int raced = fuzz_case % 64 == 63 && rings->ring_count;

	stop_scribbling = 0;
	if (raced && pthread_create(&thread, NULL, scribble, rings))
		abort();
	for (int turn = 0; turn < 4; turn++) {
		for (uint32_t i = 0; i < rings->ring_count && !raced; i++)
			lie_about(rings, i);
		copy(rings, given, touched);
		drain(rings, turn == 3);
	}
	__atomic_store_n(&stop_scribbling, 1, __ATOMIC_RELAXED);
	if (raced)
		pthread_join(thread, NULL);
}

/* Mostly what an agent makes; else numbers near it, of which the check must refuse the bad ones. */
static void choose_layout(struct tp_rings *rings, uint64_t *room)
{
	rings->ring_count = (uint32_t)fuzz_below(MOST_RINGS + 1);
	rings->ring_bytes = TP_PAGE_BYTES << fuzz_below(2);
	rings->ring_stride = TP_PAGE_BYTES + rings->ring_bytes;
	rings->ring_offset = TP_PAGE_BYTES * (1 + fuzz_below(2));
	rings->map_bytes = rings->ring_offset + (uint64_t)rings->ring_count * rings->ring_stride;
	rings->waiting = fuzz_below(2) ? fuzz_number() : 64;
	*room = rings->map_bytes;
	if (fuzz_below(4))
		return;
	switch (fuzz_below(4)) {
	case 0:
		rings->ring_offset = fuzz_number();
		break;
	case 1:
		rings->ring_stride = (uint32_t)fuzz_number();
		break;
	case 2:
		rings->ring_bytes = (uint32_t)fuzz_number();
		break;
	default:
		rings->ring_bytes = (uint32_t)fuzz_number();
		rings->ring_stride = TP_PAGE_BYTES + rings->ring_bytes;
	}
}

static void run(void)
{
	static const uint64_t sites[] = { 0x1000, 0x401005, 1ull << 47 };
	struct tp_rings rings = { .fd = capture_fd };
	uint64_t room;

	choose_layout(&rings, &room);
	rings.map = exactly(room, TP_PAGE_BYTES);
	rings.tails = exactly(rings.ring_count * 8ull, 8);
	rings.dropped = exactly(rings.ring_count * 8ull, 8);
	rings.dead_since_ns = exactly(rings.ring_count * 8ull, 8);
	rings.begun = exactly(rings.ring_count, 8);
	rings.site_count = fuzz_below(2) ? sizeof(sites) / sizeof(*sites) : 0;
	rings.sites = sites;
	rings.buffer = exactly(2 * TP_PAGE_BYTES < rings.ring_bytes ? 1 : rings.ring_bytes, 8);
	for (uint64_t i = 0; i < room / 8 && fuzz_below(2); i += 1 + fuzz_below(64))
		((uint64_t *)rings.map)[i] = fuzz_number();
	if (!tp_rings_start(&rings))
		drain_often(&rings);
	free(rings.map);
	free(rings.tails);
	free(rings.dropped);
	free(rings.dead_since_ns);
	free(rings.begun);
	free(rings.buffer);
}

uint64_t tp_now_ns(void);

/* A clock of our own: rings of dead threads come free within a case, and every run is the same. */
uint64_t tp_now_ns(void)
{
	static uint64_t now;

	return now += 700000000;
}

int main(int argc, char **argv)
{
	capture_fd = memfd_create("fuzz", 0);
	if (capture_fd < 0)
		return 2;
	return fuzz_main(argc, argv, run);
}
