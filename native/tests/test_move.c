/* SPDX-License-Identifier: Apache-2.0 */
/** @file move.c: the bytes of moved windows, what is refused, and moved code that runs. */
#include <errno.h>
#include <stdlib.h>
#include <sys/mman.h>

#include "check.h"
#include "textpoke.h"

#define FROM 0x401000ull
#define TO 0x501000ull
#define HIGH 0x7f1122334000ull
#define MOST_BYTES 128

struct bytes {
	uint8_t bytes[MOST_BYTES];
	size_t count;
};

static struct bytes read_hex(const char *text)
{
	struct bytes read = { .count = 0 };
	unsigned int byte;
	int used;

	for (; sscanf(text, "%2x%n", &byte, &used) == 1; text += used)
		read.bytes[read.count++] = (uint8_t)byte;
	return read;
}

/* From a heap block of exactly the window, so that the sanitizer sees a read past it. */
static int move_exact(const struct bytes *window, uint64_t from, uint64_t to, struct tp_moved *out)
{
	uint8_t *exact = malloc(window->count ? window->count : 1);
	int err;

	memcpy(exact, window->bytes, window->count);
	err = tp_move_window(exact, window->count, from, to, out);
	free(exact);
	return err;
}

static void check_bytes(const struct tp_moved *moved, const char *expected)
{
	struct bytes wanted = read_hex(expected);

	CHECK_EQ(moved->bytes, wanted.count);
	for (size_t i = 0; i < wanted.count && i < moved->bytes; i++) {
		CHECK_NOTE("%s, byte %zu", expected, i);
		CHECK_EQ(moved->code[i], wanted.bytes[i]);
	}
}

static struct tp_moved check_move_at(uint64_t from, uint64_t to, const char *window,
				     const char *expected)
{
	struct bytes code = read_hex(window);
	struct tp_moved moved;

	memset(&moved, 0xee, sizeof(moved));
	CHECK_NOTE("%s", window);
	CHECK_EQ(move_exact(&code, from, to, &moved), 0);
	check_bytes(&moved, expected);
	return moved;
}

static struct tp_moved check_move(const char *window, const char *expected)
{
	return check_move_at(FROM, TO, window, expected);
}

static void check_refused_at(uint64_t from, uint64_t to, const char *window, int err)
{
	struct bytes code = read_hex(window);
	struct tp_moved moved;

	CHECK_NOTE("%s", window);
	CHECK_EQ(move_exact(&code, from, to, &moved), err);
}

static void check_refused(const char *window)
{
	check_refused_at(FROM, TO, window, -EINVAL);
}

TEST(design_what_does_not_depend_on_its_place_is_copied_and_a_jmp_leads_back)
{
	/* The jmp is at TO + 8, ends at TO + 13 and goes to FROM + 8: -0x100005. */
	check_move("55 48 89 e5 48 83 ec 10", "55 48 89 e5 48 83 ec 10 e9 fb ff ef ff");
	check_move("f3 0f 1e fa 90", "f3 0f 1e fa 90 e9 fb ff ef ff");
}

TEST(design_the_last_instruction_of_a_window_may_be_long)
{
	check_move("55 48 89 e5 64 48 c7 84 24 11 22 33 44 01 02 03 04",
		   "55 48 89 e5 64 48 c7 84 24 11 22 33 44 01 02 03 04 e9 fb ff ef ff");
	check_move("90 90 90 90 2e 2e 64 48 81 04 25 11 22 33 44 01 02 03 04",
		   "90 90 90 90 2e 2e 64 48 81 04 25 11 22 33 44 01 02 03 04 e9 fb ff ef ff");
}

TEST(design_rip_relative_operands_point_where_they_pointed)
{
	check_move("48 8b 05 10 00 00 00", "48 8b 05 10 00 f0 ff e9 fb ff ef ff");
	check_move("48 8d 3d f9 ff ff ff", "48 8d 3d f9 ff ef ff e9 fb ff ef ff"); /* FROM itself */
	check_move("55 c6 05 10 00 00 00 77", "55 c6 05 10 00 f0 ff 77 e9 fb ff ef ff");
	check_move("81 05 10 00 00 00 01 02 03 04", "81 05 10 00 f0 ff 01 02 03 04 e9 fb ff ef ff");
	check_move("66 81 05 10 00 00 00 01 02", "66 81 05 10 00 f0 ff 01 02 e9 fb ff ef ff");
	check_move("f7 05 10 00 00 00 01 02 03 04", "f7 05 10 00 f0 ff 01 02 03 04 e9 fb ff ef ff");
	check_move("c5 f9 70 05 10 00 00 00 1b", "c5 f9 70 05 10 00 f0 ff 1b e9 fb ff ef ff");
	check_move("0f 0f 05 10 00 00 00 bf", "0f 0f 05 10 00 f0 ff bf e9 fb ff ef ff");
	check_move("64 8b 05 10 00 00 00", "64 8b 05 10 00 f0 ff e9 fb ff ef ff");
}

TEST(design_near_branches_become_rel32)
{
	/* jcc: from TO + 6 to FROM + 2 + 0x10. */
	check_move("74 10 90 90 90", "0f 84 0c 00 f0 ff 90 90 90 e9 f7 ff ef ff");
	check_move("0f 8f 10 00 00 00", "0f 8f 10 00 f0 ff e9 fb ff ef ff");
	check_move("3e 7f 10 90 90", "0f 8f 0d 00 f0 ff 90 90 e9 f8 ff ef ff");
	check_move("eb 10 cc cc cc", "e9 0d 00 f0 ff");
	check_move("e9 10 00 00 00", "e9 10 00 f0 ff");
	check_move("f2 e9 10 00 00 00", "e9 11 00 f0 ff");
	check_move("90 90 90 eb 10", "90 90 90 e9 0d 00 f0 ff");
	check_move("66 48 e9 10 00 00 00", "e9 12 00 f0 ff");
}

TEST(design_loops_and_jrcxz_go_over_a_jmp_and_keep_their_67)
{
	check_move("e2 10 90 90 90", "e2 02 eb 05 e9 09 00 f0 ff 90 90 90 e9 f4 ff ef ff");
	check_move("e0 10 90 90 90", "e0 02 eb 05 e9 09 00 f0 ff 90 90 90 e9 f4 ff ef ff");
	check_move("e1 10 90 90 90", "e1 02 eb 05 e9 09 00 f0 ff 90 90 90 e9 f4 ff ef ff");
	check_move("67 e3 10 90 90", "67 e3 02 eb 05 e9 09 00 f0 ff 90 90 e9 f4 ff ef ff");
}

TEST(design_a_branch_to_the_first_byte_stays_one_and_one_to_the_interior_is_refused)
{
	check_move("74 fe 90 90 90", "0f 84 fa ff ef ff 90 90 90 e9 f7 ff ef ff");
	check_move("90 90 90 eb fb", "90 90 90 e9 f8 ff ef ff");
	check_move("74 03 90 90 90", "0f 84 ff ff ef ff 90 90 90 e9 f7 ff ef ff"); /* to its end */
	check_refused("74 00 90 90 90");
	check_refused("74 02 90 90 90");
	check_refused("90 90 90 eb fc");
	check_refused("90 e2 fe 90 90");
	check_refused("90 90 90 e8 f9 ff ff ff");
	check_refused("eb 01 cc cc cc"); /* into its padding */
}

TEST(design_an_operand_inside_the_window_is_refused_because_those_bytes_change)
{
	check_refused("48 8d 05 fa ff ff ff");
	check_refused("8b 05 ff ff ff ff");
	check_move("48 8d 05 00 00 00 00", "48 8d 05 00 00 f0 ff e9 fb ff ef ff");
}

TEST(design_what_follows_a_terminator_is_padding)
{
	check_move("c3 cc cc cc cc", "c3");
	check_move("f3 c3 0f 1f 00", "f3 c3");
	check_move("31 c0 c3 06 06", "31 c0 c3");
	check_move("c2 08 00 66 90", "c2 08 00");
	check_move("ff e0 66 66 90", "ff e0");
	check_move("3e ff e0 66 90", "3e ff e0");
	check_move("ff 25 10 00 00 00", "ff 25 10 00 f0 ff");
	check_move("90 ff 24 c5 11 22 33 44", "90 ff 24 c5 11 22 33 44");
	check_move("f3 0f 1e fa eb 10 cc", "f3 0f 1e fa e9 0d 00 f0 ff");
}

TEST(design_a_last_call_pushes_the_original_return_address)
{
	/* 0x401005, then jmp from TO + 10 to FROM + 5 + 0x10. */
	check_move("e8 10 00 00 00", "68 05 10 40 00 e9 0b 00 f0 ff");
	check_move("e8 fb ff ff ff", "68 05 10 40 00 e9 f6 ff ef ff"); /* itself */
	check_move("e8 00 00 00 00", "68 05 10 40 00 e9 fb ff ef ff"); /* its own return address */
	check_move("66 66 48 e8 10 00 00 00", "68 08 10 40 00 e9 0e 00 f0 ff");
	check_move_at(HIGH, HIGH + 0x100000, "53 e8 10 00 00 00",
		      "53 68 06 40 33 22 c7 44 24 04 11 7f 00 00 e9 03 00 f0 ff");
	/* Bit 31 would be drawn up into the high half. */
	check_move_at(0x80000000, 0x80100000, "e8 10 00 00 00",
		      "68 05 00 00 80 c7 44 24 04 00 00 00 00 e9 03 00 f0 ff");
	check_move_at(0xffffffff80000000, 0xffffffff80100000, "e8 10 00 00 00",
		      "68 05 00 00 80 e9 0b 00 f0 ff");
}

TEST(design_a_last_indirect_call_becomes_the_same_jmp)
{
	check_move("55 48 89 e5 ff d0", "55 48 89 e5 68 06 10 40 00 ff e0");
	check_move("55 48 89 e5 41 ff d4", "55 48 89 e5 68 07 10 40 00 41 ff e4");
	check_move("41 ff 54 24 08", "68 05 10 40 00 41 ff 64 24 08");
	check_move("ff 15 10 00 00 00", "68 06 10 40 00 ff 25 0b 00 f0 ff");
	check_move("3e ff 14 c5 11 22 33 44", "68 08 10 40 00 3e ff 24 c5 11 22 33 44");
	check_move("64 ff 14 25 10 00 00 00", "68 08 10 40 00 64 ff 24 25 10 00 00 00");
	check_move("90 66 48 ff d0", "90 68 05 10 40 00 66 48 ff e0");
	check_move_at(HIGH, HIGH + 0x100000, "ff 90 11 22 33 44",
		      "68 06 40 33 22 c7 44 24 04 11 7f 00 00 ff a0 11 22 33 44");
}

TEST(design_calls_that_cannot_be_made_from_elsewhere_are_refused)
{
	check_refused("e8 10 00 00 00 90"); /* its return address is no longer code */
	check_refused("ff d0 90 90 90");
	check_refused("90 ff 54 24 08"); /* relative to a stack that is pushed first */
	check_refused("90 90 ff 14 24");
	check_refused("90 90 ff 54 c4 08");
	check_refused("90 90 90 ff d4");
	check_refused("ff 1d 10 00 00 00"); /* far */
	check_refused("90 90 90 ff 18");
	check_refused("90 90 66 ff d0"); /* AMD's processors push two bytes */
	check_refused("66 e8 10 00 00 00");
	check_refused("67 ff 15 10 00 00 00");
}

TEST(design_other_instructions_that_do_not_move_are_refused)
{
	check_refused("0f 05 90 90 90");
	check_refused("90 0f 34 90 90");
	check_refused("cd 80 90 90 90");
	check_refused("f1 90 90 90 90");
	check_refused("c7 f8 10 00 00 00");
	check_refused("cc 90 90 90 90");
	check_refused("90 90 90 0f 0b");
	check_refused("90 90 90 90 f4");
	check_refused("06 90 90 90 90");
	check_refused("67 8b 05 10 00 00 00");
	check_refused("66 eb 10 90 90");
	check_refused("66 74 10 90 90");
	check_refused("66 e2 10 90 90");
}

TEST(design_a_window_is_1_to_19_bytes_of_whole_instructions)
{
	check_refused("");
	check_refused("48 8b");
	check_refused("90 90 90 90 48 8b");
	check_refused("90 90 90 90 90 90 90 90 90 90 90 90 90 90 90 90 90 90 90 90");
	check_move("90 90 90 90 90 90 90 90 90 90 90 90 90 90 90 90 90 90 90",
		   "90 90 90 90 90 90 90 90 90 90 90 90 90 90 90 90 90 90 90 e9 fb ff ef ff");
	check_move("c3", "c3");
	check_move("55", "55 e9 fb ff ef ff");
	check_move("ff d0", "68 02 10 40 00 ff e0");
	check_move("74 fe", "0f 84 fa ff ef ff e9 f7 ff ef ff");
}

TEST(design_a_target_that_32_bits_do_not_reach_is_out_of_range)
{
	const uint64_t far = HIGH + 0x100000000;
	struct bytes nops = read_hex("90 90 90 90 90");
	struct tp_moved moved;

	check_refused_at(HIGH, far, "90 90 90 90 90", -ERANGE);
	check_refused_at(HIGH, far, "48 8b 05 10 00 00 00 c3", -ERANGE);
	check_refused_at(HIGH, far, "74 10 90 90 90", -ERANGE);
	check_refused_at(HIGH, far, "e2 10 90 90 90", -ERANGE);
	check_refused_at(HIGH, far, "eb 10 90 90 90", -ERANGE);
	check_refused_at(HIGH, far, "e8 10 00 00 00", -ERANGE);
	check_refused_at(HIGH, far, "ff 15 10 00 00 00", -ERANGE);
	check_move_at(HIGH, far, "31 c0 c3 90 90", "31 c0 c3");
	CHECK_EQ(move_exact(&nops, HIGH, HIGH + 0x7ffffffb, &moved), 0);
	CHECK_EQ(move_exact(&nops, HIGH, HIGH + 0x7ffffffc, &moved), -ERANGE);
	CHECK_EQ(move_exact(&nops, HIGH, HIGH - 0x80000004, &moved), 0);
	CHECK_EQ(move_exact(&nops, HIGH, HIGH - 0x80000005, &moved), -ERANGE);
}

static void check_heads(const char *window, const uint8_t heads[8])
{
	struct bytes code = read_hex(window);
	struct tp_moved moved;

	memset(&moved, 0xee, sizeof(moved));
	CHECK_EQ(move_exact(&code, FROM, TO, &moved), 0);
	for (unsigned int i = 0; i < 8; i++) {
		CHECK_NOTE("%s, head %u", window, i);
		CHECK_EQ(moved.head_at[i], heads[i]);
	}
}

TEST(design_heads_are_where_the_instructions_of_the_first_five_bytes_went)
{
	check_heads("55 48 89 e5 ff d0", (const uint8_t[8]){ 0, 1, 0, 0, 4 });
	check_heads("e2 10 90 90 90", (const uint8_t[8]){ 0, 0, 9, 10, 11 });
	check_heads("74 10 48 89 e5", (const uint8_t[8]){ 0, 0, 6 });
	check_heads("90 90 e8 10 00 00 00", (const uint8_t[8]){ 0, 1, 2 });
	check_heads("90 c3 90 90 90", (const uint8_t[8]){ 0, 1 });
	check_heads("48 8d 05 10 00 00 00", (const uint8_t[8]){ 0 });
	check_heads("55 48 89 e5 53 90 90", (const uint8_t[8]){ 0, 1, 0, 0, 4 });
}

TEST(design_the_longest_moved_code_fits)
{
	static const char *const windows[] = {
		"e2 40 e2 40 e2 40 e2 40 e2 40 e2 40 e2 40 e2 40 e2 40 90",
		"e2 40 e2 40 e2 40 e2 40 e2 40 e2 40 e2 40 e2 40 41 ff d0",
		"67 e2 40 67 e2 40 67 e2 40 67 e2 40 67 e2 40 67 e2 40 90",
		"74 40 74 40 74 40 74 40 74 40 74 40 74 40 e8 40 00 00 00",
	};
	struct tp_moved moved;

	for (size_t i = 0; i < sizeof(windows) / sizeof(*windows); i++) {
		struct bytes code = read_hex(windows[i]);

		CHECK_NOTE("%s", windows[i]);
		CHECK_EQ(move_exact(&code, HIGH, HIGH + 0x100000, &moved), 0);
		CHECK(moved.bytes <= TP_MOST_MOVED);
	}
}

/* What a function of ours leaves in rax and rdx. */
struct result {
	uint64_t rax, rdx;
};

typedef struct result (*function)(uint64_t rdi, uint64_t rsi, uint64_t rdx, uint64_t rcx);

enum { PLACES_BYTES = 1 << 20, MOVED_AT = PLACES_BYTES / 2, CALLEE_AT = 0x40, POINTER_AT = 0x80 };

/* Memory for a function and its moved code; @flags says how high. */
static uint8_t *open_places(int flags)
{
	uint8_t *places = mmap(NULL, PLACES_BYTES, PROT_READ | PROT_WRITE | PROT_EXEC,
			       MAP_PRIVATE | MAP_ANONYMOUS | flags, -1, 0);

	CHECK(places != MAP_FAILED);
	return places;
}

static void set_function(uint8_t *places, const char *hex, uint64_t window_bytes)
{
	struct bytes code = read_hex(hex);
	struct tp_moved moved;

	CHECK_NOTE("%s", hex);
	memcpy(places, code.bytes, code.count);
	CHECK_EQ(tp_move_window(places, window_bytes, (uintptr_t)places,
				(uintptr_t)places + MOVED_AT, &moved),
		 0);
	memcpy(places + MOVED_AT, moved.code, moved.bytes);
}

/* The function and its moved code, called alike. */
static struct result check_alike(uint8_t *places, uint64_t rdx, uint64_t rcx)
{
	struct result original = ((function)places)(1, 2, rdx, rcx);
	struct result moved = ((function)(places + MOVED_AT))(1, 2, rdx, rcx);

	CHECK_EQ(moved.rax, original.rax);
	CHECK_EQ(moved.rdx, original.rdx);
	return moved;
}

static void set_condition(char *hex, const char *pattern, unsigned int condition)
{
	strcpy(hex, pattern);
	*strchr(hex, '?') = "0123456789abcdef"[condition];
}

/* What "cmp" makes different flags of. */
static const uint64_t pairs[][2] = { { 0, 0 },		{ 1, 2 },     { 2, 1 },
				     { ~0ull, 1 },	{ 1, ~0ull }, { 1ull << 63, 1 },
				     { 1, 1ull << 63 }, { 3, 0 } };
enum { PAIRS = sizeof(pairs) / sizeof(*pairs) };

TEST(design_moved_conditions_branch_as_they_did)
{
	uint8_t *places = open_places(0);
	char hex[256];

	for (unsigned int turn = 0; turn < 32; turn++) {
		/* cmp %rdx, %rcx; jcc; mov $1, %eax; ret; mov $2, %eax; ret */
		set_condition(hex,
			      turn < 16 ? "48 39 d1 7? 06 b8 01 00 00 00 c3 b8 02 00 00 00 c3" :
					  "48 39 d1 0f 8? 06 00 00 00 b8 01 00 00 00 c3 "
					  "b8 02 00 00 00 c3",
			      turn % 16);
		set_function(places, hex, turn < 16 ? 5 : 9);
		for (size_t i = 0; i < PAIRS; i++)
			check_alike(places, pairs[i][0], pairs[i][1]);
	}
	munmap(places, PLACES_BYTES);
}

TEST(design_moved_loops_count_and_branch_as_they_did)
{
	static const uint64_t counts[] = { 0, 1, 2, 0x100, 0x101, 0x100000000, 0x100000001 };
	uint8_t *places = open_places(0);
	char hex[256];

	for (unsigned int turn = 0; turn < 8; turn++) {
		/* test %cl, %cl; loop; then 1 or 2, and the count. */
		set_condition(hex,
			      turn < 4 ? "84 c9 e? 0a 90 b8 01 00 00 00 48 89 ca c3 "
					 "b8 02 00 00 00 48 89 ca c3" :
					 "84 c9 67 e? 09 b8 01 00 00 00 48 89 ca c3 "
					 "b8 02 00 00 00 48 89 ca c3",
			      turn % 4);
		set_function(places, hex, 5);
		for (size_t i = 0; i < sizeof(counts) / sizeof(*counts); i++)
			check_alike(places, 0, counts[i]);
	}
	munmap(places, PLACES_BYTES);
}

/* pushfq; pop %rax; mov (%rsp), %rdx; ret: flags and return address as the callee sees them. */
static void set_callee(uint8_t *places)
{
	struct bytes callee = read_hex("9c 58 48 8b 14 24 c3");
	uint64_t address = (uintptr_t)places + CALLEE_AT;

	memcpy(places + CALLEE_AT, callee.bytes, callee.count);
	memcpy(places + POINTER_AT, &address, sizeof(address));
}

TEST(design_moved_calls_push_the_original_return_address_and_keep_flags)
{
	/* cmp %rdx, %rcx; the call; ret */
	static const struct {
		const char *hex;
		uint64_t window_bytes;
	} calls[] = {
		{ "48 39 d1 e8 38 00 00 00 c3", 8 },
		{ "48 39 d1 48 8d 05 36 00 00 00 ff d0 c3", 12 },	/* *%rax */
		{ "48 39 d1 ff 15 77 00 00 00 c3", 9 },			/* *pointer(%rip) */
		{ "48 39 d1 4c 8d 1d 76 00 00 00 41 ff 53 00 c3", 14 }, /* *0(%r11) */
	};
	static const int places_flags[] = { 0, MAP_32BIT };

	for (size_t turn = 0; turn < 8; turn++) {
		uint8_t *places = open_places(places_flags[turn % 2]);

		set_callee(places);
		set_function(places, calls[turn / 2].hex, calls[turn / 2].window_bytes);
		for (size_t i = 0; i < PAIRS; i++) {
			struct result result = check_alike(places, pairs[i][0], pairs[i][1]);

			CHECK_EQ(result.rdx, (uintptr_t)places + calls[turn / 2].window_bytes);
		}
		munmap(places, PLACES_BYTES);
	}
}

TEST(design_moved_operands_read_what_they_read)
{
	uint8_t *places = open_places(0);

	set_callee(places);
	set_function(places, "48 8b 05 79 00 00 00 48 8d 15 39 00 00 00 c3", 14);
	CHECK_EQ(check_alike(places, 0, 0).rax, (uintptr_t)places + CALLEE_AT);
	/* cmpq $0, pointer(%rip): an immediate stands behind the displacement; sete %al */
	set_function(places, "48 83 3d 78 00 00 00 00 0f 94 c0 0f b6 c0 c3", 8);
	CHECK_EQ(check_alike(places, 0, 0).rax, 0);
	munmap(places, PLACES_BYTES);
}

/* Any bytes: what moves is not longer than it may be, and heads are in it. */
TEST(design_random_windows_are_refused_or_fit)
{
	uint64_t state = 7;

	for (unsigned int turn = 0; turn < 200000; turn++) {
		struct bytes code = { .count = 1 + turn % 19 };
		struct tp_moved moved;

		for (size_t i = 0; i < code.count; i++) {
			state = state * 6364136223846793005ull + 1442695040888963407ull;
			code.bytes[i] = (uint8_t)(state >> 56);
		}
		if (move_exact(&code, HIGH, HIGH + (turn & 1 ? 0x100000 : 0x7fff0000), &moved))
			continue;
		CHECK(moved.bytes && moved.bytes <= TP_MOST_MOVED);
		for (unsigned int i = 0; i < 5; i++)
			CHECK(moved.head_at[i] < moved.bytes);
	}
}
