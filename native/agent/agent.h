/* SPDX-License-Identifier: Apache-2.0 */
/** @file What the parts of the agent share. All state is private memory of the target. */
#ifndef TPA_AGENT_H
#define TPA_AGENT_H

#include "engine.h"
#include "sys.h"
#include "wire.h"

#define TPA_SLOT_COUNT 4096u /* thunk.S: SLOT_BYTES_MASK */

/** Where a thread finds its ring: keyed by fs base, never emptied. */
struct tpa_slot {
	uint64_t fs_base;
	struct tp_ring *ring;
};

struct tpa_state {
	struct tp_wire *wire;
	struct tpa_slot *slots;
	struct tp_engine engine;
	int mem_fd;
	int status_fd;
	int stat_fd;
	int task_fd;	   /* the directory of the program's threads */
	uint32_t seen_tid; /* ours in that directory: another pid namespace counts differently */
	int shared_fd;
	int socket_fd;
	int pid;
	int ids_watched;
	uint32_t ids[6]; /* ruid euid suid rgid egid sgid of this thread */
};

extern struct tp_image tpa_image;
extern struct tpa_state tpa;
extern struct tpa_slot *tpa_gate;

/* main.c */
void tpa_main(void) __attribute__((noreturn));

/* memory.c */
extern const struct tp_ops tpa_ops;
void *tpa_map_private(size_t bytes);
void tpa_unmap(void *start, size_t bytes);
void tpa_copy(void *to, const void *from, size_t bytes);
void tpa_pause(void);

/* look.c */
int tpa_look(void *ctx, struct tp_batch *batch);

/* handler.c */
int tpa_install_handler(void);
int tpa_handler_is_ours(void);
int tpa_a_handler_forbids_traps(int room);

/* commands.c */
int tpa_run_command(struct tp_wire *wire);
int tpa_undo(uint32_t modes, enum tp_mode how, int room, uint64_t *strangers,
	     struct tp_outcome *outcome);
int tpa_any_patched(uint32_t modes);

/* ring_write.c */
struct tp_ring *tpa_ring_claim(uint64_t fs_base);
void tpa_init_rings(void);
void tpa_set_limits(uint64_t waiting);
void tpa_retire_rings(void);
struct tp_ring *tpa_ring(uint32_t i);

/* watch.c */
void tpa_drop_privileges(void);
void tpa_watch(void);
const char *tpa_field(const char *text, const char *name);

/* orphan.c */
void tpa_watch_tool(void);

#endif
