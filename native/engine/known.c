/* SPDX-License-Identifier: Apache-2.0 */
/**
 * @file
 * The table of every site ever poked: sorted, never shrinking. The trap handler asks it about late
 * traps; undo and detach read the original bytes from it.
 */
#include "engine.h"

#define TRAPPED (1u << TP_SITE_INT3 | 1u << TP_SITE_TAIL | 1u << TP_SITE_BUSY)

/** The first entry that is not below @addr; the end of the table where there is none. */
struct tp_known *tp_known_from(const struct tp_known_table *table, uint64_t addr)
{
	size_t low = 0, high = table->count;

	while (low < high) {
		size_t middle = low + (high - low) / 2;

		if (table->entries[middle].addr < addr)
			low = middle + 1;
		else
			high = middle;
	}
	return table->entries + low;
}

/** The entry at @addr, or NULL. Safe in the trap handler. */
struct tp_known *tp_known_find(const struct tp_known_table *table, uint64_t addr)
{
	struct tp_known *entry = tp_known_from(table, addr);

	return entry < table->entries + table->count && entry->addr == addr ? entry : NULL;
}

/** Where a walk along a sorted batch begins: the table may be large, and the batch small. */
struct tp_known *tp_known_begin(const struct tp_engine *engine, const struct tp_batch *batch)
{
	return engine->known && batch->count ? tp_known_from(engine->known, batch->pokes[0].addr) :
					       NULL;
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

static bool has_old_tail(const struct tp_poke *poke)
{
	return poke->outcome == TP_SITE_RESTORED || poke->outcome == TP_SITE_INT3 ||
	       poke->outcome == TP_SITE_BUSY || poke->outcome == TP_SITE_LEFT;
}

/** An int3 that stays is met by threads as soon as the batch has ended: they must find their way. */
void tp_known_arm(struct tp_engine *engine, const struct tp_batch *batch)
{
	struct tp_known *entry = tp_known_begin(engine, batch);

	for (size_t i = 0; i < batch->count; i++) {
		const struct tp_poke *poke = &batch->pokes[i];

		if (poke->outcome == TP_SITE_SKIPPED || poke->new_[0] != TP_INT3)
			continue;
		while (entry->addr != poke->addr) /* the check has seen it there */
			entry++;
		__atomic_store_n(&entry->handler, poke->handler, __ATOMIC_SEQ_CST);
	}
}

/* A stranger's int3 that comes to stand there later is the stranger's. */
static void disarm_site(struct tp_known *entry)
{
	if (entry->handler && entry->current[0] != TP_INT3)
		__atomic_store_n(&entry->handler, 0, __ATOMIC_SEQ_CST);
}

static void commit_site(const struct tp_poke *poke, struct tp_known *entry, enum tp_mode mode)
{
	const uint8_t *bytes = has_old_tail(poke) ? poke->old : poke->new_;

	entry->written = 1;
	/* An int3 that stays can be taken away by one store: both bytes are right at every moment. */
	entry->mode = (uint8_t)(tp_is_permanent(poke) ? TP_MODE_DIRECT : mode);
	if (poke->len == entry->len && poke->outcome == TP_SITE_DONE) { /* nearly always */
		__builtin_memcpy(entry->current, bytes, sizeof(entry->current));
		entry->patched = !tp_same_prefix(bytes, entry->original, poke->len);
		return;
	}
	for (size_t k = 0; k < poke->len; k++)
		entry->current[k] = bytes[k];
	if (TRAPPED >> poke->outcome & 1)
		entry->current[0] = TP_INT3;
	entry->patched = 0;
	for (size_t k = 0; k < entry->len; k++)
		entry->patched |= entry->current[k] != entry->original[k];
}

/**
 * Note in the table of known sites what the batch has left in the text at pokes [@first, @last); both are
 * sorted, @entry is not behind the first of them. Returns the entry of the last.
 */
struct tp_known *tp_known_commit(const struct tp_batch *batch, size_t first, size_t last,
				 struct tp_known *entry)
{
	for (size_t i = first; i < last; i++) {
		const struct tp_poke *poke = &batch->pokes[i];

		if (poke->outcome == TP_SITE_SKIPPED || poke->outcome == TP_SITE_PENDING)
			continue;
		while (entry->addr != poke->addr) /* the check has seen it there */
			entry++;
		commit_site(poke, entry, batch->mode);
	}
	return entry;
}

/** After a batch: where an int3 has gone, the handler goes. */
void tp_known_disarm(struct tp_engine *engine, const struct tp_batch *batch)
{
	struct tp_known *entry = tp_known_begin(engine, batch);

	for (size_t i = 0; i < batch->count; i++) {
		const struct tp_poke *poke = &batch->pokes[i];

		if (poke->outcome == TP_SITE_SKIPPED || !tp_is_permanent(poke))
			continue;
		while (entry->addr != poke->addr)
			entry++;
		disarm_site(entry);
	}
}

static void learn_site(const struct tp_poke *poke, struct tp_known *entry)
{
	unsigned int common = poke->len < entry->len ? poke->len : entry->len;
	bool ours = entry->written && tp_same_prefix(entry->current, poke->old, common);
	size_t known = ours ? entry->len : 0;

	if (!ours) /* it was for an int3 in what stood there before */
		__atomic_store_n(&entry->handler, 0, __ATOMIC_SEQ_CST);
	for (size_t k = known; k < poke->len; k++)
		entry->original[k] = entry->current[k] = poke->old[k];
	if (poke->len > known)
		entry->len = poke->len;
}

/**
 * The batch has been verified: where its old bytes are not what we left there, they are what an
 * undo must bring back, whatever a refused batch believed or a module that is gone had there. A
 * longer site adds its further bytes.
 */
void tp_known_learn(struct tp_engine *engine, const struct tp_batch *batch)
{
	struct tp_known *entry = tp_known_begin(engine, batch);

	for (size_t i = 0; i < batch->count; i++) {
		const struct tp_poke *poke = &batch->pokes[i];

		if (poke->outcome == TP_SITE_SKIPPED)
			continue;
		while (entry->addr != poke->addr)
			entry++;
		learn_site(poke, entry);
	}
}
