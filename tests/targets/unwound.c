// SPDX-License-Identifier: Apache-2.0
/**
 * @file
 * A fault within a traced function, and a handler that tells where it found the thread; besides, a
 * list of gdb's JIT interface with entries of its own, as LLVM keeps it. Lines: "fault" (answers rip,
 * rsp and rbp; any line lets it go on), "call", "add", "remove", "list" (answer the list: -1 is none
 * of its own), "storm" and "calm" (a thread adds and removes entries; answers how often), "fork" (answers
 * the child's id), "ask" (the child answers its list and ends), "quit".
 */
#define _GNU_SOURCE
#include <pthread.h>
#include <setjmp.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>
#include <sys/wait.h>
#include <ucontext.h>

#include "target.h"

struct jit_code_entry {
	struct jit_code_entry *next, *prev;
	const char *symfile;
	uint64_t size;
};

struct jit_descriptor {
	uint32_t version, action;
	struct jit_code_entry *relevant, *first;
};

struct jit_descriptor __jit_debug_descriptor = { 1, 0, NULL, NULL };
static struct jit_code_entry entries[4];
static unsigned int entry_count;

void __jit_debug_register_code(void);
PLAIN void __jit_debug_register_code(void)
{
	__asm__ volatile("" ::: "memory");
}

static sigjmp_buf back;
static atomic_bool stormy;

TRACED int peek(const int *at)
{
	return *at;
}

TRACED int peek_with_frame(const int *at, int n)
{
	int here[4];

	for (int i = 0; i < 4; i++)
		here[i] = at[i] + n;
	__asm__ volatile("" : : "r"(here) : "memory");
	return here[n & 3];
}

PLAIN int ask_peek(const int *at)
{
	return peek(at) + 1; /* a CALL, no jump */
}

PLAIN static void on_fault(int number, siginfo_t *info, void *context)
{
	const greg_t *regs = ((ucontext_t *)context)->uc_mcontext.gregs;

	(void)number;
	(void)info;
	say("%llx %llx %llx", regs[REG_RIP], regs[REG_RSP], regs[REG_RBP]);
	hear();
	siglongjmp(back, 1);
}

PLAIN static void add_entry(struct jit_code_entry *entry)
{
	entry->prev = NULL;
	entry->next = __jit_debug_descriptor.first;
	if (entry->next)
		entry->next->prev = entry;
	__jit_debug_descriptor.first = entry;
}

PLAIN static void remove_entry(struct jit_code_entry *entry)
{
	if (entry->next)
		entry->next->prev = entry->prev;
	if (entry->prev)
		entry->prev->next = entry->next;
	else
		__jit_debug_descriptor.first = entry->next;
}

PLAIN static void say_list(void)
{
	const struct jit_code_entry *prev = NULL;

	for (const struct jit_code_entry *at = __jit_debug_descriptor.first; at; at = at->next) {
		printf("%d ", at >= entries && at < entries + 4 ? (int)(at - entries) : -1);
		if (at->prev != prev)
			printf("broken ");
		prev = at;
	}
	say("end");
}

PLAIN static void *storm(void *count)
{
	static struct jit_code_entry own[2]; /* on a stack, its links would look like our address */

	/* The oldest goes first: it stands beside whoever is at the end of the list. */
	while (stormy) {
		add_entry(&own[0]);
		add_entry(&own[1]);
		remove_entry(&own[0]);
		remove_entry(&own[1]);
		for (volatile int i = 0; i < 200; i++) /* a JIT has other work to do, too */
			;
		++*(unsigned long *)count;
	}
	return NULL;
}

PLAIN static void change_weather(bool to)
{
	static pthread_t thread;
	static unsigned long count;

	stormy = to;
	if (to)
		pthread_create(&thread, NULL, storm, &count);
	else
		pthread_join(thread, NULL);
	say("%lu", count);
}

PLAIN static void fork_child(int *to_child)
{
	char byte;
	pid_t child;

	if (pipe(to_child))
		exit(1);
	child = fork();
	if (child) {
		say("%d", child);
		return;
	}
	if (read(to_child[0], &byte, 1) == 1) {
		printf("child: ");
		say_list();
	}
	_exit(0);
}

PLAIN static void ask_child(const int *to_child)
{
	if (write(to_child[1], "", 1) != 1)
		exit(1);
	wait(NULL);
}

PLAIN int main(void)
{
	struct sigaction action = { .sa_sigaction = on_fault, .sa_flags = SA_SIGINFO | SA_NODEFER };
	int to_child[2];
	static const int numbers[4] = { 1, 2, 3, 4 };

	sigaction(SIGSEGV, &action, NULL);
	say_ready();
	for (;;) {
		const char *line = hear();

		if (!strcmp(line, "fault") && !sigsetjmp(back, 1))
			say("no fault: %d", ask_peek((const int *)8));
		else if (!strcmp(line, "call"))
			say("%d", ask_peek(numbers) + peek_with_frame(numbers, 2));
		else if (!strcmp(line, "add"))
			add_entry(&entries[entry_count++ & 3]);
		else if (!strcmp(line, "remove"))
			remove_entry(&entries[--entry_count & 3]);
		else if (!strcmp(line, "storm") || !strcmp(line, "calm"))
			change_weather(line[0] == 's');
		else if (!strcmp(line, "fork"))
			fork_child(to_child);
		else if (!strcmp(line, "ask"))
			ask_child(to_child);
		else if (!strcmp(line, "quit"))
			return 0;
		if (!strcmp(line, "list") || !strcmp(line, "add") || !strcmp(line, "remove"))
			say_list();
	}
}
