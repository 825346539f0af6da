/* SPDX-License-Identifier: Apache-2.0 */
/**
 * @file
 * Reads of text that cannot fault, into the engine's copies: where a load would fault, a system call
 * that takes the text as its source answers EFAULT. It copies from the text as it stands, where one that
 * takes it as "remote memory" (process_vm_readv, the mem file) looks up each page of it. What is looked up
 * instead are the pages of the copies: cheap where these are one huge page.
 *
 * ns a page of 4096 bytes, 16 at a time (AMD, Linux 6.18): 480 mem file, 280 process_vm_readv, 230 a
 * write to a file in memory, 120 process_vm_writev to a huge page of our own.
 */
#include "agent.h"

#define HUGE_BYTES (2ul << 20)
#define MADV_HUGEPAGE_NR 14
#define READ_TRIES 5
#define LOOKS 3			      /* the first one finds pages that are not there yet */
#define FEW_BYTES (2 * TP_PAGE_BYTES) /* so few cost less without process_vm_writev */

static struct tp_copies *shared_copies;

/* A module may be closed while it is patched: nothing of ours is left then, and no harm done. */
static int is_unmapped(uint64_t addr, size_t len)
{
	uint64_t start = PAGE_OF(addr);
	uint8_t resident[TP_WINDOW_PAGES + 1];

	return addr + len - start <= sizeof(resident) * TP_PAGE_BYTES &&
	       sys3(__NR_mincore, (long)start, (long)(addr + len - start), (long)resident) ==
		       -12; /* ENOMEM */
}

static bool by_huge_page(uint64_t addr, void *buf, size_t len)
{
	struct io_vector text = { addr, len };
	struct io_vector copy = { (uint64_t)buf, len };

	return sys6(__NR_process_vm_writev, tpa.pid, (long)&text, 1, (long)&copy, 1, 0) ==
	       (long)len;
}

static bool by_file(uint64_t addr, void *copy, size_t len)
{
	uint64_t offset = (uint64_t)copy - tpa_image.shared_base;

	return sys4(__NR_pwrite64, tpa.shared_fd, (long)addr, (long)len, (long)offset) == (long)len;
}

/* The copies are in the file themselves, or what comes there is copied once more. */
static bool by_shared_file(uint64_t addr, void *buf, size_t len)
{
	if (tpa.engine.copies == shared_copies)
		return by_file(addr, buf, len);
	if (len > sizeof(shared_copies->window) || !by_file(addr, shared_copies->window, len))
		return false;
	tpa_copy(buf, shared_copies->window, len);
	return true;
}

/* Execute-only text: only the mem file reads that. */
static bool by_mem_file(uint64_t addr, void *buf, size_t len)
{
	return sys4(__NR_pread64, tpa.mem_fd, (long)buf, (long)len, (long)addr) == (long)len;
}

static bool can_read(uint64_t addr, void *buf, size_t len)
{
	bool large = tpa.engine.copies != shared_copies && len > FEW_BYTES && !tpa.is_filtered;

	return (large && by_huge_page(addr, buf, len)) || by_shared_file(addr, buf, len) ||
	       by_mem_file(addr, buf, len);
}

/** tp_ops.read. A module may be mapped anew between a look that failed and the question why: look again. */
int tpa_read_text(void *ctx, uint64_t addr, void *buf, size_t len)
{
	(void)ctx;
	for (int i = 0; i < READ_TRIES; i++) {
		if (can_read(addr, buf, len))
			return 0;
		if (is_unmapped(addr, len))
			return -6; /* ENXIO */
	}
	return -14; /* EFAULT */
}

/* A stretch of memory that may be one huge page, or NULL. */
static void *map_huge(void)
{
	uint64_t at = (uint64_t)tpa_map_private(2 * HUGE_BYTES), start;

	if (!at)
		return NULL;
	start = (at + HUGE_BYTES - 1) & ~(HUGE_BYTES - 1);
	if (start > at)
		tpa_unmap((void *)at, start - at);
	if (at + HUGE_BYTES > start)
		tpa_unmap((void *)(start + HUGE_BYTES), at + HUGE_BYTES - start);
	sys3(__NR_madvise, (long)start, HUGE_BYTES, MADV_HUGEPAGE_NR);
	sys3(__NR_madvise, (long)start, HUGE_BYTES, MADV_DONTDUMP_NR);
	/* A page that a forked child shares would be torn into small ones by our next write. */
	sys3(__NR_madvise, (long)start, HUGE_BYTES, MADV_WIPEONFORK_NR);
	return (void *)start;
}

static uint64_t least_ns(bool (*read)(uint64_t, void *, size_t), const void *from, void *copy)
{
	uint64_t least = UINT64_MAX;

	for (int i = 0; i < LOOKS; i++) {
		uint64_t start = tpa_ops.clock_ns(NULL), ns;

		if (!read((uint64_t)from, copy, TP_WINDOW_BYTES))
			return UINT64_MAX;
		ns = tpa_ops.clock_ns(NULL) - start;
		least = ns < least ? ns : least;
	}
	return least;
}

/* Whether there is a huge page, and what it is good for on this kernel, only a try tells. */
static bool is_worth_it(struct tp_copies *huge)
{
	const char *from = (const char *)huge + HUGE_BYTES / 2;

	return least_ns(by_huge_page, from, huge->window) <
	       least_ns(by_file, from, shared_copies->window) / 4 * 3;
}

/** Where the engine reads text to: a huge page of our own, or @shared, which is in the shared object. */
void tpa_choose_copies(struct tp_copies *shared)
{
	struct tp_copies *huge = map_huge();

	tpa.engine.copies = shared_copies = shared;
	if (huge && is_worth_it(huge) && !tpa_note_region((uint64_t)huge, HUGE_BYTES))
		tpa.engine.copies = huge;
	else
		tpa_unmap(huge, HUGE_BYTES);
}
