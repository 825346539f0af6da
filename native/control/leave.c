/* SPDX-License-Identifier: Apache-2.0 */
/**
 * @file
 * Leaving a target (pitfalls 4): stop every thread, make sure that none is in our code, on the way
 * into our handler, or will return to us; then give SIGTRAP back and unmap what is ours. The same
 * stop answers where threads are (tp_look_inside).
 */
#include <dirent.h>
#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ptrace.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <sys/wait.h>
#include <unistd.h>

#include "guard.h"
#include "held.h"
#include "textpoke.h"

#define CHUNK_BYTES 65536
#define STACK_LIMIT (64ull << 20)
#define SIGTRAP_BIT (1ull << (SIGTRAP - 1))

struct world {
	pid_t pid;
	struct tp_held *threads;
	size_t count;
	size_t room;
	uint64_t since_ns;
	bool hurried;
};

struct kernel_sigaction {
	uint64_t handler;
	uint64_t flags;
	uint64_t restorer;
	uint64_t mask;
};

static bool is_held(const struct world *world, pid_t tid)
{
	for (size_t i = 0; i < world->count; i++)
		if (world->threads[i].tid == tid)
			return true;
	return false;
}

static struct tp_held *add_thread(struct world *world, pid_t tid)
{
	struct tp_held *grown;

	if (world->count == world->room) {
		world->room = world->room ? 2 * world->room : 16;
		grown = realloc(world->threads, world->room * sizeof(*grown));
		if (!grown)
			return NULL;
		world->threads = grown;
	}
	world->threads[world->count] = (struct tp_held){ .pid = world->pid, .tid = tid };
	return &world->threads[world->count++];
}

static void release_world(struct world *world)
{
	for (size_t i = 0; i < world->count; i++)
		if (world->threads[i].stopped)
			tp_release(&world->threads[i]);
	tp_relax(world->hurried);
	free(world->threads);
	world->threads = NULL;
	world->count = world->room = 0;
}

/* The kernel forbids (EPERM) to seize a thread that has exited: a first thread that is a zombie while
 * others run on, or any thread for a moment. */
static bool has_left(pid_t pid, pid_t tid)
{
	char path[64], text[512];
	const char *state = NULL;
	FILE *file;

	snprintf(path, sizeof(path), "/proc/%d/task/%d/stat", pid, tid);
	file = fopen(path, "re");
	if (file && fgets(text, sizeof(text), file))
		state = strrchr(text, ')');
	if (file)
		fclose(file);
	return !state || state[2] == 'Z' || state[2] == 'X';
}

/* One pass over the task list; returns how many threads it stopped. */
static int stop_new_threads(struct world *world, DIR *tasks)
{
	struct dirent *entry;
	int stopped = 0;

	rewinddir(tasks);
	while ((entry = readdir(tasks))) {
		pid_t tid = atoi(entry->d_name);
		struct tp_held *held;
		int error;

		if (tid <= 0 || is_held(world, tid))
			continue;
		held = add_thread(world, tid);
		if (!held)
			return -ENOMEM;
		error = tp_stop_thread(held);
		if (!error)
			error = tp_save_thread(held);
		if (error == -EAGAIN || error == -ENOEXEC)
			error = 0; /* stopped all the same; not one to borrow */
		if (error == -EPERM && has_left(world->pid, tid))
			error = -ESRCH;
		if (error && error != -ESRCH)
			return error;
		stopped++;
	}
	return stopped;
}

static int stop_world(struct world *world)
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
	while (stopped > 0);
	closedir(tasks);
	return stopped;
}

static bool in_ranges(const uint64_t *ranges, uint64_t count, uint64_t value)
{
	for (uint64_t i = 0; i < count; i++)
		if (value >= ranges[2 * i] && value < ranges[2 * i + 1])
			return true;
	return false;
}

/* Index of the last element <= value, or -1. */
static int64_t floor_index(const uint64_t *sorted, uint64_t stride, uint64_t count, uint64_t value)
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

typedef bool word_fn(void *ctx, uint64_t word);

/* Every aligned word from @rsp to the end of its mapping. Not the red zone: what a thread will
 * return to stands above. */
static bool scan_stack(pid_t tid, uint64_t rsp, const uint64_t *stacks, uint64_t stack_count,
		       word_fn *visit, void *ctx)
{
	uint64_t chunk[CHUNK_BYTES / 8];
	uint64_t at = rsp & ~7ull, end;
	int64_t i = floor_index(stacks, 2, stack_count, rsp);

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
			if (visit(ctx, chunk[k]))
				return true;
		if (got < (ssize_t)want)
			break;
		at += want;
	}
	return false;
}

struct range_search {
	const struct tp_leave *in;
	uint64_t found;
};

static bool word_is_ours(void *ctx, uint64_t word)
{
	struct range_search *search = ctx;

	if (word == search->in->restorer ||
	    !in_ranges(search->in->ranges, search->in->code_count, word))
		return false;
	search->found = word;
	return true;
}

static enum tp_busy why_busy(const struct tp_leave *in, const struct tp_held *held, uint64_t *at)
{
	struct range_search search = { in, 0 };
	uint64_t rip = held->saved.rip;
	int64_t i = floor_index(in->sites, 1, in->site_count, rip - 1);

	*at = rip;
	if (in_ranges(in->ranges, in->range_count, rip))
		return TP_BUSY_RIP;
	if (tp_status_mask(held->pid, held->tid, "SigPnd:") & SIGTRAP_BIT)
		return TP_BUSY_PENDING;
	/* At site + 1 with a NOP or a finished int3 before it: only the pending trap tells, and a
	 * thread that is just there by itself moves on. Wait for it either way. */
	if (i >= 0 && in->sites[i] == rip - 1 && held->saved.orig_rax == (unsigned long long)-1)
		return TP_BUSY_SITE;
	if (scan_stack(held->tid, held->saved.rsp, in->stacks, in->stack_count, word_is_ours,
		       &search)) {
		*at = search.found;
		return TP_BUSY_STACK;
	}
	return TP_BUSY_NO;
}

static int find_busy(const struct tp_leave *in, const struct world *world, struct tp_left *out)
{
	for (size_t i = 0; i < world->count; i++) {
		if (!world->threads[i].stopped)
			continue;
		out->busy_why = why_busy(in, &world->threads[i], &out->busy_at);
		if (out->busy_why) {
			out->busy_tid = world->threads[i].tid;
			return -EAGAIN;
		}
	}
	return 0;
}

static int borrow(struct world *world, struct tp_held **held)
{
	for (size_t i = 0; i < world->count; i++)
		if (world->threads[i].stopped && world->threads[i].borrowable) {
			*held = &world->threads[i];
			return tp_block_signals(*held);
		}
	return -ESRCH;
}

/* Only if the kernel still calls our handler: the program may have taken SIGTRAP back itself. */
static int give_back_sigtrap(const struct tp_leave *in, struct tp_held *held, struct tp_left *out)
{
	const uint64_t get[6] = { SIGTRAP, 0, in->scratch, 8 };
	const uint64_t set[6] = { SIGTRAP, in->old_action, 0, 8 };
	struct kernel_sigaction now = { 0 };
	int64_t ret = tp_remote_syscall(held, in->syscall_at, SYS_rt_sigaction, get);

	if (ret < 0)
		return (int)ret;
	if (pread(in->mem_fd, &now, sizeof(now), (off_t)in->scratch) != sizeof(now))
		return -EFAULT;
	if (now.handler != in->handler)
		return 0;
	ret = tp_remote_syscall(held, in->syscall_at, SYS_rt_sigaction, set);
	out->handler_restored = ret == 0;
	return (int)ret;
}

static int unmap_ranges(const struct tp_leave *in, struct tp_held *held, struct tp_left *out)
{
	for (uint64_t i = 0; i < in->range_count; i++) {
		const uint64_t args[6] = { in->ranges[2 * i],
					   in->ranges[2 * i + 1] - in->ranges[2 * i] };
		int64_t ret = tp_remote_syscall(held, in->syscall_at, SYS_munmap, args);

		if (ret < 0)
			return (int)ret;
		out->unmapped++;
	}
	return 0;
}

static int leave(const void *request, void *result)
{
	const struct tp_leave *in = request;
	struct tp_left *out = result;
	struct world world = { .pid = in->pid };
	struct tp_held *held = NULL;
	int error;

	memset(out, 0, sizeof(*out));
	error = stop_world(&world);
	out->threads = world.count;
	if (!error)
		error = find_busy(in, &world, out);
	if (!error && in->unmap)
		error = borrow(&world, &held);
	if (!error && in->unmap)
		error = give_back_sigtrap(in, held, out);
	if (!error && in->unmap)
		error = unmap_ranges(in, held, out);
	release_world(&world);
	out->hold_ns = tp_now_ns() - world.since_ns;
	return error;
}

/**
 * Stop every thread; if nobody is inside anything of ours, give SIGTRAP back and unmap.
 * Returns 0, -EAGAIN (out->busy_* says who), or -errno. Every thread runs again afterwards, even if
 * the tool is killed meanwhile.
 */
int tp_leave(const struct tp_leave *in, struct tp_left *out)
{
	return tp_guarded(leave, in, out);
}

struct interior_search {
	const uint64_t *addresses;
	uint64_t count;
	uint64_t bytes;
	uint8_t *inside;
};

static bool mark_interior(void *ctx, uint64_t word)
{
	struct interior_search *search = ctx;
	int64_t i = floor_index(search->addresses, 1, search->count, word);

	if (i >= 0 && word != search->addresses[i] && word < search->addresses[i] + search->bytes)
		search->inside[i] = 1;
	return false;
}

/**
 * Which of the sites (sorted addresses of @site_bytes bytes) hold a thread in their interior, by
 * any thread's rip or by a word on its stack (a signal frame)? Sets @inside. Threads run again.
 */
int tp_look_inside(pid_t pid, const uint64_t *addresses, uint64_t count, const uint64_t *stacks,
		   uint64_t stack_count, uint64_t site_bytes, uint8_t *inside)
{
	struct interior_search search = { addresses, count, site_bytes, inside };
	struct world world = { .pid = pid };
	int error = stop_world(&world);

	for (size_t i = 0; !error && i < world.count; i++) {
		if (!world.threads[i].stopped)
			continue;
		mark_interior(&search, world.threads[i].saved.rip);
		scan_stack(world.threads[i].tid, world.threads[i].saved.rsp, stacks, stack_count,
			   mark_interior, &search);
	}
	release_world(&world);
	return error;
}
