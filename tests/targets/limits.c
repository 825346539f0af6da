// SPDX-License-Identifier: Apache-2.0
/**
 * @file
 * A program that lives within limits. Arguments before "ready", lines after it (each answered by
 * its result): "as" "fsize" "nofile" "nproc" (soft limits too small for us), "crowd" (no room within
 * 2 GiB of the program), "lock" (all memory locked), "undumpable", "unshare WHAT" (user mnt pid),
 * "filter WHO HOW" (seccomp; WHO: one, all threads; HOW: errno, kill for what we need and it does
 * not), "thread" (a new thread works), "work" (calls so far), "quit".
 */
#define _GNU_SOURCE
#include <errno.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <pthread.h>
#include <sched.h>
#include <stddef.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/resource.h>

#include "target.h"

#define NOBODY 65534

static volatile unsigned long sum;

TRACED void work(unsigned long x)
{
	sum += x;
}

PLAIN static int limit(int what, rlim_t value)
{
	struct rlimit now;

	if (getrlimit(what, &now))
		return errno;
	now.rlim_cur = value;
	return setrlimit(what, &now) ? errno : 0;
}

PLAIN static unsigned long used_bytes(void)
{
	unsigned long pages = 0;
	FILE *file = fopen("/proc/self/statm", "re");

	if (file && fscanf(file, "%lu", &pages) != 1)
		pages = 0;
	if (file)
		fclose(file);
	return pages * 4096;
}

/* Every hole within reach of a CALL is taken by a map without any right. */
PLAIN static int crowd(void)
{
	const unsigned long middle = (unsigned long)work & -4096ul, reach = 3ul << 30;
	unsigned long at = middle > reach ? middle - reach : 65536;

	for (unsigned long bytes = 1ul << 30; bytes >= 4096; bytes /= 2)
		for (unsigned long to = at; to < middle + reach; to += bytes)
			mmap((void *)to, bytes, PROT_NONE,
			     MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_FIXED_NOREPLACE, -1,
			     0);
	return 0;
}

/* What a sandbox would not know of: the calls of the agent's thread and of a first event. */
PLAIN static int filter(int all, unsigned int answer)
{
	struct sock_filter code[] = {
		BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr)),
		BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_process_vm_readv, 4, 0),
		BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_membarrier, 3, 0),
		BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_pwrite64, 2, 0),
		BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_tgkill, 1, 0),
		BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
		BPF_STMT(BPF_RET | BPF_K, answer),
	};
	struct sock_fprog program = { sizeof(code) / sizeof(*code), code };

	if (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0))
		return errno;
	return syscall(SYS_seccomp, SECCOMP_SET_MODE_FILTER, all ? SECCOMP_FILTER_FLAG_TSYNC : 0,
		       &program) ?
		       errno :
		       0;
}

PLAIN static void *work_once(void *nothing)
{
	work(1);
	return nothing;
}

PLAIN static int new_thread(void)
{
	pthread_t thread;

	return pthread_create(&thread, NULL, work_once, NULL) || pthread_join(thread, NULL);
}

PLAIN static int obey(const char *line)
{
	char what[8] = "", how[8] = "";

	if (!strcmp(line, "as"))
		return limit(RLIMIT_AS, used_bytes() + (1 << 20));
	if (!strcmp(line, "fsize"))
		return limit(RLIMIT_FSIZE, 4096);
	if (!strcmp(line, "nofile"))
		return limit(RLIMIT_NOFILE, 0);
	if (!strcmp(line, "nproc"))
		return limit(RLIMIT_NPROC, 1) || setresuid(NOBODY, NOBODY, NOBODY);
	if (!strcmp(line, "crowd"))
		return crowd();
	if (!strcmp(line, "lock"))
		return mlockall(MCL_CURRENT | MCL_FUTURE) ? errno : 0;
	if (!strcmp(line, "undumpable"))
		return prctl(PR_SET_DUMPABLE, 0) ? errno : 0;
	if (sscanf(line, "unshare %7s", what) == 1)
		return unshare(what[0] == 'u' ? CLONE_NEWUSER :
			       what[0] == 'm' ? CLONE_NEWNS :
						CLONE_NEWPID) ?
			       errno :
			       0;
	if (sscanf(line, "filter %7s %7s", what, how) == 2)
		return filter(what[0] == 'a',
			      how[0] == 'k' ? SECCOMP_RET_KILL_PROCESS : SECCOMP_RET_ERRNO | 1);
	if (!strcmp(line, "thread"))
		return new_thread();
	if (!strcmp(line, "work"))
		return (int)sum;
	exit(0);
}

PLAIN int main(int argc, char **argv)
{
	alarm(LIFE_S);
	for (int i = 1; i < argc; i++)
		if (obey(argv[i]))
			return 2;
	say("ready");
	for (;;) {
		const char *line = hear();

		work(1);
		say("%d", obey(line));
	}
}
