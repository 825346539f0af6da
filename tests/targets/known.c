// SPDX-License-Identifier: Apache-2.0
/**
 * @file
 * A program that knows what a tracer should find: it counts its own calls, bytes and branches, and
 * takes the time of its longest lock, masked section and wake itself.
 *
 * Lines it understands, each answered by one line of JSON: "io ROUNDS DIRECTORY", "locks ROUNDS",
 * "masks ROUNDS", "wakes ROUNDS", "crowd THREADS" (once), "posts ROUNDS", "branches ROUNDS",
 * "calls ROUNDS". Times are nanoseconds.
 */
#define _GNU_SOURCE
#include <fcntl.h>
#include <pthread.h>
#include <semaphore.h>
#include <sys/socket.h>
#include <sys/uio.h>
#include <time.h>

#include "target.h"

enum { LONG_NS = 20000000, SHORT_NS = 20000, BLOCK_BYTES = 777 };

PLAIN static long now_ns(void)
{
	struct timespec now;

	clock_gettime(CLOCK_MONOTONIC, &now);
	return now.tv_sec * 1000000000L + now.tv_nsec;
}

PLAIN static void spin_for(long ns)
{
	long until = now_ns() + ns;

	while (now_ns() < until)
		;
}

PLAIN static void keep_longest(long *longest_ns, long ns)
{
	if (ns > *longest_ns)
		*longest_ns = ns;
}

/* --- io: what goes through each descriptor, and how often each function is called --- */

static int pipes[2], sockets[2]; /* open before anybody looks */

struct io {
	long opens, closes, reads, writes, syncs, failed;
	long file_in, file_out, pipe_bytes, socket_bytes;
};

/* 0 where the call failed; counted either way. */
PLAIN static long moved(struct io *io, long *calls, long result)
{
	++*calls;
	io->failed += result < 0;
	return result > 0 ? result : 0;
}

TRACED void file_round(struct io *io, const char *path)
{
	char block[BLOCK_BYTES] = { 0 };
	struct iovec parts[] = { { block, 100 }, { block, 200 } };
	int fd = open(path, O_RDWR | O_CREAT | O_TRUNC, 0600);

	io->opens++;
	io->file_out += moved(io, &io->writes, write(fd, block, sizeof(block)));
	io->file_out += moved(io, &io->writes, pwrite(fd, block, 50, 10));
	io->file_out += moved(io, &io->writes, writev(fd, parts, 2));
	moved(io, &io->syncs, fsync(fd));
	io->file_in += moved(io, &io->reads, pread(fd, block, sizeof(block), 0));
	io->file_in += moved(io, &io->reads, read(fd, block, sizeof(block)));
	moved(io, &io->closes, close(fd));
	moved(io, &io->reads, read(fd, block, sizeof(block)));
}

TRACED void pipe_round(struct io *io)
{
	char block[BLOCK_BYTES] = { 0 };

	io->pipe_bytes += moved(io, &io->writes, write(pipes[1], block, 123));
	moved(io, &io->reads, read(pipes[0], block, sizeof(block)));
	io->socket_bytes += moved(io, &io->writes, send(sockets[0], block, 321, 0));
	moved(io, &io->reads, recv(sockets[1], block, sizeof(block), 0));
}

PLAIN static void do_io(int rounds, const char *directory)
{
	struct io io = { 0 };
	char path[200];

	snprintf(path, sizeof(path), "%s/known", directory);
	for (int i = 0; i < rounds; i++) {
		file_round(&io, path);
		pipe_round(&io);
	}
	say("{\"opens\": %ld, \"closes\": %ld, \"reads\": %ld, \"writes\": %ld, \"syncs\": %ld, "
	    "\"failed\": %ld, \"file\": \"%s\", \"file_in\": %ld, \"file_out\": %ld, "
	    "\"pipe\": [%d, %d, %ld], \"socket\": [%d, %d, %ld]}",
	    io.opens, io.closes, io.reads, io.writes, io.syncs, io.failed, path, io.file_in,
	    io.file_out, pipes[0], pipes[1], io.pipe_bytes, sockets[0], sockets[1],
	    io.socket_bytes);
}

/* --- locks: how often each is held, and the longest hold --- */

static pthread_mutex_t plain_mutex = PTHREAD_MUTEX_INITIALIZER;
static pthread_rwlock_t rwlock = PTHREAD_RWLOCK_INITIALIZER;
static pthread_spinlock_t spinlock;

struct holds {
	long mutex, mutex_ns, spin, spin_ns, rw, rw_ns;
};

TRACED void inside_of_lock(long ns)
{
	spin_for(ns);
}

TRACED void hold_mutex(struct holds *holds, long ns)
{
	pthread_mutex_lock(&plain_mutex);
	long since_ns = now_ns();

	inside_of_lock(ns);
	keep_longest(&holds->mutex_ns, now_ns() - since_ns);
	holds->mutex++;
	pthread_mutex_unlock(&plain_mutex);
}

TRACED void hold_spinlock(struct holds *holds, long ns)
{
	pthread_spin_lock(&spinlock);
	long since_ns = now_ns();

	spin_for(ns);
	keep_longest(&holds->spin_ns, now_ns() - since_ns);
	holds->spin++;
	pthread_spin_unlock(&spinlock);
}

TRACED void hold_rwlock(struct holds *holds, long ns)
{
	pthread_rwlock_wrlock(&rwlock);
	long since_ns = now_ns();

	spin_for(ns);
	keep_longest(&holds->rw_ns, now_ns() - since_ns);
	holds->rw++;
	pthread_rwlock_unlock(&rwlock);
}

struct lockers {
	struct holds holds;
	int rounds;
};

PLAIN static void *lock_in_turns(void *argument)
{
	struct lockers *lockers = argument;

	for (int i = 0; i < lockers->rounds; i++) {
		/* One long hold each, in the middle. */
		long ns = i == lockers->rounds / 2 ? LONG_NS : SHORT_NS;

		hold_mutex(&lockers->holds, ns);
		hold_spinlock(&lockers->holds, ns / 20);
		hold_rwlock(&lockers->holds, ns / 10);
	}
	return NULL;
}

PLAIN static void do_locks(int rounds)
{
	struct lockers lockers[2] = { { .rounds = rounds }, { .rounds = rounds } };
	struct holds *first = &lockers[0].holds, *second = &lockers[1].holds;
	pthread_t threads[2];

	for (int i = 0; i < 2; i++)
		pthread_create(&threads[i], NULL, lock_in_turns, &lockers[i]);
	for (int i = 0; i < 2; i++)
		pthread_join(threads[i], NULL);
	keep_longest(&first->mutex_ns, second->mutex_ns);
	keep_longest(&first->spin_ns, second->spin_ns);
	keep_longest(&first->rw_ns, second->rw_ns);
	say("{\"mutex\": [%lu, %ld, %ld], \"spin\": [%lu, %ld, %ld], \"rwlock\": [%lu, %ld, %ld]}",
	    (unsigned long)&plain_mutex, first->mutex + second->mutex, first->mutex_ns,
	    (unsigned long)&spinlock, first->spin + second->spin, first->spin_ns,
	    (unsigned long)&rwlock, first->rw + second->rw, first->rw_ns);
}

/* --- masks: how often signals are masked, and the longest time --- */

TRACED void masked_work(long ns)
{
	spin_for(ns);
}

PLAIN static void do_masks(int rounds)
{
	sigset_t some, old;
	long longest_ns = 0;

	sigemptyset(&some);
	sigaddset(&some, SIGUSR1);
	sigaddset(&some, SIGUSR2);
	for (int i = 0; i < rounds; i++) {
		pthread_sigmask(SIG_BLOCK, &some, &old);
		long since_ns = now_ns();

		masked_work(i == rounds / 2 ? LONG_NS : SHORT_NS);
		keep_longest(&longest_ns, now_ns() - since_ns);
		if (i & 1)
			pthread_sigmask(SIG_UNBLOCK, &some, NULL);
		else
			sigprocmask(SIG_SETMASK, &old, NULL);
	}
	say("{\"sections\": %d, \"longest_ns\": %ld}", rounds, longest_ns);
}

/* --- wakes: a waiter that is known to be asleep is woken, and takes the time --- */

struct sleeper {
	pthread_mutex_t mutex;
	pthread_cond_t condition;
	sem_t semaphore;
	int rounds;
	int awaited, given;
	volatile int tid;
	volatile int at_semaphore; /* rounds that it has come to */
	volatile long woken_at_ns;
	long condition_ns, semaphore_ns, longest_ns;
};

TRACED void sleep_on_condition(struct sleeper *sleeper)
{
	sleeper->awaited++;
	while (sleeper->given < sleeper->awaited)
		pthread_cond_wait(&sleeper->condition, &sleeper->mutex);
	keep_longest(&sleeper->condition_ns, now_ns() - sleeper->woken_at_ns);
}

TRACED void sleep_on_semaphore(struct sleeper *sleeper)
{
	sleeper->at_semaphore++;
	while (sem_wait(&sleeper->semaphore))
		;
	keep_longest(&sleeper->semaphore_ns, now_ns() - sleeper->woken_at_ns);
}

PLAIN static void *sleep_and_wake(void *argument)
{
	struct sleeper *sleeper = argument;

	sleeper->tid = (int)syscall(SYS_gettid);
	for (int i = 0; i < sleeper->rounds; i++) {
		pthread_mutex_lock(&sleeper->mutex);
		sleep_on_condition(sleeper);
		pthread_mutex_unlock(&sleeper->mutex);
		sleep_on_semaphore(sleeper);
	}
	return NULL;
}

/* Whether the thread is off its processor; it waits for nothing but us. */
PLAIN static int is_asleep(int tid)
{
	char path[64], state = 0;

	snprintf(path, sizeof(path), "/proc/self/task/%d/stat", tid);
	FILE *file = fopen(path, "r");

	if (!file || fscanf(file, "%*d %*s %c", &state) != 1)
		exit(1);
	fclose(file);
	return state == 'S';
}

/* The mutex is kept for a while after the signal: until then the woken one cannot run. */
TRACED void wake_by_condition(struct sleeper *sleeper, int round)
{
	for (;;) {
		pthread_mutex_lock(&sleeper->mutex);
		if (sleeper->awaited == round + 1)
			break;
		pthread_mutex_unlock(&sleeper->mutex);
		usleep(100);
	}
	sleeper->given++;
	sleeper->woken_at_ns = now_ns();
	pthread_cond_signal(&sleeper->condition);
	spin_for(round == sleeper->rounds / 2 ? LONG_NS : SHORT_NS);
	pthread_mutex_unlock(&sleeper->mutex);
}

TRACED void wake_by_semaphore(struct sleeper *sleeper, int round)
{
	while (sleeper->at_semaphore != round + 1 || !is_asleep(sleeper->tid))
		usleep(100);
	sleeper->woken_at_ns = now_ns();
	sem_post(&sleeper->semaphore);
}

PLAIN static void do_wakes(int rounds)
{
	struct sleeper sleeper = { .mutex = PTHREAD_MUTEX_INITIALIZER,
				   .condition = PTHREAD_COND_INITIALIZER,
				   .rounds = rounds };
	pthread_t thread;

	sem_init(&sleeper.semaphore, 0, 0);
	pthread_create(&thread, NULL, sleep_and_wake, &sleeper);
	for (int i = 0; i < rounds; i++) {
		wake_by_condition(&sleeper, i);
		wake_by_semaphore(&sleeper, i);
	}
	pthread_join(thread, NULL);
	say("{\"waker\": %d, \"waiter\": %d, \"wakes\": %d, \"condition\": %lu, "
	    "\"condition_ns\": %ld, \"semaphore\": %lu, \"semaphore_ns\": %ld}",
	    (int)syscall(SYS_gettid), sleeper.tid, rounds, (unsigned long)&sleeper.condition,
	    sleeper.condition_ns, (unsigned long)&sleeper.semaphore, sleeper.semaphore_ns);
}

/* --- posts: to a crowd that waits already, each to one, when all of it is asleep --- */

enum { MOST_IN_CROWD = 8 };

static struct crowd {
	sem_t semaphore, answer;
	int threads;
	volatile int tids[MOST_IN_CROWD];
	volatile long posted_at_ns;
	long longest_ns;
} crowd;

PLAIN static void *sleep_in_crowd(void *argument)
{
	*(volatile int *)argument = (int)syscall(SYS_gettid);
	for (;;) {
		while (sem_wait(&crowd.semaphore))
			;
		keep_longest(&crowd.longest_ns, now_ns() - crowd.posted_at_ns);
		sem_post(&crowd.answer);
	}
	return NULL;
}

PLAIN static void await_crowd(void)
{
	for (int i = 0; i < crowd.threads; i++)
		while (!crowd.tids[i] || !is_asleep(crowd.tids[i]))
			usleep(100);
}

PLAIN static void do_crowd(int threads)
{
	pthread_t thread;

	crowd.threads = threads < MOST_IN_CROWD ? threads : MOST_IN_CROWD;
	for (int i = 0; i < crowd.threads; i++)
		pthread_create(&thread, NULL, sleep_in_crowd, (void *)&crowd.tids[i]);
	await_crowd();
	say("{\"semaphore\": %lu}", (unsigned long)&crowd.semaphore);
}

PLAIN static void do_posts(int rounds)
{
	crowd.longest_ns = 0;
	for (int i = 0; i < rounds; i++) {
		await_crowd();
		crowd.posted_at_ns = now_ns();
		sem_post(&crowd.semaphore);
		while (sem_wait(&crowd.answer))
			;
	}
	await_crowd();
	say("{\"semaphore\": %lu, \"longest_ns\": %ld}", (unsigned long)&crowd.semaphore,
	    crowd.longest_ns);
}

/* --- branches: one conditional jump in each function, whose direction is known --- */

/* Jumps when x can be divided by three. */
TRACED void jump_every_third(unsigned long x, unsigned long *fell_through)
{
	__asm__ volatile("testq %1, %1\n\t"
			 "jz 1f\n\t"
			 "incq %0\n"
			 "1:"
			 : "+m"(*fell_through)
			 : "r"(x % 3)
			 : "cc");
}

/* Jumps back x times, then falls through. */
TRACED void jump_back(unsigned long x, unsigned long *turns)
{
	x++;
	__asm__ volatile("1: incq %0\n\t"
			 "decq %1\n\t"
			 "jnz 1b"
			 : "+m"(*turns), "+r"(x)
			 :
			 : "cc");
}

PLAIN static void do_branches(int rounds)
{
	unsigned long fell_through = 0, turns = 0;

	for (int i = 0; i < rounds; i++) {
		jump_every_third(i, &fell_through);
		jump_back(i % 10, &turns);
	}
	say("{\"jump_every_third\": [%lu, %lu], \"jump_back\": [%lu, %lu]}", rounds - fell_through,
	    fell_through, turns - rounds, (unsigned long)rounds);
}

/* --- calls: how often, and how long all together, with and without what they call --- */

struct times {
	long outer, inner, leaf;
	long outer_ns, inner_ns, leaf_ns;
};

TRACED long leaf_work(struct times *times)
{
	long since_ns = now_ns();

	spin_for(SHORT_NS);
	times->leaf++;
	times->leaf_ns += now_ns() - since_ns;
	return since_ns;
}

TRACED long inner_work(struct times *times)
{
	long since_ns = now_ns();

	leaf_work(times);
	spin_for(2 * SHORT_NS);
	leaf_work(times);
	times->inner++;
	times->inner_ns += now_ns() - since_ns;
	return since_ns;
}

TRACED long outer_work(struct times *times)
{
	long since_ns = now_ns();

	inner_work(times);
	spin_for(3 * SHORT_NS);
	times->outer++;
	times->outer_ns += now_ns() - since_ns;
	return since_ns;
}

PLAIN static void do_calls(int rounds)
{
	struct times times = { 0 };

	for (int i = 0; i < rounds; i++)
		outer_work(&times);
	say("{\"outer_work\": [%ld, %ld], \"inner_work\": [%ld, %ld], \"leaf_work\": [%ld, %ld]}",
	    times.outer, times.outer_ns, times.inner, times.inner_ns, times.leaf, times.leaf_ns);
}

PLAIN static void obey(const char *line)
{
	char directory[200];
	int rounds;

	if (sscanf(line, "io %d %199s", &rounds, directory) == 2)
		do_io(rounds, directory);
	else if (sscanf(line, "locks %d", &rounds) == 1)
		do_locks(rounds);
	else if (sscanf(line, "masks %d", &rounds) == 1)
		do_masks(rounds);
	else if (sscanf(line, "wakes %d", &rounds) == 1)
		do_wakes(rounds);
	else if (sscanf(line, "crowd %d", &rounds) == 1)
		do_crowd(rounds);
	else if (sscanf(line, "posts %d", &rounds) == 1)
		do_posts(rounds);
	else if (sscanf(line, "branches %d", &rounds) == 1)
		do_branches(rounds);
	else if (sscanf(line, "calls %d", &rounds) == 1)
		do_calls(rounds);
}

PLAIN int main(void)
{
	pthread_spin_init(&spinlock, PTHREAD_PROCESS_PRIVATE);
	if (pipe(pipes) || socketpair(AF_UNIX, SOCK_STREAM, 0, sockets))
		exit(1);
	say_ready();
	for (;;)
		obey(hear());
}
