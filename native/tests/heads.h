/* SPDX-License-Identifier: Apache-2.0 */
/** @file What the tests of windows look at: sites of several instructions, and traps at each of them. */
#ifndef TP_TEST_HEADS_H
#define TP_TEST_HEADS_H

#include "check.h"
#include "rig.h"

enum { MASKS = 16, EVERY = 0x1e };

#define HEADS(mask) ((unsigned int)(mask) << 1) /* every set of later heads: 0 to 15 */
#define JMP_TARGET(addr) ((addr) + 5 + 0x44332211)

static inline void check_known(const struct rig *rig, size_t i)
{
	const struct tp_known *known = rig_known(rig, i);
	const uint8_t *bytes = rig_bytes(rig, i);

	CHECK_BYTES(known->current, bytes, rig->asked[i].len);
	CHECK_BYTES(known->original, rig->asked[i].old, rig->asked[i].len);
	CHECK_EQ(known->patched, !!memcmp(known->original, bytes, rig->asked[i].len));
	CHECK_EQ(known->heads & rig_heads(&rig->asked[i]), rig_heads(&rig->asked[i]));
}

/* Everything is as before the batch. */
static inline void check_undone(const struct rig *rig)
{
	CHECK(rig->outcome.recovered && !rig->engine.broken && !rig->engine.active);
	CHECK_EQ(rig_int3_bytes(rig), 0);
	for (size_t i = 0; i < rig->count; i++) {
		CHECK(rig_is_old(rig, i));
		if (!rig_is_null(&rig->asked[i]))
			check_known(rig, i);
	}
}

static inline void check_sent_to_copy(struct rig *rig, size_t i, unsigned int head)
{
	struct tp_frame frame;

	CHECK_EQ(rig_trap_at(rig, i, head, &frame), TP_TRAP_EMULATED);
	CHECK_EQ(frame.rip, JMP_TARGET(rig->asked[i].addr) + RIG_COPY(head));
}

static inline void check_late(struct rig *rig, size_t i, unsigned int head)
{
	struct tp_frame frame;

	CHECK_EQ(rig_trap_at(rig, i, head, &frame), TP_TRAP_LATE);
	CHECK_EQ(frame.rip, rig->asked[i].addr + head);
}

static inline void check_foreign(struct rig *rig, uint64_t addr)
{
	struct tp_frame frame = { .rip = addr + 1, .rsp = (uint64_t)&frame };

	CHECK_EQ(tp_trap(&rig->engine, &frame), TP_TRAP_FOREIGN);
	CHECK_EQ(frame.rip, addr + 1);
}

/* A thread at every byte of every window, whatever stands there: it may have trapped long ago. */
static inline void trap_everywhere(struct rig *rig)
{
	struct tp_frame frame;

	for (size_t i = 0; i < rig->count; i++) {
		const struct tp_poke *poke = &rig->asked[i];
		unsigned int heads = rig_heads(poke);

		if (rig_is_null(poke) || !heads)
			continue;
		if (!rig->engine.active) {
			check_late(rig, i, 0);
		} else {
			CHECK_EQ(rig_trap(rig, i, &frame), TP_TRAP_EMULATED);
			CHECK_EQ(frame.rip, JMP_TARGET(poke->addr));
		}
		for (unsigned int head = 1; head < 5; head++) {
			if (!(heads >> head & 1))
				check_foreign(rig, poke->addr + head);
			else if (rig->engine.active && !rig_is_back(poke))
				check_sent_to_copy(rig, i, head);
			else
				check_late(rig, i, head);
		}
	}
}

#endif
