/* SPDX-License-Identifier: Apache-2.0 */
/** @file One stopped thread, shared by the files that use ptrace. */
#ifndef TP_HELD_H
#define TP_HELD_H

#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>
#include <sys/user.h>

#include "scheduling.h"
#include "textpoke.h"

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
	uint64_t until_ns;   /* it ran again */
	struct tp_pin pin;   /* of the calling thread, while it stands beside its tracee */
	bool urgent;	     /* we are scheduled before others while we hold it */
	struct tp_lift lift; /* and so is the thread */
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
