/* SPDX-License-Identifier: Apache-2.0 */
/**
 * @file
 * Hot threads that call the tiny functions of many.py round robin, and count without being
 * disturbed: calls, CPU time and results stand in a file that the bench maps too.
 *
 * many FILE THREADS; ends when its standard input does. Compiled without any NOPs of its own.
 */
#define _GNU_SOURCE
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#define CHUNK 4096	  /* calls between two looks at the quota */
#define CHUNKS_A_CLOCK 16 /* a look at the CPU clock costs as much as a few hundred calls */
#define MAX_THREADS 31
#define IDLE_NS 200000

typedef uint32_t tiny(uint32_t x);

extern tiny *const table[];
extern const uint32_t table_size;

/* many.py reads both; the layout is _TALLY and _HEAD there. */
struct tally {
	uint64_t seq; /* odd while the rest changes */
	uint64_t calls;
	uint64_t value;	      /* what the calls have made of zero */
	uint64_t clock_calls; /* calls when the clock was read */
	uint64_t clock_ns;    /* CPU time of the thread then */
	uint64_t tid;
	uint64_t padding[10]; /* two cache lines: neighbours are fetched in pairs */
};

struct shared {
	uint64_t quota; /* calls that each thread may have made */
	uint64_t threads;
	uint64_t sites;
	uint64_t padding[13];
	struct tally tallies[MAX_THREADS];
};

_Static_assert(sizeof(struct tally) == 128, "many.py");
_Static_assert(sizeof(struct shared) == 4096, "many.py");

static struct shared *shared;

static uint64_t cpu_ns(void)
{
	struct timespec now;

	clock_gettime(CLOCK_THREAD_CPUTIME_ID, &now);
	return (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
}

static void publish(struct tally *tally, uint64_t calls, uint32_t value, int with_clock)
{
	uint64_t clock_ns = with_clock ? cpu_ns() : 0;

	__atomic_store_n(&tally->seq, tally->seq + 1, __ATOMIC_RELAXED);
	__atomic_thread_fence(__ATOMIC_RELEASE);
	tally->calls = calls;
	tally->value = value;
	if (with_clock) {
		tally->clock_calls = calls;
		tally->clock_ns = clock_ns;
	}
	__atomic_store_n(&tally->seq, tally->seq + 1, __ATOMIC_RELEASE);
}

static void wait_for_quota(struct tally *tally, uint64_t calls, uint32_t value)
{
	const struct timespec idle = { .tv_nsec = IDLE_NS };

	publish(tally, calls, value, 1);
	while (__atomic_load_n(&shared->quota, __ATOMIC_ACQUIRE) <= calls)
		nanosleep(&idle, NULL);
	publish(tally, calls, value, 1);
}

static void *run(void *argument)
{
	struct tally *tally = argument;
	uint64_t calls = 0;
	uint32_t value = 0, at = 0, size = table_size;

	__atomic_store_n(&tally->tid, syscall(SYS_gettid), __ATOMIC_RELEASE);
	for (;;) {
		if (__atomic_load_n(&shared->quota, __ATOMIC_ACQUIRE) <= calls)
			wait_for_quota(tally, calls, value);
		for (int i = 0; i < CHUNK; i++) {
			value = table[at](value);
			at = at + 1 == size ? 0 : at + 1;
		}
		calls += CHUNK;
		publish(tally, calls, value, calls % (CHUNK * CHUNKS_A_CLOCK) == 0);
	}
	return NULL;
}

static int start(const char *path, unsigned int threads)
{
	int fd = open(path, O_RDWR | O_CLOEXEC);

	shared = mmap(NULL, sizeof(*shared), PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	if (shared == MAP_FAILED || threads > MAX_THREADS)
		return 1;
	close(fd);
	shared->threads = threads;
	shared->sites = table_size;
	for (unsigned int i = 0; i < threads; i++) {
		pthread_t thread;

		if (pthread_create(&thread, NULL, run, &shared->tallies[i]))
			return 1;
		while (!__atomic_load_n(&shared->tallies[i].tid, __ATOMIC_ACQUIRE))
			usleep(100);
	}
	return 0;
}

int main(int argc, char **argv)
{
	char byte;

	prctl(PR_SET_PDEATHSIG, SIGKILL);
	if (argc != 3 || start(argv[1], (unsigned int)atoi(argv[2])))
		return 1;
	puts("ready");
	fflush(stdout);
	while (read(STDIN_FILENO, &byte, 1) > 0)
		;
	_exit(0);
}
