/* SPDX-License-Identifier: Apache-2.0 */
/**
 * @file
 * Bring the agent into a process: one anonymous r-x mapping, filled through the mem file, and a
 * clone(2) executed in the agent's own code. Two borrowed system calls; no dlopen, no path.
 */
#include <errno.h>
#include <sched.h>
#include <signal.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include "guard.h"
#include "held.h"
#include "textpoke.h"

/* Not CLONE_FILES: the thread is born with its own copy of the fd table (pitfalls 1). */
#define AGENT_CLONE_FLAGS \
	(CLONE_VM | CLONE_FS | CLONE_SIGHAND | CLONE_THREAD | CLONE_SYSVSEM | CLONE_SETTLS)

#define NEWBORN_PAUSE_NS 50000
#define NEWBORN_NS 2000000000ull

static bool is_errno(int64_t value)
{
	return value < 0 && value > -4096;
}

/* Where libcs keep a thread's id behind its fs base: glibc, then musl old and new. Believed only
 * when the held thread's own id stands there; the agent checks again for each thread. */
static uint32_t find_tid_offset(const struct tp_held *held, const struct tp_inject *in)
{
	static const uint32_t offsets[] = { 0x2d0, 0x30, 0x38 };

	for (size_t i = 0; held->saved.fs_base && i < sizeof(offsets) / sizeof(*offsets); i++) {
		uint32_t value = 0;
		off_t at = (off_t)(held->saved.fs_base + offsets[i]);

		if (pread(in->mem_fd, &value, sizeof(value), at) == sizeof(value) &&
		    value == in->local_tid)
			return offsets[i];
	}
	return 0;
}

static void relocate(uint8_t *image, const struct tp_inject *in, uint64_t base)
{
	for (uint64_t i = 0; i < in->relocation_count; i++) {
		uint64_t value = base + in->relocations[2 * i + 1];

		memcpy(image + in->relocations[2 * i], &value, sizeof(value));
	}
}

static int write_image(const struct tp_inject *in, uint64_t base, uint32_t tid_offset)
{
	uint8_t *image = in->image; /* the caller's copy, ours to change */
	struct tp_image *head;
	ssize_t done;

	relocate(image, in, base);
	head = (struct tp_image *)(image + in->head_offset);
	head->base = base;
	head->image_bytes = (uint32_t)in->image_bytes;
	head->ring_count = in->ring_count;
	head->ring_bytes = in->ring_bytes;
	head->request_bytes = in->request_bytes;
	head->tid_offset = tid_offset;
	done = pwrite(in->mem_fd, image, in->image_file_bytes, (off_t)base);
	return done == (ssize_t)in->image_file_bytes ? 0 : done < 0 ? -errno : -EIO;
}

static int clone_agent(struct tp_held *held, const struct tp_inject *in, uint64_t base,
		       struct tp_injected *out)
{
	/* The dummy fs base: our own image head, unique and never zero. */
	const uint64_t args[6] = { AGENT_CLONE_FLAGS, 0, 0, 0, base + in->head_offset, 0 };
	int64_t tid = tp_remote_syscall(held, base + in->entry_offset, SYS_clone, args);

	if (is_errno(tid))
		return (int)tid;
	out->agent_tid = tid;
	return 0;
}

/** Load the agent through a held thread and start it. The thread stays held. */
int tp_inject(struct tp_held *held, const struct tp_inject *in, struct tp_injected *out)
{
	const uint64_t map[6] = { 0,
				  in->image_bytes,
				  PROT_READ | PROT_EXEC,
				  MAP_PRIVATE | MAP_ANONYMOUS,
				  (uint64_t)-1,
				  0 };
	int64_t base;
	int error;

	memset(out, 0, sizeof(*out));
	out->fixed_eintr = held->fixed_eintr;
	error = tp_check_memory(held, in->mem_fd, in->syscall_at);
	if (error)
		return error;
	base = tp_remote_syscall(held, in->syscall_at, SYS_mmap, map);
	if (is_errno(base))
		return (int)base;
	out->base = (uint64_t)base;
	out->tid_offset = find_tid_offset(held, in);
	error = write_image(in, out->base, out->tid_offset);
	if (!error)
		error = clone_agent(held, in, out->base, out);
	if (error) {
		const uint64_t unmap[6] = { out->base, in->image_bytes };

		tp_remote_syscall(held, in->syscall_at, SYS_munmap, unmap);
	}
	return error;
}

struct thread_request {
	pid_t pid;
	pid_t tid;
	const struct tp_inject *inject;
};

/*
 * Until it has run, the agent's thread bears the name of the program's, and nobody who looks for it
 * can find it. We hold the tool's lock, also when the tool is dead: keep it until then, or the next
 * tool loads a second agent.
 */
static void await_newborn(const struct tp_inject *in, uint64_t base)
{
	off_t at = (off_t)(base + in->head_offset + offsetof(struct tp_image, step));
	const struct timespec pause = { .tv_nsec = NEWBORN_PAUSE_NS };
	uint64_t since = tp_now_ns();
	uint32_t step = 0;

	while (pread(in->mem_fd, &step, sizeof(step), at) == sizeof(step) && !step &&
	       tp_now_ns() - since < NEWBORN_NS)
		nanosleep(&pause, NULL);
}

static int inject_thread(const void *in, void *out)
{
	const struct thread_request *request = in;
	struct tp_injected *injected = out;
	struct tp_held held;
	int error = tp_seize(&held, request->pid, request->tid), released;

	if (error)
		return error;
	error = tp_inject(&held, request->inject, injected);
	released = tp_release(&held);
	injected->hold_ns = held.until_ns - held.since_ns;
	if (!error)
		await_newborn(request->inject, injected->base);
	return error ? error : released;
}

/**
 * tp_seize(), tp_inject() and tp_release() of thread @tid in one go: the hold stays short, and ends
 * well even if the tool is killed meanwhile.
 */
int tp_inject_thread(pid_t pid, pid_t tid, const struct tp_inject *in, struct tp_injected *out)
{
	const struct thread_request request = { pid, tid, in };

	return tp_guarded(inject_thread, &request, out);
}

/* tpa_bootstrap takes the registers of clone(2) and returns its result to the parent. */
static long call_bootstrap(uint64_t entry, uint64_t tls)
{
	register uint64_t r10 __asm__("r10") = 0;
	register uint64_t r8 __asm__("r8") = tls;
	long ret;

	__asm__ volatile("subq $256, %%rsp\n\tcall *%[entry]\n\taddq $256, %%rsp"
			 : "=a"(ret)
			 : [entry] "r"(entry), "a"(SYS_clone), "D"((long)AGENT_CLONE_FLAGS),
			   "S"(0l), "d"(0l), "r"(r10), "r"(r8)
			 : "rcx", "r11", "memory", "cc");
	return ret;
}

/** Load the agent into this process. */
int tp_inject_self(const struct tp_inject *in, struct tp_injected *out)
{
	uint64_t start = tp_now_ns();
	sigset_t all, saved;
	int error;
	void *base;
	long tid;

	memset(out, 0, sizeof(*out));
	base = mmap(NULL, in->image_bytes, PROT_READ | PROT_EXEC, MAP_PRIVATE | MAP_ANONYMOUS, -1,
		    0);
	if (base == MAP_FAILED)
		return -errno;
	out->base = (uint64_t)base;
	error = write_image(in, out->base, 0x2d0);
	if (!error) {
		sigfillset(&all);
		pthread_sigmask(SIG_SETMASK, &all, &saved);
		tid = call_bootstrap(out->base + in->entry_offset, out->base + in->head_offset);
		pthread_sigmask(SIG_SETMASK, &saved, NULL);
		out->agent_tid = tid;
		error = is_errno(tid) ? (int)tid : 0;
	}
	if (error)
		munmap(base, in->image_bytes);
	out->hold_ns = tp_now_ns() - start;
	return error;
}
