/* SPDX-License-Identifier: Apache-2.0 */
/** @file Stop all threads of a target, look where they are, let them go. */
#include "world.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ptrace.h>
#include <sys/uio.h>

#include "textpoke.h"

#define CHUNK_WORDS 8192
#define BEFORE 1 /* words that a look at one needs besides */
#define BEHIND 2
#define MOST_NS 5000000000ull
#define STACK_LIMIT (64ull << 20)
#define MOST_STACKS 32
#define HIGHEST_STACK 0x7ffffffff000ull

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
	for (size_t i = 0; i < world->count; i++) /* last: it may take a while */
		tp_release_late(&world->threads[i]);
	tp_relax(world->hurried);
	free(world->threads);
	world->threads = NULL;
	world->count = world->room = 0;
}

/* Returns 0, or an error; a thread that has ended is none. */
static int ask_new_threads(struct tp_world *world, DIR *tasks)
{
	int error = 0;
	pid_t tid = 0;

	rewinddir(tasks);
	while (!error && (tid = tp_next_thread(tasks)) > 0) {
		struct tp_held *held;

		if (tid == world->spared || is_held(world, tid))
			continue;
		held = add_thread(world, tid);
		error = held ? tp_ask_to_stop(held) : -ENOMEM;
		if (error == -ESRCH)
			error = 0;
	}
	return error ? error : tid;
}

static int await(struct tp_held *held)
{
	int error = tp_await_stop(held);

	if (!error)
		error = tp_save_thread(held);
	/* Stopped all the same; not one to borrow. Or it has ended. */
	return error == -EAGAIN || error == -ENOEXEC || error == -ESRCH ? 0 : error;
}

/*
 * One pass over the task list; returns how many threads were new. All are asked before the first is
 * waited for: they stop at the same time, and not one after a wake-up of the other. Who was asked is
 * waited for whatever happens to the others, so that it can be let go.
 */
static int stop_new_threads(struct tp_world *world, DIR *tasks)
{
	size_t first = world->count;
	int error = ask_new_threads(world, tasks);

	for (size_t i = first; i < world->count; i++) {
		int failed;

		if (!world->threads[i].asked)
			continue;
		if (error) /* it is over: many parents in vfork must not make it last */
			world->threads[i].patience_ms = 1;
		failed = await(&world->threads[i]);
		error = error ? error : failed;
	}
	return error ? error : (int)(world->count - first);
}

/** Stop every thread of world->pid but world->spared; those that are born meanwhile too. */
int tp_stop_world(struct tp_world *world)
{
	DIR *tasks;
	int stopped;

	world->hurried = tp_hurry();
	world->since_ns = tp_now_ns();
	tasks = tp_open_tasks(world->pid);
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

/*
 * A signal frame (rt_sigframe) as seen from its saved rip: the restorer stands 176 bytes before it,
 * the saved rsp 8 bytes before; flags and selectors follow. The kernel wrote these two, so their
 * values tell a frame from data.
 */
#define RESTORER_TO_RIP 176
#define USER_CS_64 0x33
#define USER_CS_64_XEN 0xe033 /* of a paravirtual guest */
#define EFLAGS_LIMIT (1u << 22)
#define EFLAGS_ALWAYS 2u

static bool is_saved_rip(const uint64_t *word)
{
	uint16_t cs = (uint16_t)word[2];

	return (cs == USER_CS_64 || cs == USER_CS_64_XEN) && word[1] < EFLAGS_LIMIT &&
	       word[1] & EFLAGS_ALWAYS;
}

/* Returns how many could be read. */
static size_t read_words(pid_t tid, uint64_t at, uint64_t *words, size_t count)
{
	struct iovec local = { words, count * sizeof(*words) };
	struct iovec remote = { (void *)at, count * sizeof(*words) };
	ssize_t got = process_vm_readv(tid, &local, 1, &remote, 1, 0);

	return got < 0 ? 0 : (size_t)got / sizeof(*words);
}

/** Is the word at @at of a stopped thread's stack the rip of a signal frame? Whose, by @restorer. */
bool tp_is_saved_rip(pid_t tid, uint64_t at, uint64_t *restorer)
{
	uint64_t words[3];

	return read_words(tid, at, words, 3) == 3 && is_saved_rip(words) &&
	       read_words(tid, at - RESTORER_TO_RIP, restorer, 1) == 1;
}

/* Where scanning goes on: a frame on an alternate stack tells where its thread was before. */
struct stacks {
	const struct tp_held *held;
	const struct tp_stack_scan *scan;
	uint64_t ranges[MOST_STACKS][2]; /* scanned, or to be */
	size_t begun;
	size_t known;
};

/* To the end of the mapping that holds @rsp, and of those that touch it. The list is older than the stop:
 * a stack that has grown since, or was made, is scanned as far as it can be read. */
static uint64_t end_of_memory(const struct stacks *stacks, uint64_t rsp)
{
	const uint64_t *pairs = stacks->scan->pairs;
	int64_t i = tp_floor_index(pairs, 2, stacks->scan->count, rsp);
	uint64_t end;

	if (i < 0 || rsp >= pairs[2 * i + 1])
		return rsp + STACK_LIMIT;
	end = pairs[2 * i + 1];
	while ((uint64_t)++i < stacks->scan->count && pairs[2 * i] == end)
		end = pairs[2 * i + 1];
	return end - rsp < STACK_LIMIT ? end : rsp + STACK_LIMIT;
}

/*
 * Not past the thread's control block, where its fs base points: libcs put it at the upper end of
 * the stack that they make, and no other stack holds it. What follows it in memory is other threads'.
 */
static uint64_t end_of_stack(const struct stacks *stacks, uint64_t rsp)
{
	uint64_t end = end_of_memory(stacks, rsp), block = stacks->held->saved.fs_base;

	return block > rsp && block < end && end - block > TP_PAGE_BYTES ? block + TP_PAGE_BYTES :
									   end;
}

static void add_stack(struct stacks *stacks, uint64_t rsp)
{
	if (rsp > HIGHEST_STACK || stacks->known == MOST_STACKS)
		return;
	for (size_t i = 0; i < stacks->known; i++)
		if (stacks->ranges[i][0] <= rsp && rsp < stacks->ranges[i][1])
			return;
	stacks->ranges[stacks->known][0] = rsp;
	stacks->ranges[stacks->known++][1] = end_of_stack(stacks, rsp);
}

/* @words are at @at, with one before them and two behind. True: the search is over. */
static bool scan_words(struct stacks *stacks, uint64_t at, const uint64_t *words, size_t count)
{
	const struct tp_stack_scan *scan = stacks->scan;
	uint64_t span = scan->high - scan->low;

	for (size_t i = 0; i < count; i++) {
		if (is_saved_rip(words + i))
			add_stack(stacks, words[(ptrdiff_t)i - 1]);
		if (words[i] - scan->low <= span &&
		    scan->visit(scan->ctx, at + i * sizeof(*words), words[i]))
			return true;
	}
	return false;
}

static bool scan_range(struct stacks *stacks, const uint64_t range[2])
{
	uint64_t words[BEFORE + CHUNK_WORDS + 2 * BEHIND];
	uint64_t at = range[0] & ~7ull, end = range[1];
	bool found = false;
	size_t count;

	words[0] = 0;
	for (; at < end; at += count * sizeof(*words)) {
		size_t left = (end - at) / sizeof(*words);
		size_t want = left < CHUNK_WORDS + BEHIND ? left : CHUNK_WORDS + BEHIND;
		size_t got = read_words(stacks->held->tid, at, words + BEFORE, want);

		found = found || got;
		if (!found) { /* rsp may be below what its stack has grown to so far */
			count = (TP_PAGE_BYTES - at % TP_PAGE_BYTES) / sizeof(*words);
			continue;
		}
		count = got < want || got < CHUNK_WORDS ? got : CHUNK_WORDS;
		memset(words + BEFORE + got, 0, sizeof(words) - (BEFORE + got) * sizeof(*words));
		if (scan_words(stacks, at, words + BEFORE, count))
			return true;
		if (got < want)
			break;
		words[0] = words[count];
	}
	return false;
}

/** Every aligned word from @rsp to the end of its mapping, and of the stacks that it was on before
 * a signal took it to this one. Not the red zone: what a thread will return to stands above. */
bool tp_scan_stack(const struct tp_held *held, uint64_t rsp, const struct tp_stack_scan *scan)
{
	struct stacks stacks = { .held = held, .scan = scan };

	add_stack(&stacks, rsp);
	while (stacks.begun < stacks.known)
		if (scan_range(&stacks, stacks.ranges[stacks.begun++]))
			return true;
	return false;
}
