/* SPDX-License-Identifier: Apache-2.0 */
/**
 * @file
 * Fault injection over a mixed batch: the k-th read, write, sync or finish fails, for every k; two
 * fail; all fail from the k-th on; writes are short; a stranger writes at every moment. The bytes
 * are then as promised, and the fetch oracle has watched every operation.
 */
#include <errno.h>

#include "check.h"
#include "oracle.h"

enum { STEPS_AT_MOST = 200 };

/* What is injected in one run. */
struct plan {
	bool all_or_nothing;
	struct fake_fault faults[FAKE_FAULTS];
};

struct trial {
	struct rig rig;
	struct oracle oracle;
	int code;
};

static void begin(struct trial *trial, bool all_or_nothing)
{
	rig_open(&trial->rig, 3);
	rig_mixed(&trial->rig);
	trial->rig.batch.all_or_nothing = all_or_nothing;
	oracle_open(&trial->oracle, &trial->rig);
}

static void run(struct trial *trial)
{
	trial->code = rig_run(&trial->rig);
	oracle_look(&trial->oracle);
}

static void end(struct trial *trial)
{
	oracle_close(&trial->oracle);
	rig_close(&trial->rig);
}

static size_t finished(const struct rig *rig, uint64_t addr)
{
	size_t calls = 0;

	for (size_t i = 0; i < rig->fake.logged; i++) {
		const struct fake_op *op = &rig->fake.log[i];

		calls += op->kind == FAKE_FINISH && op->addr == addr && !op->result;
	}
	return calls;
}

/* A site after a failure that was recovered: old, or finished and then new. */
static void check_site(const struct rig *rig, size_t i)
{
	const struct tp_poke *poke = rig_site(rig, i);

	if (poke->outcome == TP_SITE_DONE) {
		CHECK(!rig->batch.all_or_nothing);
		CHECK(rig_is_new(rig, i));
		CHECK_EQ(finished(rig, poke->addr), 1);
	} else {
		CHECK(poke->outcome == TP_SITE_PENDING || poke->outcome == TP_SITE_RESTORED);
		CHECK(rig_is_old(rig, i));
		CHECK(rig->batch.all_or_nothing || !finished(rig, poke->addr));
	}
	CHECK_BYTES(rig_known(rig, i)->current, rig_bytes(rig, i), poke->len);
}

/* A site after a failed recovery: whatever it holds, a thread that traps there is sent on. */
static void check_broken_site(struct rig *rig, size_t i)
{
	struct tp_frame frame;

	if (rig_bytes(rig, i)[0] == TP_INT3)
		CHECK_EQ(rig_trap(rig, i, &frame), TP_TRAP_EMULATED);
	else
		CHECK(rig_is_old(rig, i) || rig_is_new(rig, i));
}

/* Its memory was unmapped: nobody can run into it any more. */
static bool is_gone(const struct rig *rig, size_t i)
{
	return rig->asked[i].addr >= rig->fake.hole_start &&
	       rig->asked[i].addr < rig->fake.hole_end;
}

static void check_promise(struct trial *trial)
{
	struct rig *rig = &trial->rig;
	bool wrote = rig->outcome.phase >= TP_PHASE_INT3;

	CHECK_EQ(trial->oracle.violations, 0);
	CHECK_EQ(rig->outcome.code, trial->code);
	CHECK_EQ(rig->outcome.reads, rig->fake.count[FAKE_READ]);
	CHECK_EQ(rig->outcome.writes, rig->fake.count[FAKE_WRITE]);
	CHECK_EQ(rig->outcome.syncs, rig->fake.count[FAKE_SYNC]);
	CHECK(rig->engine.active == (rig->engine.broken ? &rig->batch : NULL));
	CHECK(rig->outcome.recovered == (trial->code && wrote && !rig->engine.broken));
	for (size_t i = 0; i < rig->count; i++) {
		if (rig->asked[i].flags)
			CHECK_EQ(rig_site(rig, i)->outcome, TP_SITE_SKIPPED);
		else if (is_gone(rig, i))
			continue;
		else if (rig->engine.broken)
			check_broken_site(rig, i);
		else if (trial->code)
			check_site(rig, i);
		else
			CHECK(rig_is_new(rig, i));
	}
}

/* Returns false when the batch never came to what should fail. */
static bool try_plan(const struct plan *plan, bool may_break)
{
	struct trial trial;
	bool failed;

	begin(&trial, plan->all_or_nothing);
	memcpy(trial.rig.fake.faults, plan->faults, sizeof(plan->faults));
	run(&trial);
	check_promise(&trial);
	if (!may_break)
		CHECK(!trial.rig.engine.broken);
	failed = trial.code != 0;
	end(&trial);
	return failed;
}

/* No look among them: there is no site of several instructions. */
#define KINDS FAKE_LOOK
static const long error_of[KINDS] = { -EIO, -ENOSPC, -EPERM, -ENOMEM };

/* Fail the k-th operation of @kind for every k; @times: and so many after it. */
static void sweep(enum fake_kind kind, size_t times, bool may_break)
{
	for (int all = 0; all < 2; all++) {
		size_t k = 0;
		bool failed = true;

		for (; failed && k < STEPS_AT_MOST; k++) {
			struct plan plan = { all, { { kind, k, times, error_of[kind] } } };

			CHECK_NOTE("kind %d, k %zu, all_or_nothing %d", kind, k, all);
			failed = try_plan(&plan, may_break);
		}
		CHECK(k > 3 && k < STEPS_AT_MOST);
	}
}

TEST(seed_24_26_any_one_read_fails_and_all_is_recovered)
{
	sweep(FAKE_READ, 1, false);
}

TEST(seed_24_26_any_one_write_fails_and_all_is_recovered)
{
	sweep(FAKE_WRITE, 1, false);
}

TEST(seed_24_26_any_one_sync_fails_and_all_is_recovered)
{
	sweep(FAKE_SYNC, 1, false);
}

TEST(seed_24_26_any_one_finish_fails_and_all_is_recovered)
{
	sweep(FAKE_FINISH, 1, false);
}

TEST(seed_28_reads_fail_from_any_point_on)
{
	sweep(FAKE_READ, SIZE_MAX, true);
}

TEST(seed_28_writes_fail_from_any_point_on)
{
	sweep(FAKE_WRITE, SIZE_MAX, true);
}

TEST(seed_28_syncs_fail_from_any_point_on)
{
	sweep(FAKE_SYNC, SIZE_MAX, true);
}

TEST(seed_24_error_of_the_failed_operation_is_the_error_of_the_batch)
{
	for (enum fake_kind kind = FAKE_READ; kind < KINDS; kind++) {
		struct trial trial;

		begin(&trial, true);
		trial.rig.fake.faults[0] = (struct fake_fault){ kind, 2, 1, error_of[kind] };
		run(&trial);
		CHECK_EQ(trial.code, kind == FAKE_READ ? -EFAULT : error_of[kind]);
		end(&trial);
	}
}

TEST(seed_28_any_two_operations_fail)
{
	for (size_t turn = 0; turn < KINDS * KINDS * 2; turn++) {
		enum fake_kind kind = turn % KINDS, other = turn / KINDS % KINDS;
		struct plan plan = { turn >= KINDS * KINDS,
				     { { kind, 0, 1, error_of[kind] },
				       { other, 0, 1, error_of[other] } } };

		for (size_t k = 0; k < 40; k++)
			for (size_t j = 0; j < 40; j++) {
				CHECK_NOTE("%d %zu, %d %zu, %d", kind, k, other, j,
					   plan.all_or_nothing);
				plan.faults[0].k = k;
				plan.faults[1].k = j;
				if (kind == other && j <= k)
					continue;
				if (!try_plan(&plan, true))
					goto next;
			}
next:;
	}
}

TEST(seed_26_short_writes_of_any_length_at_any_write_are_recovered)
{
	for (int all = 0; all < 2; all++) {
		bool failed = true;

		for (size_t k = 0; failed && k < STEPS_AT_MOST; k++)
			for (long done = 0; failed && done < 330; done += done < 20 ? 1 : 7) {
				struct plan plan = { all, { { FAKE_WRITE, k, 1, done } } };

				CHECK_NOTE("write %zu, %ld bytes, %d", k, done, all);
				failed = try_plan(&plan, false);
				if (!failed && done > 0) { /* not so long a write */
					failed = true;
					break;
				}
			}
	}
}

TEST(seed_26_part_of_a_tail_written_is_put_back)
{
	for (long done = 0; done < 8; done++) {
		struct rig rig;

		CHECK_NOTE("%ld of 8 bytes", done);
		rig_open(&rig, 1);
		rig_add(&rig, 16, 9, BYTES(0x66, 0x0f, 0x1f, 0x84, 0, 0, 0, 0, 0),
			BYTES(0xe9, 1, 2, 3, 4, 0xcc, 0xcc, 0xcc, 0xcc));
		rig.fake.faults[0] = (struct fake_fault){ FAKE_WRITE, 1, 1, done };
		CHECK_EQ(rig_run(&rig), -EIO);
		CHECK_EQ(rig.outcome.phase, TP_PHASE_TAIL);
		CHECK(!rig.engine.broken && rig_is_old(&rig, 0));
		rig_close(&rig);
	}
}

/* A place that a stranger writes to: so many bytes after the first byte of a site. */
struct place {
	size_t site;
	size_t at;
	bool between; /* behind the site */
	uint8_t byte;
};

static const struct place places[] = {
	{ 5, 20, true, 0x42 },	  { 4, 20, true, 0x42 }, { 5, 0, false, 0x42 }, /* first bytes */
	{ 3, 0, false, 0x42 },	  { 2, 0, false, 0x42 }, { 0, 0, false, 0x42 },
	{ 4, 0, false, TP_INT3 },			 /* a debugger */
	{ 5, 2, false, 0x42 },				 /* tails */
	{ 4, 2, false, 0x42 },	  { 2, 2, false, 0x42 }, /* the part on the next page */
	{ 8, 4, false, 0x42 },
};

/* All sites but the stranger's are as promised, and no int3 of ours is left on that one. */
static void check_beside(struct trial *trial, const struct place *place)
{
	struct rig *rig = &trial->rig;

	CHECK(!rig->engine.broken && !rig->engine.active);
	for (size_t i = 0; i < rig->count; i++) {
		if (rig->asked[i].flags)
			continue;
		if (i == place->site && !place->between)
			CHECK(rig_bytes(rig, i)[0] != TP_INT3 || place->byte == TP_INT3);
		else if (trial->code)
			check_site(rig, i);
		else
			CHECK(rig_is_new(rig, i));
	}
}

static bool try_stranger(const struct place *place, size_t k, bool all_or_nothing)
{
	struct trial trial;
	bool met;

	begin(&trial, all_or_nothing);
	trial.rig.fake.after = NULL; /* the oracle knows nothing of strangers */
	trial.rig.fake.stranger_k = k;
	trial.rig.fake.stranger_len = 1;
	trial.rig.fake.stranger_addr = trial.rig.asked[place->site].addr + place->at;
	trial.rig.fake.stranger_bytes[0] = place->byte;
	run(&trial);
	check_beside(&trial, place);
	met = trial.rig.fake.logged > k;
	if (place->between)
		CHECK_EQ(trial.code, 0); /* a conflict at most */
	end(&trial);
	return met;
}

TEST(seed_26_stranger_who_writes_at_any_moment_costs_no_other_site_its_recovery)
{
	for (int all = 0; all < 2; all++)
		for (size_t i = 0; i < sizeof(places) / sizeof(*places); i++)
			for (size_t k = 0; k < STEPS_AT_MOST; k++) {
				CHECK_NOTE("place %zu, operation %zu, %d", i, k, all);
				if (!try_stranger(&places[i], k, all))
					break;
			}
}

TEST(seed_26_site_whose_int3_is_gone_is_left_alone)
{
	struct rig rig;

	rig_open(&rig, 1);
	rig_nop5(&rig, 0);
	rig_nop5(&rig, 64);
	rig.fake.stranger_k = 4; /* before the sync that ends the int3 pass */
	rig.fake.stranger_len = 5;
	rig.fake.stranger_addr = fake_addr(&rig.fake, 64);
	memcpy(rig.fake.stranger_bytes, CALL5, 5);
	CHECK_EQ(rig_run(&rig), -EINVAL);
	CHECK_EQ(rig.outcome.fail_index, 1);
	CHECK(rig_is_old(&rig, 0));
	CHECK_BYTES(rig_bytes(&rig, 1), CALL5, 5);
	CHECK(rig.outcome.recovered && !rig.engine.broken);
	CHECK(rig.outcome.conflicts > 0);
	rig_close(&rig);
}

TEST(seed_26_tail_that_somebody_changed_under_our_int3_is_put_back)
{
	struct rig rig;

	rig_open(&rig, 1);
	rig_nop5(&rig, 0);
	rig_flip(&rig, 64);
	rig.fake.stranger_k = 4;
	rig.fake.stranger_len = 1;
	rig.fake.stranger_addr = fake_addr(&rig.fake, 66);
	CHECK_EQ(rig_run(&rig), -EINVAL);
	CHECK_EQ(rig.outcome.fail_index, 1);
	CHECK(rig_is_old(&rig, 0) && rig_is_old(&rig, 1));
	CHECK(rig.outcome.recovered && !rig.engine.broken);
	rig_close(&rig);
}

static size_t gone_at;

/* A module goes away under the batch. */
static void unmap_last_page(struct fake *fake, const struct fake_op *op)
{
	if (fake->logged <= gone_at)
		return;
	fake->hole_start = fake_addr(fake, 2 * TP_PAGE_BYTES);
	fake->hole_end = fake_addr(fake, 3 * TP_PAGE_BYTES);
}

TEST(lineage_h15_page_that_goes_away_at_any_moment_leaves_every_int3_handled)
{
	struct trial trial;
	size_t steps;

	for (gone_at = 0, steps = 1; gone_at < steps; gone_at++) {
		CHECK_NOTE("operation %zu", gone_at);
		begin(&trial, true);
		trial.rig.fake.before = unmap_last_page;
		run(&trial);
		check_promise(&trial);
		steps = trial.rig.fake.logged;
		end(&trial);
	}
	CHECK(steps > 20);
}
