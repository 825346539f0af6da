/* SPDX-License-Identifier: Apache-2.0 */
/**
 * @file
 * What the agent does when its tool has died: no more events, and every site back that it may put
 * back alone. A tool holds a lock on the shared object, which the kernel drops with it; so no heart
 * has to beat, and a tool that is merely stopped still counts as there.
 */
#include "agent.h"

#define LOCK_EX_NB 6
#define LOCK_UN_NR 8
#define STRANGERS 100000
#define SCHED_RESET_ON_FORK_NR 0x40000000
#define STATUS_BYTES 2048
#define ENTRIES_BYTES 2048
#define PF_IO_WORKER_FLAG 0x10
#define PF_USER_WORKER_FLAG 0x4000
#define IS(mode) (1u << (mode))

struct dirent64 {
	uint64_t inode;
	int64_t offset;
	uint16_t bytes;
	uint8_t type;
	char name[];
};

static struct {
	long policy;
	int priority;
	long mask_bytes;
	uint64_t mask[16];
} usual;

static int is_blocked(const char *text)
{
	const char *mask = tpa_field(text, "SigBlk:");
	int digits = 0;

	if (!mask)
		return 1; /* unknown: never gamble */
	while (*mask == '\t' || *mask == ' ')
		mask++;
	while (mask[digits] > ' ')
		digits++;
	if (digits < 2)
		return 1;
	mask += digits - 2;
	return (*mask > '9' ? *mask - 'a' + 10 : *mask - '0') & 1;
}

/* "TID/NAME" below the task directory, as text; empty when the thread is gone. */
static void read_of_thread(const char *tid, const char *name, char text[STATUS_BYTES])
{
	char path[32];
	size_t i = 0;
	long fd, bytes;

	text[0] = 0;
	for (; tid[i] && i < 16; i++)
		path[i] = tid[i];
	path[i++] = '/';
	while (*name)
		path[i++] = *name++;
	path[i] = 0;
	fd = sys4(__NR_openat, tpa.task_fd, (long)path, 02000000, 0);
	if (sys_failed(fd))
		return;
	bytes = sys3(__NR_read, fd, (long)text, STATUS_BYTES - 1);
	sys1(__NR_close, fd);
	text[sys_failed(bytes) ? 0 : bytes] = 0;
}

/* The kernel's own workers (io_uring's) stand in the task list too and block all signals; the
 * seventh field behind the name is the flags. */
static int is_kernel_worker(const char *tid)
{
	char text[STATUS_BYTES];
	const char *at = text;
	uint32_t flags = 0;

	read_of_thread(tid, "stat", text);
	for (const char *c = text; *c; c++)
		if (*c == ')')
			at = c;
	for (int field = 0; *at && field < 7; at++)
		field += *at == ' ';
	while (*at >= '0' && *at <= '9')
		flags = flags * 10 + (uint32_t)(*at++ - '0');
	return (flags & (PF_IO_WORKER_FLAG | PF_USER_WORKER_FLAG)) != 0;
}

/* A thread that is gone blocks nothing. */
static int thread_blocks(const char *tid)
{
	char text[STATUS_BYTES];
	const char *state;

	read_of_thread(tid, "status", text);
	state = tpa_field(text, "State:");
	while (state && (*state == '\t' || *state == ' '))
		state++;
	if (!state || *state == 'Z' || *state == 'X')
		return 0;
	return is_blocked(text) && !is_kernel_worker(tid);
}

static int is_us(const char *tid)
{
	uint32_t number = 0;

	while (*tid >= '0' && *tid <= '9')
		number = number * 10 + (uint32_t)(*tid++ - '0');
	return number == tpa.seen_tid;
}

/* May an int3 be written? Not while a thread blocks SIGTRAP; where the threads cannot be seen, no. */
static int no_thread_blocks_sigtrap(void)
{
	char entries[ENTRIES_BYTES] __attribute__((aligned(8)));
	long bytes;

	if (tpa.task_fd < 0 || sys_failed(sys3(__NR_lseek, tpa.task_fd, 0, 0)))
		return 0;
	while ((bytes = sys3(__NR_getdents64, tpa.task_fd, (long)entries, ENTRIES_BYTES)) > 0)
		for (long at = 0; at < bytes;) {
			const struct dirent64 *entry = (const void *)(entries + at);

			at += entry->bytes;
			if (entry->name[0] != '.' && !is_us(entry->name) &&
			    thread_blocks(entry->name))
				return 0;
		}
	return bytes == 0;
}

/** How this thread was born: see tpa_be_as_usual(). */
void tpa_note_usual(void)
{
	usual.policy = sys1(__NR_sched_getscheduler, 0);
	sys2(__NR_sched_getparam, 0, (long)&usual.priority);
	usual.mask_bytes = sys3(__NR_sched_getaffinity, 0, sizeof(usual.mask), (long)usual.mask);
}

static bool is_unusual(void)
{
	long policy = tpa.is_filtered ? usual.policy : sys1(__NR_sched_getscheduler, 0);

	return (policy | SCHED_RESET_ON_FORK_NR) != (usual.policy | SCHED_RESET_ON_FORK_NR);
}

/**
 * Called when no command has come for a while: a tool that died while it waited for us has left us on
 * its processor and before others (control/scheduling.c). The flag that it came with stays.
 */
void tpa_be_as_usual(void)
{
	if (!is_unusual())
		return;
	if (usual.mask_bytes > 0)
		sys3(__NR_sched_setaffinity, 0, usual.mask_bytes, (long)usual.mask);
	sys3(__NR_sched_setscheduler, 0, usual.policy | SCHED_RESET_ON_FORK_NR,
	     (long)&usual.priority);
}

/* Sites written in stop mode stay: only a tool can hold the threads. They do nothing any more. */
static void turn_off(void)
{
	uint64_t strangers = STRANGERS;
	uint64_t flags = tpa_any_frames() ? TP_BATCH_GUARDS : 0; /* only a tool can let frames go */
	struct tp_outcome outcome;

	if (tpa_any_gate_open())
		tpa_image.orphaned++;
	tpa_close_gates();
	if (tpa_any_patched(IS(TP_MODE_DIRECT)))
		tpa_undo(IS(TP_MODE_DIRECT), TP_MODE_DIRECT, flags, &strangers, &outcome);
	strangers = STRANGERS;
	if (tpa_any_patched(IS(TP_MODE_INT3)) && no_thread_blocks_sigtrap())
		tpa_undo(IS(TP_MODE_INT3), TP_MODE_INT3, flags, &strangers, &outcome);
}

/** Called now and then by the agent's thread. */
void tpa_watch_tool(void)
{
	if (tpa_image.keep || tpa.engine.broken || tpa.mem_fd < 0 ||
	    (!tpa_any_gate_open() && !tpa_any_patched(IS(TP_MODE_DIRECT) | IS(TP_MODE_INT3))))
		return;
	if (sys_failed(sys2(__NR_flock, tpa.shared_fd, LOCK_EX_NB)))
		return; /* a tool is there */
	turn_off();
	sys2(__NR_flock, tpa.shared_fd, LOCK_UN_NR);
}
