/* SPDX-License-Identifier: Apache-2.0 */
/** @file Raw system calls: 0 or more, or -errno. The agent has no libc. */
#ifndef TPA_SYS_H
#define TPA_SYS_H

#include <stddef.h>
#include <stdint.h>

#include <asm/unistd.h>

/* What the kernel's headers name too, for calls that several files make. */
#define MADV_DONTFORK_NR 10
#define MADV_DONTDUMP_NR 16
#define MADV_WIPEONFORK_NR 18

/** struct iovec. */
struct io_vector {
	uint64_t base;
	uint64_t len;
};

static inline long sys6(long nr, long a, long b, long c, long d, long e, long f)
{
	register long r10 __asm__("r10") = d;
	register long r8 __asm__("r8") = e;
	register long r9 __asm__("r9") = f;
	long ret;

	__asm__ volatile("syscall"
			 : "=a"(ret)
			 : "a"(nr), "D"(a), "S"(b), "d"(c), "r"(r10), "r"(r8), "r"(r9)
			 : "rcx", "r11", "memory");
	return ret;
}

#define sys5(nr, a, b, c, d, e) sys6(nr, a, b, c, d, e, 0)
#define sys4(nr, a, b, c, d) sys6(nr, a, b, c, d, 0, 0)
#define sys3(nr, a, b, c) sys6(nr, a, b, c, 0, 0, 0)
#define sys2(nr, a, b) sys6(nr, a, b, 0, 0, 0, 0)
#define sys1(nr, a) sys6(nr, a, 0, 0, 0, 0, 0)
#define sys0(nr) sys6(nr, 0, 0, 0, 0, 0, 0)

static inline int sys_failed(long ret)
{
	return (unsigned long)ret > -4096ul;
}

#endif
