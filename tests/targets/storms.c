// SPDX-License-Identifier: Apache-2.0
/**
 * @file
 * Control flow of every unruly kind through traced functions, as fast as it goes. The argument says
 * which: "signals" "masks" "altstack" "jumps" "cancel" "exits" "contexts" "locks" "jit" "spawn" "owntraps".
 * Lines: "go" (two threads storm), "stop" (rounds done, wrong results), "quit".
 */
#define _GNU_SOURCE
#include <errno.h>
#include <pthread.h>
#include <sched.h>
#include <setjmp.h>
#include <spawn.h>
#include <sys/gmon.h>
#include <sys/auxv.h>
#include <sys/mman.h>
#include <sys/time.h>
#include <sys/wait.h>
#include <ucontext.h>

#include "target.h"

enum { THREADS = 2, STACK = 64 << 10, DEPTH = 5 };

typedef int round_fn(void); /* returns the number of wrong results */

extern char **environ;
static volatile int running;
static volatile unsigned long handled;
static round_fn *round_of;

/* Not a leaf, and its result depends on every call. */
TRACED unsigned long leaf(unsigned long x)
{
	return x * 5 + 3;
}

TRACED unsigned long work(unsigned long x, int depth)
{
	return depth ? work(leaf(x), depth - 1) + 1 : leaf(x);
}

PLAIN static int is_wrong(void)
{
	unsigned long x = 7;

	for (int i = 0; i <= DEPTH; i++)
		x = x * 5 + 3;
	return work(7, DEPTH) != x + DEPTH;
}

/* Signals: a timer, and each thread at itself; handlers run traced functions, and nest. */
TRACED void on_signal(int signal)
{
	__atomic_add_fetch(&handled, 1, __ATOMIC_RELAXED);
	if (is_wrong())
		abort();
	if (signal == SIGUSR1)
		raise(SIGUSR2);
}

static int full_masks;

PLAIN static void set_handler(int signal, void (*handler)(int), int flags)
{
	struct sigaction action = { .sa_handler = handler, .sa_flags = flags | SA_RESTART };

	if (full_masks)
		sigfillset(&action.sa_mask);
	sigaction(signal, &action, NULL);
}

PLAIN static int signal_round(void)
{
	pthread_kill(pthread_self(), SIGUSR1);
	return is_wrong();
}

PLAIN static void start_signals(int flags)
{
	struct itimerval often = { { 0, 500 }, { 0, 500 } };

	set_handler(SIGUSR1, on_signal, flags);
	set_handler(SIGUSR2, on_signal, flags);
	set_handler(SIGPROF, on_signal, flags);
	setitimer(ITIMER_PROF, &often, NULL);
}

/* An alternate stack with room for two frames of the kernel's, of two signals nested, and none for
 * a trap of ours. Each thread its own, as everybody who uses them. */
PLAIN static int altstack_round(void)
{
	static __thread int set;
	size_t frame = getauxval(AT_MINSIGSTKSZ);
	stack_t stack = { .ss_size = 2 * (frame ? frame : MINSIGSTKSZ) + 4096 };

	if (!set) {
		stack.ss_sp = malloc(stack.ss_size);
		set = !sigaltstack(&stack, NULL);
	}
	return !set + signal_round();
}

/* Out of traced functions, and out of a handler in the midst of them. */
static __thread jmp_buf jump_out;
static __thread sigjmp_buf signal_out;
static __thread volatile int may_jump;

TRACED void jump(int depth)
{
	if (!depth)
		longjmp(jump_out, 1);
	jump(depth - 1);
	leaf(1);
}

TRACED void on_jump(int signal)
{
	(void)signal;
	if (may_jump) {
		may_jump = 0;
		siglongjmp(signal_out, 1);
	}
}

PLAIN static int jump_round(void)
{
	volatile int left = 0;

	if (!setjmp(jump_out))
		jump(3);
	if (!sigsetjmp(signal_out, 1)) {
		may_jump = 1;
		while (left++ < 2000)
			leaf(1);
		may_jump = 0;
	}
	return is_wrong();
}

PLAIN static void start_jumps(void)
{
	struct itimerval often = { { 0, 300 }, { 0, 300 } };

	set_handler(SIGALRM, on_jump, SA_NODEFER);
	set_handler(SIGPROF, on_jump, 0);
	setitimer(ITIMER_PROF, &often, NULL);
}

/* Cancelled in the midst of traced functions, deferred and at any instruction. */
static volatile int cleaned;

TRACED void clean_up(void *count)
{
	leaf(1);
	__atomic_add_fetch((int *)count, 1, __ATOMIC_RELAXED);
}

PLAIN static void *be_cancelled(void *type)
{
	pthread_cleanup_push(clean_up, (void *)&cleaned);
	pthread_setcanceltype(type ? PTHREAD_CANCEL_ASYNCHRONOUS : PTHREAD_CANCEL_DEFERRED, NULL);
	for (;;) {
		leaf(1);
		if (!type)
			pthread_testcancel();
	}
	pthread_cleanup_pop(1);
	return NULL;
}

PLAIN static int cancel_round(void)
{
	static __thread long turn;
	pthread_t thread;
	void *result;

	if (pthread_create(&thread, NULL, be_cancelled, (void *)(++turn % 2)))
		return 1;
	usleep(100);
	pthread_cancel(thread);
	pthread_join(thread, &result);
	return (result != PTHREAD_CANCELED) + is_wrong();
}

TRACED void exit_here(int depth)
{
	if (!depth)
		pthread_exit((void *)42);
	exit_here(depth - 1);
	leaf(1);
}

PLAIN static void *exit_deep(void *nothing)
{
	exit_here(4);
	return nothing;
}

PLAIN static int exit_round(void)
{
	pthread_t thread;
	void *result;

	if (pthread_create(&thread, NULL, exit_deep, NULL))
		return 1;
	pthread_join(thread, &result);
	return (result != (void *)42) + is_wrong();
}

/* Two coroutines that give way to each other from within traced functions. Not in every build: a
 * program that could call swapcontext() never meets an int3 in auto mode. */
#ifdef PART_CONTEXTS
struct pair {
	ucontext_t caller, other;
	int alive, wrong;
};

TRACED void give_way(struct pair *self)
{
	leaf(1);
	swapcontext(&self->other, &self->caller);
	leaf(1);
}

PLAIN static void coroutine(unsigned int low, unsigned int high)
{
	struct pair *self = (struct pair *)((unsigned long)high << 32 | low);

	for (int i = 0; i < 20; i++) {
		give_way(self);
		self->wrong += is_wrong();
	}
	self->alive = 0;
}

TRACED void go_on(struct pair *self)
{
	swapcontext(&self->caller, &self->other);
}

PLAIN static int context_round(void)
{
	static __thread char stack[STACK];
	struct pair self = { .alive = 1 };

	getcontext(&self.other);
	self.other.uc_stack.ss_sp = stack;
	self.other.uc_stack.ss_size = sizeof(stack);
	self.other.uc_link = &self.caller;
	makecontext(&self.other, (void (*)(void))coroutine, 2, (unsigned int)(unsigned long)&self,
		    (unsigned int)((unsigned long)&self >> 32));
	while (self.alive)
		go_on(&self);
	return self.wrong + is_wrong();
}
#endif

/* Locks that the kernel knows about, and restartable sequences (glibc's own: sched_getcpu). */
static pthread_mutex_t pi_lock, robust_lock;
static int shared_count;

PLAIN static int lock_round(void)
{
	int wrong = 0, before;

	wrong += pthread_mutex_lock(&pi_lock) != 0;
	before = shared_count;
	wrong += is_wrong();
	shared_count++;
	wrong += shared_count != before + 1;
	wrong += pthread_mutex_unlock(&pi_lock) != 0;
	wrong += pthread_mutex_lock(&robust_lock) != 0;
	wrong += is_wrong();
	wrong += pthread_mutex_unlock(&robust_lock) != 0;
	for (int i = 0; i < 100; i++)
		wrong += sched_getcpu() < 0 || leaf(1) != 8;
	return wrong;
}

PLAIN static void start_locks(void)
{
	pthread_mutexattr_t attributes;

	pthread_mutexattr_init(&attributes);
	pthread_mutexattr_setprotocol(&attributes, PTHREAD_PRIO_INHERIT);
	pthread_mutex_init(&pi_lock, &attributes);
	pthread_mutexattr_init(&attributes);
	pthread_mutexattr_setrobust(&attributes, PTHREAD_MUTEX_ROBUST);
	pthread_mutex_init(&robust_lock, &attributes);
}

/* A compiler: map, write, make executable, run (code that calls a traced function), unmap. */
PLAIN static int jit_round(void)
{
	static const unsigned char code[] = {
		0x48, 0x83, 0xec, 0x08, /* sub $8, %rsp */
		0xff, 0xd6,		/* call *%rsi */
		0x48, 0x83, 0xc4, 0x08, /* add $8, %rsp */
		0x48, 0xff, 0xc0,	/* inc %rax */
		0xc3,
	};
	const size_t bytes = 16384;
	/* A hint near the program: where room for our code would be looked for too. */
	char *near = (char *)((unsigned long)leaf & -4096ul) - (64 << 20);
	unsigned char *at =
		mmap(near, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	int wrong;

	if (at == MAP_FAILED)
		return 1;
	memcpy(at, code, sizeof(code));
	wrong = mprotect(at, bytes, PROT_READ | PROT_EXEC) != 0;
	wrong += ((unsigned long (*)(unsigned long, void *))at)(1, (void *)leaf) != 9;
	wrong += munmap(at, bytes) != 0;
	return wrong + is_wrong();
}

/* Children by every way of libc; the one that is forked runs traced functions. */
PLAIN static int spawn_round(void)
{
	char *words[] = { "/bin/true", NULL };
	int status = 1, wrong = 0;
	pid_t child = fork();

	if (!child)
		_exit(is_wrong());
	wrong += waitpid(child, &status, 0) != child || status;
	child = vfork();
	if (!child) {
		if (is_wrong())
			_exit(1);
		execve(words[0], words, environ);
		_exit(2);
	}
	wrong += waitpid(child, &status, 0) != child || status;
	wrong += posix_spawn(&child, words[0], NULL, NULL, words, environ) != 0;
	wrong += waitpid(child, &status, 0) != child || status;
	return wrong + (system("exit 3") != 3 << 8) + is_wrong();
}

/* The program's own traps, by both instructions, from the midst of traced functions. */
static __thread volatile int own_traps;

PLAIN static void on_trap(int signal)
{
	(void)signal;
	own_traps++;
}

TRACED void trap_twice(void)
{
	leaf(1);
	__asm__ volatile("int3\n\t.byte 0xcd, 0x03" : : : "memory");
	leaf(1);
}

PLAIN static int trap_round(void)
{
	static __thread int turn;

	if (turn++ % 8) /* detach looks for a moment without a trap on its way */
		return is_wrong();
	own_traps = 0;
	trap_twice();
	raise(SIGTRAP);
	return (own_traps != 3) + is_wrong();
}

PLAIN static int choose(const char *name)
{
	static const struct {
		const char *name;
		round_fn *round;
	} ways[] = {
		{ "signals", signal_round },	{ "masks", signal_round },
		{ "altstack", altstack_round }, { "jumps", jump_round },
		{ "cancel", cancel_round },	{ "exits", exit_round },
		{ "locks", lock_round },	{ "jit", jit_round },
		{ "spawn", spawn_round },	{ "owntraps", trap_round },
#ifdef PART_CONTEXTS
		{ "contexts", context_round },
#endif
	};

	for (size_t i = 0; i < sizeof(ways) / sizeof(*ways); i++)
		if (!strcmp(name, ways[i].name))
			round_of = ways[i].round;
	start_locks();
	full_masks = !strcmp(name, "masks");
	if (round_of == signal_round || round_of == altstack_round)
		start_signals(round_of == altstack_round ? SA_ONSTACK : 0);
	if (round_of == jump_round)
		start_jumps();
	if (round_of == trap_round)
		set_handler(SIGTRAP, on_trap, 0);
	return round_of != NULL;
}

struct totals {
	unsigned long rounds, wrong;
};

PLAIN static void *storm(void *totals)
{
	struct totals *sum = totals;

	while (running) {
		sum->wrong += (unsigned long)round_of();
		sum->rounds++;
	}
	return NULL;
}

PLAIN int main(int argc, char **argv)
{
	struct totals totals[THREADS] = { { 0, 0 } };
	pthread_t threads[THREADS];
	unsigned long wrong = 0;

	moncontrol(0);
	signal(SIGPROF, SIG_DFL); /* -pg: its profiler's handler masks SIGTRAP: no int3 beside it */
	if (argc < 2 || !choose(argv[1]))
		return 2;
	say_ready();
	for (;;) {
		const char *line = hear();

		if (!strcmp(line, "go")) {
			running = 1;
			for (int i = 0; i < THREADS; i++)
				pthread_create(&threads[i], NULL, storm, &totals[i]);
			say("going");
		} else if (!strcmp(line, "stop")) {
			running = 0;
			for (int i = 0; i < THREADS; i++)
				pthread_join(threads[i], NULL);
			wrong = totals[0].wrong + totals[1].wrong;
			say("%lu %lu", totals[0].rounds + totals[1].rounds, wrong);
		} else {
			_exit(wrong != 0); /* built with -pg, it would leave a gmon.out */
		}
	}
}
