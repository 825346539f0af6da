// SPDX-License-Identifier: Apache-2.0
/** @file A program whose text is two mappings: the page in the middle has been writable once. */
#include <stdint.h>
#include <stdio.h>
#include <sys/mman.h>

__attribute__((aligned(4096))) void padding(void)
{
	__asm__ volatile(".fill 16384, 1, 0x90");
}

int main(void)
{
	/* The second of four pages of NOPs: nothing that runs. */
	char *page = (char *)(((uintptr_t)padding + 8191) & ~(uintptr_t)4095);

	if (mprotect(page, 4096, PROT_READ | PROT_EXEC | PROT_WRITE))
		return 1;
	puts("ready");
	fflush(stdout);
	return getchar() == EOF;
}
