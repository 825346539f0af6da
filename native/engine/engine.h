/* SPDX-License-Identifier: Apache-2.0 */
/**
 * @file
 * The batch protocol, free of any process: it sees memory through struct tp_ops and is compiled
 * unchanged into the agent, the tool and the unit tests. It allocates nothing and locks nothing;
 * its caller owns every buffer and lets one batch run at a time (text_mutex's role).
 *
 * Source of the algorithm: text_poke_bp_list() of Petr Mladek's "x86: add generic function to
 * modify more calls using int3 framework" (2013), with the emulation (2019), the verify pass and
 * the reference count (2019, 2022) of its descendants in the Linux kernel.
 */
#ifndef TP_ENGINE_H
#define TP_ENGINE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "errors.h"
#include "wire.h"

struct tp_batch;

/** How the engine reaches memory. Every call returns 0 (write: bytes written) or -errno. */
struct tp_ops {
	/* -ENXIO: (a part of) this memory is not mapped; what cannot be read otherwise is -EFAULT. */
	int (*read)(void *ctx, uint64_t addr, void *buf, size_t len);
	long (*write)(void *ctx, uint64_t addr, const void *buf, size_t len);
	int (*sync)(void *ctx); /* every core has serialised since */
	/* Mark sites of the batch that a thread stands inside of TP_SITE_BUSY. NULL: nobody can tell. */
	int (*look)(void *ctx, struct tp_batch *batch);
	uint64_t (*clock_ns)(void *ctx);
	void (*relax)(void *ctx); /* give way for a moment while a handler drains */
};

enum tp_insn_kind {
	TP_INSN_OTHER,
	TP_INSN_NOP,
	TP_INSN_CALL,
	TP_INSN_JMP,
	TP_INSN_JCC,
	TP_INSN_RET,
	TP_INSN_HANDLER, /* not an instruction: continue at the poke's handler */
};

/** One decoded instruction; see tp_classify(). */
struct tp_insn {
	enum tp_insn_kind kind;
	unsigned int length; /* of the first instruction, without int3 padding */
	unsigned int condition;
	unsigned int pops; /* RET imm16 */
	uint64_t target;
};

/** The registers that emulation may change. */
struct tp_frame {
	uint64_t rip;
	uint64_t rsp;
	uint64_t rflags;
};

enum tp_trap_result {
	TP_TRAP_FOREIGN, /* not ours: chain it */
	TP_TRAP_EMULATED,
	TP_TRAP_LATE,	   /* the int3 is gone already: execute again */
	TP_TRAP_PERMANENT, /* an int3 that is there for good */
};

/** A batch while it runs; the trap handler reads it. Pokes are sorted by address. */
struct tp_batch {
	struct tp_poke *pokes;
	size_t count;
	bool (*is_handled)(uint64_t ip); /* the seed's predicate; NULL: sorted lookup alone */
	int (*finish)(const struct tp_poke *poke, void *ctx);
	void *finish_ctx;
	bool all_or_nothing;
	bool leave_busy; /* leave out sites that a thread is inside of, instead of failing */
	enum tp_mode mode;
	bool tails_differ; /* filled by the check: the tail phase is needed */
	bool must_look;	   /* likewise: a site holds several instructions now */
	bool must_learn;   /* likewise: the known table lacks a site's first bytes */
	bool must_arm;	   /* likewise: a site becomes an int3 for good, or has been one */
	bool is_mixed;	   /* likewise: sites of several kinds (tp_kind) take turns */
	size_t skipped;	   /* likewise: records that are already there */
	struct tp_outcome *outcome;
};

/*
 * Sites on neighbouring pages may go out in one write of up to this size: a page costs half as much
 * that way, and more would only widen the time between reading and writing.
 */
#define TP_WINDOW_PAGES 16
#define TP_WINDOW_BYTES (TP_WINDOW_PAGES * TP_PAGE_BYTES)
#define TP_LINE_BYTES 64

/*
 * Copies stand as their text does relative to a cache line: a copy at another offset takes twice the
 * time (measured on AMD). 16 bytes of slack for tp_same_prefix().
 */
#define TP_COPY_BYTES (TP_WINDOW_BYTES + TP_LINE_BYTES + 16)

/** Where text is read to. */
struct tp_copies {
	uint8_t window[TP_COPY_BYTES] __attribute__((aligned(TP_LINE_BYTES)));
	uint8_t readback[TP_COPY_BYTES] __attribute__((aligned(TP_LINE_BYTES)));
};

/* Handlers in flight are counted in padded slots, so that a trap storm shares no cache line. */
#define TP_SLOTS 64

struct tp_slot {
	uint64_t inflight;
	uint64_t traps;
	uint64_t late;
	uint64_t foreign;
	uint64_t permanent;
	uint64_t padding[3];
};

struct tp_known_table {
	struct tp_known *entries;
	size_t count;
};

struct tp_engine {
	const struct tp_ops *ops;
	void *ctx;
	const struct tp_batch *active; /* published descriptor; NULL between batches */
	uint64_t generation;	       /* of @active: one more whenever it changes */
	const struct tp_known_table *known;
	unsigned int window_pages; /* pages in one write, up to TP_WINDOW_PAGES; 0: one */
	bool broken; /* a recovery failed: int3s of ours are left, the descriptor stays */
	struct tp_copies *copies;
	struct tp_slot slots[TP_SLOTS];
};

static inline uint64_t tp_word(const uint8_t *bytes)
{
	uint64_t word;

	__builtin_memcpy(&word, bytes, sizeof(word));
	return word;
}

/** Do bytes [8, len) of two 16-byte fields agree, when @low is the difference of the first eight? */
static inline bool tp_same_rest(uint64_t low, const uint8_t *a, const uint8_t *b, unsigned int len)
{
	if (len <= 8)
		return !len || !(low << (64 - 8 * len));
	return !low && !((tp_word(a + 8) ^ tp_word(b + 8)) << (128 - 8 * len));
}

/** Do the first @len bytes (up to 16) of two 16-byte fields agree? A few instructions, no loop. */
static inline bool tp_same_prefix(const uint8_t *a, const uint8_t *b, unsigned int len)
{
	return tp_same_rest(tp_word(a) ^ tp_word(b), a, b, len);
}

/** Are all bytes of two 16-byte fields the same? Cheaper than a prefix, where that is enough. */
static inline bool tp_same_field(const uint8_t *a, const uint8_t *b)
{
	return !((tp_word(a) ^ tp_word(b)) | (tp_word(a + 8) ^ tp_word(b + 8)));
}

/**
 * Length, flags, outcome and emulation of a poke as one word: sites with the same word need the same
 * work, so a loop over thousands of them decides once. Not in a batch that is mixed: no processor
 * foretells whether the next site is of another kind, so asking each one is cheaper there.
 */
static inline uint32_t tp_kind(const struct tp_poke *poke)
{
	uint32_t kind;

	__builtin_memcpy(&kind, &poke->len, sizeof(kind));
	return kind & ~((uint32_t)TP_POKE_ALIKE << 8);
}

_Static_assert(offsetof(struct tp_poke, len) == 28 && offsetof(struct tp_poke, emulate) == 31,
	       "tp_kind() is these four bytes");

/**
 * Heads: where instructions begin behind the first one, in code of several that gives way to a JMP
 * (bit i: at byte i). They get int3s of their own, and a thread that traps there goes on in the copy.
 */
static inline unsigned int tp_heads(const struct tp_poke *poke)
{
	return (poke->flags & TP_POKE_HEADS) >> 1;
}

/** The heads that threads may stand at when a batch begins: not those of code that comes back. */
static inline unsigned int tp_old_heads(const struct tp_poke *poke)
{
	return poke->flags & TP_POKE_BACK ? 0 : tp_heads(poke);
}

/** Is one side of this poke an int3 that stays, or has stayed: a trapped thread goes on at the handler. */
static inline bool tp_is_permanent(const struct tp_poke *poke)
{
	return poke->handler && poke->len == 1 &&
	       (poke->old[0] == TP_INT3) != (poke->new_[0] == TP_INT3);
}

/** Where the instruction at byte @head of the old code is in the copy that the JMP goes to. */
static inline unsigned int tp_copy_offset(const struct tp_poke *poke, unsigned int head)
{
	return poke->new_[11 + head];
}

#define TP_JMP_BYTES 5
#define TP_JMP 0xe9

/* batch.c */
void tp_sort_pokes(struct tp_poke *pokes, size_t count);
bool tp_tail_differs(const struct tp_poke *poke);
int tp_check_batch(struct tp_engine *engine, struct tp_batch *batch);
void tp_leave_out(struct tp_batch *batch, struct tp_poke *poke);
int tp_fail(struct tp_batch *batch, enum tp_phase phase, int code, size_t i);

/* patch.c */
int tp_prepare_batch(struct tp_engine *engine, struct tp_batch *batch);
int tp_verify_again(struct tp_engine *engine, struct tp_batch *batch);
int tp_write_batch(struct tp_engine *engine, struct tp_batch *batch);
int tp_run_batch(struct tp_engine *engine, struct tp_batch *batch);

/* text.c */
enum tp_edit { TP_EDIT_NONE, TP_EDIT_INT3, TP_EDIT_TAIL, TP_EDIT_FIRST, TP_EDIT_WHOLE };

struct tp_pass {
	enum tp_phase phase;
	enum tp_edit edit;
	bool to_new; /* write new bytes, else old ones */
	bool call_finish;
	uint32_t from; /* mask of enum tp_outcome_of_site: the sites this pass is for */
	uint8_t to;    /* their state after it */
};

int tp_run_pass(struct tp_engine *engine, struct tp_batch *batch, const struct tp_pass *pass);

/* edit.c */
static inline bool tp_selected(const struct tp_poke *poke, const struct tp_pass *pass)
{
	return 1u << poke->outcome & pass->from & ~(1u << TP_SITE_SKIPPED);
}

static inline bool tp_is_undo(const struct tp_pass *pass)
{
	return pass->phase == TP_PHASE_RECOVER || pass->phase == TP_PHASE_ROLLBACK;
}

/** Pokes [first, last) and a copy of the text that they stand in, from address @start on. */
struct tp_copy {
	size_t first;
	size_t last;
	uint64_t start;
	uint8_t *bytes;
};

size_t tp_int3_span(const struct tp_poke *poke, const struct tp_pass *pass);
void tp_edit_range(const struct tp_poke *poke, const struct tp_pass *pass, size_t *from,
		   size_t *to);
bool tp_is_still_ours(struct tp_batch *batch, const struct tp_pass *pass, struct tp_poke *poke,
		      uint8_t found, bool released);
int tp_edit_sites(struct tp_batch *batch, const struct tp_pass *pass, const struct tp_copy *copy);

/* known.c */
struct tp_known *tp_known_from(const struct tp_known_table *table, uint64_t addr);
struct tp_known *tp_known_find(const struct tp_known_table *table, uint64_t addr);
struct tp_known *tp_known_begin(const struct tp_engine *engine, const struct tp_batch *batch);
const struct tp_known *tp_known_covering(const struct tp_known_table *table, uint64_t addr);
size_t tp_known_merge(struct tp_engine *engine, const struct tp_known_table *old,
		      const struct tp_poke *pokes, size_t count, struct tp_known *merged);
void tp_known_learn(struct tp_engine *engine, const struct tp_batch *batch);
void tp_known_arm(struct tp_engine *engine, const struct tp_batch *batch);
struct tp_known *tp_known_commit(const struct tp_batch *batch, size_t first, size_t last,
				 struct tp_known *entry);
void tp_known_disarm(struct tp_engine *engine, const struct tp_batch *batch);

/* emulate.c */
struct tp_insn tp_classify(const uint8_t *code, size_t len, uint64_t addr);
bool tp_is_nop_mix(const uint8_t *code, size_t len);
void tp_emulate(const struct tp_poke *poke, struct tp_frame *frame);
void tp_emulate_head(const struct tp_poke *poke, unsigned int head, struct tp_frame *frame);
uint8_t tp_pack_emulate(const struct tp_insn *insn);

/* trap.c */
void tp_publish(struct tp_engine *engine, const struct tp_batch *batch);
enum tp_trap_result tp_trap(struct tp_engine *engine, struct tp_frame *frame);
uint64_t tp_handlers_in_flight(const struct tp_engine *engine);
bool tp_drain(struct tp_engine *engine, uint64_t timeout_ns);

#endif
