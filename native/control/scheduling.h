/* SPDX-License-Identifier: Apache-2.0 */
/** @file Who runs next, and where: for the moments in which threads of the target wait for us. */
#ifndef TP_SCHEDULING_H
#define TP_SCHEDULING_H

#include <sched.h>
#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>

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

/** A thread that is scheduled before others for a moment. */
struct tp_lift {
	bool done;
	struct tp_scheduling before;
};

/** A thread that stays on one processor for a moment. */
struct tp_pin {
	bool done;
	cpu_set_t before;
};

void tp_lift(pid_t tid, struct tp_lift *lift);
void tp_drop(pid_t tid, struct tp_lift *lift);
void tp_pin(pid_t tid, int processor, struct tp_pin *pin);
void tp_unpin(pid_t tid, struct tp_pin *pin);

void tp_bring_beside(pid_t tid);

#endif
