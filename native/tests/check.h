/* SPDX-License-Identifier: Apache-2.0 */
/**
 * @file
 * A whole test program: TEST(name) { CHECK(...); } registers a case, main() runs them in order and
 * speaks TAP. A case is named for the clause that it checks. `test_x WORD` runs those with WORD.
 */
#ifndef TP_CHECK_H
#define TP_CHECK_H

#include <inttypes.h>
#include <stdio.h>
#include <string.h>

struct check_case {
	const char *name;
	void (*run)(void);
	struct check_case *next;
};

static struct check_case *check_first, **check_end = &check_first;
static unsigned int check_failures; /* of the running case */
static char check_context[128];	    /* which turn of a loop it was: CHECK_NOTE() */

#define TEST(test)                                                     \
	static void test(void);                                        \
	__attribute__((constructor)) static void register_##test(void) \
	{                                                              \
		static struct check_case self = { #test, test, NULL }; \
                                                                       \
		*check_end = &self;                                    \
		check_end = &self.next;                                \
	}                                                              \
	static void test(void)

#define CHECK_NOTE(...) snprintf(check_context, sizeof(check_context), __VA_ARGS__)
#define CHECK(condition) check_that(!!(condition), #condition, __FILE__, __LINE__)
#define CHECK_EQ(a, b) check_equal((int64_t)(a), (int64_t)(b), #a " == " #b, __FILE__, __LINE__)
#define CHECK_BYTES(a, b, count) CHECK(!memcmp((a), (b), (count)))

static inline int check_that(int holds, const char *text, const char *file, int line)
{
	if (!holds && check_failures++ < 8) /* a sweep fails thousands of times */
		printf("# %s:%d: %s [%s]\n", file, line, text, check_context);
	return holds;
}

static inline int check_equal(int64_t a, int64_t b, const char *text, const char *file, int line)
{
	if (!check_that(a == b, text, file, line) && check_failures <= 8)
		printf("#   %" PRId64 " (0x%" PRIx64 ") != %" PRId64 " (0x%" PRIx64 ")\n", a, a, b,
		       b);
	return a == b;
}

int main(int argc, char **argv)
{
	unsigned int number = 0, bad = 0;

	setvbuf(stdout, NULL, _IOLBF, 0); /* a crash must not take the last lines with it */
	for (struct check_case *test = check_first; test; test = test->next) {
		if (argc > 1 && !strstr(test->name, argv[1]))
			continue;
		check_failures = 0;
		check_context[0] = 0;
		test->run();
		bad += check_failures > 0;
		printf("%sok %u - %s\n", check_failures ? "not " : "", ++number, test->name);
	}
	printf("1..%u\n", number);
	return bad || !number;
}

#endif
