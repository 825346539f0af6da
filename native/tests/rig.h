/* SPDX-License-Identifier: Apache-2.0 */
/**
 * @file
 * One batch on the fake memory, as a caller of the engine would set it up: add sites, run, look.
 */
#ifndef TP_RIG_H
#define TP_RIG_H

#include "fake.h"

struct rig {
	struct fake fake;
	struct tp_engine engine;
	struct tp_known_table known;
	struct tp_batch batch;
	struct tp_outcome outcome;
	struct tp_poke *asked; /* in the caller's order */
	struct tp_poke *pokes; /* the engine's copy: sorted by a run */
	size_t count;
	struct oracle *oracle; /* who watches; see oracle.h */
};

#define BYTES(...) ((const uint8_t[16]){ __VA_ARGS__ })
#define NOP5 BYTES(0x0f, 0x1f, 0x44, 0x00, 0x00)
#define JMP5 BYTES(0xe9, 0x11, 0x22, 0x33, 0x44)
#define CALL5 BYTES(0xe8, 0x55, 0x66, 0x77, 0x08)
#define RUN5 BYTES(0x90, 0x90, 0x90, 0x90, 0x90)
#define FLIP5 BYTES(0xe8, 0x90, 0x90, 0x90, 0x90)

void rig_open(struct rig *rig, size_t pages);
void rig_close(struct rig *rig);

/* Sites; each returns its position in the caller's order. @offset is from the memory's start. */
size_t rig_add(struct rig *rig, size_t offset, size_t len, const uint8_t *old, const uint8_t *new);
size_t rig_skip(struct rig *rig, size_t offset);
size_t rig_nop5(struct rig *rig, size_t offset);
size_t rig_flip(struct rig *rig, size_t offset);
void rig_mixed(struct rig *rig);

void rig_learn(struct rig *rig);
int rig_run(struct rig *rig);
int rig_run_unlearned(struct rig *rig);

const struct tp_poke *rig_site(const struct rig *rig, size_t index);
const uint8_t *rig_bytes(const struct rig *rig, size_t index);
bool rig_is_old(const struct rig *rig, size_t index);
bool rig_is_new(const struct rig *rig, size_t index);
size_t rig_int3s(const struct rig *rig);
struct tp_known *rig_known(const struct rig *rig, size_t index);
enum tp_trap_result rig_trap(struct rig *rig, size_t index, struct tp_frame *frame);

/* The log of the last run as text, one letter an operation. */
const char *rig_story(const struct rig *rig);

#endif
