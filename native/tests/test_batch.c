/* SPDX-License-Identifier: Apache-2.0 */
/** @file batch.c: what is refused before any write, and what a trapped thread would do. */
#include <errno.h>
#include <stdlib.h>

#include "check.h"
#include "rig.h"

/* A batch that must be refused by the check: nothing read, nothing written, nothing published. */
static void check_refused(struct rig *rig, int code, size_t index)
{
	CHECK_EQ(rig_run(rig), code);
	CHECK_EQ(rig->outcome.code, code);
	CHECK_EQ(rig->outcome.phase, TP_PHASE_CHECK);
	CHECK_EQ(rig->outcome.fail_index, index);
	CHECK_EQ(rig->outcome.fail_addr, rig->asked[index].addr);
	CHECK_EQ(rig->fake.logged, 0);
	CHECK(!rig->engine.active && !rig->engine.broken);
}

static void refuse_one(int code, size_t len, const uint8_t *old, const uint8_t *new)
{
	struct rig rig;

	rig_open(&rig, 1);
	check_refused(&rig, code, rig_add(&rig, 0, len, old, new));
	rig_close(&rig);
}

static unsigned int seed = 1;

static void shuffle(struct tp_poke *pokes, size_t count)
{
	for (size_t i = count; i-- > 1;) {
		size_t j = (size_t)rand_r(&seed) % (i + 1);
		struct tp_poke keep = pokes[i];

		pokes[i] = pokes[j];
		pokes[j] = keep;
	}
}

static void check_sorted(struct tp_poke *pokes, size_t count)
{
	tp_sort_pokes(pokes, count);
	for (size_t i = 0; i < count; i++) {
		CHECK_EQ(pokes[i].addr, 0x1000 + 16 * i);
		CHECK_EQ(pokes[i].index, 7 * i);
	}
}

TEST(design_sites_are_sorted_here_whatever_order_the_caller_gave)
{
	enum { MOST = 300 };
	struct tp_poke *pokes = calloc(MOST, sizeof(*pokes));

	for (size_t count = 0; count < MOST; count++) {
		CHECK_NOTE("%zu sites", count);
		for (size_t i = 0; i < count; i++)
			pokes[i] = (struct tp_poke){ .addr = 0x1000 + 16 * i,
						     .index = (uint32_t)(7 * i) };
		shuffle(pokes, count);
		check_sorted(pokes, count);
		check_sorted(pokes, count); /* sorted already */
	}
	free(pokes);
}

TEST(design_sorting_is_by_the_whole_unsigned_address)
{
	struct tp_poke pokes[] = { { .addr = UINT64_MAX }, { .addr = 1ull << 32 }, { .addr = 1 } };

	tp_sort_pokes(pokes, 3);
	CHECK(pokes[0].addr == 1 && pokes[1].addr == 1ull << 32 && pokes[2].addr == UINT64_MAX);
}

TEST(seed_23_old_opcode_without_new_is_refused_before_any_write)
{
	struct rig rig;
	size_t bad;

	rig_open(&rig, 1);
	rig_nop5(&rig, 0);
	bad = rig_nop5(&rig, 16);
	rig.asked[bad].flags = TP_POKE_NO_NEW;
	check_refused(&rig, -TP_ENULL, bad);
	rig_close(&rig);
}

TEST(seed_23_new_opcode_without_old_is_refused_before_any_write)
{
	struct rig rig;
	size_t bad;

	rig_open(&rig, 1);
	bad = rig_nop5(&rig, 16);
	rig_nop5(&rig, 0);
	rig.asked[bad].flags = TP_POKE_NO_OLD;
	check_refused(&rig, -TP_ENULL, bad);
	CHECK_EQ(rig.outcome.fail_count, 1);
	rig_close(&rig);
}

TEST(seed_22_null_pair_needs_no_length_and_no_known_site)
{
	struct rig rig;

	rig_open(&rig, 1);
	rig_skip(&rig, 8);
	for (unsigned int len = 0; len < 256; len += 51) {
		rig.asked[0].len = (uint8_t)len;
		CHECK_EQ(rig_run_unlearned(&rig), 0);
		CHECK_EQ(rig.pokes[0].outcome, TP_SITE_SKIPPED);
	}
	rig_close(&rig);
}

TEST(seed_25_fail_count_counts_skipped_sites_and_fail_index_is_the_callers)
{
	struct rig rig;
	size_t bad;

	rig_open(&rig, 1);
	rig_nop5(&rig, 64);
	bad = rig_add(&rig, 32, 5, RUN5, JMP5);
	rig_skip(&rig, 0);
	rig_skip(&rig, 16);
	check_refused(&rig, -TP_EMULTI, bad);
	CHECK_EQ(rig.outcome.fail_count, 2);
	CHECK_EQ(rig.outcome.fail_len, 5);
	CHECK_BYTES(rig.outcome.expected, RUN5, 5);
	rig_close(&rig);
}

TEST(seed_2_length_of_a_site_is_1_to_15_bytes)
{
	refuse_one(-TP_ELENGTH, 0, BYTES(0x90), BYTES(0xc3));
	refuse_one(-TP_ELENGTH, 16, BYTES(0x90), BYTES(0xc3));
	for (size_t len = 1; len <= TP_MAX_INSN; len++) {
		uint8_t old[16], new[16];
		struct rig rig;

		memset(old, 0x66, sizeof(old));
		memset(new, 0xcc, sizeof(new));
		old[len - 1] = 0x90;
		new[0] = 0xc3;
		CHECK_NOTE("length %zu", len);
		rig_open(&rig, 1);
		rig_add(&rig, 3, len, old, new);
		CHECK_EQ(rig_run(&rig), 0);
		CHECK(rig_is_new(&rig, 0));
		CHECK_EQ(rig.fake.bytes[2], 0xf4);
		CHECK_EQ(rig.fake.bytes[3 + len], 0xf4);
		rig_close(&rig);
	}
}

TEST(design_length_255_is_refused_and_never_believed)
{
	struct rig rig;

	rig_open(&rig, 1);
	rig_nop5(&rig, 0);
	rig_learn(&rig);
	rig.asked[0].len = 255;
	CHECK_EQ(rig_run_unlearned(&rig), -TP_ELENGTH);
	rig_close(&rig);
}

TEST(design_two_sites_of_one_batch_may_not_overlap)
{
	for (size_t distance = 0; distance <= 5; distance++) {
		struct rig rig;

		CHECK_NOTE("distance %zu", distance);
		rig_open(&rig, 1);
		rig_nop5(&rig, 16 + distance);
		rig_nop5(&rig, 16);
		rig.fake.bytes[16 + distance] = 0x0f;
		if (distance == 5)
			CHECK_EQ(rig_run(&rig), 0);
		else
			CHECK_EQ(rig_run(&rig), -TP_EOVERLAP);
		CHECK_EQ(rig.outcome.fail_count, distance < 5);
		CHECK_EQ(rig.fake.count[FAKE_WRITE] > 0, distance == 5);
		rig_close(&rig);
	}
}

TEST(design_site_that_wraps_around_the_address_space_is_refused)
{
	struct rig rig;

	rig_open(&rig, 1);
	rig_nop5(&rig, 0);
	rig.asked[0].addr = UINT64_MAX - 2;
	check_refused(&rig, -TP_EOVERLAP, 0);
	rig_close(&rig);
}

TEST(pitfall_2_site_missing_in_the_known_table_is_refused)
{
	struct rig rig;

	rig_open(&rig, 1);
	rig_nop5(&rig, 0);
	CHECK_EQ(rig_run_unlearned(&rig), -TP_EKNOWN); /* no table at all */
	rig_learn(&rig);
	rig_nop5(&rig, 64);
	CHECK_EQ(rig_run_unlearned(&rig), -TP_EKNOWN);
	CHECK_EQ(rig.outcome.fail_index, 1);
	CHECK_EQ(rig.fake.logged, 0);
	rig_close(&rig);
}

TEST(seed_28_broken_engine_refuses_every_further_batch)
{
	struct rig rig;

	rig_open(&rig, 1);
	rig_nop5(&rig, 0);
	rig.engine.broken = true;
	CHECK_EQ(rig_run(&rig), -TP_EBROKEN);
	CHECK_EQ(rig.outcome.phase, TP_PHASE_CHECK);
	CHECK_EQ(rig.outcome.fail_addr, 0);
	CHECK_EQ(rig.fake.logged, 0);
	rig_close(&rig);
}

TEST(design_refused_batch_leaves_every_site_pending)
{
	struct rig rig;

	rig_open(&rig, 1);
	rig_nop5(&rig, 0);
	rig_add(&rig, 16, 5, RUN5, JMP5);
	rig_nop5(&rig, 32);
	for (size_t i = 0; i < rig.count; i++)
		rig.asked[i].outcome = TP_SITE_DONE; /* left from the caller's last batch */
	check_refused(&rig, -TP_EMULTI, 1);
	for (size_t i = 0; i < rig.count; i++)
		CHECK_EQ(rig_site(&rig, i)->outcome, TP_SITE_PENDING);
	rig_close(&rig);
}

TEST(seed_25_only_the_first_failure_is_recorded)
{
	struct tp_outcome outcome = { 0 };
	struct tp_poke pokes[2] = { { .addr = 0x10, .index = 5 }, { .addr = 0x20, .index = 6 } };
	struct tp_batch batch = { .pokes = pokes, .count = 2, .outcome = &outcome };

	CHECK_EQ(tp_fail(&batch, TP_PHASE_TAIL, -EINVAL, 1), -EINVAL);
	CHECK_EQ(tp_fail(&batch, TP_PHASE_FIRST, -EFAULT, 0), -EINVAL);
	CHECK_EQ(outcome.phase, TP_PHASE_TAIL);
	CHECK_EQ(outcome.fail_count, 1);
	CHECK_EQ(outcome.fail_addr, 0x20);
	CHECK_EQ(outcome.fail_index, 6);
}

/* What a thread that traps at (old -> new) does; -TP_E... when the engine refuses. */
static int chosen(size_t len, const uint8_t *old, const uint8_t *new, uint64_t handler)
{
	struct rig rig;
	int result;

	rig_open(&rig, 1);
	rig_add(&rig, 0, len, old, new);
	rig.asked[0].handler = handler;
	rig_learn(&rig);
	result = tp_check_batch(&rig.engine, &rig.batch);
	if (!result)
		result = rig.pokes[0].emulate & 0x0f;
	rig_close(&rig);
	return result;
}

#define PUSH5 BYTES(0x68, 1, 2, 3, 4) /* one instruction that is not emulated */
#define MOV5 BYTES(0xb8, 1, 2, 3, 4)

TEST(design_trapped_thread_does_what_the_site_is_turning_into)
{
	CHECK_EQ(chosen(5, NOP5, CALL5, 0), TP_INSN_CALL);
	CHECK_EQ(chosen(5, NOP5, JMP5, 0), TP_INSN_JMP);
	CHECK_EQ(chosen(5, CALL5, NOP5, 0), TP_INSN_NOP);
	CHECK_EQ(chosen(5, JMP5, BYTES(0x66, 0x66, 0x66, 0x66, 0x90), 0), TP_INSN_NOP);
	CHECK_EQ(chosen(5, NOP5, BYTES(0xc3, 0xcc, 0xcc, 0xcc, 0xcc), 0), TP_INSN_RET);
	CHECK_EQ(chosen(2, BYTES(0x66, 0x90), BYTES(0x74, 5), 0), TP_INSN_JCC);
	CHECK_EQ(chosen(5, PUSH5, JMP5, 0), TP_INSN_JMP);
}

TEST(lineage_2b_old_instruction_is_emulated_when_the_new_one_cannot_be)
{
	CHECK_EQ(chosen(5, JMP5, PUSH5, 0), TP_INSN_JMP);
	CHECK_EQ(chosen(5, NOP5, MOV5, 0), TP_INSN_NOP);
	CHECK_EQ(chosen(5, CALL5, MOV5, 0), TP_INSN_CALL);
}

TEST(lineage_2b_neither_emulable_is_refused_before_the_first_write)
{
	CHECK_EQ(chosen(5, PUSH5, MOV5, 0), -TP_EEMULATE);
	refuse_one(-TP_EEMULATE, 5, PUSH5, MOV5);
}

TEST(seed_19_site_with_a_handler_needs_no_emulation)
{
	CHECK_EQ(chosen(5, PUSH5, MOV5, 0x1234), TP_INSN_HANDLER);
	CHECK_EQ(chosen(5, NOP5, CALL5, 0x1234), TP_INSN_HANDLER);
}

TEST(lineage_2e_int3_as_opcode_is_somebody_elses_and_refused)
{
	CHECK_EQ(chosen(1, BYTES(0xcc), BYTES(0x90), 0), -TP_EEMULATE);
	CHECK_EQ(chosen(1, BYTES(0x90), BYTES(0xcc), 0), -TP_EEMULATE);
	CHECK_EQ(chosen(5, NOP5, BYTES(0xcc, 1, 2, 3, 4), 0x1234), -TP_EEMULATE);
}

TEST(lineage_h9_tail_of_several_instructions_may_not_change)
{
	CHECK_EQ(chosen(5, RUN5, JMP5, 0), -TP_EMULTI);
	CHECK_EQ(chosen(5, RUN5, CALL5, 0x1234), -TP_EMULTI);
	CHECK_EQ(chosen(5, BYTES(0x66, 0x90, 0x0f, 0x1f, 0x00), JMP5, 0), -TP_EMULTI);
	CHECK_EQ(chosen(5, RUN5, NOP5, 0), -TP_EMULTI);
	CHECK_EQ(chosen(6, BYTES(0xe8, 0, 0, 0, 0, 0x90), BYTES(0xe8, 0, 0, 0, 1, 0x90), 0),
		 -TP_EMULTI);
	CHECK_EQ(chosen(5, BYTES(0xc3, 0xcc, 0xcc, 0xcc, 0x90), JMP5, 0), -TP_EMULTI);
}

static int check_new_run(bool all_or_nothing, bool finish)
{
	struct rig rig;
	int result;

	rig_open(&rig, 1);
	rig_add(&rig, 0, 5, CALL5, RUN5);
	rig.batch.all_or_nothing = all_or_nothing;
	if (!finish)
		rig.batch.finish = NULL;
	rig_learn(&rig);
	result = tp_check_batch(&rig.engine, &rig.batch);
	rig_close(&rig);
	return result;
}

/* Found by the fetch model: a thread inside of the new run when a rollback rewrites its tail. */
TEST(lineage_h9_several_new_instructions_are_refused_when_a_failure_could_take_them_back)
{
	CHECK_EQ(check_new_run(true, true), -TP_EMULTI);
	CHECK_EQ(check_new_run(true, false), -TP_EMULTI);
	CHECK_EQ(check_new_run(false, true), -TP_EMULTI);
	CHECK_EQ(check_new_run(false, false), 0); /* an undo: what is written stays */
}

TEST(design_nop_run_flips_its_first_byte_because_no_tail_differs)
{
	CHECK_EQ(chosen(5, RUN5, FLIP5, 0), TP_INSN_CALL);
	CHECK_EQ(chosen(5, FLIP5, RUN5, 0), TP_INSN_NOP);
	CHECK_EQ(chosen(5, BYTES(0x90, 0x90, 0x90, 0x90, 0x3e), BYTES(0xe8, 0x90, 0x90, 0x90, 0x3e),
			0),
		 TP_INSN_CALL);
	CHECK_EQ(chosen(5, BYTES(0xe8, 0x90, 0x90, 0x90, 0x3e), BYTES(0x90, 0x90, 0x90, 0x90, 0x3e),
			0),
		 TP_INSN_CALL);
}

TEST(design_nop_run_may_become_one_nop_when_every_mix_is_nops)
{
	CHECK_EQ(chosen(5, RUN5, BYTES(0x66, 0x66, 0x66, 0x66, 0x90), 0), TP_INSN_NOP);
	CHECK_EQ(chosen(5, BYTES(0x66, 0x66, 0x66, 0x66, 0x90), RUN5, 0), TP_INSN_NOP);
}

TEST(lineage_2e_padded_jmp_counts_as_one_instruction)
{
	CHECK_EQ(chosen(5, BYTES(0xeb, 0x10, 0xcc, 0xcc, 0xcc), CALL5, 0), TP_INSN_CALL);
	CHECK_EQ(chosen(5, BYTES(0xc3, 0xcc, 0xcc, 0xcc, 0xcc), NOP5, 0), TP_INSN_NOP);
}

TEST(design_check_fills_condition_target_and_ret_operand_for_the_handler)
{
	struct rig rig;

	rig_open(&rig, 1);
	rig_add(&rig, 0, 2, BYTES(0x66, 0x90), BYTES(0x7d, 0x10));
	rig_add(&rig, 16, 3, BYTES(0x0f, 0x1f, 0x00), BYTES(0xc2, 0x20, 0x01));
	rig_learn(&rig);
	CHECK_EQ(tp_check_batch(&rig.engine, &rig.batch), 0);
	CHECK_EQ(rig_site(&rig, 0)->emulate, TP_INSN_JCC | 0xd << 4);
	CHECK_EQ(rig_site(&rig, 0)->target, rig_site(&rig, 0)->addr + 2 + 0x10);
	CHECK_EQ(rig_site(&rig, 1)->emulate, TP_INSN_RET);
	CHECK_EQ(rig_site(&rig, 1)->target, 0x120);
	rig_close(&rig);
}

TEST(design_sites_alike_branch_to_their_own_targets)
{
	static const uint8_t news[][16] = { { 0xe9, 1, 2, 3, 4 },
					    { 0xe8, 0xff, 0xff, 0xff, 0xff },
					    { 0x0f, 0x8d, 0, 1, 0, 0 },
					    { 0xc2, 8, 0, 0xcc, 0xcc },
					    { 0x66, 0x66, 0x66, 0x66, 0x90 } };
	struct rig rig;

	rig_open(&rig, 1);
	for (size_t i = 0; i < 60; i++) {
		size_t kind = i / 3 % 5;
		const uint8_t *nop6 = BYTES(0x66, 0x0f, 0x1f, 0x44, 0, 0);

		rig_add(&rig, 32 * i, kind == 2 ? 6 : 5, kind == 2 ? nop6 : NOP5, news[kind]);
		rig.asked[i].handler = i % 7 ? 0 : 0x1234;
	}
	rig_learn(&rig);
	CHECK_EQ(tp_check_batch(&rig.engine, &rig.batch), 0);
	for (size_t i = 0; i < rig.count; i++) {
		const struct tp_poke *poke = &rig.pokes[i];
		struct tp_insn insn = tp_classify(poke->new_, poke->len, poke->addr);

		CHECK_NOTE("site %zu", i);
		if (poke->handler) {
			CHECK_EQ(poke->emulate, TP_INSN_HANDLER);
			continue;
		}
		CHECK_EQ(poke->emulate, tp_pack_emulate(&insn));
		CHECK_EQ(poke->target, insn.kind == TP_INSN_RET ? insn.pops : insn.target);
	}
	rig_close(&rig);
}

TEST(lineage_h9_site_like_a_good_neighbour_but_longer_or_different_is_still_refused)
{
	struct rig rig;
	size_t bad;

	rig_open(&rig, 1);
	rig_flip(&rig, 0);
	rig_flip(&rig, 16);
	bad = rig_add(&rig, 32, 6, BYTES(0x90, 0x90, 0x90, 0x90, 0x90, 0x90),
		      BYTES(0xe8, 0x90, 0x90, 0x90, 0x90, 0x66));
	check_refused(&rig, -TP_EMULTI, bad);
	rig_close(&rig);
	rig_open(&rig, 1);
	rig_add(&rig, 0, 5, BYTES(0x66, 0x66, 0x66, 0x66, 0x90), JMP5);
	bad = rig_add(&rig, 16, 5, BYTES(0x66, 0x66, 0x66, 0x90, 0x90), JMP5);
	check_refused(&rig, -TP_EMULTI, bad);
	rig_close(&rig);
	rig_open(&rig, 1);
	rig_nop5(&rig, 0);
	bad = rig_add(&rig, 16, 4, NOP5, JMP5); /* the same bytes, cut */
	check_refused(&rig, -TP_EEMULATE, bad);
	rig_close(&rig);
}

TEST(design_check_forgets_what_the_caller_left_in_the_engines_fields)
{
	struct rig rig;

	rig_open(&rig, 1);
	rig_nop5(&rig, 0);
	rig.asked[0].outcome = TP_SITE_DONE;
	rig.asked[0].emulate = 0xff;
	rig.asked[0].target = 1;
	CHECK_EQ(rig_run(&rig), 0);
	CHECK(rig_is_new(&rig, 0));
	CHECK_EQ(rig_site(&rig, 0)->emulate, TP_INSN_JMP);
	rig_close(&rig);
}

struct verdict {
	int error;
	uint8_t emulate;
	uint64_t target; /* from the site on */
};

struct change {
	const uint8_t *old;
	const uint8_t *new;
	uint8_t flags;
};

/* What the check makes of the last of @count changes, 16 bytes apart; the ones before must pass. */
static struct verdict check_last(const struct change *changes, size_t count, size_t at,
				 enum tp_mode mode, bool all_or_nothing)
{
	struct verdict verdict;
	struct rig rig;

	rig_open(&rig, 1);
	for (size_t i = 0; i < count; i++) {
		size_t site = rig_add(&rig, at + 16 * i, 5, changes[i].old, changes[i].new);

		rig.asked[site].flags = changes[i].flags;
	}
	rig.batch.mode = mode;
	rig.batch.all_or_nothing = all_or_nothing;
	rig_learn(&rig);
	verdict.error = tp_check_batch(&rig.engine, &rig.batch);
	verdict.emulate = verdict.error ? 0 : rig.pokes[count - 1].emulate;
	verdict.target = verdict.error ? 0 : rig.pokes[count - 1].target;
	if (verdict.emulate == TP_INSN_OTHER) /* nobody reads it */
		verdict.target = 0;
	if (verdict.emulate == TP_INSN_CALL || verdict.emulate == TP_INSN_JMP)
		verdict.target -= fake_addr(&rig.fake, 0);
	rig_close(&rig);
	return verdict;
}

/* Every pair of changes in every mode: the neighbour, often alike, must not decide for a site. */
TEST(design_a_neighbour_changes_nothing_of_what_the_check_finds)
{
	const uint8_t *const codes[] = { NOP5,
					 RUN5,
					 FLIP5,
					 CALL5,
					 BYTES(0xe8, 1, 2, 3, 4),
					 JMP5,
					 BYTES(0x66, 0x66, 0x66, 0x66, 0x90),
					 BYTES(0xb8, 1, 2, 3, 4),
					 BYTES(0xe9, 1, 2, 3, 4),
					 BYTES(0xeb, 0x10, 0xcc, 0xcc, 0xcc),
					 BYTES(0xc3, 0xcc, 0xcc, 0xcc, 0xcc) };
	enum { CODES = sizeof(codes) / sizeof(*codes), PAIRS = CODES * CODES };
	size_t compared = 0, refused = 0;

	for (size_t n = 0; n < (size_t)PAIRS * PAIRS * 2 * TP_MODES * 2; n++) {
		size_t first = n % PAIRS, second = n / PAIRS % PAIRS, rest = n / PAIRS / PAIRS;
		const uint8_t flags = rest & 1 ? TP_POKE_ONE : 0;
		const enum tp_mode mode = (enum tp_mode)(rest / 2 % TP_MODES);
		const bool all_or_nothing = rest / 2 / TP_MODES;
		const struct change both[] = {
			{ codes[first % CODES], codes[first / CODES], flags },
			{ codes[second % CODES], codes[second / CODES], flags },
		};
		struct verdict alone, after;

		if (check_last(both, 1, 0, mode, all_or_nothing).error)
			continue;
		alone = check_last(both + 1, 1, 16, mode, all_or_nothing);
		after = check_last(both, 2, 0, mode, all_or_nothing);
		CHECK_NOTE("pairs %zu %zu, mode %d, flags %d, all or nothing %d", first, second,
			   mode, flags, all_or_nothing);
		CHECK_EQ(after.error, alone.error);
		CHECK_EQ(after.emulate, alone.emulate);
		CHECK_EQ(after.target, alone.target);
		compared++;
		refused += alone.error != 0;
	}
	CHECK(compared > 10000);
	CHECK(refused > 1000);
}
