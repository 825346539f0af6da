/* SPDX-License-Identifier: Apache-2.0 */
/**
 * @file
 * The table of every site ever poked: sorted, never shrinking. The trap handler asks it about late
 * traps; undo and detach read the original bytes from it.
 */
#include "engine.h"

/** The entry at @addr, or NULL. Safe in the trap handler. */
struct tp_known *tp_known_find(const struct tp_known_table *table, uint64_t addr)
{
	size_t low = 0, high = table->count;

	while (low < high) {
		size_t middle = low + (high - low) / 2;

		if (table->entries[middle].addr < addr)
			low = middle + 1;
		else
			high = middle;
	}
	return low < table->count && table->entries[low].addr == addr ? &table->entries[low] : NULL;
}

/** The entry for an int3 at @addr: a site's first byte, or an instruction within it that has had a
 * trap of its own (other known sites may lie in between: of batches before, or of modules that are
 * gone). NULL: none of ours ever was there. Safe in the trap handler. */
const struct tp_known *tp_known_covering(const struct tp_known_table *table, uint64_t addr)
{
	size_t low = 0, high = table->count;

	while (low < high) {
		size_t middle = low + (high - low) / 2;

		if (table->entries[middle].addr <= addr)
			low = middle + 1;
		else
			high = middle;
	}
	for (; low && addr - table->entries[low - 1].addr < TP_JMP_BYTES; low--) {
		const struct tp_known *entry = &table->entries[low - 1];

		if (entry->addr == addr || entry->heads >> (addr - entry->addr) & 1)
			return entry;
	}
	return NULL;
}

static struct tp_known fresh_entry(const struct tp_poke *poke)
{
	struct tp_known entry = { .addr = poke->addr,
				  .len = poke->len,
				  .heads = (uint8_t)tp_heads(poke) };

	for (size_t i = 0; i < sizeof(entry.original); i++)
		entry.original[i] = entry.current[i] = i < poke->len ? poke->old[i] : 0;
	return entry;
}

/**
 * Merge the sorted table and the sorted pokes into @merged (room for both). What is known of a site
 * stays: this batch may yet be refused. Returns the number of entries.
 */
size_t tp_known_merge(struct tp_engine *engine, const struct tp_known_table *old,
		      const struct tp_poke *pokes, size_t count, struct tp_known *merged)
{
	size_t from_old = 0, old_count = old ? old->count : 0, used = 0;

	(void)engine;
	for (size_t i = 0; i < count; i++) {
		if (pokes[i].flags & (TP_POKE_NO_OLD | TP_POKE_NO_NEW))
			continue;
		while (from_old < old_count && old->entries[from_old].addr <= pokes[i].addr)
			merged[used++] = old->entries[from_old++];
		if (!used || merged[used - 1].addr != pokes[i].addr)
			merged[used++] = fresh_entry(&pokes[i]);
		merged[used - 1].heads |= (uint8_t)tp_heads(&pokes[i]);
	}
	while (from_old < old_count)
		merged[used++] = old->entries[from_old++];
	return used;
}
