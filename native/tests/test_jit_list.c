/* SPDX-License-Identifier: Apache-2.0 */
/** @file jit_list.c: our entry in the list of gdb's JIT interface; a file stands for the memory. */
#include <errno.h>
#include <stddef.h>
#include <sys/mman.h>
#include <unistd.h>

#include "../control/jit.h"
#include "check.h"
#include "textpoke.h"

enum { DESCRIPTOR = 64, OURS = 256, ENTRIES = 512, MEMORY = 4096 };

struct memory {
	uint8_t bytes[MEMORY];
	int fd;
};

static void set(struct memory *memory, uint64_t at, uint64_t word)
{
	CHECK_EQ(pwrite(memory->fd, &word, sizeof(word), (off_t)at), sizeof(word));
}

static uint64_t get(struct memory *memory, uint64_t at)
{
	uint64_t word = 0;

	CHECK_EQ(pread(memory->fd, &word, sizeof(word), (off_t)at), sizeof(word));
	return word;
}

static uint64_t entry_at(unsigned int i)
{
	return ENTRIES + 64 * i;
}

static uint64_t first(struct memory *memory)
{
	return get(memory, DESCRIPTOR + 16);
}

static uint64_t next(struct memory *memory, uint64_t entry)
{
	return get(memory, entry);
}

static uint64_t prev(struct memory *memory, uint64_t entry)
{
	return get(memory, entry + 8);
}

/* A list of @count entries, as the program's JIT leaves it. */
static void make(struct memory *memory, unsigned int count)
{
	memory->fd = memfd_create("memory", 0);
	CHECK_EQ(ftruncate(memory->fd, MEMORY), 0);
	set(memory, DESCRIPTOR, 1);
	for (unsigned int i = 0; i < count; i++) {
		set(memory, i ? entry_at(i - 1) : DESCRIPTOR + 16, entry_at(i));
		set(memory, entry_at(i) + 8, i ? entry_at(i - 1) : 0);
	}
	CHECK_EQ(pread(memory->fd, memory->bytes, MEMORY, 0), MEMORY);
}

/* As it was, but for our own entry. */
static void check_restored(struct memory *memory)
{
	static uint8_t now[MEMORY];

	CHECK_EQ(pread(memory->fd, now, MEMORY, 0), MEMORY);
	memcpy(now + OURS, memory->bytes + OURS, sizeof(struct tp_jit_entry));
	CHECK_BYTES(now, memory->bytes, MEMORY);
	close(memory->fd);
}

static int insert(struct memory *memory)
{
	return tp_jit_insert(memory->fd, DESCRIPTOR, OURS, 0x1000, 99);
}

static int take_out(struct memory *memory)
{
	return tp_jit_remove(memory->fd, DESCRIPTOR, OURS);
}

TEST(jit_entry_of_an_empty_list_is_its_first_and_comes_out)
{
	struct memory memory;

	make(&memory, 0);
	CHECK_EQ(insert(&memory), 0);
	CHECK_EQ(first(&memory), OURS);
	CHECK_EQ(next(&memory, OURS), 0);
	CHECK_EQ(prev(&memory, OURS), 0);
	CHECK_EQ(get(&memory, OURS + 16), 0x1000);
	CHECK_EQ(get(&memory, OURS + 24), 99);
	CHECK_EQ(insert(&memory), -EEXIST);
	CHECK_EQ(take_out(&memory), 0);
	check_restored(&memory);
}

TEST(jit_entry_goes_to_the_end_and_comes_out)
{
	struct memory memory;

	make(&memory, 3);
	CHECK_EQ(insert(&memory), 0);
	CHECK_EQ(first(&memory), entry_at(0));
	CHECK_EQ(next(&memory, entry_at(2)), OURS);
	CHECK_EQ(prev(&memory, OURS), entry_at(2));
	CHECK_EQ(take_out(&memory), 0);
	check_restored(&memory);
}

TEST(jit_entry_comes_out_of_the_middle)
{
	struct memory memory;

	make(&memory, 1);
	CHECK_EQ(insert(&memory), 0);
	set(&memory, OURS, entry_at(1)); /* the program has put another one behind us */
	set(&memory, entry_at(1) + 8, OURS);
	CHECK_EQ(take_out(&memory), 0);
	CHECK_EQ(next(&memory, entry_at(0)), entry_at(1));
	CHECK_EQ(prev(&memory, entry_at(1)), entry_at(0));
	CHECK_EQ(next(&memory, entry_at(1)), 0);
	close(memory.fd);
}

TEST(jit_entry_that_the_program_has_cut_off_is_left_alone)
{
	struct memory memory;

	make(&memory, 2);
	CHECK_EQ(insert(&memory), 0);
	set(&memory, entry_at(1), 0); /* as who has read "none behind me" before we came */
	CHECK_EQ(take_out(&memory), 0);
	check_restored(&memory);
}

TEST(jit_list_that_is_being_changed_is_waited_for)
{
	struct memory memory;

	make(&memory, 2);
	set(&memory, entry_at(1) + 8, entry_at(3)); /* a new head is on its way in */
	CHECK_EQ(insert(&memory), -EAGAIN);
	set(&memory, entry_at(1) + 8, entry_at(0));
	CHECK_EQ(insert(&memory), 0);
	set(&memory, OURS + 8, entry_at(3));
	CHECK_EQ(take_out(&memory), -EAGAIN);
	set(&memory, OURS + 8, entry_at(1));
	set(&memory, entry_at(0) + 8, entry_at(3)); /* elsewhere: nothing to us */
	CHECK_EQ(take_out(&memory), 0);
	set(&memory, entry_at(0) + 8, 0);
	check_restored(&memory);
}

TEST(jit_list_without_an_end_is_refused)
{
	struct memory memory;

	make(&memory, 2);
	set(&memory, entry_at(1), entry_at(0));
	CHECK_EQ(insert(&memory), -EAGAIN);
	set(&memory, entry_at(1), 0);
	check_restored(&memory);
}

TEST(jit_list_of_another_version_is_refused_and_one_that_is_gone_left)
{
	struct memory memory;

	make(&memory, 1);
	CHECK_EQ(insert(&memory), 0);
	set(&memory, DESCRIPTOR, 2);
	CHECK_EQ(insert(&memory), -EPROTO);
	CHECK_EQ(take_out(&memory), 0);
	CHECK_EQ(tp_jit_remove(memory.fd, 2 * MEMORY, OURS), 0);
	CHECK_EQ(tp_jit_insert(memory.fd, 2 * MEMORY, OURS, 1, 1), -EFAULT);
	close(memory.fd);
}
