/* SPDX-License-Identifier: Apache-2.0 */
/** @file patch.c: the order of a batch, its syncs, its outcome, and the traps in it. */
#include <errno.h>

#include "check.h"
#include "rig.h"

#define PAGE(n) ((n) * (size_t)TP_PAGE_BYTES)

/*
 * The whole protocol as an invariant, looked at after every operation: what the bytes of a site may
 * be, given the number of syncs that have happened. @last is the number of the last sync.
 */
static void check_order(const struct rig *rig, const struct fake_op *op, size_t last)
{
	size_t syncs = rig->fake.count[FAKE_SYNC] - (op->kind == FAKE_SYNC);

	for (size_t i = 0; i < rig->count; i++) {
		const struct tp_poke *poke = &rig->asked[i];
		const uint8_t *now = rig_bytes(rig, i);
		bool int3 = now[0] == TP_INT3;

		if (poke->flags)
			continue;
		CHECK_NOTE("site %zu after operation %zu, %zu syncs", i, rig->fake.logged, syncs);
		if (syncs == 0)
			CHECK(int3 || now[0] == poke->old[0]);
		else if (syncs + 1 < last)
			CHECK(int3);
		else if (syncs + 1 == last)
			CHECK(int3 || now[0] == poke->new_[0]);
		for (size_t k = 1; k < poke->len; k++)
			CHECK(now[k] == poke->old[k] ? syncs <= 1 || poke->old[k] == poke->new_[k] :
						       now[k] == poke->new_[k] && syncs >= 1);
		if (op->kind == FAKE_SYNC)
			CHECK(int3 == (syncs + 1 < last));
	}
}

static void check_order_of_three(struct fake *fake, const struct fake_op *op)
{
	check_order(fake->owner, op, 3);
}

static void check_order_of_two(struct fake *fake, const struct fake_op *op)
{
	check_order(fake->owner, op, 2);
}

TEST(seed_12_13_14_order_all_int3_sync_all_tails_sync_all_first_bytes_sync)
{
	struct rig rig;

	rig_open(&rig, 3);
	rig_mixed(&rig);
	rig.fake.after = check_order_of_three;
	CHECK_EQ(rig_run(&rig), 0);
	CHECK_EQ(rig.outcome.syncs, 3);
	rig_close(&rig);
}

TEST(seed_13_second_sync_is_left_out_when_no_tail_differs)
{
	struct rig rig;

	rig_open(&rig, 1);
	rig_flip(&rig, 0);
	rig_flip(&rig, 64);
	rig_add(&rig, 128, 1, BYTES(0x90), BYTES(0xc3));
	rig_add(&rig, 160, 5, JMP5, BYTES(0xe8, 0x11, 0x22, 0x33, 0x44));
	rig.fake.after = check_order_of_two;
	CHECK_EQ(rig_run(&rig), 0);
	CHECK_EQ(rig.outcome.syncs, 2);
	for (size_t i = 0; i < rig.fake.logged; i++)
		CHECK(rig.fake.log[i].kind != FAKE_WRITE || rig.fake.log[i].len <= 161);
	rig_close(&rig);
}

TEST(seed_12_13_14_every_operation_of_one_five_byte_site)
{
	struct rig rig;
	const struct fake_op *log;
	uint64_t at;

	rig_open(&rig, 1);
	at = rig.asked ? 0 : fake_addr(&rig.fake, 32);
	rig_nop5(&rig, 32);
	CHECK_EQ(rig_run(&rig), 0);
	CHECK(!strcmp(rig_story(&rig), "r" /* verify */ "rwrs"
				       "rwrs"
				       "rwrfs"));
	log = rig.fake.log;
	CHECK(log[2].addr == at && log[2].len == 1 && log[2].bytes[0] == TP_INT3);
	CHECK(log[6].addr == at + 1 && log[6].len == 4 && !memcmp(log[6].bytes, JMP5 + 1, 4));
	CHECK(log[10].addr == at && log[10].len == 1 && log[10].bytes[0] == 0xe9);
	CHECK_EQ(log[12].addr, at);
	rig_close(&rig);
}

TEST(seed_13_one_differing_tail_among_others_is_enough_for_the_second_sync)
{
	for (size_t turn = 0; turn < 3; turn++) {
		struct rig rig;

		CHECK_NOTE("turn %zu", turn);
		rig_open(&rig, 1);
		for (size_t i = 0; i < 3; i++)
			if (i == turn)
				rig_nop5(&rig, 32 * i);
			else
				rig_flip(&rig, 32 * i);
		rig.fake.after = check_order_of_three;
		CHECK_EQ(rig_run(&rig), 0);
		CHECK_EQ(rig.outcome.syncs, 3);
		rig_close(&rig);
	}
}

TEST(design_nop_run_is_patched_by_two_one_byte_writes_and_two_syncs)
{
	struct rig rig;

	rig_open(&rig, 1);
	rig_flip(&rig, 32);
	CHECK_EQ(rig_run(&rig), 0);
	CHECK(!strcmp(rig_story(&rig), "r"
				       "rwrs"
				       "rwrfs"));
	CHECK_EQ(rig.fake.log[2].len, 1);
	CHECK_EQ(rig.fake.log[6].len, 1);
	CHECK_EQ(rig.fake.log[6].bytes[0], 0xe8);
	rig_close(&rig);
}

TEST(seed_16_empty_batch_still_syncs)
{
	struct rig rig;

	rig_open(&rig, 1);
	CHECK_EQ(rig_run(&rig), 0);
	CHECK(!strcmp(rig_story(&rig), "ss"));
	rig_close(&rig);
}

TEST(seed_22_null_opcode_is_skipped_counted_and_finished)
{
	struct rig rig;
	const uint8_t before[16] = { 0xf4, 0xf4, 0xf4, 0xf4, 0xf4, 0xf4, 0xf4, 0xf4,
				     0xf4, 0xf4, 0xf4, 0xf4, 0xf4, 0xf4, 0xf4, 0xf4 };

	rig_open(&rig, 2);
	rig_skip(&rig, 40);
	rig_nop5(&rig, 64);
	rig_skip(&rig, PAGE(1) + 40);
	rig_skip(&rig, 0);
	CHECK_EQ(rig_run(&rig), 0);
	CHECK(!strcmp(rig_story(&rig), "r"
				       "rwrs"
				       "rwrs"
				       "rwrffffs"));
	CHECK_EQ(rig.outcome.sites, 4);
	CHECK_EQ(rig.outcome.finished, 4);
	CHECK_BYTES(rig_bytes(&rig, 0), before, sizeof(before));
	CHECK_BYTES(rig_bytes(&rig, 2), before, sizeof(before));
	CHECK_EQ(rig_site(&rig, 0)->outcome, TP_SITE_SKIPPED);
	CHECK_EQ(rig_site(&rig, 1)->outcome, TP_SITE_DONE);
	rig_close(&rig);
}

TEST(seed_22_batch_of_nothing_but_null_opcodes_writes_nothing)
{
	struct rig rig;

	rig_open(&rig, 1);
	rig_skip(&rig, 0);
	rig_skip(&rig, 40);
	CHECK_EQ(rig_run(&rig), 0);
	CHECK(!strcmp(rig_story(&rig), "sffs"));
	rig_close(&rig);
}

TEST(seed_8_finish_runs_once_per_record_in_address_order_between_write_and_sync)
{
	struct rig rig;
	uint64_t last = 0;
	size_t calls = 0;

	rig_open(&rig, 3);
	rig_mixed(&rig);
	CHECK_EQ(rig_run(&rig), 0);
	for (size_t i = 0; i < rig.fake.logged; i++) {
		const struct fake_op *op = &rig.fake.log[i];

		if (op->kind != FAKE_FINISH)
			continue;
		CHECK(op->addr > last);
		last = op->addr;
		calls++;
	}
	CHECK_EQ(calls, rig.count);
	CHECK_EQ(rig.fake.log[rig.fake.logged - 1].kind, FAKE_SYNC);
	rig_close(&rig);
}

TEST(seed_8_finish_is_optional)
{
	struct rig rig;

	rig_open(&rig, 3);
	rig_mixed(&rig);
	rig.batch.finish = NULL;
	CHECK_EQ(rig_run(&rig), 0);
	CHECK_EQ(rig.outcome.finished, rig.count);
	CHECK_EQ(rig.fake.count[FAKE_FINISH], 0);
	rig_close(&rig);
}

static void check_finish_state(struct fake *fake, const struct fake_op *op)
{
	const struct tp_poke *poke = (const void *)op->bytes;

	if (op->kind != FAKE_FINISH || poke->flags)
		return;
	CHECK_EQ(poke->outcome, TP_SITE_WRITTEN);
	CHECK_BYTES((const void *)poke->addr, poke->new_, poke->len);
}

TEST(seed_14_finish_sees_its_site_in_the_new_state)
{
	struct rig rig;

	rig_open(&rig, 3);
	rig_mixed(&rig);
	rig.fake.before = check_finish_state;
	CHECK_EQ(rig_run(&rig), 0);
	rig_close(&rig);
}

static void check_published(struct fake *fake, const struct fake_op *op)
{
	const struct rig *rig = fake->owner;

	if (op->kind == FAKE_WRITE || op->kind == FAKE_SYNC)
		CHECK(rig->engine.active == &rig->batch);
	else if (!fake->count[FAKE_WRITE])
		CHECK(op->kind == FAKE_READ);
}

TEST(seed_11_17_descriptor_is_published_before_the_first_int3_and_retired_after_the_last_sync)
{
	struct rig rig;

	rig_open(&rig, 3);
	rig_mixed(&rig);
	rig.fake.before = check_published;
	CHECK_EQ(rig_run(&rig), 0);
	CHECK(!rig.engine.active);
	rig_close(&rig);
}

TEST(design_every_site_is_verified_before_the_first_write)
{
	struct rig rig;

	rig_open(&rig, 3);
	rig_mixed(&rig);
	rig.fake.bytes[PAGE(2) + 64 + 4] ^= 1; /* the last site in address order */
	CHECK_EQ(rig_run(&rig), -EINVAL);
	CHECK_EQ(rig.outcome.phase, TP_PHASE_VERIFY);
	CHECK_EQ(rig.outcome.fail_addr, fake_addr(&rig.fake, PAGE(2) + 64));
	CHECK_EQ(rig.outcome.fail_index, 0);
	CHECK_EQ(rig.outcome.fail_count, 8);
	CHECK_EQ(rig.fake.count[FAKE_WRITE] + rig.fake.count[FAKE_SYNC], 0);
	CHECK(!rig.engine.active);
	rig_close(&rig);
}

TEST(seed_24_different_bytes_give_einval_with_expected_and_found)
{
	struct rig rig;

	rig_open(&rig, 1);
	rig_nop5(&rig, 0);
	rig.fake.bytes[0] = 0xcc; /* a debugger's */
	CHECK_EQ(rig_run(&rig), -EINVAL);
	CHECK_BYTES(rig.outcome.expected, NOP5, 5);
	CHECK_BYTES(rig.outcome.found, BYTES(0xcc, 0x1f, 0x44, 0x00, 0x00), 5);
	CHECK_EQ(rig.outcome.fail_len, 5);
	rig_close(&rig);
}

/* A site of @len bytes of which byte @at is not as expected; at == len: the byte behind it. */
static int run_with_difference(size_t len, size_t at)
{
	struct rig rig;
	uint8_t old[16], new[16];
	int code;

	memset(old, 0x66, sizeof(old));
	memset(new, TP_INT3, sizeof(new));
	old[len - 1] = 0x90;
	new[0] = 0xc3;
	rig_open(&rig, 1);
	rig_add(&rig, 32, len, old, new);
	rig.fake.bytes[32 + at] ^= 0x80;
	code = rig_run(&rig);
	CHECK(code || rig_is_new(&rig, 0));
	rig_close(&rig);
	return code;
}

TEST(seed_12_all_bytes_of_a_site_are_compared_and_no_other)
{
	for (size_t len = 1; len <= TP_MAX_INSN; len++)
		for (size_t at = 0; at <= len; at++) {
			CHECK_NOTE("byte %zu of %zu", at, len);
			CHECK_EQ(run_with_difference(len, at), at < len ? -EINVAL : 0);
		}
}

TEST(seed_13_tail_pass_runs_when_any_one_byte_of_a_tail_differs)
{
	for (size_t len = 2; len <= TP_MAX_INSN; len++)
		for (size_t at = 0; at < len; at++) {
			struct rig rig;
			uint8_t old[16], new[16];

			memset(old, TP_INT3, sizeof(old));
			old[0] = 0xc3;
			memcpy(new, old, sizeof(new));
			new[at] = at ? 0x42 : 0xf4;
			CHECK_NOTE("byte %zu of %zu", at, len);
			rig_open(&rig, 1);
			rig_add(&rig, 32, len, old, new);
			rig.batch.finish = NULL; /* or what follows RET here could be taken back */
			CHECK_EQ(rig_run(&rig), 0);
			CHECK_EQ(rig.outcome.syncs, at ? 3 : 2);
			CHECK(rig_is_new(&rig, 0));
			rig_close(&rig);
		}
}

TEST(seed_24_unreadable_site_gives_efault)
{
	struct rig rig;

	rig_open(&rig, 3);
	rig_mixed(&rig);
	rig.fake.hole_start = fake_addr(&rig.fake, PAGE(2));
	rig.fake.hole_end = fake_addr(&rig.fake, PAGE(3));
	CHECK_EQ(rig_run(&rig), -EFAULT);
	CHECK_EQ(rig.outcome.phase, TP_PHASE_VERIFY);
	CHECK_EQ(rig.outcome.fail_index, 8); /* it only reaches into the hole */
	CHECK_EQ(rig.fake.count[FAKE_WRITE], 0);
	rig_close(&rig);
}

static void fail_nth(struct rig *rig, enum fake_kind kind, size_t k, long result)
{
	rig->fake.faults[0] = (struct fake_fault){ kind, k, 1, result };
}

TEST(seed_24_write_errors_are_passed_through)
{
	static const enum tp_phase phases[] = { TP_PHASE_INT3, TP_PHASE_TAIL, TP_PHASE_FIRST };

	for (size_t k = 0; k < 3; k++) {
		struct rig rig;

		CHECK_NOTE("write %zu", k);
		rig_open(&rig, 1);
		rig_skip(&rig, 8);
		rig_nop5(&rig, 32);
		fail_nth(&rig, FAKE_WRITE, k, -EPERM);
		CHECK_EQ(rig_run(&rig), -EPERM);
		CHECK_EQ(rig.outcome.phase, phases[k]);
		CHECK_EQ(rig.outcome.fail_count, 1);
		CHECK_EQ(rig.outcome.fail_addr, fake_addr(&rig.fake, 32));
		CHECK(rig.outcome.recovered && rig_is_old(&rig, 1));
		rig_close(&rig);
	}
}

TEST(seed_15_sync_errors_are_passed_through_and_blame_no_site)
{
	static const enum tp_phase phases[] = { TP_PHASE_INT3, TP_PHASE_TAIL, TP_PHASE_FIRST };

	for (size_t k = 0; k < 3; k++) {
		struct rig rig;

		CHECK_NOTE("sync %zu", k);
		rig_open(&rig, 1);
		rig_nop5(&rig, 32);
		rig.batch.all_or_nothing = true;
		fail_nth(&rig, FAKE_SYNC, k, -EPERM);
		CHECK_EQ(rig_run(&rig), -EPERM);
		CHECK_EQ(rig.outcome.phase, phases[k]);
		CHECK_EQ(rig.outcome.fail_count, 1); /* all sites were done */
		CHECK_EQ(rig.outcome.fail_addr, 0);
		CHECK(rig.outcome.recovered && rig_is_old(&rig, 0));
		rig_close(&rig);
	}
}

TEST(seed_25_fail_count_starts_again_in_every_phase)
{
	struct rig rig;

	rig_open(&rig, 3);
	rig_mixed(&rig);
	fail_nth(&rig, FAKE_WRITE, 4, -EIO); /* int3 takes three writes: the second page of tails */
	CHECK_EQ(rig_run(&rig), -EIO);
	CHECK_EQ(rig.outcome.phase, TP_PHASE_TAIL);
	CHECK_EQ(rig.outcome.fail_count, 4);
	CHECK_EQ(rig.outcome.fail_addr, rig.asked[4].addr);
	rig_close(&rig);
}

TEST(seed_3_success_leaves_no_failure_behind)
{
	struct rig rig;

	rig_open(&rig, 1);
	rig_nop5(&rig, 32);
	memset(&rig.outcome, 0xff, sizeof(rig.outcome));
	CHECK_EQ(rig_run(&rig), 0);
	CHECK(!rig.outcome.code && !rig.outcome.fail_count && !rig.outcome.fail_addr);
	CHECK(!rig.outcome.recovered && !rig.outcome.rolled_back && !rig.outcome.undrained);
	CHECK_EQ(rig.outcome.finished, 1);
	rig_close(&rig);
}

TEST(design_counters_agree_with_the_log)
{
	struct rig rig;
	uint64_t sum = 0;

	rig_open(&rig, 3);
	rig_mixed(&rig);
	CHECK_EQ(rig_run(&rig), 0);
	CHECK_EQ(rig.outcome.sites, 9);
	CHECK_EQ(rig.outcome.finished, 9);
	CHECK_EQ(rig.outcome.syncs, rig.fake.count[FAKE_SYNC]);
	CHECK_EQ(rig.outcome.writes, rig.fake.count[FAKE_WRITE]);
	CHECK_EQ(rig.outcome.reads, rig.fake.count[FAKE_READ]);
	CHECK_EQ(rig.outcome.pages, 3);
	CHECK_EQ(rig.outcome.conflicts, 0);
	for (size_t i = 0; i < TP_PHASES; i++)
		sum += rig.outcome.phase_ns[i];
	for (size_t i = TP_PHASE_VERIFY; i <= TP_PHASE_FIRST; i++)
		CHECK(rig.outcome.phase_ns[i] > 0);
	CHECK(rig.outcome.total_ns >= sum);
	rig_close(&rig);
}

TEST(design_20000_sites_take_three_syncs_and_a_write_per_page_and_phase)
{
	enum { SITES = 20000, PER_PAGE = 200, PAGES = SITES / PER_PAGE };
	struct rig rig;

	rig_open(&rig, PAGES);
	for (size_t i = 0; i < SITES; i++) {
		size_t j = i * 7919 % SITES; /* unsorted */

		rig_nop5(&rig, PAGE(j / PER_PAGE) + j % PER_PAGE * 20);
	}
	CHECK_EQ(rig_run(&rig), 0);
	CHECK_EQ(rig.outcome.syncs, 3);
	CHECK_EQ(rig.outcome.writes, 3 * PAGES);
	CHECK_EQ(rig.outcome.pages, PAGES);
	CHECK_EQ(rig.outcome.finished, SITES);
	for (size_t i = 0; i < SITES; i++)
		CHECK(rig_is_new(&rig, i));
	rig_close(&rig);
}

TEST(design_20000_sites_in_wide_windows_take_a_write_for_sixteen_pages)
{
	enum { SITES = 20000, PER_PAGE = 200, PAGES = SITES / PER_PAGE, WINDOWS = 7 };
	struct rig rig;

	rig_open(&rig, PAGES);
	rig.engine.window_pages = TP_WINDOW_PAGES;
	for (size_t i = 0; i < SITES; i++)
		rig_flip(&rig, PAGE(i / PER_PAGE) + i % PER_PAGE * 20);
	CHECK_EQ(rig_run(&rig), 0);
	CHECK_EQ(rig.outcome.syncs, 2);
	CHECK_EQ(rig.outcome.writes, 2 * WINDOWS);
	CHECK_EQ(rig.outcome.pages, PAGES);
	for (size_t i = 0; i < SITES; i++)
		CHECK(rig_is_new(&rig, i));
	rig_close(&rig);
}

TEST(design_outcome_of_every_site_is_told)
{
	struct rig rig;

	rig_open(&rig, 3);
	rig_mixed(&rig);
	CHECK_EQ(rig_run(&rig), 0);
	for (size_t i = 0; i < rig.count; i++) {
		CHECK_EQ(rig_site(&rig, i)->outcome,
			 rig.asked[i].flags ? TP_SITE_SKIPPED : TP_SITE_DONE);
		CHECK(rig_is_new(&rig, i));
	}
	rig_close(&rig);
}

TEST(seed_24_code_is_checked_again_under_the_protocol)
{
	struct rig rig;

	rig_open(&rig, 1);
	rig_nop5(&rig, 32);
	rig.fake.stranger_k = 1; /* after verify */
	rig.fake.stranger_len = 5;
	rig.fake.stranger_addr = fake_addr(&rig.fake, 32);
	memcpy(rig.fake.stranger_bytes, CALL5, 5);
	CHECK_EQ(rig_run(&rig), -EINVAL);
	CHECK_EQ(rig.outcome.phase, TP_PHASE_INT3);
	CHECK_BYTES(rig.outcome.found, CALL5, 5);
	CHECK_BYTES(rig_bytes(&rig, 0), CALL5, 5);
	CHECK_EQ(rig.fake.count[FAKE_WRITE], 0);
	CHECK(!rig.engine.broken);
	rig_close(&rig);
}

TEST(design_known_table_follows_every_batch)
{
	struct rig rig;

	rig_open(&rig, 1);
	rig_nop5(&rig, 32);
	CHECK_EQ(rig_run(&rig), 0);
	CHECK(rig_known(&rig, 0)->patched);
	CHECK_BYTES(rig_known(&rig, 0)->current, JMP5, 5);
	CHECK_BYTES(rig_known(&rig, 0)->original, NOP5, 5);
	memcpy(rig.asked[0].old, JMP5, 5);
	memcpy(rig.asked[0].new_, NOP5, 5);
	CHECK_EQ(rig_run(&rig), 0);
	CHECK(!rig_known(&rig, 0)->patched);
	CHECK_BYTES(rig_known(&rig, 0)->current, NOP5, 5);
	rig_close(&rig);
}

/* One batch of the only site, whose bytes in the memory are @there. */
static int poke_once(struct rig *rig, size_t len, const uint8_t *there, const uint8_t *old,
		     const uint8_t *new)
{
	rig->count = 0;
	rig_add(rig, 32, len, old, new);
	memcpy(rig->fake.bytes + 32, there, len);
	return rig_run(rig);
}

static void check_known(const struct rig *rig, size_t len, const uint8_t *original,
			const uint8_t *current)
{
	const struct tp_known *entry = rig_known(rig, 0);

	CHECK_EQ(entry->len, len);
	CHECK_BYTES(entry->original, original, len);
	CHECK_BYTES(entry->current, current, len);
	CHECK_EQ(entry->patched, memcmp(original, current, len) != 0);
}

TEST(design_longer_batch_widens_the_entry_and_keeps_its_first_original_bytes)
{
	struct rig rig;

	rig_open(&rig, 1);
	CHECK_EQ(poke_once(&rig, 1, RUN5, RUN5, FLIP5), 0);
	check_known(&rig, 1, RUN5, FLIP5);
	CHECK_EQ(poke_once(&rig, 5, FLIP5, FLIP5, JMP5), 0);
	check_known(&rig, 5, RUN5, JMP5);
	CHECK_EQ(poke_once(&rig, 1, JMP5, JMP5, BYTES(0xc3)), 0); /* keeps the longer entry */
	check_known(&rig, 5, RUN5, BYTES(0xc3, 0x11, 0x22, 0x33, 0x44));
	rig_close(&rig);
}

TEST(design_refused_batch_says_nothing_about_first_bytes)
{
	struct rig rig;

	rig_open(&rig, 1);
	CHECK_EQ(poke_once(&rig, 5, RUN5, BYTES(0x90, 0x66, 0x90, 0x66, 0x90), RUN5), -EINVAL);
	CHECK_EQ(poke_once(&rig, 1, RUN5, RUN5, FLIP5), 0);
	check_known(&rig, 1, RUN5, FLIP5);
	CHECK_EQ(poke_once(&rig, 5, FLIP5, CALL5, JMP5), -EINVAL); /* about the last four */
	check_known(&rig, 1, RUN5, FLIP5);
	CHECK_EQ(poke_once(&rig, 5, FLIP5, FLIP5, RUN5), 0);
	check_known(&rig, 5, RUN5, RUN5);
	rig_close(&rig);
}

TEST(lineage_h15_other_code_at_a_known_address_has_its_own_first_bytes)
{
	struct rig rig;

	rig_open(&rig, 1);
	CHECK_EQ(poke_once(&rig, 5, NOP5, NOP5, JMP5), 0);
	CHECK_EQ(poke_once(&rig, 5, RUN5, RUN5, FLIP5), 0); /* another module, patched ours gone */
	check_known(&rig, 5, RUN5, FLIP5);
	CHECK_EQ(poke_once(&rig, 5, FLIP5, FLIP5, RUN5), 0);
	CHECK_EQ(poke_once(&rig, 1, BYTES(0x90), BYTES(0x90), BYTES(0xc3)), 0);
	check_known(&rig, 5, RUN5, BYTES(0xc3, 0x90, 0x90, 0x90, 0x90));
	CHECK_EQ(poke_once(&rig, 1, BYTES(0xf4), BYTES(0xf4), BYTES(0xc3)), 0);
	check_known(&rig, 1, BYTES(0xf4), BYTES(0xc3));
	rig_close(&rig);
}

TEST(design_batch_of_some_of_the_known_sites_changes_only_their_entries)
{
	enum { SITES = 30 };
	struct rig rig;
	size_t used = 0;

	rig_open(&rig, 1);
	for (size_t i = 0; i < SITES; i++)
		rig_flip(&rig, 16 * i);
	rig_learn(&rig);
	for (size_t i = 0; i < SITES; i++)
		if (i % 3 == 1) {
			rig.pokes[used] = rig.pokes[i];
			rig.pokes[used].len = i % 2 ? 5 : 1; /* known with five */
			if (i % 2 == 0)
				memset(rig.pokes[used].new_ + 1, 0x42, 15);
			used++;
		}
	for (size_t i = 0; i < SITES; i++)
		rig.known.entries[i].written = 1;
	rig.batch.count = used;
	CHECK_EQ(tp_run_batch(&rig.engine, &rig.batch), 0);
	for (size_t i = 0; i < SITES; i++) {
		CHECK_NOTE("site %zu", i);
		CHECK_EQ(rig_known(&rig, i)->patched, i % 3 == 1);
		CHECK_EQ(rig_known(&rig, i)->len, 5);
		CHECK_BYTES(rig_known(&rig, i)->current, i % 3 == 1 ? FLIP5 : RUN5, 5);
		CHECK_BYTES(rig_known(&rig, i)->original, RUN5, 5);
	}
	rig_close(&rig);
}

/* Whenever an int3 of ours can be fetched, a thread that runs into it goes on rightly. */
static void run_into_every_int3(struct fake *fake, const struct fake_op *op)
{
	struct rig *rig = fake->owner;
	struct tp_frame frame;

	for (size_t i = 0; i < rig->count; i++) {
		const struct tp_poke *poke = &rig->asked[i];

		if (rig_bytes(rig, i)[0] != TP_INT3)
			continue;
		CHECK_EQ(rig_trap(rig, i, &frame), TP_TRAP_EMULATED);
		CHECK(frame.rip != poke->addr);
		if (poke->new_[0] == 0xe9)
			CHECK_EQ(frame.rip, tp_classify(poke->new_, poke->len, poke->addr).target);
	}
}

TEST(design_every_int3_is_handled_in_every_phase_and_in_recovery)
{
	struct rig rig;

	rig_open(&rig, 3);
	rig_mixed(&rig);
	rig.batch.all_or_nothing = true;
	rig.fake.after = run_into_every_int3;
	CHECK_EQ(rig_run(&rig), 0);
	CHECK(rig.outcome.traps > 0);
	for (size_t i = 0; i < rig.count; i++)
		memcpy(rig.fake.bytes + (rig.asked[i].addr - fake_addr(&rig.fake, 0)),
		       rig.asked[i].old, rig.asked[i].len);
	fail_nth(&rig, FAKE_FINISH, 8, -ENOSPC);
	CHECK_EQ(rig_run_unlearned(&rig), -ENOSPC);
	CHECK(rig.outcome.traps > 0);
	CHECK_EQ(rig.outcome.late_traps, 0);
	rig_close(&rig);
}

static size_t traps_run_into;

static void run_into_one(struct fake *fake, const struct fake_op *op)
{
	struct tp_frame frame;

	if (op->kind == FAKE_SYNC && rig_bytes(fake->owner, 0)[0] == TP_INT3)
		traps_run_into += rig_trap(fake->owner, 0, &frame) == TP_TRAP_EMULATED;
}

TEST(design_outcome_counts_the_traps_of_its_own_batch)
{
	struct rig rig;
	struct tp_frame frame;

	rig_open(&rig, 1);
	rig_nop5(&rig, 32);
	CHECK_EQ(rig_run(&rig), 0);
	CHECK_EQ(rig.outcome.traps, 0);
	CHECK_EQ(rig_trap(&rig, 0, &frame), TP_TRAP_LATE);
	memcpy(rig.fake.bytes + 32, NOP5, 5);
	for (size_t turn = 0; turn < 2; turn++) {
		traps_run_into = 0;
		rig.fake.after = run_into_one;
		CHECK_EQ(rig_run(&rig), 0);
		CHECK_EQ(traps_run_into, 2);
		CHECK_EQ(rig.outcome.traps, 2);
		CHECK_EQ(rig.outcome.late_traps, 0);
		memcpy(rig.fake.bytes + 32, NOP5, 5);
	}
	rig_close(&rig);
}

static void leave_handler(struct fake *fake)
{
	struct rig *rig = fake->owner;

	if (fake->relaxed == 3)
		rig->engine.slots[7].inflight = 0;
}

TEST(seed_17_retiring_waits_for_handlers_in_flight)
{
	struct rig rig;

	rig_open(&rig, 1);
	rig_nop5(&rig, 0);
	rig.engine.slots[7].inflight = 1;
	rig.fake.on_relax = leave_handler;
	CHECK_EQ(rig_run(&rig), 0);
	CHECK_EQ(rig.fake.relaxed, 3);
	CHECK(!rig.outcome.undrained && !rig.engine.active);
	rig_close(&rig);
}

TEST(pitfall_18_handler_that_never_leaves_is_told_and_not_waited_for)
{
	struct rig rig;

	rig_open(&rig, 1);
	rig_nop5(&rig, 0);
	rig.engine.slots[7].inflight = 1;
	CHECK_EQ(rig_run(&rig), 0);
	CHECK(rig.outcome.undrained && !rig.engine.active);
	CHECK(rig.outcome.total_ns < 1000000000);
	CHECK(rig_is_new(&rig, 0));
	rig_close(&rig);
}
