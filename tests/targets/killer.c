// SPDX-License-Identifier: Apache-2.0
/**
 * @file
 * Preloaded into the tool: kills it, as nobody can be prepared for, at its KILL_AT-th call of
 * ptrace or, with KILL_IN=syscall, of syscall. Calls of its helper processes count too, but it is
 * always the tool that dies.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <signal.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

typedef long call_fn(long, long, long, long, long, long, long);

/* Found at the start: the dynamic linker's locks are of no use to a helper whose parent is dead. */
static call_fn *next_ptrace, *next_syscall;

static pid_t tool;
static int kill_at, calls;
static const char *kill_in;

__attribute__((constructor)) static void prepare(void)
{
	const char *at = getenv("KILL_AT");

	tool = getpid();
	kill_at = at ? atoi(at) : 0;
	kill_in = getenv("KILL_IN");
	next_ptrace = (call_fn *)dlsym(RTLD_NEXT, "ptrace");
	next_syscall = (call_fn *)dlsym(RTLD_NEXT, "syscall");
}

static void count(const char *name)
{
	if (kill_in && !strcmp(kill_in, name) &&
	    __atomic_add_fetch(&calls, 1, __ATOMIC_SEQ_CST) == kill_at)
		kill(tool, SIGKILL);
}

#define FORWARD(name)                                                           \
	long name(long number, ...)                                             \
	{                                                                       \
		long a[6];                                                      \
		va_list list;                                                   \
                                                                                \
		va_start(list, number);                                         \
		for (int i = 0; i < 6; i++)                                     \
			a[i] = va_arg(list, long);                              \
		va_end(list);                                                   \
		count(#name);                                                   \
		return next_##name(number, a[0], a[1], a[2], a[3], a[4], a[5]); \
	}

FORWARD(ptrace)
FORWARD(syscall)
