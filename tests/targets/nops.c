// SPDX-License-Identifier: Apache-2.0
/** @file Functions of every linkage; prints where they are, as a program or as a shared object. */
#include <stdio.h>

volatile int sink;

__attribute__((noipa)) int alpha(int x)
{
	return sink += x;
}

static __attribute__((noipa)) int beta(int x)
{
	return sink -= x;
}

__attribute__((noipa, visibility("hidden"))) int gamma_hidden(int x)
{
	return sink ^= x;
}

__attribute__((noipa, weak)) int delta_weak(int x)
{
	return sink |= x;
}

__attribute__((noipa, patchable_function_entry(0))) int bare(int x)
{
	return sink &= x;
}

/* Nobody calls it: --gc-sections may drop it. */
int unused(int x)
{
	return sink / x;
}

void report(void)
{
	printf("alpha %p\n", (void *)alpha);
	printf("beta %p\n", (void *)beta);
	printf("gamma_hidden %p\n", (void *)gamma_hidden);
	printf("delta_weak %p\n", (void *)delta_weak);
	printf("report %p\n", (void *)report);
	printf("end %p\n", (void *)bare);
	fflush(stdout);
}

int main(void)
{
	puts("ready");
	alpha(beta(gamma_hidden(delta_weak(bare(1)))));
	report();
	return getchar() == EOF;
}
