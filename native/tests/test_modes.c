/* SPDX-License-Identifier: Apache-2.0 */
/** @file Direct and stop mode: whole sites in one pass, one sync, no int3 at any moment. */
#include <errno.h>

#include "check.h"
#include "oracle.h"

static void open_flips(struct rig *rig, enum tp_mode mode)
{
	rig_open(rig, 3);
	rig->batch.mode = mode;
	rig_flip(rig, 0);
	rig_flip(rig, 61); /* over the end of a cache line */
	rig_flip(rig, TP_PAGE_BYTES - 2);
	rig_skip(rig, 200);
	rig_flip(rig, 2 * TP_PAGE_BYTES + 7);
}

/* What only stop mode may write: several bytes of one instruction, and of a run of NOPs. */
static void open_whole(struct rig *rig)
{
	rig_open(rig, 3);
	rig->batch.mode = TP_MODE_STOP;
	rig_nop5(rig, 10);
	rig_add(rig, 61, 5, RUN5, CALL5);
	rig_skip(rig, 200);
	rig_add(rig, TP_PAGE_BYTES - 3, 5, JMP5, CALL5);
	rig_add(rig, 2 * TP_PAGE_BYTES, 15,
		BYTES(1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15),
		BYTES(15, 14, 13, 12, 11, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1));
}

TEST(direct_flips_in_one_pass_with_one_sync_and_every_fetch_is_right)
{
	struct rig rig;
	struct oracle oracle;

	open_flips(&rig, TP_MODE_DIRECT);
	oracle_open(&oracle, &rig);
	CHECK_EQ(rig_run(&rig), 0);
	oracle_look(&oracle);
	CHECK_EQ(oracle.violations, 0);
	CHECK_EQ(rig.outcome.syncs, 1);
	CHECK_EQ(rig.outcome.finished, 5);
	CHECK_EQ(rig_int3s(&rig), 0);
	for (size_t i = 0; i < rig.count; i++)
		CHECK(rig.asked[i].flags || rig_is_new(&rig, i));
	oracle_close(&oracle);
	rig_close(&rig);
}

TEST(direct_merges_nops_where_every_mix_is_nops)
{
	struct rig rig;

	rig_open(&rig, 1);
	rig.batch.mode = TP_MODE_DIRECT;
	rig_add(&rig, 30, 5, RUN5, BYTES(0x66, 0x66, 0x66, 0x66, 0x90));
	CHECK_EQ(rig_run(&rig), 0);
	CHECK(rig_is_new(&rig, 0));
	rig_close(&rig);
}

TEST(direct_refuses_what_one_store_cannot_change)
{
	struct rig rig;

	rig_open(&rig, 1);
	rig.batch.mode = TP_MODE_DIRECT;
	rig_flip(&rig, 0);
	rig_nop5(&rig, 32);
	CHECK_EQ(rig_run(&rig), -TP_EDIRECT);
	CHECK_EQ(rig.outcome.phase, TP_PHASE_CHECK);
	CHECK_EQ(rig.outcome.fail_count, 1);
	CHECK_EQ(rig.outcome.writes, 0);
	CHECK(rig_is_old(&rig, 0) && rig_is_old(&rig, 1));
	rig_close(&rig);
}

TEST(stop_writes_whole_sites_in_one_pass)
{
	struct rig rig;

	open_whole(&rig);
	CHECK_EQ(rig_run(&rig), 0);
	CHECK_EQ(rig.outcome.syncs, 1);
	CHECK_EQ(rig.outcome.finished, 5);
	for (size_t i = 0; i < rig.count; i++) {
		CHECK(rig.asked[i].flags || rig_is_new(&rig, i));
		CHECK(rig.asked[i].flags || rig_known(&rig, i)->mode == TP_MODE_STOP);
	}
	rig_close(&rig);
}

TEST(modes_verify_before_they_write)
{
	for (enum tp_mode mode = TP_MODE_DIRECT; mode <= TP_MODE_STOP; mode++) {
		struct rig rig;

		open_flips(&rig, mode);
		rig.fake.bytes[TP_PAGE_BYTES - 1] = 0x41;
		CHECK_EQ(rig_run(&rig), -EINVAL);
		CHECK_EQ(rig.outcome.phase, TP_PHASE_VERIFY);
		CHECK_EQ(rig.outcome.writes, 0);
		CHECK(rig_is_old(&rig, 0) && rig_is_old(&rig, 1));
		rig_close(&rig);
	}
}

TEST(a_prepared_batch_has_read_everything_and_written_nothing)
{
	struct rig rig;

	open_whole(&rig);
	CHECK_EQ(rig_prepare(&rig), 0);
	CHECK_EQ(rig.outcome.writes, 0);
	CHECK(rig.outcome.reads > 0);
	for (size_t i = 0; i < rig.count; i++)
		CHECK(rig_is_old(&rig, i));
	CHECK_EQ(tp_write_batch(&rig.engine, &rig.batch), 0);
	CHECK_EQ(rig.outcome.finished, rig.count);
	for (size_t i = 0; i < rig.count; i++)
		CHECK(rig_is_new(&rig, i));
	rig_close(&rig);
}

TEST(what_is_left_out_of_a_prepared_batch_stays_and_the_rest_is_written)
{
	for (size_t out = 0; out < 5; out++) {
		struct rig rig;

		CHECK_NOTE("site %zu", out);
		open_whole(&rig);
		CHECK_EQ(rig_prepare(&rig), 0);
		tp_leave_out(&rig.batch, rig_site(&rig, out));
		tp_leave_out(&rig.batch, rig_site(&rig, out)); /* twice is once */
		CHECK_EQ(rig.batch.skipped, rig_is_null(&rig.asked[out]) ? 1 : 2);
		CHECK_EQ(tp_write_batch(&rig.engine, &rig.batch), 0);
		for (size_t i = 0; i < rig.count; i++)
			CHECK(i == out ? rig_is_old(&rig, i) : rig_is_new(&rig, i));
		CHECK_EQ(rig_known(&rig, out) && rig_known(&rig, out)->patched, 0);
		rig_close(&rig);
	}
}

/* Threads have run since it was verified: each site is looked at again just before it is written. */
TEST(what_strangers_change_in_a_prepared_batch_undoes_it)
{
	struct rig rig;

	open_whole(&rig);
	rig.batch.all_or_nothing = true;
	CHECK_EQ(rig_prepare(&rig), 0);
	rig.fake.bytes[2 * TP_PAGE_BYTES + 4] = 0x41;
	CHECK_EQ(tp_write_batch(&rig.engine, &rig.batch), -EINVAL);
	CHECK_EQ(rig.outcome.phase, TP_PHASE_FIRST);
	CHECK(rig.outcome.recovered && !rig.engine.broken);
	CHECK_EQ(rig.fake.bytes[2 * TP_PAGE_BYTES + 4], 0x41);
	for (size_t i = 0; i + 1 < rig.count; i++)
		CHECK(rig_is_old(&rig, i));
	rig_close(&rig);
}

TEST(a_prepared_batch_that_is_verified_again_is_refused_as_before)
{
	struct rig rig;

	open_whole(&rig);
	CHECK_EQ(rig_prepare(&rig), 0);
	CHECK_EQ(tp_verify_again(&rig.engine, &rig.batch), 0);
	rig.fake.bytes[2 * TP_PAGE_BYTES + 4] = 0x41;
	CHECK_EQ(tp_verify_again(&rig.engine, &rig.batch), -EINVAL);
	CHECK_EQ(rig.outcome.phase, TP_PHASE_VERIFY);
	CHECK_EQ(rig.outcome.writes, 0);
	rig_close(&rig);
}

TEST(modes_refuse_an_unknown_one)
{
	struct rig rig;

	open_flips(&rig, TP_MODES);
	CHECK_EQ(rig_run(&rig), -TP_EMODE);
	CHECK_EQ(rig.outcome.writes, 0);
	rig_close(&rig);
}

/* After a failure that was recovered: no byte but old or, where a finish has vouched for it, new. */
static void check_recovered(const struct rig *rig)
{
	CHECK(rig->outcome.recovered && !rig->engine.broken);
	for (size_t i = 0; i < rig->count; i++) {
		const struct tp_poke *site = rig_site(rig, i);

		if (site->flags)
			continue;
		CHECK(site->outcome == TP_SITE_DONE ? rig_is_new(rig, i) : rig_is_old(rig, i));
		CHECK(site->outcome != TP_SITE_DONE || !rig->batch.all_or_nothing);
		CHECK(site->outcome != TP_SITE_WRITTEN);
	}
}

static void fail_at(void open(struct rig *), struct fake_fault fault, bool all_or_nothing)
{
	struct rig rig;

	CHECK_NOTE("kind %d k %zu result %ld all %d", fault.kind, fault.k, fault.result,
		   all_or_nothing);
	open(&rig);
	rig.batch.all_or_nothing = all_or_nothing;
	rig.fake.faults[0] = fault;
	if (rig_run(&rig)) {
		if (rig.outcome.phase > TP_PHASE_VERIFY)
			check_recovered(&rig);
		else
			CHECK_EQ(rig.outcome.writes, 0);
	} else {
		/* it never came to that operation, or the write was no longer than that */
		CHECK(fault.result > 0 || fault.k >= rig.fake.count[fault.kind]);
	}
	rig_close(&rig);
}

static void open_stop_flips(struct rig *rig)
{
	open_flips(rig, TP_MODE_STOP);
}

static void open_direct_flips(struct rig *rig)
{
	open_flips(rig, TP_MODE_DIRECT);
}

TEST(modes_recover_from_a_fault_at_every_operation)
{
	void (*const opens[])(struct rig *) = { open_direct_flips, open_stop_flips, open_whole };

	for (size_t o = 0; o < 3; o++)
		for (size_t k = 0; k < 16; k++)
			for (int all = 0; all < 2; all++) {
				const size_t once = 1;

				fail_at(opens[o],
					(struct fake_fault){ FAKE_READ, k, once, -EFAULT }, all);
				fail_at(opens[o], (struct fake_fault){ FAKE_WRITE, k, once, -EIO },
					all);
				fail_at(opens[o], (struct fake_fault){ FAKE_SYNC, k, once, -EPERM },
					all);
				fail_at(opens[o],
					(struct fake_fault){ FAKE_FINISH, k, once, -ENOSPC }, all);
				for (long bytes = 0; bytes < 80; bytes++)
					fail_at(opens[o],
						(struct fake_fault){ FAKE_WRITE, k, once, bytes },
						all);
			}
}

TEST(modes_close_the_engine_when_the_undo_fails)
{
	struct rig rig;

	open_whole(&rig);
	rig.fake.faults[0] = (struct fake_fault){ FAKE_WRITE, 0, 1, 3 };
	rig.fake.faults[1] = (struct fake_fault){ FAKE_WRITE, 1, SIZE_MAX, -EIO };
	CHECK(rig_run(&rig) != 0);
	CHECK(!rig.outcome.recovered);
	CHECK(rig.engine.broken);
	rig_close(&rig);
}

/* Stopped threads go on into whatever is left: an undo that is cut off must not leave half a site. */
TEST(stop_finishes_an_undo_that_was_cut_off)
{
	for (int all = 0; all < 2; all++)
		for (long forward = 0; forward < 40; forward++)
			for (long back = -1; back < 20; back++) {
				struct rig rig;

				CHECK_NOTE("all %d forward %ld back %ld", all, forward, back);
				open_whole(&rig);
				rig.batch.all_or_nothing = all;
				rig.fake.faults[0] =
					(struct fake_fault){ FAKE_WRITE, 0, 1, forward };
				rig.fake.faults[1] = (struct fake_fault){ FAKE_WRITE, 1, 1,
									  back < 0 ? -EIO : back };
				CHECK_EQ(rig_run(&rig), -EIO);
				check_recovered(&rig);
				CHECK(!rig.outcome.conflicts);
				rig_close(&rig);
			}
}

TEST(modes_try_an_undo_again_whatever_of_it_fails)
{
	void (*const opens[])(struct rig *) = { open_direct_flips, open_whole };

	for (size_t o = 0; o < 2; o++)
		for (enum fake_kind kind = FAKE_READ; kind <= FAKE_SYNC; kind++)
			for (size_t k = 0; k < 24; k++) {
				struct rig rig;

				CHECK_NOTE("site set %zu kind %d k %zu", o, kind, k);
				opens[o](&rig);
				rig.batch.all_or_nothing = true;
				rig.fake.faults[0] =
					(struct fake_fault){ FAKE_FINISH, 4, 1, -ENOSPC };
				rig.fake.faults[1] = (struct fake_fault){ kind, k, 1, -EPERM };
				CHECK(rig_run(&rig));
				if (rig.outcome.phase > TP_PHASE_VERIFY)
					check_recovered(&rig);
				rig_close(&rig);
			}
}

/* dlclose() while the batch fails: what is gone stays forgotten when the undo begins again. */
static void unmap_last_page(struct fake *fake, const struct fake_op *op)
{
	if (op->kind != FAKE_FINISH || !op->result)
		return;
	fake->hole_start = fake_addr(fake, 2 * TP_PAGE_BYTES);
	fake->hole_end = fake_addr(fake, fake->size);
}

/* A module is closed while the batch runs, another comes to its place, and a third in the midst of the
 * undo: behind the look at the second. */
static int modules;

static void map_others(struct fake *fake, const struct fake_op *op)
{
	bool failed = op->kind == FAKE_WRITE && op->result < (long)op->len;

	if ((modules == 1 && failed) || (modules == 2 && op->kind == FAKE_READ))
		memset(fake->bytes + TP_PAGE_BYTES, 0x11 * modules++, TP_PAGE_BYTES);
}

TEST(an_undo_writes_nothing_to_what_has_come_to_the_place_of_a_module)
{
	for (enum tp_mode mode = TP_MODE_INT3; mode < TP_MODES; mode++) {
		struct rig rig;

		CHECK_NOTE("mode %d", mode);
		modules = 1;
		rig_open(&rig, 3);
		rig.engine.window_pages = 4;
		rig.batch.mode = mode;
		rig.batch.finish = NULL;
		rig.batch.all_or_nothing = true;
		rig_flip(&rig, 64);
		rig_flip(&rig, TP_PAGE_BYTES + 64);
		rig_flip(&rig, 2 * TP_PAGE_BYTES + 64);
		rig.fake.after = map_others;
		rig.fake.faults[0] = (struct fake_fault){ FAKE_WRITE, 0, 1, 2 * TP_PAGE_BYTES };
		CHECK(rig_run(&rig) != 0);
		CHECK(rig.outcome.recovered);
		CHECK(rig_is_old(&rig, 0) && rig_is_old(&rig, 2));
		for (size_t i = 0; i < TP_PAGE_BYTES; i++)
			CHECK_EQ(rig.fake.bytes[TP_PAGE_BYTES + i], 0x22);
		CHECK_EQ(modules, 3);
		rig_close(&rig);
	}
}

TEST(modes_try_an_undo_again_beside_a_module_that_is_gone)
{
	struct rig rig;

	open_whole(&rig);
	rig.batch.all_or_nothing = true;
	rig.fake.after = unmap_last_page;
	rig.fake.faults[0] = (struct fake_fault){ FAKE_FINISH, 4, 1, -ENOSPC };
	rig.fake.faults[1] = (struct fake_fault){ FAKE_SYNC, 0, 1, -EPERM };
	CHECK_EQ(rig_run(&rig), -ENOSPC);
	CHECK(rig.outcome.recovered && !rig.engine.broken);
	CHECK_EQ(rig.outcome.syncs, 2);
	for (size_t i = 0; i < 4; i++)
		CHECK(rig_is_old(&rig, i));
	CHECK_EQ(rig_site(&rig, 4)->outcome, TP_SITE_RESTORED);
	rig_close(&rig);
}
