/* SPDX-License-Identifier: Apache-2.0 */
/** @file What the kernel answers about mappings: where stacks may be, where code of files is. */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/ioctl.h>

#include "status.h"

#define ROOM 64

/** struct procmap_query of the kernel (Linux 6.11): older headers lack it. */
struct map_query {
	uint64_t size;
	uint64_t flags;
	uint64_t addr;
	uint64_t start;
	uint64_t end;
	uint64_t vma_flags;
	uint64_t vma_page_size;
	uint64_t offset;
	uint64_t inode;
	uint32_t major;
	uint32_t minor;
	uint32_t name_size; /* not asked for, nor the build id */
	uint32_t build_id_size;
	uint64_t name;
	uint64_t build_id;
};

#define MAP_QUERY _IOWR('f', 17, struct map_query) /* PROCMAP_QUERY */
#define WRITABLE 0x02
#define EXECUTABLE 0x04
#define THIS_OR_NEXT 0x10
#define OF_A_FILE 0x20

static int add(struct tp_stacks *stacks, uint64_t start, uint64_t end)
{
	uint64_t *grown = stacks->pairs;

	if (stacks->count % ROOM == 0)
		grown = realloc(stacks->pairs, 2 * (stacks->count + ROOM) * sizeof(*grown));
	if (!grown)
		return -ENOMEM;
	stacks->pairs = grown;
	grown[2 * stacks->count] = start;
	grown[2 * stacks->count++ + 1] = end;
	return 0;
}

/* The line is "start-end perms ...", in hexadecimal; a rest of a long one is not. */
static bool is_writable(const char *line, uint64_t *start, uint64_t *end)
{
	char *at;

	*start = strtoull(line, &at, 16);
	if (at == line || *at != '-')
		return false;
	*end = strtoull(at + 1, &at, 16);
	return at[0] == ' ' && at[1] && at[2] == 'w';
}

/** The same from the text of a maps file, where the kernel answers no queries. Returns 0 or -ENOMEM. */
int tp_read_stack_lines(FILE *maps, struct tp_stacks *stacks)
{
	uint64_t start, end;
	char line[512];
	int error = 0;

	while (!error && fgets(line, sizeof(line), maps))
		if (is_writable(line, &start, &end))
			error = add(stacks, start, end);
	return error;
}

/* Half a microsecond a mapping, where a line of text takes two or three. -ENOTTY: an older kernel. */
static int query(int maps_fd, struct tp_stacks *stacks)
{
	struct map_query query = { .size = sizeof(query), .flags = WRITABLE | THIS_OR_NEXT };
	int error = 0;

	while (!error && !ioctl(maps_fd, MAP_QUERY, &query)) {
		error = add(stacks, query.start, query.end);
		query.addr = query.end;
	}
	return error ? error : errno == ENOENT ? 0 : -errno;
}

static int read_stacks_of(pid_t pid, pid_t tid, struct tp_stacks *stacks)
{
	FILE *maps = tp_open_of_thread(pid, tid, "maps");
	int error;

	if (!maps)
		return -errno;
	error = query(fileno(maps), stacks);
	if (error == -ESRCH) /* no memory any more */
		error = 0;
	if (error == -ENOTTY)
		error = tp_read_stack_lines(maps, stacks);
	fclose(maps);
	return error;
}

/**
 * Where stacks may be, as the kernel lists it. A first thread that has exited has no memory any
 * more; one of the others has. Returns 0 or -errno.
 */
int tp_read_stacks(pid_t pid, struct tp_stacks *stacks)
{
	DIR *tasks;
	int error;
	pid_t tid;

	*stacks = (struct tp_stacks){ 0 };
	error = read_stacks_of(pid, pid, stacks);
	if (error || stacks->count)
		return error;
	tasks = tp_open_tasks(pid);
	while (tasks && !stacks->count && (tid = tp_next_thread(tasks)) > 0)
		read_stacks_of(pid, tid, stacks); /* it may end meanwhile: the next one will do */
	if (tasks)
		closedir(tasks);
	return 0;
}

void tp_free_stacks(struct tp_stacks *stacks)
{
	free(stacks->pairs);
	*stacks = (struct tp_stacks){ 0 };
}

static int64_t query_code(int maps_fd, struct tp_code *found, uint64_t room)
{
	struct map_query query = { .size = sizeof(query),
				   .flags = EXECUTABLE | OF_A_FILE | THIS_OR_NEXT };
	uint64_t count = 0;

	for (; !ioctl(maps_fd, MAP_QUERY, &query); query.addr = query.end, count++)
		if (count < room)
			found[count] = (struct tp_code){ query.start, query.end,   query.offset,
							 query.inode, query.major, query.minor };
	return errno == ENOENT ? (int64_t)count : -errno;
}

/**
 * Where code of files is mapped, in address order; a tenth of the time that the text of all mappings takes.
 * Returns how many there are, of which at most @room are filled in, or -errno: -ENOTTY where the kernel
 * answers no queries, -ESRCH and -ENOENT when the first thread has ended.
 */
int64_t tp_read_code(int pid, struct tp_code *found, uint64_t room)
{
	FILE *maps = tp_open_of_thread(pid, pid, "maps");
	int64_t count;

	if (!maps)
		return -errno;
	count = query_code(fileno(maps), found, room);
	fclose(maps);
	return count;
}
