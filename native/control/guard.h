/* SPDX-License-Identifier: Apache-2.0 */
/** @file Work on a held thread, done by a process that outlives the tool. */
#ifndef TP_GUARD_H
#define TP_GUARD_H

#include <stdbool.h>

bool tp_is_guard(void);
int tp_guarded(int (*work)(const void *in, void *out), const void *in, void *out);

#endif
