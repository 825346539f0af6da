/* SPDX-License-Identifier: Apache-2.0 */
/**
 * @file
 * The conditional branches of functions, and which whole instructions around each can give way to a
 * JMP. Unlike an entry, the middle of a function may be data: a branch counts only if it is an
 * instruction both by decoding from the entry on and by following the code that leads to it.
 *
 * A window begins at the branch or a few instructions before it, and nothing may go to any later
 * instruction in it. All branches in it are counted by one stub.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "flags.h"
#include "insn.h"
#include "survey.h"
#include "textpoke.h"

enum {
	JUMP_BYTES = 5,
	MOST_BACK = 3, /* instructions before the branch that may begin its window */
	SWEPT = 0x10,  /* of a byte's state; the low four bits are an instruction's length */
	QUEUED = 0x20,
	REACHED = 0x40,
	LENGTH = 0x0f,
	NOTRACK = 0x3e,
	MOST_FUNCTION = 64 << 20,
	FEW_ROWS = 1024,
};

/* What goes to a byte of code, beside what falls through to it. */
enum goes {
	GOES_BRANCH = 1 << 0,
	GOES_POINTER = 1 << 1,
	GOES_NAMED = 1 << 2,
};

/* One instruction that was reached. */
struct step {
	uint32_t offset;
	uint8_t length;
	uint8_t flow;
	uint8_t goes;  /* enum goes, to its first byte */
	uint8_t inner; /* the same, to the bytes behind that */
	uint32_t row;  /* of a branch */
};

struct finder {
	const struct tp_survey *in;
	struct tp_branches *out;
	struct tp_goes goes;
	uint64_t *first_bit; /* of each piece of code */
	uint64_t row_room;
	uint64_t window_room;
	/* the function at hand */
	const uint8_t *code;
	uint64_t vaddr;
	uint64_t bytes;	  /* of it */
	uint64_t free_to; /* up to here no other function begins */
	uint64_t room;	  /* until the piece ends */
	uint64_t bit;
	uint32_t function;
	uint8_t at;	/* nothing before this offset may change */
	bool has_bytes; /* its symbol says where it ends */
	bool doubtful;	/* code that was reached cannot be decoded */
	bool computes;	/* it jumps to an address that it has computed */
	uint8_t *states;
	uint64_t state_room;
	uint32_t *queue; /* each offset once at most */
	uint64_t queued;
	struct step *steps;
	uint64_t step_count;
	uint64_t taken_to;  /* offset where the last window ends */
	uint64_t last_step; /* where that begins */
};

static int grow(void **array, uint64_t *room, uint64_t count, size_t bytes)
{
	uint64_t wanted = *room ? *room : FEW_ROWS;
	void *fresh;

	if (count < *room)
		return 0;
	while (wanted <= count)
		wanted *= 2;
	fresh = realloc(*array, wanted * bytes);
	if (!fresh)
		return -ENOMEM;
	*array = fresh;
	*room = wanted;
	return 0;
}

static bool bit_of(const uint64_t *bits, uint64_t bit)
{
	return bits[bit / 64] >> bit % 64 & 1;
}

static unsigned int goes_to(const struct finder *finder, uint64_t offset)
{
	uint64_t bit = finder->bit + offset;

	if (offset >= finder->room)
		return 0;
	return (bit_of(finder->goes.branches, bit) ? GOES_BRANCH : 0u) |
	       (bit_of(finder->goes.pointers, bit) ? GOES_POINTER : 0u) |
	       (bit_of(finder->goes.named, bit) ? GOES_NAMED : 0u);
}

static struct tp_decoded decode_at(const struct finder *finder, uint64_t offset)
{
	return tp_decode(finder->code + offset, finder->bytes - offset);
}

/* Lay out function @i; false: it has no code. */
static bool open_function(struct finder *finder, uint32_t i)
{
	const struct tp_survey *in = finder->in;
	const struct tp_function *function = &in->functions[i];
	uint64_t next = i + 1 < in->function_count ? in->functions[i + 1].vaddr : UINT64_MAX;
	const struct tp_piece *piece = NULL;
	uint64_t offset;

	for (uint64_t k = 0; k < in->code_count; k++)
		if (function->vaddr - in->code[k].vaddr < in->code[k].count) {
			piece = &in->code[k];
			finder->bit = finder->first_bit[k];
		}
	if (!piece)
		return false;
	offset = function->vaddr - piece->vaddr;
	finder->code = piece->bytes + offset;
	finder->room = piece->count - offset;
	finder->bit += offset;
	finder->vaddr = function->vaddr;
	finder->function = i;
	finder->at = function->at;
	finder->has_bytes = function->bytes != 0;
	finder->doubtful = finder->computes = false;
	finder->free_to = next - function->vaddr;
	if (finder->free_to > finder->room)
		finder->free_to = finder->room;
	finder->bytes = finder->free_to;
	if (finder->has_bytes && function->bytes < finder->bytes)
		finder->bytes = function->bytes;
	return finder->bytes <= MOST_FUNCTION;
}

static int make_room(struct finder *finder)
{
	uint64_t queue_room = finder->state_room, step_room = finder->state_room;
	int error = 0;

	if (finder->bytes >= finder->state_room) {
		error = grow((void **)&finder->queue, &queue_room, finder->bytes,
			     sizeof(*finder->queue));
		if (!error)
			error = grow((void **)&finder->steps, &step_room, finder->bytes,
				     sizeof(*finder->steps));
		if (!error)
			error = grow((void **)&finder->states, &finder->state_room, finder->bytes,
				     sizeof(*finder->states));
	}
	if (!error)
		memset(finder->states, 0, finder->bytes);
	return error;
}

/* Two zero bytes or more are no code. */
static uint64_t zeros_at(const struct finder *finder, uint64_t offset)
{
	uint64_t end = offset;

	while (end < finder->bytes && !finder->code[end])
		end++;
	return end - offset > 1 ? end - offset : 0;
}

/* Where instructions begin when all is decoded one behind the other, as in survey.c. */
static void sweep(struct finder *finder)
{
	uint64_t length;

	for (uint64_t offset = 0; offset < finder->bytes; offset += length) {
		struct tp_decoded insn = decode_at(finder, offset);

		length = zeros_at(finder, offset);
		if (length)
			continue;
		length = insn.length;
		if (length)
			finder->states[offset] = (uint8_t)(SWEPT | length);
		else
			length = 1;
	}
}

static void enqueue(struct finder *finder, uint64_t offset)
{
	if (offset >= finder->bytes || !(finder->states[offset] & SWEPT) ||
	    finder->states[offset] & QUEUED)
		return;
	finder->states[offset] |= QUEUED;
	finder->queue[finder->queued++] = (uint32_t)offset;
}

/*
 * What leads into the function: its entry, and all that survey.c has found in tables. The rest of a
 * function that compilers have split off is entered by branches from anywhere.
 */
static void enqueue_ways_in(struct finder *finder)
{
	unsigned int ways = finder->has_bytes ? GOES_POINTER : 0;

	if (finder->in->functions[finder->function].flags & TP_FUNCTION_COLD)
		ways |= GOES_BRANCH;
	finder->queued = 0;
	enqueue(finder, 0);
	for (uint64_t offset = 1; ways && offset < finder->bytes; offset++)
		if (goes_to(finder, offset) & ways)
			enqueue(finder, offset);
}

/* A jump to what a register holds, which was a sum just before; or one marked as a jump by table. */
static bool is_computed(const struct finder *finder, uint64_t offset, const struct tp_decoded *insn,
			const struct tp_decoded *before, uint64_t before_at)
{
	const uint8_t *code = finder->code + offset;
	uint8_t opcode;

	if (insn->flow != TP_FLOW_JMP_INDIRECT)
		return false;
	if (memchr(code, NOTRACK, insn->opcode_at))
		return true;
	if (code[insn->modrm_at] < 0xc0 || !before->length)
		return false;
	opcode = finder->code[before_at + before->opcode_at];
	return opcode == 0x01 || opcode == 0x03 || opcode == 0x29 || opcode == 0x2b ||
	       (before->is_lea && !before->rip_relative);
}

/* Follow the code from @offset on, until it ends or has been seen. */
static void follow(struct finder *finder, uint64_t offset)
{
	struct tp_decoded before = { 0 }, insn;
	uint64_t before_at = 0;

	while (offset < finder->bytes && !(finder->states[offset] & REACHED)) {
		if (!(finder->states[offset] & SWEPT)) {
			finder->doubtful = true;
			return;
		}
		insn = decode_at(finder, offset);
		finder->states[offset] |= REACHED | QUEUED;
		if (insn.flow == TP_FLOW_JMP || insn.flow == TP_FLOW_JCC ||
		    insn.flow == TP_FLOW_LOOP || insn.flow == TP_FLOW_XBEGIN)
			enqueue(finder, tp_branch_target(finder->code + offset, &insn, offset));
		if (is_computed(finder, offset, &insn, &before, before_at))
			finder->computes = true;
		if (tp_ends_code(&insn) || insn.flow == TP_FLOW_STOP) /* ud2, hlt, int3 */
			return;
		before = insn;
		before_at = offset;
		offset += insn.length;
	}
}

static int add_row(struct finder *finder, const struct tp_decoded *insn, uint64_t offset)
{
	struct tp_branches *out = finder->out;
	struct tp_branch *row;
	uint64_t target;

	if (out->count >= UINT32_MAX ||
	    grow((void **)&out->rows, &finder->row_room, out->count, sizeof(*out->rows)))
		return -ENOMEM;
	row = &out->rows[out->count++];
	target = tp_branch_target(finder->code + offset, insn, finder->vaddr + offset);
	*row = (struct tp_branch){
		.vaddr = finder->vaddr + offset,
		.target = target,
		.function = finder->function,
		.length = insn->length,
		.reason = TP_REFUSE_UNREACHED,
	};
	if (!tp_flags_are_dead(finder->code + offset + insn->length,
			       finder->room - offset - insn->length))
		row->live |= TP_LIVE_NOT_TAKEN;
	if (target - finder->vaddr >= finder->room ||
	    !tp_flags_are_dead(finder->code + (target - finder->vaddr),
			       finder->room - (target - finder->vaddr)))
		row->live |= TP_LIVE_TAKEN;
	return 0;
}

/* Write down what was reached; also the branches that were not. */
static int collect_steps(struct finder *finder)
{
	struct tp_decoded insn;

	finder->step_count = 0;
	for (uint64_t offset = 0; offset < finder->bytes; offset++) {
		struct step step = { .offset = (uint32_t)offset };

		if (!(finder->states[offset] & SWEPT))
			continue;
		insn = decode_at(finder, offset);
		step.length = insn.length;
		step.flow = insn.flow;
		step.row = (uint32_t)finder->out->count;
		if ((insn.flow == TP_FLOW_JCC || insn.flow == TP_FLOW_LOOP) &&
		    add_row(finder, &insn, offset))
			return -ENOMEM;
		if (!(finder->states[offset] & REACHED))
			continue;
		step.goes = (uint8_t)goes_to(finder, offset);
		for (uint64_t i = offset + 1; i < offset + insn.length; i++)
			step.inner |= (uint8_t)goes_to(finder, i);
		finder->steps[finder->step_count++] = step;
	}
	return 0;
}

static bool is_branch(const struct step *step)
{
	return step->flow == TP_FLOW_JCC || step->flow == TP_FLOW_LOOP;
}

static bool ends_here(const struct step *step)
{
	return step->flow == TP_FLOW_RET || step->flow == TP_FLOW_JMP ||
	       step->flow == TP_FLOW_JMP_INDIRECT;
}

static enum tp_refusal refuse_goes(unsigned int goes)
{
	if (goes & GOES_BRANCH)
		return TP_REFUSE_BRANCH;
	return goes ? TP_REFUSE_TABLE : TP_REFUSE_NOTHING;
}

/* Does the instruction read or name bytes of the JMP that stands at @start? */
static bool names_window(const struct finder *finder, const struct tp_decoded *insn,
			 uint64_t offset, uint64_t start)
{
	int32_t displacement;

	if (!insn->rip_relative)
		return false;
	memcpy(&displacement, finder->code + offset + insn->disp_at, sizeof(displacement));
	return offset + insn->length + (uint64_t)(int64_t)displacement - start < JUMP_BYTES;
}

/* The code ends before there are five bytes: is what follows nobody's? */
static enum tp_refusal refuse_padding(const struct finder *finder, uint64_t start, uint64_t offset)
{
	while (offset < start + JUMP_BYTES) {
		const uint8_t *code = finder->code + offset;
		struct tp_decoded insn;

		if (offset >= finder->free_to || goes_to(finder, offset) ||
		    (offset < finder->bytes && finder->states[offset] & REACHED))
			return TP_REFUSE_SHORT;
		if (*code == 0xcc) {
			offset++;
			continue;
		}
		insn = tp_decode(code, finder->free_to - offset);
		if (!insn.length || !tp_is_nop(code, &insn))
			return TP_REFUSE_SHORT;
		for (uint64_t i = offset + 1; i < offset + insn.length && i < start + JUMP_BYTES;
		     i++)
			if (goes_to(finder, i))
				return TP_REFUSE_SHORT;
		offset += insn.length;
	}
	return TP_REFUSE_NOTHING;
}

/* May @step be in the window, behind what is in it already? */
static enum tp_refusal refuse_step(const struct finder *finder, const struct step *step,
				   const struct tp_branch_window *window, bool last)
{
	const uint8_t *code = finder->code + step->offset;
	uint64_t start = window->vaddr - finder->vaddr;
	struct tp_decoded insn = decode_at(finder, step->offset);
	enum tp_refusal refusal = tp_refuse_insn(code, &insn, last);

	if (!refusal && window->bytes)
		refusal = refuse_goes(step->goes);
	/* Who comes into the midst of an instruction that stays as it is does what he always did. */
	if (!refusal && window->bytes < JUMP_BYTES)
		refusal = refuse_goes(step->inner);
	if (!refusal && finder->computes && (window->bytes || !last))
		refusal = TP_REFUSE_JUMPS;
	if (!refusal && names_window(finder, &insn, step->offset, start))
		refusal = TP_REFUSE_MOVE;
	if (!refusal && is_branch(step) && memchr(code, 0x66, insn.opcode_at))
		refusal = TP_REFUSE_MOVE;
	return refusal;
}

static void add_step(struct finder *finder, const struct step *step,
		     struct tp_branch_window *window)
{
	if (window->bytes && window->bytes < JUMP_BYTES)
		window->heads |= (uint8_t)(1u << window->bytes);
	if (is_branch(step)) {
		if (!window->count)
			window->first = step->row;
		window->live |= (uint8_t)(finder->out->rows[step->row].live << 2 * window->count);
		window->count++;
	}
	window->bytes += step->length;
}

/* A window from step @s on that holds step @j, a branch. */
static enum tp_refusal try_window(struct finder *finder, uint64_t s, uint64_t j,
				  struct tp_branch_window *window)
{
	const struct step *step;
	enum tp_refusal refusal;

	*window = (struct tp_branch_window){ .vaddr = finder->vaddr + finder->steps[s].offset };
	for (uint64_t i = s; i <= j || window->bytes < JUMP_BYTES; i++) {
		uint64_t end = finder->steps[s].offset + window->bytes;
		bool last;

		step = &finder->steps[i];
		if (i == finder->step_count)
			return TP_REFUSE_SHORT;
		if (step->offset != end)
			return end >= finder->bytes ? TP_REFUSE_SHORT : TP_REFUSE_DECODE;
		if (window->bytes + step->length > TP_MOST_BRANCH_WINDOW ||
		    (is_branch(step) && window->count == TP_MOST_WINDOW_BRANCHES))
			return TP_REFUSE_FULL;
		last = i >= j && window->bytes + step->length >= JUMP_BYTES;
		refusal = refuse_step(finder, step, window, last);
		if (refusal)
			return refusal;
		add_step(finder, step, window);
		if (!ends_here(step))
			continue;
		if (i < j)
			return TP_REFUSE_SHORT;
		if (window->bytes < JUMP_BYTES) {
			window->bytes = JUMP_BYTES;
			return refuse_padding(finder, finder->steps[s].offset, end + step->length);
		}
	}
	return TP_REFUSE_NOTHING;
}

/* Of the windows that can hold step @j the first that changes one instruction only, else the first. */
static enum tp_refusal choose_window(struct finder *finder, uint64_t j, uint64_t *start,
				     struct tp_branch_window *window)
{
	enum tp_refusal refusal = TP_REFUSE_SHORT, first = TP_REFUSE_NOTHING;
	struct tp_branch_window fresh;
	bool found = false;

	for (uint64_t s = j; j - s <= MOST_BACK; s--) {
		const struct step *step = &finder->steps[s];

		if (step->offset < finder->at || step->offset < finder->taken_to)
			break;
		if (s < j && step->offset + step->length != finder->steps[s + 1].offset)
			break;
		refusal = try_window(finder, s, j, &fresh);
		if (s == j)
			first = refusal;
		if (!refusal && (!found || !fresh.heads)) {
			found = true;
			*window = fresh;
			*start = s;
		}
		if ((found && !window->heads) || !s)
			break;
	}
	return found ? TP_REFUSE_NOTHING : first ? first : refusal;
}

static int keep_window(struct finder *finder, uint64_t start, const struct tp_branch_window *window,
		       bool again)
{
	struct tp_branches *out = finder->out;

	if (again)
		out->window_count--;
	if (grow((void **)&out->windows, &finder->window_room, out->window_count,
		 sizeof(*out->windows)))
		return -ENOMEM;
	out->windows[out->window_count++] = *window;
	for (uint32_t i = 0; i < window->count; i++)
		out->rows[window->first + i].reason = TP_REFUSE_NOTHING;
	finder->last_step = start;
	finder->taken_to = window->vaddr - finder->vaddr + window->bytes;
	return 0;
}

static int choose_windows(struct finder *finder)
{
	struct tp_branch_window window;
	uint64_t start = 0;
	bool any = false;

	finder->taken_to = 0;
	for (uint64_t j = 0; j < finder->step_count; j++) {
		const struct step *step = &finder->steps[j];
		struct tp_branch *row = &finder->out->rows[step->row];
		enum tp_refusal refusal;
		bool again = false;

		if (!is_branch(step))
			continue;
		if (step->offset < finder->taken_to) /* it is in the last window */
			continue;
		refusal = finder->doubtful ? TP_REFUSE_DECODE :
					     choose_window(finder, j, &start, &window);
		/* The last window may reach as far as this one. */
		if (refusal && any && !finder->doubtful &&
		    !try_window(finder, finder->last_step, j, &window)) {
			again = true;
			start = finder->last_step;
			refusal = TP_REFUSE_NOTHING;
		}
		row->reason = (uint8_t)refusal;
		if (refusal)
			continue;
		if (keep_window(finder, start, &window, again))
			return -ENOMEM;
		any = true;
	}
	return 0;
}

static void refuse_all(struct finder *finder, uint64_t first, enum tp_refusal reason)
{
	for (uint64_t i = first; i < finder->out->count; i++)
		finder->out->rows[i].reason = (uint8_t)reason;
}

/* A table that was found leads to some place in the function. */
static bool has_table(const struct finder *finder)
{
	for (uint64_t i = 0; i < finder->step_count; i++)
		if (finder->steps[i].offset && finder->steps[i].goes & GOES_POINTER)
			return true;
	return false;
}

static int find_in(struct finder *finder, uint32_t i)
{
	uint8_t flags = finder->in->functions[i].flags;
	uint64_t first = finder->out->count;
	int error;

	if (!open_function(finder, i))
		return 0;
	error = make_room(finder);
	if (error)
		return error;
	sweep(finder);
	enqueue_ways_in(finder);
	while (finder->queued)
		follow(finder, finder->queue[--finder->queued]);
	error = collect_steps(finder);
	if (error)
		return error;
	if (has_table(finder))
		finder->computes = false;
	if (flags & (TP_FUNCTION_GO | TP_FUNCTION_SIGRETURN)) {
		refuse_all(finder, first,
			   flags & TP_FUNCTION_GO ? TP_REFUSE_GO : TP_REFUSE_SIGRETURN);
		return 0;
	}
	return choose_windows(finder);
}

static int open_bitmaps(struct finder *finder)
{
	const struct tp_survey *in = finder->in;
	uint64_t bits = 0;

	finder->first_bit = calloc(in->code_count + 1, sizeof(*finder->first_bit));
	if (!finder->first_bit)
		return -ENOMEM;
	for (uint64_t i = 0; i < in->code_count; i++) {
		if (in->code[i].count > UINT64_MAX / 2 - bits) /* tp_survey() would refuse it */
			return -EINVAL;
		finder->first_bit[i] = bits;
		bits += in->code[i].count;
	}
	finder->goes.branches = calloc(bits / 64 + 1, sizeof(uint64_t));
	finder->goes.pointers = calloc(bits / 64 + 1, sizeof(uint64_t));
	finder->goes.named = calloc(bits / 64 + 1, sizeof(uint64_t));
	return finder->goes.branches && finder->goes.pointers && finder->goes.named ? 0 : -ENOMEM;
}

static void close_finder(struct finder *finder)
{
	free(finder->first_bit);
	free(finder->goes.branches);
	free(finder->goes.pointers);
	free(finder->goes.named);
	free(finder->states);
	free(finder->queue);
	free(finder->steps);
}

/**
 * Survey a module (see tp_survey()) and find the conditional branches of the functions with the
 * indexes @functions, in this order. Give @out back with tp_free_branches(), whatever is returned.
 */
int tp_find_branches(const struct tp_survey *in, const uint32_t *functions, uint64_t function_count,
		     struct tp_branches *out)
{
	struct finder finder = { .in = in, .out = out };
	struct tp_survey survey = *in;
	struct tp_surveyed surveyed;
	int error;

	*out = (struct tp_branches){ 0 };
	error = open_bitmaps(&finder);
	survey.goes = &finder.goes;
	if (!error)
		error = tp_survey(&survey, &surveyed);
	for (uint64_t i = 0; !error && i < function_count; i++)
		error = functions[i] < in->function_count ? find_in(&finder, functions[i]) :
							    -EINVAL;
	close_finder(&finder);
	return error;
}

void tp_free_branches(struct tp_branches *branches)
{
	free(branches->rows);
	free(branches->windows);
	*branches = (struct tp_branches){ 0 };
}
