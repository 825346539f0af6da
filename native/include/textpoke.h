/* SPDX-License-Identifier: Apache-2.0 */
/**
 * @file
 * The native side of the tool: ptrace, the command channel, draining rings. Every call returns 0
 * or more, or a negative errno (or code of errors.def); nothing prints, nothing is global. ptrace
 * ties a tracee to one thread of the tool: make all calls about one target from the same thread.
 */
#ifndef TEXTPOKE_H
#define TEXTPOKE_H

#include "errors.h"
#include "wire.h"

/** What to load into a target, and where a system call can be borrowed. */
struct tp_inject {
	uint8_t *image; /* file bytes of the agent, laid out by virtual address */
	uint64_t image_file_bytes;
	uint64_t image_bytes;	     /* with bss, gate page and stack */
	uint64_t head_offset;	     /* of struct tp_image */
	uint64_t entry_offset;	     /* of tpa_bootstrap */
	const uint64_t *relocations; /* pairs: offset, addend */
	uint64_t relocation_count;
	uint64_t syscall_at; /* address of "0f 05" in any r-x mapping */
	int mem_fd;	     /* mem file of the target, read and write */
	uint32_t ring_count;
	uint32_t ring_bytes;
	uint64_t request_bytes;
	uint32_t local_tid; /* the seized thread's id in its own pid namespace */
};

struct tp_injected {
	uint64_t base;
	int64_t agent_tid; /* in the target's pid namespace */
	uint64_t hold_ns;  /* from the request to stop to the release */
	uint32_t tid_offset;
	uint32_t fixed_eintr; /* an interrupted system call was put back by hand */
};

/** A stopped thread of a target, and what it was doing. */
struct tp_held;

struct tp_held *tp_held_create(void);
void tp_held_destroy(struct tp_held *held);
int tp_seize(struct tp_held *held, int pid, int tid);
int tp_launch(struct tp_held *held, const char *path, char *const argv[], char *const envp[]);
int tp_held_pid(const struct tp_held *held);
uint64_t tp_held_mask(const struct tp_held *held);
int tp_inject(struct tp_held *held, const struct tp_inject *in, struct tp_injected *out);
int tp_inject_thread(int pid, int tid, const struct tp_inject *in, struct tp_injected *out);
int tp_inject_self(const struct tp_inject *in, struct tp_injected *out);
int64_t tp_remote_syscall(struct tp_held *held, uint64_t syscall_at, long nr, const uint64_t *args);
int tp_release(struct tp_held *held);

/* channel.c */
int tp_send_fds(int tid, int remote_fd, const int fds[4]);
int tp_command(struct tp_wire *wire, uint32_t command, const uint64_t *args, int timeout_ms,
	       int pid, int tid);

/* leave.c */
struct tp_leave {
	int pid;
	uint64_t syscall_at;
	const uint64_t *ranges; /* pairs start, end: ours, to be unmapped */
	uint64_t range_count;
	uint64_t code_count;   /* the first so many hold code: a return address points there */
	const uint64_t *sites; /* sorted: site + 1 is where an int3 leaves a thread */
	uint64_t site_count;
	const uint64_t *stacks; /* pairs start, end of writable mappings, sorted */
	uint64_t stack_count;
	uint64_t handler;    /* ours */
	uint64_t restorer;   /* a word that proves nothing: every dead signal frame leaves one */
	uint64_t old_action; /* address of the saved struct sigaction in the target */
	uint64_t scratch;    /* writable address of ours in the target */
	int mem_fd;
	const struct tp_known *known; /* what to put back first: sites that no agent can any more */
	uint64_t known_count;
	int unmap; /* 0: look only */
};

/** Run one command while every thread but the agent's is held. */
struct tp_stop {
	int pid;
	int agent_tid;
	struct tp_wire *wire;
	uint32_t command;
	int timeout_ms;
	uint64_t args[4];
	const uint64_t *sites; /* pairs start, end, sorted: nobody may be in their interior */
	uint64_t site_count;
	uint32_t all_nops;	/* a thread inside one of them may be moved to its end */
	const uint64_t *stacks; /* pairs start, end of writable mappings, sorted */
	uint64_t stack_count;
};

struct tp_stopped {
	uint64_t threads;
	uint64_t hold_ns;
	int64_t inside_tid;
	uint64_t inside_at;
	int ran; /* the command was given; @result is its answer */
	int result;
};

struct tp_left {
	uint64_t threads;
	uint64_t hold_ns;
	int64_t busy_tid;  /* the thread that is still inside something of ours */
	uint64_t busy_at;  /* the address that says so */
	uint32_t busy_why; /* enum tp_busy */
	uint32_t handler_restored;
	uint64_t unmapped;
	uint64_t put_back;
};

enum tp_busy { TP_BUSY_NO, TP_BUSY_RIP, TP_BUSY_SITE, TP_BUSY_PENDING, TP_BUSY_STACK };

int tp_stop_and_run(const struct tp_stop *in, struct tp_stopped *out);
int tp_leave(const struct tp_leave *in, struct tp_left *out);
int tp_look_inside(int pid, const uint64_t *addresses, uint64_t count, const uint64_t *stacks,
		   uint64_t stack_count, uint64_t site_bytes, uint8_t *inside);

/* ring_read.c */
struct tp_rings {
	uint8_t *map; /* shared object, mapped read and write */
	uint64_t map_bytes;
	uint64_t ring_offset;
	uint32_t ring_count;
	uint32_t ring_stride;
	uint32_t ring_bytes;
	uint64_t waiting;	 /* events that may wait in a ring before the thread drops */
	int fd;			 /* capture; -1: count only */
	uint64_t *tails;	 /* private: ring_count entries */
	uint64_t *dropped;	 /* private: ring_count entries */
	uint64_t *dead_since_ns; /* private: ring_count entries */
	uint8_t *buffer;	 /* ring_bytes + header */
};

struct tp_drained {
	uint64_t events;
	uint64_t lost;
	uint64_t bytes;
	uint64_t blocks;
	uint32_t incomplete; /* events reserved but not yet written */
	uint32_t rings_freed;
	uint64_t fullest; /* events waiting in the fullest ring */
};

int tp_rings_start(struct tp_rings *rings);
int tp_drain_rings(struct tp_rings *rings, int final, struct tp_drained *out);

uint64_t tp_rdtsc(void);
const char *tp_error_text(int code);

#endif
