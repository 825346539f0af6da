// SPDX-License-Identifier: Apache-2.0
/** @file Seizes the process named by its argument, as a debugger does, until stdin ends. */
#include <sys/ptrace.h>

#include "target.h"

int main(int argc, char **argv)
{
	char byte;

	if (argc < 2 || ptrace(PTRACE_SEIZE, atoi(argv[1]), 0, 0)) {
		say("cannot seize");
		return 1;
	}
	say_ready();
	return read(0, &byte, 1) != 0;
}
