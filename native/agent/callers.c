/* SPDX-License-Identifier: Apache-2.0 */
/**
 * @file
 * Code whose calls' returns may be redirected: that has unwind entries, as every compiler of C and
 * C++ writes them. A runtime with code of its own making (V8, HotSpot) walks its stacks by itself and
 * reads where a function returns to that such code has called: it must find what CALL left there.
 *
 * The tool tells what there is; the last entry, of everything, stands for what nobody knows. Readers
 * take no lock: a table is filled before it is published, and filled again only when several have
 * come after it; whoever reads it all the same finds an end, in its very last place.
 */
#include "agent.h"

#define TABLES 8 /* one is used, those before fade away */
#define TABLE_ENTRIES (TP_MOST_CALLERS + 1)
#define EVERYTHING (~0ull)

static struct tp_caller nobody[] = { { 0, EVERYTHING } };
static struct tp_caller *tables;
static uint64_t made;

static int make_tables(void)
{
	uint64_t bytes = PAGE_UP(TABLES * TABLE_ENTRIES * sizeof(*tables));
	int error;

	tables = tpa_map_private(bytes);
	if (!tables)
		return -12; /* ENOMEM */
	for (int i = 1; i <= TABLES; i++)
		tables[i * TABLE_ENTRIES - 1] = nobody[0];
	error = tpa_note_region((uint64_t)tables, bytes);
	if (error) {
		tpa_unmap(tables, bytes);
		tables = NULL;
	}
	return error;
}

static struct tp_caller *table_of(uint64_t number)
{
	return &tables[number % TABLES * TABLE_ENTRIES];
}

static int are_sane(const struct tp_caller *callers, uint64_t count)
{
	for (uint64_t i = 0; i < count; i++)
		if (callers[i].start + callers[i].span < callers[i].start)
			return 0;
	return 1;
}

static int holds(const struct tp_caller *table, const struct tp_caller *one)
{
	for (; table->span != EVERYTHING; table++)
		if (table->start == one->start && table->span == one->span)
			return 1;
	return 0;
}

/* What is not in the next table: other code may be there by now. Who still looks there finds nothing. */
static void forget(struct tp_caller *table, const struct tp_caller *next)
{
	for (; table->span != EVERYTHING; table++)
		if (!holds(next, table))
			__atomic_store_n(&table->span, 0, __ATOMIC_RELAXED);
}

/** TP_CMD_CALLERS: the request area holds args[0] entries, most of the callers in the first one. */
int tpa_set_callers(const void *request, const uint64_t args[4])
{
	uint64_t count = args[0];
	struct tp_caller *table;
	int error = 0;

	if (!count || count > TP_MOST_CALLERS || !are_sane(request, count))
		return -22; /* EINVAL */
	if (!tables)
		error = make_tables();
	if (error)
		return error;
	table = table_of(made);
	tpa_copy(table, request, count * sizeof(*table));
	table[count] = nobody[0];
	__atomic_store_n(&tpa_image.callers, (uint64_t)table, __ATOMIC_RELEASE);
	if (made) {
		forget(table_of(made - 1), table);
		tpa_forget_callers();
	}
	made++;
	return 0;
}

/** The table, whose last entry has span ~0. */
const struct tp_caller *tpa_callers(void)
{
	uint64_t table = __atomic_load_n(&tpa_image.callers, __ATOMIC_ACQUIRE);

	return table ? (const struct tp_caller *)table : nobody;
}

/** May a call that returns to @real be followed? As push_frame of probe.inc decides it. */
int tpa_is_known_caller(uint64_t real)
{
	for (const struct tp_caller *caller = tpa_callers(); caller->span != EVERYTHING; caller++)
		if (real - caller->start < caller->span)
			return 1;
	return 0;
}
