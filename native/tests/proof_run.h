/* SPDX-License-Identifier: Apache-2.0 */
/** @file What the parts of the proof share: one batch, set up again for every run. */
#ifndef TP_PROOF_RUN_H
#define TP_PROOF_RUN_H

#include "proof.h"

struct proof {
	struct rig rig; /* first: the fake memory's owner is the rig */
	struct proof_settings settings;
	struct fetch_spec *specs;
	struct fetch fetch;
	struct proof_counts counts;
	uint64_t emulated; /* traps of the last batch while it ran */
	uint64_t late;	   /* late ones of other sites */
	size_t watched;	   /* after this operation of a batch ... */
	uint64_t old_then; /* ... these sites (a bit each, by index) held old code */
	uint8_t *pristine; /* the memory before the first batch */
	uint8_t *scratch;
	int (*finish)(const struct tp_poke *poke, void *ctx);
};

void proof_prepare(struct proof *proof);
void proof_set_mode(struct proof *proof, enum tp_mode mode);
void proof_swap(struct proof *proof);
int proof_run(struct proof *proof);
void proof_check_run(struct proof *proof, int code);
const char *proof_end(struct proof *proof);

bool proof_tails_differ(const struct proof *proof);
size_t proof_windows(const struct proof *proof);
size_t proof_released(const struct proof *proof);
bool proof_looks(const struct proof *proof);
bool proof_is_busy(const struct proof *proof, const struct tp_poke *poke);
bool proof_is_left(const struct proof *proof, const struct tp_poke *poke);
bool proof_fails_inside(const struct proof *proof);
bool proof_takes(const struct proof *proof, const struct tp_poke *poke, enum tp_phase phase);
bool proof_is_real(const struct tp_poke *poke);
bool proof_holds(const struct proof *proof, const struct tp_poke *poke, bool new);
const struct fetch_site *proof_site(const struct proof *proof, const struct tp_poke *poke);

void proof_check_surroundings(struct proof *proof);
void proof_check_always(struct proof *proof, int code);
void proof_check_known(struct proof *proof);
void proof_check_success(struct proof *proof, int code);
void proof_check_inside(struct proof *proof, int code);

#endif
