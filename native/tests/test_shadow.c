/* SPDX-License-Identifier: Apache-2.0 */
/**
 * @file
 * shadow.c and unwind.c against a model: stacks of words, each with the return addresses that must be
 * found there. Calls, returns, jumps, unwinding, switches of stacks and of threads, in random order;
 * whoever returns by a trampoline must come out where the model says.
 */
#include <stdlib.h>
#include <sys/mman.h>
#include <unistd.h>

#include "agent.h"
#include "check.h"

enum { THREADS = 3, STACKS = 6, WORDS = 2048, DEEPEST = 60, RETURNS = 0x40000000, STEPS = 1000000 };

struct tp_image tpa_image;
struct tpa_state tpa;
static int gate_open = 1;
static struct tpa_slot slots[THREADS];
static struct tpa_slot *gate = slots;
static struct tpa_set set = { .gate = &gate };
static char memory[THREADS * (sizeof(struct tp_shadow) + TP_SHADOW_DEPTH * sizeof(struct tp_call)) +
		   2 * TP_PAGE_BYTES] __attribute__((aligned(TP_PAGE_BYTES)));

/* What the rest of the agent gives them. */
void *tpa_map_private(size_t bytes)
{
	return bytes <= sizeof(memory) ? memory : NULL;
}

int tpa_note_region(uint64_t start, uint64_t bytes)
{
	(void)start, (void)bytes;
	return 0;
}

int tpa_any_gate_open(void)
{
	return gate_open;
}

struct tpa_slot *tpa_claim(uint64_t fs_base, struct tpa_set *in)
{
	(void)in;
	return &slots[fs_base % THREADS];
}

const struct tp_caller *tpa_callers(void)
{
	static const struct tp_caller nobody = { 0, ~0ull };

	return &nobody;
}

/* The first ones are the threads' own, on top of which are their descriptors. */
static char *stacks[STACKS];

static uint64_t fs_base_of(int thread)
{
	return (uint64_t)stacks[thread] + 8 * WORDS - 32;
}

static int is_mapped(uint64_t at)
{
	for (int i = 0; i < STACKS; i++)
		if (at >= (uint64_t)stacks[i] && at < (uint64_t)stacks[i] + 8 * WORDS)
			return 1;
	return 0;
}

int tpa_is_readable(uint64_t at)
{
	return is_mapped(at);
}

int tpa_holds(uint64_t at, uint64_t value)
{
	return is_mapped(at) && *(uint64_t *)at == value;
}

/* The model: a coroutine has a stack of calls; each word that a RET would read, and who is right. */
struct call {
	uint64_t slot, real;
	int traced;
};

struct routine {
	struct call calls[DEEPEST + 1];
	int depth;
	int left_by_jump; /* calls of the same slot above each other */
};

static struct routine routines[STACKS];
static struct tp_shadow *shadows[THREADS];
static uint64_t next_real = 0x1000, wrong, through, seed = 2026;

static uint64_t pick(uint64_t below)
{
	seed = seed * 6364136223846793005ull + 1442695040888963407ull;
	return (seed >> 33) % below;
}

static uint64_t *word_at(uint64_t slot)
{
	return (uint64_t *)slot;
}

static uint64_t below(const struct routine *one)
{
	uint64_t end = (uint64_t)stacks[one - routines] + 8 * WORDS - 64;

	return one->depth ? one->calls[one->depth - 1].slot - 8 * (1 + pick(6)) : end;
}

/* As push_frame of probe.inc. */
static void push(struct tp_shadow *shadow, uint64_t slot, uint64_t site, uint64_t exit)
{
	struct tp_call *frame = (struct tp_call *)shadow->top;

	if (shadow->top >= shadow->limit)
		frame = tpa_shadow_sweep(shadow, slot);
	if (!frame)
		return;
	if (slot < shadow->low || frame[-1].slot <= slot)
		frame = tpa_shadow_check(shadow, slot, site, exit);
	if (!frame || frame == TPA_NOT_OWN ||
	    !tpa_move(&shadow->top, (uint64_t)frame, (uint64_t)(frame + 1)))
		return;
	frame->slot = slot;
	frame->state = ((frame->state >> 32) + 1) << 32 | TP_FRAME_PUSHED;
	frame->word = site << 16 | TP_EVENT_EXIT;
	frame->exit = exit;
	frame->real = *word_at(slot);
	*word_at(slot) = tpa_trampoline(shadow, frame);
	frame->state = (frame->state & ~0xffull) | TP_FRAME_LIVE;
}

static void call(struct routine *one, int thread)
{
	uint64_t slot = below(one);
	struct call *made = &one->calls[one->depth];

	if (one->depth >= DEEPEST || slot < (uint64_t)stacks[one - routines] + 512)
		return;
	/* The same place calls again and again: equal addresses are the hard case. */
	*made = (struct call){ slot, pick(2) ? 0x1000 + 8 * pick(4) : next_real++, pick(4) != 0 };
	one->depth++;
	*word_at(slot) = made->real;
	if (made->traced)
		push(shadows[thread], slot, 1 + pick(3), 7);
}

/* The function ends by a jump to another one: a second frame for the same return. */
static void jump_on(struct routine *one, int thread)
{
	if (one->depth)
		push(shadows[thread], one->calls[one->depth - 1].slot, 10 + pick(3), 7);
}

static uint64_t pass(uint64_t at, uint64_t slot, int thread)
{
	uint64_t number = (at - RETURNS) / TP_RETURN_BYTES;
	struct tp_call *frame = (struct tp_call *)tpa_image.shadow_frames + number;
	struct tp_shadow *of = shadows[number / TP_SHADOW_DEPTH];
	uint64_t real = frame->real, fs_base = fs_base_of(thread);

	*word_at(slot) = number;
	through++;
	if (!pick(50)) /* a signal now, whose handler unwinds, and calls */
		tpa_unwind(fs_base, TP_UNWIND_BEGINS, slot - 256, 0);
	if (!pick(50))
		push(shadows[thread], slot - 512, 99, 7); /* and is left there */
	wrong += frame->real != real;
	real = frame->real;
	frame->state &= ~0xffull;
	*word_at(slot) = real;
	if (of->fs_base != fs_base || !tpa_move(&of->top, (uint64_t)(frame + 1), (uint64_t)frame))
		tpa_shadow_pop(frame, of, fs_base, &set);
	return real;
}

/* A RET of the innermost call. */
static void leave(struct routine *one, int thread)
{
	const struct call *made = one->depth ? &one->calls[one->depth - 1] : NULL;
	uint64_t at;

	if (!made)
		return;
	at = *word_at(made->slot);
	for (int i = 0; i < 2000 && at >= RETURNS && at < RETURNS + THREADS * TP_SHADOW_DEPTH * 16;
	     i++)
		at = pass(at, made->slot, thread);
	wrong += at != made->real;
	one->depth--;
}

/* What an unwinder reads must be plain; then some calls are gone. */
static void unwind(struct routine *one, int thread)
{
	uint64_t fs_base = fs_base_of(thread);
	int kept = (int)pick((uint64_t)one->depth + 1);

	if (!one->depth)
		return;
	tpa_unwind(fs_base, TP_UNWIND_BEGINS, one->calls[one->depth - 1].slot - 8, 0);
	for (int i = 0; i < one->depth; i++)
		wrong += *word_at(one->calls[i].slot) != one->calls[i].real;
	one->depth = kept;
	if (kept)
		tpa_unwind(fs_base, TP_UNWIND_CAUGHT, one->calls[kept - 1].slot - 8, 0);
}

static void walk(struct routine *one, int thread)
{
	if (!one->depth)
		return;
	tpa_unwind(fs_base_of(thread), TP_UNWIND_WALKS, one->calls[one->depth - 1].slot - 8, 0);
	for (int i = 0; i < one->depth; i++)
		wrong += *word_at(one->calls[i].slot) != one->calls[i].real;
}

/* longjmp with the guard, or without: __builtin_longjmp. */
static void jump(struct routine *one, int thread)
{
	uint64_t buf[8] = { 0 };
	int kept = (int)pick((uint64_t)one->depth + 1);

	if (kept && kept < one->depth && pick(2)) {
		buf[6] = one->calls[kept - 1].slot - 8;
		tpa_unwind(fs_base_of(thread), TP_UNWIND_JUMPS, one->calls[one->depth - 1].slot - 8,
			   (uint64_t)buf);
	}
	one->depth = kept;
}

static void step(int may_move)
{
	int thread = (int)pick(THREADS), own = thread + THREADS * (int)pick(2);
	struct routine *one = &routines[may_move ? (int)pick(STACKS) : own];

	switch (pick(12)) {
	case 0:
		unwind(one, thread);
		break;
	case 1:
		if (!pick(3))
			jump(one, thread);
		break;
	case 2:
		walk(one, thread);
		break;
	case 3:
		jump_on(one, thread);
		break;
	case 4:
	case 5:
	case 6:
	case 7:
		leave(one, thread);
		break;
	default:
		call(one, thread);
	}
}

/* An empty page between any two: as of coroutines' stacks. */
static void begin(void)
{
	struct tp_wire wire;
	uint64_t args[4] = { THREADS, RETURNS };
	char *all = mmap(NULL, STACKS * (8 * WORDS + TP_PAGE_BYTES), PROT_READ | PROT_WRITE,
			 MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

	CHECK(all != MAP_FAILED);
	memset(memory, 0, sizeof(memory));
	memset(routines, 0, sizeof(routines));
	tpa_image = (struct tp_image){ 0 };
	tpa.pid = getpid();
	for (int i = 0; i < STACKS; i++)
		stacks[i] = all + i * (8 * WORDS + TP_PAGE_BYTES);
	CHECK_EQ(tpa_make_shadows(&wire, args), 0);
	for (int i = 0; i < THREADS; i++) { /* the first one is the process's first thread */
		tpa.pid = i ? 1 : getpid();
		tpa_image.main_stack = i ? 0 : fs_base_of(0) + 64;
		shadows[i] = tpa_shadow_claim(fs_base_of(i), (uint32_t)gettid());
	}
	tpa.pid = getpid();
	wrong = through = 0;
}

static void run(int may_move)
{
	begin();
	for (int i = 0; i < STEPS && !wrong; i++) {
		CHECK_NOTE("step %d", i);
		step(may_move);
		CHECK_EQ(wrong, 0);
	}
	CHECK(through > STEPS / 100);
}

TEST(lineage_h18_no_order_of_calls_and_unwinding_gives_a_wrong_return)
{
	run(0);
}

TEST(lineage_h18_nor_when_coroutines_move_between_threads)
{
	run(1);
}

TEST(lineage_h18_when_nobody_records_all_frames_are_let_go)
{
	begin();
	for (int i = 0; i < 40; i++)
		call(&routines[0], 0);
	gate_open = 0;
	tpa_unwind(fs_base_of(0), TP_UNWIND_BEGINS, below(&routines[0]), 0);
	gate_open = 1;
	CHECK_EQ(shadows[0]->top, shadows[0]->base);
	while (routines[0].depth)
		leave(&routines[0], 0);
	CHECK_EQ(wrong, 0);
	CHECK_EQ(through, 0);
}

TEST(lineage_h18_a_full_stack_gives_no_frame)
{
	static struct call kept[3000];
	uint64_t room = 8 * WORDS - 64;

	begin();
	for (int i = 0; i < 1500; i++) {
		kept[i] = (struct call){ (uint64_t)stacks[0] + room - 8 * (uint64_t)(i + 1),
					 0x5000 + (uint64_t)i, 1 };
		*word_at(kept[i].slot) = kept[i].real;
		push(shadows[0], kept[i].slot, 5, 7);
	}
	CHECK_EQ(shadows[0]->top, tpa_end_of(shadows[0]));
	CHECK_EQ(*word_at(kept[1400].slot), kept[1400].real);
	routines[0].depth = 1;
	for (int i = 1499; i >= 0; i--) {
		routines[0].calls[0] = kept[i];
		routines[0].depth = 1;
		leave(&routines[0], 0);
	}
	CHECK_EQ(wrong, 0);
}
