/* SPDX-License-Identifier: Apache-2.0 */
/**
 * @file
 * Stop mode: hold every thread of the target but the agent's, make sure that nobody is inside a
 * site, let the agent write, let all go. For programs in which nobody may meet an int3.
 *
 * A parent in vfork cannot be stopped before its child is gone, and that child shares the memory:
 * the time-out then tells the caller to come back.
 */
#include <errno.h>
#include <string.h>

#include "guard.h"
#include "look.h"
#include "textpoke.h"
#include "where.h"
#include "world.h"

#define PATIENCE_MS 100 /* for one thread to stop; the others wait for it */

struct inside {
	const struct tp_stop *in;
	uint64_t found;
};

struct request {
	const struct tp_stop *in;
	struct tp_windows *windows;
	const struct tp_stacks *stacks;
};

/* Index of the site that has @address in its interior, or -1. */
static int64_t interior_of(const struct tp_stop *in, uint64_t address)
{
	int64_t i = tp_floor_index(in->sites, 2, in->site_count, address);

	if (i < 0 || address == in->sites[2 * i] || address >= in->sites[2 * i + 1])
		return -1;
	return i;
}

static bool word_is_inside(void *ctx, uint64_t at, uint64_t word)
{
	struct inside *inside = ctx;

	if (interior_of(inside->in, word) < 0)
		return false;
	inside->found = word;
	return true;
}

/* Does a word on its stack point into a site? */
static bool is_on_stack(const struct tp_stacks *stacks, const struct tp_held *held,
			struct inside *inside)
{
	const struct tp_stop *in = inside->in;
	struct tp_stack_scan scan = { .pairs = stacks->pairs,
				      .count = stacks->count,
				      .low = in->sites[0],
				      .high = in->sites[2 * in->site_count - 1],
				      .visit = word_is_inside,
				      .ctx = inside };

	return tp_scan_stack(held, held->saved.rsp, &scan);
}

/* From inside a run of NOPs to its end: they have no effect. From the middle of code that gives way
 * to a JMP to its copy. Who has trapped at an int3 of the batch before stays: the handler knows the
 * trap by its rip. A saved rip on a stack (a signal frame) cannot be told from data: then
 * nothing may be written now. */
static int move_out(const struct request *request, struct tp_held *held, uint64_t *at)
{
	const struct tp_stop *in = request->in;
	struct tp_windows *windows = request->windows;
	struct inside inside = { in, 0 };
	uint64_t copy = tp_copy_at(windows, held->saved.rip);
	int64_t i = copy ? -1 : interior_of(in, held->saved.rip);

	if ((copy || i >= 0) && tp_has_trapped(held)) {
		*at = held->saved.rip;
		return -EAGAIN;
	}
	tp_mark_stack(windows, held, request->stacks);
	if (copy)
		held->saved.rip = copy;
	if (i >= 0 && !in->all_nops) {
		*at = held->saved.rip;
		return -EAGAIN;
	}
	if (i >= 0)
		held->saved.rip = in->sites[2 * i + 1];
	if (!in->site_count || !is_on_stack(request->stacks, held, &inside))
		return 0;
	*at = inside.found;
	return -EAGAIN;
}

static int move_all_out(const struct request *request, struct tp_world *world,
			struct tp_stopped *out)
{
	const struct tp_stop *in = request->in;
	const struct tp_windows *windows = request->windows;
	bool any = in->site_count || windows->count;
	int error = 0;

	for (size_t i = 0; any && !error && i < world->count; i++)
		if (world->threads[i].stopped) {
			error = move_out(request, &world->threads[i], &out->inside_at);
			out->inside_tid = world->threads[i].tid;
		}
	out->busy = windows->busy;
	return error ? error : windows->busy && !in->leave_busy ? -EAGAIN : 0;
}

/* What is busy becomes a record that is there already: the agent heeds that before it writes. */
static void mark_left_out(const struct tp_stop *in, const struct tp_windows *windows)
{
	struct tp_poke *request = tp_request_of(in->wire);

	for (uint64_t i = 0; windows->busy && i < in->look.count; i++)
		if (in->look.busy[i])
			request[i].flags |= TP_POKE_NO_OLD | TP_POKE_NO_NEW;
}

/* The command itself, or the rest of it where the first half was done before the hold. */
static int run_held(const struct tp_stop *in, uint64_t busy)
{
	const uint64_t rest[4] = { busy };

	return tp_command(in->wire, in->prepare ? TP_CMD_WRITE : in->command,
			  in->prepare ? rest : in->args, in->timeout_ms, in->pid, in->agent_tid);
}

static int stop(const void *argument, void *result)
{
	const struct request *request = argument;
	const struct tp_stop *in = request->in;
	struct tp_stopped *out = result;
	struct tp_world world = { .pid = in->pid,
				  .spared = in->agent_tid,
				  .patience_ms = PATIENCE_MS };
	const struct tp_ranges ranges = { in->ranges, in->range_count };
	int error = tp_stop_world(&world);

	if (!error && tp_has_ended(in->pid, in->agent_tid))
		error = -ESRCH; /* these threads are another program's: not to be moved */
	out->threads = world.count;
	if (!error)
		error = move_all_out(request, &world, out);
	if (!error) {
		mark_left_out(in, request->windows);
		out->result = run_held(in, request->windows->busy);
		out->in_ranges = out->result || !in->range_count ||
				 tp_any_in_ranges(&world, in->agent_tid, &ranges, request->stacks);
	}
	tp_release_world(&world);
	out->hold_ns = tp_now_ns() - world.since_ns;
	return error;
}

/* What needs no hold: copying, checking and verifying a batch takes as long as writing it. */
static int prepare(const struct tp_stop *in)
{
	const uint64_t args[4] = { in->args[0], in->args[1] | TP_BATCH_PREPARE, in->args[2],
				   in->args[3] };

	return tp_command(in->wire, in->command, args, in->timeout_ms, in->pid, in->agent_tid);
}

/* Everything that a hold needs, so that it is short. */
static int hold(struct request *request, struct tp_stopped *out)
{
	const struct tp_stop *in = request->in;
	struct tp_stacks stacks = { 0 };
	int error = 0;

	request->stacks = &stacks;
	if (in->site_count || request->windows->count || in->range_count)
		error = tp_read_stacks(in->pid, &stacks);
	if (!error)
		error = tp_guarded(stop, request, out);
	tp_free_stacks(&stacks);
	return error;
}

/**
 * Run one command of the agent while every other thread is held, or its second half (in->prepare). Returns 0 (out->result is the
 * command's), -EAGAIN (a thread is inside a site), -ETIMEDOUT (a thread does not stop) or -errno; all
 * threads run again, even if the tool is killed meanwhile.
 */
int tp_stop_and_run(const struct tp_stop *in, struct tp_stopped *out)
{
	struct tp_windows windows;
	struct request request = { .in = in, .windows = &windows };
	int error = tp_windows_init(&windows, in->look.count ? &in->look : NULL);

	memset(out, 0, sizeof(*out));
	out->in_ranges = 1;
	if (!error && in->prepare)
		out->result = prepare(in);
	if (!error && out->result >= 0)
		error = hold(&request, out);
	tp_windows_deinit(&windows);
	return error;
}
