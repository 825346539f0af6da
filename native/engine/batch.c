/* SPDX-License-Identifier: Apache-2.0 */
/**
 * @file
 * Check a batch before any write: sorted, lengths, NULL pairs, overlaps, and that a thread which
 * traps at any of its sites can be sent on.
 */
#include "engine.h"

#define SITES_A_TURN 8 /* more of one kind in a row, and deciding once for them is cheaper */

enum { TP_UNSORTED = 1 };

static void swap_pokes(struct tp_poke *a, struct tp_poke *b)
{
	struct tp_poke keep = *a;

	*a = *b;
	*b = keep;
}

static void sift_down(struct tp_poke *pokes, size_t root, size_t count)
{
	for (;;) {
		size_t child = 2 * root + 1;

		if (child >= count)
			return;
		if (child + 1 < count && pokes[child].addr < pokes[child + 1].addr)
			child++;
		if (pokes[root].addr >= pokes[child].addr)
			return;
		swap_pokes(&pokes[root], &pokes[child]);
		root = child;
	}
}

static bool is_sorted(const struct tp_poke *pokes, size_t count)
{
	for (size_t i = 1; i < count; i++)
		if (pokes[i - 1].addr > pokes[i].addr)
			return false;
	return true;
}

/** Sort by address, in place (heapsort: no memory, no worst case). The caller is never trusted. */
void tp_sort_pokes(struct tp_poke *pokes, size_t count)
{
	if (is_sorted(pokes, count))
		return;
	for (size_t i = count / 2; i-- > 0;)
		sift_down(pokes, i, count);
	for (size_t end = count; end-- > 1;) {
		swap_pokes(&pokes[0], &pokes[end]);
		sift_down(pokes, 0, end);
	}
}

/** Record the first failure of a batch; the site is @i in address order. Returns @code. */
int tp_fail(struct tp_batch *batch, enum tp_phase phase, int code, size_t i)
{
	struct tp_outcome *outcome = batch->outcome;

	if (outcome->code)
		return outcome->code;
	outcome->code = code;
	outcome->phase = phase;
	outcome->fail_count = i;
	if (i < batch->count) {
		outcome->fail_addr = batch->pokes[i].addr;
		outcome->fail_index = batch->pokes[i].index;
		outcome->fail_len = batch->pokes[i].len;
		for (size_t k = 0; k < sizeof(outcome->expected); k++)
			outcome->expected[k] = batch->pokes[i].old[k];
	}
	return code;
}

/** True when bytes 1..len-1 of old and new are not the same: the site needs the tail phase. */
bool tp_tail_differs(const struct tp_poke *poke)
{
	uint64_t low = (tp_word(poke->old) ^ tp_word(poke->new_)) & ~0xffull;

	return !tp_same_rest(low, poke->old, poke->new_, poke->len);
}

/* What we cannot decode is one instruction: the caller says so. */
static bool is_one(const struct tp_insn *insn, size_t len)
{
	return insn->length == 0 || insn->length == len;
}

/*
 * The site must be one instruction: a thread that sleeps at an interior one would wake in the
 * middle of the new bytes (kernel-lineage H9). Two exceptions need no proof about threads: the tail
 * stays as it is, or every mix of both tails is NOPs at every byte.
 */
static bool any_mix_is_right(const struct tp_poke *poke)
{
	return !tp_tail_differs(poke) ||
	       (tp_is_nop_mix(poke->old, poke->len) && tp_is_nop_mix(poke->new_, poke->len));
}

static int check_tail(const struct tp_batch *batch, const struct tp_poke *poke,
		      const struct tp_insn *old, const struct tp_insn *new)
{
	/* A thread may stand inside of the new code when a failure takes it back. */
	bool may_go_back = batch->all_or_nothing || batch->finish;

	if (poke->flags & TP_POKE_ONE || any_mix_is_right(poke))
		return 0;
	if (is_one(old, poke->len) && (is_one(new, poke->len) || !may_go_back))
		return 0;
	return -TP_EMULTI;
}

/* Has the copy no place for one of the heads (bits 1 to 4)? */
static bool lacks_copy(const struct tp_poke *poke, unsigned int heads)
{
	for (unsigned int set = heads; set; set &= set - 1)
		if (!tp_copy_offset(poke, (unsigned int)__builtin_ctz(set)))
			return true;
	return false;
}

/* Has one of the first eight bytes this value? */
static bool has_byte(uint64_t word, uint8_t byte)
{
	uint64_t difference = word ^ 0x0101010101010101ull * byte;

	return (difference - 0x0101010101010101ull) & ~difference & 0x8080808080808080ull;
}

/*
 * Several instructions that give way to a JMP, or come back: a thread that stands at a later one must
 * find its copy, behind the target's first byte, and somebody must look whether there is such a thread.
 * A short JMP and padding is no JMP of five bytes.
 */
static int check_heads(const struct tp_engine *engine, const struct tp_batch *batch,
		       const struct tp_poke *poke, const uint8_t *jmp)
{
	unsigned int heads = tp_old_heads(poke);

	if (poke->len != TP_JMP_BYTES || jmp[0] != TP_JMP || poke->handler)
		return -TP_EHEADS;
	if (heads && lacks_copy(poke, heads))
		return -TP_EHEADS;
	if (heads && batch->mode == TP_MODE_INT3 && !engine->ops->look)
		return -TP_EMULTI;
	if (batch->mode == TP_MODE_STOP || any_mix_is_right(poke))
		return 0;
	if (batch->mode == TP_MODE_DIRECT)
		return -TP_EDIRECT;
	/* What comes back may not be taken away again: threads stand in it. */
	return !heads && (batch->all_or_nothing || batch->finish) ? -TP_EMULTI : 0;
}

/* Where a CALL or JMP of five bytes at the site goes. */
static uint64_t target_of(const struct tp_poke *poke, const uint8_t *branch)
{
	int32_t displacement;

	__builtin_memcpy(&displacement, branch + 1, sizeof(displacement));
	return poke->addr + TP_JMP_BYTES + (uint64_t)(int64_t)displacement;
}

/* Is one of the several instructions an int3 of the program's own? Ours could not be told from it. */
static bool begins_with_int3(const struct tp_poke *poke)
{
	const uint8_t *code = poke->flags & TP_POKE_BACK ? poke->new_ : poke->old;

	if (!has_byte(tp_word(code), TP_INT3)) /* nearly always */
		return false;
	for (unsigned int set = tp_heads(poke) | 1; set; set &= set - 1)
		if (code[__builtin_ctz(set)] == TP_INT3)
			return true;
	return false;
}

/* The other side is no single instruction, whatever it begins like: a trapped thread takes the JMP. */
static int choose_jmp(const struct tp_engine *engine, const struct tp_batch *batch,
		      struct tp_poke *poke)
{
	const uint8_t *jmp = poke->flags & TP_POKE_BACK ? poke->old : poke->new_;
	int error = check_heads(engine, batch, poke, jmp);

	if (error)
		return error;
	if (begins_with_int3(poke))
		return -TP_EEMULATE;
	poke->emulate = TP_INSN_JMP;
	poke->target = target_of(poke, jmp);
	return 0;
}

/* Only where threads may trap can an int3 be there for good; taken away it may be anywhere. */
static bool has_wrong_int3(const struct tp_batch *batch, const struct tp_poke *poke)
{
	if (poke->old[0] != TP_INT3 && poke->new_[0] != TP_INT3)
		return false;
	return !tp_is_permanent(poke) || (poke->new_[0] == TP_INT3 && batch->mode != TP_MODE_INT3);
}

/* Where threads trap, old and new are both right; prefer what the site is turning into. */
static int choose_emulation(const struct tp_batch *batch, struct tp_poke *poke,
			    const struct tp_insn *old, const struct tp_insn *new)
{
	const struct tp_insn *chosen = new->kind != TP_INSN_OTHER ? new : old;
	const struct tp_insn handler = { .kind = TP_INSN_HANDLER };
	int error = check_tail(batch, poke, old, new);

	if (error)
		return error;
	if (poke->handler)
		chosen = &handler;
	if (has_wrong_int3(batch, poke) || chosen->kind == TP_INSN_OTHER)
		return -TP_EEMULATE;
	poke->emulate = tp_pack_emulate(chosen);
	poke->target = chosen->kind == TP_INSN_RET ? chosen->pops : chosen->target;
	return 0;
}

static bool is_relative(enum tp_insn_kind kind)
{
	return kind == TP_INSN_CALL || kind == TP_INSN_JMP || kind == TP_INSN_JCC;
}

/* CALL or JMP of five bytes, both the same but for how far they go. */
static bool is_same_branch(const uint8_t *a, const uint8_t *b)
{
	return a[0] == b[0] && (a[0] == 0xe8 || a[0] == TP_JMP);
}

/* What the last site was decided by. */
struct decided {
	const struct tp_poke *poke; /* NULL: none yet, or one of several instructions */
	struct tp_insn old;
	struct tp_insn new;
};

/*
 * Five bytes each, and one instruction each, before and after: the same NOP, or the same branch to
 * another place. What the check of the tail has found of the last one then holds here too.
 */
static bool emulate_as_branch(struct tp_poke *poke, const struct decided *last, bool same_old,
			      bool same_new)
{
	const struct tp_poke *other = last->poke;
	const uint8_t *chosen = last->new.kind != TP_INSN_OTHER ? poke->new_ : poke->old;

	if (poke->len != TP_JMP_BYTES || last->old.length != TP_JMP_BYTES ||
	    last->new.length != TP_JMP_BYTES ||
	    !(same_old || is_same_branch(poke->old, other->old)) ||
	    !(same_new || is_same_branch(poke->new_, other->new_)))
		return false;
	if (is_relative(other->emulate & 0x0f) && chosen[0] != 0xe8 && chosen[0] != TP_JMP)
		return false; /* a short JMP and padding */
	poke->emulate = other->emulate;
	poke->target = is_relative(other->emulate & 0x0f) ? target_of(poke, chosen) : other->target;
	return true;
}

/* Of the same length and kind, and nobody sends a trapped thread on: only the bytes may differ. */
static bool is_same_sort(const struct tp_poke *poke, const struct tp_poke *other)
{
	return poke->len == other->len && !(poke->handler | other->handler) &&
	       !((poke->flags ^ other->flags) & ~TP_POKE_ALIKE);
}

static bool is_alike(const struct tp_poke *poke, const struct tp_poke *other)
{
	return is_same_sort(poke, other) && tp_same_field(poke->old, other->old) &&
	       tp_same_field(poke->new_, other->new_);
}

/* Neighbours are often alike, thousands of NOPs for one: decide once for all of them. */
static bool emulate_like(struct tp_poke *poke, const struct decided *last)
{
	const struct tp_poke *other = last->poke;
	bool same_old, same_new;

	if (!other || !is_same_sort(poke, other))
		return false;
	same_old = tp_same_field(poke->old, other->old);
	same_new = tp_same_field(poke->new_, other->new_);
	if (!same_old || !same_new)
		return emulate_as_branch(poke, last, same_old, same_new);
	poke->flags |= TP_POKE_ALIKE;
	poke->emulate = other->emulate;
	poke->target = other->target;
	if (is_relative(other->emulate & 0x0f))
		poke->target += poke->addr - other->addr;
	return true;
}

/* Where the check of a sorted batch stands. */
struct cursor {
	uint64_t end; /* of the last site */
	const struct tp_known *known;
	const struct tp_known *known_end;
	struct decided last;
	bool tails_differ;
	bool must_look;
	bool must_learn;
	bool must_arm;
	size_t skipped;
	size_t turns; /* sites of another kind than the one before */
	uint32_t kind;
};

static bool is_known(struct cursor *cursor, const struct tp_poke *poke)
{
	const struct tp_known *entry = cursor->known;

	while (entry < cursor->known_end && entry->addr < poke->addr)
		entry++;
	cursor->known = entry;
	if (entry == cursor->known_end || entry->addr != poke->addr ||
	    tp_heads(poke) & ~(unsigned int)entry->heads)
		return false;
	if (!entry->written || entry->len != poke->len ||
	    !tp_same_prefix(entry->current, poke->old, poke->len))
		cursor->must_learn = true;
	return true;
}

/* Nobody is to be sent on, so nothing need be decoded; one store must do it in direct mode. */
static int check_without_traps(const struct tp_batch *batch, struct cursor *cursor,
			       struct tp_poke *poke)
{
	const struct tp_poke *last = cursor->last.poke;

	cursor->last.poke = poke;
	cursor->must_arm |= poke->handler && tp_is_permanent(poke);
	poke->emulate = TP_INSN_OTHER;
	poke->target = 0;
	if (last && is_alike(poke, last)) {
		poke->flags |= TP_POKE_ALIKE;
		return 0;
	}
	if (has_wrong_int3(batch, poke))
		return -TP_EEMULATE;
	return batch->mode == TP_MODE_STOP || any_mix_is_right(poke) ? 0 : -TP_EDIRECT;
}

static int check_poke(const struct tp_engine *engine, const struct tp_batch *batch,
		      struct cursor *cursor, struct tp_poke *poke)
{
	unsigned int null = poke->flags & (TP_POKE_NO_OLD | TP_POKE_NO_NEW);

	if (null == TP_POKE_NO_OLD || null == TP_POKE_NO_NEW)
		return -TP_ENULL;
	if (null) {
		poke->outcome = TP_SITE_SKIPPED;
		cursor->skipped++;
		cursor->last.poke = NULL;
		return 0;
	}
	if (poke->len < 1 || poke->len > TP_MAX_INSN)
		return -TP_ELENGTH;
	if (poke->addr < cursor->end || poke->addr + poke->len < poke->addr)
		return -TP_EOVERLAP;
	cursor->end = poke->addr + poke->len;
	if (!is_known(cursor, poke))
		return -TP_EKNOWN;
	if (tp_heads(poke)) {
		cursor->last.poke = NULL;
		cursor->tails_differ |= tp_tail_differs(poke) || tp_old_heads(poke);
		cursor->must_look |= tp_old_heads(poke) != 0;
		return choose_jmp(engine, batch, poke);
	}
	if (batch->mode != TP_MODE_INT3)
		return check_without_traps(batch, cursor, poke);
	if (!emulate_like(poke, &cursor->last)) {
		int error;

		cursor->last.old = tp_classify(poke->old, poke->len, poke->addr);
		cursor->last.new = tp_classify(poke->new_, poke->len, poke->addr);
		error = choose_emulation(batch, poke, &cursor->last.old, &cursor->last.new);
		if (error)
			return error;
	}
	cursor->last.poke = poke;
	cursor->must_arm |= poke->handler && tp_is_permanent(poke);
	if (!cursor->tails_differ && !(poke->flags & TP_POKE_ALIKE))
		cursor->tails_differ = tp_tail_differs(poke);
	return 0;
}

static struct cursor start_of(const struct tp_engine *engine, const struct tp_batch *batch)
{
	struct cursor cursor = { 0 };

	cursor.known = tp_known_begin(engine, batch);
	if (cursor.known)
		cursor.known_end = engine->known->entries + engine->known->count;
	return cursor;
}

/* Returns 0, or the error and the poke to blame, or TP_UNSORTED. Every pass over 20,000 pokes costs 50 us
 * of memory bandwidth, so this one does all that there is to do. */
static int check_pokes(const struct tp_engine *engine, struct tp_batch *batch,
		       struct cursor *cursor, size_t *blame)
{
	uint64_t last = 0;

	for (size_t i = 0; i < batch->count; i++) {
		struct tp_poke *poke = &batch->pokes[i];
		int error;

		if (poke->addr < last)
			return TP_UNSORTED;
		last = poke->addr;
		poke->outcome = TP_SITE_PENDING;
		poke->flags &= (uint8_t)~TP_POKE_ALIKE;
		error = check_poke(engine, batch, cursor, poke);
		if (error) {
			*blame = i;
			return error;
		}
		cursor->turns += tp_kind(poke) != cursor->kind;
		cursor->kind = tp_kind(poke);
	}
	return 0;
}

/* Refused: nothing was done to any site, those behind the one to blame included. */
static int refuse(struct tp_batch *batch, int error, size_t blame)
{
	for (size_t i = blame < batch->count ? blame : 0; i < batch->count; i++)
		batch->pokes[i].outcome = TP_SITE_PENDING;
	return tp_fail(batch, TP_PHASE_CHECK, error, blame);
}

/** Sort and check; fills outcome, emulation and target of every poke. Nothing is written. */
int tp_check_batch(struct tp_engine *engine, struct tp_batch *batch)
{
	struct cursor cursor = start_of(engine, batch);
	size_t blame = batch->count;
	int error;

	if (engine->broken)
		return refuse(batch, -TP_EBROKEN, batch->count);
	if ((unsigned int)batch->mode >= TP_MODES)
		return refuse(batch, -TP_EMODE, batch->count);
	error = check_pokes(engine, batch, &cursor, &blame);
	if (error) { /* of an unsorted batch another poke may be the first to blame */
		tp_sort_pokes(batch->pokes, batch->count);
		cursor = start_of(engine, batch);
		error = check_pokes(engine, batch, &cursor, &blame);
	}
	if (error)
		return refuse(batch, error, blame);
	batch->tails_differ = cursor.tails_differ;
	batch->must_look = cursor.must_look;
	batch->must_learn = cursor.must_learn;
	batch->must_arm = cursor.must_arm;
	batch->skipped = cursor.skipped;
	batch->is_mixed = cursor.turns > batch->count / SITES_A_TURN;
	return 0;
}

/** Of a prepared batch: @poke is not to be written after all. It becomes a record that is there already. */
void tp_leave_out(struct tp_batch *batch, struct tp_poke *poke)
{
	if (poke->outcome == TP_SITE_SKIPPED)
		return;
	poke->flags |= TP_POKE_NO_OLD | TP_POKE_NO_NEW;
	poke->outcome = TP_SITE_SKIPPED;
	batch->skipped++;
}
