/* SPDX-License-Identifier: Apache-2.0 */
/** @file The fetch model; see fetch.h. */
#include <assert.h>
#include <inttypes.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#include "fetch.h"

enum { STACK_WORDS = 64, STACK_TOP = 32, STACK_WORD = 0x5a5a, HANDLER_REACH = 0x123456 };

/** Count a violation; the first one is kept as text. */
void fetch_violate(struct fetch *fetch, const char *format, ...)
{
	va_list list;

	if (fetch->violations++)
		return;
	va_start(list, format);
	vsnprintf(fetch->text, sizeof(fetch->text), format, list);
	va_end(list);
}

/** Where a trapped thread continues when the site has a handler. */
uint64_t fetch_handler(const struct fetch_site *site)
{
	return site->spec->has_handler ? site->addr + HANDLER_REACH : 0;
}

/** Several instructions on the one side, a JMP on the other. */
bool fetch_is_window(const struct fetch_site *site)
{
	return site->old->heads || site->new_->heads;
}

/** Bytes 66 and 90 only, 90 last: NOPs wherever one begins to execute. */
bool fetch_is_nop_mix(const uint8_t *bytes, size_t len)
{
	size_t marks = 0;

	for (size_t i = 0; i < len; i++)
		marks += bytes[i] == 0x66 || bytes[i] == 0x90;
	return len && marks == len && bytes[len - 1] == 0x90;
}

static const uint8_t *memory_of(const struct fetch *fetch, const struct fetch_site *site)
{
	return fetch->rig->fake.bytes + site->spec->offset;
}

static void begin_direction(struct fetch_site *site)
{
	site->reached = site->left = false;
	site->nop_mix = fetch_is_nop_mix(site->old->bytes, site->spec->len) &&
			fetch_is_nop_mix(site->new_->bytes, site->spec->len);
}

static void settle(struct fetch *fetch, struct fetch_site *site)
{
	for (size_t i = 0; i < site->spec->len; i++) {
		site->values[i][0] = memory_of(fetch, site)[i];
		site->count[i] = 1;
	}
}

/** All cores see the memory as it is; every site has its first direction. */
void fetch_begin(struct fetch *fetch)
{
	for (size_t i = 0; i < fetch->count; i++) {
		struct fetch_site *site = &fetch->sites[i];

		site->old = &site->spec->code[0];
		site->new_ = &site->spec->code[1];
		site->trapped = site->is_foreign = false;
		site->trapped_heads = 0;
		site->is_busy = site->spec->is_busy;
		site->is_asked = true;
		begin_direction(site);
		settle(fetch, site);
	}
	fetch->emulated = 0;
	fetch->deaf_sync = SIZE_MAX;
	fetch->violations = 0;
}

/** The next batch takes @site the other way. */
void fetch_swap(struct fetch_site *site)
{
	const struct fetch_code *keep = site->old;

	site->old = site->new_;
	site->new_ = keep;
	begin_direction(site);
}

static void remember(struct fetch_site *site, size_t i, uint8_t value)
{
	for (size_t k = 0; k < site->count[i]; k++)
		if (site->values[i][k] == value)
			return;
	assert(site->count[i] < FETCH_VALUES);
	site->values[i][site->count[i]++] = value;
}

static bool holds_new(const struct fetch *fetch, const struct fetch_site *site)
{
	return !memcmp(memory_of(fetch, site), site->new_->bytes, site->spec->len);
}

static bool may_fetch(const struct fetch_site *site, size_t i, uint8_t value)
{
	return memchr(site->values[i], value, site->count[i]);
}

/* A thread that fetches the first of several instructions comes to stand at the later ones. */
static void enter_window(struct fetch_site *site)
{
	if (site->old->heads && may_fetch(site, 0, site->old->bytes[0]))
		site->left = false;
	if (site->new_->heads && may_fetch(site, 0, site->new_->bytes[0]))
		site->reached = true;
}

static void remember_write(struct fetch *fetch, uint64_t start, uint64_t end)
{
	for (size_t s = 0; s < fetch->count; s++) {
		struct fetch_site *site = &fetch->sites[s];

		if (site->spec->is_null || site->addr >= end ||
		    site->addr + site->spec->len <= start)
			continue;
		for (size_t i = 0; i < site->spec->len; i++)
			remember(site, i, memory_of(fetch, site)[i]);
		if (fetch->mode == TP_MODE_STOP)
			continue;
		site->reached |= holds_new(fetch, site);
		enter_window(site);
	}
}

static bool condition_holds(unsigned int condition, uint64_t flags)
{
	bool carry = flags & 1, parity = flags & 4, zero = flags & 0x40, sign = flags & 0x80,
	     overflow = flags & 0x800;
	const bool table[8] = { overflow,
				carry,
				zero,
				carry || zero,
				sign,
				parity,
				sign != overflow,
				zero || sign != overflow };

	return table[condition / 2] != condition % 2;
}

/* What the code of a site does to a thread that executes it; @stack is what rsp points to. */
static struct tp_frame execute(const struct fetch_site *site, const struct fetch_code *code,
			       struct tp_frame frame, uint64_t *stack)
{
	uint64_t next = site->addr + site->spec->len, target = site->addr + (uint64_t)code->reach;

	frame.rip = next;
	if (code->kind == TP_INSN_CALL) {
		frame.rsp -= 8;
		stack[-1] = next;
		frame.rip = target;
	} else if (code->kind == TP_INSN_JMP) {
		frame.rip = target;
	} else if (code->kind == TP_INSN_JCC && condition_holds(code->condition, frame.rflags)) {
		frame.rip = target;
	} else if (code->kind == TP_INSN_RET) {
		frame.rip = stack[0];
		frame.rsp += 8 + code->pops;
	}
	return frame;
}

static bool same_frame(const struct tp_frame *a, const struct tp_frame *b)
{
	return a->rip == b->rip && a->rsp == b->rsp && a->rflags == b->rflags;
}

/* What a thread must find after its trap: handler, new instruction, or old where new cannot be. */
static struct tp_frame expected_frame(const struct fetch_site *site, struct tp_frame frame,
				      uint64_t *stack)
{
	if (site->spec->has_handler) {
		frame.rip = fetch_handler(site);
		return frame;
	}
	return execute(site, site->new_->kind != TP_INSN_OTHER ? site->new_ : site->old, frame,
		       stack);
}

/* Every combination of the flags that a Jcc looks at comes by in turn. */
static uint64_t flags_of(uint64_t turn)
{
	return 2 | (turn & 1) | (turn & 2) << 1 | (turn & 4) << 4 | (turn & 8) << 4 |
	       (turn & 16) << 7;
}

/* Is the batch between its verification and its end, so that it counts traps? */
static bool is_writing(const struct fetch *fetch)
{
	return fetch->rig->engine.active ||
	       (fetch->mode != TP_MODE_INT3 && fetch->rig->fake.logged > fetch->verifying);
}

/* Where a thread must go on that trapped at a later head: in the copy of what it stood at. */
static struct tp_frame expected_at_head(const struct fetch_site *site, struct tp_frame frame,
					size_t head)
{
	frame.rip = site->addr + (uint64_t)site->new_->reach + site->spec->copies[head];
	return frame;
}

/* A thread has fetched an int3 at byte @head of the site, now or earlier, and comes to its handler. */
static void send_trap(struct fetch *fetch, struct fetch_site *site, size_t head)
{
	bool published = fetch->rig->engine.active && site->is_asked &&
			 (!head || site->old->heads >> head & 1);
	uint64_t stack[STACK_WORDS], want_stack[STACK_WORDS];
	struct tp_frame frame = { site->addr + head + 1, (uint64_t)&stack[STACK_TOP],
				  flags_of(fetch->turn++) };
	struct tp_frame want = frame;
	enum tp_trap_result result;

	for (size_t i = 0; i < STACK_WORDS; i++)
		stack[i] = want_stack[i] = STACK_WORD + i;
	if (!published)
		want.rip = site->addr + head;
	else if (head)
		want = expected_at_head(site, frame, head);
	else
		want = expected_frame(site, frame, &want_stack[STACK_TOP]);
	result = tp_trap(&fetch->rig->engine, &frame);
	if (result != (published ? TP_TRAP_EMULATED : TP_TRAP_LATE))
		fetch_violate(fetch, "site %#x: a trap at byte %zu %s gives %d", site->spec->offset,
			      head, published ? "while published" : "after the batch", result);
	else if (!same_frame(&frame, &want) || memcmp(stack, want_stack, sizeof(stack)))
		fetch_violate(fetch,
			      "site %#x: a thread trapped at byte %zu goes to site%+" PRId64
			      ", rsp%+" PRId64 ", flags %#" PRIx64 "; wanted site%+" PRId64,
			      site->spec->offset, head, (int64_t)(frame.rip - site->addr),
			      (int64_t)(frame.rsp - (uint64_t)&stack[STACK_TOP]), frame.rflags,
			      (int64_t)(want.rip - site->addr));
	fetch->counts.traps += published;
	fetch->counts.late_traps += !published;
	fetch->counts.head_traps += head && published;
	fetch->counts.late_head_traps += head && !published;
	fetch->emulated += result == TP_TRAP_EMULATED;
	fetch->late += result == TP_TRAP_LATE && is_writing(fetch);
}

/* Bytes of the instruction at byte @at. Of a window each is fetched by itself: who has executed one
 * stands at the next. The last one may reach beyond the site, into bytes that nobody writes. */
static size_t length_at(const struct fetch_code *code, size_t at, size_t len)
{
	size_t end = at + 1;

	while (code->heads && end < at + len && !(code->heads >> end & 1))
		end++;
	return code->heads ? end - at : len;
}

/* Right bytes in the middle of an instruction are wrong for a thread that stands there. */
static bool is_code_at(const struct fetch_code *code, size_t at, const uint8_t *mix, size_t len)
{
	return code->starts >> at & 1 && !memcmp(mix, code->bytes + at, length_at(code, at, len));
}

static bool is_right_at(const struct fetch_site *site, size_t at, const uint8_t *mix)
{
	size_t len = site->spec->len - at;

	return is_code_at(site->old, at, mix, len) || is_code_at(site->new_, at, mix, len) ||
	       (site->nop_mix && fetch_is_nop_mix(mix, len));
}

static void tell_mix(struct fetch *fetch, const struct fetch_site *site, size_t at,
		     const uint8_t *mix)
{
	char text[64] = "";
	size_t used = 0;

	for (size_t i = 0; i < site->spec->len - at; i++)
		used += (size_t)snprintf(text + used, sizeof(text) - used, " %02x", mix[i]);
	fetch_violate(fetch, "site %#x: a core at byte %zu may fetch%s, %spublished",
		      site->spec->offset, at, text, fetch->rig->engine.active ? "" : "not ");
}

/* All mixes of bytes [@at, len) whose first byte is value number @first; like an odometer. */
static void look_at_mixes(struct fetch *fetch, const struct fetch_site *site, size_t at,
			  uint8_t first)
{
	uint8_t turn[16] = { 0 }, mix[16];
	size_t len = site->spec->len - at, i;

	for (i = 1; i < len; i++)
		mix[i] = site->values[at + i][0];
	mix[0] = first;
	do {
		fetch->counts.mixes++;
		if (!is_right_at(site, at, mix)) {
			tell_mix(fetch, site, at, mix);
			return;
		}
		for (i = 1; i < len; i++) {
			turn[i] = (uint8_t)((turn[i] + 1) % site->count[at + i]);
			mix[i] = site->values[at + i][turn[i]];
			if (turn[i])
				break;
		}
	} while (i < len);
}

static void look_at_position(struct fetch *fetch, struct fetch_site *site, size_t at)
{
	bool is_head = at && site->is_asked && site->old->heads >> at & 1;

	fetch->counts.positions++;
	fetch->counts.heads += at && fetch_is_window(site);
	for (size_t v = 0; v < site->count[at]; v++) {
		uint8_t first = site->values[at][v];

		if ((at && !is_head) || first != TP_INT3) {
			look_at_mixes(fetch, site, at, first);
			continue;
		}
		fetch->counts.mixes++;
		site->trapped |= !at;
		site->trapped_heads |= (uint8_t)(is_head << at);
		if (!fetch->rig->engine.active)
			tell_mix(fetch, site, at, &(uint8_t[16]){ TP_INT3 }[0]);
	}
}

/** Look at every site now, for a thread at each place where one may be. */
void fetch_look(struct fetch *fetch)
{
	for (size_t s = 0; s < fetch->count; s++) {
		struct fetch_site *site = &fetch->sites[s];
		uint16_t starts = (site->left ? 0 : site->old->starts) |
				  (site->reached ? site->new_->starts : 0);

		if (site->spec->is_null || site->is_foreign)
			continue;
		look_at_position(fetch, site, 0);
		for (size_t at = 1; at < site->spec->len; at++)
			if (site->nop_mix || starts >> at & 1)
				look_at_position(fetch, site, at);
		if (site->trapped)
			send_trap(fetch, site, 0);
		for (size_t at = 1; at < site->spec->len; at++)
			if (site->trapped_heads >> at & 1)
				send_trap(fetch, site, at);
	}
}

/* Every core traps wherever it comes into the window, and within it. */
static bool is_closed(const struct fetch_site *site)
{
	for (size_t at = 0; at < site->spec->len; at++)
		if ((!at || site->old->heads >> at & 1) &&
		    (site->count[at] != 1 || site->values[at][0] != TP_INT3))
			return false;
	return true;
}

static void mark_busy(struct tp_batch *batch, size_t index)
{
	for (size_t i = 0; i < batch->count; i++)
		if (batch->pokes[i].index == index && batch->pokes[i].outcome == TP_SITE_INT3)
			batch->pokes[i].outcome = TP_SITE_BUSY;
}

/**
 * Somebody looks at the threads. Who is inside of a window, trapped or not, makes it busy; else it is
 * empty from now on, where nobody can come in any more. Where a core may still go in, threads do.
 */
void fetch_answer_look(struct fetch *fetch, struct tp_batch *batch)
{
	fetch->counts.looks++;
	for (size_t s = 0; s < fetch->count; s++) {
		struct fetch_site *site = &fetch->sites[s];

		if (site->spec->is_null || !site->is_asked || !site->old->heads)
			continue;
		if (site->is_busy) {
			fetch->counts.busy++;
			mark_busy(batch, s);
		} else if (is_closed(site)) {
			site->left = true;
			site->trapped_heads = 0;
		}
	}
}

/* An int3 that is no byte of either code: at the first byte, or at a later one of a window. */
static bool has_int3(const struct fetch *fetch, const struct fetch_site *site)
{
	const uint8_t *memory = memory_of(fetch, site);

	for (size_t at = 1; fetch_is_window(site) && at < site->spec->len; at++)
		if (memory[at] == TP_INT3 && site->old->bytes[at] != TP_INT3 &&
		    site->new_->bytes[at] != TP_INT3)
			return true;
	return memory[0] == TP_INT3;
}

/* The other modes never write an int3, so nothing has to be published for a handler. */
static void look_for_int3(struct fetch *fetch)
{
	if (fetch->rig->engine.active)
		fetch_violate(fetch, "a descriptor is published in mode %d", fetch->mode);
	for (size_t s = 0; s < fetch->count; s++) {
		const struct fetch_site *site = &fetch->sites[s];

		if (!site->spec->is_null && !site->is_foreign && has_int3(fetch, site))
			fetch_violate(fetch, "site %#x: an int3 in mode %d", site->spec->offset,
				      fetch->mode);
	}
}

/* Stopped threads stand in none of the sites, so those that hold new code are entered anew. */
static void let_go_on(struct fetch *fetch)
{
	for (size_t s = 0; s < fetch->count; s++) {
		struct fetch_site *site = &fetch->sites[s];

		if (site->spec->is_null || !site->is_asked || !holds_new(fetch, site))
			continue;
		site->reached = site->left = true;
		site->trapped_heads = 0;
	}
}

/**
 * A batch is over: threads that were stopped go on, and no core may fetch what was there before.
 * A broken engine promises the latter no more, and in stop mode nothing at all.
 */
void fetch_end(struct fetch *fetch)
{
	bool broken = fetch->rig->engine.broken;

	if (broken && fetch->mode == TP_MODE_STOP)
		return;
	if (fetch->mode == TP_MODE_STOP)
		let_go_on(fetch);
	fetch_look(fetch);
	for (size_t s = 0; !broken && s < fetch->count; s++) {
		const struct fetch_site *site = &fetch->sites[s];

		for (size_t i = 0; i < site->spec->len; i++)
			if (!site->spec->is_null && !site->is_foreign && site->count[i] > 1)
				fetch_violate(fetch, "site %#x: a core may be behind at byte %zu",
					      site->spec->offset, i);
	}
}

/** One operation of the engine has been done. */
void fetch_after(struct fetch *fetch, const struct fake_op *op)
{
	const struct fake *fake = &fetch->rig->fake;

	fetch->counts.operations++;
	if (op->kind == FAKE_WRITE && op->result > 0)
		remember_write(fetch, op->addr, op->addr + (uint64_t)op->result);
	if (op->kind == FAKE_SYNC && !op->result && fake->count[FAKE_SYNC] - 1 != fetch->deaf_sync)
		for (size_t s = 0; s < fetch->count; s++)
			settle(fetch, &fetch->sites[s]);
	if (fetch->mode != TP_MODE_INT3)
		look_for_int3(fetch);
	if (fetch->mode != TP_MODE_STOP)
		fetch_look(fetch);
}
