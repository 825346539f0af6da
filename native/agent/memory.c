/* SPDX-License-Identifier: Apache-2.0 */
/**
 * @file
 * The engine's operations on the target's own memory: writes through the mem file (text stays r-x for
 * ever), core serialisation by membarrier; reads are in reads.c.
 */
#include <linux/membarrier.h>

#include "agent.h"

#define PROT_RW 3
#define PROT_READ_ONLY 1
#define MAP_PRIVATE_ANON 0x22
#define CLOCK_MONOTONIC_ID 1

/* gcc turns loops and struct copies into these; there is no libc to provide them. */
void *memcpy(void *to, const void *from, size_t bytes);
void *memset(void *to, int value, size_t bytes);

void *memcpy(void *to, const void *from, size_t bytes)
{
	void *ret = to;

	__asm__ volatile("rep movsb" : "+D"(to), "+S"(from), "+c"(bytes) : : "memory");
	return ret;
}

void *memset(void *to, int value, size_t bytes)
{
	void *ret = to;

	__asm__ volatile("rep stosb" : "+D"(to), "+c"(bytes) : "a"(value) : "memory");
	return ret;
}

void tpa_copy(void *to, const void *from, size_t bytes)
{
	memcpy(to, from, bytes);
}

/** Zeroed private memory, or NULL. Never in the trap path. */
void *tpa_map_private(size_t bytes)
{
	long ret = sys6(__NR_mmap, 0, (long)bytes, PROT_RW, MAP_PRIVATE_ANON, -1, 0);

	return sys_failed(ret) ? NULL : (void *)ret;
}

void tpa_unmap(void *start, size_t bytes)
{
	if (start)
		sys2(__NR_munmap, (long)start, (long)bytes);
}

void tpa_pause(void)
{
	const uint64_t span[2] = { 0, 50000 };

	sys2(__NR_nanosleep, (long)span, 0);
}

static long write_mem(uint64_t addr, const void *buf, size_t len)
{
	return sys4(__NR_pwrite64, tpa.mem_fd, (long)buf, (long)len, (long)addr);
}

/*
 * The kernel takes 4096 bytes at a time from where a write begins (mem_rw) and looks up each page that
 * those are on: two, unless the write begins with a page.
 */
static long write_text(void *ctx, uint64_t addr, const void *buf, size_t len)
{
	size_t first = PAGE_UP(addr) - addr;
	long done, rest;

	(void)ctx;
	if (!first || len <= TP_PAGE_BYTES)
		return write_mem(addr, buf, len);
	done = write_mem(addr, buf, first);
	if (done != (long)first)
		return done;
	rest = write_mem(addr + first, (const char *)buf + first, len - first);
	return sys_failed(rest) ? done : done + rest;
}

/* Where the region of ours ends in which @at is; 0: there is none. */
static uint64_t end_of_region(uint64_t at)
{
	for (uint64_t i = 0; i < tpa_image.region_count; i++) {
		const struct tp_region *region = &tpa_image.regions[i];

		if (at >= region->start && at < region->start + region->bytes)
			return region->start + region->bytes;
	}
	return 0;
}

/* One region may follow the other. */
static int is_ours(uint64_t start, uint64_t end)
{
	while (start && start < end)
		start = end_of_region(start);
	return start >= end;
}

static int store(uint64_t *words, const uint64_t *old, uint64_t count)
{
	const uint64_t *fresh = old + count;

	for (uint64_t i = 0; i < count; i++)
		if (words[i] != old[i])
			return -84; /* EILSEQ */
	for (uint64_t i = 0; i < count; i++)
		__atomic_store_n(&words[i], fresh[i], __ATOMIC_RELEASE);
	return 0;
}

/**
 * TP_CMD_STORE: threads jump by these words, so each is stored whole; the kernel's copy for the mem
 * file promises no such thing. They can be written only meanwhile, and are never executable.
 */
int tpa_store_words(const struct tp_wire *wire, const uint64_t args[4])
{
	const uint64_t *request = (const uint64_t *)((const char *)wire + TP_PAGE_BYTES);
	uint64_t start = args[0], count = args[1], end = start + 8 * count;
	uint64_t page = PAGE_OF(start);
	int error;
	long ret;

	if (start % 8 || !count || count > tpa_image.request_bytes / 16 || end < start ||
	    !is_ours(start, end))
		return -22; /* EINVAL */
	ret = sys3(__NR_mprotect, (long)page, (long)(end - page), PROT_RW);
	if (sys_failed(ret))
		return (int)ret;
	error = store((uint64_t *)start, request, count);
	ret = sys3(__NR_mprotect, (long)page, (long)(end - page), PROT_READ_ONLY);
	return error ? error : sys_failed(ret) ? (int)ret : 0;
}

static int sync_cores(void *ctx)
{
	(void)ctx;
	return (int)sys3(__NR_membarrier, MEMBARRIER_CMD_PRIVATE_EXPEDITED_SYNC_CORE, 0, 0);
}

static uint64_t clock_ns(void *ctx)
{
	uint64_t now[2] = { 0, 0 };

	(void)ctx;
	sys2(__NR_clock_gettime, CLOCK_MONOTONIC_ID, (long)now);
	return now[0] * 1000000000ull + now[1];
}

static void relax(void *ctx)
{
	(void)ctx;
	tpa_pause();
}

const struct tp_ops tpa_ops = {
	.read = tpa_read_text,
	.write = write_text,
	.sync = sync_cores,
	.look = tpa_look,
	.clock_ns = clock_ns,
	.relax = relax,
};
