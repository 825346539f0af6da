// SPDX-License-Identifier: Apache-2.0
/**
 * @file
 * To be preloaded into a tool: it can make no guard, as where the kernel lets only the tool itself
 * trace the target (Yama scope 1, a child of the tool).
 */
#include <errno.h>

int clone(int (*start)(void *), void *stack, int flags, void *argument, ...);

int clone(int (*start)(void *), void *stack, int flags, void *argument, ...)
{
	(void)start;
	(void)stack;
	(void)flags;
	(void)argument;
	errno = EPERM;
	return -1;
}
