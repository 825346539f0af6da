/* SPDX-License-Identifier: Apache-2.0 */
/** @file Put our entry into the program's list for debuggers, while no thread of it runs. */
#include "jit.h"

#include <errno.h>
#include <stddef.h>
#include <string.h>
#include <unistd.h>

#include "guard.h"
#include "textpoke.h"
#include "world.h"

#define RED_ZONE 128

struct entry_search {
	uint64_t entry;
	uint64_t found;
};

static bool points_into(uint64_t entry, uint64_t word)
{
	return word - entry < sizeof(struct tp_jit_entry);
}

static bool word_points_into(void *ctx, uint64_t at, uint64_t word)
{
	struct entry_search *search = ctx;

	(void)at;
	if (!points_into(search->entry, word))
		return false;
	search->found = word;
	return true;
}

/**
 * May a held thread be about to write to our entry, as one that links the entry before or behind it?
 * It has the address in a register, on its stack or in the red zone.
 */
bool tp_may_write_entry(const struct tp_held *held, uint64_t entry, const uint64_t *stacks,
			uint64_t stack_count, uint64_t *at)
{
	struct entry_search search = { entry, 0 };
	const struct tp_stack_scan scan = { stacks,	stack_count,	  0,
					    UINT64_MAX, word_points_into, &search };
	uint64_t words[sizeof(held->saved) / sizeof(uint64_t)];

	memcpy(words, &held->saved, sizeof(words));
	for (size_t i = 0; i < sizeof(words) / sizeof(*words); i++)
		if (points_into(entry, words[i])) {
			*at = words[i];
			return true;
		}
	/* Apart: what stands below the stack pointer may not be mapped. */
	if (!tp_scan_stack(held, held->saved.rsp, &scan) &&
	    !tp_scan_stack(held, held->saved.rsp - RED_ZONE, &scan))
		return false;
	*at = search.found;
	return true;
}

static int link_in(const struct tp_jit_link *in)
{
	uint64_t place = in->image_at + offsetof(struct tp_image, jit_descriptor);
	uint64_t entry = in->image_at + offsetof(struct tp_image, jit_entry);
	const uint64_t none = 0;
	int error;

	/* Before the link: whoever leaves, another tool perhaps, must know where to look. */
	if (pwrite(in->mem_fd, &in->descriptor, sizeof(in->descriptor), (off_t)place) !=
	    sizeof(in->descriptor))
		return -EFAULT;
	error = tp_jit_insert(in->mem_fd, in->descriptor, entry, in->object, in->object_bytes);
	if (error && pwrite(in->mem_fd, &none, sizeof(none), (off_t)place) != sizeof(none))
		return -EFAULT;
	return error;
}

static int stop_and_link(const void *request, void *result)
{
	const struct tp_jit_link *in = request;
	struct tp_world world = { .pid = in->pid };
	int error = tp_stop_world(&world);

	(void)result;
	if (!error)
		error = link_in(in);
	tp_release_world(&world);
	return error;
}

/**
 * Link our entry, which describes the object, into the program's list while every thread is held.
 * Returns 0; -EAGAIN: the list was being changed, come again; -EPROTO: it is of another version;
 * or -errno. Nothing of the program was changed then.
 */
int tp_link_jit(const struct tp_jit_link *in)
{
	return in->is_held ? link_in(in) : tp_guarded(stop_and_link, in, NULL);
}
