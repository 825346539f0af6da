// SPDX-License-Identifier: Apache-2.0
/**
 * @file
 * A program with threads of the kernel's own in its task list: io_uring's workers, by raw system
 * calls. Says "no io_uring: REASON" instead of "ready" where the kernel has none for us.
 * Lines: "read COUNT" (as many reads through the ring, by workers, each with a traced call), "quit".
 */
#define _GNU_SOURCE
#include <errno.h>
#include <linux/io_uring.h>
#include <sys/mman.h>

#include "target.h"

enum { ENTRIES = 8, BYTES = 16 };

struct ring {
	int fd;
	unsigned int *sq_tail, *sq_mask, *sq_array;
	unsigned int *cq_head, *cq_tail, *cq_mask;
	struct io_uring_cqe *cqes;
	struct io_uring_sqe *sqes;
};

static struct ring ring;
static char buffers[ENTRIES][BYTES];

TRACED unsigned long work(unsigned long x)
{
	return x * 5 + 3;
}

PLAIN static void *map(size_t bytes, off_t offset)
{
	return mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_POPULATE, ring.fd,
		    offset);
}

PLAIN static int set_up(unsigned int flags)
{
	struct io_uring_params params = { .flags = flags, .sq_thread_idle = 100 };
	char *sq, *cq;

	ring.fd = (int)syscall(__NR_io_uring_setup, ENTRIES, &params);
	if (ring.fd < 0)
		return errno;
	sq = map(params.sq_off.array + ENTRIES * sizeof(unsigned int), IORING_OFF_SQ_RING);
	cq = map(params.cq_off.cqes + params.cq_entries * sizeof(struct io_uring_cqe),
		 IORING_OFF_CQ_RING);
	ring.sqes = map(ENTRIES * sizeof(struct io_uring_sqe), IORING_OFF_SQES);
	if (sq == MAP_FAILED || cq == MAP_FAILED || ring.sqes == MAP_FAILED)
		return errno;
	ring.sq_tail = (unsigned int *)(sq + params.sq_off.tail);
	ring.sq_mask = (unsigned int *)(sq + params.sq_off.ring_mask);
	ring.sq_array = (unsigned int *)(sq + params.sq_off.array);
	ring.cq_head = (unsigned int *)(cq + params.cq_off.head);
	ring.cq_tail = (unsigned int *)(cq + params.cq_off.tail);
	ring.cq_mask = (unsigned int *)(cq + params.cq_off.ring_mask);
	ring.cqes = (struct io_uring_cqe *)(cq + params.cq_off.cqes);
	return 0;
}

PLAIN static void submit(int file)
{
	unsigned int tail = *ring.sq_tail;

	for (unsigned int i = 0; i < ENTRIES; i++, tail++) {
		ring.sqes[i] = (struct io_uring_sqe){ .opcode = IORING_OP_READ,
						      .flags = IOSQE_ASYNC,
						      .fd = file,
						      .addr = (unsigned long)buffers[i],
						      .len = BYTES,
						      .user_data = work(i) };
		ring.sq_array[tail & *ring.sq_mask] = i;
	}
	__atomic_store_n(ring.sq_tail, tail, __ATOMIC_RELEASE);
}

/* Returns how many results were wrong. */
PLAIN static int reap(void)
{
	unsigned int head = *ring.cq_head, seen = 0;
	unsigned long sum = 0, right = 0;
	int bad = 0;

	for (unsigned int i = 0; i < ENTRIES; i++)
		right += i * 5 + 3;
	while (head != __atomic_load_n(ring.cq_tail, __ATOMIC_ACQUIRE)) {
		struct io_uring_cqe *entry = &ring.cqes[head++ & *ring.cq_mask];

		bad += entry->res != BYTES;
		sum += entry->user_data;
		seen++;
	}
	__atomic_store_n(ring.cq_head, head, __ATOMIC_RELEASE);
	return bad + (seen != ENTRIES) + (sum != right);
}

PLAIN static int read_round(int file)
{
	int ready = 0;

	submit(file);
	while (ready < ENTRIES) {
		long done = syscall(__NR_io_uring_enter, ring.fd, ENTRIES, ENTRIES,
				    IORING_ENTER_GETEVENTS | IORING_ENTER_SQ_WAKEUP, NULL, 0);

		if (done < 0 && errno != EINTR)
			return 1;
		ready = (int)(__atomic_load_n(ring.cq_tail, __ATOMIC_ACQUIRE) - *ring.cq_head);
	}
	return reap();
}

PLAIN int main(int argc, char **argv)
{
	int poll = argc > 1 && !strcmp(argv[1], "poll");
	int error = set_up(poll ? IORING_SETUP_SQPOLL : 0), count, bad = 0;
	FILE *file = fopen("/proc/self/exe", "re");

	alarm(LIFE_S);
	if (error || !file) {
		say("no io_uring: %s", strerror(error));
		return 0;
	}
	bad = read_round(fileno(file)); /* the workers are there now */
	say("ready");
	while (sscanf(hear(), "read %d", &count) == 1) {
		for (int i = 0; i < count; i++)
			bad += read_round(fileno(file));
		say("%d", bad);
	}
	return bad != 0;
}
