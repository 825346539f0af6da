/* SPDX-License-Identifier: Apache-2.0 */
/**
 * @file
 * Fault injection over windows: every operation fails, two fail, all fail from one on, writes are cut
 * off at every byte, strangers write, a page goes away. Every site is then old or new and no int3 of
 * ours is left, at no head; or the engine is broken, and each of them is handled.
 */
#include <errno.h>

#include "heads.h"

enum { STEPS_AT_MOST = 200, MIXED_WINDOWS = 0x2a5 }; /* a bit each of those that go forward */

/* Windows across and at the end of pages, others touching them, NULL records inside. */
static void add_mixed(struct rig *rig, bool with_back)
{
	const size_t second = TP_PAGE_BYTES, third = 2 * TP_PAGE_BYTES;

	rig_window(rig, third + 64, EVERY);
	rig_skip(rig, third + 66);
	rig_window(rig, second - 3, 1 << 2 | 1 << 4);
	rig_nop5(rig, second - 8);
	rig_flip(rig, second + 2);
	rig_window(rig, second - 60, 1 << 3);
	rig_add(rig, second - 50, 1, BYTES(0x90), BYTES(0xc3));
	rig_window(rig, third - 5, 1 << 1);
	rig_skip(rig, third - 5);
	rig_window(rig, third - 10, 1 << 4);
	rig_add(rig, third + 80, 9, BYTES(0x66, 0x0f, 0x1f, 0x84, 0, 0, 0, 0, 0),
		BYTES(0x66, 0x0f, 0x1f, 0x84, 0, 1, 1, 1, 1));
	if (with_back) {
		rig_window_back(rig, second + 40, EVERY);
		rig_window_back(rig, third + 59, 1 << 2);
	}
}

struct plan {
	bool all_or_nothing;
	bool has_finish; /* else there are windows that come back too */
	bool leave_busy;
	unsigned int busy;
	struct fake_fault faults[FAKE_FAULTS];
};

static void check_broken_site(struct rig *rig, size_t i)
{
	const struct tp_poke *poke = &rig->asked[i];
	const uint8_t *bytes = rig_bytes(rig, i);
	unsigned int heads = rig_is_back(poke) ? 0 : rig_heads(poke);
	struct tp_frame frame;

	for (unsigned int at = 0; at < poke->len; at++) {
		if (bytes[at] != TP_INT3)
			continue;
		CHECK(!at || heads >> at & 1);
		if (at)
			check_sent_to_copy(rig, i, at);
		else
			CHECK_EQ(rig_trap(rig, i, &frame), TP_TRAP_EMULATED);
	}
	if (bytes[0] == TP_INT3)
		CHECK_EQ(rig_known(rig, i)->current[0], TP_INT3);
	if (memcmp(bytes, poke->old, poke->len))
		CHECK(rig_known(rig, i)->patched);
}

static void check_failed_site(struct rig *rig, size_t i, const struct plan *plan)
{
	const struct tp_poke *poke = rig_site(rig, i);

	check_known(rig, i);
	if (poke->outcome == TP_SITE_DONE) {
		CHECK(!plan->all_or_nothing && rig_is_new(rig, i));
	} else {
		CHECK(poke->outcome == TP_SITE_PENDING || poke->outcome == TP_SITE_RESTORED ||
		      (poke->outcome == TP_SITE_LEFT && plan->leave_busy && plan->busy >> i & 1));
		CHECK(rig_is_old(rig, i));
	}
}

static void check_promise(struct rig *rig, const struct plan *plan, int code)
{
	bool wrote = rig->outcome.phase >= TP_PHASE_INT3;
	bool leaves = plan->leave_busy;

	CHECK_EQ(rig->outcome.code, code);
	CHECK_EQ(rig->outcome.reads, rig->fake.count[FAKE_READ]);
	CHECK_EQ(rig->outcome.writes, rig->fake.count[FAKE_WRITE]);
	CHECK_EQ(rig->outcome.syncs, rig->fake.count[FAKE_SYNC]);
	CHECK(rig->engine.active == (rig->engine.broken ? &rig->batch : NULL));
	CHECK(rig->outcome.recovered == (code && wrote && !rig->engine.broken));
	if (!rig->engine.broken)
		CHECK_EQ(rig_int3_bytes(rig), 0);
	for (size_t i = 0; i < rig->count; i++) {
		if (rig_is_null(&rig->asked[i]))
			CHECK_EQ(rig_site(rig, i)->outcome, TP_SITE_SKIPPED);
		else if (rig->engine.broken)
			check_broken_site(rig, i);
		else if (code)
			check_failed_site(rig, i, plan);
		else
			CHECK(leaves && plan->busy >> i & 1 ? rig_is_old(rig, i) :
							      rig_is_new(rig, i));
	}
}

/* Returns false when the batch never came to what should fail. */
static bool try_plan(const struct plan *plan, bool may_break)
{
	struct rig rig;
	bool failed;
	int code;

	rig_open(&rig, 3);
	add_mixed(&rig, !plan->has_finish && !plan->all_or_nothing);
	rig.batch.all_or_nothing = plan->all_or_nothing;
	rig.batch.leave_busy = plan->leave_busy;
	if (!plan->has_finish)
		rig.batch.finish = NULL;
	rig.busy = plan->busy;
	memcpy(rig.fake.faults, plan->faults, sizeof(plan->faults));
	code = rig_run(&rig);
	check_promise(&rig, plan, code);
	CHECK(may_break || !rig.engine.broken);
	failed = rig.fake.count[plan->faults[0].kind] > plan->faults[0].k;
	rig_close(&rig);
	return failed;
}

/* Batches: with and without all or nothing and finish; nobody, some and all are busy, left or not. */
static struct plan plan_of(size_t turn)
{
	static const unsigned int busy[] = { 0, 1 << 2 | 1 << 7, MIXED_WINDOWS, 1 << 0, 1 << 9 };

	return (struct plan){ .all_or_nothing = turn & 1,
			      .has_finish = turn & 2,
			      .leave_busy = turn & 4,
			      .busy = busy[turn / 8] };
}

enum { PLANS = 40 };

static const long error_of[FAKE_KINDS] = { -EIO, -ENOSPC, -EPERM, -ENOMEM, -ETIMEDOUT };

/* Fail the k-th operation of @kind for every k; @times: and so many after it. */
static void sweep(enum fake_kind kind, size_t times)
{
	size_t met = 0;

	for (size_t turn = 0; turn < PLANS; turn++) {
		struct plan plan = plan_of(turn);
		bool fails = plan.busy && !plan.leave_busy;

		for (size_t k = 0; k < STEPS_AT_MOST; k++, met++) {
			CHECK_NOTE("kind %d, k %zu, plan %zu", kind, k, turn);
			plan.faults[0] = (struct fake_fault){ kind, k, times, error_of[kind] };
			/* the second failure of a batch, where somebody is inside */
			if (!try_plan(&plan, times > 1 || fails))
				break;
		}
	}
	CHECK(met >= (kind == FAKE_FINISH ? 10 : PLANS));
}

TEST(heads_any_one_read_fails_and_all_is_recovered)
{
	sweep(FAKE_READ, 1);
}

TEST(heads_any_one_write_fails_and_all_is_recovered)
{
	sweep(FAKE_WRITE, 1);
}

TEST(heads_any_one_sync_fails_and_all_is_recovered)
{
	sweep(FAKE_SYNC, 1);
}

TEST(heads_any_one_finish_fails_and_all_is_recovered)
{
	sweep(FAKE_FINISH, 1);
}

TEST(heads_the_look_fails_and_all_is_recovered)
{
	sweep(FAKE_LOOK, 1);
}

TEST(heads_reads_writes_or_syncs_fail_from_any_point_on_and_every_int3_stays_handled)
{
	sweep(FAKE_READ, SIZE_MAX);
	sweep(FAKE_WRITE, SIZE_MAX);
	sweep(FAKE_SYNC, SIZE_MAX);
}

TEST(heads_writes_cut_off_at_any_byte_are_recovered)
{
	for (size_t turn = 0; turn < PLANS; turn++) {
		struct plan plan = plan_of(turn);
		bool fails = plan.busy && !plan.leave_busy;
		bool met = true;

		for (size_t k = 0; met && k < STEPS_AT_MOST; k++)
			for (long done = 0; met && done < 80; done++) {
				CHECK_NOTE("write %zu, %ld bytes, plan %zu", k, done, turn);
				plan.faults[0] = (struct fake_fault){ FAKE_WRITE, k, 1, done };
				met = try_plan(&plan, fails);
			}
	}
}

TEST(heads_writes_cut_off_for_ever_leave_every_int3_handled)
{
	for (size_t turn = 0; turn < PLANS; turn++) {
		struct plan plan = plan_of(turn);

		for (size_t k = 0; k < 12; k++)
			for (long done = 0; done < 8; done++) {
				CHECK_NOTE("write %zu, %ld bytes, plan %zu", k, done, turn);
				plan.faults[0] =
					(struct fake_fault){ FAKE_WRITE, k, SIZE_MAX, done };
				try_plan(&plan, true);
			}
	}
}

TEST(heads_any_two_operations_fail_and_every_int3_is_gone_or_handled)
{
	static const size_t turns[] = { 0, 1, 2, 3, 12, 14, 15 };
	struct plan plan;

	for (size_t t = 0; t < sizeof(turns) / sizeof(*turns); t++)
		for (size_t both = 0; both < FAKE_KINDS * FAKE_KINDS; both++) {
			enum fake_kind kind = both % FAKE_KINDS, other = both / FAKE_KINDS;

			plan = plan_of(turns[t]);
			for (size_t k = 0; k < 40; k++)
				for (size_t j = kind == other ? k + 1 : 0; j < 40; j++) {
					CHECK_NOTE("%d %zu, %d %zu, plan %zu", kind, k, other, j,
						   turns[t]);
					plan.faults[0] =
						(struct fake_fault){ kind, k, 1, error_of[kind] };
					plan.faults[1] =
						(struct fake_fault){ other, j, 1, error_of[other] };
					if (!try_plan(&plan, true))
						goto next;
				}
next:;
		}
}

TEST(heads_int3s_cut_off_at_any_byte_of_a_window_are_put_back)
{
	for (unsigned int mask = 1; mask < MASKS; mask++)
		for (long done = 0; done < 16; done++) {
			struct rig rig;
			unsigned int last = 31 - (unsigned int)__builtin_clz(HEADS(mask));

			CHECK_NOTE("heads %#x, %ld bytes", HEADS(mask), done);
			rig_open(&rig, 1);
			rig_window(&rig, 32, HEADS(mask));
			rig_window(&rig, 37, HEADS(mask));
			rig_window(&rig, 42, HEADS(mask));
			rig.fake.faults[0] = (struct fake_fault){ FAKE_WRITE, 0, 1, done };
			if (done > 10 + last) {
				CHECK_EQ(rig_run(&rig), 0);
				rig_close(&rig);
				continue;
			}
			CHECK_EQ(rig_run(&rig), -EIO);
			CHECK_EQ(rig.outcome.phase, TP_PHASE_INT3);
			CHECK_EQ(rig.outcome.fail_index, (done + 4 - last) / 5);
			check_undone(&rig);
			for (size_t i = 0; i < rig.count; i++)
				CHECK_EQ(rig_site(&rig, i)->outcome,
					 done > (long)(5 * i) ? TP_SITE_RESTORED : TP_SITE_PENDING);
			trap_everywhere(&rig);
			rig_close(&rig);
		}
}

TEST(heads_release_cut_off_at_any_byte_is_finished_by_the_undo)
{
	for (unsigned int mask = 1; mask < MASKS; mask++)
		for (long done = 0; done < 10; done++) {
			struct rig rig;

			CHECK_NOTE("heads %#x, %ld bytes", HEADS(mask), done);
			rig_open(&rig, 1);
			rig_window(&rig, 32, HEADS(mask));
			rig_window(&rig, 37, HEADS(mask));
			rig_window(&rig, 96, HEADS(mask));
			rig.batch.leave_busy = true;
			rig.busy = 3;
			rig.fake.faults[0] = (struct fake_fault){ FAKE_WRITE, 1, 1, done };
			CHECK_EQ(rig_run(&rig), -EIO);
			CHECK_EQ(rig.outcome.phase, TP_PHASE_LOOK);
			CHECK_EQ(rig.outcome.fail_index, done / 5);
			for (size_t i = 0; i < rig.count; i++)
				CHECK_EQ(rig_site(&rig, i)->outcome, TP_SITE_RESTORED);
			CHECK_EQ(rig.outcome.left, 0);
			check_undone(&rig);
			trap_everywhere(&rig);
			rig_close(&rig);
		}
}

TEST(heads_release_cut_off_and_never_undone_is_still_handled_and_known)
{
	for (long done = 0; done < 5; done++) {
		struct rig rig;

		CHECK_NOTE("%ld bytes", done);
		rig_open(&rig, 1);
		rig_window(&rig, 32, EVERY);
		rig.batch.leave_busy = true;
		rig.busy = 1;
		rig.fake.faults[0] = (struct fake_fault){ FAKE_WRITE, 1, 1, done };
		rig.fake.faults[1] = (struct fake_fault){ FAKE_SYNC, 1, 1, -EPERM };
		CHECK_EQ(rig_run(&rig), -EIO);
		CHECK(rig.engine.broken && rig.engine.active == &rig.batch);
		CHECK_EQ(rig_int3_bytes(&rig), 5 - done);
		check_broken_site(&rig, 0);
		CHECK_BYTES(rig_known(&rig, 0)->current + 1, PUSHES5 + 1, 4);
		CHECK_EQ(rig_run(&rig), -TP_EBROKEN);
		rig_close(&rig);
	}
}

TEST(heads_site_that_is_old_already_fails_no_undo)
{
	struct rig rig;

	rig_open(&rig, 1);
	rig_window(&rig, 32, 1 << 1);
	rig.batch.leave_busy = true;
	rig.busy = 1;
	rig.fake.faults[0] = (struct fake_fault){ FAKE_WRITE, 1, 1, 2 }; /* all that differs */
	rig.fake.faults[1] = (struct fake_fault){ FAKE_WRITE, 2, 1, -EIO };
	CHECK_EQ(rig_run(&rig), -EIO);
	check_undone(&rig);
	CHECK_EQ(rig_site(&rig, 0)->outcome, TP_SITE_RESTORED);
	rig_close(&rig);
}

static size_t lost_write;

/* A write that says that it was done, and was not. */
static long write_and_lose(void *ctx, uint64_t addr, const void *buf, size_t len)
{
	const struct fake *fake = ctx;
	uint8_t keep[TP_PAGE_BYTES];
	bool lost = fake->count[FAKE_WRITE] == lost_write;
	long done;

	memcpy(keep, (const void *)addr, len);
	done = fake_ops.write(ctx, addr, buf, len);
	if (lost)
		memcpy((void *)addr, keep, len);
	return done;
}

TEST(heads_write_that_is_lost_is_noticed_and_leaves_no_int3_unhandled)
{
	static const enum tp_phase phases[2][3] = {
		{ TP_PHASE_INT3, TP_PHASE_LOOK, TP_PHASE_LOOK }, /* the latter two in the undo */
		{ TP_PHASE_INT3, TP_PHASE_LOOK, TP_PHASE_TAIL },
	};
	struct tp_ops losing = fake_ops;

	losing.write = write_and_lose;
	for (int leave = 0; leave < 2; leave++)
		for (lost_write = 0; lost_write < 3; lost_write++) {
			struct rig rig;
			bool in_undo = !leave && lost_write;

			CHECK_NOTE("write %zu, leave_busy %d", lost_write, leave);
			rig_open(&rig, 1);
			rig.engine.ops = &losing;
			rig_window(&rig, 32, EVERY);
			rig_window(&rig, 64, 1 << 2);
			rig.batch.leave_busy = leave;
			rig.busy = 1 << 1;
			CHECK_EQ(rig_run(&rig), in_undo ? -TP_EINSIDE : -TP_EVERIFY);
			CHECK_EQ(rig.outcome.phase, phases[leave][lost_write]);
			CHECK_EQ(rig.engine.broken, in_undo);
			if (in_undo)
				trap_everywhere(&rig);
			else
				check_undone(&rig);
			CHECK_EQ(rig.outcome.left, leave && lost_write == 2);
			rig_close(&rig);
		}
}

/* Strangers. */

TEST(heads_no_int3_of_ours_is_left_behind_a_strangers_first_byte)
{
	for (unsigned int mask = 1; mask < MASKS; mask++)
		for (size_t k = 0; k < 20; k++) {
			struct rig rig;
			int code;

			CHECK_NOTE("heads %#x, operation %zu", HEADS(mask), k);
			rig_open(&rig, 1);
			rig_window(&rig, 32, HEADS(mask));
			rig_window(&rig, 64, HEADS(mask));
			rig.batch.all_or_nothing = true;
			rig.fake.stranger_k = k;
			rig.fake.stranger_len = 1;
			rig.fake.stranger_addr = rig.asked[1].addr;
			rig.fake.stranger_bytes[0] = 0x42;
			code = rig_run(&rig);
			CHECK(!rig.engine.broken && !rig.engine.active);
			CHECK(code ? rig_is_old(&rig, 0) : rig_is_new(&rig, 0));
			CHECK_EQ(rig_int3_bytes(&rig), 0);
			rig_close(&rig);
		}
}

TEST(heads_code_of_a_stranger_that_begins_like_ours_is_not_written_over)
{
	static const uint8_t others[][5] = { { 0x55, 0x48, 0x89, 0xe5, 0x53 },
					     { 0x55, 0x56, 0x57, 0x50, 0xcc },
					     { 0x55, 0xcc, 0x57, 0x50, 0x52 } };

	for (size_t i = 0; i < 3; i++) {
		struct rig rig;

		CHECK_NOTE("code %zu", i);
		rig_open(&rig, 1);
		rig_window(&rig, 0, 1 << 2);
		rig_window(&rig, 64, 1 << 2);
		rig.fake.stranger_k = 5; /* before the look */
		rig.fake.stranger_len = 5;
		rig.fake.stranger_addr = fake_addr(&rig.fake, 64);
		memcpy(rig.fake.stranger_bytes, others[i], 5);
		CHECK_EQ(rig_run(&rig), -EINVAL);
		CHECK_EQ(rig.outcome.fail_index, 1);
		CHECK(rig_is_old(&rig, 0));
		CHECK_BYTES(rig_bytes(&rig, 1), others[i], 5);
		CHECK(rig.outcome.recovered && !rig.engine.broken);
		CHECK(rig.outcome.conflicts > 0);
		rig_close(&rig);
	}
}

TEST(heads_stranger_who_comes_when_a_site_is_old_again_closes_nothing)
{
	for (enum tp_mode mode = TP_MODE_INT3; mode <= TP_MODE_STOP; mode += TP_MODE_STOP) {
		struct rig rig;
		const char *story;

		CHECK_NOTE("mode %d", mode);
		rig_open(&rig, 1);
		rig_window(&rig, 32, EVERY);
		rig_window(&rig, 64, EVERY);
		rig.batch.mode = mode;
		rig.batch.all_or_nothing = true;
		rig.fake.faults[0] = (struct fake_fault){ FAKE_SYNC, 0, 1, -EPERM };
		CHECK_EQ(rig_run(&rig), -EPERM);
		story = rig_story(&rig);
		rig.fake.stranger_k = strlen(story) - 2; /* before the last reading back */
		rig.fake.stranger_len = 1;
		rig.fake.stranger_addr = rig.asked[1].addr;
		rig.fake.stranger_bytes[0] = 0x42;
		CHECK_EQ(rig_run(&rig), -EPERM);
		CHECK(rig.outcome.recovered && !rig.engine.broken && !rig.engine.active);
		CHECK(rig.outcome.conflicts > 0);
		CHECK(rig_is_old(&rig, 0));
		CHECK_EQ(rig_int3_bytes(&rig), 0);
		CHECK_EQ(rig_bytes(&rig, 1)[0], 0x42);
		rig_close(&rig);
	}
}

TEST(heads_int3_of_a_head_that_somebody_took_away_fails_the_batch)
{
	for (unsigned int head = 0; head < 5; head++) {
		struct rig rig;

		CHECK_NOTE("head %u", head);
		rig_open(&rig, 1);
		rig_window(&rig, 0, EVERY);
		rig_window(&rig, 64, EVERY);
		rig.fake.stranger_k = 5;
		rig.fake.stranger_len = 1;
		rig.fake.stranger_addr = fake_addr(&rig.fake, 64 + head);
		rig.fake.stranger_bytes[0] = PUSHES5[head];
		CHECK_EQ(rig_run(&rig), -EINVAL);
		CHECK_EQ(rig.outcome.phase, TP_PHASE_TAIL);
		CHECK_EQ(rig.outcome.fail_index, 1);
		CHECK_EQ(rig.outcome.expected[head], TP_INT3);
		CHECK_EQ(rig.outcome.found[head], PUSHES5[head]);
		check_undone(&rig);
		rig_close(&rig);
	}
}

static size_t gone_at;

/* A module goes away under the batch, with a part of a window. */
static void unmap_last_page(struct fake *fake, const struct fake_op *op)
{
	(void)op;
	if (fake->logged <= gone_at)
		return;
	fake->hole_start = fake_addr(fake, 2 * TP_PAGE_BYTES);
	fake->hole_end = fake_addr(fake, 3 * TP_PAGE_BYTES);
}

TEST(heads_page_that_goes_away_at_any_moment_leaves_every_int3_handled)
{
	for (unsigned int busy = 0; busy < 4; busy++)
		for (size_t steps = gone_at = 0; gone_at <= steps; gone_at++) {
			struct rig rig;

			CHECK_NOTE("operation %zu, busy %u", gone_at, busy);
			rig_open(&rig, 3);
			rig_window(&rig, TP_PAGE_BYTES + 8, EVERY);
			rig_window(&rig, 2 * TP_PAGE_BYTES - 5, EVERY);
			rig_window(&rig, 2 * TP_PAGE_BYTES, EVERY);
			rig.batch.all_or_nothing = true;
			rig.batch.leave_busy = true;
			rig.busy = busy << 1;
			rig.fake.before = unmap_last_page;
			rig_run(&rig);
			steps = rig.fake.logged;
			CHECK(!rig.engine.broken && !rig.engine.active);
			for (size_t i = 0; i < 2; i++) {
				CHECK(rig_is_old(&rig, i) || !rig.outcome.code);
				check_known(&rig, i);
			}
			rig_close(&rig);
		}
}
