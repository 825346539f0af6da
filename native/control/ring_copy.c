/* SPDX-License-Identifier: Apache-2.0 */
/**
 * @file
 * Copying a stretch of time out of rings whose threads run on and overwrite their oldest events: the
 * flight recorder. What was overwritten meanwhile is dropped and counted. Nothing that is read in the
 * rings is trusted.
 */
#include <errno.h>
#include <string.h>

#include "rings.h"

#define LATE UINT64_MAX
#define PART 4096ull
#define MOST_UNWRITTEN 64 /* of a thread and the signal handlers that have interrupted it */

static uint64_t mask_of(const struct tp_rings *rings)
{
	return capacity_of(rings) - 1;
}

static uint64_t larger(uint64_t a, uint64_t b)
{
	return a > b ? a : b;
}

/* Index of the oldest event that a ring whose head is there holds. */
static uint64_t oldest_at(const struct tp_rings *rings, uint64_t head)
{
	return head > capacity_of(rings) ? head - capacity_of(rings) : 0;
}

/* DATA has the time of the ENTRY or EXIT before it. 0: that is overwritten. */
static uint64_t time_of_owner(const struct tp_rings *rings, const struct tp_event *events,
			      uint64_t index, uint64_t word)
{
	uint64_t owner = index - 1 - (word >> 16 & 0xff);
	const struct tp_event *event = &events[owner & mask_of(rings)];
	uint64_t found = __atomic_load_n(&event->word, __ATOMIC_ACQUIRE);

	return is_whole(found, owner) && (found & 0xf) != TP_EVENT_DATA ? event->tsc : 0;
}

/* Ticks of an event; 0: it is overwritten; LATE: its thread has not written it yet. */
static uint64_t time_at(const struct tp_rings *rings, const struct tp_event *events, uint64_t index)
{
	const struct tp_event *event = &events[index & mask_of(rings)];
	uint64_t word = __atomic_load_n(&event->word, __ATOMIC_ACQUIRE);

	if (is_whole(word, index))
		return (word & 0xf) == TP_EVENT_DATA ? time_of_owner(rings, events, index, word) :
						       event->tsc;
	return is_whole(word, index + capacity_of(rings)) ? 0 : LATE;
}

/* The same; an event that was interrupted before it was written has the time of the next one. */
static uint64_t time_from(const struct tp_rings *rings, const struct tp_event *events,
			  uint64_t index, uint64_t end)
{
	uint64_t time = LATE;

	for (uint64_t i = 0; time == LATE && i < MOST_UNWRITTEN && index + i < end; i++)
		time = time_at(rings, events, index + i);
	return time;
}

/* Index of the first event in [low, high) that is not before @tsc. */
static uint64_t first_from(const struct tp_rings *rings, const struct tp_event *events,
			   uint64_t low, uint64_t high, uint64_t tsc)
{
	uint64_t end = high;

	while (low < high) {
		uint64_t middle = low + (high - low) / 2;

		if (time_from(rings, events, middle, end) >= tsc)
			high = middle;
		else
			low = middle + 1;
	}
	return low;
}

static int put(const struct tp_rings *rings, uint32_t i, const struct tp_span *span,
	       const struct tp_block *block, struct tp_copied *out)
{
	if (!block->events && !block->lost)
		return 0;
	out->events += block->events;
	out->lost += block->lost;
	out->blocks++;
	return tp_write_block(rings, i, span->fd, span->packer, block, &out->bytes);
}

/* A copy on its way: what has been copied and waits to be written as one block. */
struct run {
	struct tp_block block;
	uint64_t first;	    /* index of the first event that was there; LATE: none yet */
	uint64_t first_tsc; /* its ticks */
};

static struct tp_event *place_in(const struct tp_rings *rings, uint64_t at)
{
	return (struct tp_event *)rings->buffer + at;
}

static int flush(const struct tp_rings *rings, uint32_t i, const struct tp_span *span,
		 struct run *run, uint64_t lost, struct tp_copied *out)
{
	struct tp_block *block = &run->block;
	uint64_t next = block->at + block->events;
	int error;

	for (uint64_t k = 0; run->first == LATE && k < block->events; k++) {
		const struct tp_event *event = place_in(rings, block->at + k);

		if ((event->word & 0xf) == TP_EVENT_DATA)
			continue;
		run->first = block->sequence + k;
		run->first_tsc = event->tsc;
	}
	block->lost = lost;
	error = put(rings, i, span, block, out);
	*block = (struct tp_block){ block->sequence + block->events + lost, 0, 0, next, 0 };
	return error;
}

/*
 * Events [start, end) to the capture. Oldest first and in small parts, so that we keep ahead of the
 * thread; the head is read again behind each: what the thread has come round to may be torn.
 */
static int copy_events(const struct tp_rings *rings, uint32_t i, const struct tp_span *span,
		       uint64_t start, uint64_t end, struct run *run, struct tp_copied *out)
{
	const struct tp_ring *ring = ring_at(rings, i);
	uint32_t holes = 0;
	int error = 0;

	*run = (struct run){ { start, 0, 0, 0, 0 }, LATE, 0 };
	while (!error && start < end) {
		uint64_t stop = end - start > PART ? start + PART : end, oldest, gone, lost, whole;

		whole = tp_copy_whole(rings, events_of(ring), start, stop,
				      place_in(rings, run->block.at + run->block.events));
		oldest = oldest_at(rings, __atomic_load_n(&ring->head, __ATOMIC_ACQUIRE));
		gone = oldest > start ? oldest - start : 0;
		if (gone > end - start)
			gone = end - start;
		if (gone) {
			error = flush(rings, i, span, run, gone, out);
			run->block.at += whole > gone ? gone : 0;
			run->block.events = whole > gone ? whole - gone : 0;
			start += larger(whole, gone);
			continue;
		}
		run->block.events += whole;
		start += whole;
		if (start == stop)
			continue;
		lost = ++holes > MOST_UNWRITTEN ? end - start : 1; /* nobody has written it */
		error = flush(rings, i, span, run, lost, out);
		start += lost;
	}
	return error ? error : flush(rings, i, span, run, 0, out);
}

/* The ring does not reach back to where the span begins: tell of the one that reaches least far. */
static void note_short(const struct tp_rings *rings, uint32_t i, const struct run *run,
		       uint64_t head, struct tp_copied *out)
{
	const struct tp_ring *ring = ring_at(rings, i);
	uint64_t last = time_at(rings, events_of(ring), head - 1);

	if (run->first_tsc <= out->short_from_tsc)
		return;
	out->short_from_tsc = run->first_tsc;
	out->short_until_tsc = last != LATE && last > run->first_tsc ? last : run->first_tsc;
	out->short_events = head - run->first;
	out->short_tid = ring->tid;
}

static int copy_ring(struct tp_rings *rings, uint32_t i, const struct tp_span *span,
		     struct tp_copied *out)
{
	const struct tp_ring *ring = ring_at(rings, i);
	const struct tp_event *events = events_of(ring);
	uint64_t head = __atomic_load_n(&ring->head, __ATOMIC_ACQUIRE);
	uint64_t to = span->to_tsc < LATE - 1 ? span->to_tsc + 1 : LATE;
	uint64_t given, low, start, end;
	struct run run;
	int error;

	if (head - rings->tails[i] <= capacity_of(rings))
		rings->tails[i] = tp_skip_stale(rings, i, rings->tails[i], head);
	given = span->again ? rings->tails[i] : larger(rings->tails[i], span->given[i]);
	low = larger(given, oldest_at(rings, head));
	if (low >= head)
		return 0;
	start = first_from(rings, events, low, head, span->from_tsc);
	end = first_from(rings, events, start, head, to);
	error = copy_events(rings, i, span, start, end, &run, out);
	if (run.first < end && low > given && (start == low || run.first > start))
		note_short(rings, i, &run, head, out);
	if (!span->again && end > span->given[i])
		span->given[i] = end;
	return error;
}

static int is_wanted(const struct tp_rings *rings, uint32_t i, const struct tp_span *span)
{
	uint32_t tid = ring_at(rings, i)->tid;

	for (uint32_t k = 0; span->tids && k < span->tid_count; k++)
		if (span->tids[k] == tid)
			return 1;
	return !span->tids;
}

/** Write what the rings hold of a span as blocks of events. 0, or -errno of the write. */
int tp_copy_rings(struct tp_rings *rings, const struct tp_span *span, struct tp_copied *out)
{
	int error = 0;

	memset(out, 0, sizeof(*out));
	for (uint32_t i = 0; !error && i < rings->ring_count; i++)
		if (is_wanted(rings, i, span))
			error = copy_ring(rings, i, span, out);
	return error;
}

/* Have the pages of what was written mapped here: a fault on each would slow the copy down. */
static void touch(const struct tp_rings *rings, uint32_t i, uint64_t head, uint64_t *touched)
{
	const volatile uint8_t *bytes = (const uint8_t *)events_of(ring_at(rings, i));
	uint64_t written = head < capacity_of(rings) ? head * sizeof(struct tp_event) :
						       rings->ring_bytes;

	for (; *touched < written; *touched += TP_PAGE_BYTES)
		(void)bytes[*touched];
}

/**
 * For rings that nobody drains, now and then: those whose threads have been gone for @dead_ns may
 * serve others. @touched: ring_count entries, private. Returns how many events were ever reserved.
 */
uint64_t tp_look_at_rings(struct tp_rings *rings, uint64_t dead_ns, uint64_t *touched)
{
	uint64_t events = 0;

	for (uint32_t i = 0; i < rings->ring_count; i++) {
		uint64_t head = __atomic_load_n(&ring_at(rings, i)->head, __ATOMIC_ACQUIRE);

		events += head;
		touch(rings, i, head, &touched[i]);
		if (tp_free_dead_ring(rings, i, dead_ns))
			rings->tails[i] = head;
	}
	return events;
}
