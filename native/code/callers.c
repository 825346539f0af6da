/* SPDX-License-Identifier: Apache-2.0 */
/**
 * @file
 * Code whose calls' returns may be redirected. Not what has no unwind entries: no compiler of C writes
 * such, and the runtime that has made it (V8 embeds a megabyte) reads its frames by itself. Nor
 * functions whose return addresses stand in data: a runtime finds its frames by them (OCaml).
 */
#include <errno.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>

#include "textpoke.h"

#define PADDING 256 /* between functions; and what people write in assembly */
/* Of pointers into functions, return addresses: a label behind a call that never returns is one, too. */
#define LEAST_LISTED 16
#define LEAST_SHARE 8
#define LEAST_STRETCH 1024 /* among functions of such a runtime: one that calls nobody */

struct function {
	uint64_t start;
	uint64_t end;
	uint32_t labels; /* pointers into it */
	uint32_t listed; /* those behind a CALL */
};

struct search {
	const struct tp_tables *in;
	struct function *functions;
	uint64_t count;
	uint64_t labels;
	uint64_t listed;
};

static int by_start(const void *a, const void *b)
{
	const struct function *one = a, *other = b;

	return (one->start > other->start) - (one->start < other->start);
}

static struct function *function_at(const struct search *search, uint64_t vaddr)
{
	uint64_t low = 0, high = search->count;

	while (low < high) {
		uint64_t middle = low + (high - low) / 2;

		if (search->functions[middle].start <= vaddr)
			low = middle + 1;
		else
			high = middle;
	}
	if (!low || vaddr >= search->functions[low - 1].end)
		return NULL;
	return &search->functions[low - 1];
}

/* The @count bytes before @vaddr, or NULL. */
static const uint8_t *code_before(const struct tp_tables *in, uint64_t vaddr, uint64_t count)
{
	for (uint64_t i = 0; i < in->code_count; i++) {
		const struct tp_piece *piece = &in->code[i];

		if (vaddr >= piece->vaddr + count && vaddr - piece->vaddr <= piece->count)
			return piece->bytes + (vaddr - piece->vaddr) - count;
	}
	return NULL;
}

/* FF /2, of a register or of memory: how long its ModRM byte makes it; 0: not a CALL. */
static uint32_t indirect_bytes(const uint8_t *code)
{
	uint8_t mod = code[1] >> 6, rm = code[1] & 7;
	bool has_sib = mod != 3 && rm == 4;

	if (code[0] != 0xff || (code[1] >> 3 & 7) != 2)
		return 0;
	if (mod == 0)
		return 2 + has_sib + (rm == 5 || (has_sib && (code[2] & 7) == 5) ? 4 : 0);
	return 2 + has_sib + (mod == 1 ? 1 : mod == 2 ? 4 : 0);
}

static bool is_behind_call(const struct tp_tables *in, uint64_t vaddr)
{
	const uint8_t *before = code_before(in, vaddr, 7);

	if (!before)
		return false;
	if (before[2] == 0xe8)
		return true;
	for (uint32_t bytes = 2; bytes <= 7; bytes++)
		if (indirect_bytes(before + 7 - bytes) == bytes)
			return true;
	return false;
}

static void count_pointer(struct search *search, uint64_t vaddr)
{
	struct function *function = function_at(search, vaddr);

	if (!function || function->start == vaddr)
		return;
	function->labels++;
	search->labels++;
	if (!is_behind_call(search->in, vaddr))
		return;
	function->listed++;
	search->listed++;
}

/* Of a program at a fixed address: its pointers are plain numbers. */
static void count_words(struct search *search)
{
	for (uint64_t i = 0; i < search->in->data_count; i++) {
		const struct tp_piece *piece = &search->in->data[i];
		uint64_t at = -piece->vaddr & 7, word;

		for (; at + sizeof(word) <= piece->count; at += sizeof(word)) {
			memcpy(&word, piece->bytes + at, sizeof(word));
			count_pointer(search, word);
		}
	}
}

static bool is_walked(const struct search *search, const struct function *function)
{
	return search->listed >= LEAST_LISTED && search->listed >= search->labels / LEAST_SHARE &&
	       2 * function->listed > function->labels;
}

static void put(struct tp_range range, struct tp_range *rows, uint64_t room, uint64_t *count)
{
	if (*count < room)
		rows[*count] = range;
	++*count;
}

/* Stretches of functions; who is walked ends one, and short ones beside them call nobody. */
static void join(const struct search *search, struct tp_range *rows, uint64_t room, uint64_t *count)
{
	struct tp_range range = { 0 };
	bool beside = false;

	for (uint64_t i = 0; i <= search->count; i++) {
		const struct function *one = &search->functions[i];
		bool ends = i == search->count, walked = !ends && is_walked(search, one);

		if (!ends && !walked && range.end && one->start <= range.end + PADDING) {
			range.end = one->end > range.end ? one->end : range.end;
			continue;
		}
		if (range.end && (range.end - range.start >= LEAST_STRETCH || !(beside && walked)))
			put(range, rows, room, count);
		beside = walked || (beside && !range.end);
		range = ends || walked ? (struct tp_range){ 0 } :
					 (struct tp_range){ one->start, one->end };
	}
}

/**
 * Find the stretches of code whose calls may be followed, in the order of their addresses.
 * @in: frames, code and, for @absolute programs, data are looked at.
 * @targets: what relocations put into data (tp_read_targets()).
 * @rows takes the first @room stretches, @count says how many there are: none without unwind entries.
 * @return 0 or -ENOMEM.
 */
int tp_find_callers(const struct tp_tables *in, const uint64_t *targets, uint64_t target_count,
		    int absolute, struct tp_range *rows, uint64_t room, uint64_t *count)
{
	struct search search = { .in = in, .count = in->frame_count };

	*count = 0;
	search.functions = calloc(in->frame_count + 1, sizeof(*search.functions));
	if (!search.functions)
		return -ENOMEM;
	for (uint64_t i = 0; i < in->frame_count; i++) {
		const struct tp_frame *frame = &in->frames[i];
		uint64_t most = ~0ull - frame->vaddr;

		search.functions[i] = (struct function){
			.start = frame->vaddr,
			.end = frame->vaddr + (frame->bytes < most ? frame->bytes : most),
		};
	}
	qsort(search.functions, search.count, sizeof(*search.functions), by_start);
	for (uint64_t i = 0; i < target_count; i++)
		count_pointer(&search, targets[i]);
	if (absolute)
		count_words(&search);
	join(&search, rows, room, count);
	free(search.functions);
	return 0;
}
