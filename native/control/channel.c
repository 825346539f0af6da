/* SPDX-License-Identifier: Apache-2.0 */
/** @file Tool to agent: file descriptors through a socket pair, commands through a futex. */
#include <errno.h>
#include <linux/futex.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include "held.h"
#include "look.h"
#include "textpoke.h"

#ifndef PIDFD_THREAD
#define PIDFD_THREAD O_EXCL
#endif
#include <fcntl.h>

#define SLICE_MS 50
#define IDLE_MS 5000

/* Our copy of a descriptor of thread @tid, which has an fd table of its own (Linux 6.9). */
static int fetch_fd(pid_t tid, int remote_fd)
{
	int pidfd = (int)syscall(SYS_pidfd_open, tid, PIDFD_THREAD);
	int fd, error;

	if (pidfd < 0)
		return -errno;
	fd = (int)syscall(SYS_pidfd_getfd, pidfd, remote_fd, 0);
	error = fd < 0 ? -errno : fd;
	close(pidfd);
	return error;
}

/* Is the far end of the socket in thread @tid's own process? The target says which of its sockets it
 * is and may lie; what we send as root must not go to a stranger. */
static int is_its_own(int socket_fd, pid_t tid)
{
	struct ucred peer = { 0 };
	socklen_t bytes = sizeof(peer);
	char path[64];

	if (getsockopt(socket_fd, SOL_SOCKET, SO_PEERCRED, &peer, &bytes))
		return 0;
	snprintf(path, sizeof(path), "/proc/%d/task/%d", peer.pid, tid);
	return peer.pid > 0 && access(path, F_OK) == 0;
}

static int send_rights(int socket_fd, const int fds[TP_HANDED_FDS])
{
	char byte = 0;
	struct iovec vector = { &byte, 1 };
	union {
		struct cmsghdr align;
		char bytes[CMSG_SPACE(TP_HANDED_FDS * sizeof(int))];
	} control = { 0 };
	struct msghdr message = { .msg_iov = &vector,
				  .msg_iovlen = 1,
				  .msg_control = control.bytes,
				  .msg_controllen = sizeof(control.bytes) };
	struct cmsghdr *header = CMSG_FIRSTHDR(&message);

	header->cmsg_level = SOL_SOCKET;
	header->cmsg_type = SCM_RIGHTS;
	header->cmsg_len = CMSG_LEN(TP_HANDED_FDS * sizeof(int));
	memcpy(CMSG_DATA(header), fds, TP_HANDED_FDS * sizeof(int));
	return sendmsg(socket_fd, &message, MSG_NOSIGNAL | MSG_DONTWAIT) == 1 ? 0 : -errno;
}

/** Hand the target's mem, status and stat files to the agent: it may be unable to open its own. */
int tp_send_fds(pid_t tid, int remote_fd, const int fds[TP_HANDED_FDS])
{
	int socket_fd = fetch_fd(tid, remote_fd);
	int error;

	if (socket_fd < 0)
		return socket_fd;
	error = is_its_own(socket_fd, tid) ? send_rights(socket_fd, fds) : -EPERM;
	close(socket_fd);
	return error;
}

/** Has the agent's thread ended? The process may have become another program. */
bool tp_has_ended(int pid, int tid)
{
	char path[64];

	snprintf(path, sizeof(path), "/proc/%d/task/%d", pid, tid);
	return access(path, F_OK) != 0;
}

/* Returns non-zero when the slice is over and nothing was heard. */
static int wait_done(struct tp_wire *wire, uint32_t seen)
{
	const struct timespec span = { 0, SLICE_MS * 1000000l };

	return (int)syscall(SYS_futex, &wire->done_seq, FUTEX_WAIT, seen, &span, NULL, 0);
}

/* Does the agent's thread sleep where it waits for commands? A working one runs, or waits elsewhere. */
static int is_idle(pid_t pid, pid_t tid)
{
	char path[64], text[32];
	FILE *file;
	int idle = 0;

	snprintf(path, sizeof(path), "/proc/%d/task/%d/syscall", pid, tid);
	file = fopen(path, "re");
	if (file && fgets(text, sizeof(text), file))
		idle = strtol(text, NULL, 10) == SYS_futex && text[0] != 'r';
	if (file)
		fclose(file);
	return idle;
}

/* The agent asks in the midst of a batch; what is busy is told in the request area. Has it asked? */
static bool answer_look(struct tp_wire *wire, struct tp_windows *windows)
{
	struct tp_poke *request = tp_request_of(wire);
	uint32_t seq = __atomic_load_n(&wire->look_seq, __ATOMIC_SEQ_CST);
	int result;

	if (seq == __atomic_load_n(&wire->looked_seq, __ATOMIC_SEQ_CST))
		return false;
	result = windows->count ? tp_look_at_threads(windows) : 0;
	/* A parent in vfork does not stop. As the batch's result it would be an agent that is silent. */
	wire->look_result = result == -ETIMEDOUT ? -EAGAIN : result;
	for (uint64_t i = 0; windows->busy && i < windows->in->count; i++)
		if (windows->in->busy[i])
			request[i].outcome = TP_SITE_BUSY;
	__atomic_store_n(&wire->looked_seq, seq, __ATOMIC_SEQ_CST);
	syscall(SYS_futex, &wire->looked_seq, FUTEX_WAKE, 1, NULL, NULL, 0);
	return true;
}

static int run_command(struct tp_wire *wire, uint32_t command, const uint64_t *args, int timeout_ms,
		       int pid, int tid, struct tp_windows *windows);

/**
 * Run one command on the agent. Returns its result, -ESRCH when the agent's thread @tid has ended, or
 * -ETIMEDOUT; @timeout_ms < 0 waits for ever. An agent that does nothing all the while has lost the
 * command, by a target that writes where it should not: IDLE_MS are enough for that.
 */
int tp_command(struct tp_wire *wire, uint32_t command, const uint64_t *args, int timeout_ms,
	       int pid, int tid)
{
	struct tp_windows none = { 0 };

	return run_command(wire, command, args, timeout_ms, pid, tid, &none);
}

/** The same for a batch during which the agent may ask where the threads are. */
int tp_command_looking(struct tp_wire *wire, uint32_t command, const uint64_t *args, int timeout_ms,
		       const struct tp_look *look)
{
	struct tp_windows windows;
	int result = tp_windows_init(&windows, look);

	if (!result)
		result = run_command(wire, command, args, timeout_ms, look->pid, look->agent_tid,
				     &windows);
	tp_windows_deinit(&windows);
	return result;
}

static bool is_over(uint64_t since_ns, int ms)
{
	return ms >= 0 && tp_now_ns() - since_ns > (uint64_t)ms * 1000000ull;
}

/*
 * The command will not be waited for any more. A stopped process (SIGSTOP, a frozen cgroup) would carry
 * it out later: what needs all threads held must not be written then. Returns false when the agent has
 * begun to: that has to come to its end.
 */
static bool give_up(struct tp_wire *wire, uint32_t seq)
{
	uint32_t open = tp_hold_of(seq, TP_HOLD_OPEN);

	return __atomic_compare_exchange_n(&wire->hold, &open, tp_hold_of(seq, TP_HOLD_OVER), false,
					   __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST) ||
	       open != tp_hold_of(seq, TP_HOLD_TAKEN);
}

static int post_and_wait(struct tp_wire *wire, uint32_t command, const uint64_t *args,
			 int timeout_ms, int pid, int tid, struct tp_windows *windows)
{
	uint32_t seq = __atomic_load_n(&wire->command_seq, __ATOMIC_SEQ_CST) + 1;
	uint64_t start = tp_now_ns();
	uint64_t busy = start;
	int ended = 0;

	wire->command = command;
	wire->hold = tp_hold_of(seq, TP_HOLD_OPEN);
	memcpy(wire->args, args, sizeof(wire->args));
	__atomic_store_n(&wire->command_seq, seq, __ATOMIC_SEQ_CST);
	syscall(SYS_futex, &wire->command_seq, FUTEX_WAKE, 1, NULL, NULL, 0);
	for (;;) {
		uint32_t done = __atomic_load_n(&wire->done_seq, __ATOMIC_SEQ_CST);

		if (done == seq) /* even of one that has ended since: the answer to QUIT */
			return wire->result;
		if (ended)
			return -ESRCH;
		if (answer_look(wire, windows))
			busy = tp_now_ns();
		/* One that sleeps does not write, whatever stands there. */
		if ((is_over(start, timeout_ms) && give_up(wire, seq)) ||
		    (is_over(busy, IDLE_MS) && (give_up(wire, seq), true)))
			return -ETIMEDOUT;
		if (!wait_done(wire, done))
			continue;
		ended = tp_has_ended(pid, tid);
		if (!is_idle(pid, tid))
			busy = tp_now_ns();
	}
}

/* In a hurry: the answer would wait for the time slices of others, and while the agent waits for a look
 * threads run into int3s. We wait while it works: it can do so in our place. */
static int run_command(struct tp_wire *wire, uint32_t command, const uint64_t *args, int timeout_ms,
		       int pid, int tid, struct tp_windows *windows)
{
	bool hurried = tp_hurry();
	int result;

	tp_bring_beside(tid);
	result = post_and_wait(wire, command, args, timeout_ms, pid, tid, windows);
	tp_relax(hurried);
	return result;
}
