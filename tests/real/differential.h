/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What the two halves of the differential driver share: random inputs, a digest of results, and
 * the list of functions that were really called. differential.py makes the callers of functions
 * that one signature describes (table.h); differential.c has the cases written by hand.
 */
#ifndef DIFFERENTIAL_H
#define DIFFERENTIAL_H

#include <stddef.h>
#include <stdint.h>
#include <wchar.h>
#include <locale.h>

#define BUFFERS 4
#define BUFFER_BYTES 1024

/* One run of a case: its inputs come from @state, its results go to @digest. */
struct run {
	uint64_t state;
	uint64_t digest;
	int inputs;
	int used;	 /* buffers given out for this input */
	size_t shortest; /* of the buffers given out, in elements */
	char *buffer[BUFFERS];
	size_t size[BUFFERS]; /* bytes of it that are written */
	locale_t locale;
};

struct test_case {
	const char *name;
	void (*run)(struct run *r);
};

/* Note that @function is called, and return it: what is called is not known to the compiler. */
void *touch(const char *name, void *function);
#define X(function) ((__typeof__(&(function)))touch(#function, (void *)&(function)))
/* A function that no header declares, or that the linker would take from elsewhere; NULL: none. */
void *find(const char *library, const char *name);

uint64_t rnd(struct run *r);
static inline uint64_t below(struct run *r, uint64_t limit)
{
	return limit ? rnd(r) % limit : 0;
}

void put(struct run *r, const void *data, size_t size);
void put_int(struct run *r, int64_t value);
void put_text(struct run *r, const char *text);
void put_wide(struct run *r, const wchar_t *text);
void put_place(struct run *r, const void *pointer);

void begin_input(struct run *r);
void end_input(struct run *r);
void begin_fp(struct run *r);
void end_fp(struct run *r);

float gen_f(struct run *r);
double gen_d(struct run *r);
long double gen_l(struct run *r);
_Float128 gen_q(struct run *r);
void put_f(struct run *r, float x);
void put_d(struct run *r, double x);
void put_l(struct run *r, long double x);
void put_q(struct run *r, _Float128 x);

int gen_int(struct run *r);
int64_t gen_long(struct run *r);
int64_t gen_modest(struct run *r);
__int128 gen_wide_int(struct run *r);
int gen_char(struct run *r);
wint_t gen_wchar(struct run *r);
int gen_base(struct run *r);
size_t gen_size(struct run *r);
const char *gen_string(struct run *r);
const char *gen_number(struct run *r);
const wchar_t *gen_wide_string(struct run *r);
const wchar_t *gen_wide_number(struct run *r);
char *gen_out(struct run *r, int with_string);
wchar_t *gen_wide_out(struct run *r, int with_string);

extern const struct test_case hand_written[];
extern const int hand_written_count;

#endif
