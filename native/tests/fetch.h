/* SPDX-License-Identifier: Apache-2.0 */
/**
 * @file
 * The fetch model. Between two syncs a core may fetch any mix of the values that each byte has had
 * since the last one. fetch_look() goes through every mix at every site, for every place where a
 * thread may stand, and sends a thread through the trap handler wherever it may fetch an int3.
 *
 * A window is a site of several instructions that gives way to a JMP, or the other way round. A thread
 * may stand at each of its heads, until a look finds it empty: that is when every core sees int3s at
 * all of them, and nobody is said to stay there.
 *
 * In direct mode the same holds with no int3 at all. In stop mode no thread fetches anything until
 * fetch_end() lets them go on.
 *
 * What the code at a site does is told by whoever made the site (struct fetch_code), never decoded
 * here: the engine's own decoder is under test too.
 */
#ifndef TP_FETCH_H
#define TP_FETCH_H

#include "rig.h"

enum { FETCH_VALUES = 8, FETCH_TEXT = 512 };

/** What stands at a site before or after a batch. */
struct fetch_code {
	uint8_t bytes[16];
	int64_t reach;	 /* of a branch: target minus the site's address */
	uint16_t starts; /* bit p: an instruction begins at byte p */
	uint16_t pops;	 /* RET imm16 */
	uint8_t kind;	 /* enum tp_insn_kind */
	uint8_t condition;
	uint8_t heads; /* of a window's several instructions: the bits of @starts behind the first */
	uint8_t padding;
};

/** One site as the caller of the library gives it. */
struct fetch_spec {
	uint32_t offset; /* from the memory's start */
	uint8_t len;
	uint8_t is_null;	   /* NULL opcodes: "already there" */
	uint8_t has_handler;	   /* a trapped thread continues at a place of our own */
	uint8_t is_busy;	   /* a window that a look finds somebody in */
	struct fetch_code code[2]; /* old, new; a batch back swaps them */
	uint8_t copies[5]; /* of a window: where the one at byte i goes on in the JMP's target */
	uint8_t is_one; /* each side is one instruction, by the caller's word; the rest is padding */
	uint8_t padding[2];
};

struct fetch_site {
	const struct fetch_spec *spec;
	const struct fetch_code *old;
	const struct fetch_code *new_;
	uint64_t addr;
	uint8_t values[16][FETCH_VALUES]; /* that a core may fetch */
	uint8_t count[16];
	bool nop_mix; /* 66 and 90 only: every mix is NOPs from every byte on */
	bool reached; /* the new code has stood there: a thread may be inside of it */
	bool left;    /* threads were seen outside of the old code: nobody is inside of it */
	bool trapped; /* some core may have fetched an int3 here */
	uint8_t trapped_heads; /* or at these later heads */
	bool is_busy;	       /* the next look finds somebody inside */
	bool is_asked;	       /* takes part in the batch that runs */
	bool is_foreign; /* a stranger has written here: nothing is promised about its bytes */
};

struct fetch_counts {
	uint64_t operations;
	uint64_t mixes; /* those that begin with int3 are one: nothing behind it is executed */
	uint64_t positions;
	uint64_t traps;
	uint64_t late_traps;
	uint64_t heads; /* positions at the later heads of a window */
	uint64_t head_traps;
	uint64_t late_head_traps;
	uint64_t looks;
	uint64_t busy; /* windows that they found somebody in */
};

struct fetch {
	struct rig *rig;
	enum tp_mode mode;	  /* what is promised meanwhile */
	struct fetch_site *sites; /* in the caller's order */
	size_t count;
	struct fetch_counts counts;
	uint64_t turn;	     /* of the flags that trapped threads have */
	uint64_t emulated;   /* traps of the running batch */
	uint64_t late;	     /* late ones, of sites of earlier batches, while it writes */
	size_t verifying;    /* operations before that, in the other modes than int3 */
	size_t deaf_sync;    /* a control: the sync with this number does not happen */
	uint64_t violations; /* of anything; the first one is told */
	char text[FETCH_TEXT];
};

void fetch_begin(struct fetch *fetch);
void fetch_swap(struct fetch_site *site); /* the next batch takes it the other way */
void fetch_answer_look(struct fetch *fetch, struct tp_batch *batch);
void fetch_after(struct fetch *fetch, const struct fake_op *op);
void fetch_look(struct fetch *fetch);
void fetch_end(struct fetch *fetch); /* of a batch: threads go on, every core is up to date */
uint64_t fetch_handler(const struct fetch_site *site);
bool fetch_is_window(const struct fetch_site *site);
bool fetch_is_nop_mix(const uint8_t *bytes, size_t len);
void fetch_violate(struct fetch *fetch, const char *format, ...)
	__attribute__((format(printf, 2, 3)));

#endif
