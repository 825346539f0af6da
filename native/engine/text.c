/* SPDX-License-Identifier: Apache-2.0 */
/**
 * @file
 * Writing bytes to text: one pass of the protocol over all sites, all sites of a stretch of pages
 * in one write. That is a read-modify-write, so the window is read just before, spans first to last
 * site only, and is read back; a stranger's write in between is reported.
 */
#include <errno.h>

#include "engine.h"

struct window {
	size_t first; /* pokes [first, last) stand on pages that touch */
	size_t last;
	size_t pages;
	size_t blame;	/* the first that the pass is for */
	uint64_t start; /* addresses read: [start, end) */
	uint64_t end;
	uint64_t write_start;
	uint64_t write_end;
};

#define MOST_REMAPS 1000 /* of modules under one undo */
#define IS_ONE_OF(poke, states) (1u << (poke)->outcome & (states))
#define TRAPPED (1u << TP_SITE_INT3 | 1u << TP_SITE_TAIL | 1u << TP_SITE_BUSY)
#define TRAPPED_HEADS (1u << TP_SITE_INT3 | 1u << TP_SITE_BUSY)
#define NEW_TAIL (1u << TP_SITE_TAIL | 1u << TP_SITE_WRITTEN | 1u << TP_SITE_DONE)

static bool selected(const struct tp_poke *poke, const struct tp_pass *pass)
{
	return IS_ONE_OF(poke, pass->from & ~(1u << TP_SITE_SKIPPED));
}

static bool is_undo(const struct tp_pass *pass)
{
	return pass->phase == TP_PHASE_RECOVER || pass->phase == TP_PHASE_ROLLBACK;
}

/* The heads that this pass puts int3s on: over the old code only, never over a JMP. */
static unsigned int trapped_heads(const struct tp_poke *poke, const struct tp_pass *pass)
{
	return pass->phase == TP_PHASE_INT3 ? tp_old_heads(poke) : 0;
}

/* How many bytes from the first on the int3s of a site span. */
static size_t int3_span(const struct tp_poke *poke, const struct tp_pass *pass)
{
	unsigned int heads = trapped_heads(poke, pass);

	return heads ? 32 - (size_t)__builtin_clz(heads) : 1;
}

/* Bytes [*from, *to) of the site are what this pass writes. */
static void edit_range(const struct tp_poke *poke, const struct tp_pass *pass, size_t *from,
		       size_t *to)
{
	bool any = pass->edit != TP_EDIT_NONE && poke->outcome != TP_SITE_SKIPPED;
	bool to_the_end = pass->edit == TP_EDIT_TAIL || pass->edit == TP_EDIT_WHOLE;

	*from = any && pass->edit == TP_EDIT_TAIL ? 1 : 0;
	*to = !any ? 0 : to_the_end ? poke->len : int3_span(poke, pass);
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

/* Four words at a time: windows of many pages are compared whole. */
static bool same_words(const uint8_t *a, const uint8_t *b, size_t bytes)
{
	size_t i = 0;

	for (; i + 32 <= bytes; i += 32)
		if ((tp_word(a + i) ^ tp_word(b + i)) | (tp_word(a + i + 8) ^ tp_word(b + i + 8)) |
		    (tp_word(a + i + 16) ^ tp_word(b + i + 16)) |
		    (tp_word(a + i + 24) ^ tp_word(b + i + 24)))
			return false;
	for (; i < bytes; i++)
		if (a[i] != b[i])
			return false;
	return true;
}

/* May a site on @page go into the window that so far ends on @last_page? */
static bool joins(const struct tp_engine *engine, const struct window *window, uint64_t last_page,
		  uint64_t page)
{
	return page == last_page + 1 && window->pages < engine->window_pages &&
	       window->pages < TP_WINDOW_PAGES;
}

static struct window next_window(const struct tp_engine *engine, const struct tp_batch *batch,
				 const struct tp_pass *pass, size_t first)
{
	struct window window = { .first = first };
	const struct tp_poke *last = NULL, *last_tail = NULL;
	uint32_t last_kind = ~0u;
	uint64_t last_page = 0;
	size_t i;

	for (i = first; i < batch->count; i++) {
		const struct tp_poke *poke = &batch->pokes[i];
		uint64_t page = poke->addr / TP_PAGE_BYTES;

		if (tp_kind(poke) != last_kind) {
			if (!selected(poke, pass))
				continue;
			last_kind = tp_kind(poke);
		}
		if (!last) {
			window.start = poke->addr;
			window.blame = i;
		}
		if (!last || page != last_page) {
			if (last && !joins(engine, &window, last_page, page))
				break;
			window.pages++;
			last_page = page;
		}
		last = poke;
		if (poke->len > 1) /* a site of one byte has no tail */
			last_tail = poke;
	}
	window.last = i;
	if (!last)
		return window;
	window.end = last->addr + last->len;
	if (pass->edit == TP_EDIT_INT3 || pass->edit == TP_EDIT_FIRST) {
		window.write_start = window.start;
		window.write_end = last->addr + int3_span(last, pass);
	}
	if (pass->edit == TP_EDIT_TAIL && last_tail) {
		/* Of several sites from the int3 of the first: one byte on, the copy takes longer. */
		window.write_start = window.start + (last_tail->addr == window.start);
		window.write_end = last_tail->addr + last_tail->len;
	}
	if (pass->edit == TP_EDIT_WHOLE) {
		window.write_start = window.start;
		window.write_end = window.end;
	}
	return window;
}

/* Where in a buffer the byte of @addr stands when its first byte is that of @start. */
static uint8_t *copy_of(uint8_t *buffer, uint64_t start, uint64_t addr)
{
	return buffer + start % TP_LINE_BYTES + (addr - start);
}

static int read_window(struct tp_engine *engine, struct tp_batch *batch, uint64_t start,
		       uint64_t end, uint8_t *buffer)
{
	batch->outcome->reads++;
	return engine->ops->read(engine->ctx, start, copy_of(buffer, start, start), end - start);
}

/* A window that cannot be read as a whole: find the site to blame. */
static int blame_unreadable(struct tp_engine *engine, struct tp_batch *batch,
			    const struct tp_pass *pass, const struct window *window)
{
	for (size_t i = window->first; i < window->last; i++) {
		const struct tp_poke *poke = &batch->pokes[i];

		if (selected(poke, pass) && read_window(engine, batch, poke->addr,
							poke->addr + poke->len, engine->readback))
			return tp_fail(batch, pass->phase, -EFAULT, i);
	}
	return tp_fail(batch, pass->phase, -EFAULT, window->blame);
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

/*
 * What is undone must hold our first byte; where a stranger has replaced it, nothing of ours is left
 * but int3s behind it. A write of whole sites, or the release of a busy one (@released: this may be
 * such a one), may have been cut off before: old first byte.
 */
static bool is_still_ours(struct tp_batch *batch, const struct tp_pass *pass, struct tp_poke *poke,
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

	if (is_undo(pass)) {
		bool old_tail = is_old_under_int3s(poke, found);
		bool ours = is_still_ours(batch, pass, poke, found[0], old_tail);

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
	struct rule rule = { .kind = tp_kind(poke), .made = true, .chosen = selected(poke, pass) };
	unsigned int traps = IS_ONE_OF(poke, TRAPPED) ? 1 : 0;
	size_t from, to;

	if (!rule.chosen || is_undo(pass) || poke->len > 8)
		return rule;
	if (IS_ONE_OF(poke, TRAPPED_HEADS))
		traps |= tp_old_heads(poke);
	rule.site = bytes_of((1u << poke->len) - 1);
	rule.traps = bytes_of(traps);
	rule.holds_new = IS_ONE_OF(poke, NEW_TAIL);
	edit_range(poke, pass, &from, &to);
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

/*
 * Check and edit pokes from @i on by their common rule, up to one of another kind or one that does
 * not hold what it must: its index. A site with the bytes of the one before it must hold the same
 * ones and gets the same ones.
 */
static size_t prepare_by_rule(const struct tp_batch *batch, const struct rule *rule, bool to_new,
			      uint8_t *copy, uint64_t start, size_t i, size_t last)
{
	const struct tp_poke *poke = &batch->pokes[i], *end = &batch->pokes[last];
	const uint64_t site = rule->site, kept = ~(rule->edit | rule->int3);
	const uint32_t kind = rule->kind;
	uint64_t want, put;

	do {
		want = tp_word(rule->holds_new ? poke->new_ : poke->old);
		want = ((want & ~rule->traps) | (INT3_WORD & rule->traps)) & site;
		put = tp_word(to_new ? poke->new_ : poke->old) & rule->edit;
		put |= INT3_WORD & rule->int3;
		do {
			uint8_t *found = copy + (poke->addr - start);
			uint64_t word = tp_word(found);

			if ((word & site) != want)
				return (size_t)(poke - batch->pokes);
			word = (word & kept) | put;
			__builtin_memcpy(found, &word, sizeof(word));
			poke++;
		} while (poke < end && poke->flags & TP_POKE_ALIKE && tp_kind(poke) == kind);
	} while (poke < end && tp_kind(poke) == kind);
	return (size_t)(poke - batch->pokes);
}

/* The old code is checked again under the protocol, in every pass; then edited in our copy. */
static int prepare_window(struct tp_engine *engine, struct tp_batch *batch,
			  const struct tp_pass *pass, const struct window *window)
{
	uint8_t *copy = copy_of(engine->window, window->start, window->start);
	struct rule rules[RULES] = { 0 };
	size_t i = window->first;

	while (i < window->last) {
		const struct tp_poke *poke = &batch->pokes[i];
		const struct rule *rule = rule_for(rules, poke, pass);
		size_t begun = i;
		int error;

		if (rule->chosen && rule->site)
			i = prepare_by_rule(batch, rule, pass->to_new, copy, window->start, i,
					    window->last);
		if (i > begun)
			continue;
		i++;
		if (!rule->chosen) /* it may stand far outside of the window */
			continue;
		error = prepare_site(batch, pass, begun, copy + (poke->addr - window->start));
		if (error)
			return error;
	}
	return 0;
}

/* What an undo must make of a site of which only the first bytes were written. */
static uint8_t written_in_part(const struct tp_poke *poke, const struct tp_pass *pass)
{
	if (pass->phase == TP_PHASE_INT3)
		return TP_SITE_INT3;
	return pass->edit == TP_EDIT_WHOLE && pass->to_new ? TP_SITE_WRITTEN : poke->outcome;
}

/* Sites whose bytes lie below @end are in their new state; the first that is not has failed. */
static int advance_sites(struct tp_batch *batch, const struct tp_pass *pass,
			 const struct window *window, uint64_t end, int error)
{
	uint32_t last_kind = ~0u;
	size_t done = 0;
	size_t i;

	for (i = window->first; i < window->last; i++) {
		struct tp_poke *poke = &batch->pokes[i];
		size_t from, to;

		if (!error && tp_kind(poke) == last_kind) {
			poke->outcome = pass->to;
			done++;
			continue;
		}
		if (!selected(poke, pass))
			continue;
		last_kind = tp_kind(poke);
		if (error) {
			edit_range(poke, pass, &from, &to);
			if (from < to && poke->addr + to > end) {
				if (poke->addr < end)
					poke->outcome = written_in_part(poke, pass);
				break;
			}
		}
		poke->outcome = pass->to;
		done++;
	}
	if (pass->to == TP_SITE_DONE)
		batch->outcome->finished += done;
	if (!error)
		return 0;
	return tp_fail(batch, pass->phase, error, i < window->last ? i : window->blame);
}

/* Since an undo put the old first byte there, somebody has written another: nothing of ours is left. */
static bool is_strangers(const struct tp_poke *poke, const struct tp_pass *pass, uint8_t found)
{
	uint8_t ours = pass->edit == TP_EDIT_WHOLE ? poke->new_[0] : TP_INT3;

	return pass->to == TP_SITE_RESTORED && found != poke->old[0] && found != ours;
}

static int read_back(struct tp_engine *engine, struct tp_batch *batch, const struct tp_pass *pass,
		     const struct window *window)
{
	const uint8_t *wrote = copy_of(engine->window, window->start, window->write_start);
	const uint8_t *found = copy_of(engine->readback, window->write_start, window->write_start);
	size_t bytes = window->write_end - window->write_start;

	int error = read_window(engine, batch, window->write_start, window->write_end,
				engine->readback);

	if (error == -ENXIO && is_undo(pass))
		return error;
	if (error)
		return tp_fail(batch, pass->phase, -EFAULT, window->blame);
	if (same_words(found, wrote, bytes))
		return 0;
	batch->outcome->conflicts++;
	for (size_t i = window->first; i < window->last; i++) {
		const struct tp_poke *poke = &batch->pokes[i];
		uint64_t at = poke->addr - window->write_start;
		size_t from, to;

		edit_range(poke, pass, &from, &to);
		if (poke->outcome != pass->to || poke->addr + from < window->write_start ||
		    poke->addr + to > window->write_end || is_strangers(poke, pass, found[at]))
			continue;
		for (size_t k = from; k < to; k++)
			if (found[at + k] != wrote[at + k])
				return tp_fail(batch, pass->phase, -TP_EVERIFY, i);
	}
	return 0;
}

static int write_window(struct tp_engine *engine, struct tp_batch *batch,
			const struct tp_pass *pass, const struct window *window)
{
	size_t bytes = window->write_end - window->write_start;
	uint64_t end = window->write_start;
	int error;
	long done;

	if (!window->write_end) /* nothing of these sites changes here: tails of one-byte flips */
		return advance_sites(batch, pass, window, UINT64_MAX, 0);
	batch->outcome->writes++;
	done = engine->ops->write(engine->ctx, window->write_start,
				  copy_of(engine->window, window->start, window->write_start),
				  bytes);
	if (done > 0)
		end += (uint64_t)done;
	error = done < 0 ? (int)done : (size_t)done < bytes ? -EIO : 0;
	error = advance_sites(batch, pass, window, end, error);
	return error ? error : read_back(engine, batch, pass, window);
}

static int finish_window(struct tp_batch *batch, const struct tp_pass *pass,
			 const struct window *window)
{
	for (size_t i = window->first; i < window->last; i++) {
		struct tp_poke *poke = &batch->pokes[i];
		int error;

		if (poke->outcome != TP_SITE_WRITTEN && poke->outcome != TP_SITE_SKIPPED)
			continue;
		error = batch->finish ? batch->finish(poke, batch->finish_ctx) : 0;
		if (error)
			return tp_fail(batch, pass->phase, error, i);
		if (poke->outcome == TP_SITE_WRITTEN)
			poke->outcome = TP_SITE_DONE;
		batch->outcome->finished++;
	}
	return 0;
}

static bool is_old_again(struct tp_engine *engine, struct tp_batch *batch,
			 const struct tp_poke *poke)
{
	const uint8_t *found = copy_of(engine->readback, poke->addr, poke->addr);

	return !read_window(engine, batch, poke->addr, poke->addr + poke->len, engine->readback) &&
	       tp_same_prefix(found, poke->old, poke->len);
}

/*
 * An undo that cannot reach its sites, or finds others there: those whose first byte was unmapped
 * meanwhile (dlclose), or is another module's by now, hold nothing of ours any more. Returns true
 * when there were some: the others are to be tried again.
 */
static bool forget_gone(struct tp_engine *engine, struct tp_batch *batch,
			const struct tp_pass *pass, const struct window *window)
{
	bool any = false;

	for (size_t i = window->first; i < window->last; i++) {
		struct tp_poke *poke = &batch->pokes[i];
		int error;

		if (!selected(poke, pass) &&
		    (poke->outcome != pass->to || poke->outcome == TP_SITE_RESTORED))
			continue;
		error = read_window(engine, batch, poke->addr, poke->addr + 1, engine->readback);
		if (error == -ENXIO || (!error && is_old_again(engine, batch, poke)))
			poke->outcome = TP_SITE_RESTORED;
		else if (error || is_still_ours(batch, pass, poke,
						*copy_of(engine->readback, poke->addr, poke->addr),
						tp_old_heads(poke)))
			continue;
		any = true;
	}
	return any;
}

/* Read, check, edit, write and read back one window. */
static int run_window(struct tp_engine *engine, struct tp_batch *batch, const struct tp_pass *pass,
		      const struct window *window)
{
	int error = read_window(engine, batch, window->start, window->end, engine->window);

	if (error == -ENXIO && is_undo(pass))
		return error;
	if (error)
		return blame_unreadable(engine, batch, pass, window);
	error = prepare_window(engine, batch, pass, window);
	if (!error && pass->edit != TP_EDIT_NONE)
		error = write_window(engine, batch, pass, window);
	return error;
}

/** Take every site that @pass is for through it, window by window, in address order. */
int tp_run_pass(struct tp_engine *engine, struct tp_batch *batch, const struct tp_pass *pass)
{
	/* With nobody to call, a written site is a finished one. */
	bool nobody = pass->call_finish && !batch->finish;
	struct tp_pass to_the_end = *pass;
	struct window window = { 0 };
	int error = 0, again = 0;

	if (nobody) {
		to_the_end.to = TP_SITE_DONE;
		pass = &to_the_end;
	}

	while (!error && window.last < batch->count) {
		window = next_window(engine, batch, pass, window.last);
		if (window.end) {
			error = run_window(engine, batch, pass, &window);
			if (error && is_undo(pass) && again++ < MOST_REMAPS &&
			    (forget_gone(engine, batch, pass, &window) || error == -ENXIO)) {
				batch->outcome->code = 0;
				window.last = window.first;
				error = 0;
				continue;
			}
			if (pass->edit == TP_EDIT_INT3 ||
			    (pass->edit == TP_EDIT_WHOLE && pass->phase != TP_PHASE_LOOK))
				batch->outcome->pages += window.pages;
		}
		if (!error && pass->call_finish && (!nobody || batch->skipped))
			error = finish_window(batch, pass, &window);
	}
	return error;
}
