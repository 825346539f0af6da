/* SPDX-License-Identifier: Apache-2.0 */
/**
 * @file
 * Hand-overs between the tool, its guard, the agent and stopped threads, without waiting for the time
 * slices of others. Where the kernel does not let us (CAP_SYS_NICE, RLIMIT_RTPRIO), all goes its usual
 * way.
 *
 * Who is woken on another processor comes 15 to 20 us later than on the own one (measured in a virtual
 * machine), and a batch is a chain of such wake-ups: of two that take turns both stay on one.
 */
#include "scheduling.h"

#include <errno.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <string.h>
#include <unistd.h>

#include "textpoke.h"

#define RESET_ON_FORK 1 /* SCHED_FLAG_RESET_ON_FORK */
#define OF_US 2		/* we run as soon as those that we wait for have done their work */
#define OF_OTHERS 1

/* Of this thread, from tp_hurry() to tp_relax(). A guard shares it with the thread that waits for it. */
static _Thread_local struct {
	bool hurried;
	struct tp_pin pin;
	pid_t beside; /* who works for us meanwhile; 0: nobody yet */
	struct tp_lift its_lift;
	struct tp_pin its_pin;
} own;

/** Keep thread @tid (0: ourselves) on one processor, if it may run there. */
void tp_pin(pid_t tid, int processor, struct tp_pin *pin)
{
	cpu_set_t one;

	if (processor < 0 || processor >= CPU_SETSIZE ||
	    sched_getaffinity(tid, sizeof(pin->before), &pin->before) ||
	    !CPU_ISSET(processor, &pin->before) || CPU_COUNT(&pin->before) == 1)
		return;
	CPU_ZERO(&one);
	CPU_SET(processor, &one);
	pin->done = !sched_setaffinity(tid, sizeof(one), &one);
}

static int processors(void)
{
	static int known; /* asking reads a file */

	if (!known)
		known = (int)sysconf(_SC_NPROCESSORS_ONLN);
	return known;
}

/* Who may run everywhere shall do so when there are more processors, too: the kernel cuts the mask. */
void tp_unpin(pid_t tid, struct tp_pin *pin)
{
	if (pin->done && CPU_COUNT(&pin->before) >= processors())
		memset(&pin->before, 0xff, sizeof(pin->before));
	if (pin->done)
		sched_setaffinity(tid, sizeof(pin->before), &pin->before);
	pin->done = false;
}

/* The kernel counts how long a thread of the class runs, and sends SIGXCPU or SIGKILL to its process. */
static bool is_limited(pid_t tid)
{
	struct rlimit limit;

	return prlimit(tid, RLIMIT_RTTIME, NULL, &limit) || limit.rlim_cur != RLIM_INFINITY;
}

/** Keep others from running in the place of thread @tid, unless it is scheduled in an unusual way. */
void tp_lift(pid_t tid, struct tp_lift *lift)
{
	struct tp_scheduling first = { .size = sizeof(first),
				       .policy = SCHED_FIFO,
				       .flags = RESET_ON_FORK, /* not for threads that it makes */
				       .priority = OF_OTHERS };

	if (syscall(SYS_sched_getattr, tid, &lift->before, sizeof(first), 0) ||
	    lift->before.policy != SCHED_OTHER || is_limited(tid))
		return;
	lift->done = !syscall(SYS_sched_setattr, tid, &first, 0);
}

void tp_drop(pid_t tid, struct tp_lift *lift)
{
	/* Only CAP_SYS_NICE may take that flag away again; RLIMIT_RTPRIO is enough to come here. */
	if (lift->done && syscall(SYS_sched_setattr, tid, &lift->before, 0) && errno == EPERM) {
		lift->before.flags |= RESET_ON_FORK;
		syscall(SYS_sched_setattr, tid, &lift->before, 0);
	}
	lift->done = false;
}

/**
 * Where we may: keep others from running in our place, while threads of the target are stopped or
 * wait for us in some other way. It holds for a guard that we make meanwhile, too.
 */
bool tp_hurry(void)
{
	const struct sched_param urgent = { .sched_priority = OF_US };

	if (sched_getscheduler(0) != SCHED_OTHER || is_limited(0) ||
	    sched_setscheduler(0, SCHED_FIFO, &urgent))
		return false;
	tp_pin(0, sched_getcpu(), &own.pin);
	own.hurried = true;
	return true;
}

static void send_back(void)
{
	if (!own.beside)
		return;
	tp_unpin(own.beside, &own.its_pin);
	tp_drop(own.beside, &own.its_lift);
	own.beside = 0;
}

/**
 * While we are in a hurry: let thread @tid work in our place and before others as long as we wait
 * for it, again and again until tp_relax(). One thread at a time.
 */
void tp_bring_beside(pid_t tid)
{
	if (!own.hurried || tid <= 0 || tid == own.beside)
		return;
	send_back();
	own.beside = tid;
	tp_lift(tid, &own.its_lift);
	if (own.its_lift.done) /* else it would wait for whoever else is busy here */
		tp_pin(tid, sched_getcpu(), &own.its_pin);
}

/** Undo a tp_hurry() that returned true. */
void tp_relax(bool hurried)
{
	const struct sched_param none = { 0 };

	if (!hurried)
		return;
	/* First: who has just answered us goes to sleep then. Awake it would be sent back by its own
	 * processor's leave, and fetched again by that of another: 50 us. */
	sched_setscheduler(0, SCHED_OTHER, &none);
	send_back();
	tp_unpin(0, &own.pin);
	own.hurried = false;
}
