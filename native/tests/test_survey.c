/* SPDX-License-Identifier: Apache-2.0 */
/** @file survey.c: which functions give their first bytes to a jump, and why others do not. */
#include <errno.h>
#include <stdlib.h>

#include "check.h"
#include "insn.h"
#include "textpoke.h"

#define BYTES(...) ((const uint8_t[]){ __VA_ARGS__ }), sizeof((const uint8_t[]){ __VA_ARGS__ })
#define CODE 0x1000u /* where the code of a test stands */
#define DATA 0x3000u
#define HIGH 0x400000u /* added in modules that are linked to their address */

/* A module: int3s, in which a test puts functions, and zeros of data. */
struct module {
	uint64_t base;
	uint8_t code[512];
	uint8_t data[256];
	uint64_t targets[4];
	uint64_t target_count;
	struct tp_function functions[8];
	uint64_t count;
	struct tp_surveyed out;
};

static void open_module(struct module *module)
{
	memset(module, 0, sizeof(*module));
	memset(module->code, 0xcc, sizeof(module->code));
}

static struct tp_function *add(struct module *module, uint32_t offset, const uint8_t *bytes,
			       size_t count)
{
	struct tp_function *function = &module->functions[module->count++];

	memcpy(module->code + offset, bytes, count);
	*function = (struct tp_function){ .vaddr = module->base + CODE + offset, .bytes = count };
	return function;
}

static void put_data(struct module *module, uint32_t offset, uint64_t value, size_t count)
{
	memcpy(module->data + offset, &value, count);
}

static int survey(struct module *module)
{
	struct tp_piece code = { module->base + CODE, module->code, sizeof(module->code) };
	struct tp_piece data = { module->base + DATA, module->data, sizeof(module->data) };
	struct tp_survey in = { .code = &code, .code_count = 1, .data = &data, .data_count = 1 };

	in.targets = module->targets;
	in.target_count = module->target_count;
	in.functions = module->functions;
	in.function_count = module->count;
	return tp_survey(&in, &module->out);
}

/* The answer for a function that is all there is. */
static struct tp_function survey_one(const uint8_t *bytes, size_t count)
{
	struct module module;

	open_module(&module);
	add(&module, 0, bytes, count);
	CHECK_EQ(survey(&module), 0);
	return module.functions[0];
}

/* push %rbp; mov %rsp,%rbp; sub $16,%rsp; leave; ret: heads at 1 and 4, a window of 8 */
#define PLAIN 0x55, 0x48, 0x89, 0xe5, 0x48, 0x83, 0xec, 0x10, 0xc9, 0xc3

TEST(window_is_whole_instructions_that_cover_five_bytes)
{
	struct tp_function function = survey_one(BYTES(PLAIN));

	CHECK_EQ(function.reason, TP_REFUSE_NOTHING);
	CHECK_EQ(function.at, 0);
	CHECK_EQ(function.window, 8);
	CHECK_EQ(function.heads, 1 << 1 | 1 << 4);
	CHECK_EQ(function.flags, 0);
}

TEST(window_of_one_long_instruction_has_no_heads)
{
	struct tp_function function = survey_one(BYTES(0xb8, 1, 0, 0, 0, 0xc3));

	CHECK_EQ(function.reason, TP_REFUSE_NOTHING);
	CHECK_EQ(function.window, 5);
	CHECK_EQ(function.heads, 0);
}

TEST(endbr64_stays_before_the_window)
{
	struct tp_function function = survey_one(BYTES(0xf3, 0x0f, 0x1e, 0xfa, PLAIN));

	CHECK_EQ(function.reason, TP_REFUSE_NOTHING);
	CHECK_EQ(function.at, 4);
	CHECK_EQ(function.window, 8);
	CHECK_EQ(function.heads, 1 << 1 | 1 << 4);
}

TEST(window_says_that_its_instructions_depend_on_their_place)
{
	/* mov 0x100(%rip),%rax; ret */
	CHECK_EQ(survey_one(BYTES(0x48, 0x8b, 5, 0, 1, 0, 0, 0xc3)).flags, TP_FUNCTION_MOVES);
	/* test %edi,%edi; je +1; ...: a branch with another target in the copy */
	CHECK_EQ(survey_one(BYTES(0x85, 0xff, 0x74, 8, 0x31, 0xc0, 0xc3)).flags, TP_FUNCTION_MOVES);
	/* jmp +0x100 */
	CHECK_EQ(survey_one(BYTES(0xe9, 0, 1, 0, 0)).flags, TP_FUNCTION_MOVES);
}

TEST(call_may_only_be_the_last_instruction)
{
	struct tp_function function = survey_one(BYTES(0x50, 0xe8, 0, 1, 0, 0, 0x58, 0xc3));

	CHECK_EQ(function.reason, TP_REFUSE_NOTHING);
	CHECK_EQ(function.window, 6);
	CHECK_EQ(function.flags, TP_FUNCTION_CALLS | TP_FUNCTION_MOVES);
	/* call *%rax; pop %rdx; ... */
	CHECK_EQ(survey_one(BYTES(0xff, 0xd0, 0x5a, 0x31, 0xc0, 0xc3)).reason, TP_REFUSE_CALL);
}

/* Code whose first five bytes cannot go elsewhere, and why. */
static const struct refused {
	const char *text;
	uint8_t reason;
	uint8_t count;
	uint8_t bytes[12];
} refused[] = {
	{ "push; syscall",
	  TP_REFUSE_SYSCALL,
	  8,
	  { 0x50, 0x0f, 0x05, 0x58, 0x90, 0x90, 0x90, 0xc3 } },
	{ "int 0x80", TP_REFUSE_SYSCALL, 6, { 0xcd, 0x80, 0x31, 0xc0, 0x90, 0xc3 } },
	{ "ud2", TP_REFUSE_TRAP, 6, { 0x0f, 0x0b, 0x90, 0x90, 0x90, 0xc3 } },
	{ "push; int3", TP_REFUSE_TRAP, 6, { 0x50, 0xcc, 0x90, 0x90, 0x90, 0xc3 } },
	{ "xbegin", TP_REFUSE_TRAP, 7, { 0xc7, 0xf8, 0, 1, 0, 0, 0xc3 } },
	{ "06", TP_REFUSE_DECODE, 6, { 0x06, 0x90, 0x90, 0x90, 0x90, 0xc3 } },
	{ "call *8(%rsp)", TP_REFUSE_MOVE, 8, { 0x90, 0xff, 0x54, 0x24, 8, 0x58, 0x58, 0xc3 } },
	{ "call *%rsp", TP_REFUSE_MOVE, 8, { 0x0f, 0x1f, 0, 0xff, 0xd4, 0x58, 0x58, 0xc3 } },
	{ "lcall *(%rax)", TP_REFUSE_MOVE, 8, { 0x0f, 0x1f, 0, 0xff, 0x18, 0x58, 0x58, 0xc3 } },
	{ "ljmp *(%rax)", TP_REFUSE_MOVE, 6, { 0x0f, 0x1f, 0, 0xff, 0x28, 0xc3 } },
	{ "mov 0(%eip),%eax", TP_REFUSE_MOVE, 8, { 0x67, 0x8b, 5, 0, 0, 0, 0, 0xc3 } },
	{ "jmp; code", TP_REFUSE_SHORT, 8, { 0xeb, 2, 0x31, 0xc0, 0x58, 0x58, 0x58, 0xc3 } },
	{ "push; no end", TP_REFUSE_SHORT, 1, { 0x50 } },
	{ "je into itself", TP_REFUSE_BRANCH, 8, { 0x85, 0xff, 0x74, 2, 0x48, 0x31, 0xc0, 0xc3 } },
};

TEST(refusals_name_their_reason)
{
	for (size_t i = 0; i < sizeof(refused) / sizeof(refused[0]); i++) {
		struct tp_function function = survey_one(refused[i].bytes, refused[i].count);

		CHECK_NOTE("%s", refused[i].text);
		CHECK_EQ(function.reason, refused[i].reason);
		CHECK_EQ(function.window, 0);
		CHECK_EQ(function.heads, 0);
	}
}

TEST(indirect_calls_through_other_registers_are_moved)
{
	/* nop; call *8(%r12): the same modrm byte as for rsp */
	CHECK_EQ(survey_one(BYTES(0x90, 0x41, 0xff, 0x54, 0x24, 8, 0x58, 0xc3)).reason, 0);
	/* nopl (%rax); call *%r12 */
	CHECK_EQ(survey_one(BYTES(0x0f, 0x1f, 0, 0x41, 0xff, 0xd4, 0x58, 0xc3)).reason, 0);
	/* jmp *8(%rsp), for which nothing is pushed before */
	CHECK_EQ(survey_one(BYTES(0x90, 0xff, 0x64, 0x24, 8)).reason, 0);
}

TEST(functions_that_the_caller_excludes_keep_that_reason)
{
	static const uint8_t flags[] = { TP_FUNCTION_COLD, TP_FUNCTION_SIGRETURN, TP_FUNCTION_GO };
	struct module module;

	for (size_t i = 0; i < sizeof(flags); i++) {
		open_module(&module);
		add(&module, 0, BYTES(PLAIN))->flags = flags[i];
		CHECK_EQ(survey(&module), 0);
		CHECK_EQ(module.functions[0].reason, TP_REFUSE_COLD + i);
		CHECK_EQ(module.functions[0].flags, flags[i]);
	}
}

TEST(short_function_takes_the_padding_behind_it)
{
	struct tp_function function = survey_one(BYTES(0x31, 0xc0, 0xc3)); /* int3s follow */

	CHECK_EQ(function.reason, TP_REFUSE_NOTHING);
	CHECK_EQ(function.window, 5);
	CHECK_EQ(function.heads, 1 << 2); /* padding has no heads: nobody gets there */
	CHECK_EQ(function.flags, TP_FUNCTION_PADDED);
}

TEST(zeros_are_padding_behind_the_function_only)
{
	struct module module;

	open_module(&module);
	add(&module, 0, BYTES(0x31, 0xc0, 0xc3, 0, 0, 0, 0, 0x90))->bytes = 3;
	add(&module, 16, BYTES(0xc3, 0, 0, 0, 0, 0, 0, 0xc3));
	add(&module, 32, BYTES(0xc3, 0x0f, 0x1f, 0x84, 0, 0, 0, 0, 0, 0xc3));
	CHECK_EQ(survey(&module), 0);
	CHECK_EQ(module.functions[0].reason, TP_REFUSE_NOTHING);
	CHECK_EQ(module.functions[1].reason, TP_REFUSE_SHORT);
	CHECK_EQ(module.functions[2].reason, TP_REFUSE_NOTHING); /* one NOP of eight bytes */
	CHECK_EQ(module.functions[2].window, 5);
}

TEST(padding_ends_where_another_function_begins)
{
	struct module module;

	open_module(&module);
	add(&module, 0, BYTES(0x31, 0xc0, 0xc3)); /* one int3 behind */
	add(&module, 4, BYTES(PLAIN));
	add(&module, 32, BYTES(0x31, 0xc0, 0xc3)); /* two int3s behind */
	add(&module, 37, BYTES(PLAIN));
	CHECK_EQ(survey(&module), 0);
	CHECK_EQ(module.functions[0].reason, TP_REFUSE_SHORT);
	CHECK_EQ(module.functions[1].reason, TP_REFUSE_NOTHING);
	CHECK_EQ(module.functions[2].reason, TP_REFUSE_NOTHING);
}

TEST(padding_that_reaches_into_another_function_is_none)
{
	struct module module;

	open_module(&module);
	add(&module, 0, BYTES(0xc3, 0x0f, 0x1f, 0x84, 0, 0, 0x90, 0x90, 0x90))->bytes = 1;
	add(&module, 6, BYTES(0x90, 0x90, 0x90, 0x90, 0x90, 0xc3));
	CHECK_EQ(survey(&module), 0);
	CHECK_EQ(module.functions[0].reason, TP_REFUSE_SHORT);
	CHECK_EQ(module.functions[1].reason, TP_REFUSE_NOTHING);
}

TEST(code_of_the_next_function_is_not_looked_at)
{
	struct module module;

	open_module(&module);
	add(&module, 0, BYTES(0x90));
	add(&module, 1, BYTES(0x0f, 0x05, 0x90, 0x90, 0x90, 0xc3));
	CHECK_EQ(survey(&module), 0);
	CHECK_EQ(module.functions[0].reason, TP_REFUSE_ENTRY);
	CHECK_EQ(module.functions[1].reason, TP_REFUSE_SYSCALL);
}

TEST(no_jump_covers_the_entry_of_another_function)
{
	for (uint32_t distance = 1; distance < 10; distance++) {
		struct module module;

		CHECK_NOTE("%u bytes apart", distance);
		open_module(&module);
		add(&module, 0, BYTES(0x90, 0x90, 0x90, 0x90, 0x90, 0x90, 0x90, 0x90, 0x90));
		add(&module, distance, BYTES(PLAIN));
		CHECK_EQ(survey(&module), 0);
		CHECK_EQ(module.functions[0].reason,
			 distance < 5 ? TP_REFUSE_ENTRY : TP_REFUSE_NOTHING);
		CHECK_EQ(module.functions[1].reason, TP_REFUSE_NOTHING);
	}
}

TEST(two_functions_do_not_share_the_site_behind_an_endbr64)
{
	struct module module;

	open_module(&module);
	add(&module, 0, BYTES(0xf3, 0x0f, 0x1e, 0xfa, PLAIN));
	add(&module, 4, BYTES(PLAIN));
	CHECK_EQ(survey(&module), 0);
	CHECK_EQ(module.functions[0].reason, TP_REFUSE_ENTRY);
	CHECK_EQ(module.functions[1].reason, TP_REFUSE_NOTHING);

	open_module(&module);
	add(&module, 0, BYTES(0xf3, 0x0f, 0x1e, 0xfa, PLAIN));
	add(&module, 2, BYTES(0x1e, 0xfa, PLAIN)); /* inside the endbr64 itself */
	CHECK_EQ(survey(&module), 0);
	CHECK_EQ(module.functions[0].reason, TP_REFUSE_ENTRY);
}

TEST(window_never_runs_into_the_next_function)
{
	struct module module;

	open_module(&module);
	/* nop; movabs: the next function begins inside its ten bytes, past the first five */
	add(&module, 0, BYTES(0x90, 0x48, 0xb8, 1, 2, 3, 4, 5, 6, 7));
	add(&module, 7, BYTES(PLAIN));
	CHECK_EQ(survey(&module), 0);
	CHECK_EQ(module.functions[0].reason, TP_REFUSE_ENTRY);
}

TEST(no_jump_cuts_an_instruction_of_the_function_before)
{
	struct module module;

	open_module(&module);
	/* movabs of ten bytes, and a function that begins at its fourth */
	add(&module, 0, BYTES(0x31, 0xc0, 0x48, 0xb8, 1, 2, 0x90, 0x90, 0x90, 0x90, 0x90, 0xc3));
	add(&module, 6, BYTES(0x90, 0x90, 0x90, 0x90, 0x90, 0xc3));
	CHECK_EQ(survey(&module), 0);
	CHECK_EQ(module.functions[1].reason, TP_REFUSE_ENTRY);
}

TEST(pieces_of_code_know_each_other)
{
	uint8_t low[16] = { PLAIN }, high[16] = { 0xe9 };
	struct tp_piece code[] = { { 0x1000, low, sizeof(low) }, { 0x8000, high, sizeof(high) } };
	struct tp_function functions[] = { { .vaddr = 0x1000, .bytes = 10 },
					   { .vaddr = 0x8000, .bytes = 5 },
					   { .vaddr = 0x8008, .bytes = 8 } };
	struct tp_survey in = { .code = code, .code_count = 2 };
	int32_t distance = 0x1004 - 0x8005;
	struct tp_surveyed out;

	memcpy(high + 1, &distance, sizeof(distance));
	memset(high + 8, 0x90, 8);
	in.functions = functions;
	in.function_count = 3;
	CHECK_EQ(tp_survey(&in, &out), 0);
	CHECK_EQ(functions[0].reason, TP_REFUSE_BRANCH);
	CHECK_EQ(functions[1].reason, TP_REFUSE_NOTHING);
	CHECK_EQ(functions[2].reason, TP_REFUSE_NOTHING);
	CHECK_EQ(functions[2].window, 5);
}

/* Another function with @insn as its code, which ends in a distance of @width bytes to @offset. */
static enum tp_refusal survey_branch(const uint8_t *insn, size_t count, size_t width, int offset,
				     bool listed)
{
	struct module module;
	int distance = offset - (int)(64 + count + width);
	uint8_t bytes[16];

	open_module(&module);
	memcpy(bytes, insn, count);
	memcpy(bytes + count, &distance, width);
	add(&module, 0, BYTES(PLAIN));
	add(&module, 64, bytes, count + width);
	if (!listed)
		module.count--;
	CHECK_EQ(survey(&module), 0);
	CHECK_EQ(module.out.branches, 1);
	return module.functions[0].reason;
}

TEST(nothing_may_branch_behind_the_first_byte_of_a_jump)
{
	for (int offset = -1; offset < 8; offset++) {
		enum tp_refusal expected = offset > 0 && offset < 5 ? TP_REFUSE_BRANCH : 0;

		for (int listed = 0; listed < 2; listed++) {
			CHECK_NOTE("to %d, %s", offset, listed ? "function" : "unknown code");
			CHECK_EQ(survey_branch(BYTES(0xeb), 1, offset, listed), expected);
			CHECK_EQ(survey_branch(BYTES(0xe9), 4, offset, listed), expected);
			CHECK_EQ(survey_branch(BYTES(0x75), 1, offset, listed), expected);
			CHECK_EQ(survey_branch(BYTES(0x0f, 0x8f), 4, offset, listed), expected);
			CHECK_EQ(survey_branch(BYTES(0xe2), 1, offset, listed), expected);
			CHECK_EQ(survey_branch(BYTES(0xe3), 1, offset, listed), expected);
			CHECK_EQ(survey_branch(BYTES(0xe8), 4, offset, listed), expected);
			CHECK_EQ(survey_branch(BYTES(0xc7, 0xf8), 4, offset, listed), expected);
		}
	}
}

TEST(branches_count_from_the_site_behind_an_endbr64)
{
	for (int8_t offset = 0; offset < 12; offset++) {
		struct module module;

		CHECK_NOTE("to %d", offset);
		open_module(&module);
		add(&module, 0, BYTES(0xf3, 0x0f, 0x1e, 0xfa, PLAIN));
		add(&module, 32, BYTES(0xeb, (uint8_t)(offset - 34)));
		CHECK_EQ(survey(&module), 0);
		CHECK_EQ(module.functions[0].reason,
			 offset > 4 && offset < 9 ? TP_REFUSE_BRANCH : TP_REFUSE_NOTHING);
	}
}

TEST(one_branch_may_hit_several_functions)
{
	struct module module;

	open_module(&module);
	add(&module, 0, BYTES(0xf3, 0x0f, 0x1e, 0xfa, 0x90, 0x90, 0x90, 0x90, 0x90, 0x90));
	add(&module, 9, BYTES(PLAIN));
	add(&module, 32, BYTES(0xeb, (uint8_t)(10 - 34)));
	CHECK_EQ(survey(&module), 0);
	CHECK_EQ(module.functions[0].reason, TP_REFUSE_NOTHING);
	CHECK_EQ(module.functions[1].reason, TP_REFUSE_BRANCH);

	/* the second byte of one function's jump, the first of another's */
	open_module(&module);
	add(&module, 0, BYTES(0xf3, 0x0f, 0x1e, 0xfa, 0x90));
	add(&module, 5, BYTES(PLAIN));
	add(&module, 32, BYTES(0xeb, (uint8_t)(5 - 34)));
	CHECK_EQ(survey(&module), 0);
	CHECK_EQ(module.functions[0].reason, TP_REFUSE_ENTRY);
	CHECK_EQ(module.functions[1].reason, TP_REFUSE_NOTHING);
}

TEST(branch_is_the_reason_that_is_told_first)
{
	struct module module;

	open_module(&module);
	add(&module, 0, BYTES(PLAIN));
	/* lea of byte 1, and a jmp there */
	add(&module, 32,
	    BYTES(0x48, 0x8d, 0x05, (uint8_t)(1 - 39), 0xff, 0xff, 0xff, 0xeb, (uint8_t)(1 - 41)));
	CHECK_EQ(survey(&module), 0);
	CHECK_EQ(module.functions[0].reason, TP_REFUSE_BRANCH);
}

TEST(branch_to_the_own_entry_is_told)
{
	/* dec %edi; nopl 0(%rax); jne entry; ret */
	struct tp_function function =
		survey_one(BYTES(0xff, 0xcf, 0x0f, 0x1f, 0x40, 0, 0x75, (uint8_t)-8, 0xc3));

	CHECK_EQ(function.reason, TP_REFUSE_NOTHING);
	CHECK_EQ(function.flags, TP_FUNCTION_LOOPS);
	/* endbr64; ...; jne behind it */
	function = survey_one(BYTES(0xf3, 0x0f, 0x1e, 0xfa, 0xff, 0xcf, 0x0f, 0x1f, 0x40, 0, 0x75,
				    (uint8_t)-8, 0xc3));
	CHECK_EQ(function.flags, TP_FUNCTION_LOOPS);
	/* endbr64; ...; jne to it */
	function = survey_one(BYTES(0xf3, 0x0f, 0x1e, 0xfa, 0xff, 0xcf, 0x0f, 0x1f, 0x40, 0, 0x75,
				    (uint8_t)-12, 0xc3));
	CHECK_EQ(function.flags, TP_FUNCTION_LOOPS);
	/* a call of itself is an entry like any other */
	function = survey_one(BYTES(0x55, 0x48, 0x89, 0xe5, 0xe8, 0xf7, 0xff, 0xff, 0xff, 0xc3));
	CHECK_EQ(function.flags & TP_FUNCTION_LOOPS, 0);
}

TEST(undecodable_code_may_hide_any_branch)
{
	struct module module;

	open_module(&module);
	add(&module, 0, BYTES(PLAIN));
	/* 06 does not exist; mov $..,%eax swallows jmp to byte 3 of the first function */
	add(&module, 32, BYTES(0x90, 0x06, 0xb8, 0xeb, (uint8_t)(3 - 37), 0, 0, 0xc3));
	CHECK_EQ(survey(&module), 0);
	CHECK_EQ(module.functions[0].reason, TP_REFUSE_BRANCH);
	CHECK_EQ(module.functions[1].reason, TP_REFUSE_DECODE);
	CHECK(module.functions[1].flags & TP_FUNCTION_GAPS);
	CHECK_EQ(module.out.undecodable, 1);
}

TEST(function_with_undecodable_parts_is_displaced_and_told)
{
	struct tp_function function = survey_one(BYTES(PLAIN, 0x06, 0x90));

	CHECK_EQ(function.reason, TP_REFUSE_NOTHING);
	CHECK_EQ(function.flags, TP_FUNCTION_GAPS);
}

TEST(zeros_between_functions_do_not_hide_the_code_behind_them)
{
	struct module module;

	open_module(&module);
	add(&module, 0, BYTES(PLAIN));
	memset(module.code + 16, 0, 13); /* an odd number */
	memcpy(module.code + 29, BYTES(0xeb, (uint8_t)(1 - 31)));
	CHECK_EQ(survey(&module), 0);
	CHECK_EQ(module.functions[0].reason, TP_REFUSE_BRANCH);
}

/* lea DATA+offset(%rip),%rdx at the beginning; movslq (%rdx,%rax,4); add; jmp *%rax */
static void add_switch(struct module *module, uint32_t at, uint32_t offset)
{
	uint32_t distance = DATA + offset - (CODE + at + 7);
	uint8_t bytes[] = { 0x48, 0x8d, 0x15, 0,    0,	  0,	0,    0x48,
			    0x63, 0x04, 0x82, 0x48, 0x01, 0xd0, 0xff, 0xe0 };

	memcpy(bytes + 3, &distance, sizeof(distance));
	add(module, at, bytes, sizeof(bytes));
}

/* Entry @i of the table at @offset leads to @to in the code. */
static void put_entry(struct module *module, uint32_t offset, uint32_t i, uint32_t to)
{
	put_data(module, offset + 4 * i, CODE + to - (DATA + offset), 4);
}

TEST(jump_table_may_not_lead_behind_the_first_byte_of_a_jump)
{
	for (uint32_t to = 0; to < 8; to++) {
		struct module module;

		CHECK_NOTE("to %u", to);
		open_module(&module);
		add(&module, 0, BYTES(PLAIN));
		add_switch(&module, 32, 20);
		put_entry(&module, 20, 0, 47);
		put_entry(&module, 20, 1, 48);
		put_entry(&module, 20, 2, to);
		CHECK_EQ(survey(&module), 0);
		CHECK_EQ(module.functions[0].reason, to && to < 5 ? TP_REFUSE_TABLE : 0);
		CHECK_EQ(module.functions[1].reason, TP_REFUSE_NOTHING);
		CHECK_EQ(module.out.tables, 1);
	}
}

TEST(jump_table_ends_at_the_first_entry_that_is_none)
{
	struct module module;

	open_module(&module);
	add(&module, 0, BYTES(PLAIN));
	add_switch(&module, 32, 0);
	put_entry(&module, 0, 0, 40);
	put_data(&module, 4, 0x100, 4); /* to the data */
	put_entry(&module, 0, 2, 1);
	CHECK_EQ(survey(&module), 0);
	CHECK_EQ(module.functions[0].reason, TP_REFUSE_NOTHING);
}

TEST(jump_table_ends_where_another_begins)
{
	struct module module;

	open_module(&module);
	add(&module, 0, BYTES(PLAIN));
	add_switch(&module, 64, 0);
	add_switch(&module, 96, 8);
	put_entry(&module, 0, 0, 40);
	put_entry(&module, 0, 1, 40);
	put_entry(&module, 8, 0, 8 + 1); /* from the first table's beginning: to 1 */
	CHECK_EQ(survey(&module), 0);
	CHECK_EQ(module.functions[0].reason, TP_REFUSE_NOTHING);
	CHECK_EQ(module.out.tables, 2);
}

TEST(bytes_between_functions_name_no_jump_tables)
{
	struct module module;

	open_module(&module);
	add(&module, 0, BYTES(PLAIN));
	add_switch(&module, 64, 0);
	module.count--;
	put_entry(&module, 0, 0, 1);
	CHECK_EQ(survey(&module), 0);
	CHECK_EQ(module.functions[0].reason, TP_REFUSE_NOTHING);
	CHECK_EQ(module.out.tables, 0);
}

TEST(memory_for_jump_tables_has_a_bound)
{
	enum { LEAS = 4096, LEA = 7, BYTES_OF_CODE = LEAS * LEA };
	struct tp_function function = { .vaddr = CODE };
	uint8_t *code = calloc(1, BYTES_OF_CODE), data[8] = { 0 };
	struct tp_piece pieces[] = { { CODE, code, BYTES_OF_CODE }, { 0x100000, data, 8 } };
	struct tp_survey in = {
		.code = pieces, .code_count = 1, .data = pieces + 1, .data_count = 1
	};
	int32_t distance = CODE - 0x100000;
	struct tp_surveyed out;

	memcpy(data, &distance, sizeof(distance));
	in.functions = &function;
	in.function_count = 1;
	for (int32_t i = 0; i < LEAS; i++) {
		distance = 0x100000 - (int32_t)(CODE + LEA * (i + 1));
		memcpy(code + LEA * i, (const uint8_t[]){ 0x48, 0x8d, 0x05 }, 3);
		memcpy(code + LEA * i + 3, &distance, sizeof(distance));
	}
	CHECK_EQ(tp_survey(&in, &out), -ENOMEM);
	memset(code + LEA * 1024, 0x90, BYTES_OF_CODE - LEA * 1024);
	CHECK_EQ(tp_survey(&in, &out), 0);
	CHECK_EQ(out.tables, 1);
	distance = 0x100000 + 6 - (int32_t)(CODE + LEA); /* two bytes only: no entry is read */
	memcpy(code + 3, &distance, sizeof(distance));
	CHECK_EQ(tp_survey(&in, &out), 0);
	free(code);
}

TEST(pointers_in_data_and_given_targets_count)
{
	struct module module;

	for (uint32_t to = 0; to < 8; to++) {
		CHECK_NOTE("to %u", to);
		open_module(&module);
		add(&module, 0, BYTES(PLAIN));
		put_data(&module, 40, CODE + to, 8);
		CHECK_EQ(survey(&module), 0);
		CHECK_EQ(module.functions[0].reason, to && to < 5 ? TP_REFUSE_TABLE : 0);

		open_module(&module);
		add(&module, 0, BYTES(PLAIN));
		module.targets[module.target_count++] = CODE + to;
		CHECK_EQ(survey(&module), 0);
		CHECK_EQ(module.functions[0].reason, to && to < 5 ? TP_REFUSE_TABLE : 0);
	}
}

TEST(address_that_code_takes_counts)
{
	struct module module;

	open_module(&module);
	add(&module, 0, BYTES(PLAIN));
	add(&module, 32, BYTES(0x48, 0x8d, 0x05, (uint8_t)(1 - 39), 0xff, 0xff, 0xff, 0xc3));
	CHECK_EQ(survey(&module), 0);
	CHECK_EQ(module.functions[0].reason, TP_REFUSE_TABLE);
}

/* PLAIN, and a function with the four bytes of @number behind @insn */
static struct tp_function survey_number(uint64_t base, const uint8_t *insn, size_t count,
					uint32_t number)
{
	struct module module;
	uint8_t bytes[16];

	open_module(&module);
	module.base = base;
	memcpy(bytes, insn, count);
	memcpy(bytes + count, &number, sizeof(number));
	add(&module, 0, BYTES(PLAIN));
	add(&module, 32, bytes, count + sizeof(number));
	for (uint32_t to = 0; to < 2; to++) /* an unaligned table: no word of it is looked at */
		put_data(&module, 4 + 8 * to, base + CODE + to, 8);
	CHECK_EQ(survey(&module), 0);
	return module.functions[0];
}

TEST(numbers_are_addresses_in_modules_that_are_linked_to_their_address)
{
	const uint32_t number = HIGH + CODE + 1, table = HIGH + DATA + 4;

	CHECK_EQ(survey_number(HIGH, BYTES(0xbf), number).reason, TP_REFUSE_TABLE);
	CHECK_EQ(survey_number(HIGH, BYTES(0x41, 0xb8), number).reason, TP_REFUSE_TABLE);
	CHECK_EQ(survey_number(HIGH, BYTES(0x68), number).reason, TP_REFUSE_TABLE);
	CHECK_EQ(survey_number(HIGH, BYTES(0x48, 0xc7, 0), number).reason, TP_REFUSE_TABLE);
	CHECK_EQ(survey_number(HIGH, BYTES(0xbf), number + 7).reason, TP_REFUSE_NOTHING);
	CHECK_EQ(survey_number(HIGH, BYTES(0x3d), number).reason, TP_REFUSE_NOTHING); /* cmp */
	CHECK_EQ(survey_number(0, BYTES(0xbf), CODE + 1).reason, TP_REFUSE_NOTHING);
	/* jmp *table(,%rax,8) and mov table(,%rax,8),%rax */
	CHECK_EQ(survey_number(HIGH, BYTES(0xff, 0x24, 0xc5), table).reason, TP_REFUSE_TABLE);
	CHECK_EQ(survey_number(HIGH, BYTES(0x48, 0x8b, 0x04, 0xc5), table).reason, TP_REFUSE_TABLE);
	CHECK_EQ(survey_number(HIGH, BYTES(0x48, 0x8b, 0x04, 0x85), table).reason, 0);
}

TEST(first_bytes_of_a_function_are_no_jump_table)
{
	struct module module;

	open_module(&module);
	add(&module, 0, BYTES(PLAIN));
	add(&module, 32, BYTES(0x48, 0x8d, 0x05, 64 - 39, 0, 0, 0, 0xc3)); /* lea of the next one */
	/* sar $255,%edi; inc %eax; ret: as a distance it leads to byte 1 of the first */
	add(&module, 64, BYTES(0xc1, 0xff, 0xff, 0xff, 0xc0, 0xc3));
	CHECK_EQ(survey(&module), 0);
	CHECK_EQ(module.functions[0].reason, TP_REFUSE_NOTHING);
	CHECK_EQ(module.out.tables, 0);
}

TEST(words_are_aligned_in_the_address_space)
{
	uint8_t code[16] = { PLAIN }, data[20] = { 0 };
	struct tp_piece pieces[] = { { CODE, code, sizeof(code) },
				     { DATA + 4, data, sizeof(data) } };
	struct tp_function function = { .vaddr = CODE };
	struct tp_survey in = {
		.code = pieces, .code_count = 1, .data = pieces + 1, .data_count = 1
	};
	struct tp_surveyed out;

	in.functions = &function;
	in.function_count = 1;
	data[4] = 1;
	data[5] = CODE >> 8;
	CHECK_EQ(tp_survey(&in, &out), 0);
	CHECK_EQ(function.reason, TP_REFUSE_TABLE);
	memset(data, 0, sizeof(data));
	data[8] = 1;
	data[9] = CODE >> 8;
	CHECK_EQ(tp_survey(&in, &out), 0);
	CHECK_EQ(function.reason, TP_REFUSE_NOTHING);
}

TEST(old_answers_are_forgotten)
{
	struct module module;

	open_module(&module);
	add(&module, 0, BYTES(PLAIN));
	memset((uint8_t *)module.functions + offsetof(struct tp_function, at), 0xff,
	       sizeof(struct tp_function) - offsetof(struct tp_function, at));
	module.functions[0].flags = TP_FUNCTION_LOOPS | TP_FUNCTION_GAPS | TP_FUNCTION_CALLS;
	CHECK_EQ(survey(&module), 0);
	CHECK_EQ(module.functions[0].reason, TP_REFUSE_NOTHING);
	CHECK_EQ(module.functions[0].flags, 0);
	CHECK_EQ(module.functions[0].at, 0);
	CHECK_BYTES(module.functions[0].reserved, ((uint8_t[7]){ 0 }), 7);
}

TEST(functions_outside_the_code_are_named_so)
{
	struct module module;

	open_module(&module);
	add(&module, 0, BYTES(PLAIN))->vaddr = CODE - 1;
	add(&module, 0, BYTES(PLAIN))->vaddr = CODE + sizeof(module.code);
	add(&module, 0, BYTES(PLAIN))->vaddr = UINT64_MAX;
	CHECK_EQ(survey(&module), 0);
	for (int i = 0; i < 3; i++)
		CHECK_EQ(module.functions[i].reason, TP_REFUSE_OUTSIDE);
}

TEST(window_ends_with_the_code)
{
	static const uint8_t endbr64[] = { 0xf3, 0x0f, 0x1e, 0xfa };

	for (uint32_t room = 1; room < 12; room++) {
		struct module module;
		const uint32_t at = sizeof(module.code) - room;

		CHECK_NOTE("%u bytes", room);
		open_module(&module);
		add(&module, at, BYTES(0x90))->bytes = UINT32_MAX;
		memset(module.code + at, 0x90, room);
		CHECK_EQ(survey(&module), 0);
		CHECK_EQ(module.functions[0].reason, room < 5 ? TP_REFUSE_SHORT : 0);

		open_module(&module);
		add(&module, at, BYTES(0xc3));
		CHECK_EQ(survey(&module), 0);
		CHECK_EQ(module.functions[0].reason, room < 5 ? TP_REFUSE_SHORT : 0);

		open_module(&module);
		add(&module, at, endbr64, room < 4 ? room : 4)->bytes = 0;
		CHECK_EQ(survey(&module), 0);
		CHECK_EQ(module.functions[0].at, room < 4 ? 0 : 4);
		CHECK(module.functions[0].reason);
	}
}

TEST(unsound_input_is_refused)
{
	static const uint8_t bytes[32] = { 0x90 };
	struct tp_function functions[2] = { { .vaddr = 8 }, { .vaddr = 8 } };
	struct tp_piece pieces[2] = { { 0, bytes, 16 }, { 15, bytes, 16 } };
	struct tp_surveyed out;

	CHECK_EQ(tp_survey(&(struct tp_survey){ .code_count = 0 }, &out), 0);
	CHECK_EQ(
		tp_survey(&(struct tp_survey){ .functions = functions, .function_count = 2 }, &out),
		-EINVAL);
	CHECK_EQ(tp_survey(&(struct tp_survey){ .code = pieces, .code_count = 2 }, &out), -EINVAL);
	CHECK_EQ(tp_survey(&(struct tp_survey){ .data = pieces, .data_count = 2 }, &out), -EINVAL);
	pieces[1].vaddr = 16;
	CHECK_EQ(tp_survey(&(struct tp_survey){ .code = pieces, .code_count = 2 }, &out), 0);
	pieces[1].vaddr = UINT64_MAX - 15; /* the last byte's end is address 0 */
	CHECK_EQ(tp_survey(&(struct tp_survey){ .code = pieces, .code_count = 2 }, &out), -EINVAL);
	pieces[1].bytes = NULL;
	pieces[1].vaddr = 16;
	CHECK_EQ(tp_survey(&(struct tp_survey){ .code = pieces, .code_count = 2 }, &out), -EINVAL);
}

/* A small generator, so that a run says the same everywhere. */
static uint64_t next_random(uint64_t *state)
{
	*state ^= *state << 13;
	*state ^= *state >> 7;
	*state ^= *state << 17;
	return *state;
}

/* What the answer promises of every displaced function, whatever the bytes. */
static void check_answer(const struct tp_piece *code, const struct tp_function *functions,
			 uint64_t count)
{
	uint64_t end = 0; /* of the jump before */

	for (uint64_t i = 0; i < count; i++) {
		const struct tp_function *function = &functions[i];
		uint64_t site = function->vaddr + function->at, at = 0;

		CHECK(function->reason < TP_REFUSALS);
		CHECK_EQ(function->reserved[0], 0);
		if (function->reason)
			continue;
		CHECK(function->window >= 5 && function->window <= TP_MOST_WINDOW);
		CHECK(site >= code->vaddr && site - code->vaddr + 5 <= code->count);
		CHECK(site >= end);
		end = site + 5;
		for (uint8_t heads = function->heads & ~1u; heads; heads &= heads - 1) {
			const uint8_t *from = code->bytes + (site - code->vaddr) + at;

			at += tp_decode(from, code->count - (site - code->vaddr) - at).length;
			CHECK_EQ(at, __builtin_ctz(heads));
		}
	}
}

/* No instruction that follows a function's entry in sequence may branch into a jump. */
static void check_branches(const struct tp_piece *code, const struct tp_function *functions,
			   uint64_t count)
{
	for (uint64_t i = 0; i < count; i++) {
		uint64_t offset = functions[i].vaddr - code->vaddr;
		uint64_t end = i + 1 < count ? functions[i + 1].vaddr - code->vaddr : code->count;

		if (functions[i].bytes && functions[i].bytes < end - offset)
			end = offset + functions[i].bytes;
		while (offset < end) {
			const uint8_t *from = code->bytes + offset;
			struct tp_decoded insn = tp_decode(from, code->count - offset);
			uint64_t target = 0;

			if (!insn.length || (!from[0] && !from[1]))
				break;
			if (insn.flow == TP_FLOW_JMP || insn.flow == TP_FLOW_JCC)
				target = tp_branch_target(from, &insn, code->vaddr + offset);
			for (uint64_t k = 0; k < count && target; k++)
				CHECK(functions[k].reason ||
				      target - functions[k].vaddr - functions[k].at - 1 > 3);
			offset += insn.length;
		}
	}
}

/* Random code and data in blocks of exactly their size, so that a read past them is seen. */
static void survey_random(uint64_t *seed)
{
	enum { CODE_BYTES = 447, DATA_BYTES = 64, FUNCTIONS = 12 };
	static const uint8_t likely[] = { 0, 0x90, 0xcc, 0xc3, 0xeb, 0x75, 0xe8, 0x48, 0xf3, 0xff };
	uint8_t *code = malloc(CODE_BYTES), *data = malloc(DATA_BYTES);
	struct tp_function functions[FUNCTIONS] = { 0 };
	struct tp_piece pieces[2] = { { CODE, code, CODE_BYTES }, { DATA, data, DATA_BYTES } };
	uint64_t addr = CODE - 8 + next_random(seed) % 8;
	struct tp_surveyed out;

	for (int i = 0; i < CODE_BYTES; i++)
		code[i] = next_random(seed) & 1 ? likely[next_random(seed) % sizeof(likely)] :
						  next_random(seed);
	for (int i = 0; i < DATA_BYTES; i++)
		data[i] = i % 4 < 2 ? (uint8_t)(next_random(seed) & 0x1f) : -(i % 8 < 4);
	for (int i = 0; i < FUNCTIONS; i++) {
		addr += 1 + next_random(seed) % 48;
		functions[i].vaddr = addr;
		functions[i].bytes = next_random(seed) % 32;
	}
	CHECK_EQ(tp_survey(&(struct tp_survey){ pieces, 1, pieces + 1, 1, NULL, 0, functions,
						FUNCTIONS, NULL },
			   &out),
		 0);
	check_answer(pieces, functions, FUNCTIONS);
	if (functions[0].vaddr >= CODE && addr < CODE + CODE_BYTES)
		check_branches(pieces, functions, FUNCTIONS);
	free(code);
	free(data);
}

TEST(any_bytes_get_an_answer_that_keeps_the_promises)
{
	uint64_t seed = 0x7465787470;

	for (int i = 0; i < 20000; i++) {
		CHECK_NOTE("case %d", i);
		survey_random(&seed);
	}
}
