/* SPDX-License-Identifier: Apache-2.0 */
/** @file Stop all threads of a target, look where they are, let them go. */
#include "world.h"

#include <dirent.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ptrace.h>
#include <sys/uio.h>

#include "textpoke.h"

#define CHUNK_BYTES 65536
#define MOST_NS 5000000000ull
#define STACK_LIMIT (64ull << 20)

static bool is_held(const struct tp_world *world, pid_t tid)
{
	for (size_t i = 0; i < world->count; i++)
		if (world->threads[i].tid == tid)
			return true;
	return false;
}

static struct tp_held *add_thread(struct tp_world *world, pid_t tid)
{
	struct tp_held *grown;

	if (world->count == world->room) {
		world->room = world->room ? 2 * world->room : 16;
		grown = realloc(world->threads, world->room * sizeof(*grown));
		if (!grown)
			return NULL;
		world->threads = grown;
	}
	world->threads[world->count] = (struct tp_held){ .pid = world->pid,
							 .tid = tid,
							 .patience_ms = world->patience_ms };
	return &world->threads[world->count++];
}

/** Let every thread go on as it was. */
void tp_release_world(struct tp_world *world)
{
	for (size_t i = 0; i < world->count; i++)
		if (world->threads[i].stopped)
			tp_release(&world->threads[i]);
	tp_relax(world->hurried);
	free(world->threads);
	world->threads = NULL;
	world->count = world->room = 0;
}

/* One pass over the task list; returns how many threads it stopped. */
static int stop_new_threads(struct tp_world *world, DIR *tasks)
{
	struct dirent *entry;
	int stopped = 0;

	rewinddir(tasks);
	while ((entry = readdir(tasks))) {
		pid_t tid = atoi(entry->d_name);
		struct tp_held *held;
		int error;

		if (tid <= 0 || tid == world->spared || is_held(world, tid))
			continue;
		held = add_thread(world, tid);
		if (!held)
			return -ENOMEM;
		error = tp_stop_thread(held);
		if (!error)
			error = tp_save_thread(held);
		if (error == -EAGAIN || error == -ENOEXEC)
			error = 0; /* stopped all the same; not one to borrow */
		if (error && error != -ESRCH)
			return error;
		stopped++;
	}
	return stopped;
}

/** Stop every thread of world->pid but world->spared; those that are born meanwhile too. */
int tp_stop_world(struct tp_world *world)
{
	char path[32];
	DIR *tasks;
	int stopped;

	world->hurried = tp_hurry();
	world->since_ns = tp_now_ns();
	snprintf(path, sizeof(path), "/proc/%d/task", world->pid);
	tasks = opendir(path);
	if (!tasks)
		return -errno;
	do
		stopped = stop_new_threads(world, tasks);
	while (stopped > 0 && tp_now_ns() - world->since_ns < MOST_NS);
	if (stopped > 0) /* it makes threads faster than we stop them */
		stopped = -ETIMEDOUT;
	closedir(tasks);
	return stopped;
}

/** Index of the last element <= @value of a sorted table, or -1. */
int64_t tp_floor_index(const uint64_t *sorted, uint64_t stride, uint64_t count, uint64_t value)
{
	uint64_t low = 0, high = count;

	while (low < high) {
		uint64_t middle = low + (high - low) / 2;

		if (sorted[middle * stride] <= value)
			low = middle + 1;
		else
			high = middle;
	}
	return (int64_t)low - 1;
}

/** Every aligned word from @rsp to the end of its mapping. Not the red zone: what a thread will
 * return to stands above. */
bool tp_scan_stack(pid_t tid, uint64_t rsp, const uint64_t *stacks, uint64_t stack_count,
		   tp_word_fn *visit, void *ctx)
{
	uint64_t chunk[CHUNK_BYTES / 8];
	uint64_t at = rsp & ~7ull, end;
	int64_t i = tp_floor_index(stacks, 2, stack_count, rsp);

	if (i < 0 || rsp >= stacks[2 * i + 1])
		return false;
	end = stacks[2 * i + 1];
	if (end - at > STACK_LIMIT)
		end = at + STACK_LIMIT;
	while (at < end) {
		size_t want = end - at < CHUNK_BYTES ? end - at : CHUNK_BYTES;
		struct iovec local = { chunk, want }, remote = { (void *)at, want };
		ssize_t got = process_vm_readv(tid, &local, 1, &remote, 1, 0);

		for (ssize_t k = 0; k < got / 8; k++)
			if (visit(ctx, at + 8 * (uint64_t)k, chunk[k]))
				return true;
		if (got < (ssize_t)want)
			break;
		at += want;
	}
	return false;
}
