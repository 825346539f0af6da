/* SPDX-License-Identifier: Apache-2.0 */
/**
 * @file
 * What the fuzzers in C share: a seeded generator, so that every case can be run again by its number,
 * values that hurt, and a count of findings. A sanitizer's complaint ends the program: one finding.
 */
#ifndef TP_FUZZ_H
#define TP_FUZZ_H

#include <inttypes.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static uint64_t fuzz_state, fuzz_case, fuzz_findings;

/* splitmix64: any seed is a good one, so a case's number can be its seed. */
static inline uint64_t fuzz_next(void)
{
	uint64_t z = (fuzz_state += 0x9e3779b97f4a7c15ull);

	z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9ull;
	z = (z ^ (z >> 27)) * 0x94d049bb133111ebull;
	return z ^ (z >> 31);
}

static inline uint64_t fuzz_below(uint64_t end)
{
	return fuzz_next() % end;
}

/* A number near a border of something, or any number at all. */
static inline uint64_t fuzz_number(void)
{
	uint64_t near = fuzz_below(9) - 4;

	switch (fuzz_below(6)) {
	case 0:
		return near;
	case 1:
		return (1ull << fuzz_below(64)) + near;
	case 2:
		return (1ull << 63) + near;
	case 3:
		return fuzz_below(1024);
	case 4:
		return -fuzz_below(1024);
	default:
		return fuzz_next();
	}
}

#define FUZZ_CHECK(condition)                                                                \
	do {                                                                                 \
		if (!(condition) && fuzz_findings++ < 8)                                     \
			fprintf(stderr, "%s:%d: case %" PRIu64 ": %s\n", __FILE__, __LINE__, \
				fuzz_case, #condition);                                      \
	} while (0)

/* `fuzzer CASES [FIRST]`: run the cases, say how many and how many were wrong. */
static inline int fuzz_main(int argc, char **argv, void (*run)(void))
{
	uint64_t cases = argc > 1 ? strtoull(argv[1], NULL, 10) : 10000;
	uint64_t first = argc > 2 ? strtoull(argv[2], NULL, 10) : 0;

	for (fuzz_case = first; fuzz_case < first + cases; fuzz_case++) {
		fuzz_state = fuzz_case << 20;
		run();
	}
	printf("%" PRIu64 " %" PRIu64 "\n", cases, fuzz_findings);
	return fuzz_findings != 0;
}

#endif
