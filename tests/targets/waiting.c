// SPDX-License-Identifier: Apache-2.0
/**
 * @file
 * A program of one thread that sits in the system call named by its argument until its child wakes
 * it: when a line comes on stdin. It says what the call returned, and whether it had been woken.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <linux/futex.h>
#include <poll.h>
#include <sys/epoll.h>
#include <sys/mman.h>
#include <sys/msg.h>
#include <sys/prctl.h>
#include <sys/select.h>
#include <sys/sem.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <sys/wait.h>
#include <time.h>

#include "target.h"

struct shared {
	volatile int woken;
	int futex;
};

static struct shared *shared;
static int pair[2], semaphores, queue;
static pid_t sleeper;
static volatile int signals;

PLAIN static void on_signal(int signal)
{
	(void)signal;
	signals++;
}

TRACED long wait_epoll(void)
{
	struct epoll_event event = { .events = EPOLLIN };
	int epoll = epoll_create1(0);

	epoll_ctl(epoll, EPOLL_CTL_ADD, pair[0], &event);
	return epoll_wait(epoll, &event, 1, 50000);
}

TRACED long wait_poll(void)
{
	struct pollfd fd = { pair[0], POLLIN, 0 };

	return poll(&fd, 1, 50000);
}

TRACED long wait_ppoll(void)
{
	struct pollfd fd = { pair[0], POLLIN, 0 };
	struct timespec limit = { 50, 0 };

	return ppoll(&fd, 1, &limit, NULL);
}

TRACED long wait_select(void)
{
	struct timeval limit = { 50, 0 };
	fd_set set;

	FD_ZERO(&set);
	FD_SET(pair[0], &set);
	return select(pair[0] + 1, &set, NULL, NULL, &limit);
}

TRACED long wait_read(void)
{
	char byte;

	return read(pair[0], &byte, 1);
}

/* Without the time-out the call restarts; with it the kernel answers EINTR. */
TRACED long wait_recv(void)
{
	struct timeval limit = { 50, 0 };
	char byte;

	setsockopt(pair[0], SOL_SOCKET, SO_RCVTIMEO, &limit, sizeof(limit));
	return recv(pair[0], &byte, 1, 0);
}

TRACED long wait_recvmsg(void)
{
	char byte;
	struct iovec vector = { &byte, 1 };
	struct msghdr message = { .msg_iov = &vector, .msg_iovlen = 1 };

	return recvmsg(pair[0], &message, 0);
}

TRACED long wait_semtimedop(void)
{
	struct sembuf down = { 0, -1, 0 };
	struct timespec limit = { 50, 0 };

	return semtimedop(semaphores, &down, 1, &limit);
}

TRACED long wait_msgrcv(void)
{
	struct {
		long type;
		char byte;
	} message;

	return msgrcv(queue, &message, 1, 0, 0);
}

TRACED long wait_sigtimedwait(void)
{
	struct timespec limit = { 50, 0 };
	sigset_t set;

	sigemptyset(&set);
	sigaddset(&set, SIGUSR1);
	sigprocmask(SIG_BLOCK, &set, NULL);
	return sigtimedwait(&set, NULL, &limit);
}

TRACED long wait_futex(void)
{
	return syscall(SYS_futex, &shared->futex, FUTEX_WAIT, 0, NULL, NULL, 0);
}

TRACED long wait_sigsuspend(void)
{
	sigset_t none;

	sigemptyset(&none);
	return sigsuspend(&none);
}

TRACED long wait_pause(void)
{
	return pause();
}

TRACED long wait_wait4(void)
{
	return waitpid(sleeper, NULL, 0) == sleeper;
}

PLAIN static double seconds(void)
{
	struct timespec now;

	clock_gettime(CLOCK_MONOTONIC, &now);
	return (double)now.tv_sec + (double)now.tv_nsec * 1e-9;
}

/* Nobody can wake it: it must have slept for the whole time. */
TRACED long wait_nanosleep(void)
{
	struct timespec span = { 2, 500000000 };
	double start = seconds();
	long result = nanosleep(&span, NULL);

	shared->woken = seconds() - start >= 2.5;
	return result;
}

static const struct {
	const char *name;
	long (*wait)(void);
} calls[] = {
	{ "epoll_wait", wait_epoll },	 { "poll", wait_poll },
	{ "ppoll", wait_ppoll },	 { "select", wait_select },
	{ "read", wait_read },		 { "recv", wait_recv },
	{ "recvmsg", wait_recvmsg },	 { "semtimedop", wait_semtimedop },
	{ "msgrcv", wait_msgrcv },	 { "sigtimedwait", wait_sigtimedwait },
	{ "futex", wait_futex },	 { "sigsuspend", wait_sigsuspend },
	{ "pause", wait_pause },	 { "wait4", wait_wait4 },
	{ "nanosleep", wait_nanosleep },
};

/* The child: wakes its parent out of any of them. */
PLAIN static void wake(const char *name, pid_t parent)
{
	struct sembuf up = { 0, 1, 0 };
	struct {
		long type;
		char byte;
	} message = { 1, 0 };

	prctl(PR_SET_PDEATHSIG, SIGKILL);
	hear();
	shared->woken = 1;
	if (!strcmp(name, "semtimedop"))
		semop(semaphores, &up, 1);
	else if (!strcmp(name, "msgrcv"))
		msgsnd(queue, &message, 1, 0);
	else if (!strncmp(name, "sig", 3) || !strcmp(name, "pause"))
		kill(parent, SIGUSR1);
	else if (!strcmp(name, "futex"))
		shared->futex = 1, syscall(SYS_futex, &shared->futex, FUTEX_WAKE, 1, NULL, NULL, 0);
	else if (!strcmp(name, "wait4"))
		kill(sleeper, SIGKILL);
	else if (write(pair[1], "x", 1) != 1)
		_exit(1);
	_exit(0);
}

PLAIN static void prepare(const char *name)
{
	struct sigaction action = { .sa_handler = on_signal };

	sigaction(SIGUSR1, &action, NULL);
	shared = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	semaphores = semget(IPC_PRIVATE, 1, 0600);
	queue = msgget(IPC_PRIVATE, 0600);
	if (socketpair(AF_UNIX, SOCK_STREAM, 0, pair))
		exit(1);
	if (!strcmp(name, "read") && pipe(pair))
		exit(1);
	if (!strcmp(name, "wait4") && !(sleeper = fork())) {
		prctl(PR_SET_PDEATHSIG, SIGKILL);
		pause();
		_exit(0);
	}
}

PLAIN int main(int argc, char **argv)
{
	const char *name = argc > 1 ? argv[1] : "pause";
	pid_t parent = getpid(), waker;
	long result;

	prepare(name);
	waker = fork();
	if (!waker)
		wake(name, parent);
	say_ready();
	for (size_t i = 0; i < sizeof(calls) / sizeof(*calls); i++) {
		if (strcmp(calls[i].name, name))
			continue;
		errno = 0;
		result = calls[i].wait();
		say("%ld %d %d %d", result, result < 0 ? errno : 0, shared->woken, signals);
	}
	semctl(semaphores, 0, IPC_RMID);
	msgctl(queue, IPC_RMID, NULL);
	kill(waker, SIGKILL);
	return 0;
}
