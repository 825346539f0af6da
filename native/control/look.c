/* SPDX-License-Identifier: Apache-2.0 */
/**
 * @file
 * Is a thread in the middle of code that gives way to a JMP? In int3 mode every instruction there
 * holds an int3 by now, so one look at each thread is enough, one after the other: who is outside
 * stays outside. A register shows where a thread is; a signal frame on its stack, where it will be.
 */
#include "look.h"

#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "guard.h"

#define JMP_BYTES 5
#define PATIENCE_MS 100
#define SIGTRAP_BIT (1ull << (SIGTRAP - 1))

static unsigned int heads_of(const struct tp_poke *poke)
{
	return poke->flags & TP_POKE_BACK ? 0 : (poke->flags & TP_POKE_HEADS) >> 1;
}

static int by_address(const void *a, const void *b)
{
	const struct tp_window *x = a, *y = b;

	return x->addr < y->addr ? -1 : x->addr > y->addr;
}

static bool is_sorted(const struct tp_windows *windows)
{
	for (uint64_t i = 1; i < windows->count; i++)
		if (windows->windows[i - 1].addr > windows->windows[i].addr)
			return false;
	return true;
}

/** Sort out the sites of several instructions. Returns 0 or -ENOMEM. */
int tp_windows_init(struct tp_windows *windows, const struct tp_look *in)
{
	*windows = (struct tp_windows){ .in = in };
	if (!in || !in->count)
		return 0;
	windows->windows = malloc(in->count * sizeof(*windows->windows));
	if (!windows->windows)
		return -ENOMEM;
	memset(in->busy, 0, in->count);
	for (uint64_t i = 0; i < in->count; i++)
		if (heads_of(&in->pokes[i]))
			windows->windows[windows->count++] =
				(struct tp_window){ in->pokes[i].addr, &in->pokes[i], i };
	if (!is_sorted(windows))
		qsort(windows->windows, windows->count, sizeof(*windows->windows), by_address);
	return 0;
}

void tp_windows_deinit(struct tp_windows *windows)
{
	free(windows->windows);
	windows->windows = NULL;
	windows->count = 0;
}

/* The window that @address is 1 to 5 bytes into, or NULL. */
static const struct tp_window *window_of(const struct tp_windows *windows, uint64_t address)
{
	int64_t i;

	if (address <= windows->windows[0].addr ||
	    address > windows->windows[windows->count - 1].addr + JMP_BYTES)
		return NULL;
	i = tp_floor_index(&windows->windows[0].addr, sizeof(struct tp_window) / sizeof(uint64_t),
			   windows->count, address - 1);

	if (i < 0 || address - windows->windows[i].addr > JMP_BYTES)
		return NULL;
	return &windows->windows[i];
}

static bool is_head(const struct tp_window *window, uint64_t address)
{
	return heads_of(window->poke) >> (address - window->addr) & 1;
}

static void mark(struct tp_windows *windows, const struct tp_window *window)
{
	windows->busy += !windows->in->busy[window->index];
	windows->in->busy[window->index] = 1;
}

/*
 * A thread that has trapped has its rip behind the int3. At the first one it is outside: the handler
 * sends it to the stub, early or late. At a later one it must come to its handler before the tail
 * changes.
 */
static void mark_rip(struct tp_windows *windows, uint64_t rip, bool has_trapped)
{
	const struct tp_window *window = windows->count ? window_of(windows, rip) : NULL;

	if (window && is_head(window, has_trapped ? rip - 1 : rip))
		mark(windows, window);
}

struct stack {
	struct tp_windows *windows;
	pid_t tid;
};

static bool is_frame_of_ours(const struct stack *stack, uint64_t at)
{
	uint64_t restorer;

	return tp_is_saved_rip(stack->tid, at, &restorer) &&
	       restorer == stack->windows->in->restorer;
}

static bool mark_word(void *ctx, uint64_t at, uint64_t word)
{
	struct stack *stack = ctx;

	if (window_of(stack->windows, word))
		mark_rip(stack->windows, word, is_frame_of_ours(stack, at));
	return false;
}

/** Mark the windows that a word on the stack of a stopped thread points into. */
void tp_mark_stack(struct tp_windows *windows, const struct tp_held *held,
		   const struct tp_stacks *stacks)
{
	struct stack stack = { windows, held->tid };
	struct tp_stack_scan scan = { stacks->pairs, stacks->count, .visit = mark_word,
				      .ctx = &stack };

	if (!windows->count)
		return;
	scan.low = windows->windows[0].addr;
	scan.high = windows->windows[windows->count - 1].addr + JMP_BYTES;
	tp_scan_stack(held, held->saved.rsp, &scan);
}

/** Where a stopped thread with this rip may go on instead: in the copy. 0: it is outside. */
uint64_t tp_copy_at(const struct tp_windows *windows, uint64_t rip)
{
	const struct tp_window *window = windows->count ? window_of(windows, rip) : NULL;
	int32_t displacement;

	if (!window || !is_head(window, rip))
		return 0;
	memcpy(&displacement, window->poke->new_ + 1, sizeof(displacement));
	return window->addr + JMP_BYTES + (uint64_t)(int64_t)displacement +
	       window->poke->new_[11 + rip - window->addr];
}

struct looked {
	pid_t *tids;
	size_t count;
	size_t room;
};

static int note(struct looked *looked, pid_t tid)
{
	if (looked->count == looked->room) {
		pid_t *grown = realloc(looked->tids, 2 * (looked->room + 16) * sizeof(*grown));

		if (!grown)
			return -ENOMEM;
		looked->tids = grown;
		looked->room = 2 * (looked->room + 16);
	}
	looked->tids[looked->count++] = tid;
	return 1;
}

static bool is_noted(const struct looked *looked, pid_t tid)
{
	for (size_t i = 0; i < looked->count; i++)
		if (looked->tids[i] == tid)
			return true;
	return false;
}

/** Is a stopped thread about to take a SIGTRAP? Then its rip is the handler's business. */
bool tp_has_trapped(const struct tp_held *held)
{
	struct tp_thread thread;

	return !tp_read_status(held->pid, held->tid, &thread) && thread.pending & SIGTRAP_BIT;
}

static int look_at(struct tp_windows *windows, pid_t tid, const struct tp_stacks *stacks)
{
	struct tp_held held = { .pid = windows->in->pid, .tid = tid, .patience_ms = PATIENCE_MS };
	int error = tp_stop_thread(&held);

	if (!error)
		error = tp_save_thread(&held);
	if (error == -EAGAIN || error == -ENOEXEC)
		error = 0; /* stopped all the same; not one to borrow */
	if (!error) {
		mark_rip(windows, held.saved.rip,
			 window_of(windows, held.saved.rip) && tp_has_trapped(&held));
		tp_mark_stack(windows, &held, stacks);
	}
	if (held.stopped)
		tp_release(&held);
	return error == -ESRCH ? 0 : error;
}

/* Who is born after the int3s is born outside; the list may lack one while others come and go. */
static int look_at_new(struct tp_windows *windows, DIR *tasks, struct looked *looked,
		       const struct tp_stacks *stacks)
{
	int seen = 0, error = 0;
	pid_t tid = 0;

	rewinddir(tasks);
	while (!error && (tid = tp_next_thread(tasks)) > 0) {
		if (tid == windows->in->agent_tid || is_noted(looked, tid))
			continue;
		seen = note(looked, tid);
		error = seen < 0 ? seen : look_at(windows, tid, stacks);
	}
	return error ? error : tid < 0 ? tid : seen;
}

static int look(const void *request, void *result)
{
	struct tp_windows *windows = result;
	struct looked looked = { 0 };
	struct tp_stacks stacks = { 0 };
	bool hurried = tp_hurry();
	DIR *tasks = tp_open_tasks(windows->in->pid);
	int seen;

	seen = tasks ? tp_read_stacks(windows->in->pid, &stacks) : -errno;
	if (!seen)
		do
			seen = look_at_new(windows, tasks, &looked, &stacks);
		while (seen > 0);
	tp_relax(hurried);
	if (tasks)
		closedir(tasks);
	free(looked.tids);
	tp_free_stacks(&stacks);
	return seen;
}

/** Stop each thread for a moment and mark the windows that it is inside of. */
int tp_look_at_threads(struct tp_windows *windows)
{
	return tp_guarded(look, NULL, windows);
}
