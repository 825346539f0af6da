/* SPDX-License-Identifier: Apache-2.0 */
/** @file Code that a test writes and runs: one memory object mapped twice, never W and X at once. */
#ifndef TP_TEST_CODE_H
#define TP_TEST_CODE_H

#include <stddef.h>
#include <stdint.h>

struct code {
	uint8_t *rw;
	uint8_t *rx;
	size_t bytes;
};

int code_open(struct code *code, uint64_t at, size_t bytes);
void code_close(struct code *code);

#endif
