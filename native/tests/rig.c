/* SPDX-License-Identifier: Apache-2.0 */
/** @file One batch on the fake memory; see rig.h. */
#include <assert.h>
#include <stdlib.h>
#include <string.h>

#include "rig.h"

static int record_finish(const struct tp_poke *poke, void *ctx)
{
	return (int)fake_record(ctx, FAKE_FINISH, poke->addr, poke, sizeof(*poke));
}

static int say_who_is_busy(struct fake *fake, struct tp_batch *batch)
{
	const struct rig *rig = fake->owner;

	for (size_t i = 0; i < batch->count; i++)
		if (batch->pokes[i].index < 32 && rig->busy >> batch->pokes[i].index & 1)
			batch->pokes[i].outcome = TP_SITE_BUSY;
	return rig->look_error;
}

/** The engine writes page by page, unless TP_WINDOW_PAGES in the environment says more. */
void rig_open(struct rig *rig, size_t pages)
{
	const char *window = getenv("TP_WINDOW_PAGES");

	memset(rig, 0, sizeof(*rig));
	fake_open(&rig->fake, pages);
	rig->fake.owner = rig;
	rig->fake.on_look = say_who_is_busy;
	rig->engine.window_pages = window ? (unsigned int)atoi(window) : 0;
	rig->engine.ops = &fake_ops;
	rig->engine.ctx = &rig->fake;
	rig->engine.copies = &rig->copies;
	rig->batch.finish = record_finish;
	rig->batch.finish_ctx = &rig->fake;
	rig->batch.outcome = &rig->outcome;
}

void rig_close(struct rig *rig)
{
	free(rig->asked);
	free(rig->pokes);
	free(rig->known.entries);
	fake_close(&rig->fake);
}

static struct tp_poke *append(struct rig *rig, size_t offset)
{
	struct tp_poke *poke;

	if (!(rig->count & (rig->count - 1))) { /* 0, 1, 2, 4, ...: grow */
		rig->asked = realloc(rig->asked, (2 * rig->count + 1) * sizeof(*rig->asked));
		assert(rig->asked);
	}
	poke = &rig->asked[rig->count];
	*poke = (struct tp_poke){ .addr = fake_addr(&rig->fake, offset),
				  .index = (uint32_t)rig->count };
	rig->count++;
	return poke;
}

/** Put @old into the memory and ask for @new there. */
size_t rig_add(struct rig *rig, size_t offset, size_t len, const uint8_t *old, const uint8_t *new)
{
	struct tp_poke *poke = append(rig, offset);

	poke->len = (uint8_t)len;
	memcpy(poke->old, old, len);
	memcpy(poke->new_, new, len);
	memcpy(rig->fake.bytes + offset, old, len);
	return poke->index;
}

/** A record with NULL opcodes: "already there". */
size_t rig_skip(struct rig *rig, size_t offset)
{
	struct tp_poke *poke = append(rig, offset);

	poke->flags = TP_POKE_NO_OLD | TP_POKE_NO_NEW;
	poke->len = 5; /* opcodes and length mean nothing here */
	memset(poke->old, 0x11, sizeof(poke->old));
	memset(poke->new_, 0x22, sizeof(poke->new_));
	return poke->index;
}

size_t rig_nop5(struct rig *rig, size_t offset)
{
	return rig_add(rig, offset, 5, NOP5, JMP5);
}

/** GCC's run of NOPs: one byte changes. */
size_t rig_flip(struct rig *rig, size_t offset)
{
	return rig_add(rig, offset, 5, RUN5, FLIP5);
}

static size_t add_window(struct rig *rig, size_t offset, unsigned int heads, bool back)
{
	size_t index =
		rig_add(rig, offset, TP_JMP_BYTES, back ? JMP5 : PUSHES5, back ? PUSHES5 : JMP5);
	struct tp_poke *poke = &rig->asked[index];

	poke->flags = (uint8_t)(heads << 1 | (back ? TP_POKE_BACK : 0));
	for (unsigned int head = 1; !back && head < TP_JMP_BYTES; head++)
		if (heads >> head & 1)
			poke->new_[11 + head] = RIG_COPY(head);
	return index;
}

size_t rig_window(struct rig *rig, size_t offset, unsigned int heads)
{
	return add_window(rig, offset, heads, false);
}

size_t rig_window_back(struct rig *rig, size_t offset, unsigned int heads)
{
	return add_window(rig, offset, heads, true);
}

/** Where instructions begin behind the first one, on the side that is several. */
unsigned int rig_heads(const struct tp_poke *poke)
{
	return (poke->flags & TP_POKE_HEADS) >> 1;
}

/** Do they come back? */
bool rig_is_back(const struct tp_poke *poke)
{
	return poke->flags & TP_POKE_BACK;
}

/** A record with NULL opcodes? */
bool rig_is_null(const struct tp_poke *poke)
{
	return poke->flags & (TP_POKE_NO_OLD | TP_POKE_NO_NEW);
}

/**
 * Every kind of site, unsorted, over three pages: two across a page's end, two skipped. They stand
 * close together, so that windows are small and sweeps quick.
 */
void rig_mixed(struct rig *rig)
{
	const size_t second = TP_PAGE_BYTES, third = 2 * TP_PAGE_BYTES;

	rig_nop5(rig, third + 64);
	rig_skip(rig, third + 32);
	rig_nop5(rig, second - 2);
	rig_add(rig, second - 100, 1, BYTES(0x90), BYTES(0xc3));
	rig_flip(rig, third - 150);
	rig_add(rig, second - 150, 5, CALL5, JMP5);
	rig_skip(rig, 8);
	rig_add(rig, third - 100, 2, BYTES(0x66, 0x90), BYTES(0xeb, 0x10));
	rig_add(rig, third - 1, 9, BYTES(0x66, 0x0f, 0x1f, 0x84, 0, 0, 0, 0, 0),
		BYTES(0xe9, 1, 2, 3, 4, 0xcc, 0xcc, 0xcc, 0xcc));
}

static void copy_asked(struct rig *rig)
{
	size_t bytes = rig->count * sizeof(*rig->pokes);

	rig->pokes = realloc(rig->pokes, bytes + 1);
	assert(rig->pokes);
	if (bytes)
		memcpy(rig->pokes, rig->asked, bytes);
	rig->batch.pokes = rig->pokes;
	rig->batch.count = rig->count;
}

/** Enter the sites into the table of known sites, as the agent does before a batch. */
void rig_learn(struct rig *rig)
{
	size_t room = (rig->known.count + rig->count + 1) * sizeof(struct tp_known);
	struct tp_known *merged = malloc(room);

	assert(merged);
	copy_asked(rig);
	tp_sort_pokes(rig->pokes, rig->count);
	rig->known.count =
		tp_known_merge(&rig->engine, &rig->known, rig->pokes, rig->count, merged);
	free(rig->known.entries);
	rig->known.entries = merged;
	rig->engine.known = &rig->known;
}

/** Run the batch with the table as it is. */
int rig_run_unlearned(struct rig *rig)
{
	copy_asked(rig);
	fake_forget(&rig->fake);
	return tp_run_batch(&rig->engine, &rig->batch);
}

int rig_run(struct rig *rig)
{
	rig_learn(rig);
	return rig_run_unlearned(rig);
}

/** The first half of it: tp_write_batch() is the other. */
int rig_prepare(struct rig *rig)
{
	rig_learn(rig);
	copy_asked(rig);
	fake_forget(&rig->fake);
	return tp_prepare_batch(&rig->engine, &rig->batch);
}

/** The engine's record of the site that the caller gave @index-th. */
struct tp_poke *rig_site(const struct rig *rig, size_t index)
{
	for (size_t i = 0; i < rig->count; i++)
		if (rig->pokes[i].index == index)
			return &rig->pokes[i];
	assert(!"no such site");
	return NULL;
}

const uint8_t *rig_bytes(const struct rig *rig, size_t index)
{
	return (const uint8_t *)rig->asked[index].addr;
}

static bool holds(const struct rig *rig, size_t index, const uint8_t *bytes)
{
	const struct tp_poke *poke = &rig->asked[index];

	return rig_is_null(poke) || !memcmp(rig_bytes(rig, index), bytes, poke->len);
}

/** A skipped record is as it should be either way. */
bool rig_is_old(const struct rig *rig, size_t index)
{
	return holds(rig, index, rig->asked[index].old);
}

bool rig_is_new(const struct rig *rig, size_t index)
{
	return holds(rig, index, rig->asked[index].new_);
}

/** Number of sites with an int3 on them. */
size_t rig_int3s(const struct rig *rig)
{
	size_t sum = 0;

	for (size_t i = 0; i < rig->count; i++)
		sum += rig_bytes(rig, i)[0] == TP_INT3;
	return sum;
}

/** Number of int3s in the whole memory: also those that stand behind the first byte of a site. */
size_t rig_int3_bytes(const struct rig *rig)
{
	size_t sum = 0;

	for (size_t i = 0; i < rig->fake.size; i++)
		sum += rig->fake.bytes[i] == TP_INT3;
	return sum;
}

struct tp_known *rig_known(const struct rig *rig, size_t index)
{
	return tp_known_find(&rig->known, rig->asked[index].addr);
}

/** A thread runs into byte @head of a site. */
enum tp_trap_result rig_trap_at(struct rig *rig, size_t index, unsigned int head,
				struct tp_frame *frame)
{
	static uint64_t stack[64];

	*frame = (struct tp_frame){ .rip = rig->asked[index].addr + head + 1,
				    .rsp = (uint64_t)&stack[32] };
	return tp_trap(&rig->engine, frame);
}

/** A thread runs into the first byte of a site. */
enum tp_trap_result rig_trap(struct rig *rig, size_t index, struct tp_frame *frame)
{
	return rig_trap_at(rig, index, 0, frame);
}

/** The log of the last run: r(ead), w(rite), s(ync), f(inish), l(ook). Valid until the next call. */
const char *rig_story(const struct rig *rig)
{
	static char story[4096];
	size_t used = 0;

	for (size_t i = 0; i < rig->fake.logged && used + 1 < sizeof(story); i++)
		story[used++] = "rwsfl"[rig->fake.log[i].kind];
	story[used] = 0;
	return story;
}
