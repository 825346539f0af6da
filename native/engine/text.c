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

/*
 * May a site on @page go into the window that so far ends on @last_page? An undo goes page by page, and
 * writes nothing but what it changes there: where a module was closed meanwhile, another may be by now,
 * and yet another a moment later. A page on which a site holds bytes of ours is ours.
 */
static bool joins(const struct tp_engine *engine, const struct tp_pass *pass,
		  const struct window *window, uint64_t last_page, uint64_t page)
{
	return !tp_is_undo(pass) && page == last_page + 1 && window->pages < engine->window_pages &&
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

		if (batch->is_mixed || tp_kind(poke) != last_kind) {
			if (!tp_selected(poke, pass))
				continue;
			last_kind = tp_kind(poke);
		}
		if (!last) {
			window.start = poke->addr;
			window.blame = i;
		}
		if (!last || page != last_page) {
			if (last && !joins(engine, pass, &window, last_page, page))
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
		window.write_end = last->addr + tp_int3_span(last, pass);
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

		if (tp_selected(poke, pass) &&
		    read_window(engine, batch, poke->addr, poke->addr + poke->len,
				engine->copies->readback))
			return tp_fail(batch, pass->phase, -EFAULT, i);
	}
	return tp_fail(batch, pass->phase, -EFAULT, window->blame);
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

		if (!error && !batch->is_mixed && tp_kind(poke) == last_kind) {
			poke->outcome = pass->to;
			done++;
			continue;
		}
		if (!tp_selected(poke, pass))
			continue;
		last_kind = tp_kind(poke);
		if (error) {
			tp_edit_range(poke, pass, &from, &to);
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
	const uint8_t *wrote = copy_of(engine->copies->window, window->start, window->write_start);
	const uint8_t *found =
		copy_of(engine->copies->readback, window->write_start, window->write_start);
	size_t bytes = window->write_end - window->write_start;

	int error = read_window(engine, batch, window->write_start, window->write_end,
				engine->copies->readback);

	if (error == -ENXIO && tp_is_undo(pass))
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

		tp_edit_range(poke, pass, &from, &to);
		if (poke->outcome != pass->to || poke->addr + from < window->write_start ||
		    poke->addr + to > window->write_end || is_strangers(poke, pass, found[at]))
			continue;
		for (size_t k = from; k < to; k++)
			if (found[at + k] != wrote[at + k])
				return tp_fail(batch, pass->phase, -TP_EVERIFY, i);
	}
	return 0;
}

/* Write [start, *@end) of the edited copy. Where that fails, *@end is how far it came. */
static int write_span(struct tp_engine *engine, struct tp_batch *batch, const struct window *window,
		      uint64_t start, uint64_t *end)
{
	size_t bytes = *end - start;
	long done;

	batch->outcome->writes++;
	done = engine->ops->write(engine->ctx, start,
				  copy_of(engine->copies->window, window->start, start), bytes);
	*end = start + (uint64_t)(done > 0 ? done : 0);
	return done < 0 ? (int)done : (size_t)done < bytes ? -EIO : 0;
}

/* The bytes of [*@start, *@end) from the first to the last that the edit has changed; false: none. */
static bool find_changes(const struct tp_engine *engine, const struct window *window,
			 uint64_t *start, uint64_t *end)
{
	const uint8_t *edited = copy_of(engine->copies->window, window->start, window->start);
	const uint8_t *found = copy_of(engine->copies->readback, window->start, window->start);

	while (*start < *end && edited[*start - window->start] == found[*start - window->start])
		++*start;
	while (*start < *end && edited[*end - 1 - window->start] == found[*end - 1 - window->start])
		--*end;
	return *start < *end;
}

static int write_window(struct tp_engine *engine, struct tp_batch *batch,
			const struct tp_pass *pass, const struct window *window)
{
	uint64_t start = window->write_start, end = window->write_end;
	int error;

	/* Tails of one-byte flips; or an undo finds nothing of ours, or all as it was. */
	if (!end || (tp_is_undo(pass) && !find_changes(engine, window, &start, &end)))
		return advance_sites(batch, pass, window, UINT64_MAX, 0);
	error = write_span(engine, batch, window, start, &end);
	error = advance_sites(batch, pass, window, error ? end : UINT64_MAX, error);
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
	const uint8_t *found = copy_of(engine->copies->readback, poke->addr, poke->addr);

	return !read_window(engine, batch, poke->addr, poke->addr + poke->len,
			    engine->copies->readback) &&
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

		if (!tp_selected(poke, pass) &&
		    (poke->outcome != pass->to || poke->outcome == TP_SITE_RESTORED))
			continue;
		error = read_window(engine, batch, poke->addr, poke->addr + 1,
				    engine->copies->readback);
		if (error == -ENXIO || (!error && is_old_again(engine, batch, poke)))
			poke->outcome = TP_SITE_RESTORED;
		else if (error || tp_is_still_ours(batch, pass, poke,
						   *copy_of(engine->copies->readback, poke->addr,
							    poke->addr),
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
	const struct tp_copy copy = { window->first, window->last, window->start,
				      copy_of(engine->copies->window, window->start,
					      window->start) };
	int error = read_window(engine, batch, window->start, window->end, engine->copies->window);

	if (error == -ENXIO && tp_is_undo(pass))
		return error;
	if (error)
		return blame_unreadable(engine, batch, pass, window);
	if (tp_is_undo(pass)) /* what it changes is told by what was there */
		__builtin_memcpy(copy_of(engine->copies->readback, window->start, window->start),
				 copy.bytes, window->end - window->start);
	error = tp_edit_sites(batch, pass, &copy);
	if (!error && pass->edit != TP_EDIT_NONE)
		error = write_window(engine, batch, pass, window);
	return error;
}

/** Take every site that @pass is for through it, window by window, in address order. */
int tp_run_pass(struct tp_engine *engine, struct tp_batch *batch, const struct tp_pass *pass)
{
	/* With nobody to call, a written site is a finished one. */
	bool nobody = pass->call_finish && !batch->finish;
	struct tp_known *known = tp_known_begin(engine, batch);
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
			if (error && tp_is_undo(pass) && again++ < MOST_REMAPS &&
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
		if (!error && pass->call_finish) /* now, while the pokes are in the cache */
			known = tp_known_commit(batch, window.first, window.last, known);
	}
	return error;
}
