// SPDX-License-Identifier: Apache-2.0
/**
 * @file
 * A program that knows how often each of its conditional branches went which way.
 *
 * The branches are written in assembly amid code of the compiler's, and a table says where they are;
 * both ways count. Lines it understands: "table", "own", "phase CALLS THREADS", "hot THREADS", "stop",
 * "signals MICROSECONDS", "ping".
 */
#define _GNU_SOURCE
#include <pthread.h>
#include <sys/time.h>

#include "target.h"

enum { MOST_THREADS = 16, BRANCHES = 32 };

static unsigned long own[BRANCHES][2]; /* not taken, taken */
static unsigned long wrong;

/* Where a branch is (from this field on), and its number; a compiler may make several copies of one. */
struct entry {
	long distance;
	long number;
};
extern const struct entry __start_branch_table[], __stop_branch_table[];

/* Not a call: the instructions around the branches are to be the compiler's own. */
#define COUNT(number, way) \
	__asm__ volatile("lock incq %0" : "+m"(own[number][way]) : : "cc", "memory")

/* Compare a with b, branch; 1 when it was taken. */
#define GOES(number, jcc, a, b)                                              \
	({                                                                   \
		__label__ taken, out;                                        \
		int goes;                                                    \
		__asm__ goto("cmp %1, %0\n77: " jcc " %l[taken]\n"           \
			     ".pushsection branch_table, \"a\"\n.balign 8\n" \
			     ".quad 77b - .\n.quad %c2\n.popsection"         \
			     :                                               \
			     : "r"((long)(a)), "r"((long)(b)), "i"(number)   \
			     : "cc"                                          \
			     : taken);                                       \
		COUNT(number, 0);                                            \
		goes = 0;                                                    \
		goto out;                                                    \
taken:                                                                       \
		COUNT(number, 1);                                            \
		goes = 1;                                                    \
out:                                                                         \
		goes;                                                        \
	})

/* Two branches on one comparison: the second sees the flags that the first has seen. */
#define GOES_TWICE(number, a, b)                                                        \
	({                                                                              \
		__label__ below, equal, out;                                            \
		int how;                                                                \
		__asm__ goto("cmp %1, %0\n77: jb %l[below]\n78: je %l[equal]\n"         \
			     ".pushsection branch_table, \"a\"\n.balign 8\n"            \
			     ".quad 77b - .\n.quad %c2\n.quad 78b - .\n.quad %c2 + 1\n" \
			     ".popsection"                                              \
			     :                                                          \
			     : "r"((long)(a)), "r"((long)(b)), "i"(number)              \
			     : "cc"                                                     \
			     : below, equal);                                           \
		COUNT(number, 0);                                                       \
		COUNT(number + 1, 0);                                                   \
		how = 2;                                                                \
		goto out;                                                               \
below:                                                                                  \
		COUNT(number, 1);                                                       \
		how = 0;                                                                \
		goto out;                                                               \
equal:                                                                                  \
		COUNT(number, 0);                                                       \
		COUNT(number + 1, 1);                                                   \
		how = 1;                                                                \
out:                                                                                    \
		how;                                                                    \
	})

TRACED unsigned long hot(unsigned long n)
{
	unsigned long sum = 0;

	for (unsigned long i = 0; GOES(0, "jb", i, n); i++)
		sum += GOES(1, "je", i & 3, 2) ? i : 1;
	return sum;
}

TRACED unsigned long compare(unsigned long a, unsigned long b)
{
	switch (GOES_TWICE(2, a, b)) {
	case 0:
		return a;
	case 1:
		return a + b;
	default:
		return b;
	}
}

TRACED unsigned long recurse(unsigned long n)
{
	if (GOES(4, "jle", n, 1))
		return 1;
	return recurse(n - 1) + recurse(n - 2);
}

/* The carry that the comparison leaves is used behind the branch. */
TRACED unsigned long carry(unsigned long a, unsigned long b)
{
	unsigned long below = 3;

	__asm__ goto("cmp %1, %0\n77: jo %l[overflow]\n"
		     "mov $0, %%ecx\nsbb %%rcx, %%rcx\nmov %%rcx, (%2)\n"
		     ".pushsection branch_table, \"a\"\n.balign 8\n"
		     ".quad 77b - .\n.quad 5\n.popsection"
		     :
		     : "r"(a), "r"(b), "r"(&below)
		     : "cc", "memory", "rcx"
		     : overflow);
	COUNT(5, 0);
	return below + (a < b ? 7 : 9);
overflow:
	COUNT(5, 1);
	return 11;
}

TRACED unsigned long choose(unsigned long n)
{
	switch (n % 7) {
	case 0:
		return GOES(6, "jne", n, 49);
	case 1:
		return GOES(7, "jg", n, 50) + 3;
	case 2:
		return n * 5;
	case 3:
		return GOES(8, "js", n, 100) + recurse(3);
	case 4:
		return compare(n, 60);
	case 5:
		return GOES(9, "jae", n, 70) ? n - 70 : n;
	default:
		return hot(n % 5);
	}
}

/* Short blocks: nearly every instruction is somebody's target. */
TRACED unsigned long dense(unsigned long n)
{
	unsigned long x = n;

	do {
		if (GOES(10, "jnp", x & 255, 3))
			x >>= 1;
		if (GOES(11, "jc", x, 9))
			x -= 2;
		x--;
	} while (GOES(12, "jg", x, 5));
	return x;
}

TRACED void in_handler(int number)
{
	(void)number;
	if (GOES(13, "jne", own[13][0] & 1, 1))
		COUNT(14, 0);
	hot(3);
	compare(own[13][1] & 7, 3);
}

PLAIN static unsigned long answer(unsigned long n)
{
	return hot(n % 13) + compare(n % 5, n % 3) + recurse(n % 9) +
	       carry(n % 7 ? n % 7 : 1ul << 63, n % 11) + choose(n % 100) + dense(n % 40);
}

static volatile int stop;
static unsigned long calls; /* to make; 0: until told to stop */
static pthread_t threads[MOST_THREADS];
static int thread_count;

enum { ANSWERS = 20000 };

static unsigned long expected[ANSWERS];

PLAIN static void *work(void *unused)
{
	(void)unused;
	for (unsigned long i = 0; calls ? i < calls : !stop; i++)
		if (answer(i % ANSWERS) != expected[i % ANSWERS])
			__atomic_add_fetch(&wrong, 1, __ATOMIC_RELAXED);
	return NULL;
}

PLAIN static void start(int count, unsigned long how_many)
{
	stop = 0;
	calls = how_many;
	thread_count = count < MOST_THREADS ? count : MOST_THREADS;
	for (int i = 0; i < thread_count; i++)
		pthread_create(&threads[i], NULL, work, NULL);
}

PLAIN static void finish(void)
{
	for (int i = 0; i < thread_count; i++)
		pthread_join(threads[i], NULL);
	thread_count = 0;
}

PLAIN static void set_timer(long us)
{
	struct itimerval timer = { { 0, us }, { 0, us } };
	struct sigaction action = { .sa_handler = in_handler, .sa_flags = SA_RESTART | SA_NODEFER };

	sigaction(SIGALRM, &action, NULL);
	setitimer(ITIMER_REAL, &timer, NULL);
}

int main(void)
{
	for (unsigned long i = 0; i < ANSWERS; i++)
		expected[i] = answer(i);
	alarm(LIFE_S);
	say("ready");
	for (;;) {
		const char *line = hear();
		unsigned long number;
		int count;
		long us;

		if (!strcmp(line, "table")) {
			for (const struct entry *e = __start_branch_table; e != __stop_branch_table;
			     e++)
				say("%lu %ld",
				    (unsigned long)&e->distance + (unsigned long)e->distance,
				    e->number);
			say("end");
		} else if (!strcmp(line, "own")) {
			for (int i = 0; i < BRANCHES; i++)
				say("%d %lu %lu", i, own[i][1], own[i][0]);
			say("%d %lu 0", BRANCHES, wrong);
			say("end");
		} else if (sscanf(line, "phase %lu %d", &number, &count) == 2) {
			start(count, number);
			finish();
			say("done");
		} else if (sscanf(line, "hot %d", &count) == 1) {
			start(count, 0);
			say("hot");
		} else if (!strcmp(line, "stop")) {
			stop = 1;
			finish();
			say("stopped");
		} else if (sscanf(line, "signals %ld", &us) == 1) {
			set_timer(us);
			say("signals");
		} else {
			say("pong");
		}
	}
}
