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

/**
 * Registers of the program at a call or a return, as a thunk saves them for tpa_capture(). At a
 * return @slot is where the return address was.
 */
struct tpa_regs {
	union {
		uint64_t gpr[16]; /* in the order of DWARF: TP_CAPTURE_GPR */
		struct {
			uint64_t rax, rdx, rcx, rbx, rsi, rdi, rbp, rsp;
			uint64_t r8, r9, r10, r11, r12, r13, r14, r15;
		};
	};
	uint64_t xmm[8]; /* their low halves */
	uint64_t slot;	 /* address of the return address; the arguments on the stack follow it */
};

_Static_assert(offsetof(struct tpa_regs, xmm) == 128, "thunks know these offsets");
_Static_assert(sizeof(struct tpa_regs) == 200, "thunks know these offsets");

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

/* capture.c */
uint32_t tpa_capture(const struct tp_capture_op *ops, uint32_t count, const struct tpa_regs *regs,
		     bool may_read, uint64_t *words, uint32_t room);

/* watch.c */
void tpa_drop_privileges(void);
void tpa_watch(void);
const char *tpa_field(const char *text, const char *name);

/* orphan.c */
void tpa_watch_tool(void);

#endif
