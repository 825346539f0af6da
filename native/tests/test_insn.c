/* SPDX-License-Identifier: Apache-2.0 */
/**
 * @file
 * insn.c: lengths, fields and flows of hand-written encodings, one or more for every kind of row.
 * tests/unit/test_code.py holds the rows themselves against another decoder.
 */
#include <ctype.h>
#include <stdlib.h>

#include "check.h"
#include "insn.h"

#define AT 0x555500001000ull
#define EACH(flow, ...) check_each((const char *const[]){ __VA_ARGS__, NULL }, flow)
#define NONE(...) check_none_each((const char *const[]){ __VA_ARGS__, NULL })

/*
 * An encoding in hex, with a mark where a field begins: > opcode, / ModRM, + displacement,
 * % displacement from rip, $ immediates, ! what is none of these.
 */
struct encoding {
	uint8_t bytes[32];
	size_t count;
	struct tp_decoded expected;
};

static unsigned int hex_digit(char digit)
{
	return isdigit((unsigned char)digit) ? (unsigned int)(digit - '0') :
					       (unsigned int)(digit - 'a' + 10);
}

static void mark(struct encoding *encoding, char field)
{
	struct tp_decoded *expected = &encoding->expected;
	uint8_t at = (uint8_t)encoding->count;

	if (field == '>')
		expected->opcode_at = at;
	else if (field == '/')
		expected->modrm_at = at;
	else if (field == '$')
		expected->imm_at = at;
	else if (field != '!')
		expected->disp_at = at;
	expected->rip_relative |= field == '%';
}

static struct encoding read_encoding(const char *text, enum tp_flow flow)
{
	struct encoding encoding = { .expected = { .flow = (uint8_t)flow } };
	struct tp_decoded *expected = &encoding.expected;
	char field = 0;

	while (*text) {
		if (*text == ' ') {
			text++;
			continue;
		}
		if (strchr(">/+%$!", *text)) {
			field = *text++;
			mark(&encoding, field);
			continue;
		}
		encoding.bytes[encoding.count++] =
			(uint8_t)(hex_digit(text[0]) << 4 | hex_digit(text[1]));
		expected->disp_bytes += field == '+' || field == '%';
		expected->imm_bytes += field == '$';
		text += 2;
	}
	expected->length = (uint8_t)encoding.count;
	expected->is_lea = encoding.bytes[expected->opcode_at] == 0x8d;
	return encoding;
}

/* From a heap block of exactly @len bytes, so that the sanitizer sees a read past the end. */
static struct tp_decoded decode_exact(const uint8_t *code, size_t len)
{
	uint8_t *exact = malloc(len ? len : 1);
	struct tp_decoded insn;

	memcpy(exact, code, len);
	insn = tp_decode(exact, len);
	free(exact);
	return insn;
}

static void check_same(const struct tp_decoded *insn, const struct tp_decoded *expected)
{
	CHECK_EQ(insn->length, expected->length);
	CHECK_EQ(insn->flow, expected->flow);
	CHECK_EQ(insn->opcode_at, expected->opcode_at);
	CHECK_EQ(insn->modrm_at, expected->modrm_at);
	CHECK_EQ(insn->disp_at, expected->disp_at);
	CHECK_EQ(insn->disp_bytes, expected->disp_bytes);
	CHECK_EQ(insn->imm_at, expected->imm_at);
	CHECK_EQ(insn->imm_bytes, expected->imm_bytes);
	CHECK_EQ(insn->rip_relative, expected->rip_relative);
	CHECK_EQ(insn->is_lea, expected->is_lea);
}

/* @text is one instruction whatever follows, and none when cut. */
static void check_one(const char *text, enum tp_flow flow)
{
	struct encoding encoding = read_encoding(text, flow);
	uint8_t followed[64];
	struct tp_decoded insn;

	for (unsigned int after = 0; after < 256; after += 15) {
		CHECK_NOTE("%s, then %02x", text, after);
		memset(followed, (int)after, sizeof(followed));
		memcpy(followed, encoding.bytes, encoding.count);
		insn = tp_decode(followed, sizeof(followed));
		check_same(&insn, &encoding.expected);
	}
	for (size_t len = 0; len < encoding.count; len++) {
		CHECK_NOTE("%s, cut to %zu", text, len);
		CHECK_EQ(decode_exact(encoding.bytes, len).length, 0);
	}
	CHECK_NOTE("%s", text);
	insn = decode_exact(encoding.bytes, encoding.count);
	check_same(&insn, &encoding.expected);
}

static void check_each(const char *const *texts, enum tp_flow flow)
{
	for (; *texts; texts++)
		check_one(*texts, flow);
}

static void check_none_each(const char *const *texts)
{
	for (; *texts; texts++) {
		struct encoding encoding = read_encoding(*texts, TP_FLOW_NEXT);
		uint8_t followed[64] = { 0 };

		CHECK_NOTE("%s", *texts);
		memcpy(followed, encoding.bytes, encoding.count);
		CHECK_EQ(tp_decode(followed, sizeof(followed)).length, 0);
		CHECK_EQ(decode_exact(encoding.bytes, encoding.count).length, 0);
	}
}

TEST(design_every_shape_of_modrm_and_sib)
{
	EACH(TP_FLOW_NEXT, ">8b/c0", ">8b/00", ">8b/40+11", ">8b/80+11223344", ">8b/04 08",
	     ">8b/44 08+11", ">8b/84 08+11223344", ">8b/04 25+11223344", "41>8b/04 25+11223344",
	     ">8b/44 25+11", ">8b/84 25+11223344", ">8b/05%11223344", "41>8b/05%11223344",
	     ">8b/45+11", ">8b/85+11223344", ">8b/04 24", "67>8b/05%11223344", "67>8b/40+11");
}

TEST(design_prefixes_in_any_order_and_rex_only_before_the_opcode)
{
	EACH(TP_FLOW_NEXT, "66>b8$1122", "48>b8$1122334455667788", "66 48>b8$1122334455667788",
	     "48 66>b8$1122", "40>b8$11223344", "48 40>b8$11223344", "48 2e>b8$11223344",
	     "2e 36 3e 26 64 65>90", "f2 f3 66>0f10/c0", "66 f2>0f10/c0", "64 48>8b/04 25+28000000",
	     "66 66 66 66 66 2e>0f1f/84 00+00000000", "f0 48>0fb1/0f");
}

TEST(design_fifteen_bytes_are_an_instruction_and_sixteen_are_none)
{
	EACH(TP_FLOW_NEXT, "66 66 66 66 66 66 66 66 66 66 66 66 66 66>90",
	     "2e 2e 2e 64 48>81/05%11223344$11223344");
	NONE("66 66 66 66 66 66 66 66 66 66 66 66 66 66 66 90",
	     "2e 2e 2e 2e 64 48 81 05 11 22 33 44 11 22 33 44",
	     "66 66 66 66 66 66 66 66 66 66 66 66 66 66 66 66",
	     "66 66 66 66 66 66 66 66 66 66 66 66"
	     " 66 66 0f 10 c0");
}

TEST(design_immediates_of_the_one_byte_map)
{
	EACH(TP_FLOW_NEXT, ">04$11", ">05$11223344", "66>05$1122", "48>05$11223344",
	     "66 48>05$11223344", ">68$11223344", "66>68$1122", ">6a$11", ">69/c0$11223344",
	     "66>69/c0$1122", ">6b/c0$11", ">80/c0$11", ">81/c0$11223344", "66>81/c0$1122",
	     "66 48>81/c0$11223344", ">83/40+11$22", ">a8$11", ">a9$11223344", ">b0$11",
	     ">c0/c0$11", ">c1/05%11223344$55", ">c6/c0$11", ">c7/05%11223344$11223344",
	     "66>c7/05%11223344$1122", ">c8$112233", "66>c8$112233", ">e4$11", ">d1/c0",
	     ">d3/40+11", ">c9", ">98", ">9b", ">d7");
}

TEST(design_moffs_is_an_address_of_eight_bytes_and_of_four_with_67)
{
	EACH(TP_FLOW_NEXT, ">a0+1122334455667788", ">a1+1122334455667788", "48>a2+1122334455667788",
	     "66>a3+1122334455667788", "67>a0+11223344", "66 67>a1+11223344", "67 48>a3+11223344");
}

TEST(design_the_test_instruction_of_group_3_alone_has_an_immediate)
{
	EACH(TP_FLOW_NEXT, ">f6/c0$11", ">f6/c8$11", ">f6/d0", ">f6/d8", ">f6/e0", ">f6/f8",
	     ">f7/c0$11223344", "66>f7/c8$1122", "48>f7/05%11223344$11223344", ">f7/d0",
	     ">f7/58+11", ">fe/c0", ">fe/08", ">ff/c0", ">ff/08", ">ff/f0", ">ff/30");
	NONE("fe d0", "fe 10", "fe f8", "ff f8", "ff 38", "ff d8", "ff e8");
}

TEST(design_opcodes_that_are_gone_in_64_bit_mode_are_none)
{
	NONE("06", "07", "0e", "16", "17", "1e", "1f", "27", "2f", "37", "3f", "60", "61",
	     "82 c0 11", "9a 11 22 33 44 55 66", "ce", "d4 0a", "d5 0a", "d6",
	     "ea 11 22 33 44 55 66", "62 00 00 00 00 00", "62 f1 78 48 58 c0", "c4 00 00 00",
	     "c5 00 00 00");
}

TEST(design_groups_have_only_the_members_that_exist)
{
	EACH(TP_FLOW_NEXT, ">8c/c0", ">8c/28", ">8e/c0", ">8e/18", ">8f/c0", ">8f/00", ">c6/f8$11",
	     ">0fba/e0$11", ">0fc7/08", ">0fc7/f0", "f3>0fc7/f8", ">0f00/c0", ">0f01/d0",
	     ">0f01/f9", "f3>0f01/e8", ">0fae/e8", "f3>0fae/c0", "66>0fae/38", ">0f18/08",
	     ">0f71/d0$11", "66>0f73/d8$11", "66>0f72/f0$11");
	NONE("8c f0", "8e c8", "8f c8 00", "8f e0", "c6 c8 11", "c6 f9 11", "0f ba c0 11",
	     "0f c7 c8", "0f c7 00", "0f 00 f8", "0f 01 d2", "f2 0f 01 ea", "66 0f ae c0",
	     "0f 71 10 11", "0f 73 d8 11", "c7 c8 11 22 33 44");
}

TEST(design_the_map_0f)
{
	EACH(TP_FLOW_NEXT, ">0fa2", ">0f31", ">0f77", ">0fc8", "41>0fcf", ">0f1f/44 00+00",
	     "66>0f1f/84 00+00000000", ">0f0d/08", ">0f10/05%11223344", "f3>0f10/c0", "f2>0f12/c0",
	     "66>0f12/00", ">0f2a/c0", "66>0f6f/c0", ">0f70/c0$11", "f2>0f70/c0$11",
	     "48>0fa4/c1$11", ">0fa5/c1", "f3>0fb8/c0", "f3>0fbc/c0", ">0fc2/c0$11",
	     "66>0fc4/c0$11", ">0fc6/c0$11", ">0fb6/c0", ">0faf/45+11", ">0f40/c0", ">0f90/c0",
	     "48>0fa3/c0", "66>0fd6/c0", "f3>0fd6/c0", ">0fc3/00", ">0f0e", "f3>0f1e/fa",
	     ">0f01/15%11223344");
	NONE("0f 04", "0f 0a", "0f 0c", "0f 24 c0", "0f 36", "0f 39", "0f 3b", "0f b8 c0",
	     "66 0f 77", "0f c3 c0", "66 0f 12 c0", "0f 7a c0", "0f 7c c0", "0f a7 c8", "0f d0 c0",
	     "0f 13 c0", "0f 50 00", "f3 0f 54 c0");
}

TEST(design_mov_to_control_registers_has_a_register_whatever_mod_says)
{
	EACH(TP_FLOW_NEXT, ">0f20/c0", ">0f20/05", ">0f22/44", ">0f21/80", ">0f23/ff",
	     "44>0f20/c0");
	NONE("0f 20 c8", "0f 22 f8", "44 0f 20 c8", "44 0f 21 c0");
}

TEST(design_sse4a_extracts_have_two_immediate_bytes)
{
	EACH(TP_FLOW_NEXT, "66>0f78/c0$1122", "f2>0f78/c1$1122", ">0f78/c0", ">0f78/05%11223344",
	     "66>0f79/c1", "f2>0f79/c1");
	NONE("66 0f 78 c8 11 22", "66 0f 78 00 11 22", "f3 0f 78 c0");
}

TEST(design_the_maps_0f38_and_0f3a)
{
	EACH(TP_FLOW_NEXT, ">0f3800/c0", "66>0f3800/05%11223344", "66>0f3810/c0", "f2>0f38f0/c0",
	     "f2 66>0f38f1/05%11223344", ">0f38f0/00", "66>0f38f1/40+11", "66>0f38f6/c0",
	     "f3>0f38f6/c0", ">0f38f6/00", "f3>0f38d8/00", ">0f38f9/00", "66>0f38f8/00",
	     ">0f38c8/c0", ">0f3a0f/c0$11", "66>0f3a0f/05%11223344$55", "66>0f3a63/c0$11",
	     ">0f3acc/c0$11", "f3>0f3af0/c0$11");
	NONE("0f 38 0c c0", "0f 38 10 c0", "0f 38 f0 c0", "0f 38 ff c0", "66 0f 38 2a c0",
	     "0f 3a 00 c0 11", "0f 3a 63 c0 11", "f3 0f 3a f0 c1 11", "f3 0f 38 d8 20");
}

TEST(design_3dnow_has_its_opcode_behind_the_operand)
{
	EACH(TP_FLOW_NEXT, ">0f0f/c0!bf", ">0f0f/05%11223344!9e", ">0f0f/44 00+11!b7");
	NONE("0f 0f c0 00", "0f 0f c0 c3");
}

TEST(design_fpu_opcodes_that_exist)
{
	EACH(TP_FLOW_NEXT, ">d8/c0", ">d9/00", ">d9/d0", ">d9/e0", ">d9/6c 24+08", ">da/e9",
	     ">db/e3", ">db/2d%11223344", ">dc/c8", ">dd/d8", ">de/d9", ">df/e0", ">df/38");
	NONE("d9 08", "d9 d1", "d9 e2", "d9 ef", "da e8", "db 20", "db e5", "db f8", "dd 28",
	     "dd f0", "de d8", "df e1", "df f8");
}

TEST(design_vex)
{
	EACH(TP_FLOW_NEXT, ">c5f877", ">c5fc58/c0", ">c5f858/05%11223344", ">c5f970/c0$11",
	     ">c5f9c4/c0$11", ">c5f8c6/c0$11", ">c4e17858/c0", "67>c5f858/40+11", "64>c4e27918/00",
	     ">c4e2791c/c0", ">c4e37d06/c0$11", ">c4e3694a/c0$40", ">c4e278f2/c0", ">c4e27bf6/c0",
	     ">c4e37bf0/c0$11", ">c4e27990/04 88", ">c5f893/c0", ">c5f990/00", ">c5f973/d8$11",
	     ">c4e27b4b/04 00", ">c4e27849/c0");
	NONE("66 c5 f8 58 c0", "f3 c5 f8 58 c0", "f2 c5 f8 58 c0", "f0 c5 f8 58 c0",
	     "48 c5 f8 58 c0", "c5 f8 00 c0", "c5 f8 6f c0", "c4 e0 78 58 c0", "c4 e4 78 58 c0",
	     "c4 ff 78 58 c0", "c4 e3 79 03 c0 11", "c4 e2 78 0e c0", "c5 f8 80 11 22 33 44");
}

TEST(design_evex)
{
	EACH(TP_FLOW_NEXT, ">62f17c4858/c0", ">62f17c4858/40+01", ">62f17c4858/05%11223344",
	     ">62f17d4870/c0$11", ">62f17cc8c2/c0$11", ">62f27d4818/c0", ">62f3fd4803/c0$11",
	     ">62f3fd4803/05%11223344$11", ">62f57c4858/c0", ">62f67d4898/c0", ">62f17d4872/c8$11",
	     ">62f1fd487b/c0", ">62f17c4878/c0", "67>62f17c4858/40+01", "65>62f17c4858/00");
	NONE("66 62 f1 7c 48 58 c0", "48 62 f1 7c 48 58 c0", "62 f9 7c 48 58 c0",
	     "62 f1 78 48 58 c0", "62 f0 7c 48 58 c0", "62 f4 7c 48 58 c0", "62 f7 7c 48 58 c0",
	     "62 f1 7c 48 77", "62 f5 7c 48 00 c0", "62 f2 7c 48 18 c0");
}

TEST(design_xop_by_map_and_pop_otherwise)
{
	EACH(TP_FLOW_NEXT, ">8fe878c0/c0$11", ">8fe97880/c0", ">8fe97801/c8",
	     ">8fea7810/c0$11223344", ">8fea7810/05%11223344$11223344", ">8f/44 24+10");
	NONE("66 8f e9 78 80 c0", "8f e9 79 80 c0", "8f e9 78 00 c0", "8f eb 78 80 c0",
	     "8f f8 78 80 c0", "8f e7 78 80 c0");
}

TEST(design_lock_only_where_memory_is_read_and_written)
{
	EACH(TP_FLOW_NEXT, "f0>01/00", "f0>83/00$01", "f0 48>0fb1/0d%11223344", "f0>0fc7/08",
	     "f0>ff/00", "f0>f6/10", "f0>87/00", "f0>0fba/28$01", "f0>0fc1/00", "f2 f0>01/00");
	NONE("f0 01 c0", "f0 83 38 01", "f0 81 78 11 11 22 33 44", "f0 8b 00", "f0 90",
	     "f0 0f ba 20 01", "f0 ff 10", "f0 38 00", "f0 a4", "f0 c3", "f0 e8 11 22 33 44");
}

TEST(design_near_branches_and_where_they_go)
{
	static const struct {
		const char *text;
		enum tp_flow flow;
		int64_t target; /* from the instruction on */
	} branches[] = {
		{ ">eb$7f", TP_FLOW_JMP, 0x81 },
		{ ">eb$fe", TP_FLOW_JMP, 0 },
		{ ">e9$fbffffff", TP_FLOW_JMP, 0 },
		{ "f2>e9$00000080", TP_FLOW_JMP, 6 - 0x80000000ll },
		{ ">70$80", TP_FLOW_JCC, 2 - 0x80 },
		{ "3e>7f$10", TP_FLOW_JCC, 0x13 },
		{ ">0f80$10000000", TP_FLOW_JCC, 0x16 },
		{ "2e>0f8f$ffffff7f", TP_FLOW_JCC, 7 + 0x7fffffffll },
		{ ">e0$10", TP_FLOW_LOOP, 0x12 },
		{ ">e1$10", TP_FLOW_LOOP, 0x12 },
		{ ">e2$fe", TP_FLOW_LOOP, 0 },
		{ "67>e3$10", TP_FLOW_LOOP, 0x13 },
		{ ">e8$00000000", TP_FLOW_CALL, 5 },
		{ "66 66 48>e8$00010000", TP_FLOW_CALL, 0x108 }, /* __tls_get_addr */
		{ ">c7/f8$00010000", TP_FLOW_XBEGIN, 0x106 },
	};

	for (size_t i = 0; i < sizeof(branches) / sizeof(*branches); i++) {
		struct encoding encoding = read_encoding(branches[i].text, branches[i].flow);

		check_one(branches[i].text, branches[i].flow);
		CHECK_EQ(tp_branch_target(encoding.bytes, &encoding.expected, AT) - AT,
			 branches[i].target);
	}
}

TEST(design_66_before_a_near_branch_of_four_bytes_is_none_because_processors_differ)
{
	NONE("66 e8 11 22 33 44", "66 e9 11 22 33 44", "66 0f 84 11 22 33 44",
	     "48 66 e8 11 22 33 44", "66 41 e9 11 22 33 44", "66 c7 f8 11 22 33 44");
}

TEST(design_other_flows)
{
	EACH(TP_FLOW_JMP_INDIRECT, ">ff/e0", "3e>ff/e0", ">ff/25%11223344", ">ff/24 c5+11223344",
	     ">ff/28", "41>ff/64 24+08");
	EACH(TP_FLOW_CALL_INDIRECT, ">ff/d0", ">ff/15%11223344", ">ff/50+11", ">ff/18", "67>ff/d0");
	EACH(TP_FLOW_RET, ">c3", "f3>c3", ">c2$1122", ">cb", ">ca$1122", ">cf", "48>cf", ">0f07",
	     "48>0f35", "f3>0f01/ec");
	EACH(TP_FLOW_SYSCALL, ">0f05", ">0f34", ">cd$80", ">f1");
	EACH(TP_FLOW_STOP, ">cc", ">0f0b", ">0fb9/40+11", ">0fff/c0", ">f4");
	EACH(TP_FLOW_NEXT, ">0f01/ee", ">0f01/c1", "48>8d/3d%11223344", ">8d/00");
	NONE("8d c0");
}

TEST(design_only_90_and_0f1f_are_nops)
{
	static const char *const nops[] = { ">90",
					    "66>90",
					    "2e 66>90",
					    "48>90",
					    "f2>90",
					    ">0f1f/00",
					    "66 2e>0f1f/84 00+00000000",
					    ">0f1f/05%11223344" };
	static const char *const others[] = { "f3>90",	  "41>90",    "49>90",	"f3>0f1e/fa",
					      ">0f1f/08", ">87/c0",   ">8b/c0", ">0f0d/00",
					      ">c5f877",  "f3 66>90", ">91" };

	for (size_t i = 0; i < sizeof(nops) / sizeof(*nops); i++) {
		struct encoding nop = read_encoding(nops[i], TP_FLOW_NEXT);

		check_one(nops[i], TP_FLOW_NEXT);
		CHECK(tp_is_nop(nop.bytes, &nop.expected));
	}
	for (size_t i = 0; i < sizeof(others) / sizeof(*others); i++) {
		struct encoding other = read_encoding(others[i], TP_FLOW_NEXT);

		check_one(others[i], TP_FLOW_NEXT);
		CHECK(!tp_is_nop(other.bytes, &other.expected));
	}
	CHECK(!tp_is_nop((const uint8_t[]){ 0x90 }, &(struct tp_decoded){ 0 }));
}

TEST(design_endbr64_is_known_by_its_four_bytes)
{
	static const uint8_t endbr64[] = { 0xf3, 0x0f, 0x1e, 0xfa };
	static const uint8_t endbr32[] = { 0xf3, 0x0f, 0x1e, 0xfb };

	CHECK(tp_is_endbr64(endbr64, 4));
	CHECK(!tp_is_endbr64(endbr64, 3));
	CHECK(!tp_is_endbr64(endbr32, 4));
}

/* Any bytes: no read past the end (the sanitizer's business), and a length that fits. */
TEST(design_random_bytes_never_decode_to_more_than_there_is)
{
	uint64_t state = 1;

	for (unsigned int turn = 0; turn < 300000; turn++) {
		uint8_t code[40];
		struct tp_decoded insn, longer;
		size_t len;

		for (size_t i = 0; i < sizeof(code); i++) {
			state = state * 6364136223846793005ull + 1442695040888963407ull;
			code[i] = (uint8_t)(state >> 56);
		}
		len = code[39] % 20;
		insn = decode_exact(code, len);
		longer = tp_decode(code, sizeof(code));
		CHECK(insn.length <= len && longer.length <= 15);
		CHECK(insn.length ? !memcmp(&insn, &longer, sizeof(insn)) :
				    !longer.length || longer.length > len);
		CHECK(insn.disp_at + insn.disp_bytes <= insn.length);
		CHECK(insn.imm_at + insn.imm_bytes <= insn.length);
	}
}
