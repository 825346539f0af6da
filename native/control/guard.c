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

#include "held.h"

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

static pid_t tool; /* whose memory the guard shares */

/** Are we the guard, whose end lets every thread go? */
bool tp_is_guard(void)
{
	return tool && getpid() != tool;
}

/* Kept for the next time: its pages need no fault again. */
static char *spare_stack;

static char *take_stack(void)
{
	char *stack = __atomic_exchange_n(&spare_stack, NULL, __ATOMIC_ACQ_REL);

	return stack ? stack :
		       mmap(NULL, STACK_BYTES, PROT_READ | PROT_WRITE,
			    MAP_PRIVATE | MAP_ANONYMOUS | MAP_STACK, -1, 0);
}

static void give_back_stack(char *stack)
{
	stack = __atomic_exchange_n(&spare_stack, stack, __ATOMIC_ACQ_REL);
	if (stack)
		munmap(stack, STACK_BYTES);
}

/**
 * Run @work in a process that outlives us. Where there can be none, or the kernel lets only ourselves
 * trace the target (Yama scope 1, a child of ours), run it here.
 */
int tp_guarded(int (*work)(const void *in, void *out), const void *in, void *out)
{
	struct job job = { .work = work, .in = in, .out = out };
	char *stack = take_stack();
	bool hurried;
	int result;
	pid_t child;

	tool = getpid();
	if (stack == MAP_FAILED)
		return work(in, out);
	/* Both: threads are held from its first moment on, and its end is the end of our batch. */
	hurried = tp_hurry();
	child = clone(guard, stack + STACK_BYTES, CLONE_VM | SIGCHLD, &job);
	result = child < 0 ? -EPERM : wait_for(child);
	tp_relax(hurried);
	if (!result)
		result = __atomic_load_n(&job.done, __ATOMIC_ACQUIRE) ? job.result : -ECHILD;
	give_back_stack(stack);
	return result == -EPERM ? work(in, out) : result;
}
