/* SPDX-License-Identifier: Apache-2.0 */
/** @file emulate.c: what a site holds, and what a trapped thread does instead of it. */
#include <signal.h>
#include <stdlib.h>
#include <ucontext.h>

#include "check.h"
#include "code.h"
#include "engine.h"

#define AT 0x555500001000ull
#define CLASSIFY(...) \
	classify((const uint8_t[]){ __VA_ARGS__ }, sizeof((const uint8_t[]){ __VA_ARGS__ }))
#define IS_OTHER(...) CHECK_EQ(CLASSIFY(__VA_ARGS__).kind, TP_INSN_OTHER)

/* From a heap block of exactly @len bytes, so that the sanitizer sees a read past the site. */
static struct tp_insn classify(const uint8_t *code, size_t len)
{
	uint8_t *exact = malloc(len);
	struct tp_insn insn;

	memcpy(exact, code, len);
	insn = tp_classify(exact, len, AT);
	free(exact);
	return insn;
}

static void check_nop(const uint8_t *code, size_t len, size_t first)
{
	struct tp_insn insn = classify(code, len);

	CHECK_NOTE("NOP of %zu bytes, %02x %02x %02x", len, code[0], code[1], code[2]);
	CHECK_EQ(insn.kind, TP_INSN_NOP);
	CHECK_EQ(insn.length, first);
	for (size_t cut = 1; cut < first; cut++)
		CHECK_EQ(classify(code, cut).kind, TP_INSN_OTHER);
}

TEST(lineage_2e_every_multi_byte_nop_of_intel_is_one_nop)
{
	static const uint8_t nops[][16] = {
		/* SDM vol. 2, table "Recommended Multi-Byte Sequence" */
		{ 0x90 },
		{ 0x66, 0x90 },
		{ 0x0f, 0x1f, 0x00 },
		{ 0x0f, 0x1f, 0x40, 0x00 },
		{ 0x0f, 0x1f, 0x44, 0x00, 0x00 },
		{ 0x66, 0x0f, 0x1f, 0x44, 0x00, 0x00 },
		{ 0x0f, 0x1f, 0x80, 0, 0, 0, 0 },
		{ 0x0f, 0x1f, 0x84, 0, 0, 0, 0, 0 },
		{ 0x66, 0x0f, 0x1f, 0x84, 0, 0, 0, 0, 0 }
	};

	for (size_t i = 0; i < sizeof(nops) / sizeof(*nops); i++)
		check_nop(nops[i], i + 1, i + 1);
}

TEST(lineage_2e_long_nops_of_the_assembler_are_one_nop_of_10_to_15_bytes)
{
	static const uint8_t tail[] = { 0x2e, 0x0f, 0x1f, 0x84, 0, 0, 0, 0, 0 };
	uint8_t nop[15];

	for (size_t len = 10; len <= 15; len++) {
		memset(nop, 0x66, sizeof(nop));
		memcpy(nop + len - sizeof(tail), tail, sizeof(tail));
		check_nop(nop, len, len);
	}
}

TEST(design_nop5_of_clang_is_one_nop)
{
	check_nop((const uint8_t[]){ 0x0f, 0x1f, 0x44, 0x00, 0x08 }, 5, 5);
}

TEST(lineage_2e_66_prefixed_90_of_1_to_15_bytes_is_one_nop)
{
	uint8_t nop[15];

	for (size_t len = 1; len <= 15; len++) {
		memset(nop, 0x66, sizeof(nop));
		nop[len - 1] = 0x90;
		check_nop(nop, len, len);
	}
}

TEST(lineage_2e_harmless_segment_prefixes_keep_a_nop_a_nop)
{
	static const uint8_t prefixes[] = { 0x2e, 0x36, 0x3e, 0x26, 0x66 };

	for (size_t i = 0; i < sizeof(prefixes); i++) {
		check_nop((const uint8_t[]){ prefixes[i], 0x90, 0 }, 2, 2);
		check_nop((const uint8_t[]){ prefixes[i], 0x0f, 0x1f, 0x00 }, 4, 4);
	}
}

TEST(design_run_of_one_byte_nops_is_a_nop_whose_first_instruction_is_one_byte)
{
	uint8_t run[15];

	memset(run, 0x90, sizeof(run));
	for (size_t len = 1; len <= 15; len++)
		check_nop(run, len, 1);
}

TEST(design_endbr64_is_a_nop_to_a_trapped_thread)
{
	check_nop((const uint8_t[]){ 0xf3, 0x0f, 0x1e, 0xfa }, 4, 4);
	check_nop((const uint8_t[]){ 0xf3, 0x0f, 0x1e, 0xfa, 0x66, 0x90 }, 6, 4);
	IS_OTHER(0xf3, 0x0f, 0x1e, 0xfb); /* endbr32 */
}

TEST(lineage_2e_what_only_looks_like_a_nop_is_refused)
{
	IS_OTHER(0xf3, 0x90);	    /* PAUSE */
	IS_OTHER(0x41, 0x90);	    /* XCHG R8, RAX */
	IS_OTHER(0x87, 0xc0);	    /* XCHG EAX, EAX clears the upper half */
	IS_OTHER(0x0f, 0x1f, 0x08); /* 0F 1F /1 */
	IS_OTHER(0x0f, 0x0d, 0x00); /* PREFETCH */
	IS_OTHER(0x64, 0x90);	    /* not in our list */
	IS_OTHER(0x66);
	IS_OTHER(0x90, 0x90, 0x90, 0x90, 0x3e); /* a prefix of whatever follows */
	IS_OTHER(0x0f, 0x1f, 0x44, 0x00, 0x00, 0xc3);
	IS_OTHER(0x90, 0xcc);
	IS_OTHER(0xcc); /* belongs to somebody else */
	IS_OTHER(0x48, 0x89, 0xe5);
	CHECK_EQ(tp_classify(NULL, 0, AT).kind, TP_INSN_OTHER);
}

TEST(lineage_2e_call_goes_to_a_signed_displacement_from_its_end)
{
	struct tp_insn insn = CLASSIFY(0xe8, 0x00, 0x01, 0x00, 0x00);

	CHECK_EQ(insn.kind, TP_INSN_CALL);
	CHECK_EQ(insn.length, 5);
	CHECK_EQ(insn.target, AT + 5 + 0x100);
	CHECK_EQ(CLASSIFY(0xe8, 0xfb, 0xff, 0xff, 0xff).target, AT);
	CHECK_EQ(CLASSIFY(0xe8, 0xff, 0xff, 0xff, 0x7f).target, AT + 5 + INT32_MAX);
	CHECK_EQ(CLASSIFY(0xe8, 0x00, 0x00, 0x00, 0x80).target, AT + 5 + INT32_MIN);
	IS_OTHER(0xe8, 0, 0, 0);
	IS_OTHER(0xe8, 0, 0, 0, 0, 0x90);
	IS_OTHER(0x66, 0xe8, 0, 0, 0, 0);
}

TEST(design_call_whose_displacement_is_the_nop_run_goes_to_its_landing_pad)
{
	struct tp_insn insn = CLASSIFY(0xe8, 0x90, 0x90, 0x90, 0x90);

	CHECK_EQ(insn.kind, TP_INSN_CALL);
	CHECK_EQ(insn.target, AT - 0x6f6f6f6b);
}

TEST(lineage_2e_jmp_rel8_and_rel32_go_to_their_targets)
{
	CHECK_EQ(CLASSIFY(0xeb, 0x7f).kind, TP_INSN_JMP);
	CHECK_EQ(CLASSIFY(0xeb, 0x7f).target, AT + 2 + 127);
	CHECK_EQ(CLASSIFY(0xeb, 0x80).target, AT + 2 - 128);
	CHECK_EQ(CLASSIFY(0xe9, 0x78, 0x56, 0x34, 0x12).kind, TP_INSN_JMP);
	CHECK_EQ(CLASSIFY(0xe9, 0x78, 0x56, 0x34, 0x12).target, AT + 5 + 0x12345678);
	CHECK_EQ(CLASSIFY(0xe9, 0xfe, 0xff, 0xff, 0xff).target, AT + 3);
	IS_OTHER(0xeb);
	IS_OTHER(0xe9, 0, 0, 0);
	IS_OTHER(0xff, 0xe0); /* JMP RAX */
}

TEST(lineage_2e_jcc_rel8_and_rel32_for_all_16_conditions)
{
	for (unsigned int condition = 0; condition < 16; condition++) {
		const uint8_t code[] = {
			0x0f, (uint8_t)(0x80 | condition), 0xf0, 0xff, 0xff, 0xff
		};
		struct tp_insn near = classify(code, 6);
		struct tp_insn shortly = CLASSIFY((uint8_t)(0x70 | condition), 0x10);

		CHECK_NOTE("condition %u", condition);
		CHECK_EQ(near.kind, TP_INSN_JCC);
		CHECK_EQ(near.length, 6);
		CHECK_EQ(near.condition, condition);
		CHECK_EQ(near.target, AT + 6 - 16);
		CHECK_EQ(classify(code, 5).kind, TP_INSN_OTHER);
		CHECK_EQ(shortly.kind, TP_INSN_JCC);
		CHECK_EQ(shortly.length, 2);
		CHECK_EQ(shortly.condition, condition);
		CHECK_EQ(shortly.target, AT + 2 + 16);
	}
	IS_OTHER(0x70);
	IS_OTHER(0xe3, 0x10); /* JRCXZ */
}

TEST(lineage_2e_ret_forms)
{
	CHECK_EQ(CLASSIFY(0xc3).kind, TP_INSN_RET);
	CHECK_EQ(CLASSIFY(0xc3).pops, 0);
	CHECK_EQ(CLASSIFY(0xf3, 0xc3).kind, TP_INSN_RET);
	CHECK_EQ(CLASSIFY(0xc2, 0x34, 0x12).kind, TP_INSN_RET);
	CHECK_EQ(CLASSIFY(0xc2, 0x34, 0x12).pops, 0x1234);
	CHECK_EQ(CLASSIFY(0xc2, 0xff, 0xff).pops, 0xffff);
	IS_OTHER(0xc2, 0x34);
	IS_OTHER(0xcb); /* far */
}

TEST(lineage_2e_int3_may_pad_what_never_falls_through)
{
	struct tp_insn jmp = CLASSIFY(0xe9, 0, 1, 0, 0, 0xcc, 0xcc, 0xcc);
	struct tp_insn hop = CLASSIFY(0xeb, 0x10, 0xcc, 0xcc, 0xcc);
	struct tp_insn ret = CLASSIFY(0xc3, 0xcc, 0xcc, 0xcc, 0xcc);

	CHECK_EQ(jmp.kind, TP_INSN_JMP);
	CHECK_EQ(jmp.length, 8);
	CHECK_EQ(jmp.target, AT + 5 + 0x100);
	CHECK_EQ(hop.kind, TP_INSN_JMP);
	CHECK_EQ(hop.target, AT + 2 + 0x10);
	CHECK_EQ(ret.kind, TP_INSN_RET);
	CHECK_EQ(ret.length, 5);
	CHECK_EQ(CLASSIFY(0xc2, 8, 0, 0xcc, 0xcc).pops, 8);
	IS_OTHER(0xc3, 0xcc, 0x90);
	IS_OTHER(0xeb, 0x10, 0x90, 0x90, 0x90);
	IS_OTHER(0xe8, 0, 0, 0, 0, 0xcc); /* falls through */
	IS_OTHER(0x74, 0x10, 0xcc);	  /* falls through */
}

/* Bit i of @bits chooses between 66 and 90 for byte i; the last byte is 90. */
static void nop_string(uint8_t *code, size_t len, unsigned int bits)
{
	for (size_t i = 0; i < len; i++)
		code[i] = bits >> i & 1 ? 0x90 : 0x66;
	code[len - 1] = 0x90;
}

TEST(lineage_h9_nop_mix_means_nops_at_every_byte_of_every_mix)
{
	enum { LEN = 5, STRINGS = 1 << (LEN - 1) };
	uint8_t a[LEN], b[LEN], mix[LEN];

	for (unsigned int turn = 0; turn < STRINGS * STRINGS * STRINGS; turn++) {
		unsigned int chosen = turn / STRINGS / STRINGS;

		nop_string(a, LEN, turn % STRINGS);
		nop_string(b, LEN, turn / STRINGS % STRINGS);
		CHECK(tp_is_nop_mix(a, LEN) && tp_is_nop_mix(b, LEN));
		for (size_t i = 0; i < LEN; i++)
			mix[i] = chosen >> i & 1 ? a[i] : b[i];
		for (size_t from = 0; from < LEN; from++)
			CHECK_EQ(classify(mix + from, LEN - from).kind, TP_INSN_NOP);
	}
}

TEST(lineage_h9_other_strings_are_no_nop_mix)
{
	CHECK(!tp_is_nop_mix((const uint8_t[]){ 0x90, 0x66 }, 2));
	CHECK(!tp_is_nop_mix((const uint8_t[]){ 0x0f, 0x1f, 0x44, 0x00, 0x00 }, 5));
	CHECK(!tp_is_nop_mix((const uint8_t[]){ 0x90, 0x90, 0x90, 0x90, 0x3e }, 5));
	CHECK(!tp_is_nop_mix(NULL, 0));
}

/* Run tp_emulate() for the instruction @code as the engine would prepare it. */
static struct tp_frame emulate(const uint8_t *code, size_t len, struct tp_frame frame)
{
	struct tp_insn insn = tp_classify(code, len, AT);
	struct tp_poke poke = { .addr = AT, .len = (uint8_t)len };

	poke.emulate = tp_pack_emulate(&insn);
	poke.target = insn.kind == TP_INSN_RET ? insn.pops : insn.target;
	frame.rip = AT + 1;
	tp_emulate(&poke, &frame);
	return frame;
}

#define EMULATE(frame, ...) \
	emulate((const uint8_t[]){ __VA_ARGS__ }, sizeof((const uint8_t[]){ __VA_ARGS__ }), frame)

TEST(lineage_2b_emulated_nop_goes_past_the_whole_site)
{
	struct tp_frame frame = EMULATE(((struct tp_frame){ .rsp = 64, .rflags = 0x202 }), 0x90,
					0x90, 0x90, 0x90, 0x90);

	CHECK_EQ(frame.rip, AT + 5);
	CHECK_EQ(frame.rsp, 64);
	CHECK_EQ(frame.rflags, 0x202);
}

TEST(lineage_2b_emulated_call_pushes_the_address_after_the_site)
{
	uint64_t stack[4] = { 1, 2, 3, 4 };
	struct tp_frame frame =
		EMULATE(((struct tp_frame){ .rsp = (uint64_t)&stack[2] }), 0xe8, 0, 1, 0, 0);

	CHECK_EQ(frame.rip, AT + 5 + 0x100);
	CHECK_EQ(frame.rsp, (uint64_t)&stack[1]);
	CHECK_EQ(stack[0], 1);
	CHECK_EQ(stack[1], AT + 5);
	CHECK_EQ(stack[2], 3);
}

TEST(lineage_2b_emulated_jmp_only_goes_there)
{
	struct tp_frame frame = EMULATE((struct tp_frame){ .rsp = 64 }, 0xe9, 0, 1, 0, 0);

	CHECK_EQ(frame.rip, AT + 5 + 0x100);
	CHECK_EQ(frame.rsp, 64);
	CHECK_EQ(EMULATE((struct tp_frame){ 0 }, 0xeb, 0xfe, 0xcc).rip, AT);
}

TEST(lineage_2b_emulated_ret_pops_and_drops_its_operand)
{
	uint64_t stack[4] = { 0x1111, 0x2222, 0, 0 };
	struct tp_frame frame = { .rsp = (uint64_t)stack };

	frame = EMULATE(frame, 0xc3);
	CHECK_EQ(frame.rip, 0x1111);
	CHECK_EQ(frame.rsp, (uint64_t)&stack[1]);
	frame = EMULATE(frame, 0xc2, 8, 0);
	CHECK_EQ(frame.rip, 0x2222);
	CHECK_EQ(frame.rsp, (uint64_t)&stack[3]);
}

TEST(seed_19_emulated_handler_continues_there)
{
	const struct tp_insn insn = { .kind = TP_INSN_HANDLER };
	struct tp_poke poke = { .addr = AT, .len = 5, .handler = 0x4242, .target = 0x1313 };
	struct tp_frame frame = { .rip = AT + 1, .rsp = 64 };

	poke.emulate = tp_pack_emulate(&insn);
	tp_emulate(&poke, &frame);
	CHECK_EQ(frame.rip, 0x4242);
	CHECK_EQ(frame.rsp, 64);
}

enum { CF = 1, PF = 4, ZF = 64, SF = 128, OF = 2048 };

/* The five flags that conditions ask for, in all 32 combinations. */
static uint64_t flags_of(unsigned int i)
{
	return 0x202 | (i & 1 ? CF : 0) | (i & 2 ? PF : 0) | (i & 4 ? ZF : 0) | (i & 8 ? SF : 0) |
	       (i & 16 ? OF : 0);
}

/* SDM vol. 1, appendix B: O NO B AE E NE BE A S NS P NP L GE LE G. */
static bool condition_table(unsigned int condition, uint64_t flags)
{
	bool c = flags & CF, p = flags & PF, z = flags & ZF, s = flags & SF, o = flags & OF;
	const bool table[16] = { o, !o, c, !c, z,      !z,     c || z,	    !c && !z,
				 s, !s, p, !p, s != o, s == o, z || s != o, !z && s == o };

	return table[condition];
}

static bool emulated_jump(const uint8_t *code, size_t len, uint64_t flags)
{
	struct tp_frame frame = emulate(code, len, (struct tp_frame){ .rsp = 64, .rflags = flags });

	CHECK_EQ(frame.rsp, 64);
	CHECK_EQ(frame.rflags, flags);
	CHECK(frame.rip == AT + len || frame.rip == AT + len + 3);
	return frame.rip != AT + len;
}

/* What this CPU does: set the flags, jump over "return 0" or not. */
static bool real_jump(struct code *code, const uint8_t *jcc, size_t len, uint64_t flags)
{
	static const uint8_t head[] = { 0x57, 0x9d }; /* push %rdi; popfq */
	static const uint8_t tail[] = { 0x31, 0xc0, 0xc3, 0xb8, 1, 0, 0, 0, 0xc3 };

	memcpy(code->rw, head, sizeof(head));
	memcpy(code->rw + sizeof(head), jcc, len);
	memcpy(code->rw + sizeof(head) + len, tail, sizeof(tail));
	return ((int (*)(uint64_t))code->rx)(flags);
}

TEST(lineage_2e_jcc_agrees_with_the_truth_table_and_with_the_cpu)
{
	struct code code;

	if (!CHECK(!code_open(&code, 0, TP_PAGE_BYTES)))
		return;
	for (unsigned int turn = 0; turn < 16 * 32; turn++) {
		unsigned int condition = turn / 32;
		uint64_t flags = flags_of(turn % 32);
		const uint8_t rel8[] = { (uint8_t)(0x70 | condition), 3 };
		const uint8_t rel32[] = { 0x0f, (uint8_t)(0x80 | condition), 3, 0, 0, 0 };
		bool taken = condition_table(condition, flags);

		CHECK_NOTE("condition %u, flags %#" PRIx64, condition, flags);
		CHECK_EQ(emulated_jump(rel8, 2, flags), taken);
		CHECK_EQ(emulated_jump(rel32, 6, flags), taken);
		CHECK_EQ(real_jump(&code, rel8, 2, flags), taken);
		CHECK_EQ(real_jump(&code, rel32, 6, flags), taken);
	}
	code_close(&code);
}

static uint64_t trapped_at, go_on_at;

static void note_trap(int signal, siginfo_t *info, void *context)
{
	ucontext_t *user = context;

	trapped_at = (uint64_t)user->uc_mcontext.gregs[REG_RIP] - 1;
	user->uc_mcontext.gregs[REG_RIP] = (greg_t)go_on_at;
}

/* Where the first int3 after the instruction traps is where this CPU sees its end. */
static size_t real_length(struct code *code, const uint8_t *insn, size_t len)
{
	memset(code->rw, TP_INT3, 64);
	memcpy(code->rw, insn, len);
	code->rw[64] = 0xc3;
	go_on_at = (uint64_t)code->rx + 64;
	((void (*)(void))code->rx)();
	return trapped_at - (uint64_t)code->rx;
}

static void check_length(struct code *code, const uint8_t *insn, size_t len)
{
	uint8_t padded[15];
	size_t length;

	memset(padded, TP_INT3, sizeof(padded)); /* int3 is operand where an operand is wanted */
	memcpy(padded, insn, len);
	length = classify(padded, sizeof(padded)).length;
	CHECK_NOTE("%02x %02x %02x %02x %02x", padded[0], padded[1], padded[2], padded[3],
		   padded[4]);
	CHECK(length > 0);
	if (length)
		CHECK_EQ(length, real_length(code, insn, len));
}

/* Every operand form of 0F 1F /0: 24 ModRM bytes, and 256 SIB bytes behind those that have one. */
static void check_operands(struct code *code)
{
	for (unsigned int modrm = 0; modrm < 256; modrm++) {
		uint8_t insn[] = { 0x0f, 0x1f, (uint8_t)modrm, 0 };
		bool sib = (modrm & 7) == 4 && modrm < 0xc0;

		if (modrm & 0x38)
			continue;
		for (unsigned int i = 0; i < (sib ? 256 : 1); i++) {
			insn[3] = (uint8_t)i;
			check_length(code, insn, sib ? 4 : 3);
		}
	}
}

static void check_prefixes(struct code *code)
{
	static const uint8_t prefixes[] = { 0x66, 0x2e, 0x36, 0x3e, 0x26 };

	for (unsigned int i = 0; i < 125; i++) {
		uint8_t nop[] = { prefixes[i % 5], prefixes[i / 5 % 5], prefixes[i / 25], 0x90 };
		uint8_t nopl[] = { nop[0], nop[1], nop[2], 0x0f, 0x1f, 0x44, 0x00 };

		check_length(code, nop, sizeof(nop));
		check_length(code, nopl, sizeof(nopl));
	}
}

TEST(lineage_2e_nop_lengths_agree_with_the_cpu_for_every_operand_and_prefix)
{
	struct sigaction action = { .sa_sigaction = note_trap, .sa_flags = SA_SIGINFO }, before;
	struct code code;

	if (!CHECK(!code_open(&code, 0, TP_PAGE_BYTES)))
		return;
	sigaction(SIGTRAP, &action, &before);
	check_operands(&code);
	check_prefixes(&code);
	sigaction(SIGTRAP, &before, NULL);
	code_close(&code);
}
