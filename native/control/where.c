/* SPDX-License-Identifier: Apache-2.0 */
/** @file Where are the threads of a target? All are stopped for a look, and run again. */
#include <stdbool.h>

#include "guard.h"
#include "where.h"

struct interior_search {
	const uint64_t *addresses;
	uint64_t count;
	uint64_t bytes;
	uint8_t *inside;
};

static bool mark_interior(void *ctx, uint64_t at, uint64_t word)
{
	struct interior_search *search = ctx;
	int64_t i = tp_floor_index(search->addresses, 1, search->count, word);

	if (i >= 0 && word != search->addresses[i] && word < search->addresses[i] + search->bytes)
		search->inside[i] = 1;
	return false;
}

struct look {
	pid_t pid;
	const struct tp_stacks *stacks;
};

static int look_inside(const void *request, void *result)
{
	const struct look *in = request;
	struct interior_search *search = result;
	const struct tp_stack_scan scan = { .pairs = in->stacks->pairs,
					    .count = in->stacks->count,
					    .low = search->addresses[0],
					    .high = search->addresses[search->count - 1] +
						    search->bytes,
					    .visit = mark_interior,
					    .ctx = search };
	struct tp_world world = { .pid = in->pid };
	int error = tp_stop_world(&world);

	for (size_t i = 0; !error && i < world.count; i++) {
		if (!world.threads[i].stopped)
			continue;
		mark_interior(search, 0, world.threads[i].saved.rip);
		tp_scan_stack(&world.threads[i], world.threads[i].saved.rsp, &scan);
	}
	tp_release_world(&world);
	return error;
}

static int with_stacks(pid_t pid, int (*work)(const void *in, void *out), void *search)
{
	struct tp_stacks stacks;
	const struct look in = { pid, &stacks };
	int error = tp_read_stacks(pid, &stacks);

	if (!error)
		error = tp_guarded(work, &in, search);
	tp_free_stacks(&stacks);
	return error;
}

/**
 * Which of the sites (sorted addresses of @site_bytes bytes) hold a thread in their interior, by
 * any thread's rip or by a word on its stack (a signal frame)? Sets @inside. Threads run again.
 */
int tp_look_inside(pid_t pid, const uint64_t *addresses, uint64_t count, uint64_t site_bytes,
		   uint8_t *inside)
{
	struct interior_search search = { addresses, count, site_bytes, inside };

	return count ? with_stacks(pid, look_inside, &search) : 0;
}

struct range_search {
	const struct tp_ranges *ranges;
	pid_t tid; /* whose stack is scanned */
};

static bool is_in(const struct tp_ranges *ranges, uint64_t address)
{
	int64_t i = tp_floor_index(ranges->pairs, 2, ranges->count, address);

	return i >= 0 && address < ranges->pairs[2 * i + 1];
}

static bool is_frame_in(void *ctx, uint64_t at, uint64_t word)
{
	const struct range_search *search = ctx;
	uint64_t restorer;

	return is_in(search->ranges, word) && tp_is_saved_rip(search->tid, at, &restorer);
}

/** Is some thread but @spared in one of the ranges, by its rip or by that of a signal frame on its stack?
 * Return addresses are not looked for. */
bool tp_any_in_ranges(const struct tp_world *world, pid_t spared, const struct tp_ranges *ranges,
		      const struct tp_stacks *stacks)
{
	struct range_search search = { ranges, 0 };
	struct tp_stack_scan scan = {
		.pairs = stacks->pairs, .count = stacks->count, .visit = is_frame_in, .ctx = &search
	};

	if (!ranges->count)
		return false;
	scan.low = ranges->pairs[0];
	scan.high = ranges->pairs[2 * ranges->count - 1];
	for (size_t i = 0; i < world->count; i++) {
		const struct tp_held *thread = &world->threads[i];

		search.tid = thread->tid;
		if (thread->stopped && thread->tid != spared &&
		    (is_in(ranges, thread->saved.rip) ||
		     tp_scan_stack(thread, thread->saved.rsp, &scan)))
			return true;
	}
	return false;
}

struct found {
	struct tp_ranges ranges;
	pid_t agent_tid;
	bool any;
};

static int look_in_ranges(const void *request, void *result)
{
	const struct look *in = request;
	struct found *found = result;
	struct tp_world world = { .pid = in->pid };
	int error = tp_stop_world(&world);

	if (!error)
		found->any = tp_any_in_ranges(&world, found->agent_tid, &found->ranges, in->stacks);
	tp_release_world(&world);
	return error;
}

/** Is some thread in one of @count ranges (sorted pairs start, end), as tp_any_in_ranges()? 1, 0 or -errno. */
int tp_look_in_ranges(pid_t pid, pid_t agent_tid, const uint64_t *ranges, uint64_t count)
{
	struct found found = { { ranges, count }, agent_tid, false };
	int error = count ? with_stacks(pid, look_in_ranges, &found) : 0;

	return error ? error : found.any;
}
