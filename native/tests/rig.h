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
	struct tp_copies copies;
	struct tp_known_table known;
	struct tp_batch batch;
	struct tp_outcome outcome;
	struct tp_poke *asked; /* in the caller's order */
	struct tp_poke *pokes; /* the engine's copy: sorted by a run */
	size_t count;
	uint32_t
		busy; /* what a look says: a thread is inside of the site given i-th (bit i), ... */
	int look_error;	       /* ... or that it failed */
	struct oracle *oracle; /* who watches; see oracle.h */
};

#define BYTES(...) ((const uint8_t[16]){ __VA_ARGS__ })
#define NOP5 BYTES(0x0f, 0x1f, 0x44, 0x00, 0x00)
#define JMP5 BYTES(0xe9, 0x11, 0x22, 0x33, 0x44)
#define CALL5 BYTES(0xe8, 0x55, 0x66, 0x77, 0x08)
#define RUN5 BYTES(0x90, 0x90, 0x90, 0x90, 0x90)
#define FLIP5 BYTES(0xe8, 0x90, 0x90, 0x90, 0x90)
#define PUSHES5 BYTES(0x55, 0x56, 0x57, 0x50, 0x51) /* an instruction at every byte */

/* Where a window's copy goes on for the instruction at byte @head of it. */
#define RIG_COPY(head) (0x30 + 8 * (head))

void rig_open(struct rig *rig, size_t pages);
void rig_close(struct rig *rig);

/* Sites; each returns its position in the caller's order. @offset is from the memory's start. */
size_t rig_add(struct rig *rig, size_t offset, size_t len, const uint8_t *old, const uint8_t *new);
size_t rig_skip(struct rig *rig, size_t offset);
size_t rig_nop5(struct rig *rig, size_t offset);
size_t rig_flip(struct rig *rig, size_t offset);
void rig_mixed(struct rig *rig);

/* Windows: several instructions, which begin at byte 0 and at each bit of @heads (1 to 4), give way to
 * JMP5, or come back in its place. */
size_t rig_window(struct rig *rig, size_t offset, unsigned int heads);
size_t rig_window_back(struct rig *rig, size_t offset, unsigned int heads);
unsigned int rig_heads(const struct tp_poke *poke);
bool rig_is_back(const struct tp_poke *poke);
bool rig_is_null(const struct tp_poke *poke);

void rig_learn(struct rig *rig);
int rig_run(struct rig *rig);
int rig_run_unlearned(struct rig *rig);
int rig_prepare(struct rig *rig);

struct tp_poke *rig_site(const struct rig *rig, size_t index);
const uint8_t *rig_bytes(const struct rig *rig, size_t index);
bool rig_is_old(const struct rig *rig, size_t index);
bool rig_is_new(const struct rig *rig, size_t index);
size_t rig_int3s(const struct rig *rig);
size_t rig_int3_bytes(const struct rig *rig);
struct tp_known *rig_known(const struct rig *rig, size_t index);
enum tp_trap_result rig_trap(struct rig *rig, size_t index, struct tp_frame *frame);
enum tp_trap_result rig_trap_at(struct rig *rig, size_t index, unsigned int head,
				struct tp_frame *frame);

/* The log of the last run as text, one letter an operation. */
const char *rig_story(const struct rig *rig);

#endif
