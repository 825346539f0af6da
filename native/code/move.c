/* SPDX-License-Identifier: Apache-2.0 */
/**
 * @file
 * A function's first instructions, so written that they do at another address what they did at
 * their own. Flags, registers and the stack are left exactly as the originals leave them.
 */
#include "textpoke.h"

#include <assert.h>
#include <errno.h>
#include <string.h>

#include "insn.h"

enum {
	OP_PUSH_IMM32 = 0x68,
	OP_JMP_REL8 = 0xeb,
	OP_JMP_REL32 = 0xe9,
	JMP_REL32_BYTES = 5,
	REG_RSP = 4,
	FAR_BIT = 0x08,	    /* of ModRM, ff /2 to /5 */
	CALL_TO_JMP = 0x30, /* the bits that tell ff /2 from ff /4 */
};

struct mover {
	const uint8_t *window;
	uint64_t window_bytes;
	uint64_t from;
	uint64_t to;
	struct tp_moved *out;
	bool ended; /* what follows in the window is never reached from above */
};

static void put(struct mover *mover, const void *bytes, size_t count)
{
	struct tp_moved *out = mover->out;

	assert(out->bytes + count <= TP_MOST_MOVED);
	memcpy(out->code + out->bytes, bytes, count);
	out->bytes += (uint32_t)count;
}

static void put_byte(struct mover *mover, uint8_t byte)
{
	put(mover, &byte, 1);
}

/* A displacement to @target, of an instruction that ends @behind bytes after the displacement. */
static int put_relative(struct mover *mover, uint64_t target, unsigned int behind)
{
	uint64_t next = mover->to + mover->out->bytes + sizeof(int32_t) + behind;
	int64_t distance = (int64_t)(target - next);
	int32_t displacement = (int32_t)distance;

	if (displacement != distance)
		return -ERANGE;
	put(mover, &displacement, sizeof(displacement));
	return 0;
}

static int put_jmp(struct mover *mover, uint64_t target)
{
	put_byte(mover, OP_JMP_REL32);
	return put_relative(mover, target, 0);
}

/* Strictly inside: a branch to the first byte meets the jump to the stub, and is right so. */
static bool is_inside(const struct mover *mover, uint64_t target)
{
	return target - mover->from - 1 < mover->window_bytes - 1;
}

static bool has_prefix(const uint8_t *code, const struct tp_decoded *insn, uint8_t prefix)
{
	return memchr(code, prefix, insn->opcode_at);
}

/* 66 cuts a near branch to 16 bits on AMD's processors and does nothing on Intel's. */
static bool is_cut(const uint8_t *code, const struct tp_decoded *insn)
{
	bool wide = insn->opcode_at && (code[insn->opcode_at - 1] & 0xf8) == 0x48;

	return has_prefix(code, insn, 0x66) && !wide;
}

/* The instruction with @modrm for its own; only disp32(%rip) has to change. */
static int copy(struct mover *mover, const uint8_t *code, const struct tp_decoded *insn,
		uint8_t modrm)
{
	struct tp_moved *out = mover->out;
	unsigned int behind = insn->length - insn->disp_at - 4u;
	uint32_t start = out->bytes;
	int32_t displacement;
	uint64_t target;
	int err;

	put(mover, code, insn->length);
	if (insn->modrm_at)
		out->code[start + insn->modrm_at] = modrm;
	if (!insn->rip_relative)
		return 0;
	memcpy(&displacement, code + insn->disp_at, sizeof(displacement));
	target = mover->from + (uint64_t)(code - mover->window) + insn->length +
		 (uint64_t)(int64_t)displacement;
	/* 67 cuts the address to 32 bits; inside the window are no longer the bytes it wants. */
	if (has_prefix(code, insn, 0x67) || is_inside(mover, target))
		return -EINVAL;
	out->bytes = start + insn->disp_at;
	err = put_relative(mover, target, behind);
	out->bytes = start + insn->length;
	return err;
}

static int move_loop(struct mover *mover, const uint8_t *code, const struct tp_decoded *insn,
		     uint64_t target)
{
	if (has_prefix(code, insn, 0x67)) /* counts in ecx */
		put_byte(mover, 0x67);
	put(mover, (const uint8_t[]){ code[insn->opcode_at], 2 }, 2);
	put(mover, (const uint8_t[]){ OP_JMP_REL8, JMP_REL32_BYTES }, 2);
	return put_jmp(mover, target);
}

static int move_branch(struct mover *mover, const uint8_t *code, const struct tp_decoded *insn)
{
	uint64_t addr = mover->from + (uint64_t)(code - mover->window);
	uint64_t target = tp_branch_target(code, insn, addr);
	uint8_t condition = code[insn->imm_at - 1] & 0x0f;

	if (is_inside(mover, target) || is_cut(code, insn))
		return -EINVAL;
	if (insn->flow == TP_FLOW_LOOP)
		return move_loop(mover, code, insn, target);
	if (insn->flow == TP_FLOW_JMP) {
		mover->ended = true;
		return put_jmp(mover, target);
	}
	put(mover, (const uint8_t[]){ 0x0f, 0x80 | condition }, 2);
	return put_relative(mover, target, 0);
}

/* What a CALL pushes: the address behind the original, which unwinders know. */
static void push_return(struct mover *mover)
{
	uint64_t address = mover->from + mover->window_bytes;
	uint32_t low = (uint32_t)address, high = (uint32_t)(address >> 32);

	put_byte(mover, OP_PUSH_IMM32);
	put(mover, &low, sizeof(low));
	mover->out->pushed_at = mover->out->bytes;
	if ((int64_t)address == (int32_t)low)
		return;
	put(mover, (const uint8_t[]){ 0xc7, 0x44, 0x24, 0x04 }, 4); /* movl $high, 4(%rsp) */
	put(mover, &high, sizeof(high));
}

/*
 * Of "call r/m": the push before the jump would change what it reads. Another register that points
 * to the word below the stack would escape us; nothing calls through what its CALL overwrites.
 */
static bool reads_rsp(const uint8_t *code, const struct tp_decoded *insn)
{
	uint8_t modrm = code[insn->modrm_at];
	uint8_t before = insn->opcode_at ? code[insn->opcode_at - 1] : 0;

	if ((before & 0xf1) == 0x41) /* REX.B: r12, not rsp */
		return false;
	if ((modrm & 7) != REG_RSP)
		return false;
	return modrm >= 0xc0 || (code[insn->modrm_at + 1] & 7) == REG_RSP;
}

static int move_call_indirect(struct mover *mover, const uint8_t *code,
			      const struct tp_decoded *insn)
{
	uint8_t modrm = code[insn->modrm_at];

	if (modrm & FAR_BIT || is_cut(code, insn) || reads_rsp(code, insn))
		return -EINVAL;
	push_return(mover);
	return copy(mover, code, insn, modrm ^ CALL_TO_JMP);
}

static int move_call(struct mover *mover, const uint8_t *code, const struct tp_decoded *insn)
{
	uint64_t at = (uint64_t)(code - mover->window);
	uint64_t target;

	/* A thread that returns must find the original instructions behind its CALL. */
	if (at + insn->length != mover->window_bytes)
		return -EINVAL;
	mover->ended = true;
	if (insn->flow == TP_FLOW_CALL_INDIRECT)
		return move_call_indirect(mover, code, insn);
	target = tp_branch_target(code, insn, mover->from + at);
	if (is_inside(mover, target))
		return -EINVAL;
	push_return(mover);
	return put_jmp(mover, target);
}

static int move_one(struct mover *mover, const uint8_t *code, const struct tp_decoded *insn)
{
	switch ((enum tp_flow)insn->flow) {
	case TP_FLOW_NEXT:
		break;
	case TP_FLOW_JMP:
	case TP_FLOW_JCC:
	case TP_FLOW_LOOP:
		return move_branch(mover, code, insn);
	case TP_FLOW_CALL:
	case TP_FLOW_CALL_INDIRECT:
		return move_call(mover, code, insn);
	case TP_FLOW_JMP_INDIRECT:
	case TP_FLOW_RET:
		mover->ended = true;
		break;
	case TP_FLOW_SYSCALL:
	case TP_FLOW_XBEGIN:
	case TP_FLOW_STOP:
		return -EINVAL;
	}
	return copy(mover, code, insn, code[insn->modrm_at]);
}

/**
 * Write the @window_bytes bytes of @window, which stand at @from, so that they do the same at @to,
 * and go on behind the window. What follows a RET or JMP is padding. A CALL may only be the last
 * instruction; it pushes the return address that it pushed at @from.
 * @return 0; -EINVAL: there is an instruction that cannot be moved; -ERANGE: @to is too far away
 * from what an instruction refers to. After an error @out holds nothing.
 */
int tp_move_window(const uint8_t *window, uint64_t window_bytes, uint64_t from, uint64_t to,
		   struct tp_moved *out)
{
	struct mover mover = { window, window_bytes, from, to, out, false };
	uint64_t at = 0;

	if (!window_bytes || window_bytes > TP_MOST_WINDOW)
		return -EINVAL;
	out->bytes = out->pushed_at = out->back_at = 0;
	memset(out->head_at, 0, sizeof(out->head_at));
	while (at < window_bytes && !mover.ended) {
		struct tp_decoded insn = tp_decode(window + at, window_bytes - at);
		int err;

		if (!insn.length)
			return -EINVAL;
		if (at < JMP_REL32_BYTES)
			out->head_at[at] = (uint8_t)out->bytes;
		err = move_one(&mover, window + at, &insn);
		if (err)
			return err;
		at += insn.length;
	}
	if (mover.ended)
		return 0;
	out->back_at = out->bytes;
	return put_jmp(&mover, from + window_bytes);
}
