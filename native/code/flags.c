/* SPDX-License-Identifier: Apache-2.0 */
/**
 * @file
 * Whether code looks at the arithmetic flags before it writes them. Only a short straight way is
 * followed, and only instructions are known that compilers put behind a branch: everything else
 * counts as a look. Source: Intel SDM volume 1, appendix A.
 */
#include "flags.h"

#include "insn.h"

enum { MOST_STEPS = 12 };

enum effect {
	EFFECT_NONE,  /* neither reads nor writes a flag */
	EFFECT_WRITE, /* writes or undefines all six, and reads none */
	EFFECT_OTHER,
};

static unsigned int operation(const uint8_t *code, const struct tp_decoded *insn)
{
	return code[insn->modrm_at] >> 3 & 7;
}

/* add, or, adc, sbb, and, sub, xor, cmp by number: two of them read the carry. */
static enum effect arithmetic(unsigned int number)
{
	return number == 2 || number == 3 ? EFFECT_OTHER : EFFECT_WRITE;
}

static enum effect effect_of_0f(uint8_t opcode)
{
	switch (opcode) {
	case 0x10: /* moves of SSE, prefetches, conversions */
	case 0x11:
	case 0x12:
	case 0x13:
	case 0x14:
	case 0x16:
	case 0x17:
	case 0x18:
	case 0x1e:
	case 0x1f:
	case 0x28:
	case 0x29:
	case 0x2a:
	case 0x57:
	case 0x58:
	case 0x59:
	case 0x5a:
	case 0x5c:
	case 0x5e:
	case 0x6e:
	case 0x6f:
	case 0x7e:
	case 0x7f:
	case 0xb6: /* movzx, movsx */
	case 0xb7:
	case 0xbe:
	case 0xbf:
	case 0xd6:
	case 0xef:
		return EFFECT_NONE;
	case 0x2e: /* ucomis, comis */
	case 0x2f:
	case 0xaf: /* imul */
		return EFFECT_WRITE;
	default:
		return EFFECT_OTHER;
	}
}

static enum effect effect_of(const uint8_t *code, const struct tp_decoded *insn)
{
	uint8_t opcode = code[insn->opcode_at];

	if (insn->flow != TP_FLOW_NEXT)
		return EFFECT_OTHER;
	if (opcode == 0x0f)
		return effect_of_0f(code[insn->opcode_at + 1]);
	if (opcode < 0x40)
		return (opcode & 7) < 6 ? arithmetic(opcode >> 3) : EFFECT_OTHER;
	if (opcode >= 0x50 && opcode < 0x60) /* push, pop */
		return EFFECT_NONE;
	if (opcode >= 0xb0 && opcode < 0xc0) /* mov */
		return EFFECT_NONE;
	switch (opcode) {
	case 0x63: /* movslq */
	case 0x68: /* push */
	case 0x6a:
	case 0x88: /* mov */
	case 0x89:
	case 0x8a:
	case 0x8b:
	case 0x8d: /* lea */
	case 0x90: /* nop */
	case 0x98: /* cltq */
	case 0x99: /* cqto */
		return EFFECT_NONE;
	case 0xc6: /* mov; the other numbers are xabort */
	case 0xc7:
		return operation(code, insn) ? EFFECT_OTHER : EFFECT_NONE;
	case 0x69: /* imul: what it does not write it undefines */
	case 0x6b:
	case 0x84: /* test */
	case 0x85:
	case 0xa8:
	case 0xa9:
		return EFFECT_WRITE;
	case 0x80:
	case 0x81:
	case 0x83:
		return arithmetic(operation(code, insn));
	case 0xf6: /* test, not, neg */
	case 0xf7:
		if (operation(code, insn) == 2)
			return EFFECT_NONE;
		return operation(code, insn) == 0 || operation(code, insn) == 3 ? EFFECT_WRITE :
										  EFFECT_OTHER;
	default:
		return EFFECT_OTHER;
	}
}

/** True when the code at @code writes all arithmetic flags before it can look at one. */
bool tp_flags_are_dead(const uint8_t *code, size_t room)
{
	for (int step = 0; step < MOST_STEPS; step++) {
		struct tp_decoded insn = tp_decode(code, room);
		int64_t distance;

		if (!insn.length)
			return false;
		switch (effect_of(code, &insn)) {
		case EFFECT_WRITE:
			return true;
		case EFFECT_NONE:
			break;
		case EFFECT_OTHER:
			if (insn.flow != TP_FLOW_JMP)
				return false;
			distance = (int64_t)tp_branch_target(code, &insn, 0) - insn.length;
			/* Only forwards: nothing is known of what lies before @code. */
			if (distance < 0 || (uint64_t)distance > room - insn.length)
				return false;
			code += distance;
			room -= (size_t)distance;
			break;
		}
		code += insn.length;
		room -= insn.length;
	}
	return false;
}
