/* SPDX-License-Identifier: Apache-2.0 */
/** @file Readers of proc/PID/task/TID/status and stat. */
#include "status.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define WORKERS_MASK \
	0xfffffffffffbfeffull	      /* all but SIGKILL and SIGSTOP: no program can block more */
#define KERNEL_WORKER (0x10 | 0x4000) /* PF_IO_WORKER | PF_USER_WORKER */

/** A file of a thread in proc, or NULL and errno. */
FILE *tp_open_of_thread(pid_t pid, pid_t tid, const char *name)
{
	char path[64];

	snprintf(path, sizeof(path), "/proc/%d/task/%d/%s", pid, tid, name);
	return fopen(path, "re");
}

/* What stands behind "@field:\t" when @line begins so, or NULL. */
static const char *value_of(const char *line, const char *field)
{
	size_t length = strlen(field);

	return strncmp(line, field, length) || line[length] != ':' ? NULL : line + length + 2;
}

static void take_line(struct tp_thread *thread, const char *line)
{
	const char *value;

	if ((value = value_of(line, "Name")))
		snprintf(thread->name, sizeof(thread->name), "%.*s", (int)strcspn(value, "\n"),
			 value);
	else if ((value = value_of(line, "State")))
		thread->state = *value;
	else if ((value = value_of(line, "TracerPid")))
		thread->tracer = (int32_t)strtol(value, NULL, 10);
	else if ((value = value_of(line, "SigPnd")))
		thread->pending = strtoull(value, NULL, 16);
	else if ((value = value_of(line, "ShdPnd")))
		thread->shared_pending = strtoull(value, NULL, 16);
	else if ((value = value_of(line, "SigBlk")))
		thread->blocked = strtoull(value, NULL, 16);
	else if ((value = value_of(line, "Seccomp")))
		thread->seccomp = (uint32_t)strtoul(value, NULL, 10);
}

/** Read the status of one thread. Returns 0 or -errno; -ESRCH and -ENOENT: it has ended. */
int tp_read_status(pid_t pid, pid_t tid, struct tp_thread *thread)
{
	FILE *file = tp_open_of_thread(pid, tid, "status");
	char line[256]; /* what is longer is a list of groups: its rest begins like no field */
	int error;

	*thread = (struct tp_thread){ .tid = tid };
	if (!file)
		return -errno;
	errno = 0;
	while (fgets(line, sizeof(line), file))
		take_line(thread, line);
	error = thread->state ? 0 : errno ? -errno : -ESRCH;
	fclose(file);
	return error;
}

/** A thread of the kernel's own (io_uring's), which never runs the program's code? */
bool tp_is_kernel_worker(pid_t pid, pid_t tid)
{
	FILE *file = tp_open_of_thread(pid, tid, "stat");
	const char *behind_name = NULL;
	unsigned int flags = 0;
	char text[512];

	if (file && fgets(text, sizeof(text), file))
		behind_name = strrchr(text, ')');
	if (file)
		fclose(file);
	return behind_name && sscanf(behind_name + 1, " %*c %*d %*d %*d %*d %*d %u", &flags) == 1 &&
	       flags & KERNEL_WORKER;
}

/** The list of a process's threads; NULL and errno when there is none. */
DIR *tp_open_tasks(pid_t pid)
{
	char path[32];

	snprintf(path, sizeof(path), "/proc/%d/task", pid);
	return opendir(path);
}

/** The next thread of an open task directory: its id, 0 at the end, or -errno. */
pid_t tp_next_thread(DIR *tasks)
{
	struct dirent *entry;

	do {
		errno = 0;
		entry = readdir(tasks);
	} while (entry && atoi(entry->d_name) <= 0);
	return entry ? atoi(entry->d_name) : -errno;
}

static int by_tid(const void *a, const void *b)
{
	const struct tp_thread *x = a, *y = b;

	return x->tid < y->tid ? -1 : x->tid > y->tid;
}

/**
 * All threads of a process but the kernel's workers, by id. Returns how many, of which at most
 * @room are filled in, or -errno: -ESRCH when it is gone.
 */
int64_t tp_read_threads(pid_t pid, struct tp_thread *threads, uint64_t room)
{
	struct tp_thread thread;
	uint64_t count = 0;
	DIR *tasks = tp_open_tasks(pid);
	int error = 0;
	pid_t tid;

	if (!tasks)
		return errno == ENOENT ? -ESRCH : -errno;
	while ((tid = tp_next_thread(tasks)) > 0) {
		error = tp_read_status(pid, tid, &thread);
		if (error == -ESRCH || error == -ENOENT)
			continue; /* it has ended meanwhile */
		if (error)
			break;
		if (thread.blocked == WORKERS_MASK && tp_is_kernel_worker(pid, tid))
			continue;
		if (count < room)
			threads[count] = thread;
		count++;
	}
	closedir(tasks);
	if (tid > 0 || (tid < 0 && tid != -ENOENT))
		return tid > 0 ? error : tid;
	if (threads)
		qsort(threads, count < room ? count : room, sizeof(*threads), by_tid);
	return count ? (int64_t)count : -ESRCH;
}
