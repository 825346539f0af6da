/* SPDX-License-Identifier: Apache-2.0 */
/** @file All threads of a target, stopped. */
#ifndef TP_WORLD_H
#define TP_WORLD_H

#include <stddef.h>

#include "held.h"
#include "status.h"

struct tp_world {
	pid_t pid;
	pid_t spared;	 /* a thread that is not stopped, or 0 */
	int patience_ms; /* for each thread to stop; 0: the usual */
	struct tp_held *threads;
	size_t count;
	size_t room;
	uint64_t since_ns;
	bool hurried;
};

/* Returns true to end the search. */
typedef bool tp_word_fn(void *ctx, uint64_t at, uint64_t word);

/** What to look for on the stacks of stopped threads. */
struct tp_stack_scan {
	const uint64_t *pairs; /* start, end of writable mappings, sorted */
	uint64_t count;
	uint64_t low; /* words of [low, high] are shown to @visit; most of a stack is none */
	uint64_t high;
	tp_word_fn *visit;
	void *ctx;
};

int tp_stop_world(struct tp_world *world);
void tp_release_world(struct tp_world *world);
int64_t tp_floor_index(const uint64_t *sorted, uint64_t stride, uint64_t count, uint64_t value);
bool tp_is_saved_rip(pid_t tid, uint64_t at, uint64_t *restorer);
bool tp_scan_stack(const struct tp_held *held, uint64_t rsp, const struct tp_stack_scan *scan);

#endif
