/* SPDX-License-Identifier: Apache-2.0 */
/**
 * @file
 * What a trapped thread does instead of the instruction under the int3. Emulate, never merely
 * skip: skipping lost calls in the kernel until 2019 (4b33dadf3766, 9e298e860408).
 */
#include "engine.h"

enum { FLAG_CF = 1 << 0, FLAG_PF = 1 << 2, FLAG_ZF = 1 << 6, FLAG_SF = 1 << 7, FLAG_OF = 1 << 11 };

static int32_t displacement32(const uint8_t *code)
{
	return (int32_t)((uint32_t)code[0] | (uint32_t)code[1] << 8 | (uint32_t)code[2] << 16 |
			 (uint32_t)code[3] << 24);
}

/* Bytes of ModRM, SIB and displacement of "0f 1f /0" (SDM vol. 2, table 2-2 and 2-3). */
static size_t modrm_length(const uint8_t *code, size_t len)
{
	unsigned int mod, rm;
	size_t bytes = 1;

	if (!len)
		return 0;
	mod = code[0] >> 6;
	rm = code[0] & 7;
	if (mod == 3)
		return 1;
	if (rm == 4) {
		if (len < 2)
			return 0;
		bytes++;
		if (mod == 0 && (code[1] & 7) == 5)
			bytes += 4;
	} else if (mod == 0 && rm == 5) {
		bytes += 4;
	}
	return bytes + (mod == 1 ? 1 : mod == 2 ? 4 : 0);
}

static bool is_nop_prefix(uint8_t byte)
{
	return byte == 0x66 || byte == 0x2e || byte == 0x36 || byte == 0x3e || byte == 0x26;
}

/* Length of the NOP at @code, or 0: 90 and 0f 1f /0 with harmless prefixes, endbr64. */
static size_t nop_length(const uint8_t *code, size_t len)
{
	size_t at = 0, operand;

	if (len >= 4 && code[0] == 0xf3 && code[1] == 0x0f && code[2] == 0x1e && code[3] == 0xfa)
		return 4;
	while (at < len && is_nop_prefix(code[at]))
		at++;
	if (at < len && code[at] == 0x90)
		return at + 1;
	if (at + 2 >= len || code[at] != 0x0f || code[at + 1] != 0x1f || (code[at + 2] & 0x38))
		return 0;
	operand = modrm_length(code + at + 2, len - at - 2);
	at += 2 + operand;
	return operand && at <= len ? at : 0;
}

static struct tp_insn relative(enum tp_insn_kind kind, uint64_t addr, unsigned int length,
			       int32_t displacement)
{
	return (struct tp_insn){ .kind = kind,
				 .length = length,
				 .target = addr + length + (int64_t)displacement };
}

static struct tp_insn classify_first(const uint8_t *code, size_t len, uint64_t addr)
{
	struct tp_insn insn = { .kind = TP_INSN_OTHER };
	size_t prefixes = 0;

	insn.length = (unsigned int)nop_length(code, len);
	if (insn.length) {
		insn.kind = TP_INSN_NOP;
		return insn;
	}
	while (prefixes < len && code[prefixes] == 0x2e) /* ignored on CALL: pads it to its site */
		prefixes++;
	if (len >= prefixes + 5 && code[prefixes] == 0xe8)
		return relative(TP_INSN_CALL, addr, (unsigned int)prefixes + 5,
				displacement32(code + prefixes + 1));
	if (len >= 5 && code[0] == 0xe9)
		return relative(TP_INSN_JMP, addr, 5, displacement32(code + 1));
	if (len >= 2 && code[0] == 0xeb)
		return relative(TP_INSN_JMP, addr, 2, (int8_t)code[1]);
	if (len >= 2 && (code[0] & 0xf0) == 0x70) {
		insn = relative(TP_INSN_JCC, addr, 2, (int8_t)code[1]);
		insn.condition = code[0] & 0x0f;
	} else if (len >= 6 && code[0] == 0x0f && (code[1] & 0xf0) == 0x80) {
		insn = relative(TP_INSN_JCC, addr, 6, displacement32(code + 2));
		insn.condition = code[1] & 0x0f;
	} else if (len >= 1 && code[0] == 0xc3) {
		insn = (struct tp_insn){ .kind = TP_INSN_RET, .length = 1 };
	} else if (len >= 2 && code[0] == 0xf3 && code[1] == 0xc3) {
		insn = (struct tp_insn){ .kind = TP_INSN_RET, .length = 2 };
	} else if (len >= 3 && code[0] == 0xc2) {
		insn = (struct tp_insn){ .kind = TP_INSN_RET, .length = 3 };
		insn.pops = code[1] | (unsigned int)code[2] << 8;
	}
	return insn;
}

static bool all_bytes(const uint8_t *code, size_t len, uint8_t value)
{
	for (size_t i = 0; i < len; i++)
		if (code[i] != value)
			return false;
	return true;
}

/**
 * Decode what fills a site. JMP and RET never fall through, so int3 padding may follow them
 * (26c44b776dba); NOPs may follow a NOP. Anything else longer than its first instruction is OTHER.
 */
struct tp_insn tp_classify(const uint8_t *code, size_t len, uint64_t addr)
{
	struct tp_insn insn = classify_first(code, len, addr);
	size_t at = insn.length;

	if (insn.kind == TP_INSN_OTHER || at == len)
		return insn;
	if (insn.kind == TP_INSN_NOP) {
		while (at < len) {
			size_t next = nop_length(code + at, len - at);

			if (!next)
				break;
			at += next;
		}
	} else if ((insn.kind == TP_INSN_JMP || insn.kind == TP_INSN_RET) &&
		   all_bytes(code + at, len - at, TP_INT3)) {
		insn.length = (unsigned int)len;
		at = len;
	}
	if (at != len)
		insn.kind = TP_INSN_OTHER;
	return insn;
}

/**
 * True when every suffix of @code is NOPs, whatever mix of two such strings a core fetches:
 * 66 and 90 only, 90 last. The tail of such a site may change under a thread inside it.
 */
bool tp_is_nop_mix(const uint8_t *code, size_t len)
{
	for (size_t i = 0; i < len; i++)
		if (code[i] != 0x90 && code[i] != 0x66)
			return false;
	return len && code[len - 1] == 0x90;
}

static bool condition_holds(unsigned int condition, uint64_t flags)
{
	bool sign = !!(flags & FLAG_SF) != !!(flags & FLAG_OF);
	bool holds;

	switch (condition >> 1) {
	case 0:
		holds = flags & FLAG_OF;
		break;
	case 1:
		holds = flags & FLAG_CF;
		break;
	case 2:
		holds = flags & FLAG_ZF;
		break;
	case 3:
		holds = flags & (FLAG_CF | FLAG_ZF);
		break;
	case 4:
		holds = flags & FLAG_SF;
		break;
	case 5:
		holds = flags & FLAG_PF;
		break;
	case 6:
		holds = sign;
		break;
	default:
		holds = sign || (flags & FLAG_ZF);
		break;
	}
	return holds != (condition & 1);
}

/** The byte of struct tp_poke that carries kind and condition to the trap handler. */
uint8_t tp_pack_emulate(const struct tp_insn *insn)
{
	return (uint8_t)(insn->kind | insn->condition << 4);
}

/** Send @frame, which trapped at a later instruction of the old code, to that one's copy. */
void tp_emulate_head(const struct tp_poke *poke, unsigned int head, struct tp_frame *frame)
{
	frame->rip = poke->target + tp_copy_offset(poke, head);
}

/** Do on @frame what the instruction of @poke would have done. frame->rip is past the int3. */
void tp_emulate(const struct tp_poke *poke, struct tp_frame *frame)
{
	uint64_t next = poke->addr + poke->len;

	switch (poke->emulate & 0x0f) {
	case TP_INSN_CALL:
		frame->rsp -= 8;
		*(volatile uint64_t *)frame->rsp = next;
		frame->rip = poke->target;
		break;
	case TP_INSN_JMP:
		frame->rip = poke->target;
		break;
	case TP_INSN_HANDLER:
		frame->rip = poke->handler;
		break;
	case TP_INSN_JCC:
		frame->rip = condition_holds(poke->emulate >> 4, frame->rflags) ? poke->target :
										  next;
		break;
	case TP_INSN_RET:
		frame->rip = *(volatile uint64_t *)frame->rsp;
		frame->rsp += 8 + poke->target; /* RET imm16 keeps its pop count here */
		break;
	default:
		frame->rip = next;
		break;
	}
}
