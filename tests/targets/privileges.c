// SPDX-License-Identifier: Apache-2.0
/**
 * @file
 * A program that changes what it may do. Each argument is done before it is ready: "nobody",
 * "undumpable", "mdwe", "seccomp", "chroot=DIRECTORY". Lines: "drop" (root and all groups),
 * "dumpable" (make it so again, and tell), "work", "quit".
 */
#define _GNU_SOURCE
#include <errno.h>
#include <grp.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <sys/prctl.h>

#include "target.h"

#ifndef PR_SET_MDWE
#define PR_SET_MDWE 65
#endif
#define NOBODY 65534

static volatile unsigned long sum;

TRACED void work(unsigned long x)
{
	sum += x;
}

PLAIN static int drop_root(void)
{
	return setgroups(0, NULL) || setresgid(NOBODY, NOBODY, NOBODY) ||
	       setresuid(NOBODY, NOBODY, NOBODY);
}

/* A filter that allows everything: it is there, that is enough. */
PLAIN static int filter_calls(void)
{
	struct sock_filter allow = BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW);
	struct sock_fprog program = { 1, &allow };

	return prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) ||
	       prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &program);
}

PLAIN static int prepare(const char *what)
{
	if (!strcmp(what, "nobody"))
		return drop_root() || prctl(PR_SET_DUMPABLE, 1);
	if (!strcmp(what, "undumpable"))
		return prctl(PR_SET_DUMPABLE, 0);
	if (!strcmp(what, "mdwe"))
		return prctl(PR_SET_MDWE, 1, 0, 0, 0);
	if (!strcmp(what, "seccomp"))
		return filter_calls();
	if (!strncmp(what, "chroot=", 7))
		return chroot(what + 7) || chdir("/");
	return 1;
}

PLAIN int main(int argc, char **argv)
{
	for (int i = 1; i < argc; i++)
		if (prepare(argv[i])) {
			say("%s: %s", argv[i], strerror(errno));
			return 1;
		}
	say_ready();
	for (;;) {
		const char *line = hear();

		work(1);
		if (!strcmp(line, "drop"))
			say("%d", drop_root());
		else if (!strcmp(line, "dumpable"))
			say("%d", prctl(PR_SET_DUMPABLE, 1));
		else if (!strcmp(line, "is dumpable"))
			say("%d", prctl(PR_GET_DUMPABLE));
		else if (!strcmp(line, "work"))
			say("%lu", sum);
		else
			return 0;
	}
}
