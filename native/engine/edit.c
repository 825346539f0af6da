/* SPDX-License-Identifier: Apache-2.0 */
/**
 * @file
 * What a site must hold, by its state, and what a pass makes of it: checked and edited in a copy of
 * the text (text.c reads and writes that).
 */
#include <errno.h>

#include "engine.h"

#define IS_ONE_OF(poke, states) (1u << (poke)->outcome & (states))
#define TRAPPED (1u << TP_SITE_INT3 | 1u << TP_SITE_TAIL | 1u << TP_SITE_BUSY)
#define TRAPPED_HEADS (1u << TP_SITE_INT3 | 1u << TP_SITE_BUSY)
#define NEW_TAIL (1u << TP_SITE_TAIL | 1u << TP_SITE_WRITTEN | 1u << TP_SITE_DONE)

/* The heads that this pass puts int3s on: over the old code only, never over a JMP. */
static unsigned int trapped_heads(const struct tp_poke *poke, const struct tp_pass *pass)
{
	return pass->phase == TP_PHASE_INT3 ? tp_old_heads(poke) : 0;
}

/** How many bytes from the first on the int3s of a site span. */
size_t tp_int3_span(const struct tp_poke *poke, const struct tp_pass *pass)
{
	unsigned int heads = trapped_heads(poke, pass);

	return heads ? 32 - (size_t)__builtin_clz(heads) : 1;
}

/** Bytes [*from, *to) of the site are what this pass writes. */
void tp_edit_range(const struct tp_poke *poke, const struct tp_pass *pass, size_t *from, size_t *to)
{
	bool any = pass->edit != TP_EDIT_NONE && poke->outcome != TP_SITE_SKIPPED;
	bool to_the_end = pass->edit == TP_EDIT_TAIL || pass->edit == TP_EDIT_WHOLE;

	*from = any && pass->edit == TP_EDIT_TAIL ? 1 : 0;
	*to = !any ? 0 : to_the_end ? poke->len : tp_int3_span(poke, pass);
}

/* What the site must hold now, by its state. */
static uint8_t expected_byte(const struct tp_poke *poke, size_t i)
{
	switch (poke->outcome) {
	case TP_SITE_INT3:
	case TP_SITE_BUSY:
		return i && !(tp_old_heads(poke) >> i & 1) ? poke->old[i] : TP_INT3;
	case TP_SITE_TAIL:
		return i ? poke->new_[i] : TP_INT3;
	case TP_SITE_WRITTEN:
	case TP_SITE_DONE:
		return poke->new_[i];
	default:
		return poke->old[i];
	}
}

static bool each_byte_is_expected(const struct tp_poke *poke, const uint8_t *found)
{
	for (size_t i = 0; i < poke->len; i++)
		if (found[i] != expected_byte(poke, i))
			return false;
	return true;
}

/* All of the site at once. @found has 16 readable bytes: windows have that much slack. */
static bool holds_expected(const struct tp_poke *poke, const uint8_t *found)
{
	const uint8_t *want = IS_ONE_OF(poke, NEW_TAIL) ? poke->new_ : poke->old;
	uint64_t low = tp_word(want) ^ tp_word(found);

	if (IS_ONE_OF(poke, TRAPPED_HEADS) && tp_old_heads(poke))
		return each_byte_is_expected(poke, found);
	if (IS_ONE_OF(poke, TRAPPED))
		low = (low & ~0xffull) | (found[0] ^ TP_INT3);
	return tp_same_rest(low, want, found, poke->len);
}

static int fail_different(struct tp_batch *batch, const struct tp_pass *pass, size_t i,
			  const uint8_t *found)
{
	const struct tp_poke *poke = &batch->pokes[i];
	struct tp_outcome *outcome = batch->outcome;
	bool first = !outcome->code;
	int code = tp_fail(batch, pass->phase, -EINVAL, i);

	for (size_t k = 0; first && k < poke->len; k++) {
		outcome->expected[k] = expected_byte(poke, k);
		outcome->found[k] = found[k];
	}
	return code;
}

/* Is all behind the first byte old code, with or without the int3s of its heads? Other code may well
 * begin like ours. */
static bool is_old_under_int3s(const struct tp_poke *poke, const uint8_t *found)
{
	unsigned int heads = IS_ONE_OF(poke, TRAPPED_HEADS) ? tp_old_heads(poke) : 0;

	for (size_t i = 1; heads && i < poke->len; i++)
		if (found[i] != poke->old[i] && !(heads >> i & 1 && found[i] == TP_INT3))
			return false;
	return heads;
}

/**
 * What is undone must hold our first byte; where a stranger has replaced it, nothing of ours is left
 * but int3s behind it. A write of whole sites, or the release of a busy one (@released: this may be
 * such a one), may have been cut off before: old first byte.
 */
bool tp_is_still_ours(struct tp_batch *batch, const struct tp_pass *pass, struct tp_poke *poke,
		      uint8_t found, bool released)
{
	if (found == expected_byte(poke, 0) ||
	    ((pass->edit == TP_EDIT_WHOLE || released) && found == poke->old[0]))
		return true;
	poke->outcome = TP_SITE_RESTORED;
	batch->outcome->conflicts++;
	return false;
}

static void edit_site(const struct tp_poke *poke, const struct tp_pass *pass, uint8_t *at)
{
	const uint8_t *bytes = pass->to_new ? poke->new_ : poke->old;

	if (pass->edit == TP_EDIT_INT3)
		for (unsigned int set = trapped_heads(poke, pass) | 1; set; set &= set - 1)
			at[__builtin_ctz(set)] = TP_INT3;
	else if (pass->edit == TP_EDIT_FIRST)
		at[0] = bytes[0];
	else if (pass->edit == TP_EDIT_WHOLE && poke->len == TP_JMP_BYTES) /* by far the most */
		__builtin_memcpy(at, bytes, TP_JMP_BYTES);
	else if (pass->edit == TP_EDIT_TAIL || pass->edit == TP_EDIT_WHOLE)
		for (size_t k = pass->edit == TP_EDIT_TAIL; k < poke->len; k++)
			at[k] = bytes[k];
}

static int prepare_site(struct tp_batch *batch, const struct tp_pass *pass, size_t i,
			uint8_t *found)
{
	struct tp_poke *poke = &batch->pokes[i];

	if (tp_is_undo(pass)) {
		bool old_tail = is_old_under_int3s(poke, found);
		bool ours = tp_is_still_ours(batch, pass, poke, found[0], old_tail);

		if (!ours && !(old_tail && pass->edit == TP_EDIT_TAIL))
			return 0;
	} else if (!holds_expected(poke, found)) {
		return fail_different(batch, pass, i, found);
	}
	edit_site(poke, pass, found);
	return 0;
}

/*
 * What a pass does to every site of one kind, as masks over its first eight bytes. Sites of a batch
 * are of a few kinds, so a loop over thousands of them decides once for each. What does not fit
 * (longer sites, undo) goes its own way.
 */
struct rule {
	uint64_t site;	/* the bytes of the site; 0: no rule, it goes its own way */
	uint64_t traps; /* that hold int3s now */
	uint64_t edit;	/* that this pass takes from the old or new code */
	uint64_t int3;	/* that this pass puts int3s on */
	uint32_t kind;
	bool made;
	bool chosen; /* the pass is for such sites */
	bool holds_new;
};

#define RULES 64
#define INT3_WORD 0xccccccccccccccccull

/* Byte masks of the bits of @bits. */
static uint64_t bytes_of(unsigned int bits)
{
	uint64_t mask = 0;

	for (unsigned int set = bits; set; set &= set - 1)
		mask |= 0xffull << 8 * __builtin_ctz(set);
	return mask;
}

static struct rule make_rule(const struct tp_poke *poke, const struct tp_pass *pass)
{
	struct rule rule = { .kind = tp_kind(poke),
			     .made = true,
			     .chosen = tp_selected(poke, pass) };
	unsigned int traps = IS_ONE_OF(poke, TRAPPED) ? 1 : 0;
	size_t from, to;

	if (!rule.chosen || tp_is_undo(pass) || poke->len > 8)
		return rule;
	if (IS_ONE_OF(poke, TRAPPED_HEADS))
		traps |= tp_old_heads(poke);
	rule.site = bytes_of((1u << poke->len) - 1);
	rule.traps = bytes_of(traps);
	rule.holds_new = IS_ONE_OF(poke, NEW_TAIL);
	tp_edit_range(poke, pass, &from, &to);
	if (pass->edit == TP_EDIT_INT3)
		rule.int3 = bytes_of(trapped_heads(poke, pass) | 1);
	else if (from < to)
		rule.edit = bytes_of((1u << to) - (1u << from));
	return rule;
}

static const struct rule *rule_for(struct rule rules[RULES], const struct tp_poke *poke,
				   const struct tp_pass *pass)
{
	struct rule *rule = &rules[tp_kind(poke) * 0x9e3779b1u >> 26];

	if (!rule->made || rule->kind != tp_kind(poke))
		*rule = make_rule(poke, pass);
	return rule;
}

/* Bytes of a site as one word, with int3s at the bytes of @int3. */
static uint64_t with_int3s(const uint8_t *bytes, uint64_t int3)
{
	return (tp_word(bytes) & ~int3) | (INT3_WORD & int3);
}

/*
 * Check and edit by rule the poke @i and those of its kind that follow: the index of the first that is
 * of another kind, or does not hold what it must. A site with the bytes of the one before it must hold
 * the same ones and gets the same ones.
 */
static size_t prepare_by_rule(const struct tp_batch *batch, const struct rule *rule, bool to_new,
			      const struct tp_copy *copy, size_t i)
{
	const struct tp_poke *poke = &batch->pokes[i], *end = &batch->pokes[copy->last];
	uint8_t *const bytes = copy->bytes;
	const uint64_t start = copy->start;
	const uint64_t site = rule->site, kept = ~(rule->edit | rule->int3);
	const uint32_t kind = rule->kind;
	const bool is_mixed = batch->is_mixed;

	do {
		const uint64_t want =
			with_int3s(rule->holds_new ? poke->new_ : poke->old, rule->traps) & site;
		const uint64_t put = with_int3s(to_new ? poke->new_ : poke->old, rule->int3) &
				     ~kept;

		do {
			uint8_t *found = bytes + (poke->addr - start);
			uint64_t word = tp_word(found);

			if ((word & site) != want)
				return (size_t)(poke - batch->pokes);
			word = (word & kept) | put;
			__builtin_memcpy(found, &word, sizeof(word));
			poke++;
		} while (poke < end && poke->flags & TP_POKE_ALIKE && tp_kind(poke) == kind);
	} while (!is_mixed && poke < end && tp_kind(poke) == kind);
	return (size_t)(poke - batch->pokes);
}

/**
 * The old code is checked again under the protocol, in every pass; then edited in @copy. Returns 0, or
 * the code of the failure that was recorded.
 */
int tp_edit_sites(struct tp_batch *batch, const struct tp_pass *pass, const struct tp_copy *copy)
{
	struct rule rules[RULES] = { 0 };
	size_t i = copy->first;

	while (i < copy->last) {
		const struct tp_poke *poke = &batch->pokes[i];
		const struct rule *rule = rule_for(rules, poke, pass);
		size_t begun = i;
		int error;

		if (rule->chosen && rule->site)
			i = prepare_by_rule(batch, rule, pass->to_new, copy, i);
		if (i > begun)
			continue;
		i++;
		if (!rule->chosen) /* it may stand far outside of the copy */
			continue;
		error = prepare_site(batch, pass, begun, copy->bytes + (poke->addr - copy->start));
		if (error)
			return error;
	}
	return 0;
}
