/* SPDX-License-Identifier: Apache-2.0 */
/**
 * @file
 * What the agent's thread owes its host: no more privilege than the program has (libc's setuid
 * does not reach a thread that it does not know), and not to keep a dead process alive.
 */
#include <linux/capability.h>

#include "agent.h"

#define STATUS_BYTES 2048
#define PR_GET_DUMPABLE_NR 3
#define PR_SET_DUMPABLE_NR 4

/** Keep what is needed to follow the program's ids (two capabilities, as root only), drop the rest. */
void tpa_drop_privileges(void)
{
	struct __user_cap_header_struct header = { .version = _LINUX_CAPABILITY_VERSION_3 };
	struct __user_cap_data_struct data[2] = { { 0 }, { 0 } };

	sys3(__NR_getresuid, (long)&tpa.ids[0], (long)&tpa.ids[1], (long)&tpa.ids[2]);
	sys3(__NR_getresgid, (long)&tpa.ids[3], (long)&tpa.ids[4], (long)&tpa.ids[5]);
	if (sys0(__NR_geteuid) == 0) {
		data[0].permitted = 1u << CAP_SETUID | 1u << CAP_SETGID;
		data[0].effective = data[0].permitted;
	}
	sys2(__NR_capset, (long)&header, (long)data);
}

/** What follows @name at the start of a line of @text, or NULL. */
const char *tpa_field(const char *text, const char *name)
{
	for (const char *line = text; *line; line++) {
		size_t i = 0;

		while (name[i] && line[i] == name[i])
			i++;
		if (!name[i])
			return line + i;
		while (*line && *line != '\n')
			line++;
		if (!*line)
			break;
	}
	return NULL;
}

static const char *number(const char *text, uint32_t *value)
{
	*value = 0;
	while (*text == '\t' || *text == ' ')
		text++;
	while (*text >= '0' && *text <= '9')
		*value = *value * 10 + (uint32_t)(*text++ - '0');
	return text;
}

static int read_ids(const char *text, uint32_t ids[6])
{
	const char *uid = tpa_field(text, "Uid:"), *gid = tpa_field(text, "Gid:");

	if (!uid || !gid)
		return 0;
	for (int i = 0; i < 3; i++)
		uid = number(uid, &ids[i]);
	for (int i = 3; i < 6; i++)
		gid = number(gid, &ids[i]);
	return 1;
}

static int same_ids(const uint32_t a[6], const uint32_t b[6])
{
	for (int i = 0; i < 6; i++)
		if (a[i] != b[i])
			return 0;
	return 1;
}

/* A change of the effective ids makes the whole process undumpable; the program has decided that
 * for itself already, so put its choice back. */
static void follow_ids(const uint32_t ids[6])
{
	long dumpable = sys1(__NR_prctl, PR_GET_DUMPABLE_NR);

	if (ids[1] != 0)
		sys2(__NR_setgroups, 0, 0);
	sys3(__NR_setresgid, ids[3], ids[4], ids[5]);
	sys3(__NR_setresuid, ids[0], ids[1], ids[2]);
	if (dumpable == 0 || dumpable == 1)
		sys2(__NR_prctl, PR_SET_DUMPABLE_NR, dumpable);
	tpa_copy(tpa.ids, ids, sizeof(tpa.ids));
}

/* In another user namespace than the tool's the file speaks of other numbers: not to be followed. */
static void watch_ids(const char *text)
{
	uint32_t ids[6];

	if (tpa.ids_watched && read_ids(text, ids) && !same_ids(ids, tpa.ids))
		follow_ids(ids);
}

/* The program's last thread has left by a raw exit: the leader is a zombie and only we remain. */
static int alone(const char *text)
{
	const char *state = tpa_field(text, "State:"), *threads = tpa_field(text, "Threads:");
	uint32_t count = 0;

	if (!state || !threads)
		return 0;
	while (*state == '\t' || *state == ' ')
		state++;
	number(threads, &count);
	return (*state == 'Z' || *state == 'X') && count <= 2;
}

/* Returns the length of the text, 0 when it cannot be read. */
static long read_text(int fd, char text[STATUS_BYTES])
{
	long bytes = fd < 0 ? -1 : sys4(__NR_pread64, fd, (long)text, STATUS_BYTES - 1, 0);

	if (sys_failed(bytes))
		bytes = 0;
	text[bytes] = 0;
	return bytes;
}

/* What the leader left with: the last field of its stat file, in the form that wait(2) gives. */
static int leader_status(void)
{
	char text[STATUS_BYTES];
	const char *at = text + read_text(tpa.stat_fd, text);
	uint32_t status;

	while (at > text && at[-1] != ' ')
		at--;
	number(at, &status);
	return (int)(status >> 8 & 0xff);
}

/* The program has filtered system calls since we came, perhaps ours too: no more than must be. */
static int is_filtered(const char *text)
{
	const char *at = tpa_field(text, "Seccomp:");
	uint32_t mode = 0;

	if (at)
		number(at, &mode);
	return mode != 0;
}

/** Called now and then by the agent's thread. */
void tpa_watch(void)
{
	char text[STATUS_BYTES];
	bool known = read_text(tpa.status_fd, text) != 0;

	if (known && alone(text)) /* who leaves last gives the whole process its status (5.19) */
		sys1(__NR_exit, leader_status());
	tpa.is_filtered = known && is_filtered(text);
	if (tpa.is_filtered)
		return;
	tpa_retire_rings();
	tpa_watch_tool();
	if (known)
		watch_ids(text);
}
