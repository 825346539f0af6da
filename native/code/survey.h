/* SPDX-License-Identifier: Apache-2.0 */
/** @file What survey.c knows of single instructions, for branches.c. */
#ifndef TP_SURVEY_H
#define TP_SURVEY_H

#include <stdbool.h>
#include <stdint.h>

#include "insn.h"
#include "textpoke.h"

bool tp_is_direct_branch(const struct tp_decoded *insn);
bool tp_ends_code(const struct tp_decoded *insn);
enum tp_refusal tp_refuse_insn(const uint8_t *code, const struct tp_decoded *insn, bool last);

#endif
