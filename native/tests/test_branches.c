/* SPDX-License-Identifier: Apache-2.0 */
/** @file branches.c: which conditional branches can be counted, in which windows, and why not. */
#include <errno.h>
#include <stdlib.h>

#include "check.h"
#include "flags.h"
#include "textpoke.h"

#define BASE 0x1000
#define MOST 128

static struct tp_branches found;
static struct tp_function functions[2];
static const uint64_t *targets;
static uint64_t target_count;

/* Survey one function of these bytes, and NOPs behind it. */
static int find_with(const uint8_t *code, size_t bytes, uint32_t own, uint8_t flags)
{
	static uint8_t text[MOST + 64];
	const struct tp_piece piece = { BASE, text, sizeof(text) };
	const uint32_t first = 0;
	struct tp_survey survey = { .code = &piece,
				    .code_count = 1,
				    .targets = targets,
				    .target_count = target_count,
				    .functions = functions,
				    .function_count = 2 };

	memset(text, 0x90, sizeof(text));
	memcpy(text, code, bytes);
	functions[0] = (struct tp_function){ .vaddr = BASE, .bytes = own, .flags = flags };
	functions[1] = (struct tp_function){ .vaddr = BASE + MOST };
	tp_free_branches(&found);
	return tp_find_branches(&survey, &first, 1, &found);
}

#define FIND(...)                                                               \
	do {                                                                    \
		const uint8_t code_[] = { __VA_ARGS__ };                        \
		CHECK_EQ(find_with(code_, sizeof(code_), sizeof(code_), 0), 0); \
	} while (0)

static void check_window(uint64_t i, uint64_t at, uint8_t bytes, uint8_t heads, uint8_t count)
{
	if (!CHECK(i < found.window_count))
		return;
	CHECK_EQ(found.windows[i].vaddr, BASE + at);
	CHECK_EQ(found.windows[i].bytes, bytes);
	CHECK_EQ(found.windows[i].heads, heads);
	CHECK_EQ(found.windows[i].count, count);
}

static void check_refused(uint64_t i, enum tp_refusal reason)
{
	if (CHECK(i < found.count))
		CHECK_EQ(found.rows[i].reason, reason);
}

TEST(branches_of_six_bytes_are_windows_of_their_own)
{
	FIND(0x85, 0xc0, 0x0f, 0x84, 5, 0, 0, 0, 0x90, 0x90, 0x90, 0x90, 0x90, 0xc3);
	CHECK_EQ(found.count, 1);
	CHECK_EQ(found.rows[0].vaddr, BASE + 2);
	CHECK_EQ(found.rows[0].target, BASE + 13);
	CHECK_EQ(found.rows[0].length, 6);
	check_window(0, 2, 6, 0, 1);
}

TEST(branches_of_two_bytes_take_what_follows)
{
	/* je +6; mov; nops; ret */
	FIND(0x74, 6, 0x48, 0x89, 0xc8, 0x90, 0x90, 0x90, 0xc3);
	check_window(0, 0, 5, 1 << 2, 1);
}

TEST(branches_take_what_precedes_where_something_goes_behind_them)
{
	/* 0: nop; 1: cmp $1,%eax; 4: jne 6; 6: nop; 7: dec; 9: jne 6 */
	FIND(0x90, 0x83, 0xf8, 1, 0x75, 0, 0x90, 0xff, 0xc8, 0x75, 0xfb, 0xc3);
	CHECK_EQ(found.count, 2);
	check_window(0, 1, 5, 1 << 3, 1);
	check_window(1, 9, 5, 1 << 2, 1);
}

TEST(branches_behind_a_long_instruction_need_no_heads)
{
	/* cmp $imm32,%eax; je +3; mov; ret */
	FIND(0x3d, 1, 2, 3, 4, 0x74, 3, 0x48, 0x89, 0xc8, 0xc3);
	check_window(0, 0, 7, 0, 1);
}

TEST(branches_that_stand_together_share_a_window)
{
	/* jp +4; jne +2; mov %eax,%eax; ret */
	FIND(0x7a, 4, 0x75, 2, 0x89, 0xc0, 0xc3);
	CHECK_EQ(found.count, 2);
	CHECK_EQ(found.window_count, 1);
	check_window(0, 0, 6, 1 << 2 | 1 << 4, 2);
	CHECK_EQ(found.windows[0].first, 0);
}

TEST(branches_between_targets_are_refused)
{
	/* 0: jmp 2; 2: je 4; 4: jne 2; 6: ret: each is somebody's target */
	FIND(0xeb, 0, 0x74, 0, 0x75, 0xfc, 0xc3);
	CHECK_EQ(found.count, 2);
	check_refused(0, TP_REFUSE_BRANCH);
	check_window(0, 4, 5, 1 << 2, 1); /* jne, ret and padding: nothing goes there */
}

TEST(branches_before_a_call_take_it_as_the_last)
{
	FIND(0x74, 5, 0xe8, 0, 0, 0, 0, 0xc3); /* je; call: seven bytes */
	check_window(0, 0, 7, 1 << 2, 1);
	FIND(0x74, 2, 0xff, 0xd0, 0x90, 0xc3); /* je; call *%rax: four */
	check_refused(0, TP_REFUSE_CALL);
	FIND(0x83, 0xf8, 1, 0x74, 2, 0xff, 0xd0, 0x90, 0xc3); /* but cmp; je */
	check_window(0, 0, 5, 1 << 3, 1);
}

TEST(branches_before_system_calls_and_traps_are_refused)
{
	FIND(0x74, 2, 0x0f, 0x05, 0xc3);
	check_refused(0, TP_REFUSE_SYSCALL);
	FIND(0x74, 2, 0x0f, 0x0b, 0xc3);
	check_refused(0, TP_REFUSE_TRAP);
}

TEST(branches_with_pointers_behind_them_are_refused)
{
	const uint64_t pads[] = { BASE + 2 };

	targets = pads;
	target_count = 1;
	FIND(0x74, 6, 0x48, 0x89, 0xc8, 0x90, 0x90, 0x90, 0xc3);
	check_refused(0, TP_REFUSE_TABLE);
	target_count = 0;
}

TEST(branches_that_nothing_leads_to_are_refused)
{
	const uint8_t code[] = { 0xc3, 0x74, 3, 0x48, 0x89, 0xc8, 0xc3 };
	const uint64_t pads[] = { BASE + 1 };

	CHECK_EQ(find_with(code, sizeof(code), sizeof(code), 0), 0);
	check_refused(0, TP_REFUSE_UNREACHED);
	targets = pads;
	target_count = 1;
	CHECK_EQ(find_with(code, sizeof(code), sizeof(code), 0), 0);
	check_window(0, 1, 5, 1 << 2, 1);
	CHECK_EQ(find_with(code, sizeof(code), 0, 0), 0); /* where it ends is not known */
	check_refused(0, TP_REFUSE_UNREACHED);
	target_count = 0;
}

TEST(branches_of_a_function_with_an_unknown_table_change_alone)
{
	/* je +8; mov; add %rcx,%rax; jmp *%rax; ret */
	FIND(0x74, 8, 0x48, 0x89, 0xc8, 0x48, 0x01, 0xc8, 0xff, 0xe0, 0xc3);
	check_refused(0, TP_REFUSE_JUMPS);
	FIND(0x0f, 0x84, 5, 0, 0, 0, 0x48, 0x01, 0xc8, 0xff, 0xe0, 0xc3);
	check_window(0, 0, 6, 0, 1);
}

TEST(branches_end_with_the_code)
{
	FIND(0x85, 0xc0, 0x74, 0xfc, 0xc3); /* test; je; ret */
	check_window(0, 2, 5, 1 << 2, 1);
	FIND(0x85, 0xc0, 0x74, 0xfd); /* nothing known behind it, and a branch into the test */
	check_refused(0, TP_REFUSE_SHORT);
}

TEST(branches_may_end_in_the_padding_behind_a_function)
{
	const uint8_t code[] = { 0x74, 0xfe, 0xc3, 0xcc, 0x66, 0x90, 0x74, 0xfe, 0xc3, 0x00 };

	CHECK_EQ(find_with(code, sizeof(code), 3, 0), 0);
	check_window(0, 0, 5, 1 << 2, 1);
	CHECK_EQ(find_with(code + 6, 4, 3, 0), 0); /* zeros may be somebody's */
	check_refused(0, TP_REFUSE_SHORT);
}

TEST(branches_of_go_and_of_signal_trampolines_are_left_alone)
{
	const uint8_t code[] = { 0x74, 6, 0x48, 0x89, 0xc8, 0x90, 0x90, 0x90, 0xc3 };

	CHECK_EQ(find_with(code, sizeof(code), sizeof(code), TP_FUNCTION_GO), 0);
	check_refused(0, TP_REFUSE_GO);
	CHECK_EQ(find_with(code, sizeof(code), sizeof(code), TP_FUNCTION_SIGRETURN), 0);
	check_refused(0, TP_REFUSE_SIGRETURN);
	CHECK_EQ(find_with(code, sizeof(code), sizeof(code), TP_FUNCTION_COLD), 0);
	check_window(0, 0, 5, 1 << 2, 1);
}

TEST(branches_in_undecodable_code_are_refused)
{
	FIND(0x74, 3, 0x48, 0x89, 0xc8, 0x06, 0xc3); /* 06: no instruction in 64-bit mode */
	check_refused(0, TP_REFUSE_DECODE);
}

TEST(branches_tell_where_flags_are_looked_at)
{
	/* je +3; sete %al; xor %eax,%eax: live behind, dead at the target */
	FIND(0x74, 3, 0x0f, 0x94, 0xc0, 0x31, 0xc0, 0xc3);
	CHECK_EQ(found.rows[0].live, TP_LIVE_NOT_TAKEN);
	FIND(0x74, 5, 0x31, 0xc0, 0x90, 0x90, 0x90, 0x0f, 0x94, 0xc0, 0xc3);
	CHECK_EQ(found.rows[0].live, TP_LIVE_TAKEN);
	if (CHECK(found.window_count))
		CHECK_EQ(found.windows[0].live, TP_LIVE_TAKEN);
}

TEST(branches_of_functions_that_are_not_there_are_an_error)
{
	const uint32_t third = 2;
	const struct tp_survey survey = { .functions = functions, .function_count = 2 };

	tp_free_branches(&found);
	CHECK_EQ(tp_find_branches(&survey, &third, 1, &found), -EINVAL);
	tp_free_branches(&found);
}

static uint64_t next_random(uint64_t *seed)
{
	*seed ^= *seed << 13;
	*seed ^= *seed >> 7;
	*seed ^= *seed << 17;
	return *seed;
}

/* Bytes of which many are branches, with some of everything else. */
static void fill(uint8_t *code, size_t bytes, uint64_t *seed)
{
	static const uint8_t often[] = { 0x74, 0x75, 0x7f, 0xeb, 0x89, 0xc8, 0x85, 0xc0,
					 0xc3, 0x90, 0x0f, 0x84, 0x48, 0xe3, 0xe8, 0x00 };

	for (size_t i = 0; i < bytes; i++)
		code[i] = next_random(seed) % 4 ? often[next_random(seed) % sizeof(often)] :
						  (uint8_t)next_random(seed);
}

/* Every window lies in a function, behind the last, holds its branches, and can be moved. */
static void check_windows(const uint8_t *text, const struct tp_function *all)
{
	uint64_t end = 0;

	for (uint64_t i = 0; i < found.window_count; i++) {
		const struct tp_branch_window *window = &found.windows[i];
		struct tp_branch_site site = { .addr = window->vaddr,
					       .counters = BASE,
					       .bytes = window->bytes,
					       .live = window->live };
		const struct tp_branch *rows = &found.rows[window->first];
		struct tp_branch_stub stub;

		CHECK(window->vaddr >= end && window->bytes >= 5 && window->count);
		CHECK(window->bytes <= TP_MOST_BRANCH_WINDOW);
		CHECK(window->vaddr >= all[rows->function].vaddr);
		end = window->vaddr + window->bytes;
		for (unsigned int k = 0; k < window->count; k++) {
			CHECK_EQ(rows[k].reason, TP_REFUSE_NOTHING);
			CHECK(rows[k].vaddr >= window->vaddr && rows[k].vaddr < end);
			CHECK(rows[k].target - window->vaddr - 1 >= 4); /* not into the JMP */
		}
		memcpy(site.window, text + (window->vaddr - BASE), window->bytes);
		CHECK_EQ(tp_make_branch_stub(&site, BASE + 0x10000, &stub), 0);
		for (unsigned int k = 1; k < 5; k++)
			CHECK_EQ(!stub.head_at[k], !(window->heads >> k & 1));
	}
}

TEST(branches_of_random_code_make_sound_windows)
{
	enum { BYTES = 4096, FUNCTIONS = 24 };
	static uint8_t text[BYTES];
	uint64_t seed = 88172645463325252ull, windows = 0;

	for (int turn = 0; turn < 400; turn++) {
		struct tp_function all[FUNCTIONS] = { 0 };
		uint32_t indexes[FUNCTIONS];
		uint64_t pads[16], vaddr = BASE;
		const struct tp_piece piece = { BASE, text, BYTES - next_random(&seed) % 16 };
		struct tp_survey survey = { .code = &piece,
					    .code_count = 1,
					    .targets = pads,
					    .target_count = 16,
					    .functions = all,
					    .function_count = FUNCTIONS };

		CHECK_NOTE("turn %d", turn);
		fill(text, BYTES, &seed);
		for (int i = 0; i < 16; i++)
			pads[i] = BASE + next_random(&seed) % (BYTES + 64);
		for (uint32_t i = 0; i < FUNCTIONS; i++) {
			indexes[i] = i;
			all[i].vaddr = vaddr;
			all[i].bytes = next_random(&seed) % 300;
			all[i].flags = next_random(&seed) % 4 ? 0 : TP_FUNCTION_COLD;
			vaddr += 1 + next_random(&seed) % 250;
		}
		tp_free_branches(&found);
		if (!CHECK_EQ(tp_find_branches(&survey, indexes, FUNCTIONS, &found), 0))
			return;
		check_windows(text, all);
		windows += found.window_count;
	}
	tp_free_branches(&found);
	CHECK(windows > 1000);
}

static int dead(const char *code, size_t bytes)
{
	return tp_flags_are_dead((const uint8_t *)code, bytes);
}

#define DEAD(code) dead(code, sizeof(code) - 1)

TEST(flags_are_dead_once_all_are_written)
{
	CHECK(DEAD("\x85\xc0"));		      /* test */
	CHECK(DEAD("\x48\x89\xc8\x50\x83\xe8\x01"));  /* mov; push; sub */
	CHECK(DEAD("\xeb\x01\xf9\x39\xc8"));	      /* jmp over stc; cmp */
	CHECK(DEAD("\x66\x0f\x2e\xc1"));	      /* ucomisd */
	CHECK(!DEAD("\xff\xc0\x39\xc8"));	      /* inc keeps the carry */
	CHECK(!DEAD("\x83\xd0\x01"));		      /* adc */
	CHECK(!DEAD("\x19\xc0"));		      /* sbb */
	CHECK(!DEAD("\x0f\x94\xc0\x39\xc8"));	      /* sete */
	CHECK(!DEAD("\xc3"));			      /* ret: the caller may look */
	CHECK(!DEAD("\xe8\x00\x00\x00\x00\x39\xc8")); /* call */
	CHECK(!DEAD("\xd1\xe0"));		      /* a shift may write none */
	CHECK(!DEAD("\x9c\x39\xc8"));		      /* pushf */
	CHECK(!DEAD("\x48\x89\xc8"));		      /* the end */
	CHECK(!DEAD("\xeb\x7f\x39\xc8"));	      /* away */
	CHECK(!DEAD("\xeb\xfe"));
	CHECK(!DEAD(""));
}
