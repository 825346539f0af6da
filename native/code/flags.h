/* SPDX-License-Identifier: Apache-2.0 */
/** @file Whether code looks at the arithmetic flags before it writes them. */
#ifndef TP_FLAGS_H
#define TP_FLAGS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

bool tp_flags_are_dead(const uint8_t *code, size_t room);

#endif
