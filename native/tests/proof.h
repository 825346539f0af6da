/* SPDX-License-Identifier: Apache-2.0 */
/**
 * @file
 * Proofs over one batch, for tests/proof to call with batches of its own making: the batch there
 * and back under the fetch model; every operation failing in turn, then every two; a stranger who
 * writes at every moment; and engines made wrong, which must be caught.
 *
 * What a failed batch must leave behind is derived from the log of its operations and from the
 * contract alone (docs/architecture.md, engine.h, wire.h), not from the engine's states.
 *
 * The modes of the engine: what each refuses is in refusal_of(), its passes in check_story(),
 * phase_of() and edited(), when a thread may look in fetch_after() and fetch_end(). Windows: who is
 * inside is up to fetch_answer_look(), what becomes of their sites to proof_is_left().
 */
#ifndef TP_PROOF_H
#define TP_PROOF_H

#include "fetch.h"

#define PROOF_API __attribute__((visibility("default")))

struct proof_settings {
	uint32_t pages;
	uint32_t window_pages;
	uint8_t all_or_nothing;
	uint8_t has_finish;
	uint8_t has_predicate; /* the seed's is_handled */
	uint8_t mode;	       /* enum tp_mode */
	uint8_t leave_busy;
	uint8_t is_blind; /* nobody can tell where threads are */
};

struct proof_counts {
	uint64_t runs;
	uint64_t turns; /* of batches that take some of the sites only */
	uint64_t single_faults;
	uint64_t double_faults;
	uint64_t stranger_writes;
	uint64_t refusals;
	uint64_t broken; /* recoveries that failed, as they must */
	uint64_t inside; /* batches that failed because somebody was inside of a window */
	uint64_t left;	 /* windows that were left for that reason */
	struct fetch_counts fetch;
};

struct proof;

/* Every call returns NULL, or the text of the first violation. */
PROOF_API struct proof *proof_open(const struct proof_settings *settings,
				   const struct fetch_spec *specs, size_t count);
PROOF_API void proof_close(struct proof *proof);
PROOF_API const struct proof_counts *proof_count(const struct proof *proof);
PROOF_API const char *proof_there_and_back(struct proof *proof, size_t turns);
PROOF_API const char *proof_some_in_turn(struct proof *proof, const uint32_t *masks, size_t turns);
PROOF_API const char *proof_single_faults(struct proof *proof);
PROOF_API const char *proof_double_faults(struct proof *proof, size_t stride, size_t phase);
PROOF_API const char *proof_strangers(struct proof *proof);

/* Controls want a batch that proof_control_batch() takes, with a site whose first byte differs and,
 * but for direct mode, whose tail does too; not NOPs alone. And such windows as they say: none, or one
 * at least, whose later heads and tail differ; one of them with somebody inside; one that comes back,
 * in a batch without finish that is not all or nothing. */
enum proof_windows { PROOF_NO_WINDOW, PROOF_EMPTY, PROOF_BUSY, PROOF_LEFT, PROOF_BACK };

PROOF_API size_t proof_controls(void);
PROOF_API const char *proof_control_name(size_t control);
PROOF_API bool proof_control_is_wrong(size_t control);	  /* else it is a right engine */
PROOF_API uint32_t proof_control_batch(size_t control);	  /* enum tp_mode that takes its batch */
PROOF_API uint32_t proof_control_windows(size_t control); /* enum proof_windows */
PROOF_API const char *proof_control(struct proof *proof, size_t control);

#endif
