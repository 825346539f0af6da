/* SPDX-License-Identifier: Apache-2.0 */
/**
 * @file
 * Arguments and return values: runs the operations that src/textpoke/arguments.py has made for a
 * function, on the registers of a call. Runs on the program's own threads, within signal handlers
 * too, so: no locks, no allocation. Pointers of the program may hold anything: what they point to
 * is read by the kernel, which refuses where a load would fault; where a seccomp filter may forbid
 * that (@may_read), nothing is read through a pointer.
 */
#include "agent.h"

#define WORD_BITS 64u

/* A system call takes about 2 us, so neighbours of what was read come with it. */
#define BLOCKS 4u
#define BLOCK_BYTES 128u /* divides a page: it is there as a whole, or not at all */

struct reader {
	uint64_t slot;
	bool may_read;
	uint8_t next; /* block to give way */
	uint64_t starts[BLOCKS];
	uint8_t blocks[BLOCKS][BLOCK_BYTES];
};

static const char fault[] = "<fault>";

static uint64_t page_of(uint64_t addr)
{
	return addr / TP_PAGE_BYTES;
}

/* The page that holds the return address is there: the call has just written it, or read it. */
static bool is_beside_slot(const struct reader *reader, uint64_t addr, uint64_t bytes)
{
	return page_of(addr) == page_of(reader->slot) &&
	       page_of(addr + bytes - 1) == page_of(reader->slot);
}

static bool ask_kernel(uint64_t addr, void *buf, uint64_t bytes)
{
	struct io_vector local = { (uint64_t)buf, bytes };
	struct io_vector remote = { addr, bytes };

	return sys6(__NR_process_vm_readv, tpa.pid, (long)&local, 1, (long)&remote, 1, 0) ==
	       (long)bytes;
}

static void copy(void *to, const volatile uint8_t *from, uint64_t bytes)
{
	for (uint64_t i = 0; i < bytes; i++)
		((uint8_t *)to)[i] = from[i];
}

/* The block that begins at @start, or NULL when it is not there. */
static const uint8_t *block_at(struct reader *reader, uint64_t start)
{
	uint32_t i;

	for (i = 0; i < BLOCKS; i++)
		if (start && reader->starts[i] == start)
			return reader->blocks[i];
	i = reader->next;
	reader->starts[i] = 0;
	if (!ask_kernel(start, reader->blocks[i], BLOCK_BYTES))
		return NULL;
	reader->starts[i] = start;
	reader->next = (uint8_t)((i + 1) % BLOCKS);
	return reader->blocks[i];
}

static bool can_read(struct reader *reader, uint64_t addr, void *buf, uint64_t bytes)
{
	uint64_t start = addr & -(uint64_t)BLOCK_BYTES;
	const uint8_t *block;

	if (is_beside_slot(reader, addr, bytes)) {
		copy(buf, (const volatile uint8_t *)addr, bytes);
		return true;
	}
	if (!reader->may_read)
		return false;
	if (addr - start + bytes > BLOCK_BYTES)
		return ask_kernel(addr, buf, bytes);
	block = block_at(reader, start);
	if (block)
		copy(buf, block + (addr - start), bytes);
	return block;
}

static uint64_t source_of(const struct tp_capture_op *op, const struct tpa_regs *regs)
{
	switch (op->source) {
	case TP_CAPTURE_GPR:
		return regs->gpr[op->number % 16];
	case TP_CAPTURE_XMM:
		return regs->xmm[op->number % 8];
	case TP_CAPTURE_STACK:
		return regs->slot + 8 + 8 * (uint64_t)op->number;
	default:
		return tpa_final_return(*(const volatile uint64_t *)regs->slot);
	}
}

static uint64_t field_of(const struct tp_capture_op *op, uint64_t value)
{
	uint32_t shift = op->shift % WORD_BITS;
	uint32_t width = op->width && op->width < WORD_BITS - shift ? op->width : WORD_BITS - shift;

	value <<= WORD_BITS - shift - width;
	if (op->flags & TP_CAPTURE_SIGNED)
		return (uint64_t)((int64_t)value >> (WORD_BITS - width));
	return value >> (WORD_BITS - width);
}

static uint32_t string_words(const struct tp_capture_op *op)
{
	uint32_t bytes = op->bytes < TP_CAPTURE_MOST_BYTES ? op->bytes : TP_CAPTURE_MOST_BYTES;

	return (bytes + 7) / 8;
}

/* Up to @bytes of the string at @addr, page by page: the page after its end may be missing. */
static bool read_string(struct reader *reader, uint64_t addr, char *text, uint32_t bytes)
{
	uint32_t done = 0;

	while (done < bytes) {
		uint32_t part = TP_PAGE_BYTES - (uint32_t)((addr + done) % TP_PAGE_BYTES);

		if (part > bytes - done)
			part = bytes - done;
		if (!can_read(reader, addr + done, text + done, part))
			return done > 0;
		for (; part; part--, done++)
			if (!text[done])
				goto out;
	}
out:
	for (; done < bytes; done++)
		text[done] = 0;
	return true;
}

static void capture_string(const struct tp_capture_op *op, struct reader *reader, bool is_known,
			   uint64_t addr, uint64_t *words)
{
	uint32_t count = string_words(op);
	char *text = (char *)words;

	for (uint32_t i = 0; i < count; i++)
		words[i] = 0;
	if (is_known &&
	    read_string(reader, addr, text, op->bytes < 8 * count ? op->bytes : 8 * count))
		return;
	for (uint32_t i = 0; count && i < sizeof(fault); i++)
		text[i] = fault[i];
}

static void capture(const struct tp_capture_op *op, const struct tpa_regs *regs,
		    struct reader *reader, uint64_t *words)
{
	uint32_t loads = op->loads < TP_CAPTURE_MOST_LOADS ? op->loads : TP_CAPTURE_MOST_LOADS;
	uint64_t value = source_of(op, regs), loaded = 0;
	uint32_t size = op->size < 8 ? op->size : 8;
	bool is_known = true;

	for (uint32_t i = 0; i < loads && is_known; i++)
		is_known = can_read(reader, value + (uint64_t)(int64_t)op->offsets[i], &value, 8);
	value += (uint64_t)(int64_t)op->offsets[loads];
	if (op->what == TP_CAPTURE_STRING) {
		capture_string(op, reader, is_known, value, words);
		return;
	}
	if (op->what == TP_CAPTURE_LOAD && is_known) {
		is_known = size && can_read(reader, value, &loaded, size);
		value = loaded;
	}
	*words = is_known ? field_of(op, value) : 0;
}

/**
 * Run @count operations.
 *
 * @regs: of the call, or of the return.
 * @may_read: no filter of system calls stands in the way.
 * @words: where the values go, up to @room of them.
 *
 * Returns how many words were written: those of the operations up to the first that has no room. A
 * word that cannot be read is 0, a string "<fault>".
 */
uint32_t tpa_capture(const struct tp_capture_op *ops, uint32_t count, const struct tpa_regs *regs,
		     bool may_read, uint64_t *words, uint32_t room)
{
	struct reader reader;
	uint32_t used = 0;

	reader.slot = regs->slot;
	reader.may_read = may_read;
	reader.next = 0;
	for (uint32_t i = 0; i < BLOCKS; i++)
		reader.starts[i] = 0;

	for (uint32_t i = 0; i < count; i++) {
		uint32_t needed = ops[i].what == TP_CAPTURE_STRING ? string_words(&ops[i]) : 1;

		if (needed > room - used)
			break;
		capture(&ops[i], regs, &reader, words + used);
		used += needed;
	}
	return used;
}
