/* SPDX-License-Identifier: Apache-2.0 */
/**
 * @file
 * Heads: code of several instructions that gives way to one JMP, and comes back. Who stands at a
 * later instruction is sent to its copy by an int3 of its own; before the tail of a site changes,
 * somebody looks whether it is empty.
 */
#include <errno.h>

#include "heads.h"

static void add_window(struct rig *rig, size_t offset, unsigned int heads, bool back)
{
	if (back)
		rig_window_back(rig, offset, heads);
	else
		rig_window(rig, offset, heads);
}

static void check_refused(struct rig *rig, int code, size_t index)
{
	CHECK_EQ(rig_run(rig), code);
	CHECK_EQ(rig->outcome.phase, TP_PHASE_CHECK);
	CHECK_EQ(rig->outcome.fail_index, index);
	CHECK_EQ(rig->fake.logged, 0);
	CHECK(!rig->engine.active);
}

/* The story of operations. */

TEST(heads_every_operation_of_one_window)
{
	for (unsigned int mask = 1; mask < MASKS; mask++) {
		struct rig rig;
		const struct fake_op *log;
		unsigned int heads = HEADS(mask), last = 31 - (unsigned int)__builtin_clz(heads);
		uint64_t at;

		CHECK_NOTE("heads %#x", heads);
		rig_open(&rig, 1);
		rig_window(&rig, 32, heads);
		at = rig.asked[0].addr;
		CHECK_EQ(rig_run(&rig), 0);
		CHECK(!strcmp(rig_story(&rig), "r" /* verify */ "rwrs"
					       "l"
					       "rwrs"
					       "rwrfs"));
		log = rig.fake.log;
		CHECK(log[2].addr == at && log[2].len == last + 1);
		for (unsigned int i = 0; i <= last; i++)
			CHECK_EQ(log[2].bytes[i],
				 !i || heads >> i & 1 ? TP_INT3 : rig.asked[0].old[i]);
		CHECK(log[7].addr == at + 1 && log[7].len == 4);
		CHECK_BYTES(log[7].bytes, JMP5 + 1, 4);
		CHECK(log[11].addr == at && log[11].len == 1 && log[11].bytes[0] == 0xe9);
		CHECK(rig_is_new(&rig, 0));
		CHECK_EQ(rig.outcome.left, 0);
		CHECK_EQ(rig.outcome.pages, 1);
		check_known(&rig, 0);
		rig_close(&rig);
	}
}

TEST(heads_one_look_whatever_the_number_of_windows)
{
	struct rig rig;

	rig_open(&rig, 1);
	for (size_t i = 0; i < 15; i++)
		rig_window(&rig, 32 * i, HEADS(1 + i));
	rig_flip(&rig, 1000);
	rig_nop5(&rig, 1100);
	CHECK_EQ(rig_run(&rig), 0);
	CHECK(!strcmp(rig_story(&rig), "r"
				       "rwrs"
				       "l"
				       "rwrs"
				       "rwrfffffffffffffffffs"));
	for (size_t i = 0; i < rig.count; i++)
		CHECK(rig_is_new(&rig, i));
	rig_close(&rig);
}

TEST(heads_no_look_where_no_window_is)
{
	struct rig rig;

	rig_open(&rig, 1);
	rig_nop5(&rig, 32);
	rig_flip(&rig, 64);
	CHECK_EQ(rig_run(&rig), 0);
	CHECK_EQ(rig.fake.count[FAKE_LOOK], 0);
	rig_close(&rig);
}

TEST(heads_tail_that_stays_is_written_all_the_same_to_clear_its_int3s)
{
	struct rig rig;

	rig_open(&rig, 1);
	rig_window(&rig, 32, EVERY);
	memcpy(rig.asked[0].new_ + 1, PUSHES5 + 1, 4);
	CHECK_EQ(rig_run(&rig), 0);
	CHECK(!strcmp(rig_story(&rig), "rrwrslrwrsrwrfs"));
	CHECK(rig_is_new(&rig, 0));
	rig_close(&rig);
}

TEST(heads_old_code_may_begin_like_any_instruction_and_its_jmp_is_emulated)
{
	static const uint8_t begins[][5] = {
		{ 0xf3, 0x0f, 0x1e, 0xfa, 0x55 }, { 0x90, 0x90, 0x90, 0x90, 0x90 },
		{ 0x0f, 0x1f, 0x00, 0x66, 0x90 }, { 0xeb, 0x02, 0x55, 0x56, 0x57 },
		{ 0x74, 0x02, 0x55, 0x56, 0x57 }, { 0xc3, 0x90, 0x90, 0x90, 0x90 },
		{ 0xc2, 0x08, 0x00, 0x90, 0x90 }, { 0x55, 0x48, 0x89, 0xe5, 0x41 },
	};

	for (size_t i = 0; i < sizeof(begins) / sizeof(*begins); i++)
		for (int back = 0; back < 2; back++) {
			struct rig rig;
			struct tp_poke *poke;
			struct tp_frame frame;

			CHECK_NOTE("old code %zu, back %d", i, back);
			rig_open(&rig, 1);
			rig.batch.finish = NULL;
			add_window(&rig, 32, 1 << 4, back);
			poke = &rig.asked[0];
			memcpy(back ? poke->new_ : poke->old, begins[i], 5);
			memcpy(rig.fake.bytes + 32, poke->old, 5);
			rig_learn(&rig);
			CHECK_EQ(tp_check_batch(&rig.engine, &rig.batch), 0);
			tp_publish(&rig.engine, &rig.batch);
			CHECK_EQ(rig_trap(&rig, 0, &frame), TP_TRAP_EMULATED);
			CHECK_EQ(frame.rip, JMP_TARGET(poke->addr));
			tp_publish(&rig.engine, NULL);
			CHECK_EQ(rig_run(&rig), 0);
			CHECK(rig_is_new(&rig, 0));
			rig_close(&rig);
		}
}

TEST(heads_stop_mode_writes_whole_windows_in_one_pass_both_ways_without_a_look)
{
	struct rig rig;

	rig_open(&rig, 1);
	rig.batch.mode = TP_MODE_STOP;
	rig_window(&rig, 32, EVERY);
	rig_window_back(&rig, 64, EVERY);
	rig.batch.all_or_nothing = true;
	rig.engine.ops = &fake_blind_ops;
	CHECK_EQ(rig_run(&rig), 0);
	CHECK(!strcmp(rig_story(&rig), "rrwrffs"));
	CHECK(rig_is_new(&rig, 0) && rig_is_new(&rig, 1));
	CHECK_EQ(rig_known(&rig, 0)->mode, TP_MODE_STOP);
	rig_close(&rig);
}

TEST(heads_direct_mode_takes_a_window_whose_tail_stays)
{
	struct rig rig;

	rig_open(&rig, 1);
	rig.batch.mode = TP_MODE_DIRECT;
	rig_window(&rig, 32, EVERY);
	memcpy(rig.asked[0].new_ + 1, PUSHES5 + 1, 4);
	CHECK_EQ(rig_run(&rig), 0);
	CHECK_EQ(rig.fake.count[FAKE_LOOK], 0);
	CHECK(rig_is_new(&rig, 0));
	rig_close(&rig);
}

/* Busy sites. */

TEST(heads_busy_site_fails_the_batch_and_all_is_undone)
{
	struct rig rig;

	rig_open(&rig, 1);
	rig_window(&rig, 96, EVERY);
	rig_window(&rig, 32, EVERY);
	rig_window(&rig, 64, EVERY);
	rig_nop5(&rig, 0);
	rig.busy = 1 << 0 | 1 << 2;
	CHECK_EQ(rig_run(&rig), -TP_EINSIDE);
	CHECK_EQ(rig.outcome.phase, TP_PHASE_LOOK);
	CHECK_EQ(rig.outcome.fail_index, 2); /* the first in address order */
	CHECK_EQ(rig.outcome.fail_count, 2);
	CHECK_EQ(rig.outcome.fail_addr, rig.asked[2].addr);
	CHECK_EQ(rig.outcome.fail_len, 5);
	CHECK_BYTES(rig.outcome.expected, PUSHES5, 5);
	CHECK_EQ(rig.outcome.left, 0);
	CHECK_EQ(rig.outcome.finished, 0);
	CHECK(!strcmp(rig_story(&rig), "rrwrsl" /* recovery */ "s"
				       "rwrs"
				       "rwrs"));
	check_undone(&rig);
	for (size_t i = 0; i < rig.count; i++)
		CHECK_EQ(rig_site(&rig, i)->outcome, TP_SITE_RESTORED);
	rig.busy = 0;
	CHECK_EQ(rig_run(&rig), 0); /* nobody is there now */
	CHECK(rig_is_new(&rig, 0) && rig_is_new(&rig, 2));
	rig_close(&rig);
}

TEST(heads_busy_site_is_left_and_the_rest_goes_on)
{
	struct rig rig;

	rig_open(&rig, 1);
	rig_window(&rig, 32, EVERY);
	rig_window(&rig, 64, EVERY);
	rig_window(&rig, 96, 1 << 2);
	rig_nop5(&rig, 128);
	rig.batch.leave_busy = true;
	rig.batch.all_or_nothing = true;
	rig.busy = 1 << 1;
	CHECK_EQ(rig_run(&rig), 0);
	CHECK(!strcmp(rig_story(&rig), "rrwrsl" /* released */ "rwr"
				       "rwrs"
				       "rwrfffs"));
	CHECK_EQ(rig.fake.log[7].addr, rig.asked[1].addr);
	CHECK_EQ(rig.fake.log[7].len, 5);
	CHECK_BYTES(rig.fake.log[7].bytes, PUSHES5, 5);
	CHECK_EQ(rig.outcome.left, 1);
	CHECK_EQ(rig.outcome.finished, 3);
	CHECK_EQ(rig.outcome.pages, 1);
	CHECK_EQ(rig_site(&rig, 1)->outcome, TP_SITE_LEFT);
	CHECK(rig_is_new(&rig, 0) && rig_is_old(&rig, 1) && rig_is_new(&rig, 2));
	CHECK(rig_is_new(&rig, 3));
	CHECK_EQ(rig_int3_bytes(&rig), 0);
	for (size_t i = 0; i < rig.count; i++)
		check_known(&rig, i);
	CHECK_EQ(rig_known(&rig, 1)->written, 1);
	CHECK_EQ(rig_known(&rig, 1)->mode, TP_MODE_INT3);
	rig_close(&rig);
}

TEST(heads_finish_is_called_for_no_site_that_is_left)
{
	for (unsigned int busy = 0; busy < 1 << 4; busy++) {
		struct rig rig;

		CHECK_NOTE("busy %#x", busy);
		rig_open(&rig, 1);
		for (size_t i = 0; i < 4; i++)
			rig_window(&rig, 32 * i, EVERY);
		rig_skip(&rig, 33);
		rig.batch.leave_busy = true;
		rig.busy = busy;
		CHECK_EQ(rig_run(&rig), 0);
		CHECK_EQ(rig.outcome.left, __builtin_popcount(busy));
		CHECK_EQ(rig.outcome.finished + rig.outcome.left, 5);
		for (size_t k = 0; k < rig.fake.logged; k++) {
			const struct fake_op *op = &rig.fake.log[k];

			for (size_t i = 0; op->kind == FAKE_FINISH && i < 4; i++)
				CHECK(op->addr != rig.asked[i].addr || !(busy >> i & 1));
		}
		for (size_t i = 0; i < 4; i++) {
			CHECK(busy >> i & 1 ? rig_is_old(&rig, i) : rig_is_new(&rig, i));
			check_known(&rig, i);
		}
		CHECK_EQ(rig_int3_bytes(&rig), 0);
		rig_close(&rig);
	}
}

TEST(heads_all_sites_left_is_no_failure)
{
	struct rig rig;

	rig_open(&rig, 1);
	rig_window(&rig, 32, EVERY);
	rig_window(&rig, 64, EVERY);
	rig.batch.leave_busy = true;
	rig.busy = 3;
	CHECK_EQ(rig_run(&rig), 0);
	CHECK(!strcmp(rig_story(&rig), "rrwrsl"
				       "rwr"
				       "s"
				       "s"));
	CHECK_EQ(rig.outcome.left, 2);
	CHECK_EQ(rig.outcome.finished, 0);
	CHECK(rig_is_old(&rig, 0) && rig_is_old(&rig, 1));
	CHECK(!rig.engine.active && !rig.engine.broken);
	rig_close(&rig);
}

TEST(heads_site_that_was_left_is_taken_by_a_later_batch)
{
	struct rig rig;

	rig_open(&rig, 1);
	rig_window(&rig, 32, EVERY);
	rig.batch.leave_busy = true;
	rig.busy = 1;
	CHECK_EQ(rig_run(&rig), 0);
	CHECK(rig_is_old(&rig, 0));
	rig.busy = 0;
	CHECK_EQ(rig_run(&rig), 0);
	CHECK(rig_is_new(&rig, 0));
	CHECK_EQ(rig.outcome.left, 0);
	check_known(&rig, 0);
	rig_close(&rig);
}

TEST(heads_failed_look_undoes_everything_and_its_error_is_told)
{
	static const int errors[] = { -ETIMEDOUT, -EOWNERDEAD, -EPERM, -ESRCH, -ENOMEM, -EAGAIN };

	for (size_t i = 0; i < sizeof(errors) / sizeof(*errors); i++)
		for (int leave = 0; leave < 2; leave++)
			for (int fault = 0; fault < 2; fault++) {
				struct rig rig;

				CHECK_NOTE("error %d, leave_busy %d", errors[i], leave);
				rig_open(&rig, 1);
				rig_window(&rig, 32, EVERY);
				rig_nop5(&rig, 64);
				rig.batch.leave_busy = leave;
				if (fault)
					rig.fake.faults[0] =
						(struct fake_fault){ FAKE_LOOK, 0, 1, errors[i] };
				else
					rig.look_error = errors[i];
				CHECK_EQ(rig_run(&rig), errors[i]);
				CHECK_EQ(rig.outcome.phase, TP_PHASE_LOOK);
				CHECK_EQ(rig.outcome.fail_count, rig.count);
				CHECK_EQ(rig.outcome.fail_addr, 0);
				CHECK(!strcmp(rig_story(&rig), "rrwrslsrwrsrwrs"));
				check_undone(&rig);
				rig_close(&rig);
			}
}

TEST(heads_failed_look_that_has_marked_sites_undoes_those_too)
{
	for (int leave = 0; leave < 2; leave++) {
		struct rig rig;

		CHECK_NOTE("leave_busy %d", leave);
		rig_open(&rig, 1);
		rig_window(&rig, 32, EVERY);
		rig_window(&rig, 64, EVERY);
		rig.batch.leave_busy = leave;
		rig.busy = 1 << 1;
		rig.look_error = -ETIMEDOUT;
		CHECK_EQ(rig_run(&rig), leave ? -ETIMEDOUT : -TP_EINSIDE);
		check_undone(&rig);
		CHECK_EQ(rig_site(&rig, 1)->outcome, TP_SITE_RESTORED);
		CHECK_EQ(rig.outcome.left, 0);
		rig_close(&rig);
	}
}

/* Traps. */

static void trap_after(struct fake *fake, const struct fake_op *op)
{
	struct rig *rig = fake->owner;

	CHECK_NOTE("operation %zu (kind %d)", fake->logged, op->kind);
	if (rig->engine.active)
		trap_everywhere(rig);
}

TEST(heads_trap_at_each_head_goes_to_its_copy_at_any_moment_of_a_batch_and_is_late_after)
{
	struct rig rig;

	rig_open(&rig, 1);
	for (unsigned int mask = 1; mask < MASKS; mask++)
		rig_window(&rig, 32 * mask, HEADS(mask));
	rig.fake.after = trap_after;
	CHECK_EQ(rig_run(&rig), 0);
	CHECK_NOTE("after the batch");
	trap_everywhere(&rig);
	rig_close(&rig);
}

TEST(heads_trap_in_a_site_that_is_left_goes_to_its_copy_until_the_end_and_is_late_after)
{
	struct rig rig;

	rig_open(&rig, 1);
	for (unsigned int mask = 1; mask < MASKS; mask++)
		rig_window(&rig, 32 * mask, HEADS(mask));
	rig.busy = 0x5555;
	rig.batch.leave_busy = true;
	rig.fake.after = trap_after;
	CHECK_EQ(rig_run(&rig), 0);
	CHECK_EQ(rig.outcome.left, 8);
	CHECK_NOTE("after the batch");
	trap_everywhere(&rig);
	rig_close(&rig);
}

TEST(heads_trap_at_each_head_is_handled_at_any_moment_of_an_undo_and_is_late_after)
{
	for (int busy = 0; busy < 2; busy++) {
		struct rig rig;

		rig_open(&rig, 1);
		for (unsigned int mask = 1; mask < MASKS; mask++)
			rig_window(&rig, 32 * mask, HEADS(mask));
		rig.busy = busy ? 1 << 7 : 0;
		rig.batch.all_or_nothing = true;
		if (!busy)
			rig.fake.faults[0] = (struct fake_fault){ FAKE_SYNC, 2, 1, -EPERM };
		rig.fake.after = trap_after;
		CHECK_EQ(rig_run(&rig), busy ? -TP_EINSIDE : -EPERM);
		CHECK_NOTE("after the undo");
		trap_everywhere(&rig);
		check_undone(&rig);
		rig_close(&rig);
	}
}

TEST(heads_trap_while_code_comes_back_goes_to_the_jmp_target_and_no_head_is_sent_to_a_copy)
{
	struct rig rig;

	rig_open(&rig, 1);
	rig.batch.finish = NULL;
	for (unsigned int mask = 1; mask < MASKS; mask++)
		rig_window_back(&rig, 32 * mask, HEADS(mask));
	rig.fake.after = trap_after;
	CHECK_EQ(rig_run(&rig), 0);
	CHECK_NOTE("after the batch");
	trap_everywhere(&rig);
	rig_close(&rig);
}

TEST(heads_late_trap_of_an_earlier_batch_during_another)
{
	struct rig rig;

	rig_open(&rig, 1);
	rig_window(&rig, 32, EVERY);
	rig.batch.leave_busy = true;
	rig.busy = 1;
	CHECK_EQ(rig_run(&rig), 0);
	rig_window(&rig, 64, EVERY);
	rig_learn(&rig);
	CHECK_EQ(tp_check_batch(&rig.engine, &rig.batch), 0);
	rig.batch.pokes++; /* the second site alone */
	rig.batch.count--;
	tp_publish(&rig.engine, &rig.batch);
	for (unsigned int head = 1; head < 5; head++) {
		check_late(&rig, 0, head);
		check_sent_to_copy(&rig, 1, head);
	}
	rig_close(&rig);
}

TEST(heads_int3_of_somebody_else_at_a_known_head_is_foreign)
{
	struct rig rig;

	rig_open(&rig, 1);
	rig_window(&rig, 32, 1 << 2);
	CHECK_EQ(rig_run(&rig), 0);
	rig.fake.bytes[34] = TP_INT3; /* a debugger's */
	check_foreign(&rig, rig.asked[0].addr + 2);
	rig.fake.bytes[34] = JMP5[2];
	rig_close(&rig);
}

static uint64_t asked_about[8];
static size_t asked_count;

static bool is_ours(uint64_t ip)
{
	asked_about[asked_count++ % 8] = ip;
	return true;
}

TEST(heads_predicate_is_asked_about_the_address_behind_the_head)
{
	struct rig rig;

	rig_open(&rig, 1);
	rig_window(&rig, 32, EVERY);
	rig.batch.is_handled = is_ours;
	rig_learn(&rig);
	CHECK_EQ(tp_check_batch(&rig.engine, &rig.batch), 0);
	tp_publish(&rig.engine, &rig.batch);
	asked_count = 0;
	check_sent_to_copy(&rig, 0, 3);
	CHECK_EQ(asked_count, 1);
	CHECK_EQ(asked_about[0], rig.asked[0].addr + 4);
	rig_close(&rig);
}

/* Windows, other sites at both ends of them, and NULL records before, inside and behind. */
TEST(heads_lookup_finds_each_head_beside_other_sites_and_null_records)
{
	for (unsigned int mask = 1; mask < MASKS; mask++)
		for (unsigned int nulls = 0; nulls < 1 << 7; nulls++) {
			struct rig rig;
			struct tp_frame frame;

			CHECK_NOTE("heads %#x, NULL records %#x", HEADS(mask), nulls);
			rig_open(&rig, 1);
			rig_window(&rig, 32, HEADS(mask));
			rig_window(&rig, 37, HEADS(MASKS - mask));
			rig_flip(&rig, 27);
			rig_nop5(&rig, 42);
			for (unsigned int i = 0; i < 7; i++)
				if (nulls >> i & 1)
					rig_skip(&rig, 31 + i);
			if (nulls & 8)
				rig_skip(&rig, 34); /* two of them */
			rig_learn(&rig);
			CHECK_EQ(tp_check_batch(&rig.engine, &rig.batch), 0);
			tp_publish(&rig.engine, &rig.batch);
			for (size_t i = 0; i < 4; i++)
				CHECK_EQ(rig_trap(&rig, i, &frame), TP_TRAP_EMULATED);
			for (size_t i = 0; i < 2; i++)
				for (unsigned int head = 1; head < 5; head++)
					if (rig_heads(&rig.asked[i]) >> head & 1)
						check_sent_to_copy(&rig, i, head);
					else
						check_foreign(&rig, rig.asked[i].addr + head);
			for (uint64_t at = 28; at < 32; at++) /* within an ordinary site */
				check_foreign(&rig, fake_addr(&rig.fake, at));
			for (uint64_t at = 43; at < 43 + 80; at++)
				check_foreign(&rig, fake_addr(&rig.fake, at));
			rig_close(&rig);
		}
}

TEST(heads_nothing_far_behind_a_window_is_a_head_of_it)
{
	struct rig rig;

	rig_open(&rig, 1);
	rig_window(&rig, 32, EVERY);
	rig_learn(&rig);
	CHECK_EQ(tp_check_batch(&rig.engine, &rig.batch), 0);
	for (int published = 0; published < 2; published++) {
		tp_publish(&rig.engine, published ? &rig.batch : NULL);
		for (uint64_t at = 37; at < 37 + 300; at++)
			check_foreign(&rig, fake_addr(&rig.fake, at));
	}
	rig_close(&rig);
}

TEST(heads_lookup_in_a_large_batch)
{
	enum { SITES = 900 };
	struct rig rig;

	rig_open(&rig, 4);
	for (size_t i = 0; i < SITES; i++)
		if (i % 3 == 2)
			rig_skip(&rig, i / 3 * 16 + i % 5);
		else
			rig_window(&rig, i / 3 * 16 + 5 * (i % 3), EVERY);
	rig_learn(&rig);
	CHECK_EQ(tp_check_batch(&rig.engine, &rig.batch), 0);
	tp_publish(&rig.engine, &rig.batch);
	for (size_t i = 0; i < SITES; i++)
		for (unsigned int head = 1; i % 3 != 2 && head < 5; head++)
			check_sent_to_copy(&rig, i, head);
	rig_close(&rig);
}

/* The way back. */

TEST(heads_back_is_the_plain_protocol_without_a_look)
{
	for (unsigned int mask = 1; mask < MASKS; mask++) {
		struct rig rig;
		const struct fake_op *log;

		CHECK_NOTE("heads %#x", HEADS(mask));
		rig_open(&rig, 1);
		rig.batch.finish = NULL;
		rig.engine.ops = &fake_blind_ops; /* nobody need tell */
		rig_window_back(&rig, 32, HEADS(mask));
		rig.busy = 1;
		CHECK_EQ(rig_run(&rig), 0);
		CHECK(!strcmp(rig_story(&rig), "r"
					       "rwrs"
					       "rwrs"
					       "rwrs"));
		log = rig.fake.log;
		CHECK(log[2].len == 1 && log[2].bytes[0] == TP_INT3);
		CHECK(log[6].addr == rig.asked[0].addr + 1 && log[6].len == 4);
		CHECK_BYTES(log[6].bytes, PUSHES5 + 1, 4);
		CHECK(log[10].len == 1 && log[10].bytes[0] == PUSHES5[0]);
		CHECK(rig_is_new(&rig, 0));
		check_known(&rig, 0);
		rig_close(&rig);
	}
}

TEST(heads_there_and_back_leaves_a_site_known_as_it_was)
{
	struct rig rig;

	rig_open(&rig, 1);
	rig.batch.finish = NULL;
	rig_window(&rig, 32, EVERY);
	CHECK_EQ(rig_run(&rig), 0);
	CHECK_EQ(rig_known(&rig, 0)->patched, 1);
	CHECK_EQ(rig_known(&rig, 0)->heads, EVERY);
	memcpy(rig.asked[0].old, JMP5, 5);
	memcpy(rig.asked[0].new_, PUSHES5, 5);
	rig.asked[0].flags |= TP_POKE_BACK;
	CHECK_EQ(rig_run(&rig), 0);
	CHECK(rig_is_new(&rig, 0));
	CHECK_EQ(rig_known(&rig, 0)->patched, 0);
	CHECK_BYTES(rig_known(&rig, 0)->original, PUSHES5, 5);
	CHECK_BYTES(rig_known(&rig, 0)->current, PUSHES5, 5);
	rig_close(&rig);
}

TEST(heads_back_is_refused_where_a_failure_could_take_it_back)
{
	for (int all = 0; all < 2; all++)
		for (int finish = 0; finish < 2; finish++) {
			struct rig rig;

			CHECK_NOTE("all_or_nothing %d, finish %d", all, finish);
			rig_open(&rig, 1);
			rig_nop5(&rig, 0);
			rig_window_back(&rig, 32, EVERY);
			rig.batch.all_or_nothing = all;
			if (!finish)
				rig.batch.finish = NULL;
			if (all || finish)
				check_refused(&rig, -TP_EMULTI, 1);
			else
				CHECK_EQ(rig_run(&rig), 0);
			rig_close(&rig);
		}
}

TEST(heads_back_whose_tail_stays_may_be_taken_back)
{
	struct rig rig;

	rig_open(&rig, 1);
	rig_window_back(&rig, 32, EVERY);
	memcpy(rig.asked[0].new_ + 1, JMP5 + 1, 4);
	rig.batch.all_or_nothing = true;
	rig.fake.faults[0] = (struct fake_fault){ FAKE_SYNC, 1, 1, -EPERM };
	CHECK_EQ(rig_run(&rig), -EPERM);
	check_undone(&rig);
	rig.fake.faults[0].times = 0;
	CHECK_EQ(rig_run(&rig), 0);
	CHECK(rig_is_new(&rig, 0));
	rig_close(&rig);
}

/* Refusals. */

TEST(heads_without_anybody_to_look_are_refused_in_int3_mode_alone)
{
	struct rig rig;

	rig_open(&rig, 1);
	rig.engine.ops = &fake_blind_ops;
	rig_nop5(&rig, 0);
	rig_window(&rig, 32, 1 << 3);
	check_refused(&rig, -TP_EMULTI, 1);
	rig.batch.mode = TP_MODE_STOP;
	CHECK_EQ(rig_run(&rig), 0);
	rig_close(&rig);
}

TEST(heads_direct_mode_refuses_a_tail_that_differs_both_ways)
{
	for (int back = 0; back < 2; back++) {
		struct rig rig;

		CHECK_NOTE("back %d", back);
		rig_open(&rig, 1);
		rig.batch.mode = TP_MODE_DIRECT;
		rig.batch.finish = NULL;
		rig_flip(&rig, 0);
		add_window(&rig, 32, 1 << 3, back);
		check_refused(&rig, -TP_EDIRECT, 1);
		rig_close(&rig);
	}
}

/* A rig whose second site is a window that somebody spoils. */
static struct tp_poke *open_window(struct rig *rig, bool back, enum tp_mode mode)
{
	rig_open(rig, 1);
	rig->batch.finish = NULL;
	rig->batch.mode = mode;
	rig_flip(rig, 0);
	add_window(rig, 32, EVERY, back);
	return &rig->asked[1];
}

static const enum tp_mode modes[] = { TP_MODE_INT3, TP_MODE_STOP, TP_MODE_DIRECT };

TEST(heads_need_a_jmp_of_five_bytes_on_the_other_side)
{
	static const uint8_t others[][5] = {
		{ 0xe8, 1, 2, 3, 4 },
		{ 0x0f, 0x1f, 0x44, 0, 0 },
		{ 0xeb, 0x10, 0xcc, 0xcc, 0xcc }, /* a JMP of two, and padding */
		{ 0xc3, 0xcc, 0xcc, 0xcc, 0xcc },
		{ 0xff, 0x25, 1, 2, 3 },
		{ 0x55, 1, 2, 3, 4 },
	};

	for (size_t i = 0; i < sizeof(others) / sizeof(*others); i++)
		for (int back = 0; back < 2; back++)
			for (size_t m = 0; m < 3; m++) {
				struct rig rig;
				struct tp_poke *poke = open_window(&rig, back, modes[m]);

				CHECK_NOTE("code %zu, back %d, mode %zu", i, back, m);
				memcpy(back ? poke->old : poke->new_, others[i], 5);
				memcpy((void *)poke->addr, poke->old, 5);
				check_refused(&rig, -TP_EHEADS, 1);
				rig_close(&rig);
			}
}

TEST(heads_need_a_site_of_five_bytes)
{
	for (uint8_t len = 1; len <= TP_MAX_INSN; len++)
		for (int back = 0; back < 2; back++) {
			struct rig rig;
			struct tp_poke *poke = open_window(&rig, back, TP_MODE_INT3);
			uint8_t *jmp = back ? poke->old : poke->new_;

			CHECK_NOTE("%u bytes, back %d", len, back);
			if (len == 5) {
				CHECK_EQ(rig_run(&rig), 0);
				rig_close(&rig);
				continue;
			}
			poke->len = len;
			for (unsigned int i = 5; i < len && i < 12; i++)
				jmp[i] = TP_INT3; /* padding that may follow a JMP */
			memcpy((void *)poke->addr, poke->old, len);
			check_refused(&rig, -TP_EHEADS, 1);
			rig_close(&rig);
		}
}

TEST(heads_need_a_place_in_the_copy_each)
{
	for (unsigned int mask = 1; mask < MASKS; mask++)
		for (unsigned int head = 1; head < 5; head++)
			for (size_t m = 0; m < 2; m++) {
				struct rig rig;

				CHECK_NOTE("heads %#x without %u, mode %zu", HEADS(mask), head, m);
				rig_open(&rig, 1);
				rig.batch.mode = modes[m];
				rig_flip(&rig, 0);
				rig_window(&rig, 32, HEADS(mask));
				rig.asked[1].new_[11 + head] = 0;
				if (HEADS(mask) >> head & 1)
					check_refused(&rig, -TP_EHEADS, 1);
				else
					CHECK_EQ(rig_run(&rig), 0);
				rig_close(&rig);
			}
}

TEST(heads_at_an_int3_of_the_program_are_refused)
{
	for (int back = 0; back < 2; back++)
		for (unsigned int head = 0; head < 5; head++) {
			struct rig rig;
			struct tp_poke *poke = open_window(&rig, back, TP_MODE_INT3);
			bool is_head = (tp_heads(poke) | 1) >> head & 1;

			CHECK_NOTE("head %u, back %d", head, back);
			(back ? poke->new_ : poke->old)[head] = TP_INT3;
			memcpy((void *)poke->addr, poke->old, 5);
			if (is_head)
				check_refused(&rig, -TP_EEMULATE, 1);
			else
				CHECK_EQ(rig_run(&rig), 0);
			rig_close(&rig);
		}
}

TEST(heads_and_a_handler_are_refused)
{
	for (int back = 0; back < 2; back++)
		for (size_t m = 0; m < 3; m++) {
			struct rig rig;

			CHECK_NOTE("back %d, mode %zu", back, m);
			open_window(&rig, back, modes[m])->handler = 0x123456;
			check_refused(&rig, -TP_EHEADS, 1);
			rig_close(&rig);
		}
}

/* What is decided about a site is not what was decided about one with the same bytes before it. */
TEST(heads_of_a_site_are_checked_whatever_the_one_before_is_like)
{
	for (size_t turn = 0; turn < 3; turn++) {
		struct rig rig;

		CHECK_NOTE("turn %zu", turn);
		rig_open(&rig, 1);
		rig_window(&rig, 0, EVERY);
		rig_window(&rig, 32, EVERY);
		if (turn == 0) { /* one instruction, whatever it is: the caller says so */
			rig.asked[0].flags = 0;
			CHECK_EQ(rig_run(&rig), 0);
			CHECK_EQ(rig.fake.count[FAKE_LOOK], 1);
		} else { /* the first one needs no copy at byte 3 */
			rig.asked[turn - 1].flags &= ~(1 << 3 << 1);
			rig.asked[0].new_[11 + 3] = rig.asked[1].new_[11 + 3] = 0;
			check_refused(&rig, -TP_EHEADS, 2 - turn);
		}
		rig_close(&rig);
	}
}

TEST(heads_that_the_table_of_known_sites_lacks_are_refused)
{
	for (int back = 0; back < 2; back++) {
		struct rig rig;

		CHECK_NOTE("back %d", back);
		open_window(&rig, back, TP_MODE_INT3);
		rig_learn(&rig);
		rig_known(&rig, 1)->heads = EVERY & ~(1 << 3);
		CHECK_EQ(rig_run_unlearned(&rig), -TP_EKNOWN);
		CHECK_EQ(rig.outcome.fail_index, 1);
		CHECK_EQ(rig.fake.logged, 0);
		rig_known(&rig, 1)->heads = EVERY;
		CHECK_EQ(rig_run_unlearned(&rig), 0);
		rig_close(&rig);
	}
}

TEST(heads_without_heads_back_alone_means_nothing)
{
	struct rig rig;

	rig_open(&rig, 1);
	rig_nop5(&rig, 32);
	rig.asked[0].flags = TP_POKE_BACK;
	CHECK_EQ(rig_run(&rig), 0);
	CHECK(rig_is_new(&rig, 0));
	CHECK_EQ(rig.fake.count[FAKE_LOOK], 0);
	rig_close(&rig);
}

TEST(heads_other_site_within_a_window_overlaps)
{
	for (size_t at = 28; at < 37; at++) {
		struct rig rig;

		CHECK_NOTE("site at %zu", at);
		rig_open(&rig, 1);
		rig_window(&rig, 32, EVERY);
		rig_add(&rig, at, 1, BYTES(0x90), BYTES(0xc3));
		memcpy(rig.fake.bytes + 32, PUSHES5, 5);
		if (at < 32)
			rig.fake.bytes[at] = 0x90;
		CHECK_EQ(rig_run(&rig), at < 32 ? 0 : -TP_EOVERLAP);
		rig_close(&rig);
	}
}

/* The table of known sites. */

TEST(heads_of_all_batches_are_known_together)
{
	struct rig rig;

	rig_open(&rig, 1);
	rig_window(&rig, 32, 1 << 2);
	rig.batch.leave_busy = true;
	rig.busy = 1;
	CHECK_EQ(rig_run(&rig), 0);
	rig.asked[0].flags = 1 << 3 << 1;
	rig.asked[0].new_[11 + 3] = RIG_COPY(3);
	CHECK_EQ(rig_run(&rig), 0);
	CHECK_EQ(rig_known(&rig, 0)->heads, 1 << 2 | 1 << 3);
	check_late(&rig, 0, 2);
	check_late(&rig, 0, 3);
	check_foreign(&rig, rig.asked[0].addr + 1);
	check_foreign(&rig, rig.asked[0].addr + 5);
	rig_close(&rig);
}

/* A known site within a window, of an earlier batch or of a module that was there before. */
TEST(heads_late_trap_is_known_where_other_known_sites_lie_within_the_window)
{
	for (unsigned int inside = 1; inside < 1 << 4; inside++) {
		struct rig rig;

		CHECK_NOTE("known sites at %#x", inside << 1);
		rig_open(&rig, 1);
		for (unsigned int at = 1; at < 5; at++)
			if (inside >> (at - 1) & 1)
				rig_add(&rig, 32 + at, 1, BYTES(PUSHES5[at]), BYTES(0x90));
		rig_learn(&rig);
		rig.count = 0;
		rig_window(&rig, 32, EVERY);
		rig.batch.leave_busy = true;
		rig.busy = 1;
		CHECK_EQ(rig_run(&rig), 0);
		CHECK_EQ(rig.outcome.left, 1);
		for (unsigned int head = 0; head < 5; head++)
			check_late(&rig, 0, head);
		check_foreign(&rig, rig.asked[0].addr + 5);
		rig_close(&rig);
	}
}

/* ret and the padding behind it, which nobody executes */
#define PADDED5 BYTES(0xc3, 0x66, 0x90, 0x66, 0x90)

TEST(one_instruction_and_padding_is_one_when_the_caller_says_so)
{
	for (int says = 0; says < 2; says++) {
		struct rig rig;

		rig_open(&rig, 1);
		rig_add(&rig, 32, 5, PADDED5, JMP5);
		rig.asked[0].flags = says ? TP_POKE_ONE : 0;
		CHECK_EQ(rig_run(&rig), says ? 0 : -TP_EMULTI);
		CHECK_EQ(rig_is_new(&rig, 0), says);
		rig_close(&rig);
	}
}

TEST(one_instruction_by_its_callers_word_is_still_not_written_in_one_store)
{
	struct rig rig;

	rig_open(&rig, 1);
	rig.batch.mode = TP_MODE_DIRECT;
	rig_add(&rig, 32, 5, PADDED5, JMP5);
	rig.asked[0].flags = TP_POKE_ONE;
	check_refused(&rig, -TP_EDIRECT, 0);
	rig_close(&rig);
}

TEST(what_is_one_by_its_callers_word_is_not_taken_for_its_neighbour)
{
	struct rig rig;

	rig_open(&rig, 1);
	rig_add(&rig, 32, 5, PADDED5, JMP5);
	rig_add(&rig, 64, 5, PADDED5, JMP5);
	rig.asked[0].flags = TP_POKE_ONE;
	CHECK_EQ(rig_run(&rig), -TP_EMULTI);
	CHECK_EQ(rig.outcome.fail_index, 1);
	rig_close(&rig);
}
