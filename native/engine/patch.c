/* SPDX-License-Identifier: Apache-2.0 */
/**
 * @file
 * The batch protocol: int3 on every site, sync, tails, sync, first bytes, sync. The number of
 * syncs does not depend on the number of sites. After text_poke_bp_list() (Mladek, 2013).
 */
#include "engine.h"

#define IS(state) (1u << (state))
#define DRAIN_NS 100000000ull
#define UNDO_ATTEMPTS 3

/* Nothing has been written; pokes whose bytes are not as expected refuse the whole batch. */
static const struct tp_pass verify = { .phase = TP_PHASE_VERIFY,
				       .edit = TP_EDIT_NONE,
				       .from = IS(TP_SITE_PENDING),
				       .to = TP_SITE_PENDING };
static const struct tp_pass add_breakpoints = { .phase = TP_PHASE_INT3,
						.edit = TP_EDIT_INT3,
						.from = IS(TP_SITE_PENDING),
						.to = TP_SITE_INT3 };
static const struct tp_pass update_tails = { .phase = TP_PHASE_TAIL,
					     .edit = TP_EDIT_TAIL,
					     .to_new = true,
					     .from = IS(TP_SITE_INT3),
					     .to = TP_SITE_TAIL };
static const struct tp_pass finish_update = { .phase = TP_PHASE_FIRST,
					      .edit = TP_EDIT_FIRST,
					      .to_new = true,
					      .call_finish = true,
					      .from = IS(TP_SITE_INT3) | IS(TP_SITE_TAIL) |
						      IS(TP_SITE_SKIPPED),
					      .to = TP_SITE_WRITTEN };
static const struct tp_pass restore_tails = { .phase = TP_PHASE_RECOVER,
					      .edit = TP_EDIT_TAIL,
					      .from = IS(TP_SITE_INT3) | IS(TP_SITE_TAIL) |
						      IS(TP_SITE_BUSY),
					      .to = TP_SITE_INT3 };
static const struct tp_pass restore_first = { .phase = TP_PHASE_RECOVER,
					      .edit = TP_EDIT_FIRST,
					      .from = IS(TP_SITE_INT3),
					      .to = TP_SITE_RESTORED };

/* Each of these bytes is an int3 or an old one, at every moment. */
static const struct tp_pass release_busy = {
	.phase = TP_PHASE_LOOK, .edit = TP_EDIT_WHOLE, .from = IS(TP_SITE_BUSY), .to = TP_SITE_LEFT
};

/* Direct and stop mode: whole sites at once, and back. */
static const struct tp_pass write_sites = { .phase = TP_PHASE_FIRST,
					    .edit = TP_EDIT_WHOLE,
					    .to_new = true,
					    .call_finish = true,
					    .from = IS(TP_SITE_PENDING) | IS(TP_SITE_SKIPPED),
					    .to = TP_SITE_WRITTEN };
static const struct tp_pass restore_sites = { .phase = TP_PHASE_RECOVER,
					      .edit = TP_EDIT_WHOLE,
					      .from = IS(TP_SITE_WRITTEN),
					      .to = TP_SITE_RESTORED };

static int sync_cores(struct tp_engine *engine, struct tp_batch *batch, enum tp_phase phase)
{
	int error = engine->ops->sync(engine->ctx);

	batch->outcome->syncs++;
	return error ? tp_fail(batch, phase, error, batch->count) : 0;
}

static bool any_site_is(const struct tp_batch *batch, uint32_t states)
{
	for (size_t i = 0; i < batch->count; i++)
		if (states & IS(batch->pokes[i].outcome))
			return true;
	return false;
}

static uint64_t now(const struct tp_engine *engine)
{
	return engine->ops->clock_ns(engine->ctx);
}

static int run_phase(struct tp_engine *engine, struct tp_batch *batch, const struct tp_pass *pass)
{
	uint64_t start = now(engine);
	int error = tp_run_pass(engine, batch, pass);

	if (!error && pass->edit != TP_EDIT_NONE)
		error = sync_cores(engine, batch, pass->phase);
	batch->outcome->phase_ns[pass->phase] += now(engine) - start;
	return error;
}

/* What undoes a site that was busy treats it as any other that holds int3s over its old code. */
static void fail_busy(struct tp_batch *batch)
{
	for (size_t i = 0; i < batch->count; i++) {
		struct tp_poke *poke = &batch->pokes[i];

		if (poke->outcome != TP_SITE_BUSY)
			continue;
		poke->outcome = TP_SITE_INT3;
		tp_fail(batch, TP_PHASE_LOOK, -TP_EINSIDE, i);
	}
}

/* Where this fails it may yet be that a site does not hold its old code: all of them are undone. */
static int leave_busy(struct tp_engine *engine, struct tp_batch *batch)
{
	int error = tp_run_pass(engine, batch, &release_busy);

	for (size_t i = 0; i < batch->count; i++) {
		if (batch->pokes[i].outcome != TP_SITE_LEFT)
			continue;
		if (error)
			batch->pokes[i].outcome = TP_SITE_BUSY;
		else
			batch->outcome->left++;
	}
	return error;
}

/*
 * All heads of code of several instructions hold int3s now, so nobody who is seen outside can come
 * to stand inside again: he would go on in the copy. Only the tails of empty sites may change.
 */
static int look_inside(struct tp_engine *engine, struct tp_batch *batch)
{
	uint64_t start = now(engine);
	int error = engine->ops->look(engine->ctx, batch);

	if (!batch->leave_busy)
		fail_busy(batch);
	error = error ? tp_fail(batch, TP_PHASE_LOOK, error, batch->count) : batch->outcome->code;
	if (!error && any_site_is(batch, IS(TP_SITE_BUSY)))
		error = leave_busy(engine, batch);
	batch->outcome->phase_ns[TP_PHASE_LOOK] += now(engine) - start;
	return error;
}

static int three_phases(struct tp_engine *engine, struct tp_batch *batch)
{
	int error = run_phase(engine, batch, &add_breakpoints);

	if (!error && batch->must_look)
		error = look_inside(engine, batch);
	if (!error && batch->tails_differ)
		error = run_phase(engine, batch, &update_tails);
	if (!error)
		error = run_phase(engine, batch, &finish_update);
	return error;
}

static int write_batch(struct tp_engine *engine, struct tp_batch *batch)
{
	return batch->mode == TP_MODE_INT3 ? three_phases(engine, batch) :
					     run_phase(engine, batch, &write_sites);
}

/*
 * Old code back under the int3s that are left: per site tail first, sync, then first byte. Tails
 * are written whatever the site's state: a short write may have left a part of the new one.
 */
static int restore(struct tp_engine *engine, struct tp_batch *batch)
{
	int error = sync_cores(engine, batch, TP_PHASE_RECOVER);

	if (!error && any_site_is(batch, restore_tails.from))
		error = run_phase(engine, batch, &restore_tails);
	if (!error && any_site_is(batch, IS(TP_SITE_INT3)))
		error = run_phase(engine, batch, &restore_first);
	return error;
}

/*
 * Sites that hold new code although the batch failed: those that no finish has vouched for must
 * go back, and with all_or_nothing the finished ones too. int3 again makes them cases of restore().
 */
static int take_back(struct tp_engine *engine, struct tp_batch *batch)
{
	struct tp_pass again = { .phase = TP_PHASE_ROLLBACK,
				 .edit = TP_EDIT_INT3,
				 .from = IS(TP_SITE_WRITTEN),
				 .to = TP_SITE_TAIL };

	if (batch->all_or_nothing)
		again.from |= IS(TP_SITE_DONE);
	if (!any_site_is(batch, again.from))
		return 0;
	batch->outcome->rolled_back = batch->all_or_nothing;
	return tp_run_pass(engine, batch, &again);
}

/* What an undo has put back, it shall put back again: nobody may have seen that it did. */
static void begin_again(struct tp_batch *batch)
{
	batch->outcome->code = 0;
	for (size_t i = 0; i < batch->count; i++)
		if (batch->pokes[i].outcome == TP_SITE_RESTORED)
			batch->pokes[i].outcome = TP_SITE_WRITTEN;
}

/*
 * The same where no int3 was written. No int3 stands before what an undo may leave half done, and
 * the threads go on into it: so one that fails is tried again, all of it.
 */
static int take_back_whole(struct tp_engine *engine, struct tp_batch *batch)
{
	struct tp_pass back = restore_sites;
	int error;

	if (batch->all_or_nothing)
		back.from |= IS(TP_SITE_DONE);
	batch->outcome->rolled_back = batch->all_or_nothing && any_site_is(batch, IS(TP_SITE_DONE));
	error = run_phase(engine, batch, &back);
	for (int attempt = 1; error && attempt < UNDO_ATTEMPTS; attempt++) {
		begin_again(batch);
		error = run_phase(engine, batch, &back);
	}
	return error;
}

static int undo(struct tp_engine *engine, struct tp_batch *batch)
{
	int error;

	if (batch->mode != TP_MODE_INT3)
		return take_back_whole(engine, batch);
	error = take_back(engine, batch);
	return error ? error : restore(engine, batch);
}

/*
 * Undo after a failure, keeping the record of that failure. If this fails too, an int3 of ours may
 * be left: the descriptor then stays published for ever, so that it is handled, and the engine is
 * closed. The kernel's answer at this point is BUG().
 */
static void recover(struct tp_engine *engine, struct tp_batch *batch)
{
	struct tp_outcome failure = *batch->outcome;
	int error;

	batch->outcome->code = 0;
	error = undo(engine, batch);
	engine->broken = error != 0;
	failure.recovered = !error;
	failure.rolled_back = batch->outcome->rolled_back;
	failure.syncs = batch->outcome->syncs;
	failure.writes = batch->outcome->writes;
	failure.reads = batch->outcome->reads;
	failure.conflicts = batch->outcome->conflicts;
	failure.phase_ns[TP_PHASE_RECOVER] = batch->outcome->phase_ns[TP_PHASE_RECOVER];
	*batch->outcome = failure;
}

static void count_traps(const struct tp_engine *engine, struct tp_outcome *outcome, int sign)
{
	for (size_t i = 0; i < TP_SLOTS; i++) {
		uint64_t traps = __atomic_load_n(&engine->slots[i].traps, __ATOMIC_RELAXED);
		uint64_t late = __atomic_load_n(&engine->slots[i].late, __ATOMIC_RELAXED);

		outcome->traps += sign > 0 ? traps : -traps;
		outcome->late_traps += sign > 0 ? late : -late;
	}
}

/* Retire the descriptor: nobody may look it up any more, then nobody may still be using it. */
static void retire(struct tp_engine *engine, struct tp_batch *batch)
{
	if (engine->broken)
		return;
	tp_publish(engine, NULL);
	batch->outcome->undrained = !tp_drain(engine, DRAIN_NS);
}

/** Sort, check and verify; nothing is written. Returns 0 or the negative code of a refusal. */
int tp_prepare_batch(struct tp_engine *engine, struct tp_batch *batch)
{
	uint64_t start = now(engine);
	int error;

	*batch->outcome = (struct tp_outcome){ .sites = batch->count };
	error = tp_check_batch(engine, batch);
	if (!error)
		error = run_phase(engine, batch, &verify);
	if (!error)
		batch->outcome->total_ns = now(engine) - start;
	return error;
}

/** Verify a prepared batch again: threads have run since, and it is to be written now. */
int tp_verify_again(struct tp_engine *engine, struct tp_batch *batch)
{
	uint64_t start = now(engine);
	int error = run_phase(engine, batch, &verify);

	batch->outcome->total_ns += now(engine) - start;
	return error;
}

/** Write a prepared batch; what each site holds is looked at again just before. As tp_run_batch(). */
int tp_write_batch(struct tp_engine *engine, struct tp_batch *batch)
{
	uint64_t start = now(engine);
	struct tp_outcome *outcome = batch->outcome;
	int error;

	if (batch->must_learn)
		tp_known_learn(engine, batch);
	if (batch->must_arm)
		tp_known_arm(engine, batch);
	count_traps(engine, outcome, -1);
	if (batch->mode == TP_MODE_INT3)
		tp_publish(engine, batch);
	error = write_batch(engine, batch);
	if (error)
		recover(engine, batch);
	if (batch->mode == TP_MODE_INT3)
		retire(engine, batch);
	if (error &&
	    engine->known) /* the last pass has noted what it has done: not all of that stays */
		tp_known_commit(batch, 0, batch->count, tp_known_begin(engine, batch));
	if (batch->must_arm)
		tp_known_disarm(engine, batch);
	count_traps(engine, outcome, 1);
	outcome->total_ns += now(engine) - start;
	return error;
}

/**
 * Run one batch: all of its sites or, after a failure, what the seed's contract leaves behind.
 *
 * Returns 0 or the negative code that batch->outcome also holds. The memory of @batch and its
 * pokes may be reused unless outcome->undrained or engine->broken is set.
 */
int tp_run_batch(struct tp_engine *engine, struct tp_batch *batch)
{
	int error = tp_prepare_batch(engine, batch);

	return error ? error : tp_write_batch(engine, batch);
}
