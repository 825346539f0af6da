// SPDX-License-Identifier: Apache-2.0
/**
 * @file
 * Functions whose first instructions are of every kind that must work elsewhere: each returns what it
 * is given, by its own way, and counts its calls. No NOPs at the entries.
 * Lines: "hot THREADS", "stop" (calls of each function, wrong results), "ping", "names"; "sleep",
 * "sleep elsewhere", "wake" (threads that a signal has stopped among the first instructions of a
 * function; a second signal has taken it to an alternate stack); "hold NUMBER..." (on the stack); "fork"
 * (wrong results of a child). With MAY_MASK the program imports what blocks signals; with
 * NO_HANDLERS nothing that installs a handler: it cannot "sleep" then.
 */
#define _GNU_SOURCE
#include <pthread.h>
#include <stdint.h>
#include <sys/wait.h>
#include <ucontext.h>

#include "target.h"

enum { MOST_THREADS = 16 };

typedef uint64_t entry_fn(uint64_t x, uint64_t *count);

extern uint64_t entries_word;
uint64_t entries_word = 5;

/* rdi: what to return, rsi: where to count. Begins with @code; "%1:" parts are its own labels. */
#define ENTRY(name, ...)                                                                \
	entry_fn name;                                                                  \
	__asm__(".pushsection .text\n.p2align 4\n.globl " #name "\n.type " #name        \
		", @function\n" #name ":\n" __VA_ARGS__ "\n.size " #name ", . - " #name \
		"\n.p2align 4, 0xcc\n.popsection\n")
#define COUNT "incq (%rsi)\n"

ENTRY(e_push, "push %rbx\npush %rbp\npush %r12\nmov %rdi, %rbx\n" COUNT
	      "mov %rbx, %rax\npop %r12\npop %rbp\npop %rbx\nret");
ENTRY(e_one_long, "mov $0, %eax\n" COUNT "add %rdi, %rax\nret");
ENTRY(e_endbr64, "endbr64\nmov %rdi, %rax\n" COUNT "ret");
ENTRY(e_rip, "mov entries_word(%rip), %rax\n" COUNT "sub $5, %rax\nadd %rdi, %rax\nret");
ENTRY(e_lea, "xor %eax, %eax\nlea entries_word(%rip), %rdx\n" COUNT
	     "mov (%rdx), %rax\nsub $5, %rax\nadd %rdi, %rax\nret");
ENTRY(e_jcc,
      "test %rdi, %rdi\nje 1f\n" COUNT "mov %rdi, %rax\nret\n1: " COUNT "xor %eax, %eax\nret");
ENTRY(e_jcc_far, "test $1, %dil\njne 1f\n" COUNT "mov %rdi, %rax\nret\n.skip 300, 0x90\n1: " COUNT
		 "mov %rdi, %rax\nret");
ENTRY(e_loop, "mov $1, %ecx\nxor %eax, %eax\n1: loop 1b\n" COUNT "mov %rdi, %rax\nret");
ENTRY(e_jrcxz,
      "mov %rdi, %rcx\njrcxz 1f\n" COUNT "mov %rcx, %rax\nret\n1: " COUNT "xor %eax, %eax\nret");
ENTRY(e_jmp, "jmp 1f\n.skip 20, 0xcc\n1: " COUNT "mov %rdi, %rax\nret");
ENTRY(e_padded, "mov %rdi, %rax\nret"); /* counts nothing; four bytes and padding */
ENTRY(e_call, "push %rsi\ncall e_callee\npop %rsi\n" COUNT "ret");
ENTRY(e_call_indirect, "lea e_callee(%rip), %rax\npush %rsi\ncall *%rax\npop %rsi\n" COUNT "ret");
ENTRY(e_callee, "mov %rdi, %rax\ncmpq $0, (%rsp)\nje e_callee\nret");
ENTRY(e_flags, "push %rdi\npushfq\npop %rax\n" COUNT "pop %rax\nret");
ENTRY(e_jump_on, "xor %eax, %eax\nnop\njmp e_jumped");
ENTRY(e_jumped, "lea (%rdi), %rax\n" COUNT "ret");
/* Leaf code that is jumped to keeps values in its red zone. */
ENTRY(e_red_zone, "mov %rdi, -8(%rsp)\nmov %rsi, -16(%rsp)\njmp e_red_zone_on");
ENTRY(e_red_zone_on, "mov -16(%rsp), %rsi\nmov -8(%rsp), %rax\n" COUNT "ret");
/* A loop whose head lies within the first five bytes, a CALL before their end: natural puns. */
ENTRY(e_pun_loop,
      "push $3\n1: pop %rax\ndec %eax\npush %rax\njg 1b\npop %rax\n" COUNT "mov %rdi, %rax\nret");
ENTRY(e_pun_call, "xor %eax, %eax\ncall *%rdx\nmov %rdi, %rax\nret");
ENTRY(e_refused_trap, "mov %rdi, %rax\nud2\nret");

static const struct entry {
	const char *name;
	entry_fn *run;
} entries[] = {
#define ROW(name) { #name, name }
	ROW(e_push),	ROW(e_one_long), ROW(e_endbr64),       ROW(e_rip),
	ROW(e_lea),	ROW(e_jcc),	 ROW(e_jcc_far),       ROW(e_loop),
	ROW(e_jrcxz),	ROW(e_jmp),	 ROW(e_call),	       ROW(e_flags),
	ROW(e_jump_on), ROW(e_red_zone), ROW(e_call_indirect), ROW(e_pun_loop),
};

enum { ENTRIES = sizeof(entries) / sizeof(*entries) };

struct tally {
	uint64_t counts[ENTRIES], wrong;
};

static struct tally tallies[MOST_THREADS];
static pthread_t threads[MOST_THREADS];
static int thread_count;
static volatile int stop;

PLAIN static uint64_t call_all(struct tally *tally, uint64_t x)
{
	uint64_t wrong = 0;

	for (size_t i = 0; i < ENTRIES; i++)
		wrong += entries[i].run(x, &tally->counts[i]) != x;
	return wrong + (e_padded(x, NULL) != x);
}

PLAIN static void *work(void *argument)
{
	struct tally *tally = argument;

	for (uint64_t x = 0; !stop; x++)
		tally->wrong += call_all(tally, x & 0xffff);
	return NULL;
}

PLAIN static void start(int count)
{
	stop = 0;
	thread_count = count < MOST_THREADS ? count : MOST_THREADS;
	for (int i = 0; i < thread_count; i++) {
		tallies[i] = (struct tally){ 0 };
		pthread_create(&threads[i], NULL, work, &tallies[i]);
	}
	say("hot");
}

/* Calls of every function by all threads, and wrong results. */
PLAIN static void finish(void)
{
	struct tally sum = { 0 };

	stop = 1;
	for (int i = 0; i < thread_count; i++) {
		pthread_join(threads[i], NULL);
		for (size_t k = 0; k < ENTRIES; k++)
			sum.counts[k] += tallies[i].counts[k];
		sum.wrong += tallies[i].wrong;
	}
	for (size_t k = 0; k < ENTRIES; k++)
		say("%s %lu", entries[k].name, sum.counts[k]);
	say("wrong %lu", sum.wrong);
	say("end");
}

#ifndef NO_HANDLERS
/* A thread that sleeps in a signal handler, interrupted at the second instruction of e_push: the
 * trap flag stops it there. */
static volatile int asleep, wake, elsewhere;

PLAIN static void fall_asleep(int signal)
{
	(void)signal;
	asleep = 1;
	while (!wake)
		usleep(1000);
}

PLAIN static void on_step(int signal, siginfo_t *info, void *context)
{
	greg_t *regs = ((ucontext_t *)context)->uc_mcontext.gregs;

	(void)info;
	if ((uint64_t)regs[REG_RIP] != (uint64_t)e_push + 1)
		return;
	regs[REG_EFL] &= ~0x100l;
	if (elsewhere)
		raise(SIGUSR1);
	else
		fall_asleep(signal);
}

PLAIN static void *sleep_inside(void *count)
{
	static char alternate[1 << 16];
	const stack_t stack = { .ss_sp = alternate, .ss_size = sizeof(alternate) };
	uint64_t result;

	sigaltstack(&stack, NULL);
	__asm__ volatile("pushfq\norq $0x100, (%%rsp)\npopfq\ncall e_push"
			 : "=a"(result)
			 : "D"(77ul), "S"(count)
			 : "rcx", "rdx", "r8", "r9", "r10", "r11", "memory", "cc");
	return (void *)(uintptr_t)(result == 77 && *(uint64_t *)count == 1);
}

static uint64_t sleeper_count;
static pthread_t sleeper;

PLAIN static void put_to_sleep(int on_another_stack)
{
	struct sigaction action = { .sa_sigaction = on_step, .sa_flags = SA_SIGINFO | SA_NODEFER };
	struct sigaction other = { .sa_handler = fall_asleep, .sa_flags = SA_ONSTACK };

	elsewhere = on_another_stack;
	sigaction(SIGUSR1, &other, NULL);
	asleep = wake = 0;
	sleeper_count = 0;
	sigaction(SIGTRAP, &action, NULL);
	pthread_create(&sleeper, NULL, sleep_inside, &sleeper_count);
	while (!asleep)
		usleep(100);
	signal(SIGTRAP, SIG_DFL);
	say("asleep");
}

PLAIN static void wake_up(void)
{
	void *right;

	wake = 1;
	pthread_join(sleeper, &right);
	say("%s", right ? "right" : "wrong");
}
#endif

/* Numbers that stand on the stack while the next line is awaited, and at no other time. */
PLAIN static void hold(const char *numbers)
{
	volatile uint64_t held[64] = { 0 };
	int used;

	for (int i = 0; i < 64 && sscanf(numbers, "%lu%n", &held[i], &used) == 1; i++)
		numbers += used;
	say("held");
	hear();
	for (int i = 0; i < 64; i++)
		held[i] = 0;
	say("dropped");
}

PLAIN static void fork_child(struct tally *tally)
{
	int status = -1;
	pid_t child = fork();

	if (!child)
		_exit((int)call_all(tally, 7));
	waitpid(child, &status, 0);
	say("child %d", status);
}

#ifdef MAY_MASK
PLAIN __attribute__((used)) static void mask(void)
{
	sigset_t all;

	sigfillset(&all);
	pthread_sigmask(SIG_BLOCK, &all, NULL);
}
#endif

PLAIN int main(void)
{
	struct tally mine = { 0 };
	int count;

	say_ready();
	for (;;) {
		const char *line = hear();

		if (sscanf(line, "hot %d", &count) == 1)
			start(count);
		else if (!strcmp(line, "stop"))
			finish();
#ifndef NO_HANDLERS
		else if (!strcmp(line, "sleep"))
			put_to_sleep(0);
		else if (!strcmp(line, "sleep elsewhere"))
			put_to_sleep(1);
		else if (!strncmp(line, "hold ", 5))
			hold(line + 5);
		else if (!strcmp(line, "wake"))
			wake_up();
#endif
		else if (!strcmp(line, "fork"))
			fork_child(&mine);
		else if (!strcmp(line, "ping"))
			say("%s", call_all(&mine, 5) ? "wrong" : "pong");
	}
}
