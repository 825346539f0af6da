/* SPDX-License-Identifier: Apache-2.0 */
/**
 * @file
 * The real protocol on code that threads are really running: real SIGTRAPs, real membarriers, the
 * code mapped twice so that nothing is writable and executable. No thread may ever see a wrong
 * result, nor an old one while the new code has settled.
 */
#include <errno.h>
#include <linux/membarrier.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <sys/syscall.h>
#include <time.h>
#include <ucontext.h>
#include <unistd.h>

#include "check.h"
#include "code.h"
#include "engine.h"

enum {
	THREADS = 2,
	SITES = 5,
	TEXT_BYTES = 2 * TP_PAGE_BYTES,
	SI_KERNEL_CODE = 0x80,
};

#define PAD_DISTANCE 0x6f6f6f6bull /* from a run of five 0x90 back to its landing pad */

/* A function of the test: its code, and what its first instruction becomes. */
struct function {
	size_t offset;
	uint8_t len; /* of the site */
	uint8_t code[16];
	uint8_t new_[16];
	long old_result; /* for the argument 100 */
	long new_result;
};

static const struct function functions[SITES] = {
	/* nop5; mov $1,%eax; ret <-> jmp to "mov $2,%eax; ret" */
	{ 0x000, 5, { 0x0f, 0x1f, 0x44, 0, 0, 0xb8, 1, 0, 0, 0, 0xc3 }, { 0xe9, 0xfb, 7 }, 1, 2 },
	/* nop5; lea 1(%rdi),%eax; ret <-> call "add $16,%rdi; ret" */
	{ 0x200, 5, { 0x0f, 0x1f, 0x44, 0, 0, 0x8d, 0x47, 1, 0xc3 }, { 0xe8, 0xfb, 6 }, 101, 117 },
	/* a run of five NOPs <-> call of its landing pad, which jumps to the same */
	{ 0x400,
	  5,
	  { 0x90, 0x90, 0x90, 0x90, 0x90, 0x8d, 0x47, 1, 0xc3 },
	  { 0xe8, 0x90, 0x90, 0x90, 0x90 },
	  101,
	  117 },
	/* nop2; mov $3,%eax; ret <-> jmp over that, to "mov $4,%eax; ret" */
	{ 0x600,
	  2,
	  { 0x66, 0x90, 0xb8, 3, 0, 0, 0, 0xc3, 0xb8, 4, 0, 0, 0, 0xc3 },
	  { 0xeb, 6 },
	  3,
	  4 },
	/* across the two pages: nop8; mov $5,%eax; ret <-> jmp, int3 padding, to "mov $6,%eax; ret" */
	{ 0xffd,
	  8,
	  { 0x0f, 0x1f, 0x84, 0, 0, 0, 0, 0, 0xb8, 5, 0, 0, 0, 0xc3 },
	  { 0xe9, 0x0e, 0xf8, 0xff, 0xff, 0xcc, 0xcc, 0xcc },
	  5,
	  6 },
};

static const uint8_t return_2[] = { 0xb8, 2, 0, 0, 0, 0xc3 };
static const uint8_t add_16[] = { 0x48, 0x83, 0xc7, 0x10, 0xc3 };
static const uint8_t return_6[] = { 0xb8, 6, 0, 0, 0, 0xc3 };

static struct {
	struct code text;
	struct code pads;
	struct tp_engine engine;
	struct tp_copies copies;
	struct tp_known known[SITES];
	struct tp_known_table table;
	struct tp_poke pokes[SITES];
	struct tp_outcome outcome;
	struct tp_batch batch;
	uint64_t fail_finish; /* the finish to fail, counted over all batches; 0: none */
	uint64_t finishes;
	/* for the threads: even and unchanged around a call means that the code has settled */
	uint64_t epoch;
	bool settled_new;
	bool stop;
	uint64_t calls, wrong, foreign;
} live;

static int live_read(void *ctx, uint64_t addr, void *buf, size_t len)
{
	memcpy(buf, (const void *)addr, len);
	return 0;
}

static long live_write(void *ctx, uint64_t addr, const void *buf, size_t len)
{
	memcpy(live.text.rw + (addr - (uint64_t)live.text.rx), buf, len);
	return (long)len;
}

static int live_sync(void *ctx)
{
	return syscall(SYS_membarrier, MEMBARRIER_CMD_PRIVATE_EXPEDITED_SYNC_CORE, 0, 0) ? -errno :
											   0;
}

static uint64_t live_clock_ns(void *ctx)
{
	struct timespec now;

	clock_gettime(CLOCK_MONOTONIC, &now);
	return (uint64_t)now.tv_sec * 1000000000ull + (uint64_t)now.tv_nsec;
}

static void live_relax(void *ctx)
{
	sched_yield();
}

static const struct tp_ops live_ops = {
	.read = live_read,
	.write = live_write,
	.sync = live_sync,
	.clock_ns = live_clock_ns,
	.relax = live_relax,
};

static void on_trap(int signal, siginfo_t *info, void *context)
{
	greg_t *regs = ((ucontext_t *)context)->uc_mcontext.gregs;
	struct tp_frame frame = { (uint64_t)regs[REG_RIP], (uint64_t)regs[REG_RSP],
				  (uint64_t)regs[REG_EFL] };

	if (info->si_code != SI_KERNEL_CODE || tp_trap(&live.engine, &frame) == TP_TRAP_FOREIGN) {
		__atomic_add_fetch(&live.foreign, 1, __ATOMIC_RELAXED);
		frame.rip--; /* in a real process this is death; here it is counted */
	}
	regs[REG_RIP] = (greg_t)frame.rip;
	regs[REG_RSP] = (greg_t)frame.rsp;
}

static void *call_all(void *arg)
{
	uint64_t calls = 0, wrong = 0;

	while (!__atomic_load_n(&live.stop, __ATOMIC_RELAXED)) {
		const struct function *function = &functions[calls++ % SITES];
		uint64_t before = __atomic_load_n(&live.epoch, __ATOMIC_SEQ_CST), after;
		bool settled_new = __atomic_load_n(&live.settled_new, __ATOMIC_SEQ_CST);
		long result = ((long (*)(long))(live.text.rx + function->offset))(100);

		after = __atomic_load_n(&live.epoch, __ATOMIC_SEQ_CST);
		if (before == after && !(before & 1))
			wrong += result !=
				 (settled_new ? function->new_result : function->old_result);
		else
			wrong += result != function->new_result && result != function->old_result;
	}
	__atomic_add_fetch(&live.calls, calls, __ATOMIC_RELAXED);
	__atomic_add_fetch(&live.wrong, wrong, __ATOMIC_RELAXED);
	return NULL;
}

static int finish(const struct tp_poke *poke, void *ctx)
{
	live.finishes++;
	return live.fail_finish && live.finishes % live.fail_finish == 0 ? -ENOSPC : 0;
}

static void write_text(void)
{
	for (size_t i = 0; i < SITES; i++)
		memcpy(live.text.rw + functions[i].offset, functions[i].code, 16);
	memcpy(live.text.rw + 0x800, return_2, sizeof(return_2));
	memcpy(live.text.rw + 0x900, add_16, sizeof(add_16));
	memcpy(live.text.rw + 0x810, return_6, sizeof(return_6));
}

/* The landing pad of the run at @site: jmp to add_16. */
static int write_pad(uint64_t site)
{
	uint64_t pad = site - PAD_DISTANCE;
	uint64_t page = pad & ~(uint64_t)(TP_PAGE_BYTES - 1);
	int32_t displacement = (int32_t)((uint64_t)live.text.rx + 0x900 - (pad + 5));
	int error = code_open(&live.pads, page, 2 * TP_PAGE_BYTES);

	if (error)
		return error;
	live.pads.rw[pad - page] = 0xe9;
	memcpy(live.pads.rw + (pad - page) + 1, &displacement, sizeof(displacement));
	return 0;
}

static int open_live(void)
{
	int error = code_open(&live.text, 0, TEXT_BYTES);

	if (error)
		return error;
	write_text();
	error = write_pad((uint64_t)live.text.rx + functions[2].offset);
	live.engine.ops = &live_ops;
	live.engine.copies = &live.copies;
	live.engine.window_pages = TP_WINDOW_PAGES; /* as in the agent */
	for (size_t i = 0; i < SITES; i++) {
		struct tp_poke *poke = &live.pokes[i];

		poke->addr = (uint64_t)live.text.rx + functions[i].offset;
		poke->len = functions[i].len;
		memcpy(poke->old, functions[i].code, poke->len);
		memcpy(poke->new_, functions[i].new_, poke->len);
	}
	live.table.entries = live.known;
	live.table.count = tp_known_merge(&live.engine, NULL, live.pokes, SITES, live.known);
	live.engine.known = &live.table;
	live.batch = (struct tp_batch){ .pokes = live.pokes,
					.count = SITES,
					.finish = finish,
					.all_or_nothing = true,
					.outcome = &live.outcome };
	if (syscall(SYS_membarrier, MEMBARRIER_CMD_REGISTER_PRIVATE_EXPEDITED_SYNC_CORE, 0, 0))
		return -errno;
	return error;
}

static void close_live(void)
{
	code_close(&live.text);
	code_close(&live.pads);
	memset(&live, 0, sizeof(live));
}

static void swap_opcodes(void)
{
	for (size_t i = 0; i < SITES; i++) {
		uint8_t keep[16];

		memcpy(keep, live.pokes[i].old, sizeof(keep));
		memcpy(live.pokes[i].old, live.pokes[i].new_, sizeof(keep));
		memcpy(live.pokes[i].new_, keep, sizeof(keep));
	}
}

/* One batch; the epoch is odd while it runs. A handler held up for 0.1 s is waited for. */
static int toggle(void)
{
	int error;

	__atomic_add_fetch(&live.epoch, 1, __ATOMIC_SEQ_CST);
	error = tp_run_batch(&live.engine, &live.batch);
	if (live.outcome.undrained)
		CHECK(tp_drain(&live.engine, 20000000000ull));
	if (!error) {
		__atomic_store_n(&live.settled_new, !live.settled_new, __ATOMIC_SEQ_CST);
		swap_opcodes();
	}
	__atomic_add_fetch(&live.epoch, 1, __ATOMIC_SEQ_CST);
	return error;
}

/* Toggle all functions @count times under threads that call them. */
static void run_live(size_t count, uint64_t fail_finish)
{
	struct sigaction action = { .sa_sigaction = on_trap, .sa_flags = SA_SIGINFO | SA_NODEFER };
	struct sigaction before;
	pthread_t threads[THREADS];
	uint64_t traps = 0, late = 0, failed = 0, syncs = 0;

	if (!CHECK_EQ(open_live(), 0))
		return;
	sigaction(SIGTRAP, &action, &before);
	live.fail_finish = fail_finish;
	for (size_t i = 0; i < THREADS; i++)
		CHECK_EQ(pthread_create(&threads[i], NULL, call_all, NULL), 0);
	for (size_t i = 0; i < count; i++) {
		int error = toggle();

		CHECK(error == 0 || (fail_finish && error == -ENOSPC && live.outcome.rolled_back));
		failed += error != 0;
		traps += live.outcome.traps;
		late += live.outcome.late_traps;
		syncs += live.outcome.syncs;
	}
	__atomic_store_n(&live.stop, true, __ATOMIC_RELAXED);
	for (size_t i = 0; i < THREADS; i++)
		CHECK_EQ(pthread_join(threads[i], NULL), 0);
	sigaction(SIGTRAP, &before, NULL);
	printf("# %zu batches, %" PRIu64 " failed, %" PRIu64 " calls, %" PRIu64 " traps, %" PRIu64
	       " late\n",
	       count, failed, live.calls, traps, late);
	CHECK_EQ(live.wrong, 0);
	CHECK_EQ(live.foreign, 0);
	CHECK(live.calls > 0 && traps > 0);
	CHECK_EQ(failed > 0, fail_finish > 0);
	if (!failed)
		CHECK_EQ(syncs, 3 * count);
	CHECK(!live.engine.broken);
	CHECK_EQ(tp_handlers_in_flight(&live.engine), 0);
	close_live();
}

TEST(design_20000_batches_under_hot_threads_give_no_wrong_result)
{
	run_live(20000, 0);
}

TEST(design_rollback_under_hot_threads_gives_no_wrong_result)
{
	run_live(4000, 8); /* five finishes a batch: every eighth fails */
}
