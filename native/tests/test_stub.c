/* SPDX-License-Identifier: Apache-2.0 */
/** @file stub.c: what the JMP at a displaced entry goes to, byte for byte, and run. */
#include <errno.h>
#include <sys/mman.h>

#include "check.h"
#include "textpoke.h"

#define PAGE 4096

static const uint8_t window[] = { 0x55, 0x48, 0x89, 0xe5, 0x41, 0x54 }; /* push, mov, push */

TEST(stub_calls_the_thunk_below_the_red_zone_and_wipes_its_return_address)
{
	const uint8_t expected[] = {
		0x48, 0x8d, 0x64, 0x24, 0x80,		     /* lea -128(%rsp),%rsp */
		0xe8, 0xf6, 0x0f, 0x00, 0x00,		     /* call 0x502000 */
		0x48, 0xc7, 0x44, 0x24, 0xf8, 0,    0, 0, 0, /* movq $0,-8(%rsp) */
		0x48, 0x8d, 0xa4, 0x24, 0x80, 0,    0, 0,    /* lea 128(%rsp),%rsp */
		0x55, 0x48, 0x89, 0xe5, 0x41, 0x54,	     /* what was displaced */
		0xe9, 0xe0, 0xff, 0xef, 0xff,		     /* jmp 0x401006 */
	};
	struct tp_stub stub;

	CHECK_EQ(tp_make_stub(window, sizeof(window), 0x401000, 0x501000, 0x502000, &stub), 0);
	CHECK_EQ(stub.bytes, sizeof(expected));
	CHECK_BYTES(stub.code, expected, sizeof(expected));
	CHECK_EQ(stub.return_at, 10);
}

TEST(stub_tells_where_each_instruction_behind_the_first_is)
{
	struct tp_stub stub;

	CHECK_EQ(tp_make_stub(window, sizeof(window), 0x401000, 0x501000, 0x502000, &stub), 0);
	CHECK_EQ(stub.head_at[1], 28);
	CHECK_EQ(stub.head_at[2], 0);
	CHECK_EQ(stub.head_at[3], 0);
	CHECK_EQ(stub.head_at[4], 31);
}

TEST(stub_tells_where_its_parts_are)
{
	const uint8_t call[] = { 0x50, 0xe8, 0x00, 0x10, 0x00, 0x00 }; /* push, call */
	struct tp_stub stub;

	CHECK_EQ(tp_make_stub(window, sizeof(window), 0x401000, 0x501000, 0x502000, &stub), 0);
	CHECK_EQ(stub.copy_at, 27);
	CHECK_EQ(stub.pushed_at, 0);
	CHECK_EQ(stub.back_at, 33);
	CHECK_EQ(tp_make_stub(call, sizeof(call), 0x401000, 0x501000, 0x502000, &stub), 0);
	CHECK_EQ(stub.copy_at, 27);
	CHECK_EQ(stub.pushed_at, 33); /* behind push %rax; push $0x401006 */
	CHECK_EQ(stub.back_at, 0);
	CHECK_EQ(stub.bytes, 38);
}

TEST(stub_is_as_long_wherever_it_stands)
{
	struct tp_stub here, there;

	CHECK_EQ(tp_make_stub(window, sizeof(window), 0x401000, 0x401000, 0x401000, &here), 0);
	CHECK_EQ(tp_make_stub(window, sizeof(window), 0x401000, 0x7f001000, 0x7f002000, &there), 0);
	CHECK_EQ(here.bytes, there.bytes);
}

TEST(stub_out_of_reach_is_refused)
{
	struct tp_stub stub;

	CHECK_EQ(tp_make_stub(window, sizeof(window), 0x401000, 0x401000, 1ull << 40, &stub),
		 -ERANGE);
	CHECK_EQ(tp_make_stub(window, sizeof(window), 0x401000, 1ull << 40, 1ull << 40, &stub),
		 -ERANGE);
}

TEST(stub_of_what_cannot_move_is_refused)
{
	const uint8_t traps[] = { 0x89, 0xf8, 0x0f, 0x0b, 0x90 }; /* mov, ud2, nop */
	struct tp_stub stub;

	CHECK_EQ(tp_make_stub(traps, sizeof(traps), 0x401000, 0x501000, 0x502000, &stub), -EINVAL);
}

TEST(stub_does_what_was_displaced_and_goes_on_behind_it)
{
	/* lea 1(%rdi),%eax; add $2,%eax; ret: six bytes go, the rest stays */
	const uint8_t function[] = { 0x8d, 0x47, 0x01, 0x83, 0xc0, 0x02, 0xc3 };
	const uint8_t thunk[] = { 0xc3 };
	uint8_t *code =
		mmap(NULL, PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	struct tp_stub stub;
	int32_t distance;

	CHECK(code != MAP_FAILED);
	memcpy(code, function, sizeof(function));
	memcpy(code + 256, thunk, sizeof(thunk));
	CHECK_EQ(tp_make_stub(function, 6, (uint64_t)code, (uint64_t)code + 512,
			      (uint64_t)code + 256, &stub),
		 0);
	memcpy(code + 512, stub.code, stub.bytes);
	distance = 512 - 5;
	code[0] = 0xe9;
	memcpy(code + 1, &distance, sizeof(distance));
	CHECK_EQ(mprotect(code, PAGE, PROT_READ | PROT_EXEC), 0);
	CHECK_EQ(((int (*)(int))code)(39), 42);
	munmap(code, PAGE);
}
