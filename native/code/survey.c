/* SPDX-License-Identifier: Apache-2.0 */
/**
 * @file
 * Functions as compilers left them: which entries can give their first five bytes to a jump. All
 * code is decoded once, to learn what goes to the bytes behind an entry: a branch, a jump table or
 * a pointer to the second instruction would land inside the jump. What is read belongs to a
 * stranger: every address is looked up before it is followed.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "insn.h"
#include "survey.h"
#include "textpoke.h"

enum {
	JUMP_BYTES = 5, /* what changes at a site */
	JMP_REL32 = 0xe9,
	ENDBR64_BYTES = 4,
	TABLE_ENTRIES = 65536, /* a longer jump table is none */
	FEW_TABLES = 1024,
	CODE_OF_A_TABLE = 64, /* bytes of code for each table more, at least: a bound on memory */
	DOUBT_BYTES = 16,     /* around an undecodable place: decoding may have gone astray */
	LOWEST_LINKED = 0x10000, /* nobody can map code below: a module that begins there moves */
};

/* A jump table: addresses (8) or distances from the table (4). */
struct table {
	uint64_t vaddr;
	uint32_t entry_bytes;
};

struct survey {
	const struct tp_survey *in;
	struct tp_surveyed *out;
	uint64_t *interior;  /* a bit for each byte of code: it is byte 1 to 4 of a jump */
	uint64_t *first_bit; /* of each piece of code */
	struct table *tables;
	size_t table_count;
	size_t table_room;
	size_t most_tables;
	bool absolute; /* linked to its address: code may name addresses as numbers */
	int err;       /* a table could not be kept */
};

/* A part of one piece of code that is decoded in one go; offsets are from the piece. */
struct stretch {
	const struct tp_piece *piece;
	uint64_t from;
	uint64_t to;
	uint64_t doubted;	      /* every offset below has been taken for an instruction */
	struct tp_function *function; /* NULL: between functions */
};

/* A function's first instructions, while they are collected; counts are from the site. */
struct window {
	const uint8_t *code;
	uint64_t addr;
	uint64_t room; /* until the code ends */
	uint64_t own;  /* until the function ends; 0: not known */
	uint64_t next; /* until another function begins */
	uint8_t bytes;
	uint8_t heads;
	uint8_t flags;
	uint8_t target_count;
	uint64_t targets[JUMP_BYTES]; /* of its branches */
};

/* The first of the pieces that does not begin at or below @addr. */
static uint64_t piece_after(const struct tp_piece *pieces, uint64_t count, uint64_t addr)
{
	uint64_t low = 0, high = count;

	while (low < high) {
		uint64_t middle = low + (high - low) / 2;

		if (pieces[middle].vaddr <= addr)
			low = middle + 1;
		else
			high = middle;
	}
	return low;
}

static const struct tp_piece *piece_at(const struct tp_piece *pieces, uint64_t count, uint64_t addr)
{
	uint64_t after = piece_after(pieces, count, addr);

	if (!after || addr - pieces[after - 1].vaddr >= pieces[after - 1].count)
		return NULL;
	return &pieces[after - 1];
}

static const struct tp_piece *code_at(const struct survey *survey, uint64_t addr)
{
	return piece_at(survey->in->code, survey->in->code_count, addr);
}

/* The first function that begins above @addr. */
static uint64_t function_after(const struct tp_survey *in, uint64_t addr)
{
	uint64_t low = 0, high = in->function_count;

	while (low < high) {
		uint64_t middle = low + (high - low) / 2;

		if (in->functions[middle].vaddr <= addr)
			low = middle + 1;
		else
			high = middle;
	}
	return low;
}

/* How many bytes from function @i on another one begins. */
static uint64_t bytes_to_next(const struct tp_survey *in, uint64_t i)
{
	uint64_t next = i + 1 < in->function_count ? in->functions[i + 1].vaddr : UINT64_MAX;

	return next - in->functions[i].vaddr;
}

static bool pieces_are_sound(const struct tp_piece *pieces, uint64_t count)
{
	uint64_t end = 0;

	for (uint64_t i = 0; i < count; i++) {
		if (pieces[i].vaddr < end || pieces[i].count > UINT64_MAX - pieces[i].vaddr)
			return false;
		if (pieces[i].count && !pieces[i].bytes)
			return false;
		end = pieces[i].vaddr + pieces[i].count;
	}
	return true;
}

static bool functions_are_sound(const struct tp_function *functions, uint64_t count)
{
	for (uint64_t i = 1; i < count; i++)
		if (functions[i].vaddr <= functions[i - 1].vaddr)
			return false;
	return true;
}

static bool is_absolute(const struct tp_survey *in)
{
	return (!in->code_count || in->code[0].vaddr >= LOWEST_LINKED) &&
	       (!in->data_count || in->data[0].vaddr >= LOWEST_LINKED);
}

/* Bitmap and bit numbers; pieces are disjoint, so the sum of their bytes does not overflow. */
static int open_bitmap(struct survey *survey)
{
	const struct tp_survey *in = survey->in;
	uint64_t bits = 0;

	survey->first_bit = calloc(in->code_count + 1, sizeof(*survey->first_bit));
	if (!survey->first_bit)
		return -ENOMEM;
	for (uint64_t i = 0; i < in->code_count; i++) {
		survey->first_bit[i] = bits;
		bits += in->code[i].count;
	}
	survey->most_tables = bits / CODE_OF_A_TABLE + FEW_TABLES;
	survey->interior = calloc(bits / 64 + 1, sizeof(*survey->interior));
	return survey->interior ? 0 : -ENOMEM;
}

static bool is_interior(const struct survey *survey, uint64_t addr)
{
	const struct tp_piece *piece = code_at(survey, addr);
	uint64_t bit;

	if (!piece)
		return false;
	bit = survey->first_bit[piece - survey->in->code] + (addr - piece->vaddr);
	return survey->interior[bit / 64] >> bit % 64 & 1;
}

/* Find the site, and mark the bytes that a jump there would have behind its first. */
static void mark_site(struct survey *survey, struct tp_function *function)
{
	const struct tp_piece *piece = code_at(survey, function->vaddr);
	uint64_t offset, bit;

	if (!piece)
		return;
	offset = function->vaddr - piece->vaddr;
	if (tp_is_endbr64(piece->bytes + offset, piece->count - offset))
		function->at = ENDBR64_BYTES;
	for (uint64_t i = function->at + 1u; i < function->at + (unsigned int)JUMP_BYTES; i++) {
		if (i >= piece->count - offset)
			break;
		bit = survey->first_bit[piece - survey->in->code] + offset + i;
		survey->interior[bit / 64] |= 1ull << bit % 64;
	}
}

static void start_function(struct tp_function *function)
{
	function->flags &= TP_FUNCTION_COLD | TP_FUNCTION_SIGRETURN | TP_FUNCTION_GO;
	function->at = 0;
	function->window = 0;
	function->heads = 0;
	function->reason = TP_REFUSE_NOTHING;
	function->first = 0;
	memset(function->reserved, 0, sizeof(function->reserved));
}

/* For those who ask where everything goes (branches.c). */
static void mark(const struct survey *survey, uint64_t *bits, uint64_t addr)
{
	const struct tp_piece *piece = code_at(survey, addr);
	uint64_t bit;

	if (!piece)
		return;
	bit = survey->first_bit[piece - survey->in->code] + (addr - piece->vaddr);
	bits[bit / 64] |= 1ull << bit % 64;
}

/* Something goes to @addr: not to be the inside of a jump. */
static void hit_entry(struct survey *survey, uint64_t addr, enum tp_refusal reason)
{
	struct tp_function *functions = survey->in->functions;

	if (!is_interior(survey, addr))
		return;
	for (uint64_t i = function_after(survey->in, addr); i-- > 0;) {
		uint64_t inside = addr - functions[i].vaddr;

		if (inside >= ENDBR64_BYTES + JUMP_BYTES)
			break;
		if (inside <= functions[i].at || inside >= functions[i].at + (uint64_t)JUMP_BYTES)
			continue;
		if (!functions[i].reason || reason == TP_REFUSE_BRANCH)
			functions[i].reason = reason;
	}
}

static void hit(struct survey *survey, uint64_t addr, enum tp_refusal reason)
{
	const struct tp_goes *goes = survey->in->goes;

	if (goes)
		mark(survey, reason == TP_REFUSE_BRANCH ? goes->branches : goes->pointers, addr);
	hit_entry(survey, addr, reason);
}

/* Code takes the address: of a function, a label, or of data among code. */
static void hit_named(struct survey *survey, uint64_t addr)
{
	if (survey->in->goes)
		mark(survey, survey->in->goes->named, addr);
	hit_entry(survey, addr, TP_REFUSE_TABLE);
}

/* The bytes of data (or of code, where compilers of old and assembly keep tables) from @addr on. */
static const uint8_t *read_at(const struct survey *survey, uint64_t addr, uint64_t *room)
{
	const struct tp_survey *in = survey->in;
	const struct tp_piece *piece = piece_at(in->data, in->data_count, addr);

	if (!piece)
		piece = code_at(survey, addr);
	if (!piece)
		return NULL;
	*room = piece->count - (addr - piece->vaddr);
	return piece->bytes + (addr - piece->vaddr);
}

static uint64_t table_target(const struct table *table, const uint8_t *entry)
{
	int32_t distance;
	uint64_t addr;

	if (table->entry_bytes == sizeof(addr)) {
		memcpy(&addr, entry, sizeof(addr));
		return addr;
	}
	memcpy(&distance, entry, sizeof(distance));
	return table->vaddr + (uint64_t)(int64_t)distance;
}

/* Is it a function's first byte? Then what follows is code. */
static bool is_entry(const struct survey *survey, uint64_t addr)
{
	uint64_t after = function_after(survey->in, addr);

	return after && survey->in->functions[after - 1].vaddr == addr;
}

static int grow_tables(struct survey *survey)
{
	size_t room = survey->table_room ? survey->table_room * 2 : FEW_TABLES;
	struct table *tables;

	if (room > survey->most_tables)
		room = survey->most_tables;
	if (room == survey->table_room)
		return -ENOMEM;
	tables = realloc(survey->tables, room * sizeof(*tables));
	if (!tables)
		return -ENOMEM;
	survey->tables = tables;
	survey->table_room = room;
	return 0;
}

/* Code names @addr: if what stands there leads to code, it may be a jump table. */
static void note_table(struct survey *survey, uint64_t addr, uint32_t entry_bytes)
{
	struct table table = { .vaddr = addr, .entry_bytes = entry_bytes };
	const uint8_t *entry;
	uint64_t room;

	entry = read_at(survey, addr, &room);
	if (!entry || room < entry_bytes || !code_at(survey, table_target(&table, entry)))
		return;
	if (code_at(survey, addr) && is_entry(survey, addr))
		return;
	if (survey->table_count == survey->table_room && !survey->err)
		survey->err = grow_tables(survey);
	if (!survey->err)
		survey->tables[survey->table_count++] = table;
}

/* Is the operand disp32(,%reg,8)? */
static bool is_scaled_by_8(const uint8_t *code, const struct tp_decoded *insn)
{
	return insn->modrm_at && insn->disp_bytes == 4 && (code[insn->modrm_at] & 0xc7) == 0x04 &&
	       (code[insn->modrm_at + 1] & 0xc7) == 0xc5;
}

/*
 * Addresses as numbers: mov and push of one, jmp and mov through a table of them. Between functions
 * bytes may be no code, so they name no tables.
 */
static void note_absolute(struct survey *survey, const struct tp_function *function,
			  const uint8_t *code, const struct tp_decoded *insn)
{
	uint8_t opcode = code[insn->opcode_at];
	uint64_t value = 0;
	int32_t disp;

	if (opcode == 0x68 || opcode == 0xc7 || (opcode & 0xf8) == 0xb8) {
		if (insn->imm_bytes != 4 && insn->imm_bytes != 8)
			return;
		memcpy(&value, code + insn->imm_at, insn->imm_bytes);
		hit_named(survey, value);
	} else if (function && (opcode == 0x8b || opcode == 0xff) && is_scaled_by_8(code, insn)) {
		memcpy(&disp, code + insn->disp_at, sizeof(disp));
		note_table(survey, (uint64_t)(int64_t)disp, 8);
	}
}

static void note_lea(struct survey *survey, const struct tp_function *function, const uint8_t *code,
		     const struct tp_decoded *insn, uint64_t addr)
{
	int32_t disp;
	uint64_t target;

	memcpy(&disp, code + insn->disp_at, sizeof(disp));
	target = addr + insn->length + (uint64_t)(int64_t)disp;
	hit_named(survey, target);
	if (function)
		note_table(survey, target, 4);
}

bool tp_is_direct_branch(const struct tp_decoded *insn)
{
	return insn->flow == TP_FLOW_JMP || insn->flow == TP_FLOW_JCC ||
	       insn->flow == TP_FLOW_LOOP || insn->flow == TP_FLOW_CALL ||
	       insn->flow == TP_FLOW_XBEGIN;
}

/* What the instruction at @addr says about other places. */
static void note_insn(struct survey *survey, struct tp_function *function, const uint8_t *code,
		      const struct tp_decoded *insn, uint64_t addr)
{
	uint64_t target;

	if (tp_is_direct_branch(insn)) {
		target = tp_branch_target(code, insn, addr);
		survey->out->branches++;
		hit(survey, target, TP_REFUSE_BRANCH);
		if (function && insn->flow != TP_FLOW_CALL &&
		    (target == function->vaddr || target == function->vaddr + function->at))
			function->flags |= TP_FUNCTION_LOOPS;
	} else if (insn->is_lea && insn->rip_relative) {
		note_lea(survey, function, code, insn, addr);
	} else if (survey->absolute) {
		note_absolute(survey, function, code, insn);
	}
}

/*
 * Something at @offset does not decode, so where instructions begin around it is not known: take
 * every byte for the beginning of a branch.
 */
static void note_doubt(struct survey *survey, struct stretch *stretch, uint64_t offset)
{
	const struct tp_piece *piece = stretch->piece;
	uint64_t from = offset - stretch->from > DOUBT_BYTES ? offset - DOUBT_BYTES : stretch->from;
	uint64_t to = stretch->to - offset > DOUBT_BYTES ? offset + DOUBT_BYTES + 1 : stretch->to;
	struct tp_decoded insn;

	survey->out->undecodable++;
	stretch->function->flags |= TP_FUNCTION_GAPS;
	for (from = from > stretch->doubted ? from : stretch->doubted; from < to; from++) {
		insn = tp_decode(piece->bytes + from, piece->count - from);
		if (insn.length && tp_is_direct_branch(&insn))
			hit(survey,
			    tp_branch_target(piece->bytes + from, &insn, piece->vaddr + from),
			    TP_REFUSE_BRANCH);
	}
	stretch->doubted = to;
}

/* Zero bytes, two or more, are what linkers put between functions, and no code (add %al,(%rax)). */
static uint64_t zeros_at(const struct stretch *stretch, uint64_t offset)
{
	uint64_t count = 0;

	while (offset + count < stretch->to && !stretch->piece->bytes[offset + count])
		count++;
	return count > 1 ? count : 0;
}

/* Returns where the last instruction ends: behind the stretch, if it is longer. */
static uint64_t sweep(struct survey *survey, struct stretch *stretch)
{
	const struct tp_piece *piece = stretch->piece;
	uint64_t length, offset;

	for (offset = stretch->from; offset < stretch->to; offset += length) {
		const uint8_t *code = piece->bytes + offset;
		struct tp_decoded insn;

		length = *code ? 0 : zeros_at(stretch, offset);
		if (length)
			continue;
		insn = tp_decode(code, piece->count - offset);
		length = insn.length;
		if (length) {
			survey->out->instructions++;
			note_insn(survey, stretch->function, code, &insn, piece->vaddr + offset);
			continue;
		}
		if (stretch->function)
			note_doubt(survey, stretch, offset);
		length = 1;
	}
	return offset;
}

/* Function @i, which begins at @offset of the piece; returns where it ends. */
static uint64_t sweep_function(struct survey *survey, const struct tp_piece *piece, uint64_t i,
			       uint64_t offset)
{
	const struct tp_survey *in = survey->in;
	uint64_t next = bytes_to_next(in, i), own = in->functions[i].bytes, end;
	struct stretch stretch = { .piece = piece, .from = offset, .function = &in->functions[i] };

	stretch.to = own && own < next ? own : next;
	stretch.to = stretch.to < piece->count - offset ? offset + stretch.to : piece->count;
	end = sweep(survey, &stretch);
	/* The next one begins inside an instruction of this one, which a jump there would cut. */
	if (own >= next && end - offset > next)
		in->functions[i + 1].reason = TP_REFUSE_ENTRY;
	return stretch.to;
}

/* All functions of a piece, and what is between them; @i is the first that is not before it. */
static uint64_t sweep_piece(struct survey *survey, const struct tp_piece *piece, uint64_t i)
{
	const struct tp_survey *in = survey->in;
	struct stretch between = { .piece = piece };

	for (; i < in->function_count && in->functions[i].vaddr - piece->vaddr < piece->count;
	     i++) {
		between.to = in->functions[i].vaddr - piece->vaddr;
		sweep(survey, &between);
		between.from = sweep_function(survey, piece, i, between.to);
	}
	between.to = piece->count;
	sweep(survey, &between);
	return i;
}

static void sweep_code(struct survey *survey)
{
	const struct tp_survey *in = survey->in;
	uint64_t i = 0;

	for (uint64_t k = 0; k < in->code_count; k++) {
		while (i < in->function_count && in->functions[i].vaddr < in->code[k].vaddr)
			i++;
		i = sweep_piece(survey, &in->code[k], i);
	}
}

static int compare_tables(const void *left, const void *right)
{
	const struct table *a = left, *b = right;

	if (a->vaddr != b->vaddr)
		return a->vaddr < b->vaddr ? -1 : 1;
	return (a->entry_bytes > b->entry_bytes) - (a->entry_bytes < b->entry_bytes);
}

/* Up to @end, where the next one begins: its entries would mean other places from here. */
static void follow_table(struct survey *survey, const struct table *table, uint64_t end)
{
	uint64_t room = 0, target;
	const uint8_t *entry = read_at(survey, table->vaddr, &room);

	if (room > end - table->vaddr)
		room = end - table->vaddr;
	survey->out->tables++;
	for (uint32_t i = 0; i < TABLE_ENTRIES && room >= table->entry_bytes; i++) {
		target = table_target(table, entry);
		if (!code_at(survey, target))
			break;
		hit(survey, target, TP_REFUSE_TABLE);
		entry += table->entry_bytes;
		room -= table->entry_bytes;
	}
}

static void follow_tables(struct survey *survey)
{
	const struct table *tables = survey->tables;
	size_t next;

	if (survey->table_count)
		qsort(survey->tables, survey->table_count, sizeof(*tables), compare_tables);
	for (size_t i = 0; i < survey->table_count; i = next) {
		uint64_t end = UINT64_MAX;

		for (next = i + 1; next < survey->table_count; next++)
			if (tables[next].vaddr != tables[i].vaddr)
				break;
		if (next < survey->table_count)
			end = tables[next].vaddr;
		follow_table(survey, &tables[i], end);
		if (tables[next - 1].entry_bytes != tables[i].entry_bytes)
			follow_table(survey, &tables[next - 1], end);
	}
}

/* Pointers in data: any aligned word that could be one. */
static void follow_words(struct survey *survey, const struct tp_piece *piece)
{
	uint64_t value, offset = -piece->vaddr % sizeof(value);

	for (; offset < piece->count && piece->count - offset >= sizeof(value);
	     offset += sizeof(value)) {
		memcpy(&value, piece->bytes + offset, sizeof(value));
		hit(survey, value, TP_REFUSE_TABLE);
	}
}

static void follow_pointers(struct survey *survey)
{
	const struct tp_survey *in = survey->in;

	follow_tables(survey);
	for (uint64_t i = 0; i < in->data_count; i++)
		follow_words(survey, &in->data[i]);
	for (uint64_t i = 0; i < in->target_count; i++)
		hit(survey, in->targets[i], TP_REFUSE_TABLE);
}

/** Does the code end here, for what follows to be reached from elsewhere only? */
bool tp_ends_code(const struct tp_decoded *insn)
{
	return insn->flow == TP_FLOW_RET || insn->flow == TP_FLOW_JMP ||
	       insn->flow == TP_FLOW_JMP_INDIRECT;
}

static bool has_rex_b(const uint8_t *code, const struct tp_decoded *insn)
{
	return insn->opcode_at && (code[insn->opcode_at - 1] & 0xf1) == 0x41;
}

/* Far, or through rsp, which holds another value once the stub has pushed a return address. */
static bool is_fixed_indirect(const uint8_t *code, const struct tp_decoded *insn)
{
	uint8_t modrm = code[insn->modrm_at], operation = modrm >> 3 & 7, rm = modrm & 7;

	if (operation == 3 || operation == 5)
		return true;
	if (insn->flow != TP_FLOW_CALL_INDIRECT || rm != 4 || has_rex_b(code, insn))
		return false;
	return modrm >> 6 == 3 || (code[insn->modrm_at + 1] & 7) == 4;
}

/* disp32(%eip): the sum is cut to 32 bits. */
static bool is_eip_relative(const uint8_t *code, const struct tp_decoded *insn)
{
	return insn->rip_relative && memchr(code, 0x67, insn->opcode_at);
}

/** May this instruction be in a window, where it is the last or not? */
enum tp_refusal tp_refuse_insn(const uint8_t *code, const struct tp_decoded *insn, bool last)
{
	switch (insn->flow) {
	case TP_FLOW_SYSCALL:
		return TP_REFUSE_SYSCALL;
	case TP_FLOW_STOP:
	case TP_FLOW_XBEGIN:
		return TP_REFUSE_TRAP;
	case TP_FLOW_CALL:
		return last ? TP_REFUSE_NOTHING : TP_REFUSE_CALL;
	case TP_FLOW_CALL_INDIRECT:
		if (!last)
			return TP_REFUSE_CALL;
		break;
	case TP_FLOW_JMP_INDIRECT:
		break;
	default:
		return is_eip_relative(code, insn) ? TP_REFUSE_MOVE : TP_REFUSE_NOTHING;
	}
	if (is_eip_relative(code, insn) || is_fixed_indirect(code, insn))
		return TP_REFUSE_MOVE;
	return TP_REFUSE_NOTHING;
}

static void add_insn(struct window *window, const uint8_t *code, const struct tp_decoded *insn)
{
	if (window->bytes)
		window->heads |= 1u << window->bytes;
	if (insn->rip_relative || tp_is_direct_branch(insn))
		window->flags |= TP_FUNCTION_MOVES;
	if (insn->flow == TP_FLOW_CALL || insn->flow == TP_FLOW_CALL_INDIRECT)
		window->flags |= TP_FUNCTION_CALLS;
	if (tp_is_direct_branch(insn))
		window->targets[window->target_count++] =
			tp_branch_target(code, insn, window->addr + window->bytes);
	window->bytes += insn->length;
}

/*
 * The code has ended: are the bytes up to the fifth nobody's? Zeros inside the function may be the
 * first instruction of another block; NOPs and int3s there only align one, and a branch to them
 * would have been seen.
 */
static bool is_padding(const struct window *window, uint64_t offset)
{
	while (offset < JUMP_BYTES) {
		const uint8_t *code = window->code + offset;
		struct tp_decoded insn;

		if (offset >= window->room)
			return false;
		if (*code == 0xcc || (!*code && offset >= window->own)) {
			offset++;
			continue;
		}
		insn = tp_decode(code, window->room - offset);
		if (!insn.length || !tp_is_nop(code, &insn))
			return false;
		offset += insn.length;
	}
	return offset <= window->next;
}

/* Collect whole instructions until there are five bytes. */
static enum tp_refusal collect(struct window *window)
{
	enum tp_refusal refusal;
	struct tp_decoded insn = { 0 };

	while (window->bytes < JUMP_BYTES && !tp_ends_code(&insn)) {
		const uint8_t *code = window->code + window->bytes;

		if (window->bytes >= window->room)
			return TP_REFUSE_SHORT;
		if (window->bytes >= window->next)
			return TP_REFUSE_ENTRY;
		if (window->own && window->bytes >= window->own)
			return TP_REFUSE_SHORT;
		insn = tp_decode(code, window->room - window->bytes);
		if (!insn.length)
			return TP_REFUSE_DECODE;
		refusal = tp_refuse_insn(code, &insn, window->bytes + insn.length >= JUMP_BYTES);
		if (refusal)
			return refusal;
		add_insn(window, code, &insn);
	}
	if (window->bytes >= JUMP_BYTES)
		return window->bytes > window->next ? TP_REFUSE_ENTRY : TP_REFUSE_NOTHING;
	if (!is_padding(window, window->bytes))
		return TP_REFUSE_SHORT;
	window->bytes = JUMP_BYTES;
	window->flags |= TP_FUNCTION_PADDED;
	return TP_REFUSE_NOTHING;
}

static enum tp_refusal refuse_by_flags(const struct tp_function *function)
{
	if (function->flags & TP_FUNCTION_COLD)
		return TP_REFUSE_COLD;
	if (function->flags & TP_FUNCTION_SIGRETURN)
		return TP_REFUSE_SIGRETURN;
	return function->flags & TP_FUNCTION_GO ? TP_REFUSE_GO : TP_REFUSE_NOTHING;
}

static bool branches_inside(const struct window *window)
{
	for (uint8_t i = 0; i < window->target_count; i++) {
		uint64_t inside = window->targets[i] - window->addr;

		if (inside > 0 && inside < window->bytes)
			return true;
	}
	return false;
}

/* Lay out what is known around the site of function @i; false: there is no code. */
static bool open_window(const struct survey *survey, uint64_t i, struct window *window)
{
	const struct tp_function *function = &survey->in->functions[i];
	const struct tp_piece *piece = code_at(survey, function->vaddr);
	uint64_t offset, next = bytes_to_next(survey->in, i);

	if (!piece)
		return false;
	offset = function->vaddr - piece->vaddr + function->at;
	*window = (struct window){
		.code = piece->bytes + offset,
		.addr = piece->vaddr + offset,
		.room = piece->count - offset,
		.own = function->bytes > function->at ? function->bytes - function->at : 0,
		.next = next > function->at ? next - function->at : 0,
	};
	return true;
}

/* What the sweep has found to go into the jump stands in the function's reason. */
static enum tp_refusal decide(const struct survey *survey, uint64_t i)
{
	struct tp_function *function = &survey->in->functions[i];
	enum tp_refusal refusal = refuse_by_flags(function);
	struct window window;

	if (refusal)
		return refusal;
	if (!open_window(survey, i, &window))
		return TP_REFUSE_OUTSIDE;
	refusal = collect(&window);
	if (refusal)
		return refusal;
	if (function->reason)
		return function->reason;
	if (branches_inside(&window))
		return TP_REFUSE_BRANCH;
	function->window = window.bytes;
	function->heads = window.heads;
	function->flags |= window.flags;
	return TP_REFUSE_NOTHING;
}

/*
 * Of a refused function: the bytes of its first instruction, if it is not another function's, and can
 * be done elsewhere by itself. An int3 over its first byte leaves all other bytes as they are.
 */
static uint8_t first_alone(const struct survey *survey, uint64_t i, enum tp_refusal refusal)
{
	struct tp_decoded insn;
	struct window window;

	if (refusal == TP_REFUSE_NOTHING || refuse_by_flags(&survey->in->functions[i]) ||
	    !open_window(survey, i, &window))
		return 0;
	insn = tp_decode(window.code, window.room);
	if (!insn.length || insn.length > window.next || (window.own && insn.length > window.own) ||
	    tp_refuse_insn(window.code, &insn, true))
		return 0;
	return insn.length;
}

/*
 * A natural pun: only the first byte becomes that of a JMP, whose distance is the bytes that follow.
 * These stay what they are, so it does not matter who else goes there. They must not be another
 * function's, which may be patched itself.
 */
static bool makes_pun(const struct survey *survey, uint64_t i, enum tp_refusal refusal)
{
	struct window window;

	return (refusal == TP_REFUSE_SHORT || refusal == TP_REFUSE_CALL ||
		refusal == TP_REFUSE_SYSCALL || refusal == TP_REFUSE_BRANCH ||
		refusal == TP_REFUSE_TABLE) &&
	       open_window(survey, i, &window) && window.room >= JUMP_BYTES &&
	       window.next >= JUMP_BYTES && *window.code != JMP_REL32;
}

/** Decode a module's code once and decide for each of its functions. */
int tp_survey(const struct tp_survey *in, struct tp_surveyed *out)
{
	struct survey survey = { .in = in, .out = out, .absolute = is_absolute(in) };
	int err = 0;

	memset(out, 0, sizeof(*out));
	if (!pieces_are_sound(in->code, in->code_count) ||
	    !pieces_are_sound(in->data, in->data_count) ||
	    !functions_are_sound(in->functions, in->function_count))
		return -EINVAL;
	err = open_bitmap(&survey);
	for (uint64_t i = 0; !err && i < in->function_count; i++) {
		start_function(&in->functions[i]);
		mark_site(&survey, &in->functions[i]);
	}
	if (!err) {
		sweep_code(&survey);
		err = survey.err;
	}
	if (!err)
		follow_pointers(&survey);
	for (uint64_t i = 0; !err && i < in->function_count; i++) {
		enum tp_refusal refusal = decide(&survey, i);
		uint8_t alone = first_alone(&survey, i, refusal);

		in->functions[i].reason = (uint8_t)refusal;
		in->functions[i].alone = alone;
		in->functions[i].first = makes_pun(&survey, i, refusal) ? alone : 0;
	}
	free(survey.tables);
	free(survey.first_bit);
	free(survey.interior);
	return err;
}
