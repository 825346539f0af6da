/* SPDX-License-Identifier: Apache-2.0 */
/** @file frames.c: unwind entries and landing pads, from bytes as compilers write and damage makes them. */
#include <errno.h>
#include <stdbool.h>
#include <stdlib.h>

#include "check.h"
#include "textpoke.h"

enum { SECTION = 0x5000, FUNCTION = 0x1000, ROOM = 16 };

/* A section under construction; the copy that is read ends exactly where it does. */
struct section {
	uint8_t bytes[4096];
	uint32_t count;
	uint32_t entry; /* where the open entry's length is */
};

static void put(struct section *section, const void *bytes, size_t count)
{
	if (count)
		memcpy(section->bytes + section->count, bytes, count);
	section->count += (uint32_t)count;
}

static void put_uint(struct section *section, uint64_t value, size_t count)
{
	put(section, &value, count);
}

#define PUT(section, ...) \
	put((section), (const uint8_t[]){ __VA_ARGS__ }, sizeof((const uint8_t[]){ __VA_ARGS__ }))

static void begin_entry(struct section *section)
{
	section->entry = section->count;
	put_uint(section, 0, 4);
}

static void end_entry(struct section *section)
{
	uint32_t length;

	while (section->count % 8)
		PUT(section, 0); /* DW_CFA_nop */
	length = section->count - section->entry - 4;
	memcpy(section->bytes + section->entry, &length, sizeof(length));
}

/* A CIE as GCC writes it: version 1, alignments 1 and -8, rip, then rsp+8 and where rip is saved. */
static uint32_t put_cie(struct section *section, const char *letters, const uint8_t *data,
			size_t count)
{
	uint32_t at = section->count;

	begin_entry(section);
	put_uint(section, 0, 4);
	PUT(section, 1);
	put(section, letters, strlen(letters) + 1);
	PUT(section, 1, 0x78, 16);
	if (*letters)
		PUT(section, (uint8_t)count);
	put(section, data, count);
	PUT(section, 0x0c, 7, 8, 0x90, 1);
	end_entry(section);
	return at;
}

static void begin_fde(struct section *section, uint32_t cie)
{
	begin_entry(section);
	put_uint(section, section->count - cie, 4);
}

static void put_pcrel(struct section *section, uint64_t to)
{
	put_uint(section, to - (SECTION + section->count), 4);
}

/* An FDE of the usual form with these instructions. */
static void put_fde(struct section *section, uint32_t cie, uint64_t vaddr, const uint8_t *code,
		    size_t count)
{
	begin_fde(section, cie);
	put_pcrel(section, vaddr);
	put_uint(section, 0x20, 4);
	PUT(section, 0);
	put(section, code, count);
	end_entry(section);
}

#define PUT_FDE(section, cie, vaddr, ...)                                    \
	put_fde((section), (cie), (vaddr), (const uint8_t[]){ __VA_ARGS__ }, \
		sizeof((const uint8_t[]){ __VA_ARGS__ }))

/* Read it from memory of exactly its size, so that the sanitizer sees a step beyond. */
static uint64_t read_section(const struct section *section, struct tp_frame rows[ROOM])
{
	uint8_t *copy = malloc(section->count + !section->count);
	struct tp_piece piece = { SECTION, copy, section->count };
	uint64_t count = 99, counted = 99;

	memcpy(copy, section->bytes, section->count);
	memset(rows, 0, ROOM * sizeof(*rows));
	CHECK_EQ(tp_read_frames(&piece, rows, ROOM, &count), 0);
	CHECK_EQ(tp_read_frames(&piece, NULL, 0, &counted), 0);
	CHECK_EQ(count, counted);
	free(copy);
	return count;
}

static uint32_t put_usual_cie(struct section *section)
{
	return put_cie(section, "zR", (const uint8_t[]){ 0x1b }, 1);
}

TEST(usual_entries_give_start_and_size)
{
	struct section section = { 0 };
	struct tp_frame rows[ROOM];
	uint32_t cie = put_usual_cie(&section);

	PUT_FDE(&section, cie, FUNCTION, 0x41, 0x0e, 16);
	PUT_FDE(&section, cie, FUNCTION + 0x20, 0);
	put_uint(&section, 0, 4);
	CHECK_EQ(read_section(&section, rows), 2);
	CHECK_EQ(rows[0].vaddr, FUNCTION);
	CHECK_EQ(rows[0].bytes, 0x20);
	CHECK_EQ(rows[0].flags, 0);
	CHECK_EQ(rows[0].lsda, 0);
	CHECK_EQ(rows[1].vaddr, FUNCTION + 0x20);
}

TEST(rows_beyond_the_room_are_counted_and_not_written)
{
	struct section section = { 0 };
	uint32_t cie = put_usual_cie(&section);
	struct tp_piece piece = { SECTION, section.bytes, 0 };
	struct tp_frame rows[2] = { { 0 }, { .vaddr = 77 } };
	uint64_t count = 0;

	for (uint64_t i = 0; i < 5; i++)
		PUT_FDE(&section, cie, FUNCTION + 0x20 * i, 0);
	piece.count = section.count;
	CHECK_EQ(tp_read_frames(&piece, rows, 1, &count), 0);
	CHECK_EQ(count, 5);
	CHECK_EQ(rows[0].vaddr, FUNCTION);
	CHECK_EQ(rows[1].vaddr, 77);
}

TEST(a_terminator_between_two_objects_ends_nothing)
{
	struct section section = { 0 };
	struct tp_frame rows[ROOM];

	PUT_FDE(&section, put_usual_cie(&section), FUNCTION, 0);
	put_uint(&section, 0, 4);
	PUT_FDE(&section, put_usual_cie(&section), FUNCTION + 0x20, 0);
	CHECK_EQ(read_section(&section, rows), 2);
	CHECK_EQ(rows[1].vaddr, FUNCTION + 0x20);
}

TEST(every_encoding_of_pointers_that_toolchains_write)
{
	static const struct {
		uint8_t encoding;
		uint8_t bytes;
	} forms[] = {
		{ 0x00, 8 }, { 0x02, 2 }, { 0x03, 4 }, { 0x04, 8 }, { 0x0a, 2 }, { 0x0b, 4 },
		{ 0x0c, 8 }, { 0x10, 8 }, { 0x1a, 2 }, { 0x1b, 4 }, { 0x1c, 8 }, { 0x50, 8 }
	};

	for (size_t i = 0; i < sizeof(forms) / sizeof(*forms); i++) {
		struct section section = { 0 };
		struct tp_frame rows[ROOM];
		uint32_t cie = put_cie(&section, "zR", &forms[i].encoding, 1);

		CHECK_NOTE("encoding %#x", forms[i].encoding);
		begin_fde(&section, cie);
		while (forms[i].encoding == 0x50 && section.count % 8)
			PUT(&section, 0xee);
		put_uint(&section,
			 forms[i].encoding & 0x10 && forms[i].encoding != 0x50 ?
				 FUNCTION - (uint64_t)(SECTION + section.count) :
				 FUNCTION,
			 forms[i].bytes);
		put_uint(&section, 0x30, forms[i].bytes);
		PUT(&section, 0);
		end_entry(&section);
		CHECK_EQ(read_section(&section, rows), 1);
		CHECK_EQ(rows[0].vaddr, FUNCTION);
		CHECK_EQ(rows[0].bytes, 0x30);
		CHECK_EQ(rows[0].flags, 0);
	}
}

TEST(encodings_that_need_a_running_process_give_nothing)
{
	static const uint8_t encodings[] = { 0x20, 0x2b, 0x3b, 0x9b, 0x0f, 0x05, 0xff };

	for (size_t i = 0; i < sizeof(encodings); i++) {
		struct section section = { 0 };
		struct tp_frame rows[ROOM];
		uint32_t cie = put_cie(&section, "zR", &encodings[i], 1);

		CHECK_NOTE("encoding %#x", encodings[i]);
		PUT_FDE(&section, cie, FUNCTION, 0);
		PUT_FDE(&section, put_usual_cie(&section), FUNCTION + 0x20, 0);
		CHECK_EQ(read_section(&section, rows), 1); /* of the second object */
		CHECK_EQ(rows[0].vaddr, FUNCTION + 0x20);
	}
}

TEST(a_cie_without_augmentation_has_absolute_pointers)
{
	struct section section = { 0 };
	struct tp_frame rows[ROOM];
	uint32_t cie = put_cie(&section, "", NULL, 0);

	begin_fde(&section, cie);
	put_uint(&section, FUNCTION, 8);
	put_uint(&section, 0x40, 8);
	PUT(&section, 0x0e, 24);
	end_entry(&section);
	CHECK_EQ(read_section(&section, rows), 1);
	CHECK_EQ(rows[0].vaddr, FUNCTION);
	CHECK_EQ(rows[0].bytes, 0x40);
	CHECK_EQ(rows[0].flags, TP_FRAME_MIDDLE);
}

TEST(version_3_has_a_number_for_the_return_address)
{
	struct section section = { 0 };
	struct tp_frame rows[ROOM];

	begin_entry(&section);
	put_uint(&section, 0, 4);
	PUT(&section, 3, 'z', 'R', 0, 1, 0x78, 0x90, 0x00, 1, 0x1b, 0x0c, 7, 8);
	end_entry(&section);
	PUT_FDE(&section, 0, FUNCTION, 0);
	CHECK_EQ(read_section(&section, rows), 1);
	CHECK_EQ(rows[0].vaddr, FUNCTION);
	CHECK_EQ(rows[0].flags, 0);
}

TEST(signal_frames_are_told_by_their_letter)
{
	struct section section = { 0 };
	struct tp_frame rows[ROOM];
	uint32_t plain = put_usual_cie(&section);
	uint32_t signal = put_cie(&section, "zRS", (const uint8_t[]){ 0x1b }, 1);

	PUT_FDE(&section, plain, FUNCTION, 0);
	PUT_FDE(&section, signal, FUNCTION + 0x20, 0);
	PUT_FDE(&section, plain, FUNCTION + 0x40, 0);
	CHECK_EQ(read_section(&section, rows), 3);
	CHECK_EQ(rows[0].flags, 0);
	CHECK_EQ(rows[1].flags, TP_FRAME_SIGNAL);
	CHECK_EQ(rows[2].flags, 0);
}

TEST(personality_and_lsda_are_read_in_any_order_of_their_letters)
{
	struct section section = { 0 };
	struct tp_frame rows[ROOM];
	uint32_t cie =
		put_cie(&section, "zPLR", (const uint8_t[]){ 0x9b, 1, 2, 3, 4, 0x1b, 0x1b }, 7);

	begin_fde(&section, cie);
	put_pcrel(&section, FUNCTION);
	put_uint(&section, 0x20, 4);
	PUT(&section, 4);
	put_pcrel(&section, 0x7000);
	end_entry(&section);
	begin_fde(&section, cie);
	put_pcrel(&section, FUNCTION + 0x20);
	put_uint(&section, 0x20, 4);
	PUT(&section, 4);
	put_uint(&section, 0, 4); /* this one has none */
	end_entry(&section);
	CHECK_EQ(read_section(&section, rows), 2);
	CHECK_EQ(rows[0].lsda, 0x7000);
	CHECK_EQ(rows[1].lsda, 0);
	CHECK_EQ(rows[1].vaddr, FUNCTION + 0x20);
}

/* One FDE with these instructions: is it the middle of a function? */
#define IS_MIDDLE(...) \
	is_middle((const uint8_t[]){ __VA_ARGS__ }, sizeof((const uint8_t[]){ __VA_ARGS__ }))

static bool is_middle(const uint8_t *code, size_t count)
{
	struct section section = { 0 };
	struct tp_frame rows[ROOM];

	put_fde(&section, put_usual_cie(&section), FUNCTION, code, count);
	CHECK_EQ(read_section(&section, rows), 1);
	return rows[0].flags == TP_FRAME_MIDDLE;
}

TEST(a_part_of_a_function_begins_with_another_frame)
{
	CHECK(!IS_MIDDLE(0));
	CHECK(!IS_MIDDLE(0x41, 0x0e, 16));	   /* one byte on: push */
	CHECK(IS_MIDDLE(0x0e, 16));		   /* def_cfa_offset */
	CHECK(IS_MIDDLE(0x0e, 16, 0x41, 0x0e, 8)); /* and ends before it is 8 */
	CHECK(!IS_MIDDLE(0x0e, 16, 0x0e, 8));	   /* the last one counts */
	CHECK(IS_MIDDLE(0x0c, 6, 16));		   /* def_cfa rbp+16 */
	CHECK(IS_MIDDLE(0x0d, 6));		   /* def_cfa_register rbp */
	CHECK(!IS_MIDDLE(0x0c, 7, 8));		   /* def_cfa rsp+8 */
	CHECK(IS_MIDDLE(0x0f, 2, 0x77, 8));	   /* def_cfa_expression */
	CHECK(!IS_MIDDLE(0x0f, 2, 0x77, 8, 0x0c, 7, 8));
	CHECK(IS_MIDDLE(0x12, 7, 0x7e));    /* def_cfa_sf rsp, -2 * -8 */
	CHECK(!IS_MIDDLE(0x12, 7, 0x7f));   /* rsp, -1 * -8 */
	CHECK(IS_MIDDLE(0x13, 0x7e));	    /* def_cfa_offset_sf */
	CHECK(IS_MIDDLE(0x0e, 0x88, 0x01)); /* 136 in two bytes */
}

TEST(instructions_that_leave_the_frame_alone_are_stepped_over)
{
	CHECK(IS_MIDDLE(0x83, 2, 0x0e, 16));			/* offset rbx */
	CHECK(IS_MIDDLE(0xc3, 0x0e, 16));			/* restore */
	CHECK(IS_MIDDLE(0x05, 3, 2, 0x0e, 16));			/* offset_extended */
	CHECK(IS_MIDDLE(0x06, 3, 0x07, 16, 0x08, 3, 0x0e, 16)); /* restore, undefined, same */
	CHECK(IS_MIDDLE(0x09, 3, 2, 0x0e, 16));			/* register */
	CHECK(IS_MIDDLE(0x10, 3, 2, 0x77, 0, 0x0e, 16));	/* expression */
	CHECK(IS_MIDDLE(0x16, 3, 2, 0x77, 0, 0x0e, 16));	/* val_expression */
	CHECK(IS_MIDDLE(0x11, 3, 0x7f, 0x14, 3, 1, 0x15, 3, 0x7f, 0x0e, 16));
	CHECK(IS_MIDDLE(0x2e, 8, 0x2f, 3, 1, 0x0e, 16)); /* GNU's own two */
	CHECK(IS_MIDDLE(0x40, 0x02, 0, 0x0e, 16));	 /* advances by nothing */
	CHECK(!IS_MIDDLE(0x02, 1, 0x0e, 16));		 /* advance_loc1, 2 and 4 */
	CHECK(!IS_MIDDLE(0x03, 1, 0, 0x0e, 16));
	CHECK(!IS_MIDDLE(0x04, 1, 0, 0, 0, 0x0e, 16));
	CHECK(IS_MIDDLE(0x0e, 16, 0x0a, 0x0e, 8, 0x0b)); /* remember, restore */
	CHECK(!IS_MIDDLE(0x0b));			 /* nothing to restore */
	CHECK(!IS_MIDDLE(0x3f, 0x0e, 16));		 /* unknown: the end */
}

TEST(states_that_are_remembered_without_end_do_no_harm)
{
	uint8_t code[600];

	memset(code, 0x0a, sizeof(code));
	memset(code + 300, 0x0b, 298);
	code[298] = 0x0e;
	code[299] = 16;
	code[598] = 0x0e;
	code[599] = 24;
	CHECK(is_middle(code, sizeof(code)));
}

TEST(entries_that_make_no_sense_are_passed_over)
{
	struct section section = { 0 };
	struct tp_frame rows[ROOM];
	uint32_t cie = put_usual_cie(&section);

	begin_fde(&section, section.count + 100); /* a CIE before the section */
	PUT(&section, 1, 2, 3, 4, 5, 6, 7, 8, 0);
	end_entry(&section);
	begin_fde(&section, cie + 4); /* no CIE there */
	PUT(&section, 1, 2, 3, 4, 5, 6, 7, 8, 0);
	end_entry(&section);
	begin_fde(&section, cie); /* empty function */
	put_pcrel(&section, FUNCTION);
	put_uint(&section, 0, 8);
	end_entry(&section);
	begin_fde(&section, cie); /* augmentation data beyond the entry */
	put_pcrel(&section, FUNCTION);
	put_uint(&section, 16, 4);
	PUT(&section, 0x7f);
	end_entry(&section);
	begin_entry(&section); /* nothing but an identity */
	put_uint(&section, 4, 4);
	end_entry(&section);
	PUT_FDE(&section, cie, FUNCTION, 0);
	CHECK_EQ(read_section(&section, rows), 1);
	CHECK_EQ(rows[0].vaddr, FUNCTION);
}

TEST(a_cie_of_another_version_or_with_old_letters_is_not_used)
{
	static const uint8_t versions[] = { 0, 2, 4, 255 };
	struct tp_frame rows[ROOM];

	for (size_t i = 0; i < sizeof(versions); i++) {
		struct section section = { 0 };
		uint32_t cie = put_usual_cie(&section);

		section.bytes[cie + 8] = versions[i];
		PUT_FDE(&section, cie, FUNCTION, 0);
		CHECK_EQ(read_section(&section, rows), 0);
	}
	for (size_t i = 0; i < 2; i++) {
		struct section section = { 0 };
		uint32_t cie = put_cie(&section, i ? "eh" : "zRRRRRRRRRRRRRRRRRRR",
				       (const uint8_t[]){ 0x1b }, 1);

		PUT_FDE(&section, cie, FUNCTION, 0);
		CHECK_EQ(read_section(&section, rows), 0);
	}
}

TEST(more_cies_than_are_kept_are_read_again)
{
	struct section section = { 0 };
	struct tp_frame rows[ROOM];
	uint32_t cies[90];

	for (size_t i = 0; i < 90; i++)
		cies[i] = put_cie(&section, i % 2 ? "zRS" : "zR", (const uint8_t[]){ 0x1b }, 1);
	for (size_t i = 0; i < ROOM; i++)
		PUT_FDE(&section, cies[i * 37 % 90], FUNCTION, 0);
	CHECK_EQ(read_section(&section, rows), ROOM);
	for (size_t i = 0; i < ROOM; i++)
		CHECK_EQ(rows[i].flags, i * 37 % 90 % 2 ? TP_FRAME_SIGNAL : 0);
}

TEST(a_section_cut_off_anywhere_has_only_whole_entries)
{
	struct section section = { 0 };
	struct tp_frame rows[ROOM];
	uint32_t whole, cie = put_cie(&section, "zPLR",
				      (const uint8_t[]){ 0x03, 1, 2, 3, 4, 0x1b, 0x1b }, 7);
	uint32_t ends[3];

	for (size_t i = 0; i < 3; i++) {
		begin_fde(&section, cie);
		put_pcrel(&section, FUNCTION + 0x20 * i);
		put_uint(&section, 0x20, 4);
		PUT(&section, 4, 1, 2, 3, 4, 0x41, 0x0e, 16, 0x0f, 2, 0x77, 8);
		end_entry(&section);
		ends[i] = section.count;
	}
	for (whole = section.count; section.count; section.count--) {
		uint64_t wanted = 0;

		for (size_t i = 0; i < 3; i++)
			wanted += section.count >= ends[i];
		CHECK_NOTE("%u of %u bytes", section.count, whole);
		CHECK_EQ(read_section(&section, rows), wanted);
	}
}

TEST(lengths_that_lie_end_the_section)
{
	static const uint32_t lengths[] = { 0xffffffff, 0xfffffffe, 0x80000000, 1000, 25 };

	for (size_t i = 0; i < sizeof(lengths) / sizeof(*lengths); i++) {
		struct section section = { 0 };
		struct tp_frame rows[ROOM];
		uint32_t cie = put_usual_cie(&section);

		CHECK_NOTE("length %#x", lengths[i]);
		PUT_FDE(&section, cie, FUNCTION, 0);
		section.entry = section.count;
		PUT_FDE(&section, cie, FUNCTION + 0x20, 0);
		memcpy(section.bytes + section.entry, &lengths[i], 4);
		CHECK_EQ(read_section(&section, rows), 1);
	}
}

TEST(any_damage_stays_inside_the_section)
{
	struct tp_frame rows[ROOM];
	struct section sound = { 0 };
	uint32_t seed = 12345, cie = put_cie(&sound, "zPLR",
					     (const uint8_t[]){ 0x9b, 1, 2, 3, 4, 0x1b, 0x1b }, 7);

	for (size_t i = 0; i < 4; i++) {
		begin_fde(&sound, cie);
		put_pcrel(&sound, FUNCTION + 0x20 * i);
		put_uint(&sound, 0x20, 4);
		PUT(&sound, 4, 1, 2, 3, 4, 0x0e, 16, 0x0f, 2, 0x77, 8, 0x41, 0x0b);
		end_entry(&sound);
	}
	for (size_t turn = 0; turn < 20000; turn++) {
		struct section section = sound;

		for (size_t i = 0; i < 1 + turn % 5; i++) {
			seed = seed * 1664525u + 1013904223u;
			section.bytes[(seed >> 8) % section.count] = (uint8_t)(seed >> 24);
		}
		CHECK(read_section(&section, rows) <= ROOM);
	}
}

/* A table of landing pads, read from memory of exactly its size. */
static int read_pads(const struct section *section, uint64_t function, uint64_t pads[ROOM],
		     uint64_t *count)
{
	uint8_t *copy = malloc(section->count + !section->count);
	struct tp_piece pieces[] = { { 0x100, (const uint8_t *)"x", 1 },
				     { SECTION, copy, section->count },
				     { 0x9000, (const uint8_t *)"y", 1 } };
	struct tp_frame row = { .vaddr = function, .bytes = 0x100, .lsda = SECTION };
	int err;

	memcpy(copy, section->bytes, section->count);
	memset(pads, 0, ROOM * sizeof(*pads));
	*count = 99;
	err = tp_read_landing_pads(&row, 1, pieces, 3, pads, ROOM, count);
	free(copy);
	return err;
}

TEST(landing_pads_count_from_the_function)
{
	struct section section = { 0 };
	uint64_t pads[ROOM], count;

	/* No start of its own, types 21 bytes on, numbers as uleb128, 13 bytes of calls. */
	PUT(&section, 0xff, 0x9b, 21, 0x01, 13);
	PUT(&section, 0x04, 0x05, 0, 0); /* lands nowhere */
	PUT(&section, 0x09, 0x05, 0x30, 1);
	PUT(&section, 0x10, 0x05, 0x90, 0x02, 0);	   /* 0x110 */
	PUT(&section, 0x01, 0x7d, 0x77, 0x77, 0x77, 0x77); /* actions, behind the calls */
	CHECK_EQ(read_pads(&section, FUNCTION, pads, &count), 0);
	CHECK_EQ(count, 2);
	CHECK_EQ(pads[0], FUNCTION + 0x30);
	CHECK_EQ(pads[1], FUNCTION + 0x110);
}

TEST(landing_pads_of_fixed_size_count_from_a_start_of_their_own)
{
	struct section section = { 0 };
	uint64_t pads[ROOM], count;

	PUT(&section, 0x1b);
	put_pcrel(&section, 0x3000);
	PUT(&section, 0xff, 0x03, 26);
	for (uint32_t i = 0; i < 2; i++) {
		put_uint(&section, 0x10 * i, 4);
		put_uint(&section, 0x10, 4);
		put_uint(&section, i ? 0x44 : 0, 4);
		PUT(&section, 1);
	}
	CHECK_EQ(read_pads(&section, FUNCTION, pads, &count), 0);
	CHECK_EQ(count, 1);
	CHECK_EQ(pads[0], 0x3044);
}

TEST(a_table_cut_off_or_damaged_reads_no_byte_behind_it)
{
	struct section section = { 0 }, sound = { 0 };
	uint64_t pads[ROOM], count;
	uint32_t seed = 999;

	PUT(&sound, 0x1b, 0, 0, 0, 0, 0x9b, 21, 0x01, 12);
	for (uint32_t i = 0; i < 3; i++)
		PUT(&sound, 1, 5, 0x30, 1);
	for (section = sound; section.count; section.count--)
		CHECK_EQ(read_pads(&section, FUNCTION, pads, &count), 0);
	for (size_t turn = 0; turn < 20000; turn++) {
		section = sound;
		for (size_t i = 0; i < 1 + turn % 4; i++) {
			seed = seed * 1664525u + 1013904223u;
			section.bytes[(seed >> 8) % section.count] = (uint8_t)(seed >> 24);
		}
		CHECK_EQ(read_pads(&section, FUNCTION, pads, &count), 0);
		CHECK(count <= ROOM);
	}
}

TEST(tables_that_nobody_has_loaded_have_no_pads)
{
	struct tp_piece piece = { SECTION, (const uint8_t *)"\xff\xff\x01\x04\x01\x01\x30\x01", 8 };
	static const uint64_t places[] = { 0, 1, SECTION - 1, SECTION + 8, UINT64_MAX };
	uint64_t pads[1], count;

	for (size_t i = 0; i < sizeof(places) / sizeof(*places); i++) {
		struct tp_frame row = { .vaddr = FUNCTION, .lsda = places[i] };

		CHECK_EQ(tp_read_landing_pads(&row, 1, &piece, 1, pads, 1, &count), 0);
		CHECK_EQ(count, 0);
	}
}

TEST(tables_shared_by_all_are_refused_before_they_take_hours)
{
	enum { BYTES = 1 << 16, ROWS = 4096 };
	uint8_t *bytes = malloc(BYTES);
	struct tp_frame *rows = calloc(ROWS, sizeof(*rows));
	struct tp_piece piece = { SECTION, bytes, BYTES };
	uint64_t count = 0;

	memset(bytes, 0x80, BYTES); /* one number without end */
	memcpy(bytes, "\xff\xff\x01\xf0\xff\x03", 6);
	for (size_t i = 0; i < ROWS; i++)
		rows[i] = (struct tp_frame){ .vaddr = FUNCTION, .lsda = SECTION + (i & 1) * 8 };
	CHECK_EQ(tp_read_landing_pads(rows, ROWS, &piece, 1, NULL, 0, &count), -E2BIG);
	CHECK_EQ(tp_read_landing_pads(rows, 3, &piece, 1, NULL, 0, &count), 0);
	free(rows);
	free(bytes);
}
