/* SPDX-License-Identifier: Apache-2.0 */
/** @file capture.c: operations on registers and memory that the test has made. */
#include <stdlib.h>
#include <sys/mman.h>
#include <unistd.h>

#include "agent.h"
#include "check.h"

enum { WORDS = 40, UNTOUCHED = 0x77 };

struct tpa_state tpa;

enum { TRAMPOLINE = 0x7000, BEHIND_IT = 0x401999 };

uint64_t tpa_final_return(uint64_t real)
{
	return real == TRAMPOLINE ? BEHIND_IT : real;
}

static const uint64_t untouched = UNTOUCHED * 0x0101010101010101ull;
static uint64_t words[WORDS];
static uint64_t stack[4] = { 0x401234, 11, 22, 33 };

static struct tpa_regs registers(void)
{
	struct tpa_regs regs = { .slot = (uint64_t)stack };

	for (uint32_t i = 0; i < 16; i++)
		regs.gpr[i] = 1000 + i;
	for (uint32_t i = 0; i < 8; i++)
		regs.xmm[i] = 2000 + i;
	return regs;
}

static uint32_t run_in(const struct tp_capture_op *ops, uint32_t count, const struct tpa_regs *regs,
		       uint32_t room, bool may_read)
{
	tpa.pid = getpid();
	memset(words, UNTOUCHED, sizeof(words));
	return tpa_capture(ops, count, regs, may_read, words, room);
}

static uint32_t run(const struct tp_capture_op *ops, uint32_t count, const struct tpa_regs *regs)
{
	return run_in(ops, count, regs, WORDS, true);
}

static uint64_t one(struct tp_capture_op op, const struct tpa_regs *regs)
{
	CHECK_EQ(run(&op, 1, regs), 1);
	CHECK_EQ(words[1], untouched);
	return words[0];
}

/* Two pages, the second one without any access: its address. */
static char *edge(void)
{
	char *pages = mmap(NULL, 2 * TP_PAGE_BYTES, PROT_READ | PROT_WRITE,
			   MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

	CHECK(pages != MAP_FAILED);
	CHECK(!mprotect(pages + TP_PAGE_BYTES, TP_PAGE_BYTES, PROT_NONE));
	return pages + TP_PAGE_BYTES;
}

TEST(issue_5_registers_are_counted_as_dwarf_counts_them)
{
	struct tpa_regs regs = registers();

	CHECK_EQ((char *)&regs.rdx - (char *)&regs, 8);
	CHECK_EQ((char *)&regs.rdi - (char *)&regs, 40);
	CHECK_EQ((char *)&regs.r8 - (char *)&regs, 64);
	for (uint8_t i = 0; i < 16; i++)
		CHECK_EQ(
			one((struct tp_capture_op){ .source = TP_CAPTURE_GPR, .number = i }, &regs),
			1000 + i);
	for (uint8_t i = 0; i < 8; i++)
		CHECK_EQ(
			one((struct tp_capture_op){ .source = TP_CAPTURE_XMM, .number = i }, &regs),
			2000 + i);
}

TEST(issue_5_stack_words_follow_the_return_address)
{
	struct tpa_regs regs = registers();
	struct tp_capture_op op = { .source = TP_CAPTURE_STACK,
				    .what = TP_CAPTURE_LOAD,
				    .size = 8 };

	for (op.number = 0; op.number < 3; op.number++)
		CHECK_EQ(one(op, &regs), 11 * (op.number + 1));
	CHECK_EQ(one((struct tp_capture_op){ .source = TP_CAPTURE_CALLER }, &regs), 0x401234);
	stack[0] = TRAMPOLINE; /* of a function that has left by a jump */
	CHECK_EQ(one((struct tp_capture_op){ .source = TP_CAPTURE_CALLER }, &regs), BEHIND_IT);
	stack[0] = 0x401234;
	op = (struct tp_capture_op){ .source = TP_CAPTURE_STACK, .number = 1 };
	CHECK_EQ(one(op, &regs), (int64_t)(stack + 2));
}

TEST(issue_5_fields_are_cut_out_with_their_sign)
{
	struct tpa_regs regs = registers();
	struct tp_capture_op op = { .source = TP_CAPTURE_GPR, .number = 5 };

	regs.rdi = 0x1234567890abcdefull;
	op.width = 8;
	CHECK_EQ(one(op, &regs), 0xef);
	op.flags = TP_CAPTURE_SIGNED;
	CHECK_EQ(one(op, &regs), -17);
	op.shift = 60;
	op.width = 4;
	CHECK_EQ(one(op, &regs), 1);
	op.shift = 32;
	op.width = 32;
	CHECK_EQ(one(op, &regs), 0x12345678);
	op.shift = 4;
	op.width = 3;
	CHECK_EQ(one(op, &regs), -2);
	op.shift = 1;
	op.width = 64; /* more than there is */
	op.flags = 0;
	CHECK_EQ(one(op, &regs), 0x1234567890abcdefull >> 1);
}

TEST(issue_5_pointers_are_followed_with_offsets_of_both_signs)
{
	struct tpa_regs regs = registers();
	struct node {
		int64_t before;
		struct node *next;
		int32_t value;
	} last = { -5, NULL, -42 }, middle = { 0, &last, 1 }, first = { 0, &middle, 2 };
	struct tp_capture_op op = {
		.source = TP_CAPTURE_GPR,
		.number = 5,
		.loads = 2,
		.what = TP_CAPTURE_LOAD,
		.size = 4,
		.flags = TP_CAPTURE_SIGNED,
		.width = 32,
		.offsets = { 8, 8, 16 },
	};

	regs.rdi = (uint64_t)&first;
	CHECK_EQ(one(op, &regs), -42);
	op.what = TP_CAPTURE_VALUE;
	op.width = 64;
	CHECK_EQ(one(op, &regs), (int64_t)&last + 16);
	op.what = TP_CAPTURE_LOAD;
	op.size = 8;
	op.offsets[0] = 0; /* &middle - 8 as a pointer to a pointer */
	first.before = (int64_t)&middle;
	CHECK_EQ(one(op, &regs), *(int64_t *)&last.value);
	regs.rdi = (uint64_t)&first + 24;
	op.offsets[0] = -16;
	op.offsets[2] = 0;
	CHECK_EQ(one(op, &regs), -5);
}

TEST(issue_5_bad_pointers_give_zero_and_spoil_nothing_else)
{
	const uint64_t bad[] = { 0, 8, 0x7fffffffffff, 1ull << 63, ~0ull, (uint64_t)edge() };
	struct tp_capture_op ops[4] = {
		{ .source = TP_CAPTURE_GPR, .number = 5, .what = TP_CAPTURE_LOAD, .size = 8 },
		{ .source = TP_CAPTURE_GPR, .number = 4 },
		{ .source = TP_CAPTURE_GPR, .number = 5, .what = TP_CAPTURE_STRING, .bytes = 24 },
		{ .source = TP_CAPTURE_GPR, .number = 1 },
	};
	struct tpa_regs regs = registers();

	for (size_t i = 0; i < sizeof(bad) / sizeof(*bad); i++) {
		CHECK_NOTE("pointer 0x%" PRIx64, bad[i]);
		regs.rdi = bad[i];
		ops[0].loads = i % 3;
		CHECK_EQ(run(ops, 4, &regs), 6);
		CHECK_EQ(words[0], 0);
		CHECK_EQ(words[1], 1004);
		CHECK(!strcmp((char *)(words + 2), "<fault>"));
		CHECK_EQ(words[3] | words[4], 0);
		CHECK_EQ(words[5], 1001);
	}
	regs.rdi = bad[5] - 4; /* half of it is there */
	ops[0].loads = 0;
	CHECK_EQ(run(ops, 2, &regs), 2);
	CHECK_EQ(words[0], 0);
	CHECK_EQ(words[1], 1004);
}

TEST(issue_5_a_string_may_end_right_before_a_page_that_is_not_there)
{
	struct tpa_regs regs = registers();
	struct tp_capture_op op = {
		.source = TP_CAPTURE_GPR, .number = 5, .what = TP_CAPTURE_STRING, .bytes = 32
	};
	char *end = edge(), *text = (char *)words;

	memcpy(end - 6, "hello", 6);
	regs.rdi = (uint64_t)end - 6;
	CHECK_EQ(run(&op, 1, &regs), 4);
	CHECK(!strcmp(text, "hello"));
	end[-1] = '!'; /* and without its end */
	CHECK_EQ(run(&op, 1, &regs), 4);
	CHECK(!strcmp(text, "hello!"));
	CHECK_EQ(words[4], untouched);
	memcpy(end - TP_PAGE_BYTES, "ab", 3);
	regs.rdi = (uint64_t)end - TP_PAGE_BYTES;
	CHECK_EQ(run(&op, 1, &regs), 4);
	CHECK(!memcmp(text, "ab\0\0\0\0\0\0\0\0\0", 11));
}

TEST(issue_5_a_string_crosses_pages_and_is_cut_at_its_bytes)
{
	struct tpa_regs regs = registers();
	char *pages = mmap(NULL, 2 * TP_PAGE_BYTES, PROT_READ | PROT_WRITE,
			   MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	char *text = pages + TP_PAGE_BYTES - 100;
	struct tp_capture_op op = {
		.source = TP_CAPTURE_GPR, .number = 4, .what = TP_CAPTURE_STRING, .offsets = { 3 }
	};

	for (int i = 0; i < 300; i++)
		text[i] = (char)('a' + i % 26);
	regs.rsi = (uint64_t)text - 3;
	for (uint16_t bytes = 0; bytes < 300; bytes++) {
		uint32_t kept = bytes < TP_CAPTURE_MOST_BYTES ? bytes : TP_CAPTURE_MOST_BYTES;

		CHECK_NOTE("%u bytes", bytes);
		op.bytes = bytes;
		CHECK_EQ(run(&op, 1, &regs), (kept + 7) / 8);
		CHECK_BYTES(words, text, kept);
		for (uint32_t i = kept; i < (kept + 7) / 8 * 8; i++)
			CHECK(!((char *)words)[i]);
	}
}

TEST(issue_5_nothing_is_read_through_pointers_where_a_filter_may_forbid_it)
{
	static const uint64_t elsewhere[1024] = { 7 };
	static char text[TP_PAGE_BYTES] = "text";
	struct tpa_regs regs = registers();
	struct tp_capture_op ops[4] = {
		{ .source = TP_CAPTURE_GPR, .number = 5, .what = TP_CAPTURE_LOAD, .size = 8 },
		{ .source = TP_CAPTURE_GPR, .number = 4, .what = TP_CAPTURE_STRING, .bytes = 8 },
		{ .source = TP_CAPTURE_STACK, .what = TP_CAPTURE_LOAD, .size = 8 },
		{ .source = TP_CAPTURE_GPR, .number = 1 },
	};
	uint64_t frame[1024];

	memset(frame, 5, sizeof(frame));
	regs.slot = ((uint64_t)frame + TP_PAGE_BYTES / 2) & -64ull;
	if (regs.slot % TP_PAGE_BYTES > TP_PAGE_BYTES - 64) /* its page ends too soon */
		regs.slot -= 64;
	regs.rdi = (uint64_t)&elsewhere[8];
	regs.rsi = (uint64_t)text;
	CHECK_EQ(run_in(ops, 4, &regs, WORDS, false), 4);
	CHECK_EQ(words[0], 0);
	CHECK(!strcmp((char *)(words + 1), "<fault>"));
	CHECK_EQ(words[2], frame[0]);
	CHECK_EQ(words[3], 1001);
}

TEST(issue_5_values_that_have_no_room_are_left_out)
{
	struct tpa_regs regs = registers();
	struct tp_capture_op ops[3] = {
		{ .source = TP_CAPTURE_GPR },
		{ .source = TP_CAPTURE_STACK, .what = TP_CAPTURE_STRING, .bytes = 17 },
		{ .source = TP_CAPTURE_GPR },
	};
	const uint32_t used[] = { 0, 1, 1, 1, 4, 5, 5 };

	for (uint32_t room = 0; room < 7; room++) {
		CHECK_EQ(run_in(ops, 3, &regs, room, true), used[room]);
		CHECK_EQ(words[used[room]], untouched);
	}
}

/* Whatever the shared memory holds. */
TEST(issue_5_senseless_operations_harm_nobody)
{
	struct tpa_regs regs = registers();
	struct tp_capture_op op;
	unsigned int seed = 5;

	for (uint32_t i = 0; i < 200000; i++) {
		for (size_t k = 0; k < sizeof(op); k++)
			((uint8_t *)&op)[k] = (uint8_t)rand_r(&seed);
		regs.gpr[i % 16] = rand_r(&seed) % 2 ? (uint64_t)&seed : regs.gpr[i % 16] * 77;
		CHECK(run(&op, 1, &regs) <= TP_CAPTURE_MOST_BYTES / 8);
	}
}

/* Values that are read together are each their own, in whatever order, also where blocks end. */
TEST(issue_5_neighbours_are_read_together_and_stay_apart)
{
	static uint8_t bytes[2048] __attribute__((aligned(128)));
	struct tpa_regs regs = registers();
	struct tp_capture_op ops[TP_CAPTURE_MOST_OPS];
	unsigned int seed = 7;

	for (size_t i = 0; i < sizeof(bytes); i++)
		bytes[i] = (uint8_t)rand_r(&seed);
	regs.rdi = (uint64_t)bytes;
	for (uint32_t round = 0; round < 500; round++) {
		for (uint32_t i = 0; i < TP_CAPTURE_MOST_OPS; i++)
			ops[i] = (struct tp_capture_op){ .source = TP_CAPTURE_GPR,
							 .number = 5,
							 .what = TP_CAPTURE_LOAD,
							 .size = (uint8_t)(1u << i % 4),
							 .offsets = { rand_r(&seed) % 2040 } };
		CHECK_EQ(run(ops, TP_CAPTURE_MOST_OPS, &regs), TP_CAPTURE_MOST_OPS);
		for (uint32_t i = 0; i < TP_CAPTURE_MOST_OPS; i++) {
			uint64_t value = 0;

			memcpy(&value, bytes + ops[i].offsets[0], ops[i].size);
			CHECK_EQ(words[i], value);
		}
	}
}
