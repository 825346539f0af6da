/* SPDX-License-Identifier: Apache-2.0 */
/**
 * @file
 * The list of gdb's JIT interface (gdb's manual, "JIT Interface"): our entry goes to its end and
 * comes out again. The caller holds every thread, but each may have been stopped in the midst of an
 * insertion or removal of its own:
 *
 * - Entries are inserted at the head, where we write only to an empty list. Who has seen it empty
 *   then overwrites our link: we are off the list, and nothing points to us.
 * - Who removes the last entry and has read its next, none, before we came cuts us off likewise.
 * - Half-done links, that is an entry whose prev is not the one before, are waited for: anywhere
 *   before we link ourselves in, beside us before we come out.
 * - Who has read our address and has yet to write to our entry has it in a register or on its
 *   stack: jit.c looks before we leave.
 */
#include "jit.h"

#include <errno.h>
#include <stddef.h>
#include <unistd.h>

#include "textpoke.h"

#define VERSION 1
#define MOST_ENTRIES (1u << 20)

struct descriptor {
	uint32_t version;
	uint32_t action;
	uint64_t relevant;
	uint64_t first;
};

static int read_at(int mem_fd, uint64_t at, void *bytes, size_t count)
{
	return pread(mem_fd, bytes, count, (off_t)at) == (ssize_t)count ? 0 : -EFAULT;
}

static int write_word(int mem_fd, uint64_t at, uint64_t word)
{
	return pwrite(mem_fd, &word, sizeof(word), (off_t)at) == (ssize_t)sizeof(word) ? 0 :
											 -EFAULT;
}

static uint64_t first_of(uint64_t descriptor)
{
	return descriptor + offsetof(struct descriptor, first);
}

static uint64_t next_of(uint64_t entry)
{
	return entry + offsetof(struct tp_jit_entry, next);
}

static uint64_t prev_of(uint64_t entry)
{
	return entry + offsetof(struct tp_jit_entry, prev);
}

/*
 * Go along the list to @wanted (@found), or to the end: @last is the entry before that, 0 for none.
 * Returns -EAGAIN when a link does not lead back, unless they need not be @whole.
 */
static int walk(int mem_fd, uint64_t descriptor, uint64_t wanted, bool whole, uint64_t *last,
		bool *found)
{
	struct descriptor head;
	struct tp_jit_entry entry;
	uint64_t at, count = 0;
	int error = read_at(mem_fd, descriptor, &head, sizeof(head));

	*last = 0;
	*found = false;
	if (!error && head.version != VERSION)
		error = -EPROTO;
	for (at = head.first; !error && at; at = entry.next) {
		*found = at == wanted;
		if (*found)
			return 0;
		error = read_at(mem_fd, at, &entry, sizeof(entry));
		if (!error && ((whole && entry.prev != *last) || ++count > MOST_ENTRIES))
			error = -EAGAIN;
		*last = at;
	}
	return error;
}

/** Write our entry, then link it in as the last one. Returns 0, -EAGAIN (later) or -errno. */
int tp_jit_insert(int mem_fd, uint64_t descriptor, uint64_t entry, uint64_t object,
		  uint64_t object_bytes)
{
	struct tp_jit_entry ours = { .object = object, .object_bytes = object_bytes };
	bool found;
	int error = walk(mem_fd, descriptor, entry, true, &ours.prev, &found);

	if (error)
		return error;
	if (found)
		return -EEXIST;
	if (pwrite(mem_fd, &ours, sizeof(ours), (off_t)entry) != sizeof(ours))
		return -EFAULT;
	return write_word(mem_fd, ours.prev ? next_of(ours.prev) : first_of(descriptor), entry);
}

/**
 * Take our entry out. Returns 0, also when it is not in the list any more or the list is gone, or
 * -EAGAIN while the list is being changed.
 */
int tp_jit_remove(int mem_fd, uint64_t descriptor, uint64_t entry)
{
	struct tp_jit_entry ours;
	uint64_t last, back = entry;
	bool found;
	int error = walk(mem_fd, descriptor, entry, false, &last, &found);

	if (error == -EFAULT || error == -EPROTO) /* its module was unmapped */
		return 0;
	if (error || !found)
		return error;
	error = read_at(mem_fd, entry, &ours, sizeof(ours));
	if (!error && ours.next)
		error = read_at(mem_fd, prev_of(ours.next), &back, sizeof(back));
	if (!error && (ours.prev != last || back != entry))
		error = -EAGAIN;
	if (!error && ours.next)
		error = write_word(mem_fd, prev_of(ours.next), ours.prev);
	if (!error)
		error = write_word(mem_fd, ours.prev ? next_of(ours.prev) : first_of(descriptor),
				   ours.next);
	return error;
}
