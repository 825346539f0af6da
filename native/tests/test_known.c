/* SPDX-License-Identifier: Apache-2.0 */
/** @file known.c: the table of every site ever poked. */
#include <stdlib.h>

#include "check.h"
#include "rig.h"

/* Merge in place; the room for it is exact, so that the sanitizer sees a step beyond. */
static void merge(struct tp_known_table *table, const struct tp_poke *pokes, size_t count)
{
	size_t room = table->count + count;
	struct tp_known *merged = malloc(room * sizeof(*merged));

	table->count = tp_known_merge(NULL, table, pokes, count, merged);
	CHECK(table->count <= room);
	free(table->entries);
	table->entries = merged;
}

static struct tp_poke poke_at(uint64_t addr, size_t len, const uint8_t *old)
{
	struct tp_poke poke = { .addr = addr, .len = (uint8_t)len };

	memcpy(poke.old, old, 16);
	return poke;
}

TEST(pitfall_2_find_tells_known_from_unknown_in_tables_of_any_size)
{
	struct tp_known entries[40];
	struct tp_known_table table = { entries, 0 };

	for (size_t i = 0; i < 40; i++)
		entries[i] = (struct tp_known){ .addr = 100 + 10 * i, .len = 5 };
	for (; table.count <= 40; table.count++) {
		CHECK_NOTE("%zu entries", table.count);
		for (uint64_t addr = 80; addr < 520; addr++) {
			const struct tp_known *entry = tp_known_find(&table, addr);
			bool known = addr >= 100 && addr % 10 == 0 &&
				     (addr - 100) / 10 < table.count;

			CHECK_EQ(entry != NULL, known);
			CHECK(!entry || entry->addr == addr);
		}
	}
}

TEST(pitfall_2_merge_into_nothing_takes_the_old_bytes)
{
	struct tp_known merged[1];
	struct tp_poke poke = poke_at(0x1000, 5, BYTES(1, 2, 3, 4, 5, 6, 7));

	CHECK_EQ(tp_known_merge(NULL, NULL, &poke, 1, merged), 1);
	CHECK_EQ(merged[0].addr, 0x1000);
	CHECK_EQ(merged[0].len, 5);
	CHECK_EQ(merged[0].patched, 0);
	CHECK_BYTES(merged[0].original, BYTES(1, 2, 3, 4, 5), 16);
	CHECK_BYTES(merged[0].current, BYTES(1, 2, 3, 4, 5), 16);
}

TEST(pitfall_2_table_never_shrinks)
{
	struct tp_known_table table = { 0 };
	struct tp_poke pokes[3] = { poke_at(10, 5, NOP5), poke_at(20, 5, NOP5),
				    poke_at(30, 5, NOP5) };

	merge(&table, pokes, 3);
	CHECK_EQ(table.count, 3);
	merge(&table, NULL, 0);
	CHECK_EQ(table.count, 3);
	merge(&table, pokes + 1, 1);
	CHECK_EQ(table.count, 3);
	CHECK(tp_known_find(&table, 10) && tp_known_find(&table, 20) && tp_known_find(&table, 30));
	free(table.entries);
}

TEST(design_original_bytes_are_kept_when_a_site_is_poked_again)
{
	struct tp_known_table table = { 0 };
	struct tp_poke poke = poke_at(0x1000, 5, NOP5);

	merge(&table, &poke, 1);
	memcpy(table.entries[0].current, JMP5, 5);
	table.entries[0].patched = 1;
	poke = poke_at(0x1000, 5, JMP5);
	merge(&table, &poke, 1);
	CHECK_EQ(table.count, 1);
	CHECK_BYTES(table.entries[0].original, NOP5, 5);
	CHECK_BYTES(table.entries[0].current, JMP5, 5);
	CHECK_EQ(table.entries[0].patched, 1);
	free(table.entries);
}

TEST(design_longer_poke_widens_no_entry_before_it_is_verified)
{
	struct tp_known_table table = { 0 };
	struct tp_poke poke = poke_at(0x1000, 1, BYTES(0x90));

	merge(&table, &poke, 1);
	table.entries[0].current[0] = 0xe8;
	table.entries[0].patched = 1;
	poke = poke_at(0x1000, 5, BYTES(0xe8, 1, 2, 3, 4, 9));
	merge(&table, &poke, 1);
	CHECK_EQ(table.count, 1);
	CHECK_EQ(table.entries[0].len, 1);
	CHECK_BYTES(table.entries[0].original, BYTES(0x90), 16);
	CHECK_BYTES(table.entries[0].current, BYTES(0xe8), 16);
	CHECK_EQ(table.entries[0].patched, 1);
	free(table.entries);
}

TEST(design_shorter_poke_keeps_the_longer_entry)
{
	struct tp_known_table table = { 0 };
	struct tp_poke poke = poke_at(0x1000, 5, NOP5);

	merge(&table, &poke, 1);
	poke = poke_at(0x1000, 1, BYTES(0xe9));
	merge(&table, &poke, 1);
	CHECK_EQ(table.entries[0].len, 5);
	CHECK_BYTES(table.entries[0].original, NOP5, 5);
	free(table.entries);
}

TEST(seed_22_skipped_sites_do_not_become_known)
{
	struct tp_known_table table = { 0 };
	struct tp_poke pokes[3] = { poke_at(10, 5, NOP5), poke_at(20, 5, NOP5),
				    poke_at(30, 5, NOP5) };

	pokes[0].flags = pokes[2].flags = TP_POKE_NO_OLD | TP_POKE_NO_NEW;
	merge(&table, pokes, 3);
	CHECK_EQ(table.count, 1);
	CHECK_EQ(table.entries[0].addr, 20);
	free(table.entries);
}

TEST(design_same_address_twice_makes_one_entry)
{
	struct tp_known_table table = { 0 };
	struct tp_poke pokes[2] = { poke_at(10, 1, BYTES(1)), poke_at(10, 3, BYTES(1, 2, 3)) };

	merge(&table, pokes, 2);
	CHECK_EQ(table.count, 1);
	free(table.entries);
}

/* Merge rounds of random sites and compare with a plain array indexed by address. */
TEST(pitfall_2_any_sequence_of_merges_keeps_every_site_sorted_and_once)
{
	enum { PLACES = 200, ROUNDS = 60 };
	struct tp_known_table table = { 0 };
	struct tp_poke pokes[PLACES];
	bool known[PLACES] = { false };
	unsigned int seed = 3;

	for (size_t round = 0; round < ROUNDS; round++) {
		size_t used = 0, expected = 0;

		for (size_t i = 0; i < PLACES; i++)
			if (rand_r(&seed) % ROUNDS < 4) {
				pokes[used++] = poke_at(1000 + i, 1, BYTES((uint8_t)i));
				known[i] = true;
			}
		merge(&table, pokes, used);
		for (size_t i = 0; i < PLACES; i++)
			if (known[i]) {
				CHECK_EQ(table.entries[expected].addr, 1000 + i);
				CHECK_EQ(table.entries[expected].original[0], i);
				expected++;
			}
		CHECK_EQ(table.count, expected);
	}
	CHECK(table.count > PLACES / 2);
	free(table.entries);
}
