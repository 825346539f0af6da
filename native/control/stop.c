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
#include "textpoke.h"
#include "world.h"

#define PATIENCE_MS 100 /* for one thread to stop; the others wait for it */

struct inside {
	const struct tp_stop *in;
	uint64_t found;
};

/* Index of the site that has @address in its interior, or -1. */
static int64_t interior_of(const struct tp_stop *in, uint64_t address)
{
	int64_t i = tp_floor_index(in->sites, 2, in->site_count, address);

	if (i < 0 || address == in->sites[2 * i] || address >= in->sites[2 * i + 1])
		return -1;
	return i;
}

static bool word_is_inside(void *ctx, uint64_t word)
{
	struct inside *inside = ctx;

	if (interior_of(inside->in, word) < 0)
		return false;
	inside->found = word;
	return true;
}

/* From inside a run of NOPs to its end: they have no effect. A saved rip on a stack (a signal
 * frame) cannot be told from data: then nothing may be written now. */
static int move_out(const struct tp_stop *in, struct tp_held *held, uint64_t *at)
{
	struct inside inside = { in, 0 };
	int64_t i = interior_of(in, held->saved.rip);

	if (i >= 0 && !in->all_nops) {
		*at = held->saved.rip;
		return -EAGAIN;
	}
	if (i >= 0)
		held->saved.rip = in->sites[2 * i + 1];
	if (!tp_scan_stack(held->tid, held->saved.rsp, in->stacks, in->stack_count, word_is_inside,
			   &inside))
		return 0;
	*at = inside.found;
	return -EAGAIN;
}

static int move_all_out(const struct tp_stop *in, struct tp_world *world, struct tp_stopped *out)
{
	int error = 0;

	for (size_t i = 0; in->site_count && !error && i < world->count; i++)
		if (world->threads[i].stopped) {
			error = move_out(in, &world->threads[i], &out->inside_at);
			out->inside_tid = world->threads[i].tid;
		}
	return error;
}

static int stop(const void *request, void *result)
{
	const struct tp_stop *in = request;
	struct tp_stopped *out = result;
	struct tp_world world = { .pid = in->pid,
				  .spared = in->agent_tid,
				  .patience_ms = PATIENCE_MS };
	int error;

	memset(out, 0, sizeof(*out));
	error = tp_stop_world(&world);
	out->threads = world.count;
	if (!error)
		error = move_all_out(in, &world, out);
	if (!error) {
		out->ran = 1;
		out->result = tp_command(in->wire, in->command, in->args, in->timeout_ms, in->pid,
					 in->agent_tid);
	}
	tp_release_world(&world);
	out->hold_ns = tp_now_ns() - world.since_ns;
	return error;
}

/**
 * Run one command of the agent while every other thread is held. Returns 0 (out->result is the
 * command's), -EAGAIN (a thread is inside a site), -ETIMEDOUT (a thread does not stop) or -errno; all
 * threads run again, even if the tool is killed meanwhile.
 */
int tp_stop_and_run(const struct tp_stop *in, struct tp_stopped *out)
{
	return tp_guarded(stop, in, out);
}
