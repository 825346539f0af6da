/* SPDX-License-Identifier: Apache-2.0 */
/**
 * @file
 * Start a program and hold it at its start: its libraries are mapped, none of its code has run.
 */
#include <elf.h>
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ptrace.h>
#include <sys/wait.h>
#include <unistd.h>

#include "held.h"
#include "textpoke.h"

/* The child waits until it is seized, then becomes the program; a failed exec tells its errno. */
static void become(int go_fd, int error_fd, const char *path, char *const argv[],
		   char *const envp[])
{
	char byte;
	int error;

	if (read(go_fd, &byte, 1) == 1) {
		execve(path, argv, envp);
		error = errno;
		if (write(error_fd, &error, sizeof(error)) < 0)
			_exit(126);
	}
	_exit(127);
}

static int wait_exec(struct tp_held *held, int error_fd)
{
	int status, error, exec_errno;

	for (;;) {
		error = tp_wait_stop(held, &status);
		if (error) { /* ended before the exec: it says why */
			bool told = read(error_fd, &exec_errno, sizeof(exec_errno)) ==
				    sizeof(exec_errno);

			return told ? -exec_errno : error;
		}
		if (status >> 8 == (SIGTRAP | PTRACE_EVENT_EXEC << 8))
			return 0;
		held->stopped = false;
		if (ptrace(PTRACE_CONT, held->tid, 0, WSTOPSIG(status)))
			return -errno;
	}
}

static uint64_t entry_point(pid_t pid)
{
	uint64_t pair[2] = { 0, 0 }, entry = 0;
	char path[64];
	FILE *file;

	snprintf(path, sizeof(path), "/proc/%d/auxv", pid);
	file = fopen(path, "re");
	while (file && fread(pair, sizeof(pair), 1, file) == 1)
		if (pair[0] == AT_ENTRY)
			entry = pair[1];
	if (file)
		fclose(file);
	return entry;
}

/* A plain breakpoint is safe here: one thread, stopped, before any code of the program. */
struct stop {
	uint64_t addr;
	long word; /* what stood there */
};

static int set_stop(const struct tp_held *held, struct stop *stop)
{
	if (!stop->addr)
		return 0;
	errno = 0;
	stop->word = ptrace(PTRACE_PEEKTEXT, held->tid, stop->addr, 0);
	if (errno ||
	    ptrace(PTRACE_POKETEXT, held->tid, stop->addr, (stop->word & ~0xffl) | TP_INT3))
		return -errno;
	return 0;
}

static int clear_stop(const struct tp_held *held, const struct stop *stop)
{
	if (stop->addr && ptrace(PTRACE_POKETEXT, held->tid, stop->addr, stop->word))
		return -errno;
	return 0;
}

static int go_on(struct tp_held *held, int request, int status)
{
	int signal = status && !(status >> 16) && WSTOPSIG(status) != SIGTRAP ? WSTOPSIG(status) :
										0;

	held->stopped = false;
	return ptrace(request, held->tid, 0, signal) ? -errno : 0;
}

/* Run to one of two stops, and stand at it as if it was not there. Returns its index or -errno. */
static int run_to(struct tp_held *held, const struct stop stops[2])
{
	struct user_regs_struct regs;
	int status = 0, error, at = -1;

	while (at < 0) {
		error = go_on(held, PTRACE_CONT, status);
		if (!error)
			error = tp_wait_stop(held, &status);
		if (error)
			return error;
		if (WSTOPSIG(status) != SIGTRAP || status >> 16)
			continue;
		if (ptrace(PTRACE_GETREGS, held->tid, 0, &regs))
			return -errno;
		at = regs.rip - 1 == stops[1].addr ? 1 : regs.rip - 1 == stops[0].addr ? 0 : -1;
	}
	regs.rip--;
	return ptrace(PTRACE_SETREGS, held->tid, 0, &regs) ? -errno : at;
}

/* Execute the instruction under a stop. */
static int step_over(struct tp_held *held, struct stop *stop)
{
	int status, error = clear_stop(held, stop);

	if (!error)
		error = go_on(held, PTRACE_SINGLESTEP, 0);
	if (!error)
		error = tp_wait_stop(held, &status);
	return error ? error : set_stop(held, stop);
}

/* The loader calls stops[1] whenever its list of modules changes; *@state_at is 0 when it is done. */
static int run_to_start(struct tp_held *held, struct stop stops[2], uint64_t state_at)
{
	for (;;) {
		int at = run_to(held, stops), error;

		if (at <= 0)
			return at;
		errno = 0;
		if (!(int)ptrace(PTRACE_PEEKDATA, held->tid, state_at, 0))
			return errno ? -errno : 0;
		error = step_over(held, &stops[1]);
		if (error)
			return error;
	}
}

static int hold_child(struct tp_held *held, int go_fd, int error_fd)
{
	/* Until it is released it is half ours: it shall not run on by itself if we are killed. */
	if (ptrace(PTRACE_SEIZE, held->tid, 0,
		   PTRACE_O_TRACEEXEC | PTRACE_O_TRACESYSGOOD | PTRACE_O_EXITKILL))
		return -errno;
	if (write(go_fd, "g", 1) != 1)
		return -errno;
	return wait_exec(held, error_fd);
}

/**
 * Run a program that tp_launch() holds to its start: to where its loader, with all libraries mapped and
 * relocated, says so by a call of @loaded_at (an int at @state_at is then 0), before their
 * constructors; at the latest to its entry point. 0: there is no such place. Returns 0 or -errno.
 */
int tp_run_to_start(struct tp_held *held, uint64_t loaded_at, uint64_t state_at)
{
	struct stop stops[2] = { { entry_point(held->pid), 0 }, { loaded_at, 0 } };
	int error;

	if (!stops[0].addr)
		return -ENOEXEC;
	held->since_ns = tp_now_ns();
	error = set_stop(held, &stops[0]);
	if (!error)
		error = set_stop(held, &stops[1]);
	if (!error)
		error = run_to_start(held, stops, state_at);
	if (!error)
		error = clear_stop(held, &stops[0]);
	if (!error)
		error = clear_stop(held, &stops[1]);
	if (!error)
		error = tp_save_thread(held);
	if (!error)
		error = tp_block_signals(held);
	/* A signal-delivery stop: leave it by way of an event stop, like every other release. */
	held->in_syscall_stop = true;
	return error;
}

/**
 * Start @path and stop it before its first instruction. Returns 0, or -errno of the exec or of ptrace;
 * the caller goes on with tp_run_to_start(), and waits for the child (tp_held_pid).
 */
int tp_launch(struct tp_held *held, const char *path, char *const argv[], char *const envp[])
{
	int go[2], told[2], error;

	*held = (struct tp_held){ 0 };
	if (pipe2(go, O_CLOEXEC))
		return -errno;
	if (pipe2(told, O_CLOEXEC)) {
		error = -errno;
		close(go[0]);
		close(go[1]);
		return error;
	}
	held->pid = held->tid = fork();
	if (!held->pid)
		become(go[0], told[1], path, argv, envp);
	close(go[0]);
	close(told[1]);
	error = held->pid < 0 ? -errno : hold_child(held, go[1], told[0]);
	close(go[1]);
	close(told[0]);
	if (error && held->pid > 0) {
		kill(held->pid, SIGKILL);
		waitpid(held->pid, NULL, __WALL);
		held->stopped = false;
	}
	return error;
}
