/* SPDX-License-Identifier: Apache-2.0 */
/** @file functions.c: symbols, unwind entries and PLT slots become one table; every one may be damaged. */
#include <elf.h>
#include <stdbool.h>
#include <stdlib.h>

#include "check.h"
#include "textpoke.h"

enum { CODE = 0x1000, CODE_BYTES = 0x400, DATA = 0x8000, DATA_BYTES = 0x200, MOST = 64 };

/* A module under construction; what is read are copies that end exactly where the tables do. */
struct module {
	uint8_t code[CODE_BYTES];
	uint8_t data[DATA_BYTES];
	Elf64_Sym symbols[2][MOST];
	uint64_t symbol_count[2];
	char strings[2][4096];
	uint32_t string_bytes[2];
	struct tp_frame frames[MOST];
	uint64_t frame_count;
	Elf64_Rela rela[MOST];
	uint64_t rela_count;
	uint64_t relr[MOST];
	uint64_t relr_count;
	struct tp_range stubs;
	uint32_t go;
	bool without_sections;
};

struct result {
	struct tp_function functions[MOST * 8];
	struct tp_label labels[MOST * 8];
	uint64_t named[MOST * 8];
	uint64_t count;
	uint64_t named_count;
	uint64_t targets[MOST * 64];
	uint64_t target_count;
	int err;
};

static struct module *new_module(void)
{
	struct module *module = calloc(1, sizeof(*module));

	memset(module->code, 0xc3, sizeof(module->code));
	module->string_bytes[0] = module->string_bytes[1] = 1;
	return module;
}

static void add_symbol(struct module *module, int table, const char *name, uint64_t vaddr,
		       uint64_t bytes, int binding, int type)
{
	Elf64_Sym *symbol = &module->symbols[table][module->symbol_count[table]++];
	uint32_t *end = &module->string_bytes[table];

	*symbol = (Elf64_Sym){ .st_name = *end,
			       .st_info = (uint8_t)ELF64_ST_INFO(binding, type),
			       .st_shndx = 1,
			       .st_value = vaddr,
			       .st_size = bytes };
	memcpy(module->strings[table] + *end, name, strlen(name) + 1);
	*end += (uint32_t)strlen(name) + 1;
}

static void add_function(struct module *module, const char *name, uint64_t vaddr, uint64_t bytes)
{
	add_symbol(module, 0, name, vaddr, bytes, STB_GLOBAL, STT_FUNC);
}

static void add_frame(struct module *module, uint64_t vaddr, uint64_t bytes, uint64_t flags)
{
	module->frames[module->frame_count++] =
		(struct tp_frame){ .vaddr = vaddr, .bytes = bytes, .flags = flags };
}

static void add_rela(struct module *module, uint64_t slot, uint32_t symbol, uint32_t type,
		     int64_t addend)
{
	module->rela[module->rela_count++] =
		(Elf64_Rela){ slot, ELF64_R_INFO((uint64_t)symbol, type), addend };
}

static void put_code(struct module *module, uint64_t vaddr, const void *bytes, size_t count)
{
	memcpy(module->code + (vaddr - CODE), bytes, count);
}

#define PUT_CODE(module, vaddr, ...)                                  \
	put_code((module), (vaddr), (const uint8_t[]){ __VA_ARGS__ }, \
		 sizeof((const uint8_t[]){ __VA_ARGS__ }))

static void *exact(const void *bytes, size_t count)
{
	void *copy = malloc(count + !count);

	if (count)
		memcpy(copy, bytes, count);
	return copy;
}

static void read_module(const struct module *module, struct result *result)
{
	static const struct tp_range sections[2] = { { 0, 0 }, { CODE, CODE + CODE_BYTES } };
	void *rows[2], *strings[2], *code = exact(module->code, CODE_BYTES);
	void *data = exact(module->data, DATA_BYTES);
	void *frames = exact(module->frames, module->frame_count * sizeof(*module->frames));
	void *rela = exact(module->rela, module->rela_count * sizeof(*module->rela));
	void *relr = exact(module->relr, module->relr_count * sizeof(*module->relr));
	struct tp_symbol_table symbols[2];
	struct tp_piece code_piece = { CODE, code, CODE_BYTES };
	struct tp_piece data_piece = { DATA, data, DATA_BYTES };
	struct tp_piece rela_piece = { 0, rela, module->rela_count * sizeof(*module->rela) };
	struct tp_piece relr_piece = { 0, relr, module->relr_count * sizeof(*module->relr) };
	struct tp_tables tables = {
		.symbols = symbols,
		.symbol_table_count = 2,
		.dynamic = 1,
		.frames = frames,
		.frame_count = module->frame_count,
		.code = &code_piece,
		.code_count = 1,
		.data = &data_piece,
		.data_count = 1,
		.rela = &rela_piece,
		.rela_count = 1,
		.relr = &relr_piece,
		.relr_count = 1,
		.stubs = &module->stubs,
		.stub_count = module->stubs.end != 0,
		.go = module->go,
	};
	struct tp_found found = { .functions = result->functions,
				  .labels = result->labels,
				  .targets = result->named };

	for (int i = 0; i < 2; i++) {
		rows[i] = exact(module->symbols[i], module->symbol_count[i] * sizeof(Elf64_Sym));
		strings[i] = exact(module->strings[i], module->string_bytes[i]);
		symbols[i] =
			(struct tp_symbol_table){ rows[i],    module->symbol_count[i],
						  strings[i], module->string_bytes[i],
						  sections,   module->without_sections ? 0 : 2 };
	}
	memset(result, 0, sizeof(*result));
	CHECK(tp_most_functions(&tables) <= MOST * 8);
	result->err = tp_find_functions(&tables, &found);
	result->count = found.count;
	result->named_count = found.target_count;
	CHECK(found.count <= tp_most_functions(&tables));
	CHECK(found.target_count <= tp_most_functions(&tables));
	CHECK_EQ(tp_read_targets(&tables, result->targets, MOST * 64, &result->target_count), 0);
	for (uint64_t i = 1; i < result->count; i++)
		CHECK(result->functions[i].vaddr > result->functions[i - 1].vaddr);
	for (int i = 0; i < 2; i++) {
		free(rows[i]);
		free(strings[i]);
	}
	free(code);
	free(data);
	free(frames);
	free(rela);
	free(relr);
}

static const char *name_at(const struct module *module, const struct result *result, uint64_t i)
{
	const struct tp_label *label = &result->labels[i];

	return label->table == TP_NO_TABLE ? "" : module->strings[label->table] + label->text;
}

#define CHECK_NAME(i, name) CHECK(!strcmp(name_at(module, result, (i)), (name)))

TEST(aliases_are_one_function_with_the_best_name_of_the_first_table)
{
	struct module *module = new_module();
	struct result *result = malloc(sizeof(*result));

	add_symbol(module, 0, "a", CODE, 0, STB_LOCAL, STT_FUNC);
	add_symbol(module, 0, "x", CODE, 8, STB_GLOBAL, STT_NOTYPE);
	add_symbol(module, 0, "__read", CODE, 16, STB_GLOBAL, STT_FUNC);
	add_symbol(module, 0, "w", CODE, 4, STB_WEAK, STT_FUNC);
	add_symbol(module, 0, "read_twice", CODE, 4, STB_GLOBAL, STT_FUNC);
	add_symbol(module, 0, "reads", CODE, 4, STB_GLOBAL, STT_FUNC);
	add_symbol(module, 0, "readz", CODE, 4, STB_GLOBAL, STT_FUNC);
	add_symbol(module, 1, "b", CODE, 4, STB_GLOBAL, STT_FUNC);
	add_symbol(module, 1, "only", CODE + 32, 4, STB_GLOBAL, STT_FUNC);
	add_symbol(module, 0, "@version", CODE + 64, 4, STB_GLOBAL, STT_FUNC);
	add_symbol(module, 1, "other", CODE + 64, 4, STB_GLOBAL, STT_FUNC);
	read_module(module, result);
	CHECK_EQ(result->count, 3);
	CHECK_NAME(0, "reads");
	CHECK_EQ(result->functions[0].bytes, 16);
	CHECK_NAME(1, "only");
	CHECK_EQ(result->labels[1].table, 1);
	CHECK_NAME(2, "other");
	free(result);
	free(module);
}

TEST(what_is_no_function_by_its_symbol)
{
	struct module *module = new_module();
	struct result *result = malloc(sizeof(*result));

	add_symbol(module, 0, "local", CODE, 0, STB_LOCAL, STT_NOTYPE);
	add_symbol(module, 0, "object", CODE + 16, 8, STB_GLOBAL, STT_OBJECT);
	add_symbol(module, 0, "at the end", CODE + CODE_BYTES, 0, STB_GLOBAL, STT_NOTYPE);
	add_symbol(module, 0, "below", CODE - 1, 0, STB_GLOBAL, STT_FUNC);
	add_function(module, "in data", CODE + 32, 8);
	module->symbols[0][4].st_shndx = 0;
	add_function(module, "in no section", CODE + 32, 8);
	module->symbols[0][5].st_shndx = 2;
	add_function(module, "", CODE + 48, 8);
	module->symbols[0][6].st_name = 0;
	read_module(module, result);
	CHECK_EQ(result->count, 0);
	module->without_sections = true; /* then addresses decide, and index 2 may be code */
	read_module(module, result);
	CHECK_EQ(result->count, 1);
	CHECK_NAME(0, "in no section");
	free(result);
	free(module);
}

TEST(labels_inside_functions_are_targets)
{
	struct module *module = new_module();
	struct result *result = malloc(sizeof(*result));

	add_function(module, "sized", CODE, 32);
	add_symbol(module, 0, "in symbol", CODE + 8, 0, STB_GLOBAL, STT_NOTYPE);
	add_symbol(module, 0, "behind", CODE + 32, 0, STB_GLOBAL, STT_NOTYPE);
	add_frame(module, CODE + 64, 32, 0);
	add_symbol(module, 0, "at frame", CODE + 64, 0, STB_GLOBAL, STT_NOTYPE);
	add_symbol(module, 0, "in frame", CODE + 68, 0, STB_GLOBAL, STT_NOTYPE);
	add_function(module, "typed", CODE + 72, 8);
	read_module(module, result);
	CHECK_EQ(result->count, 4);
	CHECK_NAME(0, "sized");
	CHECK_NAME(1, "behind");
	CHECK_NAME(2, "at frame");
	CHECK_NAME(3, "typed");
	CHECK_EQ(result->named_count, 2);
	CHECK_EQ(result->named[0], CODE + 8);
	CHECK_EQ(result->named[1], CODE + 68);
	free(result);
	free(module);
}

TEST(frames_without_symbols_are_functions_or_parts)
{
	struct module *module = new_module();
	struct result *result = malloc(sizeof(*result));

	add_frame(module, CODE + 96, 16, TP_FRAME_MIDDLE); /* not in order */
	add_frame(module, CODE, 16, 0);
	add_function(module, "whole", CODE + 32, 48);
	add_frame(module, CODE + 32, 16, TP_FRAME_MIDDLE);
	add_frame(module, CODE + 48, 16, 0);
	add_frame(module, 0, 16, 0);
	add_frame(module, CODE + CODE_BYTES, 16, 0);
	read_module(module, result);
	CHECK_EQ(result->count, 4);
	CHECK_EQ(result->functions[0].vaddr, CODE);
	CHECK_EQ(result->functions[0].flags, 0);
	CHECK_EQ(result->functions[0].bytes, 16);
	CHECK_EQ(result->labels[0].table, TP_NO_TABLE);
	CHECK_EQ(result->labels[0].text, 0);
	CHECK_NAME(1, "whole");
	CHECK_EQ(result->functions[1].flags, 0);
	CHECK_EQ(result->functions[1].bytes, 48);
	CHECK_EQ(result->functions[2].flags, TP_FUNCTION_COLD);
	CHECK_EQ(result->labels[2].table, TP_NO_TABLE);
	CHECK_EQ(result->labels[2].text, 2); /* a part of function 1 */
	CHECK_EQ(result->functions[3].flags, TP_FUNCTION_COLD);
	free(result);
	free(module);
}

TEST(cold_parts_are_told_by_their_names)
{
	static const struct {
		const char *name;
		bool cold;
	} names[] = { { "f.cold", true },     { "f.cold.12", true }, { "f.cold.", false },
		      { ".cold", false },     { "f.colder", false }, { "f.cold.x", false },
		      { "cold", false },      { "f.cold@V1", true }, { "f.part.0.cold", true },
		      { "12", false },	      { "f.cold12", false }, { "_Z1fv.cold.0", true },
		      { "f.cold.1.2", false } };
	struct module *module = new_module();
	struct result *result = malloc(sizeof(*result));
	enum { COUNT = sizeof(names) / sizeof(*names) };

	for (uint64_t i = 0; i < COUNT; i++)
		add_symbol(module, 0, names[i].name, CODE + 16 * i, 4, STB_LOCAL, STT_FUNC);
	/* An empty part may stand where the next function begins. */
	add_symbol(module, 0, "g.cold", CODE + 16 * COUNT, 0, STB_LOCAL, STT_FUNC);
	add_symbol(module, 0, "next_one", CODE + 16 * COUNT, 4, STB_LOCAL, STT_FUNC);
	read_module(module, result);
	CHECK_EQ(result->count, COUNT + 1);
	for (uint64_t i = 0; i < COUNT; i++) {
		CHECK_NOTE("%s", names[i].name);
		CHECK_EQ(result->functions[i].flags, names[i].cold ? TP_FUNCTION_COLD : 0);
	}
	CHECK_EQ(result->functions[COUNT].flags, 0);
	free(result);
	free(module);
}

TEST(ways_back_from_signals_are_told_by_frame_or_bytes)
{
	struct module *module = new_module();
	struct result *result = malloc(sizeof(*result));

	/* The entry begins a byte early; with a symbol, and where there is only alignment. */
	add_frame(module, CODE + 15, 10, TP_FRAME_SIGNAL | TP_FRAME_MIDDLE);
	add_frame(module, CODE + 0x2a, 10, TP_FRAME_SIGNAL | TP_FRAME_MIDDLE);
	add_function(module, "__restore_rt", CODE + 0x2b, 9);
	PUT_CODE(module, CODE + 0x40, 0x48, 0xc7, 0xc0, 15, 0, 0, 0, 0x0f, 0x05);
	add_function(module, "long", CODE + 0x40, 9);
	PUT_CODE(module, CODE + 0x50, 0xb8, 15, 0, 0, 0, 0x0f, 0x05);
	add_function(module, "short", CODE + 0x50, 7);
	PUT_CODE(module, CODE + 0x60, 0xb8, 14, 0, 0, 0, 0x0f, 0x05);
	add_function(module, "sigprocmask", CODE + 0x60, 7);
	PUT_CODE(module, CODE + CODE_BYTES - 6, 0xb8, 15, 0, 0, 0, 0x0f);
	add_function(module, "cut off", CODE + CODE_BYTES - 6, 6);
	read_module(module, result);
	CHECK_EQ(result->count, 6);
	CHECK_EQ(result->functions[0].vaddr, CODE + 16);
	CHECK_EQ(result->functions[0].bytes, 9);
	CHECK(result->functions[0].flags & TP_FUNCTION_SIGRETURN);
	CHECK_EQ(result->functions[1].vaddr, CODE + 0x2b);
	CHECK_EQ(result->functions[1].flags, TP_FUNCTION_SIGRETURN);
	CHECK_EQ(result->functions[2].flags, TP_FUNCTION_SIGRETURN);
	CHECK_EQ(result->functions[3].flags, TP_FUNCTION_SIGRETURN);
	CHECK_EQ(result->functions[4].flags, 0);
	CHECK_EQ(result->functions[5].flags, 0);
	free(result);
	free(module);
}

TEST(frames_that_begin_with_padding_move_to_their_function)
{
	struct module *module = new_module();
	struct result *result = malloc(sizeof(*result));

	/* nopw before a symbol, and before a multiple of 16 without one. */
	PUT_CODE(module, CODE + 0x0a, 0x66, 0x0f, 0x1f, 0x44, 0, 0);
	add_frame(module, CODE + 0x0a, 22, 0);
	add_function(module, "known", CODE + 0x10, 16);
	PUT_CODE(module, CODE + 0x2e, 0x66, 0x90);
	add_frame(module, CODE + 0x2e, 18, 0);
	/* NOPs that end elsewhere, begin at a multiple of 16, or are the end of all code. */
	PUT_CODE(module, CODE + 0x4a, 0x90, 0x90);
	add_frame(module, CODE + 0x4a, 16, 0);
	memset(module->code + 0x60, 0x90, 16);
	add_frame(module, CODE + 0x60, 32, 0);
	PUT_CODE(module, CODE + CODE_BYTES - 3, 0x90, 0x90, 0x90);
	add_frame(module, CODE + CODE_BYTES - 3, 32, 0);
	read_module(module, result);
	CHECK_EQ(result->count, 5);
	CHECK_EQ(result->functions[0].vaddr, CODE + 0x10);
	CHECK_NAME(0, "known");
	CHECK_EQ(result->functions[1].vaddr, CODE + 0x30);
	CHECK_EQ(result->functions[1].bytes, 16);
	CHECK_EQ(result->functions[2].vaddr, CODE + 0x4a);
	CHECK_EQ(result->functions[3].vaddr, CODE + 0x60);
	free(result);
	free(module);
}

TEST(go_code_is_what_has_no_frame_at_its_start)
{
	struct module *module = new_module();
	struct result *result = malloc(sizeof(*result));

	module->go = 1;
	add_function(module, "main.main", CODE, 16);
	add_function(module, "cgo", CODE + 32, 32);
	add_frame(module, CODE + 32, 32, 0);
	add_function(module, "inside", CODE + 40, 8);
	read_module(module, result);
	CHECK_EQ(result->count, 3);
	CHECK_EQ(result->functions[0].flags, TP_FUNCTION_GO);
	CHECK_EQ(result->functions[1].flags, 0);
	CHECK_EQ(result->functions[2].flags, TP_FUNCTION_GO);
	free(result);
	free(module);
}

/* A jump through @got at @at: its six bytes, or seven with a prefix. */
static void put_jump(struct module *module, uint64_t at, uint64_t got, bool bnd)
{
	uint32_t disp;

	if (bnd)
		PUT_CODE(module, at++, 0xf2);
	disp = (uint32_t)(got - (at + 6));
	PUT_CODE(module, at, 0xff, 0x25);
	put_code(module, at + 2, &disp, 4);
}

TEST(plt_slots_are_named_for_what_fills_their_got)
{
	struct module *module = new_module();
	struct result *result = malloc(sizeof(*result));
	uint64_t plt = CODE + 0x100;

	module->stubs = (struct tp_range){ plt, plt + 0x80 };
	add_symbol(module, 1, "puts", 0, 0, STB_GLOBAL, STT_FUNC);
	add_symbol(module, 1, "exit", 0, 0, STB_GLOBAL, STT_FUNC);
	module->symbols[1][0].st_shndx = module->symbols[1][1].st_shndx = 0;
	add_function(module, "pick", CODE + 0x20, 16);
	/* Slot 0: push, jmp. */
	PUT_CODE(module, plt, 0xff, 0x35, 1, 2, 3, 4);
	put_jump(module, plt + 6, DATA + 8, false);
	put_jump(module, plt + 0x10, DATA + 0x18, false);
	PUT_CODE(module, plt + 0x16, 0x68, 0, 0, 0, 0, 0xe9, 0, 0, 0, 0);
	PUT_CODE(module, plt + 0x20, 0xf3, 0x0f, 0x1e, 0xfa);
	put_jump(module, plt + 0x24, DATA + 0x20, true);
	put_jump(module, plt + 0x30, DATA + 0x28, false); /* two in eight bytes each */
	put_jump(module, plt + 0x38, DATA + 0x18, false);
	PUT_CODE(module, plt + 0x40, 0xf3, 0x0f, 0x1e, 0xfa, 0x41, 0xbb, 1, 0, 0, 0);
	put_jump(module, plt + 0x4a, DATA + 0x20, false);
	put_jump(module, plt + 0x50, DATA + 0x30, false); /* nobody fills it */
	PUT_CODE(module, plt + 0x60, 0xf3, 0x0f, 0x1e, 0xfa, 0x68, 0, 0, 0, 0, 0xf2, 0xe9);
	put_jump(module, plt + 0x70, DATA + 0x38, false);
	add_rela(module, DATA + 0x18, 0, R_X86_64_JUMP_SLOT, 0); /* symbol 0 is none */
	add_rela(module, DATA + 0x20, 1, R_X86_64_GLOB_DAT, 0);
	add_rela(module, DATA + 0x28, 0, R_X86_64_IRELATIVE, CODE + 0x20);
	add_rela(module, DATA + 0x38, 99, R_X86_64_JUMP_SLOT, 0); /* there is no symbol 99 */
	add_frame(module, plt, 0x80, TP_FRAME_MIDDLE);
	/* mold gives slots symbols. */
	add_function(module, "exit$plt", plt + 0x20, 16);
	read_module(module, result);
	CHECK_EQ(result->count, 7);
	CHECK_NAME(0, "pick");
	CHECK_EQ(result->functions[1].vaddr, plt + 0x10);
	CHECK_EQ(result->labels[1].table, TP_NO_TABLE);
	CHECK_EQ(result->labels[1].flags, TP_LABEL_PLT);
	CHECK_EQ(result->functions[2].vaddr, plt + 0x20);
	CHECK_NAME(2, "exit");
	CHECK_EQ(result->functions[3].vaddr, plt + 0x30);
	CHECK_EQ(result->functions[3].bytes, 8);
	CHECK_NAME(3, "pick");
	CHECK_EQ(result->labels[3].flags, TP_LABEL_PLT);
	CHECK_EQ(result->functions[4].vaddr, plt + 0x38);
	CHECK_EQ(result->functions[5].vaddr, plt + 0x40);
	CHECK_EQ(result->functions[5].bytes, 16);
	CHECK_NAME(5, "exit");
	CHECK_EQ(result->functions[6].vaddr, plt + 0x70);
	for (uint64_t i = 1; i < 7; i++)
		CHECK_EQ(result->functions[i].flags, 0);
	free(result);
	free(module);
}

TEST(resolvers_are_marked)
{
	struct module *module = new_module();
	struct result *result = malloc(sizeof(*result));

	add_symbol(module, 0, "memcpy", CODE, 16, STB_GLOBAL, STT_GNU_IFUNC);
	add_symbol(module, 0, "memcpy_pick", CODE, 16, STB_LOCAL, STT_FUNC);
	add_function(module, "plain", CODE + 32, 16);
	read_module(module, result);
	CHECK_EQ(result->count, 2);
	CHECK_NAME(0, "memcpy");
	CHECK_EQ(result->labels[0].flags, TP_LABEL_RESOLVER);
	CHECK_EQ(result->labels[1].flags, 0);
	free(result);
	free(module);
}

TEST(relocations_that_put_code_addresses_into_data)
{
	static const uint64_t wanted[] = { CODE + 4,  CODE + 8,	 CODE + 12, CODE + 0x25,
					   CODE + 64, CODE + 65, CODE + 66 };
	struct module *module = new_module();
	struct result *result = malloc(sizeof(*result));
	uint64_t value = CODE + 64;

	add_symbol(module, 1, "", 0, 0, STB_LOCAL, STT_NOTYPE);
	add_symbol(module, 1, "base", CODE + 0x20, 8, STB_GLOBAL, STT_FUNC);
	add_rela(module, DATA, 0, R_X86_64_RELATIVE, CODE + 4);
	add_rela(module, DATA, 0, R_X86_64_RELATIVE64, CODE + 8);
	add_rela(module, DATA, 0, R_X86_64_IRELATIVE, CODE + 12);
	add_rela(module, DATA, 1, R_X86_64_64, 5);
	add_rela(module, DATA, 99, R_X86_64_64, CODE);
	add_rela(module, DATA, 0, R_X86_64_RELATIVE, DATA);
	add_rela(module, DATA, 0, R_X86_64_RELATIVE, -1);
	add_rela(module, DATA, 1, R_X86_64_DTPMOD64, CODE);
	memcpy(module->data + 0x10, &value, 8);
	value++;
	memcpy(module->data + 0x18, &value, 8);
	value++;
	memcpy(module->data + 0x10 + 8 * 40, &value, 8);
	module->relr[0] = DATA + 0x10;
	module->relr[1] = 1 | 1ull << 1 | 1ull << 40 | 1ull << 63; /* 0x18, 0x150, 0x208: none */
	module->relr[2] = DATA + DATA_BYTES - 4;
	module->relr[3] = UINT64_MAX;
	module->relr_count = 4;
	read_module(module, result);
	CHECK_EQ(result->target_count, sizeof(wanted) / sizeof(*wanted));
	for (uint64_t i = 0; i < sizeof(wanted) / sizeof(*wanted); i++)
		CHECK_EQ(result->targets[i], wanted[i]);
	free(result);
	free(module);
}

TEST(sizes_beyond_everything_are_cut)
{
	struct module *module = new_module();
	struct result *result = malloc(sizeof(*result));

	add_function(module, "huge", CODE + 16, UINT64_MAX);
	add_function(module, "next", CODE + 64, UINT64_MAX - CODE - 64);
	add_frame(module, CODE + 128, UINT64_MAX - CODE - 128, 0);
	read_module(module, result);
	CHECK_EQ(result->count, 3);
	CHECK_EQ(result->functions[0].bytes, UINT32_MAX);
	CHECK_EQ(result->functions[1].bytes, UINT32_MAX);
	CHECK_EQ(result->functions[2].flags, TP_FUNCTION_COLD);
	free(result);
	free(module);
}

static uint32_t seed = 4711;

static uint64_t number(void)
{
	static const uint64_t edges[] = { 0,
					  1,
					  CODE - 1,
					  CODE,
					  CODE + CODE_BYTES - 1,
					  CODE + CODE_BYTES,
					  DATA + DATA_BYTES - 8,
					  UINT32_MAX,
					  1ull << 63,
					  UINT64_MAX };

	seed = seed * 1664525u + 1013904223u;
	if (seed >> 30 == 0)
		return edges[(seed >> 8) % (sizeof(edges) / sizeof(*edges))];
	return CODE + (seed >> 8) % CODE_BYTES;
}

TEST(any_damage_stays_inside_the_tables)
{
	struct module *module = new_module();
	struct result *result = malloc(sizeof(*result));

	for (uint64_t turn = 0; turn < 4000; turn++) {
		module->frame_count = number() % MOST;
		module->rela_count = number() % MOST;
		module->relr_count = number() % MOST;
		module->go = turn % 7 == 0;
		module->without_sections = turn % 5 == 0;
		module->stubs = (struct tp_range){ CODE + 0x100, CODE + 0x100 + number() % 0x300 };
		for (uint64_t i = 0; i < MOST; i++) {
			module->frames[i] = (struct tp_frame){ number(), number() % 999, number(),
							       number() & 3 };
			module->rela[i] = (Elf64_Rela){ DATA + number() % 99 * 8,
							number() % 40 | (number() % MOST) << 32,
							(int64_t)number() };
			module->relr[i] = number() << (turn & 1);
			module->code[number() % CODE_BYTES] = (uint8_t)number();
		}
		for (int t = 0; t < 2; t++) {
			module->symbol_count[t] = number() % MOST;
			module->string_bytes[t] = 1 + (uint32_t)(number() % 200);
			for (uint64_t i = 0; i < MOST; i++)
				module->symbols[t][i] = (Elf64_Sym){
					.st_name = (uint32_t)(number() % 256),
					.st_info = (uint8_t)(number() % 4 | (number() & 3) << 4),
					.st_shndx = (uint16_t)(number() % 3),
					.st_value = number(),
					.st_size = number(),
				};
			for (uint64_t i = 0; i < 200; i++)
				module->strings[t][i] = ".cold@12_\0x"[number() % 11];
		}
		read_module(module, result);
		CHECK_EQ(result->err, 0);
	}
	free(result);
	free(module);
}
