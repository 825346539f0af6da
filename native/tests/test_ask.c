/* SPDX-License-Identifier: Apache-2.0 */
/** @file tp_ask(): an answer, or the reason why there is none; signals change neither. */
#include <errno.h>
#include <signal.h>
#include <stdlib.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "check.h"
#include "held.h"
#include "textpoke.h"

enum { LARGE_BYTES = 1 << 20, SHORT_MS = 50, LONG_MS = 20000 };

static uint8_t large[LARGE_BYTES];

uint64_t tp_now_ns(void)
{
	struct timespec now;

	clock_gettime(CLOCK_MONOTONIC, &now);
	return (uint64_t)now.tv_sec * 1000000000ull + (uint64_t)now.tv_nsec;
}

struct helper {
	pid_t pid;
	int fd;
	int pidfd;
	int unused; /* the helper's end, where it is held by somebody else */
};

static struct helper start(void (*serve)(int fd))
{
	struct helper helper;
	int fds[2];

	CHECK_EQ(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, fds), 0);
	helper.pid = fork();
	if (!helper.pid) {
		close(fds[0]);
		serve(fds[1]);
		_exit(0);
	}
	helper.fd = fds[0];
	helper.unused = fds[1];
	helper.pidfd = (int)syscall(SYS_pidfd_open, helper.pid, 0);
	CHECK(helper.pidfd >= 0);
	return helper;
}

static void end(struct helper *helper)
{
	kill(helper->pid, SIGKILL);
	waitpid(helper->pid, NULL, 0);
	close(helper->fd);
	close(helper->pidfd);
}

static int ask(struct helper *helper, size_t bytes, int timeout_ms)
{
	return tp_ask(helper->fd, helper->pidfd, large, bytes, large, bytes, timeout_ms);
}

/* Takes a million bytes, in pieces, and sends each of them back, plus one. */
static void add_one(int fd)
{
	for (size_t at = 0; at < LARGE_BYTES;) {
		ssize_t got = recv(fd, large + at, LARGE_BYTES - at, 0);

		if (got <= 0)
			return;
		at += (size_t)got;
	}
	for (size_t i = 0; i < LARGE_BYTES; i++)
		large[i]++;
	for (size_t at = 0; at < LARGE_BYTES;) {
		ssize_t sent = send(fd, large + at, LARGE_BYTES - at, MSG_NOSIGNAL);

		if (sent <= 0)
			return;
		at += (size_t)sent;
	}
}

static void stay_silent(int fd)
{
	(void)fd;
	pause();
}

static void leave_at_once(int fd)
{
	close(fd);
}

static void take_and_leave(int fd)
{
	char byte;

	(void)!recv(fd, &byte, 1, 0);
}

static void count(int number)
{
	(void)number;
}

TEST(a_large_answer_comes_whole_while_signals_come)
{
	struct sigaction action = { .sa_handler = count };
	struct itimerval often = { { 0, 200 }, { 0, 200 } }, never = { 0 };
	struct helper helper = start(add_one);

	close(helper.unused);
	memset(large, 6, sizeof(large));
	sigaction(SIGALRM, &action, NULL);
	setitimer(ITIMER_REAL, &often, NULL);
	CHECK_EQ(ask(&helper, sizeof(large), LONG_MS), 0);
	setitimer(ITIMER_REAL, &never, NULL);
	CHECK_EQ(large[0], 7);
	CHECK_EQ(large[LARGE_BYTES - 1], 7);
	end(&helper);
}

TEST(silence_is_a_time_out)
{
	struct helper helper = start(stay_silent);

	close(helper.unused);
	CHECK_EQ(ask(&helper, 8, SHORT_MS), -ETIMEDOUT);
	CHECK_EQ(ask(&helper, sizeof(large), SHORT_MS), -ETIMEDOUT); /* nobody takes it */
	end(&helper);
}

TEST(a_helper_that_has_ended_is_told_without_a_sigpipe)
{
	static void (*const ways[])(int) = { leave_at_once, take_and_leave };

	for (size_t i = 0; i < 2; i++) {
		struct helper helper = start(ways[i]);

		CHECK_NOTE("way %zu", i);
		close(helper.unused);
		CHECK_EQ(ask(&helper, 8, LONG_MS), -EPIPE);
		end(&helper);
	}
	CHECK_NOTE("%s", "");
}

/* As a guard that outlives its helper, or a child that has inherited that end. */
TEST(who_holds_the_line_of_an_ended_helper_is_waited_for)
{
	struct helper helper = start(take_and_leave);
	pid_t guard = fork();
	uint64_t before = tp_now_ns();

	if (!guard) {
		usleep(300000);
		_exit(0);
	}
	close(helper.unused);
	CHECK_EQ(ask(&helper, 8, LONG_MS), -EPIPE);
	CHECK(tp_now_ns() - before > 250000000);
	waitpid(guard, NULL, 0);
	end(&helper);
}
