/* SPDX-License-Identifier: Apache-2.0 */
/**
 * @file
 * Stop one thread with ptrace, borrow it for a few system calls, and let it go as if nothing had
 * happened: registers, signal mask and an interrupted system call are all put back.
 *
 * No step uses SIGTRAP: the kernel would reset the program's disposition if it blocks or ignores
 * that signal. Stops are PTRACE_EVENT_STOP and syscall stops only.
 */
#include "held.h"

#include <errno.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ptrace.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "guard.h"
#include "status.h"

#define STOP_TIMEOUT_MS 5000
#define USER_CS_64 0x33
#define PTRACE_GETSIGMASK_NR 0x420a
#define PTRACE_SETSIGMASK_NR 0x420b

uint64_t tp_now_ns(void)
{
	struct timespec now;

	clock_gettime(CLOCK_MONOTONIC, &now);
	return (uint64_t)now.tv_sec * 1000000000ull + (uint64_t)now.tv_nsec;
}

/* Only to end a blocking waitpid. */
static void on_alarm(int signal)
{
}

/*
 * Block until the thread stops or the time is over: polling would take the very processor that the
 * tracee needs to reach its stop. A timer signal of our own thread ends the wait.
 */
static int wait_blocking(const struct tp_held *held, int *status)
{
	const long wait_ms = held->patience_ms ? held->patience_ms : STOP_TIMEOUT_MS;
	const struct itimerspec soon = { .it_value = { wait_ms / 1000, wait_ms % 1000 * 1000000 } };
	struct sigevent event = { .sigev_notify = SIGEV_THREAD_ID, .sigev_signo = SIGRTMAX - 1 };
	struct sigaction action = { .sa_handler = on_alarm }, saved;
	pid_t got = -1;
	timer_t timer;
	int error;

	event._sigev_un._tid = gettid();
	if (sigaction(event.sigev_signo, &action, &saved))
		return -errno;
	if (timer_create(CLOCK_MONOTONIC, &event, &timer)) {
		error = -errno;
	} else {
		timer_settime(timer, 0, &soon, NULL);
		got = waitpid(held->tid, status, __WALL);
		error = got == held->tid ? 0 : errno == EINTR ? -ETIMEDOUT : -errno;
		timer_delete(timer);
	}
	sigaction(event.sigev_signo, &saved, NULL);
	return error;
}

/** Wait for the thread's next stop. Returns 0, -ESRCH when it has ended, or -ETIMEDOUT. */
int tp_wait_stop(struct tp_held *held, int *status)
{
	pid_t got = waitpid(held->tid, status, __WALL | WNOHANG);
	int error = got == held->tid ? 0 : got < 0 ? -errno : wait_blocking(held, status);

	if (error)
		return error == -ECHILD ? -ESRCH : error;
	held->stopped = WIFSTOPPED(*status);
	return held->stopped ? 0 : -ESRCH;
}

static bool is_event_stop(int status)
{
	return status >> 16 == PTRACE_EVENT_STOP;
}

/* A signal that came in between is passed on; with all others blocked it is SIGSTOP or SIGKILL. */
static int resume(struct tp_held *held, int request, int status)
{
	int signal = 0;

	if (status && WIFSTOPPED(status) && !(status >> 16) && WSTOPSIG(status) != (SIGTRAP | 0x80))
		signal = WSTOPSIG(status);
	held->stopped = false;
	return ptrace(request, held->tid, 0, signal) ? -errno : 0;
}

/* The processor that @tid last ran on (field 39 of its stat file), or -1. */
static int last_processor(pid_t pid, pid_t tid)
{
	char path[64], text[1024];
	int processor = -1;
	const char *at;
	FILE *file;

	snprintf(path, sizeof(path), "/proc/%d/task/%d/stat", pid, tid);
	file = fopen(path, "re");
	if (!file)
		return -1;
	at = fgets(text, sizeof(text), file) ? strrchr(text, ')') : NULL;
	fclose(file);
	for (int field = 2; at && field < 39; field++)
		at = strchr(at + 1, ' ');
	if (at)
		processor = atoi(at + 1);
	return processor;
}

/*
 * Wait on the tracee's own processor: when we sleep it runs, when it stops we run. Elsewhere each
 * hand-over may cost a time slice of whoever else is busy there. tp_release() moves back.
 */
static void move_beside(struct tp_held *held)
{
	held->urgent = tp_hurry();
	tp_pin(0, last_processor(held->pid, held->tid), &held->pin);
}

static void move_back(struct tp_held *held)
{
	tp_unpin(0, &held->pin);
	tp_relax(held->urgent);
	held->urgent = false;
}

/* The kernel forbids (EPERM) to seize a thread that has exited (a first thread that is a zombie while
 * others run on, or any thread for a moment), and its own workers, which never run the program's
 * code (io_uring's). */
static bool need_not_stop(pid_t pid, pid_t tid)
{
	struct tp_thread thread;

	return tp_read_status(pid, tid, &thread) || thread.state == 'Z' || thread.state == 'X' ||
	       tp_is_kernel_worker(pid, tid);
}

static uint64_t patience_ns(const struct tp_held *held)
{
	return (uint64_t)(held->patience_ms ? held->patience_ms : STOP_TIMEOUT_MS) * 1000000ull;
}

/*
 * Let the thread go on until it stops for PTRACE_INTERRUPT. A stop for a signal takes the place of
 * that one, so it is asked for anew each time: else a thread that gets a signal every millisecond
 * would never come to it.
 */
static int run_to_event_stop(struct tp_held *held, int status)
{
	uint64_t end_ns = tp_now_ns() + patience_ns(held);
	int error = 0;

	do {
		if (ptrace(PTRACE_INTERRUPT, held->tid, 0, 0))
			return -errno;
		error = held->stopped ? resume(held, PTRACE_CONT, status) : 0;
		if (!error && tp_now_ns() > end_ns)
			return -ETIMEDOUT;
		if (!error)
			error = tp_wait_stop(held, &status);
	} while (!error && !is_event_stop(status));
	return error;
}

static int seize(const struct tp_held *held)
{
	int error;

	if (ptrace(PTRACE_SEIZE, held->tid, 0, PTRACE_O_TRACESYSGOOD)) {
		error = -errno;
		return error == -EPERM && need_not_stop(held->pid, held->tid) ? -ESRCH : error;
	}
	return ptrace(PTRACE_INTERRUPT, held->tid, 0, 0) ? -errno : 0;
}

/** Seize held->tid and ask it to stop; where that succeeds, tp_await_stop() comes next. */
int tp_ask_to_stop(struct tp_held *held)
{
	int error;

	/* A lock that it holds is held as long as we hold it: it waits for no others' time slices. */
	tp_lift(held->tid, &held->lift);
	held->since_ns = tp_now_ns();
	error = seize(held);
	held->asked = !error;
	if (error)
		tp_drop(held->tid, &held->lift);
	return error;
}

/** Wait for a thread that was asked. Returns 0, -ESRCH when it has ended, or -ETIMEDOUT. */
int tp_await_stop(struct tp_held *held)
{
	int status, error = tp_wait_stop(held, &status);

	held->asked = false;
	if (!error && !is_event_stop(status))
		error = run_to_event_stop(held, status);
	held->late = error == -ETIMEDOUT;
	if (error)
		tp_drop(held->tid, &held->lift);
	return error;
}

/**
 * A thread that did not stop in time (a parent in vfork) stops later. The end of a guard lets it go
 * then; where there is no guard nobody else does, and it would stand still for ever.
 */
void tp_release_late(struct tp_held *held)
{
	int status;

	if (held->late && !tp_is_guard() && waitpid(held->tid, &status, __WALL) == held->tid &&
	    WIFSTOPPED(status))
		ptrace(PTRACE_DETACH, held->tid, 0, is_event_stop(status) ? 0 : WSTOPSIG(status));
	held->late = false;
}

/** Seize held->tid and stop it. */
int tp_stop_thread(struct tp_held *held)
{
	int error = tp_ask_to_stop(held);

	if (!error)
		error = tp_await_stop(held);
	tp_release_late(held);
	return error;
}

/*
 * epoll_wait, semtimedop, sigtimedwait and friends answer EINTR to any stop; the program never
 * expects it, no signal came. Run the call again (a relative time-out starts anew). Not connect:
 * a second call would answer EALREADY.
 */
static void fix_eintr(struct tp_held *held)
{
	struct tp_thread thread;

	if ((int64_t)held->saved.rax != -EINTR || (int64_t)held->saved.orig_rax < 0 ||
	    held->saved.orig_rax == SYS_connect)
		return;
	(void)tp_read_status(held->pid, held->tid, &thread); /* unreadable: nothing is pending */
	if ((thread.pending | thread.shared_pending) & ~thread.blocked)
		return;
	held->saved.rax = held->saved.orig_rax;
	held->saved.orig_rax = (unsigned long long)-1;
	held->saved.rip -= 2;
	held->fixed_eintr = true;
}

/* In a restartable sequence the kernel would abort at our registers, not at the thread's own. */
static int inside_rseq(const struct tp_held *held)
{
	struct __ptrace_rseq_configuration rseq = { 0 };
	uint64_t section[4] = { 0 };
	long pointer;

	if (ptrace(PTRACE_GET_RSEQ_CONFIGURATION, held->tid, sizeof(rseq), &rseq) < 0 ||
	    !rseq.rseq_abi_pointer)
		return 0;
	errno = 0;
	pointer = ptrace(PTRACE_PEEKDATA, held->tid, rseq.rseq_abi_pointer + 8, 0);
	if (errno || !pointer)
		return 0;
	for (int i = 1; i < 3; i++)
		section[i] = (uint64_t)ptrace(PTRACE_PEEKDATA, held->tid, pointer + 8 * i, 0);
	return held->saved.rip - section[1] < section[2];
}

/** Remember registers and signal mask. Returns -EAGAIN or -ENOEXEC for a thread not to borrow. */
int tp_save_thread(struct tp_held *held)
{
	if (ptrace(PTRACE_GETREGS, held->tid, 0, &held->saved) ||
	    ptrace(PTRACE_GETSIGMASK_NR, held->tid, (void *)8, &held->saved_mask))
		return -errno;
	if (held->saved.cs != USER_CS_64)
		return -ENOEXEC;
	if (inside_rseq(held))
		return -EAGAIN;
	fix_eintr(held);
	held->borrowable = true;
	return 0;
}

/** Before the thread is borrowed: signals wait until it has its own registers again. */
int tp_block_signals(struct tp_held *held)
{
	const uint64_t all = ~0ull;

	held->masked = !ptrace(PTRACE_SETSIGMASK_NR, held->tid, (void *)8, &all);
	return held->masked ? 0 : -errno;
}

struct tp_held *tp_held_create(void)
{
	return calloc(1, sizeof(struct tp_held));
}

void tp_held_destroy(struct tp_held *held)
{
	if (held && held->stopped)
		ptrace(PTRACE_DETACH, held->tid, 0, 0);
	free(held);
}

pid_t tp_held_pid(const struct tp_held *held)
{
	return held->pid;
}

/** The signals that the thread itself blocks; during the hold all are. */
uint64_t tp_held_mask(const struct tp_held *held)
{
	return held->saved_mask;
}

/** Stop thread @tid of process @pid for a few system calls; tp_release() lets it go. */
int tp_seize(struct tp_held *held, pid_t pid, pid_t tid)
{
	int error;

	*held = (struct tp_held){ .pid = pid, .tid = tid };
	move_beside(held);
	error = tp_stop_thread(held);
	if (!error)
		error = tp_save_thread(held);
	if (!error)
		error = tp_block_signals(held);
	if (error)
		tp_drop(held->tid, &held->lift);
	if (error && held->stopped) {
		ptrace(PTRACE_DETACH, tid, 0, 0);
		held->stopped = false;
	}
	if (error)
		move_back(held);
	return error;
}

static int next_syscall_stop(struct tp_held *held)
{
	int status = 0, error;

	do {
		error = resume(held, PTRACE_SYSCALL, status);
		if (!error)
			error = tp_wait_stop(held, &status);
	} while (!error && (WSTOPSIG(status) != (SIGTRAP | 0x80)));
	return error;
}

static int set_call(struct tp_held *held, uint64_t rip, long nr, const uint64_t *args)
{
	struct user_regs_struct regs = held->saved;

	regs.rip = rip;
	regs.rax = (unsigned long long)nr;
	regs.orig_rax = (unsigned long long)-1; /* not in a system call: nothing to restart */
	regs.rdi = args[0];
	regs.rsi = args[1];
	regs.rdx = args[2];
	regs.r10 = args[3];
	regs.r8 = args[4];
	regs.r9 = args[5];
	return ptrace(PTRACE_SETREGS, held->tid, 0, &regs) ? -errno : 0;
}

/**
 * Run one system call on the held thread through the "syscall" instruction at @syscall_at.
 * Returns its result, or -errno of ptrace itself.
 */
int64_t tp_remote_syscall(struct tp_held *held, uint64_t syscall_at, long nr, const uint64_t *args)
{
	struct user_regs_struct regs;
	int error = set_call(held, syscall_at, nr, args);

	held->in_syscall_stop = true;
	if (!error)
		error = next_syscall_stop(held); /* entry */
	if (!error)
		error = next_syscall_stop(held); /* exit */
	if (!error && ptrace(PTRACE_GETREGS, held->tid, 0, &regs))
		error = -errno;
	return error ? error : (int64_t)regs.rax;
}

/**
 * Before the first borrowed call: does the held thread still run in the memory that @mem_fd was
 * opened for? It may have executed another program since, and @syscall_at would be anything there.
 * Returns 0 or -ESTALE.
 */
int tp_check_memory(const struct tp_held *held, int mem_fd, uint64_t syscall_at)
{
	static const uint8_t wanted[] = { 0x0f, 0x05 };
	uint8_t behind_fd[sizeof(wanted)], of_thread[sizeof(wanted)];
	struct iovec local = { of_thread, sizeof(of_thread) };
	struct iovec remote = { (void *)syscall_at, sizeof(of_thread) };

	if (pread(mem_fd, behind_fd, sizeof(behind_fd), (off_t)syscall_at) != sizeof(wanted) ||
	    process_vm_readv(held->tid, &local, 1, &remote, 1, 0) != sizeof(wanted))
		return -ESTALE;
	return memcmp(behind_fd, wanted, sizeof(wanted)) ||
			       memcmp(of_thread, wanted, sizeof(wanted)) ?
		       -ESTALE :
		       0;
}

/*
 * Back to a stop inside the kernel's signal path: registers restored there are looked at again for
 * an interrupted system call, so its restart is the kernel's own.
 */
static int to_event_stop(struct tp_held *held)
{
	return run_to_event_stop(held, 0);
}

/** Put everything back and let the thread run. */
int tp_release(struct tp_held *held)
{
	int error = 0;

	if (!held->stopped)
		return -ESRCH;
	if (held->in_syscall_stop)
		error = to_event_stop(held);
	if (!error && ptrace(PTRACE_SETREGS, held->tid, 0, &held->saved))
		error = -errno;
	if (!error && held->masked &&
	    ptrace(PTRACE_SETSIGMASK_NR, held->tid, (void *)8, &held->saved_mask))
		error = -errno;
	tp_drop(held->tid, &held->lift);
	if (held->stopped && ptrace(PTRACE_DETACH, held->tid, 0, 0) && !error)
		error = -errno;
	held->until_ns = tp_now_ns();
	held->stopped = false;
	move_back(held);
	return error;
}
