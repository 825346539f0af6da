/* SPDX-License-Identifier: Apache-2.0 */
/** @file A library for turns.c: with -DSHIFT=4 each entry stands 4 bytes behind that of the one without. */
#ifndef SHIFT
#define SHIFT 0
#endif
#define TEXT(bytes) __asm__(".text\n.skip " #bytes ", 0x90\n")
#define MOVED(bytes) TEXT(bytes)

MOVED(SHIFT);

#define FUNCTION(number)                                   \
	__attribute__((noinline)) int turn_##number(int x) \
	{                                                  \
		return x + SHIFT + number;                 \
	}

FUNCTION(0)
FUNCTION(1)
FUNCTION(2)
FUNCTION(3)
FUNCTION(4)
FUNCTION(5)
FUNCTION(6)
FUNCTION(7)
