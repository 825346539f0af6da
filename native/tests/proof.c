/* SPDX-License-Identifier: Apache-2.0 */
/** @file Proofs over one batch; see proof.h. */
#include <assert.h>
#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "proof_run.h"

static bool is_any(uint64_t ip)
{
	return ip != 0;
}

static void note_old(struct proof *proof)
{
	proof->old_then = 0;
	for (size_t i = 0; i < proof->rig.count; i++) {
		const struct tp_poke *poke = &proof->rig.asked[i];

		if (proof_is_real(poke) && proof_holds(proof, poke, false))
			proof->old_then |= 1ull << poke->index;
	}
}

static void after(struct fake *fake, const struct fake_op *op)
{
	struct proof *proof = (struct proof *)fake->owner;

	if (fake->logged == proof->watched + 1)
		note_old(proof);
	fetch_after(&proof->fetch, op);
}

static int answer_look(struct fake *fake, struct tp_batch *batch)
{
	fetch_answer_look(&((struct proof *)fake->owner)->fetch, batch);
	return 0;
}

static void add_site(struct proof *proof, struct fetch_site *site, const struct fetch_spec *spec)
{
	struct rig *rig = &proof->rig;

	site->spec = spec;
	site->addr = fake_addr(&rig->fake, spec->offset);
	if (spec->is_null)
		rig_skip(rig, spec->offset);
	else
		rig_add(rig, spec->offset, spec->len, spec->code[0].bytes, spec->code[1].bytes);
	rig->asked[rig->count - 1].handler = fetch_handler(site);
}

struct proof *proof_open(const struct proof_settings *settings, const struct fetch_spec *specs,
			 size_t count)
{
	struct proof *proof = calloc(1, sizeof(*proof));

	assert(proof && count <= 64);
	proof->settings = *settings;
	proof->specs = malloc(count * sizeof(*specs) + 1);
	proof->fetch.sites = calloc(count + 1, sizeof(*proof->fetch.sites));
	assert(proof->specs && proof->fetch.sites);
	if (count)
		memcpy(proof->specs, specs, count * sizeof(*specs));
	rig_open(&proof->rig, settings->pages);
	proof->fetch.rig = &proof->rig;
	proof->fetch.count = count;
	for (size_t i = 0; i < count; i++)
		add_site(proof, &proof->fetch.sites[i], &proof->specs[i]);
	proof->finish = proof->rig.batch.finish;
	proof->pristine = malloc(proof->rig.fake.size);
	proof->scratch = malloc(proof->rig.fake.size);
	assert(proof->pristine && proof->scratch);
	memcpy(proof->pristine, proof->rig.fake.bytes, proof->rig.fake.size);
	return proof;
}

void proof_close(struct proof *proof)
{
	rig_close(&proof->rig);
	free(proof->fetch.sites);
	free(proof->specs);
	free(proof->pristine);
	free(proof->scratch);
	free(proof);
}

const struct proof_counts *proof_count(const struct proof *proof)
{
	return &proof->counts;
}

/* Ask for what the model says about the site: its bytes, its heads, and where each goes on. */
static void ask_site(struct proof *proof, struct tp_poke *poke)
{
	const struct fetch_site *site = proof_site(proof, poke);
	unsigned int heads = site->old->heads | site->new_->heads;

	memcpy(poke->old, site->old->bytes, sizeof(poke->old));
	memcpy(poke->new_, site->new_->bytes, sizeof(poke->new_));
	if (!proof_is_real(poke))
		return;
	poke->flags = site->spec->is_one ? TP_POKE_ONE : 0;
	if (!heads)
		return;
	poke->flags = (uint8_t)(heads << 1 | (site->new_->heads ? TP_POKE_BACK : 0));
	for (unsigned int head = 1; site->old->heads && head < TP_JMP_BYTES; head++)
		poke->new_[11 + head] = site->spec->copies[head];
}

/** Everything as it was before the first batch: memory, engine, table, log, faults. */
void proof_prepare(struct proof *proof)
{
	struct rig *rig = &proof->rig;
	struct tp_engine *engine = &rig->engine;

	memcpy(rig->fake.bytes, proof->pristine, rig->fake.size);
	memset(engine, 0, sizeof(*engine));
	engine->ops = proof->settings.is_blind ? &fake_blind_ops : &fake_ops;
	engine->ctx = &rig->fake;
	engine->copies = &rig->copies;
	engine->window_pages = proof->settings.window_pages;
	rig->known.count = 0;
	rig->batch.all_or_nothing = proof->settings.all_or_nothing;
	rig->batch.leave_busy = proof->settings.leave_busy;
	rig->batch.finish = proof->settings.has_finish ? proof->finish : NULL;
	rig->batch.finish_ctx = &rig->fake;
	rig->batch.is_handled = proof->settings.has_predicate ? is_any : NULL;
	memset(rig->fake.faults, 0, sizeof(rig->fake.faults));
	rig->fake.stranger_len = 0;
	rig->fake.before = NULL;
	rig->fake.after = after;
	rig->fake.on_look = answer_look;
	proof->watched = SIZE_MAX - 1;
	fetch_begin(&proof->fetch);
	for (size_t i = 0; i < rig->count; i++)
		ask_site(proof, &rig->asked[i]);
	proof_set_mode(proof, proof->settings.mode);
}

/** How the next batch is written. */
void proof_set_mode(struct proof *proof, enum tp_mode mode)
{
	proof->rig.batch.mode = proof->fetch.mode = mode;
}

/** The next batch takes every site back that this one has written. */
void proof_swap(struct proof *proof)
{
	bool fails = proof_fails_inside(proof);

	for (size_t i = 0; !fails && i < proof->rig.count; i++) {
		struct tp_poke *poke = &proof->rig.asked[i];

		if (proof_is_left(proof, poke))
			continue;
		fetch_swap(&proof->fetch.sites[poke->index]);
		ask_site(proof, poke);
	}
}

/** Run the batch as it is asked for, and look once more after it. */
int proof_run(struct proof *proof)
{
	int code;

	proof->counts.runs++;
	proof->fetch.emulated = proof->fetch.late = 0;
	rig_learn(&proof->rig);
	proof->fetch.verifying = proof_windows(proof);
	code = rig_run(&proof->rig);
	proof->emulated = proof->fetch.emulated;
	proof->late = proof->fetch.late;
	fetch_end(&proof->fetch);
	return code;
}

const struct fetch_site *proof_site(const struct proof *proof, const struct tp_poke *poke)
{
	return &proof->fetch.sites[poke->index];
}

bool proof_is_real(const struct tp_poke *poke)
{
	return !(poke->flags & (TP_POKE_NO_OLD | TP_POKE_NO_NEW));
}

/** A look finds somebody inside. */
bool proof_is_busy(const struct proof *proof, const struct tp_poke *poke)
{
	const struct fetch_site *site = proof_site(proof, poke);

	return proof_is_real(poke) && proof->rig.batch.mode == TP_MODE_INT3 && site->old->heads &&
	       site->is_busy;
}

/** So it gets its old code back, and the others go on without it. */
bool proof_is_left(const struct proof *proof, const struct tp_poke *poke)
{
	return proof->rig.batch.leave_busy && proof_is_busy(proof, poke);
}

/** So the batch must fail. */
bool proof_fails_inside(const struct proof *proof)
{
	for (size_t i = 0; i < proof->rig.count; i++)
		if (proof_is_busy(proof, &proof->rig.asked[i]))
			return !proof->rig.batch.leave_busy;
	return false;
}

/** Must somebody look? */
bool proof_looks(const struct proof *proof)
{
	for (size_t i = 0; i < proof->rig.count; i++) {
		const struct tp_poke *poke = &proof->rig.asked[i];

		if (proof_is_real(poke) && proof_site(proof, poke)->old->heads)
			return proof->rig.batch.mode == TP_MODE_INT3;
	}
	return false;
}

/** Is a pass of @phase, on the way forward, for this site? */
bool proof_takes(const struct proof *proof, const struct tp_poke *poke, enum tp_phase phase)
{
	bool after_look = phase == TP_PHASE_TAIL || phase == TP_PHASE_FIRST;

	if (!proof_is_real(poke))
		return false;
	if (phase == TP_PHASE_LOOK)
		return proof_is_left(proof, poke);
	return !after_look || !proof_is_left(proof, poke);
}

bool proof_holds(const struct proof *proof, const struct tp_poke *poke, bool new)
{
	const struct fetch_site *site = proof_site(proof, poke);

	return !memcmp((const void *)poke->addr, (new ? site->new_ : site->old)->bytes, poke->len);
}

/** No byte but those of the sites has changed. */
void proof_check_surroundings(struct proof *proof)
{
	const struct fake *fake = &proof->rig.fake;

	memcpy(proof->scratch, fake->bytes, fake->size);
	for (size_t i = 0; i < proof->fetch.count; i++) {
		const struct fetch_spec *spec = &proof->specs[i];

		if (!spec->is_null)
			memcpy(proof->scratch + spec->offset, proof->pristine + spec->offset,
			       spec->len);
	}
	if (memcmp(proof->scratch, proof->pristine, fake->size))
		fetch_violate(&proof->fetch, "a byte beside the sites has changed");
}

/** What was seen in the last run goes to the totals; returns the first violation. */
const char *proof_end(struct proof *proof)
{
	struct fetch_counts *sum = &proof->counts.fetch, *seen = &proof->fetch.counts;

	sum->operations += seen->operations;
	sum->mixes += seen->mixes;
	sum->positions += seen->positions;
	sum->traps += seen->traps;
	sum->late_traps += seen->late_traps;
	sum->heads += seen->heads;
	sum->head_traps += seen->head_traps;
	sum->late_head_traps += seen->late_head_traps;
	sum->looks += seen->looks;
	sum->busy += seen->busy;
	*seen = (struct fetch_counts){ 0 };
	return proof->fetch.violations ? proof->fetch.text : NULL;
}

/* Does a site before it in address order reach into this one? */
static bool overlaps(const struct proof *proof, const struct fetch_site *site)
{
	for (size_t i = 0; i < proof->fetch.count; i++) {
		const struct fetch_site *other = &proof->fetch.sites[i];

		if (!other->spec->is_null && other->is_asked && other->addr < site->addr &&
		    other->addr + other->spec->len > site->addr)
			return true;
	}
	return false;
}

static bool any_overlap(const struct proof *proof)
{
	for (size_t i = 0; i < proof->fetch.count; i++)
		if (!proof->specs[i].is_null && overlaps(proof, &proof->fetch.sites[i]))
			return true;
	return false;
}

static bool any_int3(const struct proof *proof)
{
	for (size_t i = 0; i < proof->fetch.count; i++)
		if (!proof->specs[i].is_null && (proof->specs[i].code[0].bytes[0] == TP_INT3 ||
						 proof->specs[i].code[1].bytes[0] == TP_INT3))
			return true;
	return false;
}

/* Several instructions give way to a JMP of five bytes alone, with a copy of each that is behind the
 * first; a handler would know of the first one only. */
static bool is_malformed(const struct fetch_site *site)
{
	const struct fetch_code *jmp = site->old->heads ? site->new_ : site->old;
	bool lacks_copy = false;

	for (size_t at = 1; at < site->spec->len; at++)
		lacks_copy |= site->old->heads >> at & 1 && !site->spec->copies[at];
	return jmp->bytes[0] != 0xe9 || site->spec->len != 5 || site->spec->has_handler ||
	       lacks_copy;
}

/* May the engine take the site? Else the code of its refusal. */
static int refusal_of(const struct proof *proof, const struct fetch_site *site)
{
	const struct fetch_code *old = site->old, *new = site->new_;
	size_t len = site->spec->len;
	bool may_go_back = proof->rig.batch.all_or_nothing || proof->rig.batch.finish;
	bool enterable = (old->starts != 1 && !old->heads) || (may_go_back && new->starts != 1);
	bool torn = memcmp(old->bytes + 1, new->bytes + 1, len - 1) && !site->nop_mix;
	enum tp_mode mode = proof->rig.batch.mode;

	if (overlaps(proof, site))
		return -TP_EOVERLAP;
	if (fetch_is_window(site) && is_malformed(site))
		return -TP_EHEADS;
	if (old->heads && mode == TP_MODE_INT3 && proof->settings.is_blind)
		return -TP_EMULTI;
	if (mode == TP_MODE_DIRECT && torn)
		return -TP_EDIRECT;
	if (mode == TP_MODE_INT3 && torn && enterable)
		return -TP_EMULTI;
	if (old->bytes[0] == TP_INT3 || new->bytes[0] == TP_INT3)
		return -TP_EEMULATE;
	if (mode == TP_MODE_INT3 && !site->spec->has_handler && old->kind == TP_INSN_OTHER &&
	    new->kind == TP_INSN_OTHER)
		return -TP_EEMULATE;
	return 0;
}

/* The site that the check must refuse: the first in address order. */
static const struct fetch_site *refused_site(const struct proof *proof)
{
	const struct fetch_site *found = NULL;

	for (size_t i = 0; i < proof->fetch.count; i++) {
		const struct fetch_site *site = &proof->fetch.sites[i];

		if (!site->spec->is_null && site->is_asked && refusal_of(proof, site) &&
		    (!found || site->addr < found->addr))
			found = site;
	}
	return found;
}

static void check_refusal(struct proof *proof, int code, const struct fetch_site *site)
{
	const struct tp_outcome *outcome = &proof->rig.outcome;

	proof->counts.refusals++;
	if (code != refusal_of(proof, site) || outcome->fail_addr != site->addr ||
	    outcome->phase != TP_PHASE_CHECK)
		fetch_violate(
			&proof->fetch, "site %#x must be refused with %d, got %d at %#" PRIx64,
			site->spec->offset, refusal_of(proof, site), code, outcome->fail_addr);
	if (proof->rig.fake.logged || proof->rig.engine.active)
		fetch_violate(&proof->fetch, "a refused batch has touched memory");
}

static size_t next_page_end(const struct proof *proof, size_t first, enum tp_phase phase,
			    size_t *tails)
{
	const struct rig *rig = &proof->rig;
	uint64_t last_page = 0, pages = 0;
	uint64_t most = rig->engine.window_pages < TP_WINDOW_PAGES ? rig->engine.window_pages :
								     TP_WINDOW_PAGES;
	size_t i;

	*tails = 0;
	for (i = first; i < rig->count; i++) {
		const struct tp_poke *poke = &rig->pokes[i];
		uint64_t page = poke->addr / TP_PAGE_BYTES;

		if (!proof_takes(proof, poke, phase))
			continue;
		if (pages && page != last_page && (page != last_page + 1 || pages >= most))
			break;
		pages += !pages || page != last_page;
		last_page = page;
		*tails += poke->len > 1;
	}
	return pages ? i : first;
}

static void tell(char **at, const char *end, const char *what)
{
	while (*what && *at < end)
		*(*at)++ = *what++;
	**at = 0;
}

/* One pass as the log must show it: @what of every window; returns the number of windows. */
static size_t tell_pass(const struct proof *proof, char **at, const char *end, enum tp_phase phase)
{
	const struct rig *rig = &proof->rig;
	size_t first = 0, windows = 0, last, tails;

	for (; first < rig->count; first = last) {
		last = next_page_end(proof, first, phase, &tails);
		if (last ==
		    first) /* nothing but NULL pairs is left, and what the pass is not for */
			last = rig->count;
		else {
			windows++;
			tell(at, end, "r");
			if (phase != TP_PHASE_VERIFY && (phase != TP_PHASE_TAIL || tails))
				tell(at, end, "wr");
		}
		for (size_t i = first; phase == TP_PHASE_FIRST && rig->batch.finish && i < last;
		     i++)
			if (!proof_is_left(proof, &rig->pokes[i]))
				tell(at, end, "f");
	}
	if (phase != TP_PHASE_VERIFY && phase != TP_PHASE_LOOK)
		tell(at, end, "s");
	return windows;
}

bool proof_tails_differ(const struct proof *proof)
{
	for (size_t i = 0; i < proof->fetch.count; i++) {
		const struct fetch_site *site = &proof->fetch.sites[i];

		if (!site->spec->is_null && site->is_asked &&
		    (site->old->heads || /* their int3s must go */
		     memcmp(site->old->bytes + 1, site->new_->bytes + 1, site->spec->len - 1)))
			return true;
	}
	return false;
}

/* Every operation of a batch that succeeds, in order: three syncs at most, whatever its size; one
 * where whole sites are written. */
static void check_story(struct proof *proof)
{
	char want[4096], *at = want;
	const char *end = want + sizeof(want) - 1;

	tell_pass(proof, &at, end, TP_PHASE_VERIFY);
	if (proof->rig.batch.mode == TP_MODE_INT3)
		tell_pass(proof, &at, end, TP_PHASE_INT3);
	if (proof_looks(proof)) {
		tell(&at, end, "l");
		tell_pass(proof, &at, end, TP_PHASE_LOOK);
	}
	if (proof->rig.batch.mode == TP_MODE_INT3 && proof_tails_differ(proof))
		tell_pass(proof, &at, end, TP_PHASE_TAIL);
	tell_pass(proof, &at, end, TP_PHASE_FIRST);
	if (strcmp(rig_story(&proof->rig), want))
		fetch_violate(&proof->fetch, "operations %.200s, wanted %.200s",
			      rig_story(&proof->rig), want);
}

/** Number of windows of a pass: of reads before anything is written. */
size_t proof_windows(const struct proof *proof)
{
	char story[4096], *at = story;

	return tell_pass(proof, &at, story + sizeof(story) - 1, TP_PHASE_VERIFY);
}

/** And of the pass that gives sites their old code back because somebody is inside. */
size_t proof_released(const struct proof *proof)
{
	char story[4096], *at = story;

	return tell_pass(proof, &at, story + sizeof(story) - 1, TP_PHASE_LOOK);
}

/* The caller's order of addresses is never trusted; finish follows the engine's. */
static void check_order(struct proof *proof)
{
	const struct rig *rig = &proof->rig;
	size_t next = 0;

	for (size_t i = 1; i < rig->count; i++)
		if (rig->pokes[i - 1].addr > rig->pokes[i].addr)
			fetch_violate(&proof->fetch, "the pokes are not sorted");
	for (size_t i = 0; i < rig->fake.logged; i++) {
		const struct fake_op *op = &rig->fake.log[i];
		const struct tp_poke *poke = (const struct tp_poke *)op->bytes;

		if (op->kind != FAKE_FINISH)
			continue;
		while (next < rig->count && proof_is_left(proof, &rig->pokes[next]))
			next++;
		if (next >= rig->count || poke->index != rig->pokes[next].index)
			fetch_violate(&proof->fetch, "finish number %zu is not of record %zu", next,
				      next);
		next++;
	}
}

static void check_counters(struct proof *proof)
{
	const struct rig *rig = &proof->rig;
	const struct tp_outcome *outcome = &rig->outcome;

	if (outcome->reads != rig->fake.count[FAKE_READ] ||
	    outcome->writes != rig->fake.count[FAKE_WRITE] ||
	    outcome->syncs != rig->fake.count[FAKE_SYNC] || outcome->sites != rig->count ||
	    outcome->traps != proof->emulated || outcome->late_traps != proof->late ||
	    outcome->undrained)
		fetch_violate(&proof->fetch, "a counter of the outcome is wrong");
}

/* What every batch keeps to, whatever became of it. */
void proof_check_always(struct proof *proof, int code)
{
	const struct rig *rig = &proof->rig;

	check_order(proof);
	proof_check_surroundings(proof);
	if (rig->outcome.phase == TP_PHASE_VERIFY && code)
		return; /* the counters of what came before the first write are told */
	check_counters(proof);
	if (rig->outcome.code != code)
		fetch_violate(&proof->fetch, "returned %d, outcome says %d", code,
			      rig->outcome.code);
}

static void check_known(struct proof *proof, const struct tp_poke *poke)
{
	const struct tp_known *known = tp_known_find(&proof->rig.known, poke->addr);
	const struct fetch_spec *spec = proof_site(proof, poke)->spec;

	if (!known || memcmp(known->original, spec->code[0].bytes, poke->len))
		fetch_violate(&proof->fetch, "site %#x: its first bytes are not known",
			      spec->offset);
	else if (proof->rig.engine.broken ?
			 (!known->patched &&
			  memcmp(known->original, (const void *)poke->addr, poke->len)) ||
				 (*(const uint8_t *)poke->addr == TP_INT3 &&
				  known->current[0] != TP_INT3) :
			 memcmp(known->current, (const void *)poke->addr, poke->len) ||
				 !known->patched !=
					 !memcmp(known->current, known->original, poke->len))
		fetch_violate(&proof->fetch, "site %#x: the table says wrongly what is there",
			      spec->offset);
	else if (poke->outcome != TP_SITE_PENDING && known->mode != proof->rig.batch.mode)
		fetch_violate(&proof->fetch, "site %#x: the table says mode %d", spec->offset,
			      known->mode);
	else if (known->heads != (spec->code[0].heads | spec->code[1].heads))
		fetch_violate(&proof->fetch, "site %#x: the table says heads %#x", spec->offset,
			      known->heads);
}

/** What the table of known sites promises whoever has to undo this. */
void proof_check_known(struct proof *proof)
{
	for (size_t i = 0; i < proof->rig.count; i++)
		if (proof_is_real(&proof->rig.pokes[i]))
			check_known(proof, &proof->rig.pokes[i]);
}

static void check_finishes(struct proof *proof)
{
	const struct rig *rig = &proof->rig;
	size_t want = rig->count;

	for (size_t i = 0; i < rig->count; i++)
		want -= proof_is_left(proof, &rig->asked[i]);
	proof->counts.left += rig->count - want;
	if (rig->fake.count[FAKE_FINISH] != (rig->batch.finish ? want : 0))
		fetch_violate(&proof->fetch, "%zu calls of finish for %zu records",
			      rig->fake.count[FAKE_FINISH], want);
	if (rig->outcome.finished != want || rig->outcome.left != rig->count - want)
		fetch_violate(&proof->fetch,
			      "of %zu records %" PRIu64 " are finished, %" PRIu64 " left",
			      rig->count, rig->outcome.finished, rig->outcome.left);
}

static uint8_t outcome_of_success(const struct proof *proof, const struct tp_poke *poke)
{
	if (!proof_is_real(poke))
		return TP_SITE_SKIPPED;
	return proof_is_left(proof, poke) ? TP_SITE_LEFT : TP_SITE_DONE;
}

/** A batch that nothing went wrong with. */
void proof_check_success(struct proof *proof, int code)
{
	const struct rig *rig = &proof->rig;
	const struct tp_outcome *outcome = &rig->outcome;

	if (code || outcome->phase || outcome->fail_count || outcome->fail_addr ||
	    outcome->recovered || outcome->rolled_back || outcome->conflicts || rig->engine.broken)
		fetch_violate(&proof->fetch, "a batch without a fault gives %d in phase %u", code,
			      outcome->phase);
	if (rig->engine.active)
		fetch_violate(&proof->fetch, "the descriptor is still published");
	proof_check_always(proof, code);
	check_story(proof);
	check_finishes(proof);
	for (size_t i = 0; i < rig->count; i++) {
		const struct tp_poke *poke = &rig->pokes[i];

		if (poke->outcome != outcome_of_success(proof, poke) ||
		    (proof_is_real(poke) && !proof_holds(proof, poke, !proof_is_left(proof, poke))))
			fetch_violate(&proof->fetch,
				      "site %#x is not new (or left), or not said to be",
				      proof_site(proof, poke)->spec->offset);
	}
	proof_check_known(proof);
}

/** A batch without a fault: nothing goes wrong but that somebody may be inside of a window. */
void proof_check_run(struct proof *proof, int code)
{
	if (proof_fails_inside(proof))
		proof_check_inside(proof, code);
	else
		proof_check_success(proof, code);
}

/*
 * Several instructions come back only where no failure takes them away again: that such a batch is
 * refused has been seen, now it shall go on without. Returns the site that is still to be refused.
 */
static const struct fetch_site *give_up_going_back(struct proof *proof,
						   const struct fetch_site *refused)
{
	if (!refused->new_->heads || refusal_of(proof, refused) != -TP_EMULTI)
		return refused;
	check_refusal(proof, rig_run(&proof->rig), refused);
	proof->rig.batch.all_or_nothing = false;
	proof->rig.batch.finish = NULL;
	return refused_site(proof);
}

/* Who stands inside of a window does so in every other turn. */
static void let_stay(struct proof *proof, bool stays)
{
	for (size_t i = 0; i < proof->fetch.count; i++)
		proof->fetch.sites[i].is_busy = stays && proof->specs[i].is_busy;
}

const char *proof_there_and_back(struct proof *proof, size_t turns)
{
	proof_prepare(proof);
	for (size_t turn = 0; turn < turns; turn++) {
		const struct fetch_site *refused = refused_site(proof);

		let_stay(proof, turn % 2 == 0);
		if (refused)
			refused = give_up_going_back(proof, refused);
		if (refused) { /* overlapping sites do not hold what they say: no look */
			check_refusal(proof, rig_run(&proof->rig), refused);
			break;
		}
		proof_check_run(proof, proof_run(proof));
		proof_swap(proof);
	}
	return proof_end(proof);
}

/* The batch of this turn: those of @all whose bit is set. */
static void ask_for(struct proof *proof, const struct tp_poke *all, uint32_t mask)
{
	struct rig *rig = &proof->rig;

	rig->count = 0;
	for (size_t i = 0; i < proof->fetch.count; i++) {
		proof->fetch.sites[i].is_asked = i < 16 && mask >> i & 1;
		if (proof->fetch.sites[i].is_asked)
			rig->asked[rig->count++] = all[i];
	}
}

static void keep_directions(const struct proof *proof, struct tp_poke *all)
{
	for (size_t i = 0; i < proof->rig.count; i++)
		all[proof->rig.asked[i].index] = proof->rig.asked[i];
}

/* All sites have been written when the first sync fails: everything is old again. */
static void fail_turn(struct proof *proof)
{
	struct rig *rig = &proof->rig;
	int code;

	rig->fake.faults[0] = (struct fake_fault){ FAKE_SYNC, 0, 1, -EPERM };
	rig->batch.all_or_nothing |= rig->batch.mode != TP_MODE_INT3; /* they are finished too */
	code = proof_run(proof);
	rig->fake.faults[0].times = 0;
	proof_check_always(proof, code);
	if (code != -EPERM || !rig->outcome.recovered || rig->engine.active)
		fetch_violate(&proof->fetch, "a failed first sync gives %d", code);
	for (size_t i = 0; i < rig->count; i++)
		if (proof_is_real(&rig->pokes[i]) && !proof_holds(proof, &rig->pokes[i], false))
			fetch_violate(&proof->fetch, "a failed first sync leaves a site not old");
}

/* Bits 29 and 30; a batch that only stop mode takes has code that no trap can stand for. */
static enum tp_mode mode_of_turn(const struct proof *proof, uint32_t mask)
{
	uint32_t mode = mask >> 29 & 3;
	bool may_trap = proof->settings.mode != TP_MODE_STOP;

	return mode >= TP_MODES || (mode == TP_MODE_INT3 && !may_trap) ? proof->settings.mode :
									 mode;
}

static bool take_turn(struct proof *proof, bool fails)
{
	const struct fetch_site *refused = refused_site(proof);

	proof->counts.turns++;
	if (refused)
		refused = give_up_going_back(proof, refused);
	if (refused) {
		check_refusal(proof, rig_run(&proof->rig), refused);
	} else if (fails) {
		fail_turn(proof);
	} else {
		proof_check_run(proof, proof_run(proof));
		proof_swap(proof);
	}
	return !proof->fetch.violations;
}

/* Bits 16 to 27: somebody is inside of window 0 to 11; bit 28: which is left then. */
static void begin_turn(struct proof *proof, uint32_t mask)
{
	struct tp_batch *batch = &proof->rig.batch;

	batch->leave_busy = mask >> 28 & 1;
	batch->all_or_nothing = proof->settings.all_or_nothing;
	batch->finish = proof->settings.has_finish ? proof->finish : NULL;
	for (size_t i = 0; i < proof->fetch.count; i++)
		proof->fetch.sites[i].is_busy = i < 12 && mask >> (16 + i) & 1;
	proof_set_mode(proof, mode_of_turn(proof, mask));
}

/**
 * Batches of some of the sites, one after another: bit i of a mask asks for site i, up to the 16th,
 * see begin_turn() for the next 13, bits 29 and 30 are the mode (3: the batch's own), bit 31 makes
 * the turn fail. A core that fetched an int3 of an earlier batch may trap at any time of a later one.
 */
const char *proof_some_in_turn(struct proof *proof, const uint32_t *masks, size_t turns)
{
	size_t count = proof->fetch.count;
	struct tp_poke *all = malloc(count * sizeof(*all) + 1);

	assert(all);
	proof_prepare(proof);
	if (any_overlap(proof) || any_int3(proof)) /* never what they say, or never asked for */
		turns = 0;
	if (count)
		memcpy(all, proof->rig.asked, count * sizeof(*all));
	for (size_t turn = 0; turn < turns; turn++) {
		ask_for(proof, all, masks[turn]);
		begin_turn(proof, masks[turn]);
		if (!take_turn(proof, masks[turn] >> 31))
			break;
		keep_directions(proof, all);
	}
	if (count)
		memcpy(proof->rig.asked, all, count * sizeof(*all));
	proof->rig.count = count;
	free(all);
	return proof_end(proof);
}
