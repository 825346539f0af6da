/* SPDX-License-Identifier: Apache-2.0 */
/**
 * @file
 * Calls with their arguments and results. One ENTRY or EXIT, its data behind it, in one reservation.
 * Runs on the program's threads, perhaps in a signal handler that interrupts the same code.
 */
#include "agent.h"

#define COUNTERS 512u
#define COUNTERS_AT (TP_PAGE_BYTES - COUNTERS * sizeof(uint32_t))

struct table {
	uint64_t bytes; /* of the mapping */
	struct table *older;
	struct tp_capture_head head;
};

static struct table *tables; /* all of them, the newest first */

static const struct tp_capture_site *sites_of(const struct table *table)
{
	return (const struct tp_capture_site *)(table + 1);
}

static const struct tp_capture_op *ops_of(const struct table *table)
{
	return (const struct tp_capture_op *)(sites_of(table) + table->head.sites);
}

static int is_sane(const struct table *table, uint64_t bytes)
{
	const struct tp_capture_head *head = &table->head;

	if (head->sites > bytes || head->ops > bytes ||
	    sizeof(*head) + head->sites * sizeof(struct tp_capture_site) +
			    head->ops * sizeof(struct tp_capture_op) !=
		    bytes)
		return 0;
	for (uint64_t i = 0; i < head->sites; i++) {
		const struct tp_capture_site *site = &sites_of(table)[i];

		if (site->entry_count > TP_CAPTURE_MOST_OPS ||
		    site->exit_count > TP_CAPTURE_MOST_OPS ||
		    (uint64_t)site->entry + site->entry_count > head->ops ||
		    (uint64_t)site->exit + site->exit_count > head->ops)
			return 0;
	}
	return 1;
}

static int are_equal(const void *one, const void *other, uint64_t bytes)
{
	const uint8_t *a = one, *b = other;

	for (uint64_t i = 0; i < bytes; i++)
		if (a[i] != b[i])
			return 0;
	return 1;
}

/**
 * TP_CMD_CAPTURE. An older table stays: threads may be reading it. So who switches back and forth
 * gets the one that is there.
 */
int tpa_set_captures(const void *request, const uint64_t args[4])
{
	uint64_t bytes = args[0], size = sizeof(struct table) + bytes;
	struct table *table = tables;
	int error;

	if (args[1] >= tpa.set_count || bytes < sizeof(struct tp_capture_head) ||
	    bytes > tpa_image.request_bytes)
		return -22; /* EINVAL */
	while (table && (table->bytes != size || !are_equal(&table->head, request, bytes)))
		table = table->older;
	if (table) {
		__atomic_store_n(&tpa.sets[args[1]].captures, table, __ATOMIC_RELEASE);
		return 0;
	}
	table = tpa_map_private(size);
	if (!table)
		return -12; /* ENOMEM */
	table->bytes = size;
	tpa_copy(&table->head, request, bytes);
	error = is_sane(table, bytes) ? tpa_note_region((uint64_t)table, size) : -22;
	if (error) {
		tpa_unmap(table, size);
		return error;
	}
	table->older = tables;
	tables = table;
	__atomic_store_n(&tpa.sets[args[1]].captures, table, __ATOMIC_RELEASE);
	return 0;
}

static const struct tp_capture_site *find_site(const struct table *table, uint64_t address)
{
	uint64_t low = 0, high = table ? table->head.sites : 0;

	while (low < high) {
		uint64_t middle = low + (high - low) / 2;

		if (sites_of(table)[middle].site < address)
			low = middle + 1;
		else
			high = middle;
	}
	if (!table || low == table->head.sites || sites_of(table)[low].site != address)
		return NULL;
	return &sites_of(table)[low];
}

static uint64_t fs_base_of_thread(void)
{
	uint64_t fs_base;

	__asm__ volatile("rdfsbase %0" : "=r"(fs_base));
	return fs_base;
}

static uint64_t ticks(void)
{
	uint32_t low, high;

	__asm__ volatile("rdtsc" : "=a"(low), "=d"(high));
	return (uint64_t)high << 32 | low;
}

static uint64_t lap_of(uint64_t index)
{
	return index >> 8 & 0xfff0;
}

/* @words: the data of the event. Its time is taken last, but it stands before them. */
static uint64_t write(struct tp_ring *ring, uint64_t word, const uint64_t *words, uint32_t count,
		      uint64_t now)
{
	struct tp_event *events = (struct tp_event *)((char *)ring + TP_PAGE_BYTES);
	uint64_t kind = (word & 15) == TP_EVENT_EXIT ? TP_DATA_OF_EXIT : 0;
	uint64_t at = 1 + (uint64_t)count;

	if (ring->head + at > ring->limit) {
		ring->dropped += at;
		return now ? now : ticks();
	}
	__asm__ volatile("xaddq %0, %1" : "+r"(at), "+m"(ring->head) : : "memory", "cc");
	for (uint32_t i = 0; i < count; i++) {
		uint64_t index = at + 1 + i;

		events[index & ring->mask] =
			(struct tp_event){ words[i], (kind | count << 8 | i) << 16 | lap_of(index) |
							     TP_EVENT_DATA };
	}
	now = now ? now : ticks();
	events[at & ring->mask] = (struct tp_event){ now, word | lap_of(at) };
	return now;
}

static uint32_t capture(const struct table *table, uint32_t first, uint32_t count,
			const struct tpa_regs *regs, uint64_t *words, uint32_t room)
{
	return tpa_capture(ops_of(table) + first, count, regs, !tpa.is_filtered, words, room);
}

static struct tpa_slot *slot_of_thread(struct tpa_set *set, uint64_t fs_base)
{
	struct tpa_slot *slots = *set->gate, *slot;

	if (!slots)
		return NULL;
	slot = &slots[(fs_base >> 12) % TPA_SLOT_COUNT];
	if (slot->fs_base == fs_base && slot->ring && slot->shadow &&
	    tpa_is_ring_of(slot->ring, fs_base, 0))
		return slot;
	return tpa_claim(fs_base, set);
}

/* Of a frame that is this code's alone. */
static void set_state(struct tp_call *frame, uint64_t word, enum tp_frame_state state)
{
	*(volatile uint64_t *)&frame->state = (word & ~0xffull) | state;
	__asm__ volatile("" : : : "memory");
}

/* As push_frame in probe.inc, in the same order. */
static struct tp_call *redirect(struct tp_shadow *shadow, struct tp_ring *ring, uint64_t site,
				uint64_t slot, const struct tp_probe_words *probe)
{
	struct tp_call *frame;

	if ((uint64_t)shadow <= 1) {
		ring->overruns++;
		return NULL;
	}
	if (!tpa_is_known_caller(*(const uint64_t *)slot)) {
		ring->overruns++;
		return NULL;
	}
	do {
		frame = (struct tp_call *)shadow->top;
		if ((uint64_t)frame >= shadow->limit)
			frame = tpa_shadow_sweep(shadow, slot);
		if (frame && (uint64_t)frame - shadow->base >= probe->depth)
			return NULL;
		if (!frame) {
			ring->overruns++;
			return NULL;
		}
		if (slot < shadow->low || frame[-1].slot <= slot)
			frame = tpa_shadow_check(shadow, slot, site, probe->exit);
		if (frame == TPA_NOT_OWN)
			ring->overruns++;
		if (!frame || frame == TPA_NOT_OWN)
			return NULL;
	} while (!tpa_move(&shadow->top, (uint64_t)frame, (uint64_t)(frame + 1)));
	frame->slot = slot;
	set_state(frame, tpa_word(frame) + (1ull << 32), TP_FRAME_PUSHED);
	frame->word = site << 16 | TP_EVENT_EXIT;
	frame->aux = (uint64_t)ring;
	frame->exit = probe->exit;
	frame->child = 0;
	frame->real = *(const uint64_t *)slot;
	__asm__ volatile("" : : : "memory");
	*(volatile uint64_t *)slot = tpa_trampoline(shadow, frame);
	set_state(frame, tpa_word(frame), TP_FRAME_LIVE);
	return frame;
}

/*
 * One of @sample calls of a function: the thread's counters stand behind the head of its ring, some
 * functions share one.
 */
static int is_due(struct tp_ring *ring, uint64_t site, uint64_t sample)
{
	uint32_t *counters = (uint32_t *)((char *)ring + COUNTERS_AT);
	uint32_t *counter = &counters[(uint32_t)(site * 0x9e3779b1u) >> 20 & (COUNTERS - 1)];

	return sample < 2 || (*counter)++ % sample == 0;
}

/** A call has come to @site. */
void tpa_rich_enter(const struct tpa_regs *regs, uint64_t site, const struct tp_probe_words *probe)
{
	struct tpa_set *set = (struct tpa_set *)probe->set;
	struct tpa_slot *slot = slot_of_thread(set, fs_base_of_thread());
	const struct table *table = __atomic_load_n(&set->captures, __ATOMIC_ACQUIRE);
	const struct tp_capture_site *what = find_site(table, site);
	uint64_t words[TP_CAPTURE_MOST_WORDS];
	struct tp_call *frame = NULL;
	uint32_t count = 0;
	uint64_t now;

	if (!slot || !is_due(slot->ring, site, probe->argument))
		return;
	if (what && !probe->threshold) /* before the return address goes: it may be captured */
		count = capture(table, what->entry, what->entry_count, regs, words,
				TP_CAPTURE_MOST_WORDS);
	if (probe->exit) {
		frame = redirect(slot->shadow, slot->ring, site, regs->slot, probe);
		if (!frame)
			return;
	}
	now = probe->threshold ? ticks() :
				 write(slot->ring, site << 16 | TP_EVENT_ENTRY, words, count, 0);
	if (frame)
		frame->tsc = now;
}

/** It returns. */
void tpa_rich_leave(const struct tpa_regs *regs, const struct tp_probe_words *probe,
		    struct tp_call *frame, struct tp_shadow *shadow)
{
	struct tpa_set *set = (struct tpa_set *)probe->set;
	struct tp_ring *ring = (struct tp_ring *)frame->aux;
	uint64_t word = frame->word, began = frame->tsc, now = ticks();
	uint64_t words[TP_CAPTURE_MOST_WORDS], fs_base = fs_base_of_thread();
	const struct table *table = __atomic_load_n(&set->captures, __ATOMIC_ACQUIRE);
	const struct tp_capture_site *what = find_site(table, word >> 16);
	uint32_t count = 0;

	set_state(frame, tpa_word(frame), TP_FRAME_FREE);
	*(volatile uint64_t *)regs->slot = frame->real; /* the frame's number stood there */
	if (shadow->fs_base != fs_base ||
	    !tpa_move(&shadow->top, (uint64_t)(frame + 1), (uint64_t)frame))
		ring = tpa_shadow_pop(frame, shadow, fs_base, set);
	if (!ring || !*set->gate || (probe->threshold && now - began < probe->threshold))
		return;
	if (probe->threshold)
		words[count++] = now - began;
	if (what)
		count += capture(table, what->exit, what->exit_count, regs, words + count,
				 TP_CAPTURE_MOST_WORDS - count);
	write(ring, word, words, count, now);
}
