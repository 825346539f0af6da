/* SPDX-License-Identifier: Apache-2.0 */
/** @file branch_stub.c: stubs that count branches, run on the processor with every condition. */
#include <errno.h>
#include <sys/mman.h>

#include "check.h"
#include "textpoke.h"

#define PAGE 4096
#define AREA 0x10000000ull /* code page; counters and stub behind it */
#define SITE_AT 0x100
#define TARGET_AT 0x800

/* All registers before and behind the code under test, for the assembly below. */
struct registers {
	uint64_t rax, rbx, rcx, rdx, rsi, rdi, rbp, r8, r9, r10, r11, r12, r13, r14, r15, flags;
};

struct run {
	struct registers before, after;
	uint64_t code;
	uint64_t left_by;   /* 1: behind the window, 2: at the target */
	uint64_t stack[64]; /* red zone, as the code has left it */
};

/* Loads registers and flags, jumps to the code; the two ways out come back to 1: and 2: below. */
static uint64_t kept_stack __attribute__((used)), run_at __attribute__((used));
extern const char way_out_past[], way_out_taken[];
void enter_code(struct run *run);
__asm__(".text\n"
	"enter_code:\n"
	"push %rbx\n push %rbp\n push %r12\n push %r13\n push %r14\n push %r15\n"
	"mov %rdi, run_at(%rip)\n"
	"mov %rsp, kept_stack(%rip)\n"
	"push 120(%rdi)\n popf\n"
	"mov 0(%rdi), %rax\n mov 8(%rdi), %rbx\n mov 16(%rdi), %rcx\n mov 24(%rdi), %rdx\n"
	"mov 32(%rdi), %rsi\n mov 48(%rdi), %rbp\n mov 56(%rdi), %r8\n mov 64(%rdi), %r9\n"
	"mov 72(%rdi), %r10\n mov 80(%rdi), %r11\n mov 88(%rdi), %r12\n mov 96(%rdi), %r13\n"
	"mov 104(%rdi), %r14\n mov 112(%rdi), %r15\n"
	"movq $0x1111, -8(%rsp)\n movq $0x2222, -64(%rsp)\n movq $0x3333, -128(%rsp)\n"
	"push 256(%rdi)\n mov 40(%rdi), %rdi\n lea 8(%rsp), %rsp\n"
	"jmp *-8(%rsp)\n"
	"way_out_past:\n movq $1, kept_way(%rip)\n jmp 1f\n"
	"way_out_taken:\n movq $2, kept_way(%rip)\n"
	"1: pushf\n popq kept_flags(%rip)\n"
	"cmp %rsp, kept_stack(%rip)\n je 2f\n ud2\n"
	"2: mov %rdi, kept_rdi(%rip)\n mov run_at(%rip), %rdi\n"
	"mov %rax, 128(%rdi)\n mov %rbx, 136(%rdi)\n mov %rcx, 144(%rdi)\n mov %rdx, 152(%rdi)\n"
	"mov %rsi, 160(%rdi)\n mov %rbp, 176(%rdi)\n mov %r8, 184(%rdi)\n mov %r9, 192(%rdi)\n"
	"mov %r10, 200(%rdi)\n mov %r11, 208(%rdi)\n mov %r12, 216(%rdi)\n mov %r13, 224(%rdi)\n"
	"mov %r14, 232(%rdi)\n mov %r15, 240(%rdi)\n"
	"mov kept_rdi(%rip), %rax\n mov %rax, 168(%rdi)\n"
	"mov kept_flags(%rip), %rax\n mov %rax, 248(%rdi)\n"
	"mov kept_way(%rip), %rax\n mov %rax, 264(%rdi)\n"
	"mov -64(%rsp), %rax\n mov %rax, 272(%rdi)\n mov -128(%rsp), %rax\n mov %rax, 280(%rdi)\n"
	"pop %r15\n pop %r14\n pop %r13\n pop %r12\n pop %rbp\n pop %rbx\n"
	"ret\n"
	".data\n .balign 8\n kept_way: .quad 0\n kept_flags: .quad 0\n kept_rdi: .quad 0\n .text\n");

static uint8_t *area;

static uint64_t *counters(void)
{
	return (uint64_t *)(area + PAGE);
}

/* jmp *0(%rip) to @to */
static void put_way_out(uint8_t *code, const void *to)
{
	uint64_t target = (uint64_t)to;

	memcpy(code, (const uint8_t[]){ 0xff, 0x25, 0, 0, 0, 0 }, 6);
	memcpy(code + 6, &target, sizeof(target));
}

static int open_area(void)
{
	area = mmap((void *)AREA, 3 * PAGE, PROT_READ | PROT_WRITE,
		    MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE, -1, 0);
	return area == (void *)AREA;
}

static void close_area(void)
{
	munmap(area, 3 * PAGE);
}

/* A site with these bytes; a window's way on, and the target, lead out. */
static struct tp_branch_site make_site(const uint8_t *window, uint8_t bytes, uint8_t live)
{
	struct tp_branch_site site = {
		.addr = AREA + SITE_AT, .counters = AREA + PAGE, .bytes = bytes, .live = live
	};

	memcpy(site.window, window, bytes);
	put_way_out(area + SITE_AT + bytes, way_out_past);
	put_way_out(area + TARGET_AT, way_out_taken);
	memset(counters(), 0, PAGE);
	return site;
}

static int place(const struct tp_branch_site *site, struct tp_branch_stub *stub)
{
	int error = tp_make_branch_stub(site, AREA + 2 * PAGE, stub);

	memcpy(area + 2 * PAGE, stub->code, stub->bytes);
	return error || mprotect(area, PAGE, PROT_READ | PROT_EXEC) ||
	       mprotect(area + 2 * PAGE, PAGE, PROT_READ | PROT_EXEC);
}

static void writable(void)
{
	mprotect(area, PAGE, PROT_READ | PROT_WRITE);
	mprotect(area + 2 * PAGE, PAGE, PROT_READ | PROT_WRITE);
}

static uint64_t flags_of(unsigned int bits)
{
	return 0x202 | (bits & 1) | (bits >> 1 & 1) << 2 | (bits >> 2 & 1) << 4 |
	       (bits >> 3 & 1) << 6 | (bits >> 4 & 1) << 7 | (bits >> 5 & 1) << 11;
}

static void fill(struct run *run, uint64_t flags)
{
	uint64_t *words = (uint64_t *)&run->before;

	for (int i = 0; i < 15; i++)
		words[i] = 0x0123456789abcdefull * (unsigned int)(i + 3);
	run->before.flags = flags;
	run->code = AREA + 2 * PAGE;
}

/* What the processor itself makes of the condition. */
static int is_taken(unsigned int condition, uint64_t flags)
{
	int cf = flags & 1, pf = flags >> 2 & 1, zf = flags >> 6 & 1, sf = flags >> 7 & 1,
	    of = flags >> 11 & 1;
	int holds[] = { of, cf, zf, cf | zf, sf, pf, sf != of, zf | (sf != of) };

	return holds[condition >> 1] ^ (condition & 1);
}

static void check_kept(const struct run *run, int with_flags)
{
	CHECK_BYTES(&run->before, &run->after, 15 * 8);
	if (with_flags)
		CHECK_EQ(run->after.flags & 0x8d5, run->before.flags & 0x8d5);
	CHECK_EQ(run->stack[0], 0x2222);
	CHECK_EQ(run->stack[1], 0x3333);
}

static void try_conditions(uint8_t live, int is_long)
{
	for (unsigned int condition = 0; condition < 16; condition++) {
		/* jcc rel32, or: jcc rel8; mov %rax,%rax */
		uint8_t window[] = { 0x0f, 0x80 | condition, 0, 0, 0, 0 };
		int32_t distance = TARGET_AT - SITE_AT - 6;
		struct tp_branch_stub stub;
		struct tp_branch_site site;
		uint64_t taken = 0, past = 0;

		memcpy(window + 2, &distance, 4);
		if (!is_long) /* to the five bytes behind the window, which lead to the target */
			memcpy(window,
			       (const uint8_t[]){ 0x70 | condition, 0x30, 0x48, 0x89, 0xc0 }, 5);
		site = make_site(window, is_long ? 6 : 5, live);
		put_way_out(area + SITE_AT + 0x32, way_out_taken);
		CHECK_EQ(place(&site, &stub), 0);
		for (unsigned int bits = 0; bits < 64; bits++) {
			struct run run = { 0 };

			CHECK_NOTE("condition %u flags %u live %u", condition, bits, live);
			fill(&run, flags_of(bits));
			enter_code(&run);
			CHECK_EQ(run.left_by, is_taken(condition, run.before.flags) ? 2 : 1);
			*(run.left_by == 2 ? &taken : &past) += 1;
			check_kept(&run,
				   live & (run.left_by == 2 ? TP_LIVE_TAKEN : TP_LIVE_NOT_TAKEN));
		}
		CHECK_EQ(counters()[0], taken);
		CHECK_EQ(counters()[1], past);
		CHECK(taken > 0 && past > 0);
		writable();
	}
	CHECK_NOTE("%s", "");
}

TEST(branch_stub_goes_both_ways_and_counts_and_keeps_everything)
{
	if (!CHECK(open_area()))
		return;
	for (uint8_t live = 0; live < 4; live++)
		for (int is_long = 0; is_long < 2; is_long++)
			try_conditions(live, is_long);
	close_area();
}

/* test %eax,%eax; je +; jp + ; mov: two branches, four bytes and a half into the window */
TEST(branch_stub_counts_each_branch_of_a_window)
{
	const uint8_t window[] = { 0x39, 0xd8, 0x74, 0x30, 0x7c, 0x2e, 0x48, 0x89, 0xc0 };
	struct tp_branch_stub stub;
	struct tp_branch_site site;

	if (!CHECK(open_area()))
		return;
	site = make_site(window, sizeof(window), 0xf);
	put_way_out(area + SITE_AT + 0x34, way_out_taken);
	CHECK_EQ(place(&site, &stub), 0);
	CHECK(stub.head_at[2] && stub.head_at[4] > stub.head_at[2]);
	CHECK(!stub.head_at[1] && !stub.head_at[3]);
	for (unsigned int i = 0; i < 9; i++) {
		struct run run = { 0 };

		fill(&run, 0x202);
		run.before.rax = i;
		run.before.rbx = 5;
		enter_code(&run);
		CHECK_EQ(run.left_by, i <= 5 ? 2 : 1);
		check_kept(&run, 0);
		CHECK_EQ(run.after.flags >> 6 & 1, i == 5); /* of the comparison */
	}
	CHECK_EQ(counters()[0], 1); /* equal */
	CHECK_EQ(counters()[1], 8);
	CHECK_EQ(counters()[2], 5); /* less */
	CHECK_EQ(counters()[3], 3);
	writable();
	close_area();
}

TEST(branch_stub_does_loops_and_jrcxz)
{
	for (uint8_t opcode = 0xe0; opcode <= 0xe3; opcode++) {
		const uint8_t window[] = { opcode, 0x30, 0x48, 0x89, 0xc0 };
		struct tp_branch_stub stub;
		struct tp_branch_site site;
		uint64_t taken = 0;

		if (!CHECK(open_area()))
			return;
		site = make_site(window, sizeof(window), 3);
		put_way_out(area + SITE_AT + 0x32, way_out_taken);
		CHECK_EQ(place(&site, &stub), 0);
		for (unsigned int i = 0; i < 8; i++) {
			struct run run = { 0 };
			uint64_t rcx = i & 3, zf = i >> 2;
			uint64_t left = opcode == 0xe3 ? rcx : rcx - 1;
			int goes = opcode == 0xe3 ? !rcx :
				   opcode == 0xe2 ? left != 0 :
						    left != 0 && zf == (opcode & 1u);

			CHECK_NOTE("opcode %x rcx %u zf %u", opcode, (unsigned int)rcx,
				   (unsigned int)zf);
			fill(&run, 0x202 | zf << 6);
			run.before.rcx = rcx;
			enter_code(&run);
			CHECK_EQ(run.left_by, goes ? 2 : 1);
			CHECK_EQ(run.after.rcx, left);
			CHECK_EQ(run.after.flags & 0x8d5, run.before.flags & 0x8d5);
			run.after.rcx = rcx;
			check_kept(&run, 1);
			taken += (uint64_t)goes;
		}
		CHECK_EQ(counters()[0], taken);
		CHECK_EQ(counters()[1], 8 - taken);
		writable();
		close_area();
	}
}

TEST(branch_stub_enters_at_a_head_as_the_original_does)
{
	/* mov %rcx,%rax; je: the head is the branch */
	const uint8_t window[] = { 0x48, 0x89, 0xc8, 0x74, 0x30 };
	struct tp_branch_stub stub;
	struct tp_branch_site site;
	struct run run = { 0 };

	if (!CHECK(open_area()))
		return;
	site = make_site(window, sizeof(window), 3);
	put_way_out(area + SITE_AT + 0x35, way_out_taken);
	CHECK_EQ(place(&site, &stub), 0);
	fill(&run, 0x242);
	run.code += stub.head_at[3];
	enter_code(&run);
	CHECK_EQ(run.left_by, 2);
	CHECK_EQ(run.after.rax, run.before.rax);
	CHECK_EQ(counters()[0], 1);
	writable();
	close_area();
}

TEST(branch_stub_ends_where_the_code_ends)
{
	const uint8_t window[] = { 0x74, 0x30, 0xc3, 0x90, 0x90 }; /* je; ret; padding */
	struct tp_branch_site site = { .addr = AREA, .counters = AREA + PAGE, .bytes = 5 };
	struct tp_branch_stub stub;

	memcpy(site.window, window, sizeof(window));
	CHECK_EQ(tp_make_branch_stub(&site, AREA + 2 * PAGE, &stub), 0);
	CHECK_EQ(stub.code[14], 0xc3);	  /* je rel32, lock incq, ret */
	CHECK_EQ(stub.bytes, 15 + 8 + 5); /* lock incq, jmp */
}

TEST(branch_stub_refuses_what_it_cannot_move)
{
	const uint8_t windows[][5] = {
		{ 0x74, 0x30, 0x0f, 0x05, 0x90 }, /* syscall */
		{ 0x74, 0x30, 0x0f, 0x0b, 0x90 }, /* ud2 */
		{ 0x66, 0x74, 0x30, 0x90, 0x90 }, /* a branch cut to 16 bits */
		{ 0x74, 0x30, 0xff, 0xff, 0xff }, /* no instruction */
	};
	struct tp_branch_stub stub;

	for (unsigned int i = 0; i < 4; i++) {
		struct tp_branch_site site = { .addr = AREA, .counters = AREA, .bytes = 5 };

		memcpy(site.window, windows[i], 5);
		CHECK_EQ(tp_make_branch_stub(&site, AREA, &stub), -EINVAL);
		site.bytes = 4;
		CHECK_EQ(tp_make_branch_stub(&site, AREA, &stub), -EINVAL);
		site.bytes = TP_MOST_BRANCH_WINDOW + 1;
		CHECK_EQ(tp_make_branch_stub(&site, AREA, &stub), -EINVAL);
	}
}

TEST(branch_stub_out_of_reach_is_refused)
{
	struct tp_branch_site site = { .addr = AREA,
				       .counters = AREA,
				       .bytes = 5,
				       .window = { 0x74, 0x30, 0x48, 0x89, 0xc0 } };
	struct tp_branch_stub stub;

	CHECK_EQ(tp_make_branch_stub(&site, 1ull << 40, &stub), -ERANGE);
	site.counters = 1ull << 40;
	CHECK_EQ(tp_make_branch_stub(&site, AREA, &stub), -ERANGE);
}

TEST(branch_stubs_are_placed_as_they_were_measured)
{
	static uint8_t code[1024];
	struct tp_branch_site sites[3] = {
		{ AREA, AREA + PAGE, 5, 0, { 0 }, { 0x74, 0x30, 0x48, 0x89, 0xc0 } },
		{ AREA + 9, AREA + PAGE + 16, 5, 0, { 0 }, { 0x74, 0x30, 0x0f, 0x0b, 0x90 } },
		{ AREA + 19, AREA + PAGE + 32, 5, 3, { 0 }, { 0x74, 0x30, 0x48, 0x89, 0xc0 } },
	};
	struct tp_branch_placed sized[3], placed[3];
	uint64_t bytes = tp_place_branch_stubs(sites, 3, 0, NULL, sized);

	CHECK(bytes <= sizeof(code));
	CHECK_EQ(tp_place_branch_stubs(sites, 3, AREA + PAGE, code, placed), bytes);
	CHECK_BYTES(sized, placed, sizeof(sized));
	CHECK_EQ(placed[1].error, -EINVAL);
	CHECK_EQ(placed[2].offset % TP_BRANCH_STUB_ALIGN, 0);
	CHECK_EQ(placed[0].heads[1], 14); /* je rel32, lock incq */
	CHECK_EQ(code[placed[0].bytes], 0xcc);
}
