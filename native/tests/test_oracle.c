/* SPDX-License-Identifier: Apache-2.0 */
/** @file The engine under the fetch oracle, and engines made wrong that it must catch. */
#include <errno.h>

#include "check.h"
#include "oracle.h"

#define IS(state) (1u << (state))

static void swap_opcodes(struct rig *rig)
{
	for (size_t i = 0; i < rig->count; i++) {
		uint8_t keep[16];

		memcpy(keep, rig->asked[i].old, sizeof(keep));
		memcpy(rig->asked[i].old, rig->asked[i].new_, sizeof(keep));
		memcpy(rig->asked[i].new_, keep, sizeof(keep));
	}
}

TEST(design_every_fetch_is_old_new_or_int3_there_and_back)
{
	struct rig rig;
	struct oracle oracle;

	rig_open(&rig, 3);
	rig_mixed(&rig);
	oracle_open(&oracle, &rig);
	for (size_t turn = 0; turn < 4; turn++) {
		CHECK_EQ(rig_run(&rig), 0);
		oracle_look(&oracle); /* the descriptor has been retired */
		CHECK_EQ(oracle.violations, 0);
		swap_opcodes(&rig);
	}
	CHECK(oracle.operations > 50);
	oracle_close(&oracle);
	rig_close(&rig);
}

TEST(design_every_fetch_of_nop_runs_is_right_with_two_syncs)
{
	struct rig rig;
	struct oracle oracle;

	rig_open(&rig, 1);
	rig_flip(&rig, 0);
	rig_flip(&rig, 64);
	rig_add(&rig, 100, 5, RUN5, BYTES(0x90, 0x66, 0x90, 0x66, 0x90));
	oracle_open(&oracle, &rig);
	for (size_t turn = 0; turn < 4; turn++) {
		CHECK_EQ(rig_run(&rig), 0);
		oracle_look(&oracle);
		CHECK_EQ(oracle.violations, 0);
		swap_opcodes(&rig);
	}
	oracle_close(&oracle);
	rig_close(&rig);
}

TEST(design_every_fetch_is_right_in_recovery_and_rollback)
{
	for (size_t k = 0; k < 9; k++) {
		struct rig rig;
		struct oracle oracle;

		CHECK_NOTE("finish %zu", k);
		rig_open(&rig, 3);
		rig_mixed(&rig);
		rig.batch.all_or_nothing = true;
		rig.fake.faults[0] = (struct fake_fault){ FAKE_FINISH, k, 1, -ENOSPC };
		oracle_open(&oracle, &rig);
		CHECK_EQ(rig_run(&rig), -ENOSPC);
		oracle_look(&oracle);
		CHECK_EQ(oracle.violations, 0);
		oracle_close(&oracle);
		rig_close(&rig);
	}
}

TEST(control_engine_without_one_of_its_syncs_is_caught)
{
	for (size_t k = 0; k < 3; k++) {
		struct rig rig;
		struct oracle oracle;

		CHECK_NOTE("sync %zu", k);
		rig_open(&rig, 1);
		rig_nop5(&rig, 16);
		oracle_open(&oracle, &rig);
		oracle.deaf_sync = k;
		CHECK_EQ(rig_run(&rig), 0);
		oracle_look(&oracle);
		CHECK(oracle.violations > 0);
		CHECK(oracle.first_violation > 0);
		oracle_close(&oracle);
		rig_close(&rig);
	}
}

TEST(control_nop_run_engine_without_its_last_sync_is_caught)
{
	struct rig rig;
	struct oracle oracle;

	rig_open(&rig, 1);
	rig_flip(&rig, 16);
	oracle_open(&oracle, &rig);
	oracle.deaf_sync = 1;
	CHECK_EQ(rig_run(&rig), 0);
	oracle_look(&oracle);
	CHECK(oracle.violations > 0);
	oracle_close(&oracle);
	rig_close(&rig);
}

static const struct tp_pass int3_pass = { .phase = TP_PHASE_INT3,
					  .edit = TP_EDIT_INT3,
					  .from = IS(TP_SITE_PENDING),
					  .to = TP_SITE_INT3 };
static const struct tp_pass tail_pass = { .phase = TP_PHASE_TAIL,
					  .edit = TP_EDIT_TAIL,
					  .to_new = true,
					  .from = IS(TP_SITE_INT3),
					  .to = TP_SITE_TAIL };
static const struct tp_pass first_pass = { .phase = TP_PHASE_FIRST,
					   .edit = TP_EDIT_FIRST,
					   .to_new = true,
					   .from = IS(TP_SITE_TAIL),
					   .to = TP_SITE_WRITTEN };

/* The protocol by hand: passes in the given order, a sync after each; returns the violations. */
static size_t run_passes(const struct tp_pass passes[3])
{
	struct rig rig;
	struct oracle oracle;

	rig_open(&rig, 1);
	rig_nop5(&rig, 16);
	rig_nop5(&rig, 64);
	rig_learn(&rig);
	rig.engine.active = &rig.batch;
	oracle_open(&oracle, &rig);
	for (size_t i = 0; i < 3; i++) {
		tp_run_pass(&rig.engine, &rig.batch, &passes[i]);
		rig.engine.ops->sync(rig.engine.ctx);
	}
	oracle_close(&oracle);
	rig_close(&rig);
	return oracle.violations;
}

TEST(control_passes_in_their_order_are_right)
{
	const struct tp_pass passes[3] = { int3_pass, tail_pass, first_pass };

	CHECK_EQ(run_passes(passes), 0);
}

TEST(control_tails_before_int3_are_caught)
{
	struct tp_pass passes[3] = { tail_pass, int3_pass, first_pass };

	passes[0].from = IS(TP_SITE_PENDING);
	passes[0].to = TP_SITE_PENDING;
	CHECK(run_passes(passes) > 0);
}

TEST(control_first_bytes_before_tails_are_caught)
{
	struct tp_pass passes[3] = { int3_pass, first_pass, tail_pass };

	passes[1].from = IS(TP_SITE_INT3);
	passes[1].to = TP_SITE_INT3;
	CHECK(run_passes(passes) > 0);
}

TEST(control_tail_of_a_nop_run_may_never_change_unseen)
{
	struct rig rig;
	struct oracle oracle;

	rig_open(&rig, 1);
	rig_flip(&rig, 16);
	rig_learn(&rig);
	rig.engine.active = &rig.batch;
	oracle_open(&oracle, &rig);
	rig.engine.ops->write(rig.engine.ctx, rig.asked[0].addr + 2, "\x66", 1);
	CHECK_EQ(oracle.violations, 1);
	oracle_close(&oracle);
	rig_close(&rig);
}
