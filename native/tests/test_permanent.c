/* SPDX-License-Identifier: Apache-2.0 */
/** @file An int3 that stays: whoever traps there goes on at the poke's handler, for good. */
#include <errno.h>
#include <string.h>

#include "check.h"
#include "rig.h"

#define PUSH BYTES(0x55)
#define INT3 BYTES(0xcc)
#define STUB 0x123400u

static size_t add_trap(struct rig *rig, size_t offset)
{
	size_t index = rig_add(rig, offset, 1, PUSH, INT3);

	rig->asked[index].handler = STUB + offset;
	return index;
}

/* The same batch the other way round. */
static void turn_back(struct rig *rig)
{
	for (size_t i = 0; i < rig->count; i++) {
		uint8_t keep = rig->asked[i].old[0];

		rig->asked[i].old[0] = rig->asked[i].new_[0];
		rig->asked[i].new_[0] = keep;
	}
}

static void put_on(struct rig *rig)
{
	rig_open(rig, 2);
	add_trap(rig, 0x20);
	add_trap(rig, 0x21);
	add_trap(rig, 5000);
	CHECK_EQ(rig_run(rig), 0);
}

TEST(permanent_int3_stays_and_leads_to_the_handler)
{
	struct tp_frame frame;
	struct rig rig;

	put_on(&rig);
	CHECK_EQ(rig_int3_bytes(&rig), 3);
	CHECK(!rig.engine.active);
	for (size_t i = 0; i < rig.count; i++) {
		CHECK_EQ(rig_trap(&rig, i, &frame), TP_TRAP_PERMANENT);
		CHECK_EQ(frame.rip, rig.asked[i].handler);
		CHECK_EQ(rig_known(&rig, i)->patched, 1);
		CHECK_EQ(rig_known(&rig, i)->original[0], 0x55);
	}
	rig_close(&rig);
}

TEST(permanent_int3_leads_to_the_handler_while_the_batch_runs_too)
{
	struct tp_frame frame;
	struct rig rig;

	put_on(&rig);
	turn_back(&rig);
	rig_learn(&rig);
	CHECK_EQ(tp_check_batch(&rig.engine, &rig.batch), 0);
	rig.engine.active = &rig.batch;
	CHECK_EQ(rig_trap(&rig, 1, &frame), TP_TRAP_EMULATED);
	CHECK_EQ(frame.rip, rig.asked[1].handler);
	rig.engine.active = NULL;
	rig_close(&rig);
}

TEST(permanent_int3_is_taken_away_in_every_mode)
{
	for (int mode = 0; mode < TP_MODES; mode++) {
		struct tp_frame frame;
		struct rig rig;

		CHECK_NOTE("mode %d", mode);
		put_on(&rig);
		turn_back(&rig);
		rig.batch.mode = (enum tp_mode)mode;
		CHECK_EQ(rig_run(&rig), 0);
		CHECK_EQ(rig_int3_bytes(&rig), 0);
		CHECK_EQ(rig_trap(&rig, 0, &frame), TP_TRAP_LATE);
		CHECK_EQ(frame.rip, rig.asked[0].addr);
		CHECK_EQ(rig_known(&rig, 0)->patched + rig_known(&rig, 0)->handler, 0);
		/* What stands there from now on is a stranger's. */
		*(uint8_t *)rig.asked[0].addr = TP_INT3;
		CHECK_EQ(rig_trap(&rig, 0, &frame), TP_TRAP_FOREIGN);
		rig_close(&rig);
	}
}

TEST(permanent_int3_is_refused_where_a_thread_could_not_trap_or_go_on)
{
	for (int how = 0; how < 5; how++) {
		struct rig rig;
		size_t index;

		CHECK_NOTE("case %d", how);
		rig_open(&rig, 1);
		index = add_trap(&rig, 0x20);
		if (how == 0)
			rig.asked[index].handler = 0;
		else if (how < 3)
			rig.batch.mode = how == 1 ? TP_MODE_DIRECT : TP_MODE_STOP;
		else if (how == 3)
			rig.asked[index].len = 2;
		else
			rig.asked[index].old[0] = *(uint8_t *)rig.asked[index].addr = TP_INT3;
		CHECK_EQ(rig_run(&rig), -TP_EEMULATE);
		CHECK_EQ(rig.outcome.phase, TP_PHASE_CHECK);
		CHECK_EQ(rig.fake.logged, 0);
		rig_close(&rig);
	}
}

/* Which bytes and which way a batch leaves that fails at its k-th operation, on and off. */
static bool fail_at(enum fake_kind kind, size_t k, bool back)
{
	struct tp_frame frame;
	struct rig rig;
	int error;

	CHECK_NOTE("kind %d, operation %zu, back %d", kind, k, back);
	if (back) {
		put_on(&rig);
		turn_back(&rig);
	} else {
		rig_open(&rig, 2);
		add_trap(&rig, 0x20);
		add_trap(&rig, 0x21);
		add_trap(&rig, 5000);
	}
	rig.batch.all_or_nothing = true;
	rig.fake.faults[0] = (struct fake_fault){ kind, k, 1, -EIO };
	error = rig_run(&rig);
	CHECK(!rig.engine.broken);
	CHECK_EQ(rig_int3_bytes(&rig), !error == back ? 0 : 3);
	for (size_t i = 0; i < rig.count; i++) {
		enum tp_trap_result result = rig_trap(&rig, i, &frame);

		CHECK_EQ(result, !error == back ? TP_TRAP_LATE : TP_TRAP_PERMANENT);
		CHECK_EQ(frame.rip, !error == back ? rig.asked[i].addr : rig.asked[i].handler);
	}
	rig_close(&rig);
	return error != 0;
}

TEST(permanent_int3_is_whole_or_gone_wherever_a_batch_fails)
{
	for (int back = 0; back < 2; back++)
		for (int kind = FAKE_READ; kind <= FAKE_SYNC; kind++) {
			size_t k = 0;

			while (fail_at((enum fake_kind)kind, k, back))
				k++;
			CHECK(k > 1);
		}
}

/* Its module is closed, another one opened there, and a function of that patched by a JMP. */
TEST(permanent_handler_is_forgotten_with_the_code_that_it_was_for)
{
	struct tp_frame frame;
	struct rig rig;

	put_on(&rig);
	memcpy((void *)rig.asked[0].addr, NOP5, 5);
	rig.count = 1;
	rig.asked[0].handler = 0;
	rig.asked[0].len = 5;
	memcpy(rig.asked[0].old, NOP5, 5);
	memcpy(rig.asked[0].new_, JMP5, 5);
	CHECK_EQ(rig_run(&rig), 0);
	CHECK_EQ(rig_known(&rig, 0)->handler, 0);
	CHECK_BYTES(rig_known(&rig, 0)->original, NOP5, 5);
	*(uint8_t *)rig.asked[0].addr = TP_INT3; /* a stranger's */
	CHECK_EQ(rig_trap(&rig, 0, &frame), TP_TRAP_FOREIGN);
	rig_close(&rig);
}

/* So that an agent without its tool can take it away at any moment, whatever threads block. */
TEST(permanent_int3_can_be_undone_by_one_store_whatever_became_of_a_batch)
{
	struct rig rig;

	put_on(&rig);
	CHECK_EQ(rig_known(&rig, 0)->mode, TP_MODE_DIRECT);
	turn_back(&rig);
	rig.batch.mode = TP_MODE_STOP;
	rig.batch.all_or_nothing = true;
	rig.fake.faults[0] = (struct fake_fault){ FAKE_WRITE, 1, 1, -EIO };
	CHECK_EQ(rig_run(&rig), -EIO);
	CHECK_EQ(rig_int3_bytes(&rig), 3);
	CHECK_EQ(rig_known(&rig, 0)->mode, TP_MODE_DIRECT);
	rig_close(&rig);
}
