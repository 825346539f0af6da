// SPDX-License-Identifier: Apache-2.0
/**
 * @file
 * Counts the branches of a program by stepping it, one instruction after the other: slow, and sure.
 *
 *     branch_steps FD MODULE FIRST COMMAND... <BRANCHES
 *
 * MODULE is a file's path as in proc/PID/maps, FIRST the ELF address of its first byte in memory. BRANCHES
 * are lines "VADDR TARGET", hexadecimal. The command has FD for its stdin; it is over when it
 * has waited for a second or two. Then lines "VADDR TAKEN NOT_TAKEN" are written.
 */
#define _GNU_SOURCE
#include <elf.h>
#include <errno.h>
#include <signal.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/personality.h>
#include <sys/ptrace.h>
#include <sys/time.h>
#include <sys/user.h>
#include <sys/wait.h>
#include <unistd.h>

enum { MOST_BRANCHES = 1 << 20, WAIT_S = 1 };

struct branch {
	uint64_t vaddr, target, taken, not_taken;
};

static struct branch branches[MOST_BRANCHES];
static size_t count;
static uint64_t bias, low, high; /* of the module; nothing yet: 0 */

static int compare(const void *left, const void *right)
{
	const struct branch *a = left, *b = right;

	return (a->vaddr > b->vaddr) - (a->vaddr < b->vaddr);
}

static void read_branches(void)
{
	while (count < MOST_BRANCHES && scanf("%lx %lx", &branches[count].vaddr,
					      &branches[count].target) == 2)
		count++;
	qsort(branches, count, sizeof(*branches), compare);
}

static void find_module(pid_t pid, const char *module, uint64_t first)
{
	char path[64], line[4096];
	FILE *maps;

	snprintf(path, sizeof(path), "/proc/%d/maps", pid);
	maps = fopen(path, "r");
	while (maps && fgets(line, sizeof(line), maps)) {
		uint64_t start, end;
		char *name = strchr(line, '/');

		line[strcspn(line, "\n")] = 0;
		if (!name || strcmp(name, module) || sscanf(line, "%lx-%lx", &start, &end) != 2)
			continue;
		if (!low) {
			low = start;
			bias = start - first;
		}
		high = end;
	}
	if (maps)
		fclose(maps);
}

static struct branch *branch_at(uint64_t rip)
{
	struct branch key = { .vaddr = rip - bias };

	if (rip < low || rip >= high)
		return NULL;
	return bsearch(&key, branches, count, sizeof(*branches), compare);
}

static volatile sig_atomic_t alarms; /* since the last step */

static void on_alarm(int number)
{
	(void)number;
	alarms++;
}

/* Returns false when the program waits, or has ended. */
static int step(pid_t pid, int *status)
{
	if (ptrace(PTRACE_SINGLESTEP, pid, NULL, NULL))
		return 0;
	alarms = 0;
	while (waitpid(pid, status, 0) != pid)
		if (errno != EINTR || alarms > 1)
			return 0;
	return WIFSTOPPED(*status);
}

static void run(pid_t pid, const char *module, uint64_t first)
{
	struct branch *before = NULL;
	uint64_t last = 0;
	int status;

	while (step(pid, &status)) {
		uint64_t rip = (uint64_t)ptrace(PTRACE_PEEKUSER, pid,
						offsetof(struct user_regs_struct, rip), NULL);

		if (before) {
			if (rip == before->target + bias)
				before->taken++;
			else
				before->not_taken++;
		}
		/* Far away: the loader may have mapped it meanwhile. */
		if (!low && (rip > last + 65536 || rip + 65536 < last))
			find_module(pid, module, first);
		last = rip;
		before = branch_at(rip);
	}
}

int main(int argc, char **argv)
{
	const struct sigaction action = { .sa_handler = on_alarm };
	const struct itimerval often = { { WAIT_S, 0 }, { WAIT_S, 0 } };
	pid_t pid;

	if (argc < 5)
		return 2;
	read_branches();
	sigaction(SIGALRM, &action, NULL);
	pid = fork();
	if (!pid) {
		personality(ADDR_NO_RANDOMIZE);
		dup2(atoi(argv[1]), 0);
		ptrace(PTRACE_TRACEME, 0, NULL, NULL);
		execv(argv[4], argv + 4);
		_exit(127);
	}
	waitpid(pid, NULL, 0);
	setitimer(ITIMER_REAL, &often, NULL);
	run(pid, argv[2], strtoul(argv[3], NULL, 16));
	kill(pid, SIGKILL);
	waitpid(pid, NULL, 0);
	for (size_t i = 0; i < count; i++)
		printf("%lx %lu %lu\n", branches[i].vaddr, branches[i].taken,
		       branches[i].not_taken);
	return 0;
}
