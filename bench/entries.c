// SPDX-License-Identifier: Apache-2.0
// What one call costs, by how its function was patched. For every byte on stdin a line: nanoseconds a
// call of a function that a JMP can displace, and of one whose loop goes into its first five bytes.
#include <stdint.h>
#include <stdio.h>
#include <time.h>
#include <unistd.h>

enum { CALLS = 100000 };

uint64_t displaced(uint64_t x), branched(uint64_t x);
__asm__(".globl displaced\n.type displaced, @function\n.p2align 4\n"
	"displaced: mov %rdi, %rax\nadd $1, %rax\nret\n.size displaced, . - displaced\n"
	".globl branched\n.type branched, @function\n.p2align 4\n"
	"branched: mov %rdi, %rax\n1: dec %rdi\njs 1b\nret\n.size branched, . - branched\n");

static double ns_per_call(uint64_t (*function)(uint64_t))
{
	struct timespec from, to;

	clock_gettime(CLOCK_MONOTONIC, &from);
	for (int i = 0; i < CALLS; i++)
		function(3);
	clock_gettime(CLOCK_MONOTONIC, &to);
	return ((double)(to.tv_sec - from.tv_sec) * 1e9 + (double)(to.tv_nsec - from.tv_nsec)) /
	       CALLS;
}

int main(void)
{
	char byte;

	while (read(0, &byte, 1) == 1) {
		printf("%f %f\n", ns_per_call(displaced), ns_per_call(branched));
		fflush(stdout);
	}
	return 0;
}
