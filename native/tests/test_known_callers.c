/* SPDX-License-Identifier: Apache-2.0 */
/** @file Whose calls are followed: what the tool has told, and nothing that it does not tell any more. */
#include <stdlib.h>

#include "agent.h"
#include "check.h"

struct tp_image tpa_image;
static int forgotten;

void *tpa_map_private(size_t bytes)
{
	return calloc(1, bytes);
}

void tpa_unmap(void *start, size_t bytes)
{
	(void)bytes;
	free(start);
}

void tpa_copy(void *to, const void *from, size_t bytes)
{
	memcpy(to, from, bytes);
}

int tpa_note_region(uint64_t start, uint64_t bytes)
{
	(void)start, (void)bytes;
	return 0;
}

void tpa_forget_callers(void)
{
	forgotten++;
}

static int tell(const struct tp_caller *callers, uint64_t count)
{
	const uint64_t args[4] = { count };

	return tpa_set_callers(callers, args);
}

TEST(nobody_is_known_before_the_tool_has_told)
{
	CHECK(!tpa_is_known_caller(0x1000));
	CHECK(!tpa_is_known_caller(~0ull));
	CHECK_EQ(tpa_callers()->span, ~0ull);
}

TEST(what_makes_no_sense_is_refused)
{
	static struct tp_caller many[TP_MOST_CALLERS + 1];
	const struct tp_caller over = { ~0ull - 8, 16 };

	CHECK_EQ(tell(many, 0), -22);
	CHECK_EQ(tell(many, TP_MOST_CALLERS + 1), -22);
	CHECK_EQ(tell(&over, 1), -22);
	CHECK(!tpa_is_known_caller(0));
}

TEST(a_caller_is_known_from_its_first_byte_to_its_last)
{
	const struct tp_caller two[] = { { 0x4000, 0x1000 }, { 0x1000, 0x10 } };

	CHECK_EQ(tell(two, 2), 0);
	CHECK(tpa_is_known_caller(0x4000) && tpa_is_known_caller(0x4fff));
	CHECK(tpa_is_known_caller(0x1000) && tpa_is_known_caller(0x100f));
	CHECK(!tpa_is_known_caller(0x3fff) && !tpa_is_known_caller(0x5000));
	CHECK(!tpa_is_known_caller(0xfff) && !tpa_is_known_caller(0x1010));
	CHECK(!tpa_is_known_caller(0) && !tpa_is_known_caller(~0ull));
}

TEST(who_reads_an_older_table_finds_its_end)
{
	const struct tp_caller *older = tpa_callers();
	struct tp_caller all[TP_MOST_CALLERS];
	int before = forgotten;

	for (uint64_t i = 0; i < TP_MOST_CALLERS; i++)
		all[i] = (struct tp_caller){ 0x100000 * (i + 1), 0x1000 };
	CHECK_EQ(tell(all, TP_MOST_CALLERS), 0);
	CHECK_EQ(older[0].span, 0);
	CHECK_EQ(older[1].span, 0);
	CHECK_EQ(older[2].span, ~0ull);
	CHECK_EQ(forgotten - before, 1);
	older = tpa_callers();
	CHECK_EQ(tell(all, 1), 0);
	CHECK_EQ(older[0].span, 0x1000); /* is still so: who reads it just now is right */
	CHECK_EQ(older[1].span, 0);
	CHECK_EQ(older[TP_MOST_CALLERS].span, ~0ull);
	CHECK(!tpa_is_known_caller(0x200000));
	for (int i = 0; i < 40; i++)
		CHECK_EQ(tell(all + i, 2), 0);
	CHECK(tpa_is_known_caller(all[39].start) && tpa_is_known_caller(all[40].start));
	CHECK(!tpa_is_known_caller(all[38].start));
}
