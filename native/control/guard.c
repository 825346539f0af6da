/* SPDX-License-Identifier: Apache-2.0 */
/**
 * @file
 * A borrowed thread must get its registers back whatever happens to the tool: killed in between, the
 * kernel would let the thread run on with ours. So the borrowing is done by a process in a session of
 * its own, which nobody else knows of and which ends within a millisecond or two.
 *
 * It shares our memory (CLONE_VM) while the calling thread waits for it: a forked one would spend
 * the time of the hold on page faults, a millisecond instead of a third of one (measured).
 */
#include "guard.h"

#include <errno.h>
#include <sched.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#define STACK_BYTES (1 << 20)

struct job {
	int (*work)(const void *in, void *out);
	const void *in;
	void *out;
	int done;
	int result;
};

static int guard(void *argument)
{
	struct job *job = argument;
	sigset_t all;

	setsid();
	sigfillset(&all);
	sigdelset(&all, SIGRTMAX - 1); /* ends a wait that takes too long: seize.c */
	sigprocmask(SIG_SETMASK, &all, NULL);
	job->result = job->work(job->in, job->out);
	__atomic_store_n(&job->done, 1, __ATOMIC_RELEASE);
	return 0;
}

static int wait_for(pid_t child)
{
	while (waitpid(child, NULL, __WALL) < 0)
		if (errno != EINTR)
			return errno == ECHILD ? 0 : -errno; /* somebody else has reaped it */
	return 0;
}

/**
 * Run @work in a process that outlives us. Where there can be none, or the kernel lets only ourselves
 * trace the target (Yama scope 1, a child of ours), run it here.
 */
int tp_guarded(int (*work)(const void *in, void *out), const void *in, void *out)
{
	struct job job = { .work = work, .in = in, .out = out };
	char *stack = mmap(NULL, STACK_BYTES, PROT_READ | PROT_WRITE,
			   MAP_PRIVATE | MAP_ANONYMOUS | MAP_STACK, -1, 0);
	int result;
	pid_t child;

	if (stack == MAP_FAILED)
		return work(in, out);
	child = clone(guard, stack + STACK_BYTES, CLONE_VM | SIGCHLD, &job);
	result = child < 0 ? -EPERM : wait_for(child);
	if (!result)
		result = __atomic_load_n(&job.done, __ATOMIC_ACQUIRE) ? job.result : -ECHILD;
	munmap(stack, STACK_BYTES);
	return result == -EPERM ? work(in, out) : result;
}
