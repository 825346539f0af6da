/* SPDX-License-Identifier: Apache-2.0 */
/**
 * @file
 * x86-64 instructions as far as patching must know them: how long, where they go, and which bytes
 * of them depend on the place where they stand.
 */
#ifndef TP_INSN_H
#define TP_INSN_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/** What happens after the instruction. */
enum tp_flow {
	TP_FLOW_NEXT,	       /* falls through to the next one, always (faults aside) */
	TP_FLOW_JMP,	       /* jmp rel8, rel32 */
	TP_FLOW_JCC,	       /* jcc rel8, rel32 */
	TP_FLOW_LOOP,	       /* loopne, loope, loop, jrcxz: rel8 only */
	TP_FLOW_CALL,	       /* call rel32 */
	TP_FLOW_JMP_INDIRECT,  /* jmp r/m, near or far */
	TP_FLOW_CALL_INDIRECT, /* call r/m, near or far */
	TP_FLOW_RET,	       /* ret, ret imm16, retf, iret, sysret */
	TP_FLOW_SYSCALL,       /* syscall, sysenter, int imm8, int1 */
	TP_FLOW_XBEGIN,	       /* xbegin rel32: a second way out */
	TP_FLOW_STOP,	       /* int3, ud0, ud1, ud2, hlt: traps here */
};

/** One decoded instruction; offsets are from its first byte. */
struct tp_decoded {
	uint8_t length;	    /* 0: no valid 64-bit instruction, or more bytes than there are */
	uint8_t flow;	    /* enum tp_flow */
	uint8_t opcode_at;  /* the opcode's first byte, its 0f escape (or VEX, EVEX) included */
	uint8_t modrm_at;   /* 0: none */
	uint8_t disp_at;    /* of the memory operand's displacement; 0: none */
	uint8_t disp_bytes; /* 1 or 4 (8 for the moffs forms a0 to a3) */
	uint8_t imm_at;	    /* of the first immediate or relative displacement; 0: none */
	uint8_t imm_bytes;  /* of all immediates together */
	bool rip_relative;  /* the memory operand is disp32(%rip) */
	bool is_lea;	    /* lea */
};

/**
 * Decode the instruction that begins at @code, 64-bit mode, of at most @len bytes.
 * Every instruction that current AMD and Intel processors execute in user mode is known by length:
 * legacy, 0f, 0f38, 0f3a, VEX, EVEX, XOP, 3DNow!. Source: Intel SDM volume 2, chapter 2 and appendix A;
 * AMD APM volume 3, appendix A.
 */
struct tp_decoded tp_decode(const uint8_t *code, size_t len);

/** Is it endbr64? */
static inline bool tp_is_endbr64(const uint8_t *code, size_t len)
{
	return len >= 4 && code[0] == 0xf3 && code[1] == 0x0f && code[2] == 0x1e && code[3] == 0xfa;
}

/** Does the instruction read or write a register, memory or flags, or is it a NOP (90, 0f 1f, with
 * prefixes; not pause, not endbr64)? True for NOPs only. */
bool tp_is_nop(const uint8_t *code, const struct tp_decoded *insn);

/** Where a branch with a relative displacement goes (flows JMP, JCC, LOOP, CALL, XBEGIN). */
uint64_t tp_branch_target(const uint8_t *code, const struct tp_decoded *insn, uint64_t addr);

#endif
