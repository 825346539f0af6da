/* SPDX-License-Identifier: Apache-2.0 */
/** @file callers.c: whose calls can be followed, by unwind entries and by return addresses in data. */
#include <stdlib.h>

#include "check.h"
#include "textpoke.h"

enum { BASE = 0x10000, CODE = 0x8000, DATA = 0x20000, FUNCTION = 0x400, ROOM = 64 };

static uint8_t code[CODE];
static uint64_t data[256];
static struct tp_frame frames[ROOM];
static struct tp_range rows[ROOM];
static uint64_t targets[ROOM], target_count, count;
static struct tp_piece code_piece = { BASE, code, sizeof(code) };
static struct tp_piece data_piece = { DATA, (const uint8_t *)data, sizeof(data) };
static struct tp_tables tables = {
	.frames = frames, .code = &code_piece, .code_count = 1, .data = &data_piece, .data_count = 1
};

static void begin(void)
{
	memset(code, 0x90, sizeof(code));
	memset(data, 0, sizeof(data));
	tables.frame_count = target_count = 0;
}

static void add(uint64_t offset, uint64_t bytes)
{
	frames[tables.frame_count++] = (struct tp_frame){ .vaddr = BASE + offset, .bytes = bytes };
}

static void find(int absolute)
{
	CHECK_EQ(tp_find_callers(&tables, targets, target_count, absolute, rows, ROOM, &count), 0);
}

static void check_row(uint64_t i, uint64_t start, uint64_t end)
{
	CHECK(i < count);
	CHECK_EQ(rows[i].start, BASE + start);
	CHECK_EQ(rows[i].end, BASE + end);
}

/* A call of each form that compilers write, and the address behind it. */
static uint64_t put_call(uint64_t offset, int form)
{
	static const struct {
		uint8_t bytes[8];
		uint64_t count;
	} forms[] = {
		{ { 0xe8, 1, 2, 3, 4 }, 5 },		 /* call rel32 */
		{ { 0xff, 0xd0 }, 2 },			 /* *%rax */
		{ { 0x41, 0xff, 0xd7 }, 3 },		 /* *%r15 */
		{ { 0xff, 0x10 }, 2 },			 /* *(%rax) */
		{ { 0xff, 0x50, 8 }, 3 },		 /* *8(%rax) */
		{ { 0xff, 0x14, 0xc8 }, 3 },		 /* *(%rax,%rcx,8) */
		{ { 0xff, 0x54, 0x24, 8 }, 4 },		 /* *8(%rsp) */
		{ { 0xff, 0x15, 1, 2, 3, 4 }, 6 },	 /* *disp(%rip) */
		{ { 0xff, 0x90, 1, 2, 3, 4 }, 6 },	 /* *disp(%rax) */
		{ { 0xff, 0x14, 0x25, 1, 2, 3, 4 }, 7 }, /* *disp */
		{ { 0xff, 0x94, 0x24, 1, 2, 3, 4 }, 7 }, /* *disp(%rsp) */
	};

	memcpy(code + offset, forms[form % 11].bytes, forms[form % 11].count);
	return BASE + offset + forms[form % 11].count;
}

/* Functions from @first on whose return addresses are listed, one of each form a function. */
static void list(int first, int functions)
{
	for (int i = 0; i < functions; i++) {
		add((uint64_t)(first + i) * FUNCTION, FUNCTION);
		targets[target_count++] = put_call((uint64_t)(first + i) * FUNCTION + 0x40, i);
	}
}

TEST(functions_beside_each_other_are_one_stretch)
{
	begin();
	add(0x2000, 0x100);
	add(0x1000, 0x100);
	add(0x1110, 0x40);
	add(0x1080, 0x10); /* a part of another one */
	find(0);
	CHECK_EQ(count, 2);
	check_row(0, 0x1000, 0x1150);
	check_row(1, 0x2000, 0x2100);
}

TEST(what_has_no_unwind_entries_is_left_out)
{
	begin();
	add(0x1000, 0x100);
	add(0x1200, 0x100); /* up to 256 bytes are padding */
	add(0x1401, 0x100);
	find(0);
	CHECK_EQ(count, 2);
	check_row(0, 0x1000, 0x1300);
	check_row(1, 0x1401, 0x1501);
}

TEST(a_module_without_unwind_entries_has_none)
{
	begin();
	targets[target_count++] = BASE + 5;
	find(1);
	CHECK_EQ(count, 0);
}

TEST(functions_whose_return_addresses_are_listed_are_left_out)
{
	begin();
	add(0, 8 * FUNCTION);
	list(8, 17);
	add(25 * FUNCTION, FUNCTION);
	find(0);
	CHECK_EQ(count, 2);
	check_row(0, 0, 8 * FUNCTION);
	check_row(1, 25 * FUNCTION, 26 * FUNCTION);
}

TEST(a_short_one_among_them_calls_nobody)
{
	begin();
	add(0, FUNCTION);
	list(1, 9);
	add(10 * FUNCTION, 0x40);
	list(11, 9);
	add(20 * FUNCTION, 0x40);
	find(0);
	CHECK_EQ(count, 2);
	check_row(0, 0, FUNCTION);
	check_row(1, 20 * FUNCTION, 20 * FUNCTION + 0x40);
}

TEST(a_few_return_addresses_are_labels_behind_calls_that_never_return)
{
	begin();
	list(0, 15);
	find(0);
	CHECK_EQ(count, 1);
	check_row(0, 0, 15 * FUNCTION);
}

TEST(pointers_to_entries_tell_nothing)
{
	begin();
	list(0, 17);
	for (uint64_t i = 0; i < target_count; i++)
		targets[i] = frames[i].vaddr;
	find(0);
	CHECK_EQ(count, 1);
}

TEST(labels_of_jump_tables_tell_nothing)
{
	begin();
	list(0, 17);
	for (int i = 0; i < 17 && target_count < ROOM; i++) /* two more of each */
		for (uint64_t k = 0; k < 2; k++)
			targets[target_count++] = BASE + (uint64_t)i * FUNCTION + 0x100 + k;
	find(0);
	CHECK_EQ(count, 1);
}

TEST(a_program_at_a_fixed_address_has_them_as_numbers)
{
	begin();
	list(0, 17);
	for (uint64_t i = 0; i < target_count; i++)
		data[3 + 2 * i] = targets[i];
	target_count = 0;
	find(0);
	CHECK_EQ(count, 1);
	find(1);
	CHECK_EQ(count, 0);
	data_piece.vaddr = DATA + 4; /* words are aligned in memory */
	find(1);
	CHECK_EQ(count, 1);
	data_piece.vaddr = DATA;
}

TEST(damage_is_no_harm)
{
	begin();
	add(0, ~0ull);
	frames[tables.frame_count++] = (struct tp_frame){ .vaddr = ~0ull - 4, .bytes = 100 };
	targets[target_count++] = BASE + 1;
	targets[target_count++] = BASE + CODE;
	targets[target_count++] = BASE + CODE + 1;
	targets[target_count++] = ~0ull;
	targets[target_count++] = 0;
	find(1);
	CHECK_EQ(tp_find_callers(&tables, targets, target_count, 1, NULL, 0, &count), 0);
	CHECK(count > 0);
}
