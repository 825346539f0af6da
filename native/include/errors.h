/* SPDX-License-Identifier: Apache-2.0 */
/** @file Our error codes as an enum, from errors.def. */
#ifndef TP_ERRORS_H
#define TP_ERRORS_H

enum tp_error_code {
#define TP_E(name, code, text) name = code,
#include "errors.def"
#undef TP_E
};

#endif
