/* SPDX-License-Identifier: Apache-2.0 */
/**
 * @file
 * Calls from the entries and exits of one thread after the other: a row for each call, sums for
 * each function, or both. The events come from a file: nothing in them is used as an address or
 * size unchecked, and what is kept besides the result is bounded.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <x86intrin.h>

#include "textpoke.h"

enum {
	ENTRY = 1,
	EXIT = 2,
	DATA = 3,
	FIRST_ROOM = 256,
	MOST_FRAMES = 1 << 20, /* open calls; more is a function whose exits are not recorded */
	MOST_LOOKS = 4096,     /* down the stack, for an address that no site has */
};

/* A call that has begun. */
struct frame {
	uint64_t ip;
	uint64_t start_ns;
	uint64_t children_ns; /* of finished calls below it */
	int64_t row;
	int32_t site;
};

/* A call that was recorded when it ended, because it took long; `next` is an older one. */
struct span {
	int64_t start_ns;
	uint64_t duration_ns;
	int64_t row;
	int64_t next;
};

/* An array that grows. */
struct spans {
	struct span *rows;
	uint64_t count;
	uint64_t room;
};

/* The entry or exit whose payload comes next. */
struct item {
	int64_t row;	     /* -1: an exit that is not a call yet */
	uint64_t end_tsc;    /* of an exit that makes a call by itself */
	uint64_t first_word; /* index in the words of the result */
	int32_t site;
	uint8_t want; /* words; 0: none is expected */
	uint8_t have;
	uint8_t is_exit;
};

struct tp_pairing {
	struct tp_pair_clock clock;
	const struct tp_shape *shapes; /* [site] */
	uint32_t site_count;
	int with_sums;
	struct frame *frames;
	uint64_t depth;
	uint64_t room;
	uint64_t forgotten; /* frames at the bottom that were given up */
	uint32_t *open;	    /* [site + 1]: calls on the stack */
	int64_t *outermost; /* [site + 1]: index in spans, the last long call not inside another */
	struct spans spans;
	struct spans roots; /* long calls that are not inside of another one so far */
	struct item item;
	struct tp_call_sum *sums; /* [site + 1] */
	int64_t rows;
	const uint64_t *breaks; /* ticks, sorted */
	uint64_t break_count;
	uint64_t next_break; /* of this thread */
	struct tp_pair_counts counts;
};

void tp_pairing_destroy(struct tp_pairing *pairing)
{
	if (!pairing)
		return;
	free(pairing->sums);
	free(pairing->frames);
	free(pairing->open);
	free(pairing->outermost);
	free(pairing->spans.rows);
	free(pairing->roots.rows);
	free(pairing);
}

/**
 * Begin. @shapes has a row for each of @site_count sites and must stay. With @with_sums, sums are
 * kept. NULL when there is no memory.
 */
struct tp_pairing *tp_pairing_create(const struct tp_pair_clock *clock,
				     const struct tp_shape *shapes, uint32_t site_count,
				     int with_sums)
{
	struct tp_pairing *pairing = calloc(1, sizeof(*pairing));
	uint64_t rows = (uint64_t)site_count + 1;

	if (!pairing)
		return NULL;
	pairing->clock = *clock;
	pairing->shapes = shapes;
	pairing->site_count = site_count;
	pairing->with_sums = with_sums;
	pairing->open = calloc(rows, sizeof(*pairing->open));
	pairing->outermost = calloc(rows, sizeof(*pairing->outermost));
	pairing->sums = calloc(with_sums ? rows : 1, sizeof(*pairing->sums));
	if (!pairing->open || !pairing->outermost || !pairing->sums) {
		tp_pairing_destroy(pairing);
		return NULL;
	}
	tp_pair_end_thread(pairing);
	return pairing;
}

/* What numpy makes of the same ticks: round to even, and the smallest number for what is too large.
 */
static uint64_t to_ns(const struct tp_pair_clock *clock, uint64_t tsc)
{
	int64_t ticks = (int64_t)(tsc - clock->start_tsc);

	if (!clock->is_known)
		return (uint64_t)ticks;
	return (uint64_t)_mm_cvtsd_si64(_mm_set_sd((double)ticks * clock->ns_per_tick));
}

static int add_span(struct spans *spans, struct span span)
{
	if (spans->count == spans->room) {
		uint64_t room = spans->room ? 2 * spans->room : FIRST_ROOM;
		struct span *rows = realloc(spans->rows, room * sizeof(*rows));

		if (!rows)
			return -ENOMEM;
		spans->rows = rows;
		spans->room = room;
	}
	spans->rows[spans->count++] = span;
	return 0;
}

/* The row of a new call. */
static int64_t add_row(struct tp_pairing *pairing, struct tp_calls *calls, int32_t site,
		       uint64_t start_ns, int64_t parent)
{
	int64_t row = pairing->rows++;

	if (!calls->site)
		return row;
	calls->site[row] = site;
	calls->start_ns[row] = (int64_t)start_ns;
	calls->end_ns[row] = -1;
	calls->self_ns[row] = 0;
	calls->depth[row] = (uint32_t)(pairing->forgotten + pairing->depth);
	calls->parent[row] = parent;
	calls->entry_data[row] = -1;
	calls->exit_data[row] = -1;
	return row;
}

static void end_row(struct tp_calls *calls, int64_t row, uint64_t end_ns, uint64_t self_ns)
{
	if (!calls->site)
		return;
	calls->end_ns[row] = end_ns == (uint64_t)-1 ? 0 : (int64_t)end_ns; /* -1: unfinished */
	calls->self_ns[row] = (int64_t)self_ns;
}

/* A duration as a number: the clocks of a damaged capture may run backwards. */
static int64_t not_negative(uint64_t duration_ns)
{
	return (int64_t)duration_ns < 0 ? 0 : (int64_t)duration_ns;
}

static void add_ended(struct tp_calls *calls, int32_t site, uint64_t duration_ns)
{
	if (!calls->ended_site)
		return;
	calls->ended_site[calls->ended_count] = site;
	calls->ended_ns[calls->ended_count++] = not_negative(duration_ns);
}

static void add_sum(struct tp_pairing *pairing, int32_t site, uint64_t duration_ns,
		    uint64_t self_ns, int is_outermost)
{
	struct tp_call_sum *sum = &pairing->sums[site + 1];
	int64_t ns = not_negative(duration_ns);

	if (!sum->calls)
		sum->min_ns = INT64_MAX;
	sum->calls++;
	sum->total_ns += is_outermost ? duration_ns : 0;
	sum->self_ns += self_ns;
	sum->sum += (double)ns;
	sum->squares += (double)ns * (double)ns;
	if (ns < sum->min_ns)
		sum->min_ns = ns;
	if (ns > sum->max_ns)
		sum->max_ns = ns;
}

/* Give up the innermost open call: its exit will not come. */
static void abandon(struct tp_pairing *pairing)
{
	struct frame *frame = &pairing->frames[--pairing->depth];

	pairing->open[frame->site + 1]--;
	pairing->counts.unfinished++;
	if (pairing->with_sums)
		pairing->sums[frame->site + 1].unfinished++;
	if (pairing->depth)
		frame[-1].children_ns += frame->children_ns;
}

/* Nobody will learn when these ended. */
static void abandon_all(struct tp_pairing *pairing)
{
	while (pairing->depth)
		abandon(pairing);
	pairing->forgotten = 0;
}

/**
 * No call reaches over these ticks: what is open at a thread's first event at or after one stays
 * unfinished. @breaks is sorted and must stay. What was recorded at its end alone is whole.
 */
void tp_pair_breaks(struct tp_pairing *pairing, const uint64_t *breaks, uint64_t count)
{
	pairing->breaks = breaks;
	pairing->break_count = count;
	pairing->next_break = 0;
}

static void pass_breaks(struct tp_pairing *pairing, uint64_t tsc)
{
	uint64_t before = pairing->next_break;

	while (pairing->next_break < pairing->break_count &&
	       pairing->breaks[pairing->next_break] <= tsc)
		pairing->next_break++;
	if (pairing->next_break != before)
		abandon_all(pairing);
}

/** The thread's events have ended, or other threads' follow: what is open stays unfinished. */
void tp_pair_end_thread(struct tp_pairing *pairing)
{
	abandon_all(pairing);
	pairing->next_break = 0;
	pairing->spans.count = pairing->roots.count = 0;
	memset(pairing->outermost, 0xff,
	       ((uint64_t)pairing->site_count + 1) * sizeof(*pairing->outermost));
	pairing->item.want = 0;
}

/* The stack is full of calls whose exits do not come: give up the older half. */
static void forget(struct tp_pairing *pairing)
{
	uint64_t half = pairing->depth / 2;

	for (uint64_t i = 0; i < half; i++) {
		pairing->open[pairing->frames[i].site + 1]--;
		pairing->counts.unfinished++;
		if (pairing->with_sums)
			pairing->sums[pairing->frames[i].site + 1].unfinished++;
	}
	pairing->forgotten += half;
	pairing->depth -= half;
	memmove(pairing->frames, pairing->frames + half, pairing->depth * sizeof(struct frame));
}

static int make_room(struct tp_pairing *pairing)
{
	uint64_t room = pairing->room ? 2 * pairing->room : FIRST_ROOM;
	struct frame *frames;

	if (pairing->room == MOST_FRAMES) {
		forget(pairing);
		return 0;
	}
	frames = realloc(pairing->frames, room * sizeof(*frames));
	if (!frames)
		return -ENOMEM;
	pairing->frames = frames;
	pairing->room = room;
	return 0;
}

static const struct tp_shape *shape_of(const struct tp_pairing *pairing, int32_t site)
{
	static const struct tp_shape none;

	return site < 0 ? &none : &pairing->shapes[site];
}

static void expect(struct tp_pairing *pairing, struct tp_calls *calls, int64_t row, int32_t site,
		   int is_exit)
{
	const struct tp_shape *shape = shape_of(pairing, site);

	pairing->item.row = row;
	pairing->item.site = site;
	pairing->item.first_word = calls->word_count;
	pairing->item.want = is_exit ? shape->exit_words : shape->entry_words;
	pairing->item.have = 0;
	pairing->item.is_exit = (uint8_t)is_exit;
}

/* What has come of a payload that does not go on is thrown away. */
static void give_up_item(struct tp_pairing *pairing, struct tp_calls *calls)
{
	if (pairing->item.want) {
		calls->word_count = pairing->item.first_word;
		pairing->counts.short_payloads++;
	}
	pairing->item.want = 0;
}

static int enter(struct tp_pairing *pairing, struct tp_calls *calls, const struct tp_event *event,
		 int32_t site)
{
	struct frame *frame;
	uint64_t now_ns = to_ns(&pairing->clock, event->tsc);

	if (pairing->depth == pairing->room && make_room(pairing))
		return -ENOMEM;
	frame = &pairing->frames[pairing->depth];
	frame->ip = event->word >> 16;
	frame->start_ns = now_ns;
	frame->children_ns = 0;
	frame->site = site;
	frame->row = add_row(pairing, calls, site, now_ns, pairing->depth ? frame[-1].row : -1);
	pairing->depth++;
	pairing->open[site + 1]++;
	expect(pairing, calls, frame->row, site, 0);
	return 0;
}

/* Index of the innermost open call of this address, -1 when there is none. */
static int64_t find_open(const struct tp_pairing *pairing, uint64_t ip, int32_t site)
{
	int64_t last = site < 0 ? (int64_t)pairing->depth - MOST_LOOKS : 0;

	if (!pairing->open[site + 1])
		return -1;
	for (int64_t i = (int64_t)pairing->depth - 1; i >= 0 && i >= last; i--)
		if (pairing->frames[i].ip == ip)
			return i;
	return -1;
}

static int leave(struct tp_pairing *pairing, struct tp_calls *calls, const struct tp_event *event,
		 int32_t site)
{
	int64_t index = find_open(pairing, event->word >> 16, site);
	uint64_t now_ns = to_ns(&pairing->clock, event->tsc), duration_ns, self_ns;
	struct frame *frame;

	if (index < 0) {
		pairing->counts.orphans++;
		return 0;
	}
	while (pairing->depth - 1 > (uint64_t)index)
		abandon(pairing);
	pairing->depth--;
	frame = &pairing->frames[index];
	duration_ns = now_ns - frame->start_ns;
	self_ns = duration_ns - frame->children_ns;
	if (index)
		frame[-1].children_ns += duration_ns;
	pairing->open[site + 1]--;
	pairing->counts.finished++;
	end_row(calls, frame->row, now_ns, self_ns);
	add_ended(calls, site, duration_ns);
	expect(pairing, calls, frame->row, site, 1);
	if (pairing->with_sums)
		add_sum(pairing, site, duration_ns, self_ns, !pairing->open[site + 1]);
	return 0;
}

/* Calls of the same function inside of this one were counted when they ended: take them back. */
static int note_outermost(struct tp_pairing *pairing, int32_t site, struct span span)
{
	int64_t *last = &pairing->outermost[site + 1];

	while (*last >= 0 && pairing->spans.rows[*last].start_ns >= span.start_ns) {
		if (pairing->with_sums)
			pairing->sums[site + 1].total_ns -= pairing->spans.rows[*last].duration_ns;
		*last = pairing->spans.rows[*last].next;
	}
	if (pairing->spans.count == MOST_FRAMES) { /* they have ended long ago */
		memset(pairing->outermost, 0xff,
		       ((uint64_t)pairing->site_count + 1) * sizeof(*pairing->outermost));
		pairing->spans.count = 0;
	}
	span.next = *last;
	*last = (int64_t)pairing->spans.count;
	return add_span(&pairing->spans, span);
}

/* A call that was recorded at its end alone. Those inside of it have come before. */
static int add_long_call(struct tp_pairing *pairing, struct tp_calls *calls, uint64_t ticks)
{
	struct item *item = &pairing->item;
	struct spans *roots = &pairing->roots;
	uint64_t start_ns = to_ns(&pairing->clock, item->end_tsc - ticks), children_ns = 0;
	uint64_t end_ns = to_ns(&pairing->clock, item->end_tsc);
	struct span span = { (int64_t)start_ns, end_ns - start_ns, pairing->rows, -1 };

	item->row = add_row(pairing, calls, item->site, start_ns, -1);
	while (roots->count && roots->rows[roots->count - 1].start_ns >= span.start_ns) {
		roots->count--;
		children_ns += roots->rows[roots->count].duration_ns;
		if (calls->site)
			calls->parent[roots->rows[roots->count].row] = item->row;
	}
	if (roots->count == MOST_FRAMES)
		roots->count = 0;
	pairing->counts.finished++;
	pairing->counts.long_calls++;
	end_row(calls, item->row, end_ns, span.duration_ns - children_ns);
	add_ended(calls, item->site, span.duration_ns);
	if (add_span(roots, span) || note_outermost(pairing, item->site, span))
		return -ENOMEM;
	if (pairing->with_sums)
		add_sum(pairing, item->site, span.duration_ns, span.duration_ns - children_ns, 1);
	return 0;
}

static int take_data(struct tp_pairing *pairing, struct tp_calls *calls,
		     const struct tp_event *event)
{
	struct item *item = &pairing->item;
	uint64_t head = event->word >> 16;

	if (!item->want || (head & 0xff) != item->have || (head >> 8 & 0xff) != item->want ||
	    (head >> 16 & 1) != item->is_exit) {
		pairing->counts.stray_data++;
		give_up_item(pairing, calls);
		return 0;
	}
	if (item->row < 0 && add_long_call(pairing, calls, event->tsc))
		return -ENOMEM;
	if (calls->words)
		calls->words[calls->word_count] = event->tsc;
	calls->word_count++;
	item->have++;
	if (item->have < item->want)
		return 0;
	item->want = 0;
	if (calls->site)
		(item->is_exit ? calls->exit_data : calls->entry_data)[item->row] =
			(int64_t)item->first_word;
	return 0;
}

static int take(struct tp_pairing *pairing, struct tp_calls *calls, const struct tp_event *event,
		int32_t site)
{
	uint32_t type = event->word & 0xf;

	if (type == DATA)
		return take_data(pairing, calls, event);
	give_up_item(pairing, calls);
	pass_breaks(pairing, event->tsc);
	if (type == ENTRY)
		return enter(pairing, calls, event, site);
	if (type != EXIT)
		return 0;
	if (!shape_of(pairing, site)->is_threshold)
		return leave(pairing, calls, event, site);
	expect(pairing, calls, -1, site, 1);
	pairing->item.end_tsc = event->tsc;
	return 0;
}

/**
 * Take the next events of a thread. @sites has the site of each, -1 for none. Where @calls has
 * columns they need room for all events, for what ends for these @count. Returns 0, -ENOMEM or
 * -ERANGE.
 */
int tp_pair(struct tp_pairing *pairing, const struct tp_event *events, const int32_t *sites,
	    uint64_t count, struct tp_calls *calls)
{
	int error = 0;

	if (calls->site && ((uint64_t)pairing->rows + count > calls->room ||
			    calls->word_count + count > calls->word_room))
		return -ERANGE;
	if (calls->ended_site && count > calls->ended_room)
		return -ERANGE;
	calls->ended_count = 0;
	for (uint64_t i = 0; !error && i < count; i++) {
		if (sites[i] >= (int64_t)pairing->site_count)
			return -ERANGE;
		error = take(pairing, calls, &events[i], sites[i] < 0 ? -1 : sites[i]);
	}
	calls->count = (uint64_t)pairing->rows;
	return error;
}

/** What was found so far. */
void tp_pair_counts(const struct tp_pairing *pairing, struct tp_pair_counts *counts)
{
	*counts = pairing->counts;
}

/** The sums, [site + 1]; row 0 is for addresses that no site has. NULL without sums. */
const struct tp_call_sum *tp_pair_sums(const struct tp_pairing *pairing)
{
	return pairing->with_sums ? pairing->sums : NULL;
}

/** Depths from parents, in rows that are sorted by start: a parent comes before its calls. */
int tp_call_depths(const int64_t *parent, uint32_t *depth, uint64_t count)
{
	for (uint64_t i = 0; i < count; i++) {
		if (parent[i] >= (int64_t)i)
			return -ERANGE;
		depth[i] = parent[i] < 0 ? 0 : depth[parent[i]] + 1;
	}
	return 0;
}
