/* SPDX-License-Identifier: Apache-2.0 */
/** @file The texts of errors.def. */
#include "textpoke.h"

/** One clause for a code of errors.def; NULL for any other number. */
const char *tp_error_text(int code)
{
	switch (code) {
#define TP_E(name, value, text) \
	case name:              \
		return text;
#include "errors.def"
#undef TP_E
	default:
		return NULL;
	}
}
