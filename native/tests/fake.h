/* SPDX-License-Identifier: Apache-2.0 */
/**
 * @file
 * Memory that fails on request. It stands behind the engine's table of operations, records every
 * operation, can fail the k-th of a kind, write less than asked, lie about a hole, and change bytes
 * behind the engine's back. Its addresses are real ones, so that the trap path can read them too.
 */
#ifndef TP_FAKE_H
#define TP_FAKE_H

#include "engine.h"

enum { FAKE_FAULTS = 2, FAKE_BASE_NS = 1000 };

enum fake_kind { FAKE_READ, FAKE_WRITE, FAKE_SYNC, FAKE_FINISH, FAKE_LOOK, FAKE_KINDS };

/** One recorded operation. */
struct fake_op {
	enum fake_kind kind;
	uint64_t addr;
	size_t len;
	long result;
	uint8_t *bytes; /* of a write: what was asked for; else NULL */
};

/** The @k-th operation of @kind and the @times - 1 after it give @result. */
struct fake_fault {
	enum fake_kind kind;
	size_t k;
	size_t times; /* 0: no fault */
	long result;  /* a write with a result >= 0 writes that many bytes */
};

struct fake {
	uint8_t *bytes;
	size_t size;
	uint64_t hole_start; /* [hole_start, hole_end) is not mapped */
	uint64_t hole_end;
	struct fake_op *log;
	size_t logged;
	size_t count[FAKE_KINDS];
	struct fake_fault faults[FAKE_FAULTS];
	size_t stranger_k; /* before operation number k of all kinds, ... */
	size_t stranger_len;
	uint64_t stranger_addr; /* ... somebody writes here */
	uint8_t stranger_bytes[16];
	uint64_t now_ns; /* every look at the clock takes a nanosecond */
	size_t relaxed;
	void (*before)(struct fake *fake, const struct fake_op *op);
	void (*after)(struct fake *fake, const struct fake_op *op);
	void (*on_relax)(struct fake *fake);
	/* Marks sites TP_SITE_BUSY; its result is that of the look. Not called when a fault is. */
	int (*on_look)(struct fake *fake, struct tp_batch *batch);
	void *owner; /* for the hooks */
};

extern const struct tp_ops fake_ops;
extern const struct tp_ops fake_blind_ops; /* nobody can tell where threads are */

void fake_open(struct fake *fake, size_t pages);
void fake_close(struct fake *fake);
void fake_forget(struct fake *fake);
uint64_t fake_addr(const struct fake *fake, size_t offset);
long fake_record(struct fake *fake, enum fake_kind kind, uint64_t addr, const void *bytes,
		 size_t len);

#endif
