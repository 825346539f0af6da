/* SPDX-License-Identifier: Apache-2.0 */
/**
 * @file
 * The alternative that toggle.py compares with: stop every thread by ptrace, see that none stands
 * inside a site, write a page at a time through the mem file, let go.
 *
 * stop_world PID SKIPPED_TID SITES_FILE PAIRS HZ; prints "ready", waits for a line, then switches
 * on and off PAIRS times, HZ times a second (0: without a break). One line for each switch:
 * total, stop, write and release nanoseconds, threads, writes, times that a thread was inside.
 */
#define _GNU_SOURCE
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ptrace.h>
#include <sys/user.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#define PAGE 4096u
#define MAX_THREADS 1024
#define MAX_PASSES 64

/* toggle.py writes these, sorted by address. */
struct site {
	uint64_t address;
	uint8_t bytes;
	uint8_t code[2][15]; /* off, on */
	uint8_t padding;
};

_Static_assert(sizeof(struct site) == 40, "toggle.py");

struct result {
	uint64_t total_ns, stop_ns, write_ns, release_ns;
	unsigned int threads, writes, inside;
};

static pid_t pid, skipped;
static int mem_fd;
static struct site *sites;
static size_t site_count;
static pid_t held[MAX_THREADS];
static size_t held_count;

static void die(const char *what)
{
	fprintf(stderr, "stop_world: %s: %s\n", what, strerror(errno));
	exit(1);
}

static uint64_t now_ns(void)
{
	struct timespec now;

	clock_gettime(CLOCK_MONOTONIC, &now);
	return (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
}

static bool is_held(pid_t tid)
{
	for (size_t i = 0; i < held_count; i++)
		if (held[i] == tid)
			return true;
	return false;
}

/* Ask every thread that is not yet held to stop. Returns how many were new. */
static size_t interrupt_new_threads(void)
{
	size_t before = held_count;
	char path[64];
	struct dirent *entry;
	DIR *folder;

	snprintf(path, sizeof(path), "/proc/%d/task", pid);
	folder = opendir(path);
	if (!folder)
		die(path);
	while ((entry = readdir(folder))) {
		pid_t tid = atoi(entry->d_name);

		if (!tid || tid == skipped || is_held(tid))
			continue;
		if (held_count == MAX_THREADS || ptrace(PTRACE_SEIZE, tid, NULL, NULL) ||
		    ptrace(PTRACE_INTERRUPT, tid, NULL, NULL))
			die("seize");
		held[held_count++] = tid;
	}
	closedir(folder);
	return held_count - before;
}

/* New threads may be born until all that were known stand still. */
static void stop_all(void)
{
	size_t waited = 0;

	while (interrupt_new_threads())
		for (; waited < held_count; waited++) {
			int status;

			if (waitpid(held[waited], &status, __WALL) < 0 || !WIFSTOPPED(status))
				die("wait");
		}
}

static void release_all(void)
{
	for (size_t i = 0; i < held_count; i++)
		if (ptrace(PTRACE_DETACH, held[i], NULL, NULL))
			die("detach");
	held_count = 0;
}

static bool same_tail(const struct site *site)
{
	return !memcmp(site->code[0] + 1, site->code[1] + 1, site->bytes - 1u);
}

/* Is this address inside a site whose tail is about to change? */
static bool is_inside(uint64_t address)
{
	size_t low = 0, high = site_count;

	while (low < high) {
		size_t middle = (low + high) / 2;

		if (sites[middle].address < address)
			low = middle + 1;
		else
			high = middle;
	}
	if (!low)
		return false;
	return address < sites[low - 1].address + sites[low - 1].bytes &&
	       !same_tail(&sites[low - 1]);
}

static unsigned int count_inside(void)
{
	unsigned int inside = 0;

	for (size_t i = 0; i < held_count; i++) {
		struct user_regs_struct regs;

		if (ptrace(PTRACE_GETREGS, held[i], NULL, &regs))
			die("registers");
		inside += is_inside(regs.rip);
	}
	return inside;
}

/* The sites [first, last) of one page: read, check, change, write. */
static void write_page(size_t first, size_t last, int on)
{
	static uint8_t buffer[2 * PAGE];
	uint64_t start = sites[first].address;
	size_t bytes = sites[last - 1].address + sites[last - 1].bytes - start;

	if (pread(mem_fd, buffer, bytes, (off_t)start) != (ssize_t)bytes)
		die("read");
	for (size_t i = first; i < last; i++) {
		uint8_t *code = buffer + (sites[i].address - start);

		if (memcmp(code, sites[i].code[!on], sites[i].bytes))
			die("unexpected bytes");
		memcpy(code, sites[i].code[on], sites[i].bytes);
	}
	if (pwrite(mem_fd, buffer, bytes, (off_t)start) != (ssize_t)bytes)
		die("write");
}

static unsigned int write_all(int on)
{
	unsigned int writes = 0;
	size_t first = 0;

	while (first < site_count) {
		size_t last = first;

		while (last < site_count &&
		       sites[last].address / PAGE == sites[first].address / PAGE)
			last++;
		write_page(first, last, on);
		writes++;
		first = last;
	}
	return writes;
}

static struct result switch_to(int on)
{
	struct result result = { 0 };
	uint64_t start = now_ns(), stopped, written;

	stop_all();
	for (unsigned int inside; (inside = count_inside()) && result.inside < MAX_PASSES;) {
		result.inside += inside;
		release_all();
		stop_all();
	}
	stopped = now_ns();
	result.threads = (unsigned int)held_count;
	result.writes = write_all(on);
	written = now_ns();
	release_all();
	result.total_ns = now_ns() - start;
	result.stop_ns = stopped - start;
	result.write_ns = written - stopped;
	result.release_ns = start + result.total_ns - written;
	return result;
}

static void print(const struct result *r)
{
	printf("%lu %lu %lu %lu %u %u %u\n", r->total_ns, r->stop_ns, r->write_ns, r->release_ns,
	       r->threads, r->writes, r->inside);
}

static void load_sites(const char *path)
{
	FILE *file = fopen(path, "rb");
	long bytes;

	if (!file || fseek(file, 0, SEEK_END) || (bytes = ftell(file)) <= 0)
		die(path);
	rewind(file);
	site_count = (size_t)bytes / sizeof(*sites);
	sites = calloc(site_count, sizeof(*sites));
	if (!sites || fread(sites, sizeof(*sites), site_count, file) != site_count)
		die(path);
	fclose(file);
}

static void sleep_until(uint64_t at)
{
	struct timespec when = { (time_t)(at / 1000000000u), (long)(at % 1000000000u) };

	clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &when, NULL);
}

int main(int argc, char **argv)
{
	unsigned int pairs, hz;
	struct result *results;
	char path[64], line[8];
	uint64_t start;

	if (argc != 6)
		return 2;
	pid = atoi(argv[1]);
	skipped = atoi(argv[2]);
	load_sites(argv[3]);
	pairs = (unsigned int)atoi(argv[4]);
	hz = (unsigned int)atoi(argv[5]);
	results = calloc(pairs, 2 * sizeof(*results));
	snprintf(path, sizeof(path), "/proc/%d/mem", pid);
	mem_fd = open(path, O_RDWR | O_CLOEXEC);
	if (mem_fd < 0 || !results)
		die(path);
	puts("ready");
	fflush(stdout);
	if (!fgets(line, sizeof(line), stdin))
		return 1;
	start = now_ns();
	for (unsigned int i = 0; i < pairs; i++) {
		if (hz)
			sleep_until(start + i * 1000000000ull / hz);
		results[2 * i] = switch_to(1);
		results[2 * i + 1] = switch_to(0);
	}
	for (unsigned int i = 0; i < 2 * pairs; i++)
		print(&results[i]);
	return 0;
}
