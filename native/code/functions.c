/* SPDX-License-Identifier: Apache-2.0 */
/**
 * @file
 * Every function of a module, from symbols, unwind entries and PLT slots together: one row for each
 * address, sorted, with its name. The layouts are from the System V ABI (gABI 4.1, chapter 4) and
 * its x86-64 supplement. Tables belong to a stranger: every index and offset is checked.
 */
#include <elf.h>
#include <errno.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>

#include "insn.h"
#include "textpoke.h"

enum {
	SLOT_STEP = 8, /* PLT slots are as far apart, or twice as far */
	MOST_SLOT_BYTES = 16,
	ALIGNMENT = 16,	   /* of functions */
	MOST_NAME = 16384, /* bytes; a longer one is damage */
	MOST_ALIASES = 64, /* of a resolver, that are looked at for each of its PLT slots */
	BITS_IN_RELR = 63, /* slots that a bitmap of DT_RELR speaks of */
};

#define MOST_NAME_BYTES (4ull << 30) /* the largest programs have a quarter of that */

/* One thing that says that there is a function. */
struct candidate {
	uint64_t vaddr;
	uint64_t bytes;
	uint32_t text;
	uint8_t table;
	uint8_t type;	 /* STT_FUNC, STT_GNU_IFUNC, STT_NOTYPE */
	uint8_t binding; /* STB_LOCAL ... */
	uint8_t flags;	 /* enum tp_label_flags */
};

/* A PLT slot, and the slot of the GOT that it jumps through. */
struct stub {
	uint64_t got;
	uint64_t vaddr;
	uint64_t bytes;
};

/* What is known at one place of the walk through all addresses. */
struct merge {
	const struct tp_tables *in;
	struct tp_found *out;
	struct candidate *candidates;
	uint64_t candidate_count;
	struct tp_frame *frames; /* sorted */
	uint64_t frame_count;
	uint64_t frame_end;    /* of the frame around this address that reaches farthest */
	uint64_t frame_flags;  /* its flags */
	uint64_t symbol_end;   /* of the sized function symbol around it that reaches farthest */
	uint64_t symbol_index; /* its function */
	uint64_t name_bytes;   /* that were looked at */
};

static const struct tp_piece *piece_at(const struct tp_piece *pieces, uint64_t count, uint64_t addr)
{
	uint64_t low = 0, high = count;

	while (low < high) {
		uint64_t middle = low + (high - low) / 2;

		if (pieces[middle].vaddr <= addr)
			low = middle + 1;
		else
			high = middle;
	}
	if (!low || addr - pieces[low - 1].vaddr >= pieces[low - 1].count)
		return NULL;
	return &pieces[low - 1];
}

static const struct tp_piece *code_at(const struct tp_tables *in, uint64_t addr)
{
	return piece_at(in->code, in->code_count, addr);
}

static const struct tp_range *stubs_at(const struct tp_tables *in, uint64_t addr)
{
	for (uint64_t i = 0; i < in->stub_count; i++)
		if (addr >= in->stubs[i].start && addr < in->stubs[i].end)
			return &in->stubs[i];
	return NULL;
}

static Elf64_Sym symbol_at(const struct tp_symbol_table *table, uint64_t i)
{
	Elf64_Sym symbol;

	memcpy(&symbol, table->rows + i * sizeof(symbol), sizeof(symbol));
	return symbol;
}

/*
 * A symbol's name without version ("read@@GLIBC_2.2.5"), not terminated, empty when there is none.
 * Symbols may share a long string, so what all names take is limited.
 */
static const char *name_of(struct merge *merge, const struct candidate *candidate, size_t *bytes)
{
	const struct tp_symbol_table *table;
	uint64_t room;
	const char *name, *at;

	*bytes = 0;
	if (candidate->table >= merge->in->symbol_table_count)
		return "";
	table = &merge->in->symbols[candidate->table];
	if (candidate->text >= table->string_bytes)
		return "";
	name = (const char *)table->strings + candidate->text;
	room = table->string_bytes - candidate->text;
	*bytes = strnlen(name, room < MOST_NAME ? room : MOST_NAME);
	merge->name_bytes += *bytes;
	if (merge->name_bytes > MOST_NAME_BYTES)
		*bytes = 0;
	at = memchr(name, '@', *bytes);
	if (at)
		*bytes = (size_t)(at - name);
	return name;
}

/*
 * Does the symbol name a function? Assembly often leaves its global functions without a type; a
 * local label without one is no function, nor is one that a linker has put at a section's end.
 */
static bool is_function(const struct tp_tables *in, const struct tp_symbol_table *table,
			const Elf64_Sym *symbol)
{
	uint8_t type = ELF64_ST_TYPE(symbol->st_info);

	if (type != STT_FUNC && type != STT_GNU_IFUNC &&
	    (type != STT_NOTYPE || ELF64_ST_BIND(symbol->st_info) == STB_LOCAL))
		return false;
	if (!symbol->st_name || symbol->st_shndx == SHN_UNDEF)
		return false;
	if (!table->section_count)
		return symbol->st_shndx < SHN_LORESERVE && code_at(in, symbol->st_value);
	if (symbol->st_shndx >= table->section_count)
		return false;
	return symbol->st_value >= table->sections[symbol->st_shndx].start &&
	       symbol->st_value < table->sections[symbol->st_shndx].end;
}

static uint64_t count_symbols(const struct tp_tables *in)
{
	uint64_t count = 0;

	for (uint64_t t = 0; t < in->symbol_table_count; t++)
		for (uint64_t i = 0; i < in->symbols[t].row_count; i++) {
			Elf64_Sym symbol = symbol_at(&in->symbols[t], i);

			count += is_function(in, &in->symbols[t], &symbol);
		}
	return count;
}

static uint64_t most_stubs(const struct tp_tables *in)
{
	uint64_t count = 0;

	for (uint64_t i = 0; i < in->stub_count; i++)
		count += (in->stubs[i].end - in->stubs[i].start) / SLOT_STEP + 1;
	return count;
}

/** How many functions tp_find_functions() finds at most. */
uint64_t tp_most_functions(const struct tp_tables *in)
{
	return count_symbols(in) + in->frame_count + most_stubs(in);
}

static void collect_symbols(struct merge *merge)
{
	const struct tp_tables *in = merge->in;

	for (uint64_t t = 0; t < in->symbol_table_count; t++)
		for (uint64_t i = 0; i < in->symbols[t].row_count; i++) {
			Elf64_Sym symbol = symbol_at(&in->symbols[t], i);
			uint8_t type = ELF64_ST_TYPE(symbol.st_info);

			if (!is_function(in, &in->symbols[t], &symbol))
				continue;
			merge->candidates[merge->candidate_count++] = (struct candidate){
				.vaddr = symbol.st_value,
				.bytes = symbol.st_size,
				.text = symbol.st_name,
				.table = (uint8_t)t,
				.type = type,
				.binding = ELF64_ST_BIND(symbol.st_info),
				.flags = type == STT_GNU_IFUNC ? TP_LABEL_RESOLVER : 0,
			};
		}
}

/*
 * The slot of the GOT that a PLT slot jumps through, 0 for what is none: "jmp *disp(%rip)" behind an
 * endbr64 and behind mold's "mov $number, %r11d". The first slot of a lazy PLT begins with a push.
 */
static uint64_t got_of(const struct tp_piece *piece, uint64_t offset, uint64_t end)
{
	const uint8_t *bytes = piece->bytes;
	int32_t disp;

	if (tp_is_endbr64(bytes + offset, end - offset))
		offset += 4;
	if (end - offset >= 6 && bytes[offset] == 0x41 && bytes[offset + 1] == 0xbb)
		offset += 6;
	if (end - offset >= 1 && bytes[offset] == 0xf2) /* bnd */
		offset++;
	if (end - offset < 6 || bytes[offset] != 0xff || bytes[offset + 1] != 0x25)
		return 0;
	memcpy(&disp, bytes + offset + 2, sizeof(disp));
	return piece->vaddr + offset + 6 + (uint64_t)(int64_t)disp;
}

static uint64_t collect_stubs(const struct tp_tables *in, struct stub *stubs)
{
	uint64_t count = 0, first = 0;

	for (uint64_t i = 0; i < in->stub_count; i++, first = count) {
		uint64_t start = in->stubs[i].start, end = in->stubs[i].end, got;
		const struct tp_piece *piece = code_at(in, start);

		if (!piece)
			continue;
		if (end - piece->vaddr > piece->count)
			end = piece->vaddr + piece->count;
		for (uint64_t at = start; at < end; at += SLOT_STEP) {
			got = got_of(piece, at - piece->vaddr, end - piece->vaddr);
			if (!got)
				continue;
			if (count > first && at - stubs[count - 1].vaddr < MOST_SLOT_BYTES)
				stubs[count - 1].bytes = at - stubs[count - 1].vaddr;
			stubs[count++] = (struct stub){
				.got = got,
				.vaddr = at,
				.bytes = end - at < MOST_SLOT_BYTES ? end - at : MOST_SLOT_BYTES,
			};
		}
	}
	return count;
}

static int compare_stubs(const void *left, const void *right)
{
	const struct stub *a = left, *b = right;

	if (a->got != b->got)
		return a->got < b->got ? -1 : 1;
	return (a->vaddr > b->vaddr) - (a->vaddr < b->vaddr);
}

/* The first of the sorted @stubs that jumps through @got; @count when there is none. */
static uint64_t first_stub(const struct stub *stubs, uint64_t count, uint64_t got)
{
	uint64_t low = 0, high = count;

	while (low < high) {
		uint64_t middle = low + (high - low) / 2;

		if (stubs[middle].got < got)
			low = middle + 1;
		else
			high = middle;
	}
	return low < count && stubs[low].got == got ? low : count;
}

static int order(uint64_t a, uint64_t b)
{
	return (a > b) - (a < b);
}

static size_t underscores(const char *name, size_t bytes)
{
	size_t count = 0;

	while (count < bytes && name[count] == '_')
		count++;
	return count;
}

/*
 * Is @a the better name of a function than @b from the same table? Typed, not local, few underscores
 * in front, not weak, short, by name: so people find read, not __read or __GI___libc_read.
 */
static bool is_better(const struct candidate *a, const char *a_name, size_t a_bytes,
		      const struct candidate *b, const char *b_name, size_t b_bytes)
{
	int how = order(a->type == STT_NOTYPE, b->type == STT_NOTYPE);

	how = how ? how : order(a->binding == STB_LOCAL, b->binding == STB_LOCAL);
	how = how ? how : order(underscores(a_name, a_bytes), underscores(b_name, b_bytes));
	how = how ? how : order(a->binding != STB_GLOBAL, b->binding != STB_GLOBAL);
	how = how ? how : order(a_bytes, b_bytes);
	return (how ? how : memcmp(a_name, b_name, a_bytes)) < 0;
}

/* The best name among @count candidates of one address, from the first table that has one. */
static const struct candidate *best_of(struct merge *merge, const struct candidate *candidates,
				       uint64_t count)
{
	const struct candidate *best = NULL;
	const char *name, *best_name = "";
	size_t bytes, best_bytes = 0;

	for (uint64_t i = 0; i < count; i++) {
		const struct candidate *other = &candidates[i];

		if (best && best->table != other->table)
			break;
		name = name_of(merge, other, &bytes);
		if (!bytes || (best && !is_better(other, name, bytes, best, best_name, best_bytes)))
			continue;
		best = other;
		best_name = name;
		best_bytes = bytes;
	}
	return best;
}

/* The first of the @count sorted candidates that is not below @vaddr. */
static uint64_t first_candidate(const struct merge *merge, uint64_t count, uint64_t vaddr)
{
	uint64_t low = 0, high = count;

	while (low < high) {
		uint64_t middle = low + (high - low) / 2;

		if (merge->candidates[middle].vaddr < vaddr)
			low = middle + 1;
		else
			high = middle;
	}
	return low;
}

/* The best name at @vaddr among the first @count candidates, which are sorted. */
static const struct candidate *best_at(struct merge *merge, uint64_t vaddr, uint64_t count)
{
	uint64_t first = first_candidate(merge, count, vaddr), end = first;

	while (end < count && merge->candidates[end].vaddr == vaddr && end - first < MOST_ALIASES)
		end++;
	return best_of(merge, merge->candidates + first, end - first);
}

/*
 * A slot is called for what fills its slot of the GOT: an imported symbol, or what an indirect
 * function's resolver returns, which has the resolver's name. The first @symbols candidates are sorted.
 */
static void name_stub(struct merge *merge, const Elf64_Rela *rela, uint64_t symbols,
		      struct candidate *stub)
{
	const struct tp_tables *in = merge->in;
	uint64_t i = ELF64_R_SYM(rela->r_info);
	const struct candidate *resolver;

	if (ELF64_R_TYPE(rela->r_info) == R_X86_64_IRELATIVE) {
		resolver = best_at(merge, (uint64_t)rela->r_addend, symbols);
		if (resolver) {
			stub->table = resolver->table;
			stub->text = resolver->text;
		}
	} else if (in->dynamic < in->symbol_table_count && i &&
		   i < in->symbols[in->dynamic].row_count) {
		stub->table = (uint8_t)in->dynamic;
		stub->text = symbol_at(&in->symbols[in->dynamic], i).st_name;
	}
}

static bool fills_got(uint64_t type)
{
	return type == R_X86_64_JUMP_SLOT || type == R_X86_64_GLOB_DAT ||
	       type == R_X86_64_IRELATIVE || type == R_X86_64_64;
}

/* Append a candidate for each slot that a relocation knows; it takes its place in @stubs but once. */
static void append_stubs(struct merge *merge, struct stub *stubs, uint64_t count)
{
	const struct tp_tables *in = merge->in;
	uint64_t symbols = merge->candidate_count;
	Elf64_Rela rela;

	for (uint64_t r = 0; r < in->rela_count; r++)
		for (uint64_t i = 0; i < in->rela[r].count / sizeof(rela); i++) {
			memcpy(&rela, in->rela[r].bytes + i * sizeof(rela), sizeof(rela));
			if (!fills_got(ELF64_R_TYPE(rela.r_info)))
				continue;
			for (uint64_t k = first_stub(stubs, count, rela.r_offset);
			     k < count && stubs[k].got == rela.r_offset && stubs[k].bytes; k++) {
				struct candidate stub = {
					.vaddr = stubs[k].vaddr,
					.bytes = stubs[k].bytes,
					.table = TP_NO_TABLE,
					.type = STT_FUNC,
					.binding = STB_GLOBAL,
					.flags = TP_LABEL_PLT,
				};

				name_stub(merge, &rela, symbols, &stub);
				merge->candidates[merge->candidate_count++] = stub;
				stubs[k].bytes = 0;
			}
		}
}

/* By address; PLT slots before symbols (mold gives them some of their own), best tables first. */
static int compare_candidates(const void *left, const void *right)
{
	const struct candidate *a = left, *b = right;
	int how = order(a->vaddr, b->vaddr);

	how = how ? how : order(b->flags & TP_LABEL_PLT, a->flags & TP_LABEL_PLT);
	how = how ? how : order(a->table, b->table);
	return how ? how : order(a->text, b->text);
}

static int compare_frames(const void *left, const void *right)
{
	const struct tp_frame *a = left, *b = right;

	return order(a->vaddr, b->vaddr);
}

/*
 * In assembly an unwind entry may begin with the NOPs that align its function: how many bytes of them
 * there are. They end at a symbol, or at a multiple of what functions are aligned to. The entry for
 * the way back from a signal handler begins one byte early, whatever that is, because unwinders look
 * for a caller at the byte before the return address.
 */
static uint64_t padding_of(const struct merge *merge, const struct tp_frame *frame)
{
	const struct tp_piece *piece = code_at(merge->in, frame->vaddr);
	uint64_t first = first_candidate(merge, merge->candidate_count, frame->vaddr), bytes = 0;
	bool aligned = frame->vaddr % ALIGNMENT == 0;

	if (frame->flags & TP_FRAME_SIGNAL && frame->bytes > 1 &&
	    ((first < merge->candidate_count &&
	      merge->candidates[first].vaddr == frame->vaddr + 1) ||
	     (frame->vaddr + 1) % ALIGNMENT == 0))
		return 1;
	if (first < merge->candidate_count && merge->candidates[first].vaddr == frame->vaddr)
		return 0;
	while (bytes < ALIGNMENT && bytes < frame->bytes) {
		uint64_t offset = frame->vaddr - piece->vaddr + bytes;
		struct tp_decoded insn = { 0 };

		if (bytes && !aligned && (frame->vaddr + bytes) % ALIGNMENT == 0)
			return bytes;
		if (first < merge->candidate_count &&
		    merge->candidates[first].vaddr == frame->vaddr + bytes)
			return bytes;
		if (offset < piece->count)
			insn = tp_decode(piece->bytes + offset, piece->count - offset);
		if (!insn.length || !tp_is_nop(piece->bytes + offset, &insn))
			return 0;
		bytes += insn.length;
	}
	return 0;
}

static int sort_frames(struct merge *merge)
{
	const struct tp_tables *in = merge->in;
	bool sorted = true;

	merge->frames = malloc((in->frame_count + 1) * sizeof(*merge->frames));
	if (!merge->frames)
		return -ENOMEM;
	for (uint64_t i = 0; i < in->frame_count; i++) {
		struct tp_frame frame = in->frames[i];
		uint64_t padding;

		/* Functions that the linker has thrown away leave entries for address 0. */
		if (!code_at(in, frame.vaddr) || stubs_at(in, frame.vaddr))
			continue;
		padding = padding_of(merge, &frame);
		frame.vaddr += padding;
		frame.bytes -= padding;
		if (merge->frame_count && frame.vaddr < merge->frames[merge->frame_count - 1].vaddr)
			sorted = false;
		merge->frames[merge->frame_count++] = frame;
	}
	if (!sorted)
		qsort(merge->frames, merge->frame_count, sizeof(*merge->frames), compare_frames);
	return 0;
}

/* "f.cold" and "f.cold.1": where GCC and LLVM put the parts of f that hardly ever run. */
static bool is_cold(struct merge *merge, const struct candidate *candidate)
{
	static const char word[] = ".cold";
	size_t bytes, digits = 0;
	const char *name;

	name = name_of(merge, candidate, &bytes);
	while (digits < bytes && name[bytes - 1 - digits] >= '0' && name[bytes - 1 - digits] <= '9')
		digits++;
	if (digits && digits < bytes && name[bytes - 1 - digits] == '.')
		bytes -= digits + 1;
	return bytes > sizeof(word) - 1 &&
	       !memcmp(name + bytes - (sizeof(word) - 1), word, sizeof(word) - 1);
}

/* All that is known of one address. */
struct place {
	uint64_t vaddr;
	uint64_t bytes;
	const struct candidate *candidates; /* PLT slots before symbols */
	uint64_t candidate_count;
	bool is_typed; /* one of them is a function by its type */
	bool is_cold;  /* all typed ones are called .cold */
	bool is_resolver;
	bool has_frame;
	uint64_t frame_flags;
};

static void note_candidate(struct merge *merge, struct place *place,
			   const struct candidate *candidate)
{
	if (!place->candidate_count++)
		place->candidates = candidate;
	if (candidate->bytes > place->bytes)
		place->bytes = candidate->bytes;
	if (candidate->type == STT_NOTYPE)
		return;
	place->is_cold = is_cold(merge, candidate) && (place->is_cold || !place->is_typed);
	place->is_resolver = place->is_resolver || candidate->flags & TP_LABEL_RESOLVER;
	place->is_typed = true;
}

static void note_frame(struct place *place, const struct tp_frame *frame)
{
	if (frame->bytes > place->bytes)
		place->bytes = frame->bytes;
	if (place->has_frame) /* a middle only where all say so */
		place->frame_flags = ((place->frame_flags | frame->flags) & TP_FRAME_SIGNAL) |
				     (place->frame_flags & frame->flags & TP_FRAME_MIDDLE);
	else
		place->frame_flags = frame->flags;
	place->has_frame = true;
}

/*
 * Is it "mov $15, %rax (or %eax); syscall"? So all C libraries come back from a signal handler, and
 * those without an unwind entry for it are known by these bytes alone.
 */
static bool is_sigreturn(const struct tp_tables *in, uint64_t vaddr)
{
	static const uint8_t forms[][9] = { { 0x48, 0xc7, 0xc0, 15, 0, 0, 0, 0x0f, 0x05 },
					    { 0xb8, 15, 0, 0, 0, 0x0f, 0x05 } };
	static const uint8_t bytes[] = { 9, 7 };
	const struct tp_piece *piece = code_at(in, vaddr);

	for (unsigned int i = 0; piece && i < sizeof(bytes); i++)
		if (piece->count - (vaddr - piece->vaddr) >= bytes[i] &&
		    !memcmp(piece->bytes + (vaddr - piece->vaddr), forms[i], bytes[i]))
			return true;
	return false;
}

static uint8_t flags_of(const struct merge *merge, const struct place *place, bool is_part)
{
	uint64_t signal = place->frame_flags;
	uint8_t flags = 0;

	if (place->vaddr < merge->frame_end)
		signal |= merge->frame_flags;
	if (place->is_typed ? place->is_cold : is_part || place->frame_flags & TP_FRAME_MIDDLE)
		flags |= TP_FUNCTION_COLD;
	if (signal & TP_FRAME_SIGNAL || is_sigreturn(merge->in, place->vaddr))
		flags |= TP_FUNCTION_SIGRETURN;
	if (merge->in->go && !place->has_frame)
		flags |= TP_FUNCTION_GO;
	return flags;
}

static struct tp_label label_of(struct merge *merge, const struct place *place, bool is_part)
{
	struct tp_label label = { .table = TP_NO_TABLE };
	const struct candidate *best = NULL;

	if (place->candidate_count && place->candidates->flags & TP_LABEL_PLT) {
		label.flags |= TP_LABEL_PLT;
		best = best_of(merge, place->candidates, 1);
	}
	if (!best)
		best = best_of(merge, place->candidates, place->candidate_count);
	if (best) {
		label.table = best->table;
		label.text = best->text;
	}
	if (place->is_resolver)
		label.flags |= TP_LABEL_RESOLVER;
	if (label.table == TP_NO_TABLE && is_part)
		label.text = (uint32_t)merge->symbol_index + 1;
	return label;
}

static void add_function(struct merge *merge, const struct place *place, bool is_part)
{
	struct tp_found *out = merge->out;
	uint64_t end = place->vaddr + place->bytes;

	out->labels[out->count] = label_of(merge, place, is_part);
	out->functions[out->count] = (struct tp_function){
		.vaddr = place->vaddr,
		.bytes = place->bytes < UINT32_MAX ? (uint32_t)place->bytes : UINT32_MAX,
		.flags = flags_of(merge, place, is_part),
	};
	if (place->is_typed && end > place->vaddr && end > merge->symbol_end) {
		merge->symbol_end = end;
		merge->symbol_index = out->count;
	}
	out->count++;
}

/* One address: a function, or a label in one. */
static void decide(struct merge *merge, const struct place *place)
{
	bool is_part = place->vaddr < merge->symbol_end && !place->is_typed;
	uint64_t end = place->vaddr + place->bytes;

	if (!place->has_frame && !place->is_typed && (is_part || place->vaddr < merge->frame_end)) {
		/* Nobody calls it by an address that we know; but nothing may be put over it. */
		merge->out->targets[merge->out->target_count++] = place->vaddr;
		return;
	}
	add_function(merge, place, is_part);
	if (place->has_frame && end > merge->frame_end) {
		merge->frame_end = end;
		merge->frame_flags = place->frame_flags;
	}
}

/* Go through all addresses once, upwards. */
static void merge_all(struct merge *merge)
{
	uint64_t i = 0, k = 0;

	while (i < merge->candidate_count || k < merge->frame_count) {
		struct place place = { 0 };

		if (k == merge->frame_count ||
		    (i < merge->candidate_count &&
		     merge->candidates[i].vaddr < merge->frames[k].vaddr))
			place.vaddr = merge->candidates[i].vaddr;
		else
			place.vaddr = merge->frames[k].vaddr;
		for (; i < merge->candidate_count && merge->candidates[i].vaddr == place.vaddr; i++)
			note_candidate(merge, &place, &merge->candidates[i]);
		for (; k < merge->frame_count && merge->frames[k].vaddr == place.vaddr; k++)
			note_frame(&place, &merge->frames[k]);
		if (place.bytes > UINT64_MAX - place.vaddr)
			place.bytes = UINT64_MAX - place.vaddr;
		decide(merge, &place);
	}
}

/**
 * Find every function. Symbols with one address are one function; an unwind entry without symbol is
 * one too, and a part of one when it lies inside a function's symbol. What lies in a function of
 * the same unwind entry and is no function by its type goes to the targets. Returns -E2BIG when names
 * are longer than those of any program.
 */
int tp_find_functions(const struct tp_tables *in, struct tp_found *out)
{
	struct merge merge = { .in = in, .out = out };
	uint64_t stub_room = most_stubs(in), stub_count = 0;
	struct stub *stubs = malloc((stub_room + 1) * sizeof(*stubs));
	int err = -ENOMEM;

	out->count = 0;
	out->target_count = 0;
	merge.candidates = malloc((count_symbols(in) + stub_room + 1) * sizeof(*merge.candidates));
	if (!stubs || !merge.candidates || in->symbol_table_count >= TP_NO_TABLE)
		goto out;
	collect_symbols(&merge);
	qsort(merge.candidates, merge.candidate_count, sizeof(*merge.candidates),
	      compare_candidates);
	err = sort_frames(&merge);
	if (err)
		goto out;
	stub_count = collect_stubs(in, stubs);
	if (stub_count) {
		qsort(stubs, stub_count, sizeof(*stubs), compare_stubs);
		append_stubs(&merge, stubs, stub_count);
		qsort(merge.candidates, merge.candidate_count, sizeof(*merge.candidates),
		      compare_candidates);
	}
	merge_all(&merge);
	if (merge.name_bytes > MOST_NAME_BYTES)
		err = -E2BIG;
out:
	free(merge.frames);
	free(merge.candidates);
	free(stubs);
	return err;
}

/* Addresses that go to the caller, as many as there is room for. */
struct targets {
	const struct tp_tables *in;
	uint64_t *addresses;
	uint64_t room;
	uint64_t count;
};

static void add_target(struct targets *targets, uint64_t addr)
{
	if (!code_at(targets->in, addr))
		return;
	if (targets->count < targets->room)
		targets->addresses[targets->count] = addr;
	targets->count++;
}

static void follow_rela(struct targets *targets, const struct tp_piece *table)
{
	const struct tp_tables *in = targets->in;
	Elf64_Rela rela;

	for (uint64_t i = 0; i < table->count / sizeof(rela); i++) {
		uint64_t symbol;

		memcpy(&rela, table->bytes + i * sizeof(rela), sizeof(rela));
		symbol = ELF64_R_SYM(rela.r_info);
		switch (ELF64_R_TYPE(rela.r_info)) {
		case R_X86_64_RELATIVE:
		case R_X86_64_RELATIVE64:
		case R_X86_64_IRELATIVE:
			add_target(targets, (uint64_t)rela.r_addend);
			break;
		case R_X86_64_64:
			if (in->dynamic < in->symbol_table_count &&
			    symbol < in->symbols[in->dynamic].row_count)
				add_target(targets,
					   symbol_at(&in->symbols[in->dynamic], symbol).st_value +
						   (uint64_t)rela.r_addend);
			break;
		}
	}
}

static void follow_slot(struct targets *targets, uint64_t slot)
{
	const struct tp_tables *in = targets->in;
	const struct tp_piece *piece = piece_at(in->data, in->data_count, slot);
	uint64_t value;

	if (!piece || piece->count - (slot - piece->vaddr) < sizeof(value))
		return;
	memcpy(&value, piece->bytes + (slot - piece->vaddr), sizeof(value));
	add_target(targets, value);
}

/* An even word is the address of a slot, an odd one a bitmap of the slots behind the last. */
static void follow_relr(struct targets *targets, const struct tp_piece *table)
{
	uint64_t word, next = 0;

	for (uint64_t i = 0; i < table->count / sizeof(word); i++) {
		memcpy(&word, table->bytes + i * sizeof(word), sizeof(word));
		if (!(word & 1)) {
			follow_slot(targets, word);
			next = word + sizeof(word);
			continue;
		}
		for (unsigned int bit = 0; bit < BITS_IN_RELR; bit++)
			if (word >> (bit + 1) & 1)
				follow_slot(targets, next + bit * sizeof(word));
		next += BITS_IN_RELR * sizeof(word);
	}
}

/**
 * Find the addresses of code that the loader will put into data. @targets takes the first @room of
 * them, @count says how many there are.
 */
int tp_read_targets(const struct tp_tables *in, uint64_t *targets, uint64_t room, uint64_t *count)
{
	struct targets found = { .in = in, .addresses = targets, .room = room };

	for (uint64_t i = 0; i < in->rela_count; i++)
		follow_rela(&found, &in->rela[i]);
	for (uint64_t i = 0; i < in->relr_count; i++)
		follow_relr(&found, &in->relr[i]);
	*count = found.count;
	return 0;
}
