/* SPDX-License-Identifier: Apache-2.0 */
/** @file Memory that fails on request; see fake.h. */
#include <assert.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include "fake.h"

void fake_open(struct fake *fake, size_t pages)
{
	void *bytes = mmap(NULL, pages * TP_PAGE_BYTES, PROT_READ | PROT_WRITE,
			   MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

	assert(bytes != MAP_FAILED);
	*fake = (struct fake){ .bytes = bytes,
			       .size = pages * TP_PAGE_BYTES,
			       .now_ns = FAKE_BASE_NS };
	memset(fake->bytes, 0xf4, fake->size); /* HLT: no byte of an instruction that we write */
}

/** Forget the log; faults and counters start again. */
void fake_forget(struct fake *fake)
{
	for (size_t i = 0; i < fake->logged; i++)
		free(fake->log[i].bytes);
	free(fake->log);
	fake->log = NULL;
	fake->logged = 0;
	memset(fake->count, 0, sizeof(fake->count));
}

void fake_close(struct fake *fake)
{
	fake_forget(fake);
	munmap(fake->bytes, fake->size);
}

uint64_t fake_addr(const struct fake *fake, size_t offset)
{
	return (uint64_t)fake->bytes + offset;
}

static long fault_of(const struct fake *fake, enum fake_kind kind, long result)
{
	for (size_t i = 0; i < FAKE_FAULTS; i++) {
		const struct fake_fault *fault = &fake->faults[i];

		if (fault->kind == kind && fake->count[kind] >= fault->k &&
		    fake->count[kind] - fault->k < fault->times)
			return fault->result < result ? fault->result : result;
	}
	return result;
}

/* Number of the @len bytes at @addr that come before the hole or the end. */
static size_t mapped(const struct fake *fake, uint64_t addr, size_t len)
{
	uint64_t end = fake_addr(fake, fake->size);

	if (fake->hole_start < fake->hole_end && addr < fake->hole_end)
		end = fake->hole_start;
	if (addr < fake_addr(fake, 0) || addr >= end)
		return 0;
	return end - addr < len ? end - addr : len;
}

static uint8_t *copy_of(const void *bytes, size_t len)
{
	uint8_t *copy = bytes ? malloc(len + 1) : NULL;

	if (copy)
		memcpy(copy, bytes, len);
	return copy;
}

static struct fake_op *push(struct fake *fake, struct fake_op op)
{
	if (!(fake->logged & (fake->logged - 1))) { /* 0, 1, 2, 4, ...: grow */
		size_t room = fake->logged ? 2 * fake->logged : 1;

		fake->log = realloc(fake->log, room * sizeof(*fake->log));
		assert(fake->log);
	}
	fake->log[fake->logged] = op;
	return &fake->log[fake->logged++];
}

static void let_stranger_write(struct fake *fake)
{
	if (fake->stranger_len && fake->logged == fake->stranger_k)
		memcpy((void *)fake->stranger_addr, fake->stranger_bytes, fake->stranger_len);
}

/* Log one operation and decide its result: @result, unless a fault says less. */
static struct fake_op *begin(struct fake *fake, struct fake_op op)
{
	struct fake_op *logged;

	let_stranger_write(fake);
	op.result = fault_of(fake, op.kind, op.result);
	fake->count[op.kind]++;
	logged = push(fake, op);
	if (fake->before)
		fake->before(fake, logged);
	return logged;
}

static long end(struct fake *fake, const struct fake_op *op)
{
	long result = op->result;

	if (fake->after)
		fake->after(fake, op);
	return result;
}

/** Log an operation that touches no memory, such as a finish. Returns 0 or the fault. */
long fake_record(struct fake *fake, enum fake_kind kind, uint64_t addr, const void *bytes,
		 size_t len)
{
	return end(fake, begin(fake, (struct fake_op){ kind, addr, len, 0, copy_of(bytes, len) }));
}

static int fake_read(void *ctx, uint64_t addr, void *buf, size_t len)
{
	struct fake *fake = ctx;
	struct fake_op *op = begin(fake, (struct fake_op){ FAKE_READ, addr, len, 0, NULL });

	if (mapped(fake, addr, len) < len && !op->result)
		op->result = -ENXIO;
	if (!op->result)
		memcpy(buf, (const void *)addr, len);
	return (int)end(fake, op);
}

static long fake_write(void *ctx, uint64_t addr, const void *buf, size_t len)
{
	struct fake *fake = ctx;
	struct fake_op *op = begin(
		fake, (struct fake_op){ FAKE_WRITE, addr, len, (long)len, copy_of(buf, len) });
	long room = (long)mapped(fake, addr, len);

	if (op->result > room)
		op->result = room ? room : -EIO;
	if (op->result > 0)
		memcpy((void *)addr, buf, (size_t)op->result);
	return end(fake, op);
}

static int fake_sync(void *ctx)
{
	return (int)fake_record(ctx, FAKE_SYNC, 0, NULL, 0);
}

static int fake_look(void *ctx, struct tp_batch *batch)
{
	struct fake *fake = ctx;
	struct fake_op *op = begin(fake, (struct fake_op){ FAKE_LOOK, 0, 0, 0, NULL });

	if (!op->result && fake->on_look)
		op->result = fake->on_look(fake, batch);
	return (int)end(fake, op);
}

static uint64_t fake_clock_ns(void *ctx)
{
	struct fake *fake = ctx;

	return fake->now_ns++;
}

static void fake_relax(void *ctx)
{
	struct fake *fake = ctx;

	fake->relaxed++;
	fake->now_ns += 50000;
	if (fake->on_relax)
		fake->on_relax(fake);
}

const struct tp_ops fake_ops = {
	.read = fake_read,
	.write = fake_write,
	.sync = fake_sync,
	.look = fake_look,
	.clock_ns = fake_clock_ns,
	.relax = fake_relax,
};

const struct tp_ops fake_blind_ops = {
	.read = fake_read,
	.write = fake_write,
	.sync = fake_sync,
	.clock_ns = fake_clock_ns,
	.relax = fake_relax,
};
