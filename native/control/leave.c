/* SPDX-License-Identifier: Apache-2.0 */
/**
 * @file
 * Leaving a target (pitfalls 4): stop every thread, make sure that none is in our code, on the way
 * into our handler, or will return to us; then give SIGTRAP back and unmap what is ours.
 */
#include <errno.h>
#include <signal.h>
#include <string.h>
#include <sys/ptrace.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include "guard.h"
#include "jit.h"
#include "look.h"
#include "textpoke.h"
#include "world.h"

struct kernel_sigaction {
	uint64_t handler;
	uint64_t flags;
	uint64_t restorer;
	uint64_t mask;
};

static bool in_ranges(const uint64_t *ranges, uint64_t count, uint64_t value)
{
	for (uint64_t i = 0; i < count; i++)
		if (value >= ranges[2 * i] && value < ranges[2 * i + 1])
			return true;
	return false;
}

struct range_search {
	const struct tp_leave *in;
	pid_t tid;
	uint64_t found;
};

/* Does a CALL end before @address? Of a register or memory, of any length, or relative. */
static bool follows_call(int mem_fd, uint64_t address)
{
	uint8_t before[7];

	if (pread(mem_fd, before, sizeof(before), (off_t)(address - sizeof(before))) !=
	    sizeof(before))
		return true; /* nobody can say */
	for (size_t i = 0; i < sizeof(before) - 1; i++)
		if (before[i] == 0xff && (before[i + 1] & 0x38) == 0x10)
			return true;
	return before[2] == 0xe8;
}

/*
 * A thread comes back to our code by a return address or by a signal frame. All else that looks
 * like an address of ours is data: any number of a few millions near a program at low addresses,
 * what points to our buffers of text (CALLs stand in them, too),
 * dead pointers to what was mapped there before us, in the own process the tool's. A frame of our own
 * handler leads nowhere without the handler, whose rip says that it is there.
 */
static bool word_is_ours(void *ctx, uint64_t at, uint64_t word)
{
	struct range_search *search = ctx;
	const struct tp_leave *in = search->in;
	uint64_t restorer;

	if (!in_ranges(in->ranges, in->code_count, word))
		return false;
	if (word == in->restorer)
		return false; /* every dead frame of our handler leaves one */
	if (tp_is_saved_rip(search->tid, at, &restorer)) {
		if (restorer == in->restorer)
			return false;
	} else if (!follows_call(in->mem_fd, word)) {
		return false;
	}
	search->found = word;
	return true;
}

static enum tp_busy why_busy(const struct tp_leave *in, const struct tp_held *held, uint64_t *at)
{
	struct range_search search = { in, held->tid, 0 };
	const struct tp_stack_scan scan = { in->stacks, in->stack_count, 0,
					    UINT64_MAX, word_is_ours,	 &search };
	uint64_t rip = held->saved.rip;
	int64_t i = tp_floor_index(in->sites, 1, in->site_count, rip - 1);

	*at = rip;
	if (in_ranges(in->ranges, in->range_count, rip))
		return TP_BUSY_RIP;
	if (tp_has_trapped(held))
		return TP_BUSY_PENDING;
	/* At site + 1 with a NOP or a finished int3 before it: only the pending trap tells, and a
	 * thread that is just there by itself moves on. Wait for it either way. */
	if (i >= 0 && in->sites[i] == rip - 1 && held->saved.orig_rax == (unsigned long long)-1)
		return TP_BUSY_SITE;
	if (tp_scan_stack(held, held->saved.rsp, &scan)) {
		*at = search.found;
		return TP_BUSY_STACK;
	}
	if (in->jit_descriptor &&
	    tp_may_write_entry(held, in->jit_entry, in->stacks, in->stack_count, at))
		return TP_BUSY_LIST;
	return TP_BUSY_NO;
}

static int find_busy(const struct tp_leave *in, const struct tp_world *world, struct tp_left *out)
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

/* A thread that has put itself under seccomp since we came could be killed for our calls. */
static bool is_filtered(const struct tp_held *held)
{
	struct tp_thread thread;

	return !tp_read_status(held->pid, held->tid, &thread) && thread.seccomp;
}

static int borrow(struct tp_world *world, struct tp_held **held)
{
	int error = -ESRCH;

	for (size_t i = 0; i < world->count; i++) {
		if (!world->threads[i].stopped || !world->threads[i].borrowable)
			continue;
		*held = &world->threads[i];
		if (!is_filtered(*held))
			return tp_block_signals(*held);
		error = -EACCES;
	}
	return error;
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
	if (!in->handler || now.handler != in->handler)
		return 0;
	ret = tp_remote_syscall(held, in->syscall_at, SYS_rt_sigaction, set);
	out->handler_restored = ret == 0;
	return (int)ret;
}

static int unmap_ranges(const struct tp_leave *in, struct tp_held *held, struct tp_left *out)
{
	for (uint64_t i = in->code_count; i < in->range_count; i++) {
		const uint64_t args[6] = { in->ranges[2 * i],
					   in->ranges[2 * i + 1] - in->ranges[2 * i] };
		int64_t ret = tp_remote_syscall(held, in->syscall_at, SYS_munmap, args);

		if (ret < 0)
			return (int)ret;
		out->unmapped++;
	}
	return 0;
}

/* Bytes that are neither ours nor the first ones are somebody else's: left alone. A child that was
 * forked within a batch has int3s that its table does not know of. */
static int put_back(const struct tp_leave *in, struct tp_left *out)
{
	for (uint64_t i = 0; i < in->known_count; i++) {
		const struct tp_known *site = &in->known[i];
		uint8_t found[sizeof(site->original)];
		ssize_t len = site->len;

		if (len < 1 || len > TP_MAX_INSN ||
		    pread(in->mem_fd, found, (size_t)len, (off_t)site->addr) != len)
			continue; /* its module is gone */
		if (!memcmp(found, site->original, (size_t)len) ||
		    (found[0] != TP_INT3 && memcmp(found, site->current, (size_t)len)))
			continue;
		if (pwrite(in->mem_fd, site->original, (size_t)len, (off_t)site->addr) != len)
			return errno ? -errno : -EIO;
		out->put_back++;
	}
	return 0;
}

static int read_at(const struct tp_leave *in, uint64_t at, void *to, size_t bytes)
{
	return pread(in->mem_fd, to, bytes, (off_t)at) == (ssize_t)bytes ? 0 : -EFAULT;
}

/* A function that was left by a jump returns to the trampoline of another one. */
static int find_real(const struct tp_leave *in, uint64_t *real, uint64_t shift)
{
	uint64_t first = in->shadow_frames / 4 + shift;
	uint64_t count = in->shadow_count * TP_SHADOW_DEPTH;

	for (uint64_t i = 0; i < count; i++) {
		uint64_t number = (*real - first) / TP_RETURN_BYTES;

		if (*real < first || number >= count)
			return 0;
		if (read_at(in, in->shadow_frames + number * sizeof(struct tp_call), real,
			    sizeof(*real)))
			return -EFAULT;
	}
	return -ELOOP;
}

/* A thread's shadow stack, and the thread itself where it still is. */
struct owned {
	const struct tp_leave *in;
	const struct tp_shadow *shadow;
	const struct tp_held *held;
};

static const struct tp_held *find_thread(const struct tp_world *world, uint32_t tid)
{
	for (size_t i = 0; i < world->count; i++)
		if ((uint32_t)world->threads[i].tid == tid && world->threads[i].stopped)
			return &world->threads[i];
	return NULL;
}

/*
 * Code of ours that a signal has interrupted comes back to a frame in hand, unless its handler never
 * returned: then the thread is gone, or above it on the same stack.
 */
static bool is_abandoned(const struct owned *owned, uint64_t slot)
{
	uint64_t rsp = owned->held ? owned->held->saved.rsp : 0;

	if (!owned->held)
		return true;
	for (uint64_t i = 0; i < owned->in->stack_count; i++) {
		const uint64_t *range = &owned->in->stacks[2 * i];

		if (slot >= range[0] && slot < rsp && rsp < range[1])
			return true;
	}
	return false;
}

/*
 * Where its trampoline still stands on a stack, the return address does again. A frame in hand, or
 * whose number stands in its slot, tells of code of ours that was interrupted: on a stack that no
 * thread is on, perhaps.
 */
static int let_go(const struct owned *owned, uint64_t at, uint64_t shift)
{
	const struct tp_leave *in = owned->in;
	struct tp_call frame;
	uint64_t word;
	int error = read_at(in, at, &frame, sizeof(frame));
	uint64_t state = frame.state & 0xff;

	if (error || state == TP_FRAME_DEAD)
		return error;
	if (state == TP_FRAME_FREE || state == TP_FRAME_PUSHED)
		return is_abandoned(owned, frame.slot) ? 0 : -EAGAIN;
	if (read_at(in, frame.slot, &word, sizeof(word)))
		return 0; /* the stack is gone */
	if (word == (at - in->shadow_frames) / sizeof(frame))
		return is_abandoned(owned, frame.slot) ? 0 : -EAGAIN;
	if (word != at / 4 + shift)
		return 0;
	error = find_real(in, &frame.real, shift);
	if (error)
		return error;
	return pwrite(in->mem_fd, &frame.real, sizeof(frame.real), (off_t)frame.slot) ==
			       sizeof(frame.real) ?
		       0 :
		       -EFAULT;
}

/* From the newest on: a function left by a jump has its trampoline in the next one's frame. */
static int let_shadow_go(const struct owned *owned, struct tp_left *out)
{
	const struct tp_shadow *shadow = owned->shadow;
	int error = 0;

	for (uint64_t top = shadow->top; !error && top > shadow->base;) {
		top -= sizeof(struct tp_call);
		error = let_go(owned, top, shadow->returns);
		if (error == -EAGAIN) {
			out->busy_why = TP_BUSY_STACK;
			out->busy_tid = shadow->tid;
			out->busy_at = top / 4 + shadow->returns;
		}
	}
	return error;
}

static int let_frames_go(const struct tp_leave *in, const struct tp_world *world,
			 struct tp_left *out)
{
	for (uint64_t i = 0; i < in->shadow_count; i++) {
		uint64_t at = in->shadow_heads + i * sizeof(struct tp_shadow);
		struct tp_shadow shadow;
		struct owned owned = { in, &shadow, NULL };
		int error = read_at(in, at, &shadow, sizeof(shadow));

		if (error)
			return error;
		if (!shadow.state || shadow.top < shadow.base ||
		    shadow.top - shadow.base > TP_SHADOW_DEPTH * sizeof(struct tp_call))
			continue;
		owned.held = find_thread(world, shadow.tid);
		error = let_shadow_go(&owned, out);
		if (error)
			return error;
		shadow.top = shadow.base;
		if (pwrite(in->mem_fd, &shadow, sizeof(shadow), (off_t)at) != sizeof(shadow))
			return -EFAULT;
	}
	return 0;
}

/* May have to be tried again: so before anything else is given up. */
static int leave_jit_list(const struct tp_leave *in)
{
	return in->jit_descriptor ? tp_jit_remove(in->mem_fd, in->jit_descriptor, in->jit_entry) :
				    0;
}

static int leave(const void *request, void *result)
{
	const struct tp_leave *in = request;
	struct tp_left *out = result;
	struct tp_world world = { .pid = in->pid, .spared = in->spared };
	struct tp_held *held = NULL;
	int error;

	memset(out, 0, sizeof(*out));
	error = tp_stop_world(&world);
	out->threads = world.count;
	if (!error)
		error = find_busy(in, &world, out);
	if (!error)
		error = let_frames_go(in, &world, out);
	if (!error)
		error = put_back(in, out);
	if (!error && in->unmap)
		error = borrow(&world, &held);
	if (!error && in->unmap)
		error = tp_check_memory(held, in->mem_fd, in->syscall_at);
	if (!error && in->unmap)
		error = leave_jit_list(in);
	if (!error && in->unmap)
		error = give_back_sigtrap(in, held, out);
	if (!error && in->unmap)
		error = unmap_ranges(in, held, out);
	tp_release_world(&world);
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
