/* SPDX-License-Identifier: Apache-2.0 */
/**
 * @file
 * What the unwind tables of a file say of its functions: where they are, which of them are only
 * parts of one, and where exceptions land. The layouts are from the LSB core specification, 10.6, and
 * the DWARF standard, 6.4; the table of landing pads is the one that all languages of GCC and LLVM
 * share. What is read belongs to a stranger: a reader takes no byte outside of what it was given.
 */
#include <errno.h>
#include <stdbool.h>
#include <string.h>

#include "textpoke.h"

/* Encodings of pointers: how long in the low bits, from where in the next three. */
enum {
	PE_ABSPTR = 0x00,
	PE_ULEB128 = 0x01,
	PE_UDATA2 = 0x02,
	PE_UDATA4 = 0x03,
	PE_UDATA8 = 0x04,
	PE_SLEB128 = 0x09,
	PE_SDATA2 = 0x0a,
	PE_SDATA4 = 0x0b,
	PE_SDATA8 = 0x0c,
	PE_FORMAT = 0x0f,
	PE_PCREL = 0x10,
	PE_FUNCREL = 0x40,
	PE_ALIGNED = 0x50,
	PE_BASE =
		0xf0, /* the last bit says that the pointer is behind the address: not read here */
	PE_OMIT = 0xff,
};

/* Call frame instructions; the first three carry an operand in their low six bits. */
enum {
	CFA_ADVANCE_LOC = 0x40,
	CFA_OFFSET = 0x80,
	CFA_RESTORE = 0xc0,
	CFA_NOP = 0x00,
	CFA_ADVANCE_LOC1 = 0x02,
	CFA_ADVANCE_LOC2 = 0x03,
	CFA_ADVANCE_LOC4 = 0x04,
	CFA_OFFSET_EXTENDED = 0x05,
	CFA_RESTORE_EXTENDED = 0x06,
	CFA_UNDEFINED = 0x07,
	CFA_SAME_VALUE = 0x08,
	CFA_REGISTER = 0x09,
	CFA_REMEMBER_STATE = 0x0a,
	CFA_RESTORE_STATE = 0x0b,
	CFA_DEF_CFA = 0x0c,
	CFA_DEF_CFA_REGISTER = 0x0d,
	CFA_DEF_CFA_OFFSET = 0x0e,
	CFA_DEF_CFA_EXPRESSION = 0x0f,
	CFA_EXPRESSION = 0x10,
	CFA_OFFSET_EXTENDED_SF = 0x11,
	CFA_DEF_CFA_SF = 0x12,
	CFA_DEF_CFA_OFFSET_SF = 0x13,
	CFA_VAL_OFFSET = 0x14,
	CFA_VAL_OFFSET_SF = 0x15,
	CFA_VAL_EXPRESSION = 0x16,
	CFA_GNU_ARGS_SIZE = 0x2e,
	CFA_GNU_NEGATIVE_OFFSET_EXTENDED = 0x2f,
};

enum {
	RSP = 7,	       /* DWARF's number for it */
	AFTER_CALL = 8,	       /* bytes from rsp to the caller's frame when only CALL has pushed */
	LEB128_BITS = 64,      /* a longer number is damage */
	MOST_LETTERS = 16,     /* of an augmentation: compilers write five */
	MOST_CIE_BYTES = 1024, /* compilers write thirty */
	MOST_REMEMBERED = 8,   /* states: compilers nest one */
	CIES_KEPT = 64,	       /* most files have two or three */
	EXTENDED_LENGTH = -1,  /* a 64-bit length follows: no linker writes one here */
	LSDA_TURNS = 4,	       /* tables of landing pads may be shared, but not by everybody */
	LSDA_TURNS_MORE = 4096,
};

/* The next byte of a piece of the file; once it has failed, everything read is 0. */
struct reader {
	const uint8_t *bytes;
	uint64_t vaddr; /* of bytes[0] */
	uint64_t at;
	uint64_t end;
	bool failed;
};

/* The rule for the caller's frame. */
struct cfa {
	uint64_t reg;
	int64_t offset;
	bool is_expression;
};

struct cie {
	uint64_t at; /* in the section */
	bool known;  /* this entry of the cache is in use */
	bool usable;
	bool sized; /* FDEs have augmentation data */
	bool signal;
	uint8_t pointer;
	uint8_t lsda;
	int64_t data_align;
	struct cfa cfa;
};

struct walk {
	const struct tp_piece *section;
	struct cie cies[CIES_KEPT];
	struct tp_frame *rows;
	uint64_t room;
	uint64_t count;
};

static bool take(struct reader *reader, uint64_t bytes)
{
	if (reader->failed || bytes > reader->end - reader->at)
		reader->failed = true;
	else
		reader->at += bytes;
	return !reader->failed;
}

static uint64_t read_uint(struct reader *reader, unsigned int bytes)
{
	uint64_t value = 0;

	if (take(reader, bytes))
		memcpy(&value, reader->bytes + reader->at - bytes, bytes);
	return value;
}

static uint8_t read_byte(struct reader *reader)
{
	return (uint8_t)read_uint(reader, 1);
}

static uint64_t read_sint(struct reader *reader, unsigned int bytes)
{
	uint64_t value = read_uint(reader, bytes), sign = 1ull << (8 * bytes - 1);

	return (value ^ sign) - sign;
}

static uint64_t read_leb128(struct reader *reader, bool is_signed)
{
	uint64_t value = 0;
	unsigned int shift = 0;
	uint8_t byte;

	do {
		byte = read_byte(reader);
		if (shift < LEB128_BITS)
			value |= (uint64_t)(byte & 0x7f) << shift;
		shift += 7;
	} while (byte & 0x80);
	if (is_signed && byte & 0x40 && shift < LEB128_BITS)
		value |= ~0ull << shift;
	return value;
}

static uint64_t read_uleb(struct reader *reader)
{
	return read_leb128(reader, false);
}

/* A block of as many bytes as its first number says. */
static void skip_block(struct reader *reader)
{
	take(reader, read_uleb(reader));
}

static uint64_t read_format(struct reader *reader, uint8_t encoding)
{
	switch (encoding & PE_FORMAT) {
	case PE_ABSPTR:
	case PE_UDATA8:
	case PE_SDATA8:
		return read_uint(reader, 8);
	case PE_UDATA4:
		return read_uint(reader, 4);
	case PE_SDATA4:
		return read_sint(reader, 4);
	case PE_UDATA2:
		return read_uint(reader, 2);
	case PE_SDATA2:
		return read_sint(reader, 2);
	case PE_ULEB128:
		return read_uleb(reader);
	case PE_SLEB128:
		return read_leb128(reader, true);
	default:
		reader->failed = true;
		return 0;
	}
}

/* A pointer; 0 stays 0, whatever it is relative to. */
static uint64_t read_pointer(struct reader *reader, uint8_t encoding, uint64_t function)
{
	uint64_t place, value;

	if (encoding == PE_ALIGNED)
		take(reader, -(reader->vaddr + reader->at) & 7);
	place = reader->vaddr + reader->at;
	value = read_format(reader, encoding);
	if (!value)
		return 0;
	switch (encoding & PE_BASE) {
	case PE_ABSPTR:
	case PE_ALIGNED:
		return value;
	case PE_PCREL:
		return value + place;
	case PE_FUNCREL:
		return value + function;
	default: /* relative to tables that only a running process has */
		reader->failed = true;
		return 0;
	}
}

/*
 * Apply instructions until the location advances: what is left is the rule at the first one. An
 * unknown instruction ends it too.
 */
static void run_first_row(struct reader *code, const struct cie *cie, struct cfa *cfa)
{
	struct cfa remembered[MOST_REMEMBERED];
	unsigned int depth = 0;

	while (!code->failed && code->at < code->end) {
		uint8_t op = read_byte(code);

		switch (op & 0xc0) {
		case CFA_ADVANCE_LOC:
			if (op & 0x3f)
				return;
			continue;
		case CFA_OFFSET:
			read_uleb(code);
			continue;
		case CFA_RESTORE:
			continue;
		}
		switch (op) {
		case CFA_NOP:
			break;
		case CFA_ADVANCE_LOC1:
		case CFA_ADVANCE_LOC2:
		case CFA_ADVANCE_LOC4:
			if (read_uint(code, 1u << (op - CFA_ADVANCE_LOC1)))
				return;
			break;
		case CFA_RESTORE_EXTENDED:
		case CFA_UNDEFINED:
		case CFA_SAME_VALUE:
		case CFA_GNU_ARGS_SIZE:
			read_uleb(code);
			break;
		case CFA_OFFSET_EXTENDED:
		case CFA_OFFSET_EXTENDED_SF:
		case CFA_REGISTER:
		case CFA_VAL_OFFSET:
		case CFA_VAL_OFFSET_SF:
		case CFA_GNU_NEGATIVE_OFFSET_EXTENDED:
			read_uleb(code);
			read_uleb(code);
			break;
		case CFA_REMEMBER_STATE:
			if (depth < MOST_REMEMBERED)
				remembered[depth++] = *cfa;
			break;
		case CFA_RESTORE_STATE:
			if (depth)
				*cfa = remembered[--depth];
			break;
		case CFA_DEF_CFA:
			cfa->reg = read_uleb(code);
			cfa->offset = (int64_t)read_uleb(code);
			cfa->is_expression = false;
			break;
		case CFA_DEF_CFA_SF:
			cfa->reg = read_uleb(code);
			cfa->offset =
				(int64_t)(read_leb128(code, true) * (uint64_t)cie->data_align);
			cfa->is_expression = false;
			break;
		case CFA_DEF_CFA_REGISTER:
			cfa->reg = read_uleb(code);
			cfa->is_expression = false;
			break;
		case CFA_DEF_CFA_OFFSET:
			cfa->offset = (int64_t)read_uleb(code);
			break;
		case CFA_DEF_CFA_OFFSET_SF:
			cfa->offset =
				(int64_t)(read_leb128(code, true) * (uint64_t)cie->data_align);
			break;
		case CFA_DEF_CFA_EXPRESSION:
			skip_block(code);
			cfa->is_expression = true;
			break;
		case CFA_EXPRESSION:
		case CFA_VAL_EXPRESSION:
			read_uleb(code);
			skip_block(code);
			break;
		default:
			return;
		}
	}
}

/* The entry at @at, without its length. False: there is none that can be read. */
static bool open_entry(const struct tp_piece *section, uint64_t at, struct reader *entry)
{
	uint32_t length;

	if (at > section->count || section->count - at < sizeof(length))
		return false;
	memcpy(&length, section->bytes + at, sizeof(length));
	at += sizeof(length);
	if (length == (uint32_t)EXTENDED_LENGTH || length > section->count - at)
		return false;
	*entry = (struct reader){ section->bytes, section->vaddr, at, at + length, false };
	return true;
}

/* What the letters of a CIE's augmentation string say; the data they speak of comes next. */
static void read_augmentation(struct reader *entry, const uint8_t *letters, struct cie *cie)
{
	uint64_t end = read_uleb(entry);

	end = end <= entry->end - entry->at ? entry->at + end : entry->end;
	cie->sized = true;
	for (letters++; *letters && !entry->failed; letters++) {
		uint8_t encoding;

		switch (*letters) {
		case 'R':
			cie->pointer = read_byte(entry);
			break;
		case 'L':
			cie->lsda = read_byte(entry);
			break;
		case 'P': /* the personality routine, whose address nobody needs */
			encoding = read_byte(entry);
			read_pointer(entry,
				     encoding == PE_ALIGNED ? encoding : encoding & PE_FORMAT, 0);
			break;
		case 'S':
			cie->signal = true;
			break;
		default: /* a letter without data, or one that nobody knows */
			break;
		}
	}
	if (entry->at > end)
		entry->failed = true;
	entry->at = end;
}

static void read_cie(const struct tp_piece *section, struct cie *cie)
{
	struct reader entry;
	const uint8_t *letters;
	uint64_t length;
	uint8_t version;

	cie->pointer = PE_ABSPTR;
	cie->lsda = PE_OMIT;
	if (!open_entry(section, cie->at, &entry) || read_uint(&entry, 4))
		return;
	if (entry.end - entry.at > MOST_CIE_BYTES)
		entry.end = entry.at + MOST_CIE_BYTES;
	version = read_byte(&entry);
	letters = section->bytes + entry.at;
	length = strnlen((const char *)letters,
			 entry.end - entry.at < MOST_LETTERS ? entry.end - entry.at : MOST_LETTERS);
	if (length == MOST_LETTERS || !take(&entry, length + 1) || (length && *letters != 'z'))
		return;
	if (version != 1 && version != 3)
		return;
	read_uleb(&entry); /* code alignment: 1 */
	cie->data_align = (int64_t)read_leb128(&entry, true);
	if (version == 1) /* the return address's register */
		read_byte(&entry);
	else
		read_uleb(&entry);
	if (length)
		read_augmentation(&entry, letters, cie);
	if (entry.failed)
		return;
	cie->usable = true;
	run_first_row(&entry, cie, &cie->cfa);
}

/* The CIE at @at, read anew only when another one has taken its place in the cache. */
static const struct cie *cie_at(struct walk *walk, uint64_t at)
{
	struct cie *cie = &walk->cies[at / 8 % CIES_KEPT];

	if (!cie->known || cie->at != at) {
		*cie = (struct cie){ .at = at, .known = true };
		read_cie(walk->section, cie);
	}
	return cie;
}

static bool read_fde(struct walk *walk, struct reader *entry, struct tp_frame *row)
{
	uint64_t place = entry->at, back = read_uint(entry, 4), end;
	const struct cie *cie;
	struct cfa cfa;

	if (entry->failed || !back || back > place)
		return false;
	cie = cie_at(walk, place - back);
	if (!cie->usable)
		return false;
	row->vaddr = read_pointer(entry, cie->pointer, 0);
	row->bytes = read_format(entry, cie->pointer);
	row->flags = cie->signal ? TP_FRAME_SIGNAL : 0;
	row->lsda = 0;
	if (entry->failed || !row->bytes || row->bytes > UINT64_MAX - row->vaddr)
		return false;
	if (cie->sized) {
		end = read_uleb(entry);
		if (entry->failed || end > entry->end - entry->at)
			return false;
		end += entry->at;
		if (cie->lsda != PE_OMIT)
			row->lsda = read_pointer(entry, cie->lsda, row->vaddr);
		if (entry->failed)
			row->lsda = 0;
		entry->failed = false;
		entry->at = end;
	}
	cfa = cie->cfa;
	run_first_row(entry, cie, &cfa);
	if (cfa.is_expression || cfa.reg != RSP || cfa.offset != AFTER_CALL)
		row->flags |= TP_FRAME_MIDDLE;
	return true;
}

/**
 * Read all entries of .eh_frame, in the order of the section. @rows takes the first @room of them,
 * @count says how many there are. A section that is damaged ends where it is.
 */
int tp_read_frames(const struct tp_piece *section, struct tp_frame *rows, uint64_t room,
		   uint64_t *count)
{
	struct walk walk = { .section = section, .rows = rows, .room = room };
	struct reader entry;
	struct tp_frame row;

	for (uint64_t at = 0; open_entry(section, at, &entry); at = entry.end) {
		uint64_t end = entry.end;

		/* No bytes: a linker's terminator, which may stand between two objects' entries. */
		if (read_fde(&walk, &entry, &row)) {
			if (walk.count < room)
				rows[walk.count] = row;
			walk.count++;
		}
		entry.end = end;
	}
	*count = walk.count;
	return 0;
}

static bool open_lsda(const struct tp_piece *pieces, uint64_t count, uint64_t vaddr,
		      struct reader *table)
{
	uint64_t low = 0, high = count;

	while (low < high) {
		uint64_t middle = low + (high - low) / 2;

		if (pieces[middle].vaddr <= vaddr)
			low = middle + 1;
		else
			high = middle;
	}
	if (!low || vaddr - pieces[low - 1].vaddr >= pieces[low - 1].count)
		return false;
	*table = (struct reader){
		.bytes = pieces[low - 1].bytes,
		.vaddr = pieces[low - 1].vaddr,
		.at = vaddr - pieces[low - 1].vaddr,
		.end = pieces[low - 1].count,
	};
	return true;
}

/* The head of a table of landing pads: what they count from, and how; @table is cut to the calls. */
static uint64_t open_calls(struct reader *table, const struct tp_frame *row, uint8_t *encoding)
{
	uint64_t base = row->vaddr, length;
	uint8_t how = read_byte(table);

	if (how != PE_OMIT)
		base = read_pointer(table, how, row->vaddr);
	if (read_byte(table) != PE_OMIT)
		read_uleb(table); /* where the types are */
	*encoding = read_byte(table) & PE_FORMAT;
	length = read_uleb(table);
	if (table->failed || length > table->end - table->at)
		table->failed = true;
	else
		table->end = table->at + length;
	return base;
}

/**
 * Find the places that exceptions land at. @pieces are the loaded segments, sorted and disjoint;
 * @pads takes the first @room addresses, @count says how many there are. A table that cannot be
 * read has none. Returns -E2BIG when tables overlap so much that no compiler has written them.
 */
int tp_read_landing_pads(const struct tp_frame *rows, uint64_t row_count,
			 const struct tp_piece *pieces, uint64_t piece_count, uint64_t *pads,
			 uint64_t room, uint64_t *count)
{
	uint64_t left = LSDA_TURNS_MORE, found = 0;

	for (uint64_t i = 0; i < piece_count; i++)
		left += pieces[i].count * LSDA_TURNS;
	for (uint64_t i = 0; i < row_count; i++) {
		struct reader table;
		uint8_t encoding;
		uint64_t base, start;

		if (!rows[i].lsda || !open_lsda(pieces, piece_count, rows[i].lsda, &table))
			continue;
		start = table.at;
		base = open_calls(&table, &rows[i], &encoding);
		if ((table.failed ? table.at : table.end) - start > left)
			return -E2BIG;
		left -= (table.failed ? table.at : table.end) - start;
		while (table.at < table.end && !table.failed) {
			uint64_t pad;

			read_format(&table, encoding); /* from where */
			read_format(&table, encoding); /* how many bytes of code */
			pad = read_format(&table, encoding);
			read_uleb(&table); /* what to do */
			if (table.failed || !pad)
				continue;
			if (found < room)
				pads[found] = base + pad;
			found++;
		}
	}
	*count = found;
	return 0;
}
