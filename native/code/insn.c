/* SPDX-License-Identifier: Apache-2.0 */
/**
 * @file
 * How long an x86-64 instruction is and where it goes: one table look-up per opcode map. An
 * encoding that every processor refuses gets length 0, because that is how data in code shows;
 * VEX, EVEX and XOP are judged by opcode and mandatory prefix only (not by W, L, vvvv, mask).
 * Which forms exist in the maps behind 0f was tabulated by asking iced-x86 (MIT) for every opcode,
 * and held against LLVM's disassembler; tests/unit/test_code.py asks again.
 */
#include "insn.h"

#include <string.h>

enum {
	MOST_BYTES = 15,
	/* No read goes further than this: 14 prefixes, two escapes, opcode, ModRM, SIB, suffix. */
	MOST_READ = 32,
};

/*
 * A row of a map. Forms: bits 0 to 3 tell with which mandatory prefix (none, 66, f3, f2: what VEX
 * calls pp) the opcode exists with a register operand, bits 4 to 7 the same with a memory operand.
 */
enum {
	ANY = 0xff,
	MEMORY = 0xf0,
	REGISTER = 0x0f,
	HAS_MODRM = 1 << 8,
	LOCKABLE = 1 << 9, /* with a memory operand */
	IS_LEA = 1 << 10,
	RM_ZERO = 1 << 11, /* the register form exists with rm 0 only */
	IMM_SHIFT = 12,
	FLOW_SHIFT = 16,
	SPECIAL_SHIFT = 20,
	GROUP_SHIFT = 25,
};

/* Bytes behind the operand. */
enum imm { IMM_NONE, IMM_8, IMM_16, IMM_ENTER, IMM_Z, IMM_V, IMM_REL };

/*
 * By enum imm, then by 66 (1) and REX.W (2), of which the latter wins. 66 before a near branch cuts
 * it to 16 bits on AMD's processors and does nothing on Intel's, so no compiler writes it: 16 is
 * longer than any instruction.
 */
static const uint8_t imm_bytes[8][4] = {
	[IMM_8] = { 1, 1, 1, 1 }, [IMM_16] = { 2, 2, 2, 2 }, [IMM_ENTER] = { 3, 3, 3, 3 },
	[IMM_Z] = { 4, 2, 4, 4 }, [IMM_V] = { 4, 2, 8, 8 },  [IMM_REL] = { 4, 16, 4, 4 },
};

enum special {
	NOT_SPECIAL,
	PREFIX,
	REX,
	/* the row is found further on */
	ESCAPE,
	ESCAPE_38,
	ESCAPE_3A,
	VEX2,
	VEX3,
	EVEX,
	XOP_OR_POP,
	/* the row depends on ModRM */
	GROUP,
	FPU,
	GROUP_01,
	/* the bytes behind the opcode are odd */
	MOFFS,
	CONTROL,
	NOW_3D,
	EXTRACT,
};

/* What prefixes were there, besides REX. */
enum { DATA16 = 1, ADDR32 = 2, LOCK = 4, REP = 8, REPNE = 16 };

enum group {
	G_8C,
	G_8E,
	G_C6,
	G_C7,
	G_F6,
	G_F7,
	G_FE,
	G_FF,
	G_0F00,
	G_0F01,
	G_0F71,
	G_0F72,
	G_0F73,
	G_0F78,
	G_0FA6,
	G_0FA7,
	G_0FAE,
	G_0FBA,
	G_0FC7,
	G_0F38D8,
	G_0F3AF0,
};

#define IMM(kind) ((uint32_t)(kind) << IMM_SHIFT)
#define FLOW(flow) ((uint32_t)TP_FLOW_##flow << FLOW_SHIFT)
#define SPECIAL(special) ((uint32_t)(special) << SPECIAL_SHIFT)

#define N ANY
#define B (ANY | IMM(IMM_8))
#define Z (ANY | IMM(IMM_Z))
#define V (ANY | IMM(IMM_V))
#define M (ANY | HAS_MODRM)
#define MB (M | IMM(IMM_8))
#define MZ (M | IMM(IMM_Z))
#define ML (M | LOCKABLE)
#define F(forms) ((forms) | HAS_MODRM) /* not with every prefix or operand */
#define FB(forms) (F(forms) | IMM(IMM_8))
#define G(group) (M | SPECIAL(GROUP) | (uint32_t)(group) << GROUP_SHIFT)
#define GB(group) (G(group) | IMM(IMM_8))
#define P(sets) ((sets) | SPECIAL(PREFIX))
#define PR(sets) (P(sets) | (uint32_t)(REP | REPNE) << GROUP_SHIFT) /* the last of f2, f3 counts */
#define R SPECIAL(REX)
#define S(special) (ANY | SPECIAL(special))
#define FP (M | SPECIAL(FPU))
#define O (ANY | SPECIAL(MOFFS))
#define C (M | SPECIAL(CONTROL))
#define J8(flow) (B | FLOW(flow))
#define J32(flow) (ANY | IMM(IMM_REL) | FLOW(flow))
#define X 0

/* clang-format off */
static const uint32_t one_byte[256] = {
/* 0 */	ML, ML, M, M, B, Z, X, X, ML, ML, M, M, B, Z, X, S(ESCAPE),
/* 1 */	ML, ML, M, M, B, Z, X, X, ML, ML, M, M, B, Z, X, X,
/* 2 */	ML, ML, M, M, B, Z, P(0), X, ML, ML, M, M, B, Z, P(0), X,
/* 3 */	ML, ML, M, M, B, Z, P(0), X, M, M, M, M, B, Z, P(0), X,
/* 4 */	R, R, R, R, R, R, R, R, R, R, R, R, R, R, R, R,
/* 5 */	N, N, N, N, N, N, N, N, N, N, N, N, N, N, N, N,
/* 6 */	X, X, S(EVEX), M, P(0), P(0), P(DATA16), P(ADDR32), Z, MZ, B, MB, N, N, N, N,
/* 7 */	J8(JCC), J8(JCC), J8(JCC), J8(JCC), J8(JCC), J8(JCC), J8(JCC), J8(JCC),
	J8(JCC), J8(JCC), J8(JCC), J8(JCC), J8(JCC), J8(JCC), J8(JCC), J8(JCC),
/* 8 */	MB | LOCKABLE, MZ | LOCKABLE, X, MB | LOCKABLE, M, M, ML, ML,
	M, M, M, M, G(G_8C), F(MEMORY) | IS_LEA, G(G_8E), M | SPECIAL(XOP_OR_POP),
/* 9 */	N, N, N, N, N, N, N, N, N, N, X, N, N, N, N, N,
/* a */	O, O, O, O, N, N, N, N, B, Z, N, N, N, N, N, N,
/* b */	B, B, B, B, B, B, B, B, V, V, V, V, V, V, V, V,
/* c */	MB, MB, ANY | IMM(IMM_16) | FLOW(RET), N | FLOW(RET), S(VEX3), S(VEX2), G(G_C6), G(G_C7),
	ANY | IMM(IMM_ENTER), N, ANY | IMM(IMM_16) | FLOW(RET), N | FLOW(RET),
	N | FLOW(STOP), B | FLOW(SYSCALL), X, N | FLOW(RET),
/* d */	M, M, M, M, X, X, X, N, FP, FP, FP, FP, FP, FP, FP, FP,
/* e */	J8(LOOP), J8(LOOP), J8(LOOP), J8(LOOP), B, B, B, B,
	J32(CALL), J32(JMP), X, J8(JMP), N, N, N, N,
/* f */	P(LOCK), N | FLOW(SYSCALL), PR(REPNE), PR(REP), N | FLOW(STOP), N, G(G_F6), G(G_F7),
	N, N, N, N, N, N, G(G_FE), G(G_FF),
};

static const uint32_t two_byte[256] = {
/* 0 */	G(G_0F00), G(G_0F01), M, M, X, N | FLOW(SYSCALL), N, N | FLOW(RET),
	N, N, X, N | FLOW(STOP), X, M, N, M | SPECIAL(NOW_3D),
/* 1 */	M, M, F(0xfd), F(0x30), F(0x33), F(0x33), F(0x75), F(0x30), M, M, M, M, M, M, M, M,
/* 2 */	C, C, C, C, X, X, X, X, F(0x33), F(0x33), M, F(0xf0), M, M, F(0x33), F(0x33),
/* 3 */	N, N, N, N, N | FLOW(SYSCALL), N | FLOW(RET), X, 0x01, S(ESCAPE_38), X, S(ESCAPE_3A), X,
	X, X, X, X,
/* 4 */	M, M, M, M, M, M, M, M, M, M, M, M, M, M, M, M,
/* 5 */	F(0x03), M, F(0x55), F(0x55), F(0x33), F(0x33), F(0x33), F(0x33),
	M, M, M, F(0x77), M, M, M, M,
/* 6 */	F(0x33), F(0x33), F(0x33), F(0x33), F(0x33), F(0x33), F(0x33), F(0x33),
	F(0x33), F(0x33), F(0x33), F(0x33), F(0x22), F(0x22), F(0x33), F(0x77),
/* 7 */	MB, GB(G_0F71), GB(G_0F72), GB(G_0F73), F(0x33), F(0x33), F(0x33), 0x01,
	G(G_0F78), F(0x1b), X, X, F(0xaa), F(0xaa), F(0x77), F(0x77),
/* 8 */	J32(JCC), J32(JCC), J32(JCC), J32(JCC), J32(JCC), J32(JCC), J32(JCC), J32(JCC),
	J32(JCC), J32(JCC), J32(JCC), J32(JCC), J32(JCC), J32(JCC), J32(JCC), J32(JCC),
/* 9 */	M, M, M, M, M, M, M, M, M, M, M, M, M, M, M, M,
/* a */	N, N, N, M, MB, M, G(G_0FA6), G(G_0FA7), N, N, N, ML, MB, M, G(G_0FAE), M,
/* b */	ML, ML, F(MEMORY), ML, F(MEMORY), F(MEMORY), M, M,
	F(0x44), M | FLOW(STOP), GB(G_0FBA), ML, M, M, M, M,
/* c */	ML, ML, MB, F(0x10), FB(0x33), FB(0x03), FB(0x33), G(G_0FC7), N, N, N, N, N, N, N, N,
/* d */	F(0xaa), F(0x33), F(0x33), F(0x33), F(0x33), F(0x33), F(0x2e), F(0x03),
	F(0x33), F(0x33), F(0x33), F(0x33), F(0x33), F(0x33), F(0x33), F(0x33),
/* e */	F(0x33), F(0x33), F(0x33), F(0x33), F(0x33), F(0x33), F(0xee), F(0x30),
	F(0x33), F(0x33), F(0x33), F(0x33), F(0x33), F(0x33), F(0x33), F(0x33),
/* f */	F(0x80), F(0x33), F(0x33), F(0x33), F(0x33), F(0x33), F(0x33), F(0x03),
	F(0x33), F(0x33), F(0x33), F(0x33), F(0x33), F(0x33), F(0x33), M | FLOW(STOP),
};

/* By ModRM.reg. */
static const uint32_t groups[][8] = {
	[G_8C] = { M, M, M, M, M, M },
	[G_8E] = { M, X, M, M, M, M },
	[G_C6] = { MB, X, X, X, X, X, X, FB(REGISTER) | RM_ZERO },
	[G_C7] = { MZ, X, X, X, X, X, X, F(REGISTER) | IMM(IMM_REL) | RM_ZERO | FLOW(XBEGIN) },
	[G_F6] = { MB, MB, ML, ML, M, M, M, M },
	[G_F7] = { MZ, MZ, ML, ML, M, M, M, M },
	[G_FE] = { ML, ML },
	[G_FF] = { ML, ML, M | FLOW(CALL_INDIRECT), F(MEMORY) | FLOW(CALL_INDIRECT),
		   M | FLOW(JMP_INDIRECT), F(MEMORY) | FLOW(JMP_INDIRECT), M },
	[G_0F00] = { M, M, M, M, M, M, F(0x88) },
	[G_0F01] = { M | SPECIAL(GROUP_01), M | SPECIAL(GROUP_01), M | SPECIAL(GROUP_01), M, M,
		     F(0x4f) | SPECIAL(GROUP_01), M, M | SPECIAL(GROUP_01) },
	[G_0F71] = { X, X, FB(0x03), X, FB(0x03), X, FB(0x03) },
	[G_0F72] = { X, X, FB(0x03), X, FB(0x03), X, FB(0x03) },
	[G_0F73] = { X, X, FB(0x03), FB(0x02), X, X, FB(0x03), FB(0x02) },
	[G_0F78] = { F(0x1b) | SPECIAL(EXTRACT), F(0x19) | SPECIAL(EXTRACT),
		     F(0x19) | SPECIAL(EXTRACT), F(0x19) | SPECIAL(EXTRACT),
		     F(0x19) | SPECIAL(EXTRACT), F(0x19) | SPECIAL(EXTRACT),
		     F(0x19) | SPECIAL(EXTRACT), F(0x19) | SPECIAL(EXTRACT) },
	[G_0FA6] = { X, F(0x04), F(0x04), F(0x04), F(0x04), F(0x04), F(0x04), F(0x04) },
	[G_0FA7] = { F(REGISTER), F(0x04), F(0x04), F(0x04), F(0x04), F(0x04), F(0x04), F(0x04) },
	[G_0FAE] = { F(0x14), F(0x14), F(0x14), F(0x14), F(0x54), F(0x15), F(0x7f), F(0x31) },
	[G_0FBA] = { X, X, X, X, MB, MB | LOCKABLE, MB | LOCKABLE, MB | LOCKABLE },
	[G_0FC7] = { X, F(MEMORY) | LOCKABLE, X, F(0x10), F(0x10), F(0x10), F(0x77), F(0x17) },
	[G_0F38D8] = { F(0x40), F(0x40), F(0x40), F(0x40) },
	[G_0F3AF0] = { FB(0x04) | RM_ZERO },
};

/* Forms, by opcode; every one has ModRM. */
static const uint8_t map_0f38[256] = {
/* 0 */	0x33, 0x33, 0x33, 0x33, 0x33, 0x33, 0x33, 0x33, 0x33, 0x33, 0x33, 0x33, 0, 0, 0, 0,
/* 1 */	0x22, 0, 0, 0, 0x22, 0x22, 0, 0x22, 0, 0, 0, 0, 0x33, 0x33, 0x33, 0,
/* 2 */	0x22, 0x22, 0x22, 0x22, 0x22, 0x22, 0, 0, 0x22, 0x22, 0x20, 0x22, 0, 0, 0, 0,
/* 3 */	0x22, 0x22, 0x22, 0x22, 0x22, 0x22, 0, 0x22, 0x22, 0x22, 0x22, 0x22, 0x22, 0x22, 0x22, 0x22,
/* 4 */	0x22, 0x22,
	[0x80] = 0x20, 0x20, 0x20,
	[0xc8] = 0x11, 0x11, 0x11, 0x11, 0x11, 0x11, 0, 0x22,
	[0xdb] = 0x22, 0x66, 0x62, 0x62, 0x62,
	[0xf0] = 0xb8, 0xb8, 0, 0, 0, 0x20, 0x76, 0, 0xe0, 0x10, 0x04, 0x04, 0xf0,
};

/* The same, with an immediate byte behind. */
static const uint8_t map_0f3a[256] = {
	[0x08] = 0x22, 0x22, 0x22, 0x22, 0x22, 0x22, 0x22, 0x33,
	[0x14] = 0x22, 0x22, 0x22, 0x22,
	[0x20] = 0x22, 0x22, 0x22,
	[0x40] = 0x22, 0x22, 0x22, 0, 0x22,
	[0x60] = 0x22, 0x22, 0x22, 0x22,
	[0xcc] = 0x11, 0, 0x22, 0x22,
	[0xdf] = 0x22,
};

static const uint8_t vex_maps[3][256] = {
	{ /* 0f */
	/* 1 */	[0x10] = 0xff, 0xff, 0xfd, 0x30, 0x33, 0x33, 0x75, 0x30,
	/* 2 */	[0x28] = 0x33, 0x33, 0xcc, 0x30, 0xcc, 0xcc, 0x33, 0x33,
	/* 4 */	[0x41] = 0x03, 0x03, 0, 0x03, 0x03, 0x03, 0x03, 0, 0, 0x03, 0x03,
	/* 5 */	[0x50] = 0x03, 0xff, 0x55, 0x55, 0x33, 0x33, 0x33, 0x33,
		0xff, 0xff, 0xff, 0x77, 0xff, 0xff, 0xff, 0xff,
	/* 6 */	0x22, 0x22, 0x22, 0x22, 0x22, 0x22, 0x22, 0x22,
		0x22, 0x22, 0x22, 0x22, 0x22, 0x22, 0x22, 0x66,
	/* 7 */	0xee, 0x02, 0x02, 0x02, 0x22, 0x22, 0x22, 0x11, 0, 0, 0, 0, 0xaa, 0xaa, 0x66, 0x66,
	/* 9 */	[0x90] = 0x33, 0x30, 0x0b, 0x0b, 0, 0, 0, 0, 0x03, 0x03,
	/* a */	[0xae] = 0x10,
	/* c */	[0xc2] = 0xff, 0, 0x22, 0x02, 0x33,
	/* d */	[0xd0] = 0xaa, 0x22, 0x22, 0x22, 0x22, 0x22, 0x22, 0x02,
		0x22, 0x22, 0x22, 0x22, 0x22, 0x22, 0x22, 0x22,
	/* e */	0x22, 0x22, 0x22, 0x22, 0x22, 0x22, 0xee, 0x20,
		0x22, 0x22, 0x22, 0x22, 0x22, 0x22, 0x22, 0x22,
	/* f */	0x80, 0x22, 0x22, 0x22, 0x22, 0x22, 0x22, 0x02,
		0x22, 0x22, 0x22, 0x22, 0x22, 0x22, 0x22, 0,
	},
	{ /* 0f38 */
	/* 0 */	0x22, 0x22, 0x22, 0x22, 0x22, 0x22, 0x22, 0x22,
		0x22, 0x22, 0x22, 0x22, 0x22, 0x22, 0x22, 0x22,
	/* 1 */	0, 0, 0, 0x22, 0, 0, 0x22, 0x22, 0x22, 0x22, 0x20, 0, 0x22, 0x22, 0x22, 0,
	/* 2 */	0x22, 0x22, 0x22, 0x22, 0x22, 0x22, 0, 0, 0x22, 0x22, 0x20, 0x22,
		0x20, 0x20, 0x20, 0x20,
	/* 3 */	0x22, 0x22, 0x22, 0x22, 0x22, 0x22, 0x22, 0x22,
		0x22, 0x22, 0x22, 0x22, 0x22, 0x22, 0x22, 0x22,
	/* 4 */	0x22, 0x22, 0, 0, 0, 0x22, 0x22, 0x22, 0, 0x39, 0, 0xe0, 0, 0, 0, 0,
	/* 5 */	0xff, 0xff, 0x22, 0x22, 0, 0, 0, 0, 0x22, 0x22, 0x20, 0, 0x0c, 0, 0x0f, 0,
	/* 6 */	[0x6c] = 0x03,
	/* 7 */	[0x72] = 0x44, 0, 0, 0, 0, 0, 0x22, 0x22,
	/* 8 */	[0x8c] = 0x20, 0, 0x20, 0,
	/* 9 */	0x20, 0x20, 0x20, 0x20, 0, 0, 0x22, 0x22,
		0x22, 0x22, 0x22, 0x22, 0x22, 0x22, 0x22, 0x22,
	/* a */	[0xa6] = 0x22, 0x22, 0x22, 0x22, 0x22, 0x22, 0x22, 0x22, 0x22, 0x22,
	/* b */	0xf0, 0x60, 0, 0, 0x22, 0x22, 0x22, 0x22,
		0x22, 0x22, 0x22, 0x22, 0x22, 0x22, 0x22, 0x22,
	/* c */	[0xcb] = 0x08, 0x08, 0x08, 0, 0x22,
	/* d */	[0xd2] = 0x77, 0x77, 0, 0, 0, 0, 0, 0, 0xff, 0x22, 0x22, 0x22, 0x22, 0x22,
	/* e */	0x20, 0x20, 0x20, 0x20, 0x20, 0x20, 0x20, 0x20,
		0x20, 0x20, 0x20, 0x20, 0x20, 0x20, 0x20, 0x20,
	/* f */	[0xf2] = 0x11, 0x11, 0, 0xdd, 0x88, 0xff,
	},
	{ /* 0f3a */
	/* 0 */	0x22, 0x22, 0x22, 0, 0x22, 0x22, 0x22, 0,
		0x22, 0x22, 0x22, 0x22, 0x22, 0x22, 0x22, 0x22,
	/* 1 */	[0x14] = 0x22, 0x22, 0x22, 0x22, 0x22, 0x22, 0, 0, 0, 0x22, 0, 0,
	/* 2 */	0x22, 0x22, 0x22,
	/* 3 */	[0x30] = 0x02, 0x02, 0x02, 0x02, 0, 0, 0, 0, 0x22, 0x22,
	/* 4 */	[0x40] = 0x22, 0x22, 0x22, 0, 0x22, 0, 0x22, 0, 0x22, 0x22, 0x22, 0x22, 0x22,
	/* 5 */	[0x5c] = 0x22, 0x22, 0x22, 0x22,
	/* 6 */	0x22, 0x22, 0x22, 0x22, 0, 0, 0, 0, 0x22, 0x22, 0x22, 0x22, 0x22, 0x22, 0x22, 0x22,
	/* 7 */	[0x78] = 0x22, 0x22, 0x22, 0x22, 0x22, 0x22, 0x22, 0x22,
	/* c */	[0xce] = 0x22, 0x22,
	/* d */	[0xde] = 0x22, 0x22,
	/* f */	[0xf0] = 0x88,
	},
};

/* Maps 0f, 0f38, 0f3a, 5 and 6. */
static const uint8_t evex_maps[5][256] = {
	{ /* 0f */
	/* 1 */	[0x10] = 0xff, 0xff, 0xfd, 0x30, 0x33, 0x33, 0x75, 0x30,
	/* 2 */	[0x28] = 0x33, 0x33, 0xcc, 0x30, 0xcc, 0xcc, 0x33, 0x33,
	/* 5 */	[0x51] = 0xff, 0, 0, 0x33, 0x33, 0x33, 0x33,
		0xff, 0xff, 0xff, 0x77, 0xff, 0xff, 0xff, 0xff,
	/* 6 */	0x22, 0x22, 0x22, 0x22, 0x22, 0x22, 0x22, 0x22,
		0x22, 0x22, 0x22, 0x22, 0x22, 0x22, 0x22, 0xee,
	/* 7 */	0xee, 0x22, 0x22, 0x22, 0x22, 0x22, 0x22, 0,
		0xff, 0xff, 0xee, 0xee, 0, 0, 0x66, 0xee,
	/* c */	[0xc2] = 0xff, 0, 0x22, 0x02, 0x33,
	/* d */	[0xd1] = 0x22, 0x22, 0x22, 0x22, 0x22, 0x22, 0,
		0x22, 0x22, 0x22, 0x22, 0x22, 0x22, 0x22, 0x22,
	/* e */	0x22, 0x22, 0x22, 0x22, 0x22, 0x22, 0xee, 0x20,
		0x22, 0x22, 0x22, 0x22, 0x22, 0x22, 0x22, 0x22,
	/* f */	0, 0x22, 0x22, 0x22, 0x22, 0x22, 0x22, 0,
		0x22, 0x22, 0x22, 0x22, 0x22, 0x22, 0x22, 0,
	},
	{ /* 0f38 */
	/* 0 */	0x22, 0, 0, 0, 0x22, 0, 0, 0, 0, 0, 0, 0x22, 0x22, 0x22, 0, 0,
	/* 1 */	0x66, 0x66, 0x66, 0x66, 0x66, 0x66, 0x22, 0,
		0x22, 0x22, 0x20, 0x20, 0x22, 0x22, 0x22, 0x22,
	/* 2 */	0x66, 0x66, 0x66, 0x66, 0x66, 0x66, 0x66, 0x66,
		0x26, 0x26, 0x24, 0x22, 0x22, 0x22, 0, 0,
	/* 3 */	0x66, 0x66, 0x66, 0x66, 0x66, 0x66, 0x22, 0x22,
		0x26, 0x26, 0x26, 0x22, 0x22, 0x22, 0x22, 0x22,
	/* 4 */	0x22, 0, 0x22, 0x22, 0x22, 0x22, 0x22, 0x22, 0, 0, 0, 0, 0x22, 0x22, 0x22, 0x22,
	/* 5 */	0x22, 0x22, 0xe6, 0xa2, 0x22, 0x22, 0, 0, 0x22, 0x22, 0x20, 0x20, 0, 0, 0, 0,
	/* 6 */	0, 0, 0x22, 0x22, 0x22, 0x22, 0x22, 0, 0x88,
	/* 7 */	[0x70] = 0x22, 0x22, 0xee, 0x22, 0, 0x22, 0x22, 0x22,
		0x22, 0x22, 0x02, 0x02, 0x02, 0x22, 0x22, 0x22,
	/* 8 */	[0x83] = 0x22, 0, 0, 0, 0, 0x22, 0x22, 0x22, 0x22, 0, 0x22, 0, 0x22,
	/* 9 */	0x20, 0x20, 0x20, 0x20, 0, 0, 0x22, 0x22,
		0x22, 0x22, 0xa2, 0xa2, 0x22, 0x22, 0x22, 0x22,
	/* a */	0x20, 0x20, 0x20, 0x20, 0, 0, 0x22, 0x22,
		0x22, 0x22, 0xa2, 0xa2, 0x22, 0x22, 0x22, 0x22,
	/* b */	[0xb4] = 0x22, 0x22, 0x22, 0x22,
		0x22, 0x22, 0x22, 0x22, 0x22, 0x22, 0x22, 0x22,
	/* c */	[0xc4] = 0x22, 0, 0x20, 0x20, 0x22, 0, 0x22, 0x22, 0x22, 0x22, 0, 0x22,
	/* d */	[0xdc] = 0x22, 0x22, 0x22, 0x22,
	},
	{ /* 0f3a */
	/* 0 */	0x22, 0x22, 0, 0x22, 0x22, 0x22, 0, 0, 0x33, 0x22, 0x33, 0x22, 0, 0, 0, 0x22,
	/* 1 */	[0x14] = 0x22, 0x22, 0x22, 0x22, 0x22, 0x22, 0x22, 0x22, 0, 0x22, 0x22, 0x22,
	/* 2 */	0x22, 0x22, 0x22, 0x22, 0, 0x22, 0x33, 0x33,
	/* 3 */	[0x38] = 0x22, 0x22, 0x22, 0x22, 0, 0, 0x22, 0x22,
	/* 4 */	[0x42] = 0x22, 0x22, 0x22,
	/* 5 */	[0x50] = 0x22, 0x22, 0, 0, 0x22, 0x22, 0x33, 0x33,
	/* 6 */	[0x66] = 0x33, 0x33,
	/* 7 */	[0x70] = 0x22, 0x22, 0x22, 0x22,
	/* c */	[0xc2] = 0x55, [0xce] = 0x22, 0x22,
	},
	{ /* 5 */
	/* 1 */	[0x10] = 0x44, 0x44, [0x1d] = 0x33,
	/* 2 */	[0x2a] = 0x44, 0, 0x44, 0x44, 0x11, 0x11,
	/* 5 */	[0x51] = 0x55, [0x58] = 0x55, 0x55, 0xff, 0x77, 0x55, 0x55, 0x55, 0x55,
	/* 6 */	[0x6e] = 0x22,
	/* 7 */	[0x78] = 0x77, 0x77, 0xaa, 0x66, 0x33, 0xff, 0x22,
	},
	{ /* 6 */
	/* 1 */	[0x13] = 0x33,
	/* 2 */	[0x2c] = 0x22, 0x22,
	/* 4 */	[0x42] = 0x22, 0x22, [0x4c] = 0x22, 0x22, 0x22, 0x22,
	/* 5 */	[0x56] = 0xcc, 0xcc,
	/* 9 */	[0x96] = 0x22, 0x22, 0x22, 0x22, 0x22, 0x22, 0x22, 0x22, 0x22, 0x22,
	/* a */	[0xa6] = 0x22, 0x22, 0x22, 0x22, 0x22, 0x22, 0x22, 0x22, 0x22, 0x22,
	/* b */	[0xb6] = 0x22, 0x22, 0x22, 0x22, 0x22, 0x22, 0x22, 0x22, 0x22, 0x22,
	/* d */	[0xd6] = 0xcc, 0xcc,
	},
};

/* Maps 8, 9 and 10: bit n of a row is column n. */
static const uint16_t xop_maps[3][16] = {
	{ [0x8] = 0xc0e0, [0x9] = 0xc0e0, [0xa] = 0x004c, [0xb] = 0x0040, [0xc] = 0xf00f,
	  [0xe] = 0xf000 },
	{ [0x0] = 0x0006, [0x1] = 0x0004, [0x8] = 0x000f, [0x9] = 0x0fff, [0xc] = 0x08ce,
	  [0xd] = 0x08ce, [0xe] = 0x000e },
	{ [0x1] = 0x0005 },
};

/* "0f 01" with a register operand, from c0 on: forms by the whole ModRM. */
static const uint8_t forms_0f01[64] = {
/* c0 */ 1, 1, 1, 1, 1, 1, 13, 1,
/* c8 */ 1, 1, 13, 1, 2, 2, 2, 3,
/* d0 */ 1, 1, 0, 0, 1, 1, 1, 1,
/* d8 */ 15, 15, 15, 15, 15, 15, 15, 15,
/* e0 */ 15, 15, 15, 15, 15, 15, 15, 15,
/* e8 */ 13, 8, 4, 0, 4, 4, 5, 5,
/* f0 */ 15, 15, 15, 15, 15, 15, 15, 15,
/* f8 */ 15, 15, 5, 1, 15, 5, 13, 13,
};

/* d8 to df: by ModRM.reg, bit n for rm n of the register form. */
static const uint8_t fpu_register[8][8] = {
	{ 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff },
	{ 0xff, 0xff, 0x01, 0xff, 0x33, 0x7f, 0xff, 0xff },
	{ 0xff, 0xff, 0xff, 0xff, 0x00, 0x02, 0x00, 0x00 },
	{ 0xff, 0xff, 0xff, 0xff, 0x1f, 0xff, 0xff, 0x00 },
	{ 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff },
	{ 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x00, 0x00 },
	{ 0xff, 0xff, 0xff, 0x02, 0xff, 0xff, 0xff, 0xff },
	{ 0xff, 0xff, 0xff, 0xff, 0x01, 0xff, 0xff, 0x00 },
};

/* Bit n: the memory form with ModRM.reg n exists. */
static const uint8_t fpu_memory[8] = { 0xff, 0xfd, 0xff, 0xaf, 0xff, 0xdf, 0xff, 0xff };

/* Suffixes of "0f 0f", as in xop_maps. */
static const uint16_t suffixes_3d[16] = {
	[0x0] = 0x3000, [0x1] = 0x3000, [0x8] = 0x4400,
	[0x9] = 0x44d1, [0xa] = 0x44d1, [0xb] = 0x88d1,
};

/* By ModRM.mod and rm: bytes of displacement, and more. */
enum { SIB = 0x10, RIP = 0x20, SHAPE_BYTES = 0x0f };
static const uint8_t shapes[32] = {
	0, 0, 0, 0, SIB, RIP | 4, 0, 0,
	1, 1, 1, 1, SIB | 1, 1, 1, 1,
	4, 4, 4, 4, SIB | 4, 4, 4, 4,
};
/* clang-format on */

/* Where the decoder stands. */
struct reader {
	const uint8_t *code;
	unsigned int at;
	unsigned int seen; /* DATA16 and others */
	unsigned int pp;   /* which of a row's forms */
	uint8_t rex;
};

static enum special special_of(uint32_t row)
{
	return (enum special)(row >> SPECIAL_SHIFT & 31);
}

static bool in_map(const uint16_t *map, uint8_t opcode)
{
	return map[opcode >> 4] >> (opcode & 15) & 1;
}

/* The row of the first byte that is no prefix; the reader stays at that byte. */
static inline uint32_t read_prefixes(struct reader *reader)
{
	uint32_t row = one_byte[reader->code[0]];

	while (special_of(row) == PREFIX || special_of(row) == REX) {
		/* A REX that is not the last prefix is ignored. */
		reader->rex = special_of(row) == REX ? reader->code[reader->at] : 0;
		reader->seen = (reader->seen & ~(row >> GROUP_SHIFT)) | (row & 0xff);
		if (++reader->at == MOST_BYTES)
			return X;
		row = one_byte[reader->code[reader->at]];
	}
	reader->pp = reader->seen & REPNE ? 3 : reader->seen & REP ? 2 : reader->seen & DATA16;
	return row;
}

/* No prefix but 67 and segments can stand before VEX, EVEX and XOP. */
static bool vector_prefix_fits(const struct reader *reader)
{
	return !reader->rex && !(reader->seen & ~(unsigned int)ADDR32);
}

/* In map 0f an immediate is where the legacy opcode has one; 77 (vzeroupper) has no operand. */
static uint32_t vector_row(unsigned int map, uint8_t opcode, uint8_t forms)
{
	if (!forms)
		return X;
	if (map == 1)
		return forms | (opcode == 0x77 ? 0 : HAS_MODRM) |
		       (two_byte[opcode] & (uint32_t)15 << IMM_SHIFT);
	return forms | HAS_MODRM | (map == 3 ? IMM(IMM_8) : 0);
}

/* @payload_at: of the byte with pp. */
static uint32_t read_vex(struct reader *reader, unsigned int map, unsigned int payload_at)
{
	uint8_t opcode = reader->code[reader->at + payload_at + 1];

	if (!vector_prefix_fits(reader) || !map || map > 3)
		return X;
	reader->pp = reader->code[reader->at + payload_at] & 3;
	reader->at += payload_at + 2;
	return vector_row(map, opcode, vex_maps[map - 1][opcode]);
}

static uint32_t read_evex(struct reader *reader)
{
	const uint8_t *code = reader->code + reader->at;
	unsigned int map = code[1] & 7;

	if (!vector_prefix_fits(reader) || code[1] & 8 || !(code[2] & 4))
		return X;
	if (!map || map == 4 || map == 7)
		return X;
	reader->pp = code[2] & 3;
	reader->at += 5;
	return vector_row(map, code[4], evex_maps[map > 4 ? map - 2 : map - 1][code[4]]);
}

static uint32_t read_xop(struct reader *reader)
{
	const uint8_t *code = reader->code + reader->at;
	unsigned int map = code[1] & 31;

	if (!vector_prefix_fits(reader) || code[2] & 3 || map > 10 ||
	    !in_map(xop_maps[map - 8], code[3]))
		return X;
	reader->pp = 0;
	reader->at += 4;
	return F(0x11) | IMM(map == 8 ? IMM_8 : map == 10 ? IMM_Z : IMM_NONE);
}

/* The row that an opcode of several bytes has; the reader goes behind the opcode. */
static uint32_t read_escape(struct reader *reader, uint32_t row)
{
	const uint8_t *code = reader->code + reader->at;

	switch (special_of(row)) {
	case VEX2:
		return read_vex(reader, 1, 1);
	case VEX3:
		return read_vex(reader, code[1] & 31, 2);
	case EVEX:
		return read_evex(reader);
	case XOP_OR_POP:
		if (code[1] & 0x18) /* a map of 8 or more */
			return read_xop(reader);
		reader->at += 1;
		return code[1] & 0x20 ? X : M; /* pop is /0 */
	case ESCAPE_38:
		reader->at += 3;
		if (code[2] == 0xd8)
			return G(G_0F38D8);
		return map_0f38[code[2]] ? F(map_0f38[code[2]]) : X;
	case ESCAPE_3A:
		reader->at += 3;
		if (code[2] == 0xf0)
			return GB(G_0F3AF0);
		return map_0f3a[code[2]] ? FB(map_0f3a[code[2]]) : X;
	default:
		return row;
	}
}

static inline uint32_t read_opcode(struct reader *reader, uint32_t row)
{
	if (special_of(row) == ESCAPE) {
		row = two_byte[reader->code[reader->at + 1]];
		if (special_of(row) != ESCAPE_38 && special_of(row) != ESCAPE_3A) {
			reader->at += 2;
			return row;
		}
	}
	if (special_of(row) >= ESCAPE && special_of(row) <= XOP_OR_POP)
		return read_escape(reader, row);
	reader->at += 1;
	return row;
}

static uint32_t row_0f01(const struct reader *reader, uint32_t row, uint8_t modrm)
{
	if (modrm < 0xc0)
		return row;
	row = (row & ~(uint32_t)ANY) | forms_0f01[modrm & 63];
	if ((modrm == 0xec && reader->pp == 2) || (modrm == 0xca && reader->pp >= 2))
		row |= FLOW(RET); /* uiret, eretu, erets */
	return row;
}

static uint32_t row_fpu(const struct reader *reader, uint32_t row, uint8_t modrm)
{
	unsigned int opcode = reader->code[reader->at - 1] & 7, reg = modrm >> 3 & 7;
	bool known = modrm < 0xc0 ? fpu_memory[opcode] >> reg & 1 :
				    fpu_register[opcode][reg] >> (modrm & 7) & 1;

	return known ? row : X;
}

/* The row of an opcode that ModRM chooses. */
static inline uint32_t read_group(const struct reader *reader, uint32_t row, uint8_t modrm)
{
	uint32_t imm = row & 15u << IMM_SHIFT;

	if (special_of(row) < GROUP || special_of(row) > GROUP_01)
		return row;
	if (special_of(row) == FPU)
		return row_fpu(reader, row, modrm);
	row = groups[row >> GROUP_SHIFT][modrm >> 3 & 7] | imm;
	return special_of(row) == GROUP_01 ? row_0f01(reader, row, modrm) : row;
}

/* Control registers 0, 2, 3, 4, 8 (0f 20 and 22), debug registers 0 to 7; mod means nothing. */
static bool control_exists(const struct reader *reader, uint8_t modrm)
{
	unsigned int number = (modrm >> 3 & 7) | (reader->rex & 4) << 1;

	return (reader->code[reader->at - 2] & 1 ? 0xff : 0x11d) >> number & 1;
}

/* With f0, the opcode must be one of few and write memory; compares (/7 of 80 to 83) do not. */
static bool lock_fits(const struct reader *reader, uint32_t row, const struct tp_decoded *insn)
{
	uint8_t modrm = reader->code[insn->modrm_at];

	if (!(row & LOCKABLE) || modrm >= 0xc0)
		return false;
	return (reader->code[insn->opcode_at] & 0xfc) != 0x80 || (modrm & 0x38) != 0x38;
}

/* ModRM, SIB, displacement. False: there is no such form. */
static inline bool read_operand(struct reader *reader, uint32_t *row, struct tp_decoded *insn)
{
	const uint8_t *code = reader->code;
	uint8_t modrm = code[reader->at];
	uint8_t shape = shapes[(modrm >> 3 & 0x18) | (modrm & 7)];
	unsigned int bytes;

	*row = read_group(reader, *row, modrm);
	insn->modrm_at = (uint8_t)reader->at++;
	if (special_of(*row) == CONTROL)
		return control_exists(reader, modrm);
	if (modrm >= 0xc0)
		return *row >> reader->pp & 1 && !(*row & RM_ZERO && modrm & 7);
	bytes = shape & SHAPE_BYTES;
	if (shape & SIB && (code[reader->at++] & 7) == 5 && modrm < 0x40)
		bytes = 4;
	insn->rip_relative = !!(shape & RIP);
	insn->is_lea = !!(*row & IS_LEA);
	insn->disp_at = bytes ? (uint8_t)reader->at : 0;
	insn->disp_bytes = (uint8_t)bytes;
	reader->at += bytes;
	return *row >> (reader->pp + 4) & 1;
}

/* What is behind the operand, where the table does not say it. False: no such instruction. */
static bool read_odd(struct reader *reader, uint32_t row, struct tp_decoded *insn)
{
	if (special_of(row) == MOFFS) {
		insn->disp_at = (uint8_t)reader->at;
		insn->disp_bytes = reader->seen & ADDR32 ? 4 : 8;
		reader->at += insn->disp_bytes;
	} else if (special_of(row) == NOW_3D) {
		return in_map(suffixes_3d, reader->code[reader->at++]);
	} else if (special_of(row) == EXTRACT && reader->pp) {
		insn->imm_at = (uint8_t)reader->at;
		insn->imm_bytes = 2;
		reader->at += 2;
	}
	return true;
}

static inline void read_immediate(struct reader *reader, uint32_t row, struct tp_decoded *insn)
{
	unsigned int wide = reader->rex & 8 ? 2 : 0;
	unsigned int bytes = imm_bytes[row >> IMM_SHIFT & 7][wide | (reader->seen & DATA16)];

	insn->imm_at = bytes ? (uint8_t)reader->at : 0;
	insn->imm_bytes = (uint8_t)bytes;
	reader->at += bytes;
}

/* @code has MOST_READ bytes or more. */
static inline struct tp_decoded decode(const uint8_t *code)
{
	static const struct tp_decoded none;
	struct reader reader = { .code = code };
	struct tp_decoded insn = { 0 };
	uint32_t row = read_prefixes(&reader);

	insn.opcode_at = (uint8_t)reader.at;
	row = read_opcode(&reader, row);
	if (!(row & HAS_MODRM ? read_operand(&reader, &row, &insn) : row >> reader.pp & 1))
		return none;
	read_immediate(&reader, row, &insn);
	if (special_of(row) >= MOFFS && !read_odd(&reader, row, &insn))
		return none;
	if (reader.seen & LOCK && !lock_fits(&reader, row, &insn))
		return none;
	if (reader.at > MOST_BYTES)
		return none;
	insn.length = (uint8_t)reader.at;
	insn.flow = row >> FLOW_SHIFT & 15;
	return insn;
}

struct tp_decoded tp_decode(const uint8_t *code, size_t len)
{
	uint8_t padded[MOST_READ] = { 0 };
	struct tp_decoded insn;

	if (len >= MOST_READ)
		return decode(code);
	/* What the padding decides, is longer than what there is. */
	if (len)
		memcpy(padded, code, len);
	insn = decode(padded);
	if (insn.length > len)
		return (struct tp_decoded){ 0 };
	return insn;
}

bool tp_is_nop(const uint8_t *code, const struct tp_decoded *insn)
{
	const uint8_t *opcode = code + insn->opcode_at;
	uint8_t before = insn->opcode_at ? opcode[-1] : 0;

	if (!insn->length)
		return false;
	if (opcode[0] == 0x0f && opcode[1] == 0x1f)
		return !(opcode[2] & 0x38);
	if (opcode[0] != 0x90)
		return false;
	/* REX.B makes it an exchange with r8, f3 a pause. */
	return !((before & 0xf1) == 0x41 || memchr(code, 0xf3, insn->opcode_at));
}

uint64_t tp_branch_target(const uint8_t *code, const struct tp_decoded *insn, uint64_t addr)
{
	int32_t displacement = (int8_t)code[insn->imm_at];

	if (insn->imm_bytes == 4)
		memcpy(&displacement, code + insn->imm_at, sizeof(displacement));
	return addr + insn->length + (uint64_t)(int64_t)displacement;
}
