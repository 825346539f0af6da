// SPDX-License-Identifier: Apache-2.0
/**
 * @file
 * Preloaded into the tool: kills it, as nobody can be prepared for, at its KILL_AT-th call of the
 * function KILL_IN (ptrace, syscall, pread64, ...). Calls of its helper processes count too, but
 * it is always the tool that dies; with KILL_PID it is that process, the target, and the tool must
 * make the best of it. With KILL_FROM calls count from the first opening of a file whose path
 * begins so. The tool leaves the number of calls in the file KILL_COUNT, if it comes to its end.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

enum { DYING_MS = 200 };

typedef long call_fn(long, long, long, long, long, long, long);

static pid_t tool, victim;
static int kill_at, calls, begun;
static const char *kill_in, *begin_at;

/* Found at the start: the dynamic linker's locks are of no use to a helper whose parent is dead. */
#define FUNCTIONS(X) X(ptrace) X(syscall) X(pread64) X(pwrite64) X(waitpid) X(sendmsg) X(open64)
#define POINTER(name) static call_fn *next_##name;
FUNCTIONS(POINTER)
#define FIND(name) next_##name = (call_fn *)dlsym(RTLD_NEXT, #name);

static int number_of(const char *name)
{
	const char *text = getenv(name);

	return text ? atoi(text) : 0;
}

__attribute__((constructor)) static void prepare(void)
{
	FUNCTIONS(FIND)
	tool = getpid();
	victim = number_of("KILL_PID") ? number_of("KILL_PID") : tool;
	kill_at = number_of("KILL_AT");
	kill_in = getenv("KILL_IN");
	begin_at = getenv("KILL_FROM");
	begun = !begin_at;
}

__attribute__((destructor)) static void tell(void)
{
	const char *path = getenv("KILL_COUNT");
	FILE *file = path && getpid() == tool ? fopen(path, "w") : NULL;

	if (file) {
		fprintf(file, "%d\n", calls);
		fclose(file);
	}
}

/* A target that is dead at once is the harder case: wait for that. */
static void strike(void)
{
	struct pollfd ended = { .events = POLLIN };

	ended.fd = (int)next_syscall(SYS_pidfd_open, victim, 0, 0, 0, 0, 0);
	kill(victim, SIGKILL);
	if (ended.fd < 0)
		return;
	if (victim != tool)
		poll(&ended, 1, DYING_MS);
	close(ended.fd);
}

static void count(const char *name)
{
	if (begun && kill_in && !strcmp(kill_in, name) &&
	    __atomic_add_fetch(&calls, 1, __ATOMIC_SEQ_CST) == kill_at)
		strike();
}

static void look_at(const char *name, long first)
{
	if (!begun && !strcmp(name, "open64") &&
	    !strncmp((const char *)first, begin_at, strlen(begin_at)))
		begun = 1;
}

#define FORWARD(name)                                                          \
	long forward_##name(long first, ...) __asm__(#name);                   \
	long forward_##name(long first, ...)                                   \
	{                                                                      \
		long a[6];                                                     \
		va_list list;                                                  \
                                                                               \
		va_start(list, first);                                         \
		for (int i = 0; i < 6; i++)                                    \
			a[i] = va_arg(list, long);                             \
		va_end(list);                                                  \
		look_at(#name, first);                                         \
		count(#name);                                                  \
		return next_##name(first, a[0], a[1], a[2], a[3], a[4], a[5]); \
	}

FUNCTIONS(FORWARD)
