// SPDX-License-Identifier: Apache-2.0
/**
 * @file
 * The torn-execution target: threads call the slots that tests/stress/torn_sites.py writes, over
 * and over, and tell on every call whether the old or the new instruction was executed. It also
 * calls functions for the tracer and counts those calls.
 *
 * The file given as argument is shared with the tool: what every site holds, as the tool knows it
 * (see struct board), and what every thread has counted. A word of the tool's that is the same
 * before and after a call and says "old" or "new" makes the call's result certain: the other one
 * is then as wrong as a torn one ("stale").
 * Lines: "run THREADS", "stop", "ping".
 */
#define _GNU_SOURCE
#include <fcntl.h>
#include <pthread.h>
#include <stdint.h>
#include <sys/mman.h>

#include "target.h"

enum { MOST_THREADS = 64, MOST_SITES = 16384, TRACED_FUNCTIONS = 64, BETWEEN = 64, PAGE = 4096 };
enum { UNSURE = 0, OLD = 1, NEW = 2 }; /* the lower two bits of a word of the tool's */
enum { PAD_DISTANCE = 0x6f6f6f6b, JUMP_BYTES = 5, RUN_BYTES = 5 };

struct slot {
	uint64_t entry, site, handler;
	uint8_t len, kind;
	uint8_t new_[15];
	uint8_t rest[23];
};

_Static_assert(sizeof(struct slot) == 64, "as tests/stress/torn_sites.py aligns it");

struct tally {
	uint64_t made, old, new_, torn, stale;
	uint64_t done[2]; /* counted by the slots themselves */
	uint64_t traced[3], traced_wrong;
	uint64_t bad_site, bad_result, bad_word; /* the first one */
	uint64_t rounds, tid;
	uint64_t rest[16];
};

_Static_assert(sizeof(struct tally) == 256, "as tests/stress/torn.py reads it");

/* The shared file. */
struct board {
	uint64_t sites, threads, stop, hold, held, traced_word;
	uint64_t rest[506];
	struct tally tallies[MOST_THREADS];
	uint32_t words[MOST_SITES];
	struct slot slots[MOST_SITES];
};

extern struct slot torn_slots[], torn_slots_end[];
extern int (*torn_traced[])(void);
extern char did_new[];

/* Calls a slot with everything it must not touch filled; -1 when it did. */
uint64_t torn_call(uint64_t entry, uint64_t *done, uint64_t flags);
__asm__(".pushsection .text\ntorn_call:\n"
	".irp r, rbx, rbp, r12, r13, r14, r15\npushq %\\r\n.endr\n"
	"pushq %rdi\nmovq %rsi, %rdi\n"
	".set value, 0x11\n.irp r, rbx, rsi, r8, r9, r10, r11, r12, r13, r14, r15\n"
	"movq $0x1234500 + value, %\\r\n.set value, value + 0x11\n.endr\n"
	"movq %rsp, %rbp\nmovl $0x40000000, %eax\ncall *(%rsp)\n"
	"cmpq %rsp, %rbp\njne 1f\n"
	".set value, 0x11\n.irp r, rbx, rsi, r8, r9, r10, r11, r12, r13, r14, r15\n"
	"cmpq $0x1234500 + value, %\\r\njne 1f\n.set value, value + 0x11\n.endr\njmp 2f\n"
	"1: movq %rbp, %rsp\nmovq $-1, %rax\n"
	"2: addq $8, %rsp\n.irp r, r15, r14, r13, r12, rbp, rbx\npopq %\\r\n.endr\nret\n.popsection\n");

static struct board *board;
static pthread_t threads[MOST_THREADS];
static int thread_count;

PLAIN static void blame(struct tally *t, uint64_t site, uint64_t result, uint64_t word)
{
	if (t->torn + t->stale)
		return;
	t->bad_site = site;
	t->bad_result = result;
	t->bad_word = word;
}

PLAIN static void call_slot(struct tally *t, uint32_t i, uint64_t random)
{
	const uint64_t kept = 0x8d5, always = 0x202; /* OF SF ZF AF PF CF; IF and bit 1 */
	uint32_t before = __atomic_load_n(&board->words[i], __ATOMIC_SEQ_CST);
	uint64_t result = torn_call(torn_slots[i].entry, t->done, (random & kept) | always);
	uint32_t after = __atomic_load_n(&board->words[i], __ATOMIC_SEQ_CST);
	unsigned int is = result == 2ul * i ? OLD : result == 2ul * i + 1 ? NEW : UNSURE;

	t->made++;
	if (is == UNSURE) {
		blame(t, i, result, after);
		t->torn++;
		return;
	}
	if (before == after && (before & 3) != UNSURE && (before & 3) != is) {
		blame(t, i, result, after);
		t->stale++;
	}
	*(is == OLD ? &t->old : &t->new_) += 1;
}

PLAIN static void call_traced(struct tally *t, unsigned int i)
{
	uint64_t before = __atomic_load_n(&board->traced_word, __ATOMIC_SEQ_CST);
	int result = torn_traced[i]();
	uint64_t after = __atomic_load_n(&board->traced_word, __ATOMIC_SEQ_CST);

	t->traced_wrong += result != (int)i;
	t->traced[before == after ? before & 3 : UNSURE]++;
}

PLAIN static void wait_while_held(void)
{
	__atomic_add_fetch(&board->held, 1, __ATOMIC_SEQ_CST);
	while (__atomic_load_n(&board->hold, __ATOMIC_SEQ_CST))
		usleep(500);
	__atomic_sub_fetch(&board->held, 1, __ATOMIC_SEQ_CST);
}

PLAIN static uint64_t next_random(uint64_t *x)
{
	*x ^= *x << 13;
	*x ^= *x >> 7;
	*x ^= *x << 17;
	return *x;
}

PLAIN static void *work(void *argument)
{
	struct tally *t = argument;
	uint64_t random = 0x9e3779b97f4a7c15ull * (uint64_t)(t - board->tallies + 1);
	uint32_t sites = (uint32_t)board->sites, at = 0;

	t->tid = (uint64_t)syscall(SYS_gettid);
	for (; !__atomic_load_n(&board->stop, __ATOMIC_SEQ_CST); t->rounds++) {
		if (__atomic_load_n(&board->hold, __ATOMIC_SEQ_CST))
			wait_while_held();
		at = (uint32_t)(next_random(&random) % sites); /* a stretch, then elsewhere */
		for (int i = 0; i < BETWEEN; i++, at = at + 1 == sites ? 0 : at + 1)
			call_slot(t, at, next_random(&random));
		for (unsigned int i = t->rounds & 3; i < TRACED_FUNCTIONS; i += 4)
			call_traced(t, i);
	}
	return NULL;
}

/* Where "e8 90 90 90 90" leads: a jump to the new instruction's end, on a page of our own. */
PLAIN static int make_pad(const struct slot *slot)
{
	uint64_t pad = slot->site + JUMP_BYTES - 0x6f6f6f70;
	uint64_t first = pad & -(uint64_t)PAGE;
	uint64_t size = ((pad + JUMP_BYTES - 1) & -(uint64_t)PAGE) + PAGE - first;
	int32_t distance = (int32_t)((uint64_t)did_new - (pad + JUMP_BYTES));

	for (uint64_t at = first; at < first + size; at += PAGE)
		mmap((void *)at, PAGE, PROT_READ | PROT_WRITE,
		     MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE, -1, 0);
	if (mprotect((void *)first, size, PROT_READ | PROT_WRITE))
		return -1;
	*(uint8_t *)pad = 0xe9;
	memcpy((char *)pad + 1, &distance, sizeof(distance));
	return mprotect((void *)first, size, PROT_READ | PROT_EXEC);
}

PLAIN static int is_run(const struct slot *slot)
{
	return slot->len == RUN_BYTES && !memcmp(slot->new_, "\xe8\x90\x90\x90\x90", RUN_BYTES);
}

PLAIN static int prepare(const char *path)
{
	int fd = open(path, O_RDWR | O_CREAT, 0600);
	size_t sites = (size_t)(torn_slots_end - torn_slots);

	if (fd < 0 || sites > MOST_SITES || ftruncate(fd, sizeof(*board)))
		return -1;
	board = mmap(NULL, sizeof(*board), PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	close(fd);
	if (board == MAP_FAILED)
		return -1;
	for (size_t i = 0; i < sites; i++)
		if (is_run(&torn_slots[i]) && make_pad(&torn_slots[i]))
			return -1;
	memcpy(board->slots, torn_slots, sites * sizeof(struct slot));
	board->sites = sites;
	return 0;
}

PLAIN static void finish(void)
{
	board->stop = 1;
	for (int i = 0; i < thread_count; i++)
		pthread_join(threads[i], NULL);
	say("end");
}

PLAIN static void start(int count)
{
	thread_count = count < MOST_THREADS ? count : MOST_THREADS;
	board->threads = (uint64_t)thread_count;
	board->stop = 0;
	for (int i = 0; i < thread_count; i++)
		pthread_create(&threads[i], NULL, work, &board->tallies[i]);
	say("running");
}

PLAIN int main(int argc, char **argv)
{
	int count;

	if (argc < 2 || prepare(argv[1])) {
		say("cannot prepare");
		return 1;
	}
	say_ready();
	alarm(argc > 2 ? (unsigned int)atoi(argv[2]) : LIFE_S);
	for (;;) {
		const char *line = hear();

		if (sscanf(line, "run %d", &count) == 1)
			start(count);
		else if (!strcmp(line, "stop"))
			finish();
		else if (!strcmp(line, "ping"))
			say("pong");
	}
}
