/* SPDX-License-Identifier: Apache-2.0 */
/**
 * @file
 * What the JMP over a window with conditional branches goes to: the instructions of the window, where
 * every branch counts on both of its ways.
 *
 * Counts are exact: one locked increment, so threads and signal handlers cannot lose any. Where code
 * may still look at the flags they are kept, below the red zone; where the next instructions write them
 * all (nearly everywhere) the increment stands alone and touches no register and no stack.
 */
#include <errno.h>
#include <stdbool.h>
#include <string.h>

#include "insn.h"
#include "textpoke.h"

enum {
	OP_JMP_REL8 = 0xeb,
	OP_JMP_REL32 = 0xe9,
	JUMP_BYTES = 5,
	LONGEST_STEP = TP_MOST_MOVED + 64, /* of what is appended between two looks at the room */
};

/* Where in the two below the stack pointer has become another one. */
enum {
	KEPT_BELOW_AT = 5,
	KEPT_PUSHED_AT = 6,
	BACK_POPPED_AT = 4,
	RED_ZONE = 128,
};

static const uint8_t keep_flags[] = {
	0x48, 0x8d, 0x64, 0x24, 0x80, /* lea -128(%rsp),%rsp */
	0x50,			      /* push %rax */
	0x9f,			      /* lahf */
	0x0f, 0x90, 0xc0,	      /* seto %al */
};
static const uint8_t increment[] = { 0xf0, 0x48, 0xff, 0x05 }; /* lock incq disp32(%rip) */
static const uint8_t flags_back[] = {
	0x04, 0x7f,					/* add $0x7f,%al */
	0x9e,						/* sahf */
	0x58,						/* pop %rax */
	0x48, 0x8d, 0xa4, 0x24, 0x80, 0x00, 0x00, 0x00, /* lea 128(%rsp),%rsp */
};

/* A branch whose taken way is still to be written. */
struct way {
	uint64_t target;
	uint32_t jump_at; /* the displacement that shall lead to it */
	uint8_t head;	  /* the branch's, in the window */
};

struct maker {
	const struct tp_branch_site *site;
	uint64_t at;
	struct tp_branch_stub *stub;
	struct way ways[TP_MOST_WINDOW_BRANCHES];
	unsigned int branches;
	uint8_t head; /* of the instruction that is being written, in the window */
	bool ended;   /* what follows in the window is never reached from above */
};

static void append(struct maker *maker, const void *code, size_t bytes)
{
	memcpy(maker->stub->code + maker->stub->bytes, code, bytes);
	maker->stub->bytes += (uint32_t)bytes;
}

/* @from: bytes of the stub; one window makes no more marks than there is room for. */
static void mark(struct maker *maker, uint32_t from, uint8_t lowered)
{
	struct tp_branch_stub *stub = maker->stub;

	stub->marks[stub->mark_count++] = (struct tp_branch_mark){
		.at = (uint16_t)from,
		.head = maker->head,
		.lowered = lowered,
	};
}

static void append_byte(struct maker *maker, uint8_t byte)
{
	append(maker, &byte, 1);
}

/* A displacement to @target, of an instruction that ends with it. */
static int append_relative(struct maker *maker, uint64_t target)
{
	uint64_t next = maker->at + maker->stub->bytes + sizeof(int32_t);
	int64_t distance = (int64_t)(target - next);
	int32_t displacement = (int32_t)distance;

	if (displacement != distance)
		return -ERANGE;
	append(maker, &displacement, sizeof(displacement));
	return 0;
}

static int append_jmp(struct maker *maker, uint64_t target)
{
	append_byte(maker, OP_JMP_REL32);
	return append_relative(maker, target);
}

static int append_count(struct maker *maker, uint64_t counter, bool flags_live)
{
	uint32_t at = maker->stub->bytes;
	int error;

	if (flags_live) {
		append(maker, keep_flags, sizeof(keep_flags));
		mark(maker, at + KEPT_BELOW_AT, RED_ZONE);
		mark(maker, at + KEPT_PUSHED_AT, RED_ZONE + sizeof(uint64_t));
	}
	append(maker, increment, sizeof(increment));
	error = append_relative(maker, counter);
	if (flags_live) {
		at = maker->stub->bytes;
		append(maker, flags_back, sizeof(flags_back));
		mark(maker, at + BACK_POPPED_AT, RED_ZONE);
		mark(maker, maker->stub->bytes, 0);
	}
	return error;
}

static uint64_t counter_of(const struct maker *maker, unsigned int branch, bool taken)
{
	return maker->site->counters + (uint64_t)branch * TP_COUNTER_BYTES +
	       (taken ? 0 : sizeof(uint64_t));
}

static bool is_live(const struct maker *maker, unsigned int branch, enum tp_branch_live way)
{
	return (maker->site->live >> 2 * branch & way) != 0;
}

/* The condition itself, with four bytes for the way to its taken side. */
static void append_condition(struct maker *maker, const uint8_t *code,
			     const struct tp_decoded *insn)
{
	if (insn->flow == TP_FLOW_JCC) {
		uint8_t condition = code[insn->imm_at - 1] & 0x0f;

		append(maker, (const uint8_t[]){ 0x0f, 0x80 | condition }, 2);
	} else {
		if (memchr(code, 0x67, insn->opcode_at)) /* counts in ecx */
			append_byte(maker, 0x67);
		append(maker, (const uint8_t[]){ code[insn->opcode_at], 2 }, 2);
		append(maker, (const uint8_t[]){ OP_JMP_REL8, JUMP_BYTES }, 2);
		append_byte(maker, OP_JMP_REL32);
	}
	maker->ways[maker->branches].jump_at = maker->stub->bytes;
	append(maker, (const uint8_t[4]){ 0 }, 4);
}

/* Behind it, not taken, the window goes on. */
static int append_branch(struct maker *maker, const uint8_t *code, const struct tp_decoded *insn,
			 uint64_t addr)
{
	unsigned int branch = maker->branches;

	if (branch == TP_MOST_WINDOW_BRANCHES || memchr(code, 0x66, insn->opcode_at))
		return -EINVAL;
	maker->ways[branch].target = tp_branch_target(code, insn, addr);
	maker->ways[branch].head = maker->head;
	append_condition(maker, code, insn);
	maker->branches++;
	return append_count(maker, counter_of(maker, branch, false),
			    is_live(maker, branch, TP_LIVE_NOT_TAKEN));
}

/* Any other instruction, as move.c writes it for its new place. */
static int append_moved(struct maker *maker, const uint8_t *code, const struct tp_decoded *insn,
			uint64_t addr)
{
	struct tp_moved moved;
	int error =
		tp_move_window(code, insn->length, addr, maker->at + maker->stub->bytes, &moved);

	if (error)
		return error;
	if (moved.pushed_at)
		mark(maker, maker->stub->bytes + moved.pushed_at, sizeof(uint64_t));
	append(maker, moved.code, moved.back_at ? moved.back_at : moved.bytes);
	maker->ended = !moved.back_at;
	return 0;
}

static int append_taken(struct maker *maker, unsigned int branch)
{
	const struct way *way = &maker->ways[branch];
	int32_t distance = (int32_t)(maker->stub->bytes - (way->jump_at + 4));
	int error;

	memcpy(maker->stub->code + way->jump_at, &distance, sizeof(distance));
	maker->head = way->head;
	mark(maker, maker->stub->bytes, 0);
	error = append_count(maker, counter_of(maker, branch, true),
			     is_live(maker, branch, TP_LIVE_TAKEN));
	return error ? error : append_jmp(maker, way->target);
}

static int append_window(struct maker *maker)
{
	const struct tp_branch_site *site = maker->site;
	uint64_t at = 0;

	while (at < site->bytes && !maker->ended) {
		const uint8_t *code = site->window + at;
		struct tp_decoded insn = tp_decode(code, site->bytes - at);
		int error;

		if (!insn.length)
			return -EINVAL;
		if (maker->stub->bytes + LONGEST_STEP > TP_MOST_BRANCH_STUB)
			return -ENOSPC;
		if (at && at < JUMP_BYTES) {
			if (maker->stub->bytes > UINT8_MAX)
				return -ENOSPC;
			maker->stub->head_at[at] = (uint8_t)maker->stub->bytes;
		}
		maker->head = (uint8_t)at;
		mark(maker, maker->stub->bytes, 0);
		if (insn.flow == TP_FLOW_JCC || insn.flow == TP_FLOW_LOOP)
			error = append_branch(maker, code, &insn, site->addr + at);
		else
			error = append_moved(maker, code, &insn, site->addr + at);
		if (error)
			return error;
		at += insn.length;
	}
	if (maker->ended)
		return 0;
	maker->head = (uint8_t)at;
	mark(maker, maker->stub->bytes, 0);
	return append_jmp(maker, site->addr + site->bytes);
}

/**
 * Make the stub of a window at address @at. Flags, registers and stack are on every way what the
 * originals leave. How large it is does not depend on @at.
 * @return 0; -EINVAL: an instruction that cannot be moved; -ERANGE: something does not reach;
 * -ENOSPC: too many of them.
 */
int tp_make_branch_stub(const struct tp_branch_site *site, uint64_t at, struct tp_branch_stub *stub)
{
	struct maker maker = { .site = site, .at = at, .stub = stub };
	int error;

	stub->bytes = stub->mark_count = 0;
	memset(stub->head_at, 0, sizeof(stub->head_at));
	if (site->bytes < JUMP_BYTES || site->bytes > TP_MOST_BRANCH_WINDOW)
		return -EINVAL;
	error = append_window(&maker);
	for (unsigned int i = 0; !error && i < maker.branches; i++) {
		if (stub->bytes + LONGEST_STEP > TP_MOST_BRANCH_STUB)
			return -ENOSPC;
		error = append_taken(&maker, i);
	}
	return error;
}

/**
 * Make the stubs of @count sites, one behind the other from address @start on, in @code; what is
 * between them traps. Without @code they are only measured, each at its own site.
 * @return how many bytes they take together.
 */
uint64_t tp_place_branch_stubs(const struct tp_branch_site *sites, uint64_t count, uint64_t start,
			       uint8_t *code, struct tp_branch_placed *placed)
{
	struct tp_branch_stub stub;
	uint64_t used = 0;

	for (uint64_t i = 0; i < count; i++) {
		struct tp_branch_site site = sites[i];
		uint64_t room;

		if (!code)
			site.counters = site.addr;
		placed[i] = (struct tp_branch_placed){
			.offset = (uint32_t)used,
			.error = tp_make_branch_stub(&site, code ? start + used : site.addr, &stub),
		};
		if (placed[i].error)
			continue;
		room = (stub.bytes + TP_BRANCH_STUB_ALIGN - 1u) & ~(TP_BRANCH_STUB_ALIGN - 1u);
		placed[i].bytes = stub.bytes;
		memcpy(placed[i].heads, stub.head_at + 1, sizeof(placed[i].heads));
		if (code) {
			memcpy(code + used, stub.code, stub.bytes);
			memset(code + used + stub.bytes, 0xcc, room - stub.bytes);
		}
		used += room;
	}
	return used;
}
