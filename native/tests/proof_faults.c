/* SPDX-License-Identifier: Apache-2.0 */
/**
 * @file
 * Fault injection: every operation of a batch fails in turn, then every two of them; and a stranger
 * writes at every moment. What must follow is read off the log and the contract; see proof.h.
 */
#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "proof_run.h"

enum { SHORT_MAX = 256, STRANGER = 0x42, LASTS = 1000000 };

static const long error_of[FAKE_KINDS] = { -EIO, -ENOSPC, -EPERM, -ENOMEM, -ETIMEDOUT };

/* The first fault as the log has it. */
struct failure {
	size_t at; /* number of the operation */
	enum tp_phase phase;
	int code;
	size_t site;	  /* in address order; the number of records: none is to blame */
	size_t diagnosed; /* operations after it that only look for the site to blame */
};

static const struct fake_op *op_at(const struct proof *proof, size_t i)
{
	return &proof->rig.fake.log[i];
}

/* Number of operations of the kind of the @i-th that come before it. */
static size_t rank_of(const struct proof *proof, size_t i)
{
	size_t rank = 0;

	for (size_t k = 0; k < i; k++)
		rank += op_at(proof, k)->kind == op_at(proof, i)->kind;
	return rank;
}

/* Number of the operation that looks; of all of them, when none did. */
static size_t look_at(const struct proof *proof)
{
	size_t i = 0;

	while (i < proof->rig.fake.logged && op_at(proof, i)->kind != FAKE_LOOK)
		i++;
	return i;
}

/* The phase that the @i-th operation of the way forward belongs to. */
static enum tp_phase phase_of(const struct proof *proof, size_t i)
{
	size_t syncs = 0;

	if (i < proof_windows(proof))
		return TP_PHASE_VERIFY;
	if (proof->rig.batch.mode != TP_MODE_INT3)
		return TP_PHASE_FIRST;
	for (size_t k = 0; k < i; k++)
		syncs += op_at(proof, k)->kind == FAKE_SYNC;
	if (syncs == 1 && proof_looks(proof) && i <= look_at(proof) + 3 * proof_released(proof))
		return TP_PHASE_LOOK;
	if (syncs == 1 && !proof_tails_differ(proof))
		syncs = 2;
	return TP_PHASE_INT3 + syncs;
}

/* The bytes of a site that a pass writes. */
static void edited(const struct proof *proof, const struct tp_poke *poke, enum tp_phase phase,
		   uint64_t *from, uint64_t *to)
{
	bool whole = proof->rig.batch.mode != TP_MODE_INT3 || phase == TP_PHASE_LOOK;
	unsigned int heads = phase == TP_PHASE_INT3 ? proof_site(proof, poke)->old->heads : 0;

	*from = poke->addr + (phase == TP_PHASE_TAIL);
	*to = whole || phase == TP_PHASE_TAIL ? poke->addr + poke->len : poke->addr + 1;
	for (unsigned int head = 1; heads >> head; head++)
		if (heads >> head & 1)
			*to = poke->addr + head + 1;
}

static size_t site_at(const struct proof *proof, uint64_t addr)
{
	size_t i = 0;

	while (i < proof->rig.count &&
	       (proof->rig.pokes[i].addr != addr || !proof_is_real(&proof->rig.pokes[i])))
		i++;
	return i;
}

/* The first site of the window, read by operation @read, whose bytes did not all land. */
static size_t first_not_landed(const struct proof *proof, const struct fake_op *read,
			       uint64_t landed, enum tp_phase phase)
{
	size_t i = site_at(proof, read->addr);

	for (; i < proof->rig.count; i++) {
		const struct tp_poke *poke = &proof->rig.pokes[i];
		uint64_t from, to;

		edited(proof, poke, phase, &from, &to);
		if (proof_takes(proof, poke, phase) && from < to && to > landed)
			break;
	}
	return i;
}

static size_t sites_in(const struct proof *proof, const struct fake_op *read, enum tp_phase phase)
{
	size_t sum = 0;

	for (size_t i = 0; i < proof->rig.count; i++) {
		const struct tp_poke *poke = &proof->rig.pokes[i];

		sum += proof_takes(proof, poke, phase) && poke->addr >= read->addr &&
		       poke->addr < read->addr + read->len;
	}
	return sum;
}

static size_t record_of(const struct proof *proof, const struct fake_op *finish)
{
	const struct tp_poke *told = (const struct tp_poke *)finish->bytes;
	size_t i = 0;

	while (i < proof->rig.count && proof->rig.pokes[i].index != told->index)
		i++;
	return i;
}

/* A read that failed for once: every site of its window is read alone, the first one is to blame
 * unless one of those fails too. */
static void diagnose_read(const struct proof *proof, struct failure *failure)
{
	const struct fake_op *op = op_at(proof, failure->at);
	bool back = failure->at && op_at(proof, failure->at - 1)->kind == FAKE_WRITE;
	size_t sites = sites_in(proof, op, failure->phase);

	failure->code = -EFAULT;
	if (back) {
		failure->site = site_at(proof, op_at(proof, failure->at - 2)->addr);
		return;
	}
	failure->site = site_at(proof, op->addr);
	while (failure->diagnosed < sites) {
		const struct fake_op *alone = op_at(proof, failure->at + ++failure->diagnosed);

		if (alone->result) {
			failure->site = site_at(proof, alone->addr);
			break;
		}
	}
}

/* The first record in address order that a look finds somebody in. */
static size_t first_busy(const struct proof *proof)
{
	size_t i = 0;

	while (i < proof->rig.count && !proof_is_busy(proof, &proof->rig.pokes[i]))
		i++;
	return i;
}

static struct failure diagnose(const struct proof *proof, size_t at)
{
	const struct fake_op *op = op_at(proof, at);
	struct failure failure = { .at = at,
				   .phase = phase_of(proof, at),
				   .code = (int)op->result,
				   .site = proof->rig.count };
	uint64_t landed = op->addr + (op->result > 0 ? (uint64_t)op->result : 0);

	if (op->kind == FAKE_READ) {
		diagnose_read(proof, &failure);
	} else if (op->kind == FAKE_WRITE) {
		failure.code = op->result < 0 ? (int)op->result : -EIO;
		failure.site = first_not_landed(proof, op_at(proof, at - 1), landed, failure.phase);
	} else if (op->kind == FAKE_FINISH) {
		failure.site = record_of(proof, op);
	} else if (op->kind == FAKE_LOOK && !op->result) { /* it failed nobody but the batch */
		failure.code = -TP_EINSIDE;
		failure.site = first_busy(proof);
	}
	return failure;
}

/* Has a forward write of @phase reached all of [@from, @to) before the batch failed? */
static bool has_reached(const struct proof *proof, const struct failure *failure, uint64_t from,
			uint64_t to, enum tp_phase phase)
{
	for (size_t i = 0; i <= failure->at; i++) {
		const struct fake_op *op = op_at(proof, i);

		if (op->kind == FAKE_WRITE && op->result > 0 && op->addr <= from &&
		    op->addr + (uint64_t)op->result >= to && phase_of(proof, i) == phase)
			return true;
	}
	return false;
}

/* Has this site what @phase writes? */
static bool has_landed(const struct proof *proof, const struct failure *failure,
		       const struct tp_poke *poke, enum tp_phase phase)
{
	uint64_t from, to;

	edited(proof, poke, phase, &from, &to);
	return proof_takes(proof, poke, phase) && has_reached(proof, failure, from, to, phase);
}

/* Has the first write of the batch reached this site, be it in part? */
static bool was_touched(const struct proof *proof, const struct failure *failure,
			const struct tp_poke *poke)
{
	bool whole = proof->rig.batch.mode != TP_MODE_INT3;

	return has_reached(proof, failure, poke->addr, poke->addr + 1,
			   whole ? TP_PHASE_FIRST : TP_PHASE_INT3);
}

static bool was_finished(const struct proof *proof, const struct failure *failure,
			 const struct tp_poke *poke)
{
	if (!proof->rig.batch.finish)
		return has_landed(proof, failure, poke, TP_PHASE_FIRST);
	for (size_t i = 0; i < proof->rig.fake.logged; i++) {
		const struct fake_op *op = op_at(proof, i);

		if (op->kind == FAKE_FINISH && !op->result &&
		    ((const struct tp_poke *)op->bytes)->index == poke->index)
			return true;
	}
	return false;
}

/* Is there new code that a roll back takes back? What never was under int3 counts when finished. */
static bool any_landed(const struct proof *proof, const struct failure *failure)
{
	bool whole = proof->rig.batch.mode != TP_MODE_INT3;

	for (size_t i = 0; i < proof->rig.count; i++) {
		const struct tp_poke *poke = &proof->rig.pokes[i];

		if (proof_is_real(poke) &&
		    (whole ? was_finished(proof, failure, poke) :
			     has_landed(proof, failure, poke, TP_PHASE_FIRST)))
			return true;
	}
	return false;
}

static void check_blame(struct proof *proof, const struct failure *want)
{
	const struct rig *rig = &proof->rig;
	const struct tp_outcome *got = &rig->outcome;
	const struct tp_poke *site = want->site < rig->count ? &rig->pokes[want->site] : NULL;

	if (got->code != want->code || got->phase != want->phase)
		fetch_violate(&proof->fetch,
			      "operation %zu fails: code %d in phase %u, wanted %d in %u", want->at,
			      got->code, got->phase, want->code, want->phase);
	if (got->fail_count != want->site || got->fail_addr != (site ? site->addr : 0) ||
	    got->fail_index != (site ? site->index : 0) || got->fail_len != (site ? site->len : 0))
		fetch_violate(&proof->fetch,
			      "operation %zu fails in phase %u: record %" PRIu64
			      " is blamed, not %zu",
			      want->at, want->phase, got->fail_count, want->site);
	if (site && proof_is_real(site) && memcmp(got->expected, site->old, site->len))
		fetch_violate(&proof->fetch, "the expected bytes are not the old ones");
}

/* Its old code was back before anything failed; a release that fails leaves nothing. */
static bool was_left(const struct proof *proof, const struct failure *failure,
		     const struct tp_poke *poke)
{
	return failure->phase != TP_PHASE_LOOK && has_landed(proof, failure, poke, TP_PHASE_LOOK);
}

static size_t count_left(const struct proof *proof, const struct failure *failure)
{
	size_t sum = 0;

	for (size_t i = 0; i < proof->rig.count; i++)
		sum += was_left(proof, failure, &proof->rig.pokes[i]);
	return sum;
}

static void check_restored_site(struct proof *proof, const struct failure *failure,
				const struct tp_poke *poke)
{
	bool done = was_finished(proof, failure, poke) && !proof->rig.batch.all_or_nothing;
	bool written = was_touched(proof, failure, poke);
	uint8_t want = done			      ? TP_SITE_DONE :
		       was_left(proof, failure, poke) ? TP_SITE_LEFT :
		       written			      ? TP_SITE_RESTORED :
							TP_SITE_PENDING;

	if (poke->outcome != want)
		fetch_violate(&proof->fetch, "operation %zu fails: site %#x is %u, wanted %u",
			      failure->at, proof_site(proof, poke)->spec->offset, poke->outcome,
			      want);
	if (!proof_holds(proof, poke, done))
		fetch_violate(&proof->fetch, "operation %zu fails: site %#x is not %s", failure->at,
			      proof_site(proof, poke)->spec->offset, done ? "new" : "old");
}

/* The recovery worked: nothing of the batch is left but what was finished and may stay. */
static void check_recovered(struct proof *proof, const struct failure *failure)
{
	const struct rig *rig = &proof->rig;

	if (rig->engine.broken || rig->engine.active)
		fetch_violate(&proof->fetch, "operation %zu fails: the engine is broken",
			      failure->at);
	for (size_t i = 0; i < rig->count; i++)
		if (proof_is_real(&rig->pokes[i]))
			check_restored_site(proof, failure, &rig->pokes[i]);
		else if (rig->pokes[i].outcome != TP_SITE_SKIPPED)
			fetch_violate(&proof->fetch, "a NULL pair is not said to be skipped");
	proof_check_known(proof);
}

/* Old code, and int3s of its heads where they are left. */
static bool is_old_under_int3s(const struct proof *proof, const struct tp_poke *poke)
{
	const struct fetch_code *old = proof_site(proof, poke)->old;
	const uint8_t *bytes = (const uint8_t *)poke->addr;

	for (size_t i = 0; i < poke->len; i++)
		if (bytes[i] != old->bytes[i] &&
		    (bytes[i] != TP_INT3 || !((old->heads | 1) >> i & 1)))
			return false;
	return true;
}

/*
 * The recovery failed: every int3 is handled (fetch_look() has tried), and nothing works any more.
 * Without int3, direct mode has left what may be fetched; stop mode can only say that it is broken.
 */
static void check_broken(struct proof *proof, const struct failure *failure)
{
	struct rig *rig = &proof->rig;
	bool int3 = rig->batch.mode == TP_MODE_INT3;

	proof->counts.broken++;
	if (!rig->engine.broken || rig->engine.active != (int3 ? &rig->batch : NULL))
		fetch_violate(
			&proof->fetch,
			"operation %zu and a later one of its recovery fail: broken %d, %spublished",
			failure->at, rig->engine.broken, rig->engine.active ? "" : "not ");
	for (size_t i = 0; i < rig->count; i++) {
		const struct tp_poke *poke = &rig->pokes[i];

		if (proof_is_real(poke) && int3 && *(const uint8_t *)poke->addr != TP_INT3 &&
		    !is_old_under_int3s(proof, poke) && !proof_holds(proof, poke, true))
			fetch_violate(&proof->fetch, "site %#x is neither old nor new nor int3",
				      proof_site(proof, poke)->spec->offset);
	}
	proof_check_known(proof);
	memset(rig->fake.faults, 0, sizeof(rig->fake.faults));
	fake_forget(&rig->fake);
	if (tp_run_batch(&rig->engine, &rig->batch) != -TP_EBROKEN || rig->fake.logged)
		fetch_violate(&proof->fetch, "a broken engine has taken a batch");
}

/*
 * An undo that fails looks at every site of that window: one that holds old code all the same needs
 * no undo, and the others are tried again. Did operation @second come to that? The log tells which
 * sites were looked at, after() what they held.
 */
static bool is_forgiven(const struct proof *proof, size_t second)
{
	const struct rig *rig = &proof->rig;

	for (size_t i = second + 1; i < rig->fake.logged && op_at(proof, i)->kind == FAKE_READ;
	     i++) {
		size_t site = site_at(proof, op_at(proof, i)->addr);

		if (op_at(proof, i)->len == 1 && site < rig->count &&
		    proof->old_then >> rig->pokes[site].index & 1)
			return true;
	}
	return false;
}

/* Writes that are cut short, each of them: an undo goes on where the one before it has ended. */
static bool goes_on(const struct proof *proof, bool lasts)
{
	const struct fake_fault *second = &proof->rig.fake.faults[1];

	return lasts && second->kind == FAKE_WRITE && second->result > 0;
}

/*
 * Does the undo fail, when an operation of it does? What is safe under its int3 stays so; else the
 * undo is tried again, and only a failure that lasts ends it: at the latest where it meets no site
 * any more that is old already.
 */
static bool breaks(const struct proof *proof, const struct failure *failure, size_t second,
		   bool lasts)
{
	if (second <= failure->at + failure->diagnosed)
		return false;
	if (is_forgiven(proof, second) || goes_on(proof, lasts))
		return lasts && proof->rig.engine.broken;
	return lasts || proof->rig.batch.mode == TP_MODE_INT3;
}

/* Operation @at has failed, and operation @second too where that is more. */
static void check_failure(struct proof *proof, int code, size_t at, size_t second, bool lasts)
{
	const struct rig *rig = &proof->rig;
	struct failure failure = diagnose(proof, at);
	bool wrote = failure.phase >= TP_PHASE_INT3;
	bool broken = breaks(proof, &failure, second, lasts);
	const struct tp_outcome *outcome = &rig->outcome;

	proof_check_always(proof, code);
	check_blame(proof, &failure);
	if (outcome->recovered != (wrote && !broken) || outcome->conflicts)
		fetch_violate(&proof->fetch, "operation %zu fails: recovered is %d", at,
			      outcome->recovered);
	if (outcome->rolled_back != (rig->batch.all_or_nothing && any_landed(proof, &failure)))
		fetch_violate(&proof->fetch, "operation %zu fails: rolled_back is %d", at,
			      outcome->rolled_back);
	if (outcome->left != count_left(proof, &failure))
		fetch_violate(&proof->fetch, "operation %zu fails: %" PRIu64 " are left", at,
			      outcome->left);
	if (broken)
		check_broken(proof, &failure);
	else
		check_recovered(proof, &failure);
}

/** Nothing has failed, but somebody is inside of a window that must not be left. */
void proof_check_inside(struct proof *proof, int code)
{
	proof->counts.inside++;
	check_failure(proof, code, look_at(proof), 0, false);
}

/* The fault is over: the same batch, where nothing of it is left, must succeed now. */
static void check_again(struct proof *proof)
{
	const struct rig *rig = &proof->rig;

	memset(proof->rig.fake.faults, 0, sizeof(proof->rig.fake.faults));
	for (size_t i = 0; i < rig->count; i++)
		if (proof_is_real(&rig->pokes[i]) && rig->pokes[i].outcome == TP_SITE_DONE)
			return;
	proof_check_run(proof, proof_run(proof));
}

/* Where somebody is inside, what comes after the look is an undo: a fault in it is a second failure. */
static bool comes_second(const struct proof *proof, size_t at)
{
	return proof_fails_inside(proof) && at > look_at(proof);
}

static const char *try_single(struct proof *proof, struct fake_fault fault, size_t at)
{
	int code;

	proof_prepare(proof);
	proof->rig.fake.faults[0] = fault;
	proof->watched = at;
	proof->counts.single_faults++;
	code = proof_run(proof);
	if (comes_second(proof, at))
		check_failure(proof, code, look_at(proof), at, false);
	else
		check_failure(proof, code, at, 0, false);
	if (!proof->rig.engine.broken)
		check_again(proof);
	return proof_end(proof);
}

/* Is a write of this many bytes cut off inside of a site, or beside one? Others are like those. */
static bool cut_matters(const struct proof *proof, const struct fake_op *op, size_t done)
{
	if (op->len <= SHORT_MAX)
		return true;
	for (size_t i = 0; i < proof->rig.count; i++) {
		const struct tp_poke *poke = &proof->rig.asked[i];

		if (op->addr + done + 1 >= poke->addr &&
		    op->addr + done <= poke->addr + poke->len + 1)
			return true;
	}
	return false;
}

/* An operation of the batch that went well, as far as it decides about faults. */
struct step {
	struct fake_op op;
	size_t rank;
};

static struct step *steps_of(const struct proof *proof, size_t *count)
{
	struct step *steps = malloc((proof->rig.fake.logged + 1) * sizeof(*steps));

	*count = steps ? proof->rig.fake.logged : 0;
	for (size_t i = 0; i < *count; i++)
		steps[i] = (struct step){ *op_at(proof, i), rank_of(proof, i) };
	return steps;
}

static struct fake_fault fault_at(const struct step *step, long result)
{
	return (struct fake_fault){ step->op.kind, step->rank, 1, result };
}

static const char *single_faults_at(struct proof *proof, const struct step *step, size_t at)
{
	const char *text = try_single(proof, fault_at(step, error_of[step->op.kind]), at);

	if (step->op.kind == FAKE_WRITE)
		for (size_t done = 0; !text && done < step->op.len; done++)
			if (cut_matters(proof, &step->op, done))
				text = try_single(proof, fault_at(step, (long)done), at);
	return text;
}

static struct step *clean_steps(struct proof *proof, size_t *count)
{
	*count = 0;
	proof_prepare(proof);
	if (rig_run(&proof->rig) && proof->rig.outcome.phase == TP_PHASE_CHECK)
		return NULL; /* proof_there_and_back() knows whether that is right */
	proof_end(proof);
	return steps_of(proof, count);
}

const char *proof_single_faults(struct proof *proof)
{
	size_t count;
	struct step *steps = clean_steps(proof, &count);
	const char *text = NULL;

	for (size_t at = 0; !text && at < count; at++)
		text = single_faults_at(proof, &steps[at], at);
	free(steps);
	return text;
}

static const char *try_double(struct proof *proof, struct fake_fault first, size_t at,
			      struct fake_fault second, size_t then)
{
	int code;

	proof_prepare(proof);
	proof->rig.fake.faults[0] = first;
	proof->rig.fake.faults[1] = second;
	proof->watched = then;
	proof->counts.double_faults++;
	code = proof_run(proof);
	check_failure(proof, code, at, then, second.times > 1);
	return proof_end(proof);
}

/* Where whole sites are written, the second fault comes for once, and for ever. */
static const char *try_twice(struct proof *proof, struct fake_fault first, size_t at,
			     struct fake_fault second, size_t then, bool diagnoses)
{
	const char *text = try_double(proof, first, at, second, then);

	if (text || diagnoses || proof->rig.batch.mode == TP_MODE_INT3)
		return text;
	second.times = LASTS;
	return try_double(proof, first, at, second, then);
}

/* The second fault at every operation that followed the first one. */
static const char *double_faults_at(struct proof *proof, struct fake_fault first, size_t at)
{
	const char *text = NULL;
	size_t count, diagnosed;
	struct step *steps;

	proof_prepare(proof);
	proof->rig.fake.faults[0] = first;
	proof_run(proof);
	proof_end(proof);
	diagnosed = diagnose(proof, at).diagnosed;
	steps = steps_of(proof, &count);
	for (size_t then = at + 1; !text && then < count; then++) {
		const struct step *step = &steps[then];
		struct fake_fault second = fault_at(step, error_of[step->op.kind]);
		bool diagnoses = then <= at + diagnosed;

		text = try_twice(proof, first, at, second, then, diagnoses);
		if (text || step->op.kind != FAKE_WRITE)
			continue;
		second.result = (long)(step->op.len / 2);
		text = try_twice(proof, first, at, second, then, diagnoses);
	}
	free(steps);
	return text;
}

/** Two faults; of the first ones only those of every @stride-th operation, from @phase on. */
const char *proof_double_faults(struct proof *proof, size_t stride, size_t phase)
{
	size_t count;
	struct step *steps = clean_steps(proof, &count);
	bool fails = count && proof_fails_inside(proof);
	size_t last = fails ? look_at(proof) + 1 : count;
	const char *text = NULL;

	for (size_t at = phase % stride; !text && at < last; at += stride) {
		const struct step *step = &steps[at];

		text = double_faults_at(proof, fault_at(step, error_of[step->op.kind]), at);
		if (!text && step->op.kind == FAKE_WRITE)
			text = double_faults_at(proof, fault_at(step, (long)(step->op.len / 2)),
						at);
	}
	free(steps);
	return text;
}

static struct fetch_site *stranger_site(struct proof *proof)
{
	const struct fake *fake = &proof->rig.fake;

	for (size_t i = 0; i < proof->fetch.count; i++)
		if (!proof->fetch.sites[i].spec->is_null &&
		    proof->fetch.sites[i].addr == fake->stranger_addr)
			return &proof->fetch.sites[i];
	return NULL;
}

static void mark_stranger(struct fake *fake, const struct fake_op *op)
{
	struct proof *proof = (struct proof *)fake->owner;

	(void)op;
	if (fake->logged == fake->stranger_k + 1)
		stranger_site(proof)->is_foreign = true;
}

/* Only a write that was prepared before the stranger came may go over his byte. */
static bool may_be_overwritten(const struct proof *proof, const struct step *step, uint64_t addr)
{
	return step->op.kind == FAKE_WRITE && step->op.addr <= addr &&
	       addr < step->op.addr + step->op.len;
}

static void check_beside_stranger(struct proof *proof, const struct fetch_site *strange, int code)
{
	const struct rig *rig = &proof->rig;

	if (rig->engine.broken || rig->engine.active)
		fetch_violate(&proof->fetch,
			      "a stranger has broken the engine before operation %zu: %s",
			      proof->rig.fake.stranger_k, rig_story(rig));
	for (size_t i = 0; i < rig->count; i++) {
		const struct tp_poke *poke = &rig->pokes[i];
		bool stays = (!code && !proof_is_left(proof, poke)) ||
			     poke->outcome == TP_SITE_DONE;

		if (!proof_is_real(poke) || poke->addr == strange->addr)
			continue;
		if (!proof_holds(proof, poke, stays) ||
		    (code && stays && rig->batch.all_or_nothing))
			fetch_violate(&proof->fetch, "site %#x pays for a stranger at %#x",
				      proof_site(proof, poke)->spec->offset, strange->spec->offset);
	}
}

/* His byte replaces an int3 of ours; those at later heads are ours still, and ours to take away. */
static bool is_int3_left(const struct fetch_site *site)
{
	const uint8_t *bytes = (const uint8_t *)site->addr;

	for (size_t at = 1; at < site->spec->len; at++)
		if (site->old->heads >> at & 1 && bytes[at] == TP_INT3 &&
		    site->old->bytes[at] != TP_INT3 && site->new_->bytes[at] != TP_INT3)
			return true;
	return bytes[0] == TP_INT3;
}

static const char *try_stranger(struct proof *proof, const struct step *step, size_t at,
				size_t index)
{
	struct fake *fake = &proof->rig.fake;
	uint8_t found;
	int code;

	proof_prepare(proof);
	proof->counts.stranger_writes++;
	fake->stranger_k = at;
	fake->stranger_len = 1;
	fake->stranger_addr = proof->fetch.sites[index].addr;
	fake->stranger_bytes[0] = STRANGER;
	fake->before = mark_stranger;
	code = proof_run(proof);
	found = *(const uint8_t *)fake->stranger_addr;
	proof_check_surroundings(proof);
	check_beside_stranger(proof, &proof->fetch.sites[index], code);
	if (is_int3_left(&proof->fetch.sites[index]))
		fetch_violate(&proof->fetch, "an int3 of ours is left where a stranger wrote");
	if (found != STRANGER && !may_be_overwritten(proof, step, fake->stranger_addr))
		fetch_violate(&proof->fetch,
			      "a stranger's byte, written before operation %zu, is overwritten",
			      at);
	return proof_end(proof);
}

/** Before every operation, somebody replaces the first byte of a site; of every site in turn. */
const char *proof_strangers(struct proof *proof)
{
	size_t count;
	struct step *steps = clean_steps(proof, &count);
	const char *text = NULL;

	for (size_t at = 0; !text && at < count; at++)
		for (size_t i = 0; !text && i < proof->fetch.count; i++)
			if (!proof->specs[i].is_null)
				text = try_stranger(proof, &steps[at], at, i);
	free(steps);
	return text;
}
