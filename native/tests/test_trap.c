/* SPDX-License-Identifier: Apache-2.0 */
/** @file trap.c: whose int3 it was, and who is still inside the handler. */
#include <pthread.h>

#include "check.h"
#include "rig.h"

/* A rig with its batch published and an int3 on every site, as after the first sync. */
static void publish(struct rig *rig)
{
	rig_learn(rig);
	CHECK_EQ(tp_check_batch(&rig->engine, &rig->batch), 0);
	for (size_t i = 0; i < rig->count; i++)
		if (!rig->asked[i].flags)
			*(uint8_t *)rig->asked[i].addr = TP_INT3;
	rig->engine.active = &rig->batch;
}

static uint64_t sum_of(const struct tp_engine *engine, size_t offset)
{
	uint64_t sum = 0;

	for (size_t i = 0; i < TP_SLOTS; i++)
		sum += *(const uint64_t *)((const char *)&engine->slots[i] + offset);
	return sum;
}

#define SUM(engine, field) sum_of(engine, offsetof(struct tp_slot, field))

TEST(lineage_2b_trap_at_a_site_of_the_batch_is_emulated)
{
	struct rig rig;
	struct tp_frame frame;

	rig_open(&rig, 3);
	rig_mixed(&rig);
	publish(&rig);
	for (size_t i = 0; i < rig.count; i++) {
		if (rig.asked[i].flags)
			continue;
		CHECK_EQ(rig_trap(&rig, i, &frame), TP_TRAP_EMULATED);
		CHECK(frame.rip != rig.asked[i].addr && frame.rip != rig.asked[i].addr + 1);
	}
	CHECK_EQ(SUM(&rig.engine, traps), 7);
	CHECK_EQ(SUM(&rig.engine, late) + SUM(&rig.engine, foreign), 0);
	rig_close(&rig);
}

TEST(lineage_2e_jcc_is_decided_by_the_flags_of_the_trapped_thread)
{
	struct rig rig;
	struct tp_frame frame;

	rig_open(&rig, 1);
	rig_add(&rig, 0, 2, BYTES(0x66, 0x90), BYTES(0x74, 0x20)); /* JZ */
	publish(&rig);
	for (uint64_t zero = 0; zero <= 0x40; zero += 0x40) {
		frame = (struct tp_frame){ .rip = rig.asked[0].addr + 1, .rflags = 0x202 | zero };
		CHECK_EQ(tp_trap(&rig.engine, &frame), TP_TRAP_EMULATED);
		CHECK_EQ(frame.rip, rig.asked[0].addr + (zero ? 0x22 : 2));
	}
	rig_close(&rig);
}

TEST(seed_19_trap_at_a_site_with_a_handler_continues_there)
{
	struct rig rig;
	struct tp_frame frame;

	rig_open(&rig, 1);
	rig_nop5(&rig, 0);
	rig.asked[0].handler = 0x123456;
	publish(&rig);
	CHECK_EQ(rig_trap(&rig, 0, &frame), TP_TRAP_EMULATED);
	CHECK_EQ(frame.rip, 0x123456);
	rig_close(&rig);
}

TEST(design_lookup_finds_every_site_of_a_large_batch_and_nothing_beside)
{
	enum { SITES = 999 };
	struct rig rig;
	struct tp_frame frame;

	rig_open(&rig, 4);
	for (size_t i = 0; i < SITES; i++)
		rig_nop5(&rig, i * 16);
	publish(&rig);
	for (size_t i = 0; i < SITES; i++) {
		CHECK_EQ(rig_trap(&rig, i, &frame), TP_TRAP_EMULATED);
		for (uint64_t beside = 2; beside < 6; beside++) {
			frame.rip = rig.asked[i].addr + beside;
			CHECK_EQ(tp_trap(&rig.engine, &frame), TP_TRAP_FOREIGN);
		}
	}
	frame.rip = rig.asked[0].addr;
	CHECK_EQ(tp_trap(&rig.engine, &frame), TP_TRAP_FOREIGN);
	rig_close(&rig);
}

TEST(seed_18_21_trap_at_an_unknown_place_is_foreign_and_nothing_is_touched)
{
	struct rig rig;
	struct tp_frame frame = { .rip = 0x11, .rsp = 64, .rflags = 0x202 }; /* not even mapped */

	rig_open(&rig, 1);
	CHECK_EQ(tp_trap(&rig.engine, &frame), TP_TRAP_FOREIGN); /* no batch ever, no table */
	rig_nop5(&rig, 0);
	publish(&rig);
	CHECK_EQ(tp_trap(&rig.engine, &frame), TP_TRAP_FOREIGN);
	rig.engine.active = NULL;
	CHECK_EQ(tp_trap(&rig.engine, &frame), TP_TRAP_FOREIGN);
	CHECK(frame.rip == 0x11 && frame.rsp == 64 && frame.rflags == 0x202);
	CHECK_EQ(SUM(&rig.engine, foreign), 3);
	rig_close(&rig);
}

TEST(pitfall_2_late_trap_at_a_restored_site_runs_the_instruction_again)
{
	struct rig rig;
	struct tp_frame frame;

	rig_open(&rig, 1);
	rig_nop5(&rig, 32);
	CHECK_EQ(rig_run(&rig), 0);
	CHECK_EQ(rig_trap(&rig, 0, &frame), TP_TRAP_LATE);
	CHECK_EQ(frame.rip, rig.asked[0].addr);
	CHECK_EQ(SUM(&rig.engine, late), 1);
	rig_close(&rig);
}

TEST(pitfall_2_late_trap_of_an_earlier_batch_during_another)
{
	struct rig rig;
	struct tp_frame frame;

	rig_open(&rig, 1);
	rig_nop5(&rig, 32);
	CHECK_EQ(rig_run(&rig), 0);
	rig_nop5(&rig, 64);
	rig_learn(&rig);
	CHECK_EQ(tp_check_batch(&rig.engine, &rig.batch), 0);
	rig.batch.pokes++; /* the second site alone */
	rig.batch.count--;
	rig.engine.active = &rig.batch;
	CHECK_EQ(rig_trap(&rig, 0, &frame), TP_TRAP_LATE);
	CHECK_EQ(frame.rip, rig.asked[0].addr);
	rig_close(&rig);
}

TEST(pitfall_2_int3_of_somebody_else_at_a_known_site_is_foreign)
{
	struct rig rig;
	struct tp_frame frame;

	rig_open(&rig, 1);
	rig_nop5(&rig, 32);
	CHECK_EQ(rig_run(&rig), 0);
	rig.fake.bytes[32] = TP_INT3; /* a debugger's */
	CHECK_EQ(rig_trap(&rig, 0, &frame), TP_TRAP_FOREIGN);
	CHECK_EQ(frame.rip, rig.asked[0].addr + 1);
	rig_close(&rig);
}

static uint64_t predicate_ip;

static bool refuse_all(uint64_t ip)
{
	predicate_ip = ip;
	return false;
}

static bool take_all(uint64_t ip)
{
	predicate_ip = ip;
	return true;
}

TEST(seed_9_20_is_handled_gets_the_trapped_ip_and_decides)
{
	struct rig rig;
	struct tp_frame frame;

	rig_open(&rig, 1);
	rig_nop5(&rig, 32);
	publish(&rig);
	rig.batch.is_handled = refuse_all;
	CHECK_EQ(rig_trap(&rig, 0, &frame), TP_TRAP_FOREIGN);
	CHECK_EQ(predicate_ip, rig.asked[0].addr + 1);
	rig.batch.is_handled = take_all;
	predicate_ip = 0;
	CHECK_EQ(rig_trap(&rig, 0, &frame), TP_TRAP_EMULATED);
	CHECK_EQ(predicate_ip, rig.asked[0].addr + 1);
	rig_close(&rig);
}

TEST(seed_9_is_handled_cannot_claim_what_the_batch_does_not_hold)
{
	struct rig rig;
	struct tp_frame frame = { .rip = 0x11 };

	rig_open(&rig, 1);
	rig_nop5(&rig, 32);
	publish(&rig);
	rig.batch.is_handled = take_all;
	CHECK_EQ(tp_trap(&rig.engine, &frame), TP_TRAP_FOREIGN);
	CHECK_EQ(frame.rip, 0x11);
	rig_close(&rig);
}

TEST(seed_22_trap_at_a_skipped_site_is_not_ours)
{
	struct rig rig;
	struct tp_frame frame;

	rig_open(&rig, 1);
	rig_nop5(&rig, 0);
	rig_skip(&rig, 32);
	publish(&rig);
	rig.fake.bytes[32] = TP_INT3;
	CHECK_EQ(rig_trap(&rig, 1, &frame), TP_TRAP_FOREIGN);
	rig_close(&rig);
}

TEST(seed_22_skipped_record_does_not_hide_a_site_at_the_same_address)
{
	for (size_t skips = 0; skips < 16; skips++) { /* bits: which of four records are skipped */
		struct rig rig;
		struct tp_frame frame;

		CHECK_NOTE("records %zx", skips);
		rig_open(&rig, 1);
		for (size_t i = 0; i < 4; i++)
			if (skips >> i & 1)
				rig_skip(&rig, 32);
		rig_skip(&rig, 0);
		rig_nop5(&rig, 32);
		rig_nop5(&rig, 64);
		publish(&rig);
		CHECK_EQ(rig_trap(&rig, rig.count - 2, &frame), TP_TRAP_EMULATED);
		rig_close(&rig);
	}
}

static struct rig *nesting_rig;
static uint64_t nesting_depth, deepest;

static bool nest(uint64_t ip)
{
	struct tp_frame frame;
	uint64_t inside = tp_handlers_in_flight(&nesting_rig->engine);

	CHECK_EQ(inside, ++nesting_depth);
	deepest = inside > deepest ? inside : deepest;
	if (nesting_depth < 5)
		CHECK_EQ(rig_trap(nesting_rig, 0, &frame), TP_TRAP_EMULATED);
	nesting_depth--;
	return true;
}

TEST(design_trap_nests_and_is_counted_while_in_flight)
{
	struct rig rig;
	struct tp_frame frame;

	rig_open(&rig, 1);
	rig_nop5(&rig, 32);
	publish(&rig);
	rig.batch.is_handled = nest;
	nesting_rig = &rig;
	CHECK_EQ(rig_trap(&rig, 0, &frame), TP_TRAP_EMULATED);
	CHECK_EQ(deepest, 5);
	CHECK_EQ(SUM(&rig.engine, traps), 5);
	CHECK_EQ(tp_handlers_in_flight(&rig.engine), 0);
	rig_close(&rig);
}

static struct tp_batch second_batch;

/*
 * A handler that has looked for its site in the old descriptor is held up; meanwhile the next batch
 * is published and puts its int3 on that very site. The late trap is then one of the new batch.
 */
static bool let_next_batch_begin(uint64_t ip)
{
	struct rig *rig = nesting_rig;

	tp_publish(&rig->engine, NULL);
	tp_publish(&rig->engine, &second_batch);
	*(uint8_t *)rig->asked[1].addr = TP_INT3;
	return true;
}

TEST(lineage_h1_late_trap_while_the_next_batch_takes_the_same_site_is_emulated)
{
	struct rig rig;
	struct tp_frame frame;

	rig_open(&rig, 1);
	rig_nop5(&rig, 32);
	rig_nop5(&rig, 64);
	publish(&rig);
	memcpy((void *)rig.asked[1].addr, NOP5, 5);
	second_batch = rig.batch;
	rig.batch.count = 1; /* the first batch has nothing to do with the second site */
	rig.batch.is_handled = let_next_batch_begin;
	nesting_rig = &rig;
	CHECK_EQ(rig_trap(&rig, 1, &frame), TP_TRAP_EMULATED);
	CHECK_EQ(frame.rip, tp_classify(JMP5, 5, rig.asked[1].addr).target);
	rig_close(&rig);
}

/* The whole next batch begins and ends meanwhile, on a descriptor at the same address. */
static bool let_next_batch_pass(uint64_t ip)
{
	struct rig *rig = nesting_rig;

	rig->batch.is_handled = NULL;
	tp_publish(&rig->engine, NULL);
	tp_publish(&rig->engine, &rig->batch);
	memcpy((void *)rig->asked[1].addr, JMP5, 5);
	return true;
}

TEST(lineage_h1_late_trap_after_the_next_batch_runs_the_instruction_again)
{
	struct rig rig;
	struct tp_frame frame;

	rig_open(&rig, 1);
	rig_nop5(&rig, 32);
	rig_nop5(&rig, 64);
	publish(&rig);
	rig.batch.count = 1;
	rig.batch.is_handled = let_next_batch_pass;
	nesting_rig = &rig;
	CHECK_EQ(rig_trap(&rig, 1, &frame), TP_TRAP_LATE);
	CHECK_EQ(frame.rip, rig.asked[1].addr);
	rig_close(&rig);
}

TEST(lineage_2d_handlers_of_different_stacks_use_different_slots)
{
	struct rig rig;
	size_t used = 0;

	rig_open(&rig, 1);
	for (uint64_t i = 0; i < 200; i++) {
		struct tp_frame frame = { .rip = 0x11, .rsp = 0x7f0000000000 + i * 0x801000 };

		CHECK_EQ(tp_trap(&rig.engine, &frame), TP_TRAP_FOREIGN);
	}
	for (size_t i = 0; i < TP_SLOTS; i++)
		used += rig.engine.slots[i].foreign > 0;
	CHECK(used > TP_SLOTS / 2);
	CHECK_EQ(SUM(&rig.engine, foreign), 200);
	rig_close(&rig);
}

enum { STORM_THREADS = 4, STORM_TRAPS = 50000 };

static void *storm(void *arg)
{
	struct rig *rig = arg;
	size_t wrong = 0;

	for (size_t i = 0; i < STORM_TRAPS; i++) {
		uint64_t stack[2];
		struct tp_frame frame = { .rip = rig->asked[i % rig->count].addr + 1,
					  .rsp = (uint64_t)&stack[1] };

		wrong += tp_trap(&rig->engine, &frame) != TP_TRAP_EMULATED;
	}
	return (void *)wrong;
}

TEST(lineage_2d_no_count_is_lost_in_a_trap_storm)
{
	struct rig rig;
	pthread_t threads[STORM_THREADS];

	rig_open(&rig, 1);
	for (size_t i = 0; i < 64; i++)
		rig_nop5(&rig, 16 * i);
	publish(&rig);
	for (size_t i = 0; i < STORM_THREADS; i++)
		CHECK_EQ(pthread_create(&threads[i], NULL, storm, &rig), 0);
	for (size_t i = 0; i < STORM_THREADS; i++) {
		void *wrong = NULL;

		CHECK_EQ(pthread_join(threads[i], &wrong), 0);
		CHECK(!wrong);
	}
	CHECK_EQ(SUM(&rig.engine, traps), STORM_THREADS * STORM_TRAPS);
	CHECK_EQ(tp_handlers_in_flight(&rig.engine), 0);
	rig_close(&rig);
}

TEST(seed_17_drain_returns_at_once_when_nobody_is_inside)
{
	struct rig rig;

	rig_open(&rig, 1);
	CHECK(tp_drain(&rig.engine, 0));
	CHECK_EQ(rig.fake.relaxed, 0);
	rig_close(&rig);
}

static void leave_one(struct fake *fake)
{
	struct rig *rig = fake->owner;

	rig->engine.slots[fake->relaxed].inflight--;
}

TEST(seed_17_drain_gives_way_until_the_last_handler_has_left)
{
	struct rig rig;

	rig_open(&rig, 1);
	for (size_t i = 1; i < 10; i++)
		rig.engine.slots[i].inflight = 1;
	rig.fake.on_relax = leave_one;
	CHECK_EQ(tp_handlers_in_flight(&rig.engine), 9);
	CHECK(tp_drain(&rig.engine, 1000000000));
	CHECK_EQ(rig.fake.relaxed, 9);
	rig_close(&rig);
}

TEST(pitfall_18_drain_has_a_time_out)
{
	struct rig rig;

	rig_open(&rig, 1);
	rig.engine.slots[63].inflight = 1;
	CHECK(!tp_drain(&rig.engine, 1000000));
	CHECK(rig.fake.now_ns >= FAKE_BASE_NS + 1000000);
	CHECK(rig.fake.now_ns < FAKE_BASE_NS + 1200000);
	CHECK(rig.fake.relaxed >= 19);
	rig_close(&rig);
}
