/* SPDX-License-Identifier: Apache-2.0 */
/**
 * @file
 * Asking a helper process to do what a process cannot do to itself: one question, one answer, over a
 * stream socket. It is here and not in Python because a KeyboardInterrupt in the middle would lose
 * the answer, and the caller itself may be stopped while it waits.
 */
#include <errno.h>
#include <poll.h>
#include <sys/prctl.h>
#include <sys/socket.h>

#include "held.h"
#include "textpoke.h"

#define GRACE_NS 20000000000ull /* a guard that has outlived its helper ends before */

struct line {
	struct pollfd fds[2]; /* socket, pidfd of the helper */
	uint64_t until_ns;
	bool ended;
};

/* Returns 0 when the socket is ready for @events, or -ETIMEDOUT. */
static int wait_ready(struct line *line, short events)
{
	line->fds[0].events = events;
	for (;;) {
		uint64_t now = tp_now_ns();
		int ready;

		if (now >= line->until_ns)
			return line->ended ? -EPIPE : -ETIMEDOUT;
		ready = poll(line->fds, 2, (int)((line->until_ns - now) / 1000000 + 1));
		if (ready < 0 && errno != EINTR)
			return -errno;
		if (ready <= 0)
			continue;
		if (line->fds[0].revents)
			return 0;
		/* Its guard may be at work yet, and has the socket too: the end of that is ours. */
		line->fds[1].fd = -1;
		line->ended = true;
		if (line->until_ns > now + GRACE_NS)
			line->until_ns = now + GRACE_NS;
	}
}

static bool is_lasting(void)
{
	return errno != EAGAIN && errno != EINTR;
}

static int send_all(struct line *line, const uint8_t *bytes, uint64_t count)
{
	while (count) {
		int error = wait_ready(line, POLLOUT);
		ssize_t sent;

		if (error)
			return error;
		sent = send(line->fds[0].fd, bytes, count, MSG_NOSIGNAL | MSG_DONTWAIT);
		if (sent < 0 && is_lasting())
			return errno == ECONNRESET ? -EPIPE : -errno;
		if (sent > 0) {
			bytes += sent;
			count -= (uint64_t)sent;
		}
	}
	return 0;
}

static int receive_all(struct line *line, uint8_t *bytes, uint64_t count)
{
	while (count) {
		int error = wait_ready(line, POLLIN);
		ssize_t got;

		if (error)
			return error;
		got = recv(line->fds[0].fd, bytes, count, MSG_DONTWAIT);
		if (got == 0)
			return -EPIPE;
		if (got < 0 && is_lasting())
			return errno == ECONNRESET ? -EPIPE : -errno;
		if (got > 0) {
			bytes += got;
			count -= (uint64_t)got;
		}
	}
	return 0;
}

/**
 * Send @request and wait for all of @answer; signals interrupt neither. Returns 0, -ETIMEDOUT, or
 * -EPIPE when the helper (@pidfd) has ended, and with it every guard that it has started.
 */
int tp_ask(int socket_fd, int pidfd, const void *request, uint64_t request_bytes, void *answer,
	   uint64_t answer_bytes, int timeout_ms)
{
	struct line line = {
		.fds = { { .fd = socket_fd }, { .fd = pidfd, .events = POLLIN } },
		.until_ns = tp_now_ns() + (uint64_t)timeout_ms * 1000000ull,
	};
	int error = send_all(&line, request, request_bytes);

	return error ? error : receive_all(&line, answer, answer_bytes);
}

/** Where Yama restricts ptrace (scope 1): let this process and its children trace us; 0: nobody. */
int tp_allow_tracer(int pid)
{
	return prctl(PR_SET_PTRACER, pid, 0, 0, 0) ? -errno : 0;
}
