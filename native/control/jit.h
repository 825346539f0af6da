/* SPDX-License-Identifier: Apache-2.0 */
/** @file gdb's JIT interface: the program's list of code that no file holds. */
#ifndef TP_JIT_H
#define TP_JIT_H

#include <stdbool.h>
#include <stdint.h>

#include "held.h"

int tp_jit_insert(int mem_fd, uint64_t descriptor, uint64_t entry, uint64_t object,
		  uint64_t object_bytes);
int tp_jit_remove(int mem_fd, uint64_t descriptor, uint64_t entry);
bool tp_may_write_entry(const struct tp_held *held, uint64_t entry, const uint64_t *stacks,
			uint64_t stack_count, uint64_t *at);

#endif
