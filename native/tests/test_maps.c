/* SPDX-License-Identifier: Apache-2.0 */
/** @file Mappings: the kernel's answers and the lines of a maps file say the same. */
#include <errno.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#include "check.h"
#include "status.h"

enum { MAPPINGS = 300 };

static bool holds(const struct tp_stacks *stacks, const void *at)
{
	for (uint64_t i = 0; i < stacks->count; i++)
		if (stacks->pairs[2 * i] <= (uint64_t)at && (uint64_t)at < stacks->pairs[2 * i + 1])
			return true;
	return false;
}

static struct tp_stacks from_lines(pid_t pid)
{
	struct tp_stacks stacks = { 0 };
	FILE *maps = tp_open_of_thread(pid, pid, "maps");

	CHECK(maps);
	CHECK_EQ(tp_read_stack_lines(maps, &stacks), 0);
	fclose(maps);
	return stacks;
}

/* A child that waits: what it has mapped does not change while it is looked at. */
static pid_t waiting_child(int *end)
{
	int ends[2];
	pid_t child;
	char byte;

	CHECK_EQ(pipe(ends), 0);
	child = fork();
	if (!child) {
		close(ends[1]);
		_exit(read(ends[0], &byte, 1) != 0);
	}
	close(ends[0]);
	*end = ends[1];
	return child;
}

TEST(answers_and_lines_say_the_same)
{
	struct tp_stacks answers, lines;
	const void *readable = mmap(NULL, 4096, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	const void *writable = NULL;
	pid_t child;
	int end;

	for (int i = 0; i < MAPPINGS; i++) /* two apart do not become one */
		writable = mmap(NULL, 4096 + 4096ul * (i % 2),
				i % 2 ? PROT_READ : PROT_READ | PROT_WRITE,
				MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	writable = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	child = waiting_child(&end);
	CHECK_EQ(tp_read_stacks(child, &answers), 0);
	lines = from_lines(child);
	CHECK_EQ(answers.count, lines.count);
	CHECK(answers.count > MAPPINGS / 2);
	for (uint64_t i = 0; i < 2 * lines.count && i < 2 * answers.count; i++)
		CHECK_EQ(answers.pairs[i], lines.pairs[i]);
	CHECK(holds(&answers, writable));
	CHECK(holds(&answers, &child));
	CHECK(!holds(&answers, readable));
	tp_free_stacks(&answers);
	tp_free_stacks(&lines);
	close(end);
	CHECK_EQ(waitpid(child, NULL, 0), child);
}

TEST(who_is_gone_has_none)
{
	struct tp_stacks stacks;
	int end;
	pid_t child = waiting_child(&end);

	close(end);
	CHECK_EQ(waitpid(child, NULL, 0), child);
	CHECK_EQ(tp_read_stacks(child, &stacks), -ENOENT);
	CHECK_EQ(stacks.count, 0);
}

TEST(code_of_files_is_told_apart)
{
	struct tp_code found[64];
	const void *plain =
		mmap(NULL, 4096, PROT_READ | PROT_EXEC, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	int64_t count = tp_read_code(getpid(), found, 64);
	bool own = false;

	if (count == -ENOTTY) /* before Linux 6.11 */
		return;
	CHECK(count > 0 && count <= 64);
	for (int64_t i = 0; i < count; i++) {
		own |= found[i].start <= (uint64_t)tp_read_code &&
		       (uint64_t)tp_read_code < found[i].end;
		CHECK(found[i].inode);
		CHECK(found[i].start != (uint64_t)plain);
		CHECK(!i || found[i - 1].end <= found[i].start);
	}
	CHECK(own);
	CHECK_EQ(tp_read_code(getpid(), found, 1), count); /* told, though there is no room */
}
