/* SPDX-License-Identifier: Apache-2.0 */
/** @file One stopped thread, shared by the files that use ptrace. */
#ifndef TP_HELD_H
#define TP_HELD_H

#include <sched.h>
#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>
#include <sys/user.h>

#include "textpoke.h"

/** struct sched_attr of the kernel, first version: glibc 2.36 does not declare it. */
struct tp_scheduling {
	uint32_t size;
	uint32_t policy;
	uint64_t flags;
	int32_t nice;
	uint32_t priority;
	uint64_t runtime;
	uint64_t deadline;
	uint64_t period;
};

struct tp_held {
	pid_t pid;
	pid_t tid;
	int patience_ms; /* to wait for a stop; 0: the usual */
	bool asked;	 /* to stop: tp_await_stop() has not been called yet */
	bool late;	 /* it did not stop in time: tp_release_late() */
	bool stopped;
	bool in_syscall_stop; /* regs are not the thread's own any more */
	bool fixed_eintr;
	bool borrowable;
	bool masked; /* all signals blocked, by us */
	struct user_regs_struct saved;
	uint64_t saved_mask;
	uint64_t since_ns;
	uint64_t until_ns;  /* it ran again */
	cpu_set_t affinity; /* of the calling thread, while it stands beside its tracee */
	bool moved;
	bool urgent; /* we are scheduled before others while we hold it */
	bool lifted; /* and so is the thread; @scheduling is what it had */
	struct tp_scheduling scheduling;
};

uint64_t tp_now_ns(void);
int tp_stop_thread(struct tp_held *held);
int tp_ask_to_stop(struct tp_held *held);
int tp_await_stop(struct tp_held *held);
void tp_release_late(struct tp_held *held);
int tp_wait_stop(struct tp_held *held, int *status);
int tp_save_thread(struct tp_held *held);
int tp_block_signals(struct tp_held *held);
int tp_check_memory(const struct tp_held *held, int mem_fd, uint64_t syscall_at);

#endif
