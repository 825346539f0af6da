// SPDX-License-Identifier: Apache-2.0
/** @file Load the shared objects that are named as arguments and let each report its functions. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdio.h>

int main(int argc, char **argv)
{
	puts("ready");
	for (int i = 1; i < argc; i++) {
		void *object = dlmopen(i == 1 ? LM_ID_BASE : LM_ID_NEWLM, argv[i], RTLD_NOW);
		if (!object) {
			puts(dlerror());
			return 1;
		}
		void (*report)(void) = (void (*)(void))dlsym(object, "report");
		if (report)
			report();
	}
	fflush(stdout);
	return getchar() == EOF;
}
