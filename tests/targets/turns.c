/* SPDX-License-Identifier: Apache-2.0 */
/** @file Opens and closes two libraries in turn, as fast as it can: both at the same address. */
#include <dlfcn.h>
#include <stdio.h>
#include <unistd.h>

int main(int argc, char **argv)
{
	printf("ready\n");
	fflush(stdout);
	for (unsigned int i = 0;; i++) {
		void *library = dlopen(argv[1 + i % (unsigned int)(argc - 1)], RTLD_NOW);
		int (*call)(int) = library ? (int (*)(int))dlsym(library, "turn_7") : NULL;
		int shift = i % (unsigned int)(argc - 1) ? 4 : 0;

		if (!call || call(5) != 5 + shift + 7)
			return 1;
		if (i % 7 == 0)
			usleep(500);
		dlclose(library);
	}
}
