/* SPDX-License-Identifier: Apache-2.0 */
/** @file The fetch oracle; see oracle.h. */
#include <assert.h>
#include <stdlib.h>
#include <string.h>

#include "oracle.h"

static void remember(struct oracle *oracle, size_t offset, uint8_t value)
{
	struct oracle_byte *byte = &oracle->bytes[offset];
	uint8_t i = 0;

	while (i < byte->count && byte->values[i] != value)
		i++;
	if (i < byte->count)
		return;
	assert(byte->count < ORACLE_VALUES);
	byte->values[byte->count++] = value;
	if (byte->count == 2)
		oracle->unsettled[oracle->unsettled_count++] = offset;
}

/* Every core has serialised: it can fetch only what is in memory now. */
static void settle(struct oracle *oracle)
{
	for (size_t i = 0; i < oracle->unsettled_count; i++) {
		size_t offset = oracle->unsettled[i];

		oracle->bytes[offset].values[0] = oracle->rig->fake.bytes[offset];
		oracle->bytes[offset].count = 1;
	}
	oracle->unsettled_count = 0;
}

static struct oracle_byte *bytes_of(const struct oracle *oracle, const struct tp_poke *poke)
{
	return &oracle->bytes[poke->addr - fake_addr(&oracle->rig->fake, 0)];
}

/* No value of any byte of the tail but those of @insn. */
static bool tail_is(const struct oracle_byte *bytes, const uint8_t *insn, size_t len)
{
	for (size_t i = 1; i < len; i++)
		if (bytes[i].count != 1 || bytes[i].values[0] != insn[i])
			return false;
	return true;
}

/* A site of 66 and 90 is NOPs in every mix. */
static bool is_nop_mix(const struct tp_poke *poke)
{
	return tp_is_nop_mix(poke->old, poke->len) && tp_is_nop_mix(poke->new_, poke->len);
}

static bool is_right(const struct oracle *oracle, const struct tp_poke *poke)
{
	const struct oracle_byte *bytes = bytes_of(oracle, poke);
	bool as_old = tail_is(bytes, poke->old, poke->len);
	bool as_new = tail_is(bytes, poke->new_, poke->len);

	for (size_t i = 0; i < bytes[0].count; i++) {
		uint8_t first = bytes[0].values[i];

		if (first == TP_INT3 && oracle->rig->engine.active)
			continue;
		if (first == TP_INT3 || !((first == poke->old[0] && as_old) ||
					  (first == poke->new_[0] && as_new) || is_nop_mix(poke)))
			return false;
	}
	return true;
}

/** Look at every site now; a violation is counted. */
void oracle_look(struct oracle *oracle)
{
	bool right = true;

	for (size_t i = 0; i < oracle->rig->count; i++)
		if (!oracle->rig->asked[i].flags)
			right &= is_right(oracle, &oracle->rig->asked[i]);
	if (!right && !oracle->violations++)
		oracle->first_violation = oracle->operations;
}

/* Most of a window is written as it was: pass over that quickly. */
static void remember_write(struct oracle *oracle, size_t offset, size_t len)
{
	enum { STRIDE = 64 };
	const uint8_t *memory = oracle->rig->fake.bytes;

	for (size_t from = offset; from < offset + len; from += STRIDE) {
		size_t end = from + STRIDE < offset + len ? from + STRIDE : offset + len;

		if (!memcmp(memory + from, oracle->seen + from, end - from))
			continue;
		for (size_t i = from; i < end; i++)
			remember(oracle, i, memory[i]);
		memcpy(oracle->seen + from, memory + from, end - from);
	}
}

static void after(struct fake *fake, const struct fake_op *op)
{
	struct rig *rig = fake->owner;
	struct oracle *oracle = rig->oracle;

	oracle->operations++;
	if (op->kind == FAKE_WRITE && op->result > 0)
		remember_write(oracle, op->addr - fake_addr(fake, 0), (size_t)op->result);
	if (op->kind == FAKE_SYNC && !op->result && fake->count[FAKE_SYNC] - 1 != oracle->deaf_sync)
		settle(oracle);
	oracle_look(oracle);
}

/** Watch all further operations of @rig, whose sites are all added. */
void oracle_open(struct oracle *oracle, struct rig *rig)
{
	*oracle = (struct oracle){ .rig = rig, .deaf_sync = SIZE_MAX };
	oracle->bytes = calloc(rig->fake.size, sizeof(*oracle->bytes));
	oracle->unsettled = calloc(rig->fake.size, sizeof(*oracle->unsettled));
	oracle->seen = malloc(rig->fake.size);
	assert(oracle->bytes && oracle->unsettled && oracle->seen);
	memcpy(oracle->seen, rig->fake.bytes, rig->fake.size);
	for (size_t i = 0; i < rig->fake.size; i++)
		oracle->bytes[i] = (struct oracle_byte){ { rig->fake.bytes[i] }, 1 };
	rig->oracle = oracle;
	rig->fake.after = after;
}

void oracle_close(struct oracle *oracle)
{
	oracle->rig->fake.after = NULL;
	free(oracle->bytes);
	free(oracle->unsettled);
	free(oracle->seen);
}
