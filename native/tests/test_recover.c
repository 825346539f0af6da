/* SPDX-License-Identifier: Apache-2.0 */
/** @file patch.c: what a failed batch leaves behind. */
#include <errno.h>

#include "check.h"
#include "rig.h"

#define PAGE(n) ((n) * (size_t)TP_PAGE_BYTES)

static void fail_nth(struct rig *rig, enum fake_kind kind, size_t k, long result)
{
	rig->fake.faults[0] = (struct fake_fault){ kind, k, 1, result };
}

TEST(seed_24_finish_errors_are_passed_through)
{
	struct rig rig;

	rig_open(&rig, 1);
	rig_nop5(&rig, 0);
	rig_nop5(&rig, 32);
	rig_nop5(&rig, 64);
	fail_nth(&rig, FAKE_FINISH, 1, -ENOSPC);
	CHECK_EQ(rig_run(&rig), -ENOSPC);
	CHECK_EQ(rig.outcome.phase, TP_PHASE_FIRST);
	CHECK_EQ(rig.outcome.fail_count, 1);
	CHECK_EQ(rig.outcome.fail_addr, fake_addr(&rig.fake, 32));
	CHECK_EQ(rig.outcome.finished, 1);
	rig_close(&rig);
}

TEST(seed_27_finished_sites_stay_and_all_others_go_back)
{
	struct rig rig;

	rig_open(&rig, 1);
	rig_nop5(&rig, 0);
	rig_nop5(&rig, 32); /* written, its finish fails: nobody has vouched for it */
	rig_nop5(&rig, 64);
	fail_nth(&rig, FAKE_FINISH, 1, -ENOSPC);
	CHECK_EQ(rig_run(&rig), -ENOSPC);
	CHECK(rig_is_new(&rig, 0) && rig_is_old(&rig, 1) && rig_is_old(&rig, 2));
	CHECK_EQ(rig_site(&rig, 0)->outcome, TP_SITE_DONE);
	CHECK_EQ(rig_site(&rig, 1)->outcome, TP_SITE_RESTORED);
	CHECK_EQ(rig_site(&rig, 2)->outcome, TP_SITE_RESTORED);
	CHECK(rig.outcome.recovered && !rig.outcome.rolled_back);
	rig_close(&rig);
}

TEST(design_all_or_nothing_rolls_back_finished_sites_too)
{
	struct rig rig;

	rig_open(&rig, 3);
	rig_mixed(&rig);
	rig.batch.all_or_nothing = true;
	fail_nth(&rig, FAKE_FINISH, 8, -ENOSPC);
	CHECK_EQ(rig_run(&rig), -ENOSPC);
	for (size_t i = 0; i < rig.count; i++)
		CHECK(rig_is_old(&rig, i));
	CHECK_EQ(rig_site(&rig, 5)->outcome, TP_SITE_RESTORED);
	CHECK_EQ(rig_site(&rig, 1)->outcome, TP_SITE_SKIPPED);
	CHECK(rig.outcome.recovered && rig.outcome.rolled_back);
	rig_close(&rig);
}

TEST(seed_29_recovery_is_tail_first_then_sync_then_first_byte_then_sync)
{
	struct rig rig;
	const struct fake_op *log;

	rig_open(&rig, 1);
	rig_nop5(&rig, 32);
	fail_nth(&rig, FAKE_SYNC, 1, -EPERM); /* the tail is new, the int3 in place */
	CHECK_EQ(rig_run(&rig), -EPERM);
	CHECK(!strcmp(rig_story(&rig), "r"
				       "rwrs"
				       "rwrs" /* recovery */ "s"
				       "rwrs"
				       "rwrs"));
	log = rig.fake.log;
	CHECK(log[11].len == 4 && !memcmp(log[11].bytes, NOP5 + 1, 4));
	CHECK(log[15].len == 1 && log[15].bytes[0] == NOP5[0]);
	CHECK(rig_is_old(&rig, 0));
	rig_close(&rig);
}

TEST(design_rollback_of_a_finished_site_runs_the_protocol_backwards)
{
	struct rig rig;
	const char *story;

	rig_open(&rig, 1);
	rig_nop5(&rig, 32);
	rig.batch.all_or_nothing = true;
	fail_nth(&rig, FAKE_SYNC, 2, -EPERM);
	CHECK_EQ(rig_run(&rig), -EPERM);
	story = rig_story(&rig);
	CHECK(!strcmp(story, "r"
			     "rwrs"
			     "rwrs"
			     "rwrfs" /* int3 again */ "rwrs"
			     "rwrs"
			     "rwrs"));
	CHECK_EQ(rig.fake.log[15].bytes[0], TP_INT3);
	CHECK(rig_is_old(&rig, 0));
	rig_close(&rig);
}

static size_t unmap_at;

static void unmap_second_page(struct fake *fake, const struct fake_op *op)
{
	(void)op;
	if (fake->logged != unmap_at)
		return;
	fake->hole_start = fake_addr(fake, TP_PAGE_BYTES);
	fake->hole_end = fake_addr(fake, 2 * TP_PAGE_BYTES);
}

/* A site whose memory has gone holds nothing of ours; every other one goes back. */
static void check_undone_without_the_second_page(struct rig *rig)
{
	CHECK_EQ(rig->outcome.recovered, rig->outcome.phase != TP_PHASE_VERIFY);
	for (size_t i = 0; i < rig->count; i++) {
		uint64_t addr = rig->asked[i].addr;

		if (addr >= rig->fake.hole_start && addr < rig->fake.hole_end)
			continue;
		CHECK_NOTE("unmapped after operation %zu, site %zu", unmap_at, i);
		CHECK(rig_is_old(rig, i));
	}
}

TEST(lineage_h15_module_unmapped_at_any_moment_does_not_break_the_engine)
{
	int failures = 0;

	for (unmap_at = 1; unmap_at < 40; unmap_at++) {
		struct rig rig;

		CHECK_NOTE("unmapped after operation %zu", unmap_at);
		rig_open(&rig, 3);
		for (size_t page = 0; page < 3; page++) {
			rig_nop5(&rig, page * TP_PAGE_BYTES + 16);
			rig_flip(&rig, page * TP_PAGE_BYTES + 64);
			rig_nop5(&rig, page * TP_PAGE_BYTES + 4000);
		}
		rig.batch.all_or_nothing = true;
		rig.fake.after = unmap_second_page;
		if (rig_run(&rig)) {
			failures++;
			check_undone_without_the_second_page(&rig);
		}
		CHECK(!rig.engine.broken && !rig.engine.active);
		rig_close(&rig);
	}
	CHECK(failures > 6 && failures < 39); /* it comes too late for the rest */
}

/* Three pages read, three times three written, six finishes, two syncs before it. */
#define LAST_SYNC 38
static uint8_t fresh_page[TP_PAGE_BYTES];

/* dlclose before an operation, dlopen of the same file behind it: its int3s are gone with it. */
static void open_behind(struct fake *fake, const struct fake_op *op)
{
	(void)op;
	if (fake->hole_start)
		memcpy(fake->bytes + TP_PAGE_BYTES, fresh_page, TP_PAGE_BYTES);
	fake->hole_start = fake->hole_end = 0;
}

TEST(lineage_h15_module_mapped_anew_in_an_undo_does_not_break_the_engine)
{
	size_t undone = 0;

	for (unmap_at = LAST_SYNC + 1; !undone || unmap_at < undone; unmap_at++) {
		struct rig rig;

		CHECK_NOTE("mapped anew at operation %zu", unmap_at);
		rig_open(&rig, 3);
		for (size_t page = 0; page < 3; page++) {
			rig_nop5(&rig, page * TP_PAGE_BYTES + 16);
			rig_flip(&rig, page * TP_PAGE_BYTES + 64);
		}
		memcpy(fresh_page, rig.fake.bytes + TP_PAGE_BYTES, TP_PAGE_BYTES);
		rig.batch.all_or_nothing = true;
		fail_nth(&rig, FAKE_SYNC, 2, -EPERM); /* all is written: now undo it */
		rig.fake.before = unmap_second_page;
		rig.fake.after = open_behind;
		CHECK_EQ(rig_run(&rig), -EPERM);
		CHECK_EQ(rig.fake.log[LAST_SYNC].result, -EPERM);
		CHECK(!rig.engine.broken && !rig.engine.active);
		CHECK_EQ(rig_int3s(&rig), 0);
		undone = rig.fake.logged;
		rig_close(&rig);
	}
}

TEST(seed_28_failed_recovery_closes_the_engine_and_keeps_the_descriptor)
{
	struct rig rig;
	struct tp_frame frame;

	rig_open(&rig, 3);
	rig_mixed(&rig);
	rig.fake.faults[0] = (struct fake_fault){ FAKE_WRITE, 4, SIZE_MAX, -EIO };
	CHECK_EQ(rig_run(&rig), -EIO);
	CHECK(rig.engine.broken && !rig.outcome.recovered);
	CHECK_EQ(rig.outcome.phase, TP_PHASE_TAIL);
	CHECK(rig.engine.active == &rig.batch);
	CHECK_EQ(rig_int3s(&rig), 7);
	for (size_t i = 0; i < rig.count; i++)
		if (!rig.asked[i].flags)
			CHECK_EQ(rig_trap(&rig, i, &frame), TP_TRAP_EMULATED);
	rig.fake.faults[0].times = 0;
	CHECK_EQ(rig_run_unlearned(&rig), -TP_EBROKEN);
	CHECK_EQ(rig.fake.logged, 0);
	rig_close(&rig);
}

TEST(design_known_table_says_what_a_failed_recovery_left_in_the_text)
{
	struct rig rig;

	rig_open(&rig, 3);
	rig_mixed(&rig);
	rig.fake.faults[0] = (struct fake_fault){ FAKE_WRITE, 4, SIZE_MAX, -EIO };
	CHECK_EQ(rig_run(&rig), -EIO);
	for (size_t i = 0; i < rig.count; i++) {
		if (rig.asked[i].flags)
			continue;
		CHECK_NOTE("site %zu, outcome %d", i, rig_site(&rig, i)->outcome);
		CHECK_BYTES(rig_known(&rig, i)->current, rig_bytes(&rig, i), rig.asked[i].len);
		CHECK(rig_known(&rig, i)->patched);
	}
	rig_close(&rig);
}

TEST(seed_25_26_failure_that_started_recovery_is_the_one_reported)
{
	struct rig rig;

	rig_open(&rig, 1);
	rig_nop5(&rig, 0);
	fail_nth(&rig, FAKE_WRITE, 1, -ENOSPC);
	rig.fake.faults[1] = (struct fake_fault){ FAKE_SYNC, 1, 1, -EPERM }; /* recovery's first */
	CHECK_EQ(rig_run(&rig), -ENOSPC);
	CHECK_EQ(rig.outcome.phase, TP_PHASE_TAIL);
	CHECK(rig.engine.broken && !rig.outcome.recovered);
	CHECK_EQ(rig.outcome.syncs, 2);
	rig_close(&rig);
}
