/* SPDX-License-Identifier: Apache-2.0 */
/** @file text.c: all sites of a page in one write, read just before and read back after. */
#include <errno.h>

#include "check.h"
#include "rig.h"

#define PAGE(n) ((n) * (size_t)TP_PAGE_BYTES)
#define IS(state) (1u << (state))

static const struct tp_pass verify = { .phase = TP_PHASE_VERIFY,
				       .edit = TP_EDIT_NONE,
				       .from = IS(TP_SITE_PENDING),
				       .to = TP_SITE_PENDING };
static const struct tp_pass add_int3 = { .phase = TP_PHASE_INT3,
					 .edit = TP_EDIT_INT3,
					 .from = IS(TP_SITE_PENDING),
					 .to = TP_SITE_INT3 };
static const struct tp_pass tails = { .phase = TP_PHASE_TAIL,
				      .edit = TP_EDIT_TAIL,
				      .to_new = true,
				      .from = IS(TP_SITE_INT3),
				      .to = TP_SITE_TAIL };
static const struct tp_pass again = { .phase = TP_PHASE_ROLLBACK,
				      .edit = TP_EDIT_INT3,
				      .from = IS(TP_SITE_WRITTEN),
				      .to = TP_SITE_TAIL };

/* One pass over the sites as they are now; the first call prepares the batch. */
static int run_pass(struct rig *rig, const struct tp_pass *pass)
{
	if (!rig->pokes) {
		rig_learn(rig);
		CHECK_EQ(tp_check_batch(&rig->engine, &rig->batch), 0);
	}
	fake_forget(&rig->fake);
	return tp_run_pass(&rig->engine, &rig->batch, pass);
}

static const struct fake_op *nth_write(const struct rig *rig, size_t n)
{
	for (size_t i = 0; i < rig->fake.logged; i++)
		if (rig->fake.log[i].kind == FAKE_WRITE && !n--)
			return &rig->fake.log[i];
	return NULL;
}

static void set_stranger(struct rig *rig, size_t k, size_t offset, uint8_t byte)
{
	rig->fake.stranger_k = k;
	rig->fake.stranger_len = 1;
	rig->fake.stranger_addr = fake_addr(&rig->fake, offset);
	rig->fake.stranger_bytes[0] = byte;
}

TEST(design_sites_of_a_page_go_in_one_write_from_first_to_last)
{
	struct rig rig;

	rig_open(&rig, 3);
	rig_nop5(&rig, 4000);
	rig_nop5(&rig, 16);
	rig_nop5(&rig, 160);
	rig_nop5(&rig, PAGE(2) + 80);
	CHECK_EQ(run_pass(&rig, &add_int3), 0);
	CHECK_EQ(rig.fake.count[FAKE_WRITE], 2);
	CHECK_EQ(nth_write(&rig, 0)->addr, fake_addr(&rig.fake, 16));
	CHECK_EQ(nth_write(&rig, 0)->len, 4000 + 1 - 16);
	CHECK_EQ(nth_write(&rig, 1)->addr, fake_addr(&rig.fake, PAGE(2) + 80));
	CHECK_EQ(nth_write(&rig, 1)->len, 1);
	CHECK_EQ(rig.outcome.pages, 2);
	rig_close(&rig);
}

TEST(design_tail_write_of_several_sites_spans_from_first_int3_to_last_tail)
{
	struct rig rig;

	rig_open(&rig, 1);
	rig_nop5(&rig, 16);
	rig_nop5(&rig, 100);
	CHECK_EQ(run_pass(&rig, &add_int3), 0);
	CHECK_EQ(run_pass(&rig, &tails), 0);
	CHECK_EQ(rig.fake.count[FAKE_WRITE], 1);
	CHECK_EQ(nth_write(&rig, 0)->addr, fake_addr(&rig.fake, 16));
	CHECK_EQ(nth_write(&rig, 0)->len, 105 - 16);
	CHECK_EQ(rig.fake.bytes[16], TP_INT3);
	CHECK_EQ(rig.fake.bytes[100], TP_INT3);
	CHECK_BYTES(rig.fake.bytes + 17, JMP5 + 1, 4);
	rig_close(&rig);
}

TEST(design_site_across_two_pages_goes_with_the_page_of_its_first_byte)
{
	for (size_t before = 1; before < 5; before++) {
		struct rig rig;

		CHECK_NOTE("%zu bytes on the first page", before);
		rig_open(&rig, 2);
		rig_nop5(&rig, PAGE(1) - before);
		rig_nop5(&rig, PAGE(1) + 8);
		CHECK_EQ(rig_run(&rig), 0);
		CHECK(rig_is_new(&rig, 0) && rig_is_new(&rig, 1));
		CHECK_EQ(rig.outcome.pages, 2);
		CHECK_EQ(rig.outcome.writes, 6);
		rig_close(&rig);
	}
}

TEST(design_widest_window_is_a_page_and_a_tail_over_its_end)
{
	struct rig rig;

	rig_open(&rig, 2);
	rig_add(&rig, 0, 1, BYTES(0x90), BYTES(0xc3));
	rig_add(&rig, PAGE(1) - 1, 15,
		BYTES(0x66, 0x66, 0x66, 0x66, 0x66, 0x66, 0x2e, 0x0f, 0x1f, 0x84, 0, 0, 0, 0, 0),
		BYTES(0xe9, 1, 2, 3, 4, 0xcc, 0xcc, 0xcc, 0xcc, 0xcc, 0xcc, 0xcc, 0xcc, 0xcc,
		      0xcc));
	CHECK_EQ(rig_run(&rig), 0);
	CHECK(rig_is_new(&rig, 0) && rig_is_new(&rig, 1));
	CHECK_EQ(rig.fake.log[0].len, PAGE(1) + 14);
	CHECK_EQ(rig.outcome.pages, 1);
	rig_close(&rig);
}

/* A nop5 on each of @pages pages; the writes of one pass over them. */
static size_t writes_of(size_t pages, unsigned int window_pages, size_t missing)
{
	struct rig rig;
	size_t writes;

	CHECK_NOTE("%zu pages, windows of %u", pages, window_pages);
	rig_open(&rig, pages);
	rig.engine.window_pages = window_pages;
	for (size_t i = 0; i < pages; i++)
		if (i != missing)
			rig_nop5(&rig, PAGE(i) + 100);
	CHECK_EQ(run_pass(&rig, &add_int3), 0);
	CHECK_EQ(rig.outcome.pages, pages - (missing < pages));
	writes = rig.fake.count[FAKE_WRITE];
	CHECK_EQ(rig_int3s(&rig), rig.count);
	rig_close(&rig);
	return writes;
}

TEST(design_pages_that_touch_go_in_one_write_up_to_the_width_of_a_window)
{
	CHECK_EQ(writes_of(40, 0, SIZE_MAX), 40);
	CHECK_EQ(writes_of(40, 1, SIZE_MAX), 40);
	CHECK_EQ(writes_of(40, 2, SIZE_MAX), 20);
	CHECK_EQ(writes_of(40, 16, SIZE_MAX), 3);
	CHECK_EQ(writes_of(40, 1000, SIZE_MAX), 3); /* never more than its buffer */
}

TEST(design_page_without_a_site_ends_the_window_before_it)
{
	CHECK_EQ(writes_of(10, 16, 4), 2);
	CHECK_EQ(writes_of(40, 16, 15), 3);
	CHECK_EQ(writes_of(40, 16, 14), 3);
}

TEST(design_widest_window_of_many_pages_fits_wherever_it_starts_in_a_cache_line)
{
	static const uint8_t nop15[16] = { 0x66, 0x66, 0x66, 0x66, 0x66, 0x66, 0x2e, 0x0f,
					   0x1f, 0x84, 0,    0,	   0,	 0,    0 };

	for (size_t start = 0; start < 2 * TP_LINE_BYTES; start++) {
		struct rig rig;

		CHECK_NOTE("starts at %zu", start);
		rig_open(&rig, TP_WINDOW_PAGES + 1);
		rig.engine.window_pages = TP_WINDOW_PAGES;
		rig_add(&rig, start, 1, BYTES(0x90), BYTES(0xc3));
		for (size_t i = 1; i < TP_WINDOW_PAGES; i++)
			rig_nop5(&rig, PAGE(i) - 3);
		rig_add(&rig, PAGE(TP_WINDOW_PAGES) - 1, 15, nop15,
			BYTES(0xe9, 1, 2, 3, 4, 0xcc, 0xcc, 0xcc, 0xcc, 0xcc, 0xcc, 0xcc, 0xcc,
			      0xcc, 0xcc));
		CHECK_EQ(rig_run(&rig), 0);
		CHECK_EQ(rig.outcome.writes, 3);
		for (size_t i = 0; i < rig.count; i++)
			CHECK(rig_is_new(&rig, i));
		rig_close(&rig);
	}
}

TEST(pitfall_24_bytes_between_the_sites_are_read_just_before_and_kept)
{
	struct rig rig;

	rig_open(&rig, 1);
	rig_nop5(&rig, 16);
	rig_nop5(&rig, 100);
	for (size_t k = 0; k < 2; k++) { /* before the read of verify, of the int3 pass */
		set_stranger(&rig, 0, 50, (uint8_t)k);
		CHECK_EQ(run_pass(&rig, k ? &add_int3 : &verify), 0);
		CHECK_EQ(rig.fake.bytes[50], k);
	}
	CHECK_EQ(rig.outcome.conflicts, 0);
	rig_close(&rig);
}

TEST(pitfall_24_foreign_write_between_the_sites_is_a_conflict_and_is_kept)
{
	struct rig rig;

	rig_open(&rig, 1);
	rig_nop5(&rig, 16);
	rig_nop5(&rig, 100);
	set_stranger(&rig, 2, 50, 0x42); /* after the write, before the read-back */
	CHECK_EQ(run_pass(&rig, &add_int3), 0);
	CHECK_EQ(rig.outcome.conflicts, 1);
	CHECK_EQ(rig.fake.bytes[50], 0x42);
	rig_close(&rig);
}

TEST(pitfall_24_foreign_write_over_our_byte_fails_and_names_the_site)
{
	struct rig rig;

	rig_open(&rig, 1);
	rig_skip(&rig, 8);
	rig_nop5(&rig, 16);
	rig_nop5(&rig, 100);
	set_stranger(&rig, 2, 100, 0x42);
	CHECK_EQ(run_pass(&rig, &add_int3), -TP_EVERIFY);
	CHECK_EQ(rig.outcome.conflicts, 1);
	CHECK_EQ(rig.outcome.fail_count, 2);
	CHECK_EQ(rig.outcome.fail_index, 2);
	rig_close(&rig);
}

TEST(pitfall_24_conflict_looks_only_at_sites_that_this_pass_has_written)
{
	struct rig rig;

	rig_open(&rig, 2);
	rig_nop5(&rig, 0);
	rig_nop5(&rig, 3000);
	rig_nop5(&rig, 3100);
	rig_nop5(&rig, PAGE(1) + 3000);
	rig_learn(&rig);
	for (size_t i = 0; i < rig.count; i++) { /* the middle two are new, the others have int3 */
		bool new = i == 1 || i == 2;

		memcpy(rig.fake.bytes + (rig.pokes[i].addr - fake_addr(&rig.fake, 0)), JMP5, 5);
		rig.pokes[i].outcome = new ? TP_SITE_WRITTEN : TP_SITE_TAIL;
		if (!new)
			*(uint8_t *)rig.pokes[i].addr = TP_INT3;
	}
	memset(rig.copies.window, 0xaa, sizeof(rig.copies.window)); /* a look beside is seen */
	memset(rig.copies.readback, 0x55, sizeof(rig.copies.readback));
	set_stranger(&rig, 2, 3050, 0x42);
	CHECK_EQ(run_pass(&rig, &again), 0);
	CHECK_EQ(rig.outcome.conflicts, 1);
	CHECK_EQ(rig_int3s(&rig), 4);
	rig_close(&rig);
}

TEST(seed_24_short_write_advances_only_what_has_landed)
{
	for (long done = 0; done <= 84; done++) {
		struct rig rig;

		CHECK_NOTE("%ld bytes of 85", done);
		rig_open(&rig, 1);
		rig_nop5(&rig, 16);
		rig_nop5(&rig, 100);
		rig.fake.faults[0] = (struct fake_fault){ FAKE_WRITE, 0, 1, done };
		CHECK_EQ(run_pass(&rig, &add_int3), -EIO);
		CHECK_EQ(rig_site(&rig, 0)->outcome, done ? TP_SITE_INT3 : TP_SITE_PENDING);
		CHECK_EQ(rig_site(&rig, 1)->outcome, TP_SITE_PENDING);
		CHECK_EQ(rig.outcome.fail_count, done > 0);
		CHECK_EQ(rig.fake.bytes[16] == TP_INT3, done > 0);
		CHECK_EQ(rig.fake.bytes[100], NOP5[0]);
		rig_close(&rig);
	}
}

TEST(seed_24_write_into_a_hole_fails_and_names_the_site_across_it)
{
	struct rig rig;

	rig_open(&rig, 2);
	rig_nop5(&rig, 16);
	rig_nop5(&rig, PAGE(1) - 2);
	CHECK_EQ(run_pass(&rig, &add_int3), 0);
	rig.fake.hole_start = fake_addr(&rig.fake, PAGE(1));
	rig.fake.hole_end = fake_addr(&rig.fake, PAGE(2));
	CHECK_EQ(run_pass(&rig, &tails), -EFAULT); /* the read before the write sees it */
	CHECK_EQ(rig.outcome.fail_index, 1);
	CHECK_EQ(rig.fake.count[FAKE_WRITE], 0);
	rig_close(&rig);
}

TEST(seed_24_unreadable_read_back_gives_efault)
{
	struct rig rig;

	rig_open(&rig, 1);
	rig_skip(&rig, 8);
	rig_nop5(&rig, 16);
	rig.fake.faults[0] = (struct fake_fault){ FAKE_READ, 1, 1, -EIO };
	CHECK_EQ(run_pass(&rig, &add_int3), -EFAULT);
	CHECK_EQ(rig.outcome.fail_index, 1);
	CHECK_EQ(rig.outcome.fail_count, 1);
	CHECK_EQ(rig_site(&rig, 1)->outcome, TP_SITE_INT3); /* so that recovery knows of it */
	rig_close(&rig);
}

TEST(seed_25_failed_read_never_blames_a_skipped_site)
{
	struct rig rig;

	rig_open(&rig, 1);
	rig_skip(&rig, 8);
	rig_nop5(&rig, 16);
	rig_nop5(&rig, 32);
	rig.fake.faults[0] = (struct fake_fault){ FAKE_READ, 0, 1, -EIO }; /* readable again */
	CHECK_EQ(run_pass(&rig, &verify), -EFAULT);
	CHECK_EQ(rig.outcome.fail_index, 1);
	CHECK_EQ(rig.outcome.fail_count, 1);
	CHECK_EQ(rig.outcome.fail_addr, rig.asked[1].addr);
	rig_close(&rig);
}

TEST(seed_24_any_error_of_a_read_is_efault)
{
	struct rig rig;

	rig_open(&rig, 1);
	rig_nop5(&rig, 16);
	rig.fake.faults[0] = (struct fake_fault){ FAKE_READ, 0, SIZE_MAX, -EPERM };
	CHECK_EQ(run_pass(&rig, &verify), -EFAULT);
	rig_close(&rig);
}

TEST(design_verify_only_reads_once_a_page)
{
	struct rig rig;

	rig_open(&rig, 3);
	rig_mixed(&rig);
	CHECK_EQ(run_pass(&rig, &verify), 0);
	CHECK(!strcmp(rig_story(&rig), "rrr"));
	CHECK_EQ(rig.outcome.pages, 0);
	rig_close(&rig);
}

TEST(seed_13_one_byte_sites_take_part_in_the_tail_pass_without_a_write)
{
	struct rig rig;

	rig_open(&rig, 1);
	rig_add(&rig, 0, 1, BYTES(0x90), BYTES(0xc3));
	CHECK_EQ(run_pass(&rig, &add_int3), 0);
	CHECK_EQ(run_pass(&rig, &tails), 0);
	CHECK_EQ(rig.fake.count[FAKE_WRITE], 0);
	CHECK_EQ(rig_site(&rig, 0)->outcome, TP_SITE_TAIL);
	rig_close(&rig);
}

TEST(seed_22_skipped_site_inside_a_window_keeps_its_bytes)
{
	struct rig rig;

	rig_open(&rig, 1);
	rig_nop5(&rig, 16);
	rig_skip(&rig, 50);
	rig_nop5(&rig, 100);
	CHECK_EQ(rig_run(&rig), 0);
	CHECK_EQ(rig.fake.bytes[50], 0xf4);
	CHECK_EQ(rig_site(&rig, 1)->outcome, TP_SITE_SKIPPED);
	rig_close(&rig);
}

TEST(design_nothing_but_the_sites_changes)
{
	struct rig rig;
	size_t changed = 0;

	rig_open(&rig, 3);
	rig_mixed(&rig);
	CHECK_EQ(rig_run(&rig), 0);
	for (size_t i = 0; i < rig.count; i++)
		if (!rig.asked[i].flags)
			memset((void *)rig.asked[i].addr, 0xf4, rig.asked[i].len);
	for (size_t i = 0; i < rig.fake.size; i++)
		changed += rig.fake.bytes[i] != 0xf4;
	CHECK_EQ(changed, 0);
	rig_close(&rig);
}
