/* SPDX-License-Identifier: Apache-2.0 */
/**
 * @file
 * Start a program and hold it at its entry point: its libraries are mapped, main() has not run.
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

/* One thread, stopped, before any code of the program: a plain breakpoint is safe here. */
static int run_to(struct tp_held *held, uint64_t entry)
{
	struct user_regs_struct regs;
	int status = 0, error;
	long word;

	errno = 0;
	word = ptrace(PTRACE_PEEKTEXT, held->tid, entry, 0);
	if (errno || ptrace(PTRACE_POKETEXT, held->tid, entry, (word & ~0xffl) | TP_INT3))
		return -errno;
	do {
		int signal = status && !(status >> 16) ? WSTOPSIG(status) : 0;

		held->stopped = false;
		if (ptrace(PTRACE_CONT, held->tid, 0, signal))
			return -errno;
		error = tp_wait_stop(held, &status);
	} while (!error && WSTOPSIG(status) != SIGTRAP);
	if (error)
		return error;
	if (ptrace(PTRACE_POKETEXT, held->tid, entry, word) ||
	    ptrace(PTRACE_GETREGS, held->tid, 0, &regs))
		return -errno;
	regs.rip = entry;
	return ptrace(PTRACE_SETREGS, held->tid, 0, &regs) ? -errno : 0;
}

static int hold_child(struct tp_held *held, int go_fd, int error_fd)
{
	uint64_t entry;
	int error;

	/* Until it is released it is half ours: it shall not run on by itself if we are killed. */
	if (ptrace(PTRACE_SEIZE, held->tid, 0,
		   PTRACE_O_TRACEEXEC | PTRACE_O_TRACESYSGOOD | PTRACE_O_EXITKILL))
		return -errno;
	if (write(go_fd, "g", 1) != 1)
		return -errno;
	error = wait_exec(held, error_fd);
	if (error)
		return error;
	held->since_ns = tp_now_ns();
	entry = entry_point(held->pid);
	error = entry ? run_to(held, entry) : -ENOEXEC;
	if (error)
		return error;
	error = tp_save_thread(held);
	if (!error)
		error = tp_block_signals(held);
	/* A signal-delivery stop: leave it by way of an event stop, like every other release. */
	held->in_syscall_stop = true;
	return error;
}

/**
 * Start @path and stop it at its entry point. Returns 0, or -errno of the exec or of ptrace; the
 * caller waits for the child (tp_held_pid).
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
