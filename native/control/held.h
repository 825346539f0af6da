/* SPDX-License-Identifier: Apache-2.0 */
/** @file One stopped thread, shared by the files that use ptrace. */
#ifndef TP_HELD_H
#define TP_HELD_H

#include <sched.h>
#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>
#include <sys/user.h>

struct tp_held {
	pid_t pid;
	pid_t tid;
	bool stopped;
	bool in_syscall_stop; /* regs are not the thread's own any more */
	bool fixed_eintr;
	struct user_regs_struct saved;
	uint64_t saved_mask;
	uint64_t since_ns;
	cpu_set_t affinity; /* of the calling thread, while it stands beside its tracee */
	bool moved;
	bool urgent; /* scheduled before others while we hold it */
};

uint64_t tp_now_ns(void);
bool tp_hurry(void);
void tp_relax(bool hurried);
int tp_stop_thread(struct tp_held *held);
int tp_wait_stop(struct tp_held *held, int *status);
int tp_save_thread(struct tp_held *held);
uint64_t tp_status_mask(pid_t pid, pid_t tid, const char *field);

#endif
