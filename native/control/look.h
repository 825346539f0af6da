/* SPDX-License-Identifier: Apache-2.0 */
/** @file Sites that hold several instructions, and the threads that may stand among these. */
#ifndef TP_LOOK_H
#define TP_LOOK_H

#include "held.h"
#include "textpoke.h"
#include "world.h"

struct tp_window {
	uint64_t addr;
	const struct tp_poke *poke;
	uint64_t index; /* of it in the caller's order */
};

/** The sites of a batch with several instructions, sorted; and what a look has found. */
struct tp_windows {
	const struct tp_look *in;
	struct tp_window *windows;
	uint64_t count;
	uint64_t busy;
};

int tp_windows_init(struct tp_windows *windows, const struct tp_look *in);
void tp_windows_deinit(struct tp_windows *windows);
uint64_t tp_copy_at(const struct tp_windows *windows, uint64_t rip);
void tp_mark_stack(struct tp_windows *windows, const struct tp_held *held,
		   const struct tp_stacks *stacks);
bool tp_has_trapped(const struct tp_held *held);
int tp_look_at_threads(struct tp_windows *windows);
bool tp_has_ended(int pid, int tid);

#endif
