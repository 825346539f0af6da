/* SPDX-License-Identifier: Apache-2.0 */
/** @file Are stopped threads on some stretch of code? */
#ifndef TP_WHERE_H
#define TP_WHERE_H

#include "textpoke.h"
#include "world.h"

/** Stretches of code: @pairs of start and end, sorted. */
struct tp_ranges {
	const uint64_t *pairs;
	uint64_t count;
};

bool tp_any_in_ranges(const struct tp_world *world, pid_t spared, const struct tp_ranges *ranges,
		      const struct tp_stacks *stacks);

#endif
