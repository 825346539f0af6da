/* SPDX-License-Identifier: Apache-2.0 */
/** @file Code that a test writes and runs; see code.h. */
#include <errno.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "code.h"

static void *map_view(int fd, uint64_t at, size_t bytes, int protection)
{
	int flags = MAP_SHARED | (at ? MAP_FIXED_NOREPLACE : 0);

	return mmap((void *)at, bytes, protection, flags, fd, 0);
}

/** Map @bytes, filled with int3, executable at @at (0: anywhere). Returns 0 or -errno. */
int code_open(struct code *code, uint64_t at, size_t bytes)
{
	int fd = memfd_create("textpoke-test", MFD_CLOEXEC);
	int error = 0;

	*code = (struct code){ .bytes = bytes };
	if (fd < 0)
		return -errno;
	if (ftruncate(fd, (off_t)bytes))
		error = -errno;
	code->rw = map_view(fd, 0, bytes, PROT_READ | PROT_WRITE);
	code->rx = map_view(fd, at, bytes, PROT_READ | PROT_EXEC);
	if (!error && (code->rw == MAP_FAILED || code->rx == MAP_FAILED))
		error = -errno;
	close(fd);
	if (!error)
		memset(code->rw, 0xcc, bytes);
	return error;
}

void code_close(struct code *code)
{
	munmap(code->rw, code->bytes);
	munmap(code->rx, code->bytes);
}
