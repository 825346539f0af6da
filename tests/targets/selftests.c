// SPDX-License-Identifier: Apache-2.0
/**
 * @file
 * What the tests look at that mirror the kernel's ftrace selftests: functions with names like those
 * that the kernel's tests ask for, which count themselves, thread by thread.
 *
 * Lines, each answered by one: "rounds N THREADS" and "stop" (of "hot THREADS") by JSON, counts of
 * each function by thread id; "hot THREADS" by "hot"; "fail" by the sum of what failed; "mark TEXT" and
 * "raw ID VALUE" by "marked"; "fork" by the exit code of a child that has called fork_child().
 */
#define _GNU_SOURCE
#include <pthread.h>
#include <sys/wait.h>

#include "target.h"

#define EACH(x)                                                                                   \
	x(schedule) x(sys_open) x(Sys_close) x(raw_spin_lock) x(raw_spin_unlock) x(mutex_trylock) \
		x(sched_clock) x(schedule_timeout)

enum { MOST_THREADS = 8 };

struct tally {
	unsigned long rounds; /* to do; 0: until told to stop */
	int tid, number;
#define COUNT(name) unsigned long name;
	EACH(COUNT)
};

static struct tally tallies[MOST_THREADS];
static pthread_t threads[MOST_THREADS];
static int thread_count;
static volatile int stop;

/* Each counts when it is done, so that no call is the last thing and becomes a jump. */
#define FUNCTION(name, ...)               \
	TRACED void name(struct tally *t) \
	{                                 \
		__VA_ARGS__ t->name++;    \
	}

FUNCTION(raw_spin_lock)
FUNCTION(raw_spin_unlock)
FUNCTION(sched_clock)
FUNCTION(schedule_timeout)
FUNCTION(mutex_trylock, sched_clock(t);)
FUNCTION(sys_open, raw_spin_lock(t); raw_spin_unlock(t);)
FUNCTION(Sys_close, raw_spin_unlock(t);)
FUNCTION(schedule, sys_open(t); Sys_close(t); mutex_trylock(t); schedule_timeout(t);)

PLAIN static void *work(void *argument)
{
	struct tally *t = argument;
	char name[16];

	t->tid = (int)syscall(SYS_gettid);
	snprintf(name, sizeof(name), "worker-%d", t->number);
	pthread_setname_np(pthread_self(), name);
	for (unsigned long i = 0; t->rounds ? i < t->rounds : !stop; i++)
		schedule(t);
	return NULL;
}

PLAIN static void start(int count, unsigned long rounds)
{
	stop = 0;
	thread_count = count < MOST_THREADS ? count : MOST_THREADS;
	for (int i = 0; i < thread_count; i++) {
		tallies[i] = (struct tally){ .rounds = rounds, .number = i };
		pthread_create(&threads[i], NULL, work, &tallies[i]);
	}
}

PLAIN static void finish(void)
{
	stop = 1;
	for (int i = 0; i < thread_count; i++) {
		const struct tally *t = &tallies[i];

		pthread_join(threads[i], NULL);
#define SHOW(name) printf("\"" #name "\": %lu, ", t->name);
		printf("%s\"%d\": {", i ? ", " : "{", t->tid);
		EACH(SHOW)
		printf("\"number\": %d}", t->number);
	}
	say("}");
}

/* --- results --- */

TRACED int fail_int(int error)
{
	return -error;
}

TRACED long fail_long(long error)
{
	return -error;
}

TRACED void *fail_pointer(long error)
{
	return (void *)-error;
}

TRACED unsigned char succeed(int result)
{
	return (unsigned char)result;
}

PLAIN static long fail_all(void)
{
	long sum = 0;

	for (int error = 1; error <= 133; error++)
		sum += fail_int(error) + fail_long(error) + (long)fail_pointer(error) + succeed(0);
	return sum;
}

/* --- words of the program itself --- */

TRACED void trace_mark(const char *text)
{
	__asm__ volatile("" : : "r"(text) : "memory");
}

TRACED void trace_mark_raw(unsigned int id, unsigned long value)
{
	__asm__ volatile("" : : "r"(id), "r"(value));
}

TRACED int fork_child(int result)
{
	return result + 1;
}

PLAIN static int run_child(void)
{
	int status = 0;
	pid_t pid = fork();

	if (!pid)
		_exit(fork_child(41));
	waitpid(pid, &status, 0);
	return WEXITSTATUS(status);
}

PLAIN int main(void)
{
	unsigned long rounds, value;
	unsigned int id;
	int count;

	say_ready();
	for (;;) {
		const char *line = hear();

		if (sscanf(line, "rounds %lu %d", &rounds, &count) == 2) {
			start(count, rounds);
			finish();
		} else if (sscanf(line, "hot %d", &count) == 1) {
			start(count, 0);
			say("hot");
		} else if (!strcmp(line, "stop")) {
			finish();
		} else if (!strcmp(line, "fail")) {
			say("%ld", fail_all());
		} else if (!strncmp(line, "mark ", 5)) {
			trace_mark(line + 5);
			say("marked");
		} else if (sscanf(line, "raw %u %lu", &id, &value) == 2) {
			trace_mark_raw(id, value);
			say("marked");
		} else if (!strcmp(line, "fork")) {
			say("%d", run_child());
		} else {
			return 0;
		}
	}
}
