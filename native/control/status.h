/* SPDX-License-Identifier: Apache-2.0 */
/** @file What proc tells of threads and mappings, read on the way to a hold: status.c, maps.c. */
#ifndef TP_STATUS_H
#define TP_STATUS_H

#include <dirent.h>
#include <stdbool.h>
#include <stdio.h>
#include <sys/types.h>

#include "textpoke.h"

/** The writable mappings, where stacks may be: pairs start, end, sorted. */
struct tp_stacks {
	uint64_t *pairs;
	uint64_t count;
};

FILE *tp_open_of_thread(pid_t pid, pid_t tid, const char *name);
DIR *tp_open_tasks(pid_t pid);
pid_t tp_next_thread(DIR *tasks);
bool tp_is_kernel_worker(pid_t pid, pid_t tid);
int tp_read_stacks(pid_t pid, struct tp_stacks *stacks);
int tp_read_stack_lines(FILE *maps, struct tp_stacks *stacks);
void tp_free_stacks(struct tp_stacks *stacks);

#endif
