/* SPDX-License-Identifier: Apache-2.0 */
/**
 * @file
 * Between the int3s and the tails of a batch: is a thread in the middle of a site? A process cannot
 * look at the registers of its own threads, so the tool is asked. Without an answer the batch fails
 * and is undone: no trap state outlives its tool.
 */
#include <linux/futex.h>

#include "agent.h"

#define LOOK_NS 3000000000ull
#define SLICE_NS 50000000
#define LOCK_EX_NB 6
#define LOCK_UN_NR 8
#define EOWNERDEAD_NR 130
#define EAGAIN_NR 11

static int tool_is_gone(void)
{
	if (sys_failed(sys2(__NR_flock, tpa.shared_fd, LOCK_EX_NB)))
		return 0;
	sys2(__NR_flock, tpa.shared_fd, LOCK_UN_NR);
	return 1;
}

static int wait_for_answer(struct tp_wire *wire, uint32_t seq)
{
	const uint64_t span[2] = { 0, SLICE_NS };
	uint64_t start = tpa_ops.clock_ns(NULL);
	uint32_t seen;

	while ((seen = __atomic_load_n(&wire->looked_seq, __ATOMIC_SEQ_CST)) != seq) {
		if (tool_is_gone())
			return -EOWNERDEAD_NR;
		if (tpa_ops.clock_ns(NULL) - start > LOOK_NS)
			return -EAGAIN_NR; /* not -ETIMEDOUT: that is an agent that is silent */
		sys6(__NR_futex, (long)&wire->looked_seq, FUTEX_WAIT, seen, (long)span, 0, 0);
	}
	return wire->look_result;
}

/* The tool knows the records in its own order. */
static void note_busy(struct tp_batch *batch, const struct tp_poke *request)
{
	uint64_t most = tpa_image.request_bytes / sizeof(*request);

	for (size_t i = 0; i < batch->count; i++) {
		struct tp_poke *poke = &batch->pokes[i];

		if (poke->outcome == TP_SITE_INT3 && tp_old_heads(poke) && poke->index < most &&
		    request[poke->index].outcome == TP_SITE_BUSY)
			poke->outcome = TP_SITE_BUSY;
	}
}

/** struct tp_ops.look */
int tpa_look(void *ctx, struct tp_batch *batch)
{
	struct tp_wire *wire = tpa.wire;
	uint32_t seq = __atomic_add_fetch(&wire->look_seq, 1, __ATOMIC_SEQ_CST);
	int error;

	(void)ctx;
	/* The tool waits there for the end of the command, and looks here when it is woken. */
	sys6(__NR_futex, (long)&wire->done_seq, FUTEX_WAKE, 1, 0, 0, 0);
	error = wait_for_answer(wire, seq);
	if (!error)
		note_busy(batch, tp_request_of(wire));
	return error;
}
