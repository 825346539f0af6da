/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The hand-written half of the differential driver: inputs, digests, and the cases of functions
 * that one signature does not describe. Nothing that differs from process to process may reach a
 * digest: no address, no padding, no time, no state of the heap.
 */
#define _GNU_SOURCE
#define _REGEX_RE_COMP
#include "differential.h"

#include <argz.h>
#include <arpa/inet.h>
#include <ctype.h>
#include <dlfcn.h>
#include <envz.h>
#include <errno.h>
#include <execinfo.h>
#include <fenv.h>
#include <fnmatch.h>
#include <getopt.h>
#include <glob.h>
#include <gnu/libc-version.h>
#include <iconv.h>
#include <inttypes.h>
#include <langinfo.h>
#include <libgen.h>
#include <libintl.h>
#include <limits.h>
#include <malloc.h>
#include <monetary.h>
#include <netdb.h>
#include <netinet/ether.h>
#include <netinet/in.h>
#include <obstack.h>
#include <pthread.h>
#include <regex.h>
#include <sched.h>
#include <search.h>
#include <semaphore.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdio_ext.h>
#include <stdlib.h>
#include <string.h>
#include <sys/auxv.h>
#include <sys/mman.h>
#include <threads.h>
#include <time.h>
#include <uchar.h>
#include <ucontext.h>
#include <unistd.h>
#include <wchar.h>
#include <wctype.h>
#include <wordexp.h>

#define OPENSSL_SUPPRESS_DEPRECATED
#include <openssl/aes.h>
#include <openssl/asn1.h>
#include <openssl/bn.h>
#include <openssl/buffer.h>
#include <openssl/camellia.h>
#include <openssl/cast.h>
#include <openssl/blowfish.h>
#include <openssl/cmac.h>
#include <openssl/des.h>
#include <openssl/ec.h>
#include <openssl/evp.h>
#include <openssl/hmac.h>
#include <openssl/md4.h>
#include <openssl/md5.h>
#include <openssl/modes.h>
#include <openssl/objects.h>
#include <openssl/rc4.h>
#include <openssl/ripemd.h>
#include <openssl/sha.h>
#include <openssl/whrlpool.h>
#include <zlib.h>
#define ZSTD_STATIC_LINKING_ONLY
#include <zstd.h>
#include <zdict.h>
#include <zstd_errors.h>

#undef basename
int _obstack_allocated_p(struct obstack *stack, void *object);
int __xpg_strerror_r(int number, char *out, size_t size);

/* ---- what was called ---- */

#define MOST_FUNCTIONS 8192
#define MOST_CASES 2048

struct function {
	const char *name;
	void *address;
	uint8_t cases[MOST_CASES / 8];
};

static struct function functions[MOST_FUNCTIONS];
static int function_count, current_case;

void *touch(const char *name, void *address)
{
	size_t slot = ((uintptr_t)address * 0x9E3779B97F4A7C15ull >> 51) % MOST_FUNCTIONS;
	static int16_t slots[MOST_FUNCTIONS]; /* 1 + index */

	while (slots[slot] && functions[slots[slot] - 1].address != address)
		slot = (slot + 1) % MOST_FUNCTIONS;
	if (!slots[slot]) {
		if (function_count == MOST_FUNCTIONS - 1)
			abort();
		functions[function_count].name = name;
		functions[function_count].address = address;
		slots[slot] = ++function_count;
	}
	functions[slots[slot] - 1].cases[current_case / 8] |= 1 << current_case % 8;
	return address;
}

void *find(const char *library, const char *name)
{
	static struct known {
		const char *name;
		void *handle;
	} known[16];
	struct known *k = known;
	void *found;

	while (k->name && strcmp(k->name, library))
		k++;
	if (!k->name) {
		k->name = library;
		k->handle = dlopen(library, RTLD_NOW | RTLD_NOLOAD);
	}
	found = k->handle ? dlsym(k->handle, name) : NULL;
	return found ? touch(name, found) : NULL;
}

/* ---- digests ---- */

void put(struct run *r, const void *data, size_t size)
{
	const unsigned char *bytes = data;
	uint64_t word;

	for (; size >= 8; size -= 8, bytes += 8) {
		__builtin_memcpy(&word, bytes, 8);
		r->digest = (r->digest ^ word) * 0x9E3779B97F4A7C15ull;
		r->digest ^= r->digest >> 29;
	}
	word = size;
	for (size_t i = 0; i < size; i++)
		word = word << 8 | bytes[i];
	r->digest = (r->digest ^ word) * 0xD6E8FEB86659FD93ull;
	r->digest ^= r->digest >> 32;
}

void put_int(struct run *r, int64_t value)
{
	put(r, &value, sizeof(value));
}

void put_text(struct run *r, const char *text)
{
	size_t size = 0;

	while (text && text[size])
		size++;
	put_int(r, text ? (int64_t)size : -1);
	put(r, text, size);
}

void put_wide(struct run *r, const wchar_t *text)
{
	size_t size = 0;

	while (text && text[size])
		size++;
	put_int(r, text ? (int64_t)size : -1);
	put(r, text, size * sizeof(*text));
}

void put_place(struct run *r, const void *pointer)
{
	for (int i = 0; i < r->used; i++) {
		ptrdiff_t offset = (const char *)pointer - r->buffer[i];

		if (pointer && offset >= 0 && (size_t)offset <= r->size[i]) {
			put_int(r, offset << 3 | i);
			return;
		}
	}
	put_int(r, pointer ? -2 : -1);
}

void put_f(struct run *r, float x)
{
	put(r, &x, 4);
}

void put_d(struct run *r, double x)
{
	put(r, &x, 8);
}

void put_l(struct run *r, long double x)
{
	put(r, &x, 10);
}

void put_q(struct run *r, _Float128 x)
{
	put(r, &x, 16);
}

/* ---- inputs ---- */

uint64_t rnd(struct run *r)
{
	uint64_t x = r->state += 0x9E3779B97F4A7C15ull;

	x = (x ^ x >> 30) * 0xBF58476D1CE4E5B9ull;
	x = (x ^ x >> 27) * 0x94D049BB133111EBull;
	return x ^ x >> 31;
}

/* A page that cannot be touched ends every buffer, so that reading past it is seen. */
static char *page_of(int index)
{
	static char *pages[BUFFERS];

	if (!pages[index]) {
		pages[index] = mmap(NULL, 12288, PROT_READ | PROT_WRITE,
				    MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
		if (pages[index] == MAP_FAILED || mprotect(pages[index] + 8192, 4096, PROT_NONE))
			abort();
	}
	return pages[index];
}

static char *take(struct run *r, size_t size, size_t unit)
{
	int index = r->used++;
	size_t room = 8192 - size;

	if (index >= BUFFERS)
		abort();
	r->size[index] = size;
	r->buffer[index] = page_of(index) + (below(r, 2) ? room : below(r, room)) / unit * unit;
	if (unit == sizeof(wchar_t) && size % unit)
		abort();
	return r->buffer[index];
}

void begin_input(struct run *r)
{
	r->used = 0;
	r->shortest = BUFFER_BYTES / sizeof(wchar_t) - 1;
	errno = 0;
}

void end_input(struct run *r)
{
	put_int(r, errno);
	for (int i = 0; i < r->used; i++)
		put(r, r->buffer[i], r->size[i]);
}

void begin_fp(struct run *r)
{
	static const int modes[] = { FE_TONEAREST, FE_UPWARD, FE_DOWNWARD, FE_TOWARDZERO };

	fesetround(below(r, 4) ? FE_TONEAREST : modes[below(r, 4)]);
	feclearexcept(FE_ALL_EXCEPT);
}

void end_fp(struct run *r)
{
	int raised = fetestexcept(FE_ALL_EXCEPT);

	fesetround(FE_TONEAREST);
	feclearexcept(FE_ALL_EXCEPT);
	put_int(r, raised);
}

double gen_d(struct run *r)
{
	static const double special[] = {
		0.0,
		-0.0,
		1.0,
		-1.0,
		0.5,
		2.0,
		-2.5,
		3.0,
		1e-300,
		1e300,
		5e-324,
		__builtin_inf(),
		-__builtin_inf(),
		__builtin_nan(""),
		1.5707963267948966,
		710.0,
		-745.2,
		0x1p53,
		0x1.fffffffffffffp1023,
		0x1p-1022,
	};
	uint64_t bits = rnd(r);
	double x;

	switch (below(r, 6)) {
	case 0:
		return special[below(r, sizeof(special) / sizeof(*special))];
	case 1: /* any bits, signalling NaNs too */
		__builtin_memcpy(&x, &bits, 8);
		return x;
	case 2:
		return (double)((int64_t)bits % 200) / 4;
	case 3:
		return (double)(int64_t)bits * 0x1p-63;
	case 4:
		return (double)(int64_t)bits * 0x1p-57;
	default:
		return (double)(int64_t)bits * 0x1p-50;
	}
}

float gen_f(struct run *r)
{
	uint32_t bits = rnd(r);
	float x;

	if (below(r, 4))
		return gen_d(r);
	__builtin_memcpy(&x, &bits, 4);
	return x;
}

long double gen_l(struct run *r)
{
	int scale = (int)below(r, 32000) - 16000;

	if (below(r, 3))
		return gen_d(r) + (long double)gen_d(r) * 0x1p-60L;
	return __builtin_ldexpl((int64_t)rnd(r), below(r, 2) ? scale : scale % 70 - 63);
}

_Float128 gen_q(struct run *r)
{
	_Float128 x = gen_l(r);

	return below(r, 2) ? x : x + x * (_Float128)((double)(int64_t)rnd(r) * 0x1p-130);
}

int gen_int(struct run *r)
{
	return below(r, 2) ? (int)rnd(r) : (int)below(r, 400) - 200;
}

int64_t gen_long(struct run *r)
{
	return (int64_t)rnd(r) >> below(r, 64);
}

int64_t gen_modest(struct run *r)
{
	return (int64_t)below(r, 60000) - 30000;
}

__int128 gen_wide_int(struct run *r)
{
	__int128 x = (__int128)rnd(r) << 64 | rnd(r);

	x >>= below(r, 120);
	return x ? x : 1; /* divisors are among them */
}

int gen_char(struct run *r)
{
	return (int)below(r, 257) - 1;
}

wint_t gen_wchar(struct run *r)
{
	switch (below(r, 4)) {
	case 0:
		return below(r, 0x110000);
	case 1:
		return below(r, 0x3000);
	default:
		return below(r, 128);
	}
}

int gen_base(struct run *r)
{
	static const int usual[] = { 0, 10, 16, 8, 2 };

	return below(r, 2) ? usual[below(r, 5)] : 2 + (int)below(r, 35);
}

size_t gen_size(struct run *r)
{
	return below(r, r->shortest + 1);
}

/* Later strings of an input look like the first: comparisons must get somewhere. */
static void fill(struct run *r, char *text, size_t length)
{
	static const char *const letters[] = {
		"ab",
		"abcdeABCDE",
		"0123456789.-+xe ",
		"the quick, brown \t\n/\\fox\xc3\xa9\xe2\x82\xac",
	};
	const char *alphabet = letters[below(r, 4)];
	size_t many = __builtin_strlen(alphabet);
	int any = !below(r, 8);

	for (size_t i = 0; i < length; i++)
		text[i] = any ? (char)(1 + below(r, 255)) : alphabet[below(r, many)];
}

static size_t gen_length(struct run *r, size_t limit)
{
	size_t length = below(r, 3) ? below(r, 20) : below(r, limit);

	if (length < r->shortest)
		r->shortest = length;
	return length;
}

const char *gen_string(struct run *r)
{
	size_t length = gen_length(r, 250), first = r->used ? r->size[0] - 1 : 0;
	char *text = take(r, length + 1, 1);

	fill(r, text, length);
	if (r->used > 1 && below(r, 3)) {
		size_t from = below(r, 2) && first > length ? below(r, first - length) : 0;

		for (size_t i = 0; i < length && from + i < first; i++)
			text[i] = r->buffer[0][from + i];
		if (length && !below(r, 3))
			text[below(r, length)] ^= 32;
		for (size_t i = 0; i < length; i++)
			text[i] = text[i] ? text[i] : 'z';
	}
	text[length] = 0;
	return text;
}

const wchar_t *gen_wide_string(struct run *r)
{
	size_t length = gen_length(r, 120), first = r->used ? r->size[0] / sizeof(wchar_t) - 1 : 0;
	wchar_t *text = (wchar_t *)take(r, (length + 1) * sizeof(wchar_t), sizeof(wchar_t));
	const wchar_t *other = (const wchar_t *)r->buffer[0];
	int similar = r->used > 1 && below(r, 3), few = below(r, 2);

	for (size_t i = 0; i < length; i++) {
		text[i] = few ? L'a' + (wchar_t)below(r, 3) : (wchar_t)gen_wchar(r);
		if (similar && i < first && below(r, 20))
			text[i] = other[i];
		if (!text[i] || (text[i] >= 0xd800 && text[i] < 0xe000))
			text[i] = L'z';
	}
	text[length] = 0;
	return text;
}

static size_t number_text(struct run *r, char *text, size_t size)
{
	static const char *const odd[] = {
		"inf",
		"-INFINITY",
		"nan",
		"nan(0x1234)",
		"0x",
		"1e",
		"+",
		"",
		"  -0",
		"0x.p1",
		"1e400",
		"-1e-400",
		"179769313486231580793728971405301e300",
		"4.9406564584124654e-324",
		"9223372036854775808",
		"-9223372036854775809",
		"18446744073709551616",
		"0b101",
		"077",
	};
	uint64_t a = rnd(r) >> below(r, 64), b = rnd(r) >> below(r, 64);
	int e = (int)below(r, 700) - 350;

	switch (below(r, 6)) {
	case 0:
		return snprintf(text, size, "%s", odd[below(r, sizeof(odd) / sizeof(*odd))]);
	case 1:
		return snprintf(text, size, " %s%" PRIu64, below(r, 2) ? "-" : "", a);
	case 2:
		return snprintf(text, size, "0x%" PRIx64 ".%" PRIx64 "p%dq", a, b, e);
	case 3:
		return snprintf(text, size, "%" PRIu64 ".%" PRIu64 "e%+d", a, b, e);
	case 4:
		return snprintf(text, size, "\t+%" PRIu64 "%" PRIu64 "zz", a, b);
	default:
		return snprintf(text, size, "0%" PRIo64 "g", a);
	}
}

const char *gen_number(struct run *r)
{
	char text[100];
	size_t length = number_text(r, text, sizeof(text));
	char *copy = take(r, length + 1, 1);

	__builtin_memcpy(copy, text, length + 1);
	return copy;
}

const wchar_t *gen_wide_number(struct run *r)
{
	char text[100];
	size_t length = number_text(r, text, sizeof(text));
	wchar_t *copy = (wchar_t *)take(r, (length + 1) * sizeof(wchar_t), sizeof(wchar_t));

	for (size_t i = 0; i <= length; i++)
		copy[i] = (unsigned char)text[i];
	return copy;
}

char *gen_out(struct run *r, int with_string)
{
	char *out = take(r, BUFFER_BYTES, 1);
	size_t length = with_string ? gen_length(r, 200) : 0;

	for (size_t i = 0; i < BUFFER_BYTES; i++)
		out[i] = (char)0xA5;
	fill(r, out, length);
	out[length] = with_string ? 0 : (char)0xA5;
	return out;
}

wchar_t *gen_wide_out(struct run *r, int with_string)
{
	wchar_t *out = (wchar_t *)take(r, BUFFER_BYTES, sizeof(wchar_t));
	size_t length = with_string ? gen_length(r, 60) : 0;

	for (size_t i = 0; i < BUFFER_BYTES / sizeof(wchar_t); i++)
		out[i] = i < length ? L'a' + (wchar_t)below(r, 4) : 0xA5;
	if (with_string)
		out[length] = 0;
	return out;
}

#define EACH for (int input = 0; input < r->inputs; input++)
#define FEW(n) for (int input = 0; input < r->inputs && input < (n); input++)

static void bytes(struct run *r, unsigned char *to, size_t size)
{
	for (size_t i = 0; i < size; i++)
		to[i] = (unsigned char)rnd(r);
}

/* Text that packs, not too well. */
static size_t text(struct run *r, unsigned char *to, size_t limit)
{
	size_t size = below(r, limit), variety = 2 + below(r, 250);

	for (size_t i = 0; i < size; i++) {
		size_t back = below(r, 4) ? 0 : 1 + below(r, 200);

		if (back && back < i)
			for (size_t n = 3 + below(r, 40); n && i < size; n--, i++)
				to[i] = to[i - back];
		if (i < size)
			to[i] = (unsigned char)below(r, variety);
	}
	return size;
}

/* ---- sorting and searching ---- */

static struct run *comparing;

static int by_value(const void *a, const void *b)
{
	uint32_t x = *(const uint32_t *)a, y = *(const uint32_t *)b;

	return x < y ? -1 : x > y;
}

static int by_value_with(const void *a, const void *b, void *with)
{
	++*(int *)with;
	return by_value(a, b);
}

static void walk(const void *node, VISIT which, int depth)
{
	put_int(comparing, **(const uint32_t *const *)node * 100 + which * 40 + depth);
}

static void walk_with(const void *node, VISIT which, void *with)
{
	*(uint64_t *)with += **(const uint32_t *const *)node * (uint64_t)(which + 1);
}

static void keep(void *node)
{
	put_int(comparing, *(uint32_t *)node);
}

static void sorting(struct run *r)
{
	EACH
	{
		static uint32_t values[600];
		size_t many = 1 + below(r, 500);
		uint32_t key = rnd(r) % 1000;
		int compared = 0;
		uint32_t *found;

		for (size_t i = 0; i < many; i++)
			values[i] = rnd(r) % 1000;
		if (input % 2)
			X(qsort)(values, many, 4, by_value);
		else
			X(qsort_r)(values, many, 4, by_value_with, &compared);
		put(r, values, many * 4);
		put_int(r, compared);
		found = X(bsearch)(&key, values, many, 4, by_value);
		put_int(r, found ? (int64_t)*found : -1);
		found = X(lfind)(&key, values, &many, 4, by_value);
		put_int(r, found ? found - values : -1);
		found = X(lsearch)(&key, values, &many, 4, by_value);
		put_int(r, found - values);
		put_int(r, many);
	}
}

static void trees(struct run *r)
{
	comparing = r;
	EACH
	{
		static uint32_t values[64];
		void *root = NULL;
		uint64_t sum = 0;

		for (int i = 0; i < 64; i++) {
			values[i] = rnd(r) % 90;
			put_int(r, **(uint32_t **)X(tsearch)(&values[i], &root, by_value));
		}
		for (int i = 0; i < 20; i++) {
			uint32_t key = rnd(r) % 90;
			uint32_t **found = X(tfind)(&key, &root, by_value);

			put_int(r, found ? (int64_t)**found : -1);
			put_int(r, X(tdelete)(&key, &root, by_value) != NULL);
		}
		X(twalk)(root, walk);
		X(twalk_r)(root, walk_with, &sum);
		put_int(r, sum);
		X(tdestroy)(root, keep);
	}
}

static void tables(struct run *r)
{
	EACH
	{
		static char names[40][12];
		struct hsearch_data data = { 0 };
		ENTRY *found;
		struct qelem links[6] = { 0 };

		put_int(r, X(hcreate_r)(50, &data));
		for (int i = 0; i < 40; i++) {
			snprintf(names[i], sizeof(names[i]), "n%u", (unsigned)(rnd(r) % 60));
			put_int(r, X(hsearch_r)((ENTRY){ names[i], NULL }, ENTER, &found, &data));
			put_text(r, found->key);
		}
		for (int i = 0; i < 20; i++) {
			char name[12];

			snprintf(name, sizeof(name), "n%u", (unsigned)(rnd(r) % 60));
			put_int(r, X(hsearch_r)((ENTRY){ name, NULL }, FIND, &found, &data));
		}
		X(hdestroy_r)(&data);
		X(insque)(&links[0], NULL);
		for (int i = 1; i < 6; i++)
			X(insque)(&links[i], &links[below(r, i)]);
		X(remque)(&links[1 + below(r, 5)]);
		for (struct qelem *link = &links[0]; link; link = link->q_forw)
			put_int(r, link - links);
		if (input)
			continue;
		put_int(r, X(hcreate)(30));
		for (int i = 0; i < 20; i++)
			put_text(r, X(hsearch)((ENTRY){ names[i], NULL }, ENTER)->key);
		X(hdestroy)();
	}
}

/* ---- text with state ---- */

static void tokens(struct run *r)
{
	EACH
	{
		char *state, *next, *token;
		wchar_t *wide_state;

		begin_input(r);
		next = gen_out(r, 1);
		for (token = X(strtok_r)(next, " ,ab", &state); token;
		     token = X(strtok_r)(NULL, " ,ab", &state))
			put_text(r, token);
		end_input(r);
		begin_input(r);
		next = gen_out(r, 1);
		while ((token = X(strsep)(&next, "e0\t")))
			put_text(r, token);
		end_input(r);
		begin_input(r);
		next = gen_out(r, 1);
		for (token = X(strtok)(next, "acx"); token; token = X(strtok)(NULL, "acx"))
			put_text(r, token);
		end_input(r);
		begin_input(r);
		for (wchar_t *word = X(wcstok)(gen_wide_out(r, 1), L"ab", &wide_state); word;
		     word = X(wcstok)(NULL, L"ab", &wide_state))
			put_wide(r, word);
		end_input(r);
	}
}

static void copies(struct run *r)
{
	EACH
	{
		char *copy;
		wchar_t *wide;
		const char *s;
		char *out;

		begin_input(r);
		s = gen_string(r);
		copy = X(strdup)(s);
		put_text(r, copy);
		X(free)(copy);
		copy = X(strndup)(s, below(r, 30));
		put_text(r, copy);
		X(free)(copy);
		s = gen_string(r);
		put_place(r, X(rawmemchr)(s, s[below(r, strlen(s) + 1)]));
		out = gen_out(r, 1);
		/* Overlapping, both ways. */
		put_place(r, X(memmove)(out + below(r, 100), out + below(r, 100), below(r, 600)));
		end_input(r);
		begin_input(r);
		wide = X(wcsdup)(gen_wide_string(r));
		put_wide(r, wide);
		X(free)(wide);
		wide = gen_wide_out(r, 1);
		X(wmemmove)(wide + below(r, 40), wide + below(r, 40), below(r, 180));
		end_input(r);
	}
}

static void divisions(struct run *r)
{
	EACH
	{
		int i = gen_int(r) / 2, j = gen_int(r) | 1;
		long a = gen_long(r) / 2, b = gen_long(r) | 1;
		div_t d = X(div)(i, j);
		ldiv_t l = X(ldiv)(a, b);
		lldiv_t ll = X(lldiv)(a, b);
		imaxdiv_t m = X(imaxdiv)(b, a | 1);

		put_int(r, d.quot);
		put_int(r, d.rem);
		put_int(r, l.quot ^ ll.quot);
		put_int(r, l.rem);
		put_int(r, ll.rem);
		put_int(r, m.quot);
		put_int(r, m.rem);
	}
}

static void multibyte(struct run *r)
{
	locale_t before = uselocale(r->locale);

	EACH
	{
		char out[MB_LEN_MAX * 140] = "";
		wchar_t wide[300];
		mbstate_t state = { 0 };
		const char *s, *from;
		const wchar_t *w, *wide_from;
		char16_t c16;
		char32_t c32;
		size_t limit;

		begin_input(r);
		from = s = gen_string(r);
		limit = below(r, 60);
		memset(wide, 0x11, sizeof(wide));
		put_int(r, X(mbsrtowcs)(wide, &from, limit, &state));
		put_place(r, from);
		put_int(r, X(mbsinit)(&state));
		put(r, wide, limit * sizeof(*wide));
		state = (mbstate_t){ 0 };
		from = s;
		put_int(r, X(mbsnrtowcs)(wide, &from, below(r, 40), limit, &state));
		put_int(r, X(mbstowcs)(wide, s, limit));
		put(r, wide, limit * sizeof(*wide));
		for (int i = 0; s[i] && i < 12; i++) {
			wchar_t c = 0;

			state = (mbstate_t){ 0 };
			put_int(r, X(mblen)(s + i, 6));
			put_int(r, X(mbrlen)(s + i, 1 + below(r, 6), &state));
			state = (mbstate_t){ 0 };
			put_int(r, X(mbtowc)(&c, s + i, 6));
			put_int(r, c);
			put_int(r, X(mbrtowc)(&c, s + i, 1 + below(r, 6), &state));
			put_int(r, c);
			state = (mbstate_t){ 0 };
			c16 = c32 = 0;
			put_int(r, X(mbrtoc16)(&c16, s + i, 6, &state));
			state = (mbstate_t){ 0 };
			put_int(r, X(mbrtoc32)(&c32, s + i, 6, &state));
			put_int(r, c16 * 65536ll + c32);
		}
		end_input(r);
		begin_input(r);
		wide_from = w = gen_wide_string(r);
		state = (mbstate_t){ 0 };
		limit = below(r, 200);
		put_int(r, X(wcsrtombs)(out, &wide_from, limit, &state));
		put(r, out, limit);
		wide_from = w;
		put_int(r, X(wcsnrtombs)(out, &wide_from, below(r, 30), limit, &state));
		put_int(r, X(wcstombs)(out, w, limit));
		put(r, out, limit);
		state = (mbstate_t){ 0 };
		for (int i = 0; w[i] && i < 12; i++) {
			put_int(r, X(wcrtomb)(out, w[i], &state));
			put_int(r, X(wctomb)(out + 8, w[i]));
			put_int(r, X(c32rtomb)(out + 16, w[i], &state));
			state = (mbstate_t){ 0 };
			put_int(r, X(c16rtomb)(out + 24, w[i] & 0xfff, &state));
			put(r, out, 32);
			put_int(r, X(iswctype)(w[i], X(wctype)("alpha")));
			put_int(r, X(iswctype_l)(w[i], X(wctype_l)("print", r->locale), r->locale));
			put_int(r, X(towctrans)(w[i], X(wctrans)("toupper")));
			put_int(r, X(towctrans_l)(w[i], X(wctrans_l)("tolower", r->locale),
						  r->locale));
		}
		end_input(r);
	}
	uselocale(before);
}

/* ---- printf and scanf ---- */

static int print_v(char *out, size_t size, const char *format, ...)
{
	va_list words;
	int written;

	va_start(words, format);
	written = X(vsnprintf)(out, size, format, words);
	va_end(words);
	return written;
}

static int print_unbounded(char *out, const char *format, ...)
{
	va_list words;
	int written;

	va_start(words, format);
	written = X(vsprintf)(out, format, words);
	va_end(words);
	return written;
}

static int print_allocated(char **out, const char *format, ...)
{
	va_list words;
	int written;

	va_start(words, format);
	written = X(vasprintf)(out, format, words);
	va_end(words);
	return written;
}

static int print_wide(wchar_t *out, size_t size, const wchar_t *format, ...)
{
	va_list words;
	int written;

	va_start(words, format);
	written = X(vswprintf)(out, size, format, words);
	va_end(words);
	return written;
}

static void printing(struct run *r)
{
	int (*checked)(char *, size_t, int, size_t, const char *, ...) =
		find("libc.so.6", "__snprintf_chk");
	int (*sprintf_checked)(char *, int, size_t, const char *, ...) =
		find("libc.so.6", "__sprintf_chk");
	int (*strfrom128)(char *, size_t, const char *, _Float128) =
		find("libc.so.6", "strfromf128");

	EACH
	{
		static const char *const flags[] = { "", "-", "+", "0", "#", " ", "+0", "-#", "'" };
		static const char reals[] = "eEfFgGaA";
		char format[120], out[6000], *allocated;
		wchar_t wide[400] = L"", wide_format[120];
		const char *flag = flags[below(r, 9)];
		int width = (int)below(r, 30), precision = (int)below(r, 25);
		double d = gen_d(r);
		long double l = gen_l(r);
		long j = gen_long(r);
		int i = gen_int(r);
		const char *s;

		begin_input(r);
		s = gen_string(r);
		snprintf(format, sizeof(format),
			 "%%%s%d.%d%c|%%%s%dld|%%%s.%dLg|%%%d.%ds|%%x %%c %%%%", flag, width,
			 precision, reals[below(r, 8)], flag, width, flag, precision, width,
			 precision);
		memset(out, 0x5a, sizeof(out));
		put_int(r, X(snprintf)(out, below(r, 200), format, d, j, l, s, i, 'a'));
		put(r, out, 200);
		put_int(r, print_v(out, sizeof(out), format, d, j, l, s, i, 'b'));
		put_text(r, out);
		put_int(r, X(sprintf)(out, "%.*f %hhd %hu %o %i %#X", precision, d, i, i, i, i, i));
		put_text(r, out);
		put_int(r, print_unbounded(out, "%2$*1$d %3$s %4$'d %5$jd %6$zd %7$td", width, i,
					   "x", i, (intmax_t)j, (size_t)i, (ptrdiff_t)j));
		put_text(r, out);
		put_int(r, X(asprintf)(&allocated, format, d, j, l, s, i, 'c'));
		put_text(r, allocated);
		free(allocated);
		put_int(r, print_allocated(&allocated, "%a %La %.0f %g", d, l, d, d));
		put_text(r, allocated);
		free(allocated);
		put_int(r, checked(out, 300, 1, sizeof(out), format, d, j, l, s, i, 'd'));
		put_text(r, out);
		put_int(r, sprintf_checked(out, 1, sizeof(out), "%e %s %lu", d, "text", j));
		put_text(r, out);
		for (int k = 0; k < 120; k++)
			wide_format[k] = (unsigned char)format[k];
		put_int(r, X(swprintf)(wide, 400, L"%ls %d %.3f %#lx %C", L"w\x20ac", i, d, j,
				       L'\xe9'));
		put_wide(r, wide);
		put_int(r, print_wide(wide, 400, L"%10.4e|%-8d|%S|%lc", d, i, L"ab", L'z'));
		put_wide(r, wide);
		wide[0] = 0;
		put_int(r, print_wide(wide, 400, wide_format, d, j, l, "text", i, 'e'));
		put_wide(r, wide);
		put_int(r, X(strfromd)(out, below(r, 60), "%.10g", d));
		put_int(r, X(strfromf)(out + 100, below(r, 60), "%a", gen_f(r)));
		put_int(r, X(strfroml)(out + 200, below(r, 60), "%.20e", l));
		put_int(r, strfrom128(out + 300, 80, "%.30e", gen_q(r)));
		put(r, out, 400);
		end_input(r);
	}
}

static int scan_v(const char *from, const char *format, ...)
{
	va_list words;
	int found;

	va_start(words, format);
	found = X(vsscanf)(from, format, words);
	va_end(words);
	return found;
}

static void scanning(struct run *r)
{
	EACH
	{
		char line[300], word[64] = "", set[64] = "", *allocated = NULL;
		wchar_t wide[300], wide_word[64] = L"";
		int i = 0, n = 0, o = 0;
		unsigned x = 0;
		long j = 0;
		double d = 0;
		float f = 0;
		long double l = 0;

		snprintf(line, sizeof(line), " %d,%lx word%u [abc%d] %.*g %Lg %o", gen_int(r),
			 (long)gen_long(r), (unsigned)below(r, 100), (int)below(r, 9),
			 (int)below(r, 18), gen_d(r), gen_l(r), gen_int(r));
		put_int(r, X(sscanf)(line, "%d,%lx %63s [%63[a-c]%i] %lf %Lf%n %o", &i, &j, word,
				     set, &o, &d, &l, &n, &x));
		put_int(r, i + j * 3 + o * 5 + n * 7 + x);
		put_text(r, word);
		put_text(r, set);
		put_d(r, d);
		put_l(r, l);
		put_int(r, scan_v(line, "%*d,%*x%ms %*[^]]] %f", &allocated, &f));
		put_text(r, allocated);
		free(allocated);
		put_f(r, f);
		for (int k = 0; k < 300; k++)
			wide[k] = (unsigned char)line[k];
		wide[299] = 0;
		put_int(r, X(swscanf)(wide, L"%d,%lx %63ls", &i, &j, wide_word));
		put_wide(r, wide_word);
		put_int(r, i + j);
	}
}

static void old_numbers(struct run *r)
{
	EACH
	{
		double d = gen_d(r);
		long double l = gen_l(r);
		int digits = 1 + (int)below(r, 17), point = 0, sign = 0;
		char out[512] = "";

		if (d != d || l != l)
			continue;
		put_text(r, X(ecvt)(d, digits, &point, &sign));
		put_int(r, point * 2 + sign);
		if (d < 1e100 && d > -1e100) {
			put_text(r, X(fcvt)(d, digits, &point, &sign));
			put_int(r, X(fcvt_r)(d, digits, &point, &sign, out, sizeof(out)));
			put_text(r, out);
		}
		put_text(r, X(gcvt)(d, digits, out));
		put_text(r, X(qecvt)(l, digits, &point, &sign));
		put_int(r, point * 2 + sign);
		if (l < 1e100L && l > -1e100L) {
			put_text(r, X(qfcvt)(l, digits, &point, &sign));
			put_int(r, X(qfcvt_r)(l, digits, &point, &sign, out, sizeof(out)));
			put_text(r, out);
		}
		put_text(r, X(qgcvt)(l, digits, out));
		put_int(r, X(ecvt_r)(d, digits, &point, &sign, out, sizeof(out)));
		put_text(r, out);
		put_int(r, X(qecvt_r)(l, digits, &point, &sign, out, sizeof(out)));
		put_text(r, out);
		if (d < 1e15 && d > -1e15) {
			put_int(r, X(strfmon)(out, sizeof(out), "%!#5.2n %i", d, d));
			put_text(r, out);
			put_int(r, X(strfmon_l)(out, sizeof(out), r->locale, "%=*#8n", d));
			put_text(r, out);
		}
	}
}

/* ---- streams ---- */

static void streams(struct run *r)
{
	EACH
	{
		char *data = NULL, *line = NULL, back[200] = "";
		size_t size = 0, room = 0, got;
		FILE *out = X(open_memstream)(&data, &size), *in;
		fpos_t place;

		for (int i = 0; i < 12; i++) {
			const char *s;

			begin_input(r);
			s = gen_string(r);
			put_int(r, X(fputs)(s, out));
			put_int(r, X(fputc)('0' + i, out));
			put_int(r, X(putc)('\n', out));
			put_int(r, X(fwrite)(s, 1, below(r, strlen(s) + 1), out));
			put_int(r, X(fprintf)(out, "<%d %.3f>\n", gen_int(r), (double)i));
			put_int(r, X(fputs_unlocked)("unlocked", out));
			put_int(r, X(fwrite_unlocked)(s, 1, strlen(s), out));
			put_int(r, X(fputc_unlocked)('x', out));
			put_int(r, X(putc_unlocked)('y', out));
			put_int(r, X(putw)(i, out));
			put_int(r, X(__fpending)(out));
		}
		put_int(r, X(fflush_unlocked)(out));
		put_int(r, X(ftell)(out));
		put_int(r, X(fflush)(out));
		put_int(r, X(__fbufsize)(out) > 0);
		put_int(r, X(__fwriting)(out) + 2 * X(__fwritable)(out) + 4 * X(__flbf)(out));
		put_int(r, X(fclose)(out));
		put(r, data, size);
		in = X(fmemopen)(data, size, "r");
		X(flockfile)(in);
		put_int(r, X(ftrylockfile)(in));
		X(funlockfile)(in);
		X(funlockfile)(in);
		put_int(r, X(__fsetlocking)(in, FSETLOCKING_QUERY));
		for (int i = 0; i < 10; i++) {
			put_int(r, X(fgetc)(in));
			put_int(r, X(getc)(in));
			put_int(r, X(ungetc)('u', in));
			put_text(r, X(fgets)(back, (int)below(r, 80) + 1, in));
			got = X(fread)(back, 1, below(r, 40), in);
			put(r, back, got);
			put_int(r, X(getline)(&line, &room, in));
			put_text(r, line);
			put_int(r, X(getdelim)(&line, &room, 'e', in));
			put_text(r, line);
			put_int(r, X(fgetc_unlocked)(in) + X(getc_unlocked)(in));
			put_text(r, X(fgets_unlocked)(back, 20, in));
			put(r, back, X(fread_unlocked)(back, 1, 3, in));
			put_int(r, X(getw)(in));
			put_int(r, X(__freading)(in) + 2 * X(__freadable)(in));
		}
		put_int(r, X(feof)(in) + 2 * X(ferror)(in));
		put_int(r, X(feof_unlocked)(in) + 2 * X(ferror_unlocked)(in));
		X(clearerr)(in);
		X(clearerr_unlocked)(in);
		put_int(r, X(fseek)(in, (long)below(r, size), SEEK_SET));
		put_int(r, X(fgetpos)(in, &place));
		put_int(r, X(fgetc)(in));
		put_int(r, X(fsetpos)(in, &place));
		put_int(r, X(fgetc)(in));
		put_int(r, X(fseeko)(in, -(off_t)below(r, size / 2), SEEK_END));
		put_int(r, X(ftello)(in));
		put_int(r, X(fscanf)(in, "%199s", back));
		put_text(r, back);
		X(rewind)(in);
		X(__fpurge)(in);
		put_int(r, X(fgetc)(in));
		put_int(r, fclose(in));
		free(line);
		free(data);
	}
}

struct cookie {
	char data[4096];
	size_t size, at;
};

static ssize_t cookie_read(void *opaque, char *to, size_t size)
{
	struct cookie *c = opaque;
	size_t left = c->size - c->at;

	size = size < left ? size : left;
	memcpy(to, c->data + c->at, size);
	c->at += size;
	return (ssize_t)size;
}

static ssize_t cookie_write(void *opaque, const char *from, size_t size)
{
	struct cookie *c = opaque;

	if (size > sizeof(c->data) - c->size)
		return -1;
	memcpy(c->data + c->size, from, size);
	c->size += size;
	return (ssize_t)size;
}

static void wide_streams(struct run *r)
{
	cookie_io_functions_t calls = { .read = cookie_read, .write = cookie_write };

	EACH
	{
		wchar_t *data = NULL, back[100], word[100] = L"";
		char buffer[128];
		size_t size = 0;
		FILE *out = X(open_wmemstream)(&data, &size), *in;
		struct cookie c = { .size = 0 };
		int number = 0;

		put_int(r, X(fwide)(out, 0) > 0);
		for (int i = 0; i < 10; i++) {
			put_int(r, X(fputwc)(L'a' + i, out));
			put_int(r, X(putwc)(L'-', out));
			put_int(r, X(fputws)(L"some \x20ac words\n", out));
			put_int(r, X(fwprintf)(out, L"%d %ls\n", gen_int(r), L"x"));
			put_int(r, X(fputwc_unlocked)(L'u', out));
			put_int(r, X(putwc_unlocked)(L'v', out));
			put_int(r, X(fputws_unlocked)(L"w\n", out));
		}
		put_int(r, fclose(out));
		put_wide(r, data);
		free(data);
		out = X(fopencookie)(&c, "w", calls);
		X(setvbuf)(out, buffer, below(r, 2) ? _IOFBF : _IOLBF, sizeof(buffer));
		for (int i = 0; i < 12; i++)
			put_int(r, fprintf(out, "%d line %d\n", gen_int(r), i));
		put_int(r, fclose(out));
		put(r, c.data, c.size);
		in = fopencookie(&c, "r", calls);
		X(setbuf)(in, NULL);
		put_int(r, fscanf(in, "%d line", &number));
		put_int(r, number + fgetc(in));
		put_int(r, fclose(in));
		in = X(fdopen)(memfd_create("wide", 0), "w+");
		X(setlinebuf)(in);
		X(setbuffer)(in, buffer, sizeof(buffer));
		put_int(r, X(fwide)(in, 1) > 0);
		for (int i = 0; i < 12; i++)
			put_int(r, fwprintf(in, L"%d line %d\n", gen_int(r), i));
		put_int(r, X(fileno)(in) > 0 && X(fileno_unlocked)(in) > 0);
		rewind(in);
		put_int(r, X(fgetwc)(in));
		put_int(r, X(getwc)(in));
		put_int(r, X(ungetwc)(L'q', in));
		put_wide(r, X(fgetws)(back, 60, in));
		put_int(r, X(fwscanf)(in, L"%d %99ls", &number, word));
		put_int(r, number);
		put_wide(r, word);
		put_int(r, X(fgetwc_unlocked)(in) + X(getwc_unlocked)(in));
		put_wide(r, X(fgetws_unlocked)(back, 60, in));
		put_int(r, fclose(in));
	}
}

/* ---- time, random numbers, addresses ---- */

static void put_tm(struct run *r, const struct tm *t)
{
	put(r, t, offsetof(struct tm, tm_isdst) + sizeof(t->tm_isdst));
}

static void times(struct run *r)
{
	EACH
	{
		static const char *const formats[] = {
			"%Y-%m-%d %H:%M:%S",
			"%a, %d %b %y %I:%M %p %j %U %W %V %G",
			"%c",
			"%x %X %D %F %T",
			"%s %z %e %k %l %n%t%%",
			"%Ec %Od %C %h %R %r %u %w %P",
		};
		time_t at = (time_t)(gen_long(r) % 100000000000ll);
		struct tm t, u = { 0 };
		char out[300] = "";
		wchar_t wide[300] = L"";
		const char *end;

		X(gmtime_r)(&at, &t);
		put_tm(r, &t);
		put_tm(r, X(gmtime)(&at));
		X(localtime_r)(&at, &t);
		put_tm(r, &t);
		put_tm(r, X(localtime)(&at));
		put_text(r, X(asctime_r)(&t, out));
		put_text(r, X(asctime)(&t));
		put_text(r, X(ctime_r)(&at, out));
		put_text(r, X(ctime)(&at));
		put_int(r, X(strftime)(out, sizeof(out), formats[input % 6], &t));
		put_text(r, out);
		put_int(r, X(strftime_l)(out, below(r, 60), formats[below(r, 6)], &t, r->locale));
		put_int(r, X(wcsftime)(wide, 300, L"%A %B %d %Y %H %Z", &t));
		put_wide(r, wide);
		t.tm_mday += gen_int(r) % 1000;
		t.tm_sec += gen_int(r) % 100000;
		t.tm_mon += gen_int(r) % 100;
		u = t;
		put_int(r, X(mktime)(&t));
		put_tm(r, &t);
		put_int(r, X(timegm)(&u));
		put_tm(r, &u);
		put_int(r, X(timelocal)(&u));
		strftime(out, sizeof(out), "%Y-%m-%d %H:%M:%S", &u);
		end = X(strptime)(out, "%Y-%m-%d %H:%M:%S", &u);
		put_int(r, end ? end - out : -1);
		put_tm(r, &u);
		end = X(strptime_l)("Tue, 29 Feb 2028 11:59 PM", "%a, %d %b %Y %I:%M %p", &u,
				    r->locale);
		put_int(r, end != NULL);
		put_tm(r, &u);
		put_d(r, X(difftime)(at, 12345));
		put_int(r, X(dysize)((int)below(r, 4000)));
		X(tzset)();
	}
}

static void random_numbers(struct run *r)
{
	FEW(20)
	{
		unsigned seed = (unsigned)rnd(r), step = seed;
		struct drand48_data d48 = { 0 };
		unsigned short x48[3] = { 1, 2, 3 }, p48[7] = { 1, 2, 3, 4, 5, 6, 7 };
		static char state[128], other[64];
		char *before;
		struct random_data data = { 0 };
		double d;
		long j;
		int32_t i32;

		for (int i = 0; i < 10; i++)
			put_int(r, X(rand_r)(&step));
		X(srand48_r)(seed, &d48);
		for (int i = 0; i < 5; i++) {
			X(drand48_r)(&d48, &d);
			put_d(r, d);
			X(erand48_r)(x48, &d48, &d);
			put_d(r, d);
			X(lrand48_r)(&d48, &j);
			put_int(r, j);
			X(nrand48_r)(x48, &d48, &j);
			put_int(r, j);
			X(mrand48_r)(&d48, &j);
			put_int(r, j);
			X(jrand48_r)(x48, &d48, &j);
			put_int(r, j);
		}
		X(seed48_r)(x48, &d48);
		X(lcong48_r)(p48, &d48);
		X(lrand48_r)(&d48, &j);
		put_int(r, j);
		X(initstate_r)(seed, state, sizeof(state), &data);
		X(srandom_r)(seed + 1, &data);
		for (int i = 0; i < 40; i++) {
			X(random_r)(&data, &i32);
			put_int(r, i32);
		}
		put_int(r, X(setstate_r)(state, &data));
		/* The global generators: nobody else in this process uses them. */
		X(srand)(seed);
		put_int(r, X(rand)());
		before = X(initstate)(seed, other, sizeof(other));
		X(srandom)(seed);
		put_int(r, X(random)());
		put_int(r, X(setstate)(before) != NULL);
		X(srand48)(seed);
		put_d(r, X(drand48)());
		put_int(r, X(lrand48)() + X(mrand48)());
		put_d(r, X(erand48)(x48));
		put_int(r, X(nrand48)(x48) + X(jrand48)(x48));
		X(seed48)(x48);
		X(lcong48)(p48);
		put_int(r, lrand48());
	}
}

static void addresses(struct run *r)
{
	int (*nsap)(const char *, unsigned char *, int) = find("libc.so.6", "inet_nsap_addr");

	EACH
	{
		char out[INET6_ADDRSTRLEN + 40] = "", name[64];
		unsigned char binary[64] = "";
		struct in_addr a = { (uint32_t)rnd(r) }, b = { 0 };
		struct ether_addr e, *found;
		unsigned short groups[8];

		put_text(r, X(inet_ntop)(AF_INET, &a, out, sizeof(out)));
		put_int(r, X(inet_pton)(AF_INET, out, binary));
		put_int(r, X(inet_aton)(out, &b));
		put_int(r, X(inet_addr)(out) + X(inet_network)(out));
		put_text(r, X(inet_ntoa)(a));
		put_int(r, X(inet_lnaof)(a) + X(inet_netof)(a));
		put_int(r, X(inet_makeaddr)(127, (uint32_t)rnd(r)).s_addr);
		for (int i = 0; i < 8; i++)
			groups[i] = below(r, 3) ? 0 : (unsigned short)rnd(r);
		put_text(r, X(inet_ntop)(AF_INET6, groups, out, sizeof(out)));
		put_int(r, X(inet_pton)(AF_INET6, out, binary));
		put(r, binary, 16);
		bytes(r, (unsigned char *)&e, sizeof(e));
		put_text(r, X(ether_ntoa_r)(&e, out));
		found = X(ether_aton_r)(out, &e);
		put(r, found, sizeof(e));
		put_text(r, X(ether_ntoa)(X(ether_aton)(out)));
		snprintf(name, sizeof(name), "%.20s host%u # text", out, (unsigned)below(r, 50));
		put_int(r, X(ether_line)(name, &e, out));
		put_int(r, nsap ? nsap("0x47.0005.80ff.ff00", binary, 20) : 0);
		put(r, binary, 16);
	}
}

/* ---- patterns ---- */

static const char *const patterns[] = {
	"a*b",	       "[a-c]\\{2,3\\}", "\\(a\\|b\\)*c",
	"^.*e$",       "x\\{0,1\\}y*",	 "[[:alpha:]][[:digit:]]*",
	"\\(a.\\)\\1", "[^ab]+",	 "",
	"a.*b.*c",     "\\<the\\>",	 "q[^ ]*k",
};
static const char *const extended[] = {
	"(a|b)*c",	    "a{2,5}",	 "^(.*)e$",
	"([a-e]+)([0-9]*)", "(ab|ba)+",	 "[[:space:]]+[^[:space:]]",
	"(a)(b)?",	    "x*",	 "(.)(.)(.)",
	"a.c|b.d",	    "\\bthe\\b", "(the|quick).*(fox|,)",
};

static void regular_expressions(struct run *r)
{
	EACH
	{
		regex_t pattern;
		regmatch_t found[5];
		char out[120];
		const char *s;
		int flags = (below(r, 2) ? REG_EXTENDED : 0) | (below(r, 2) ? REG_ICASE : 0);
		const char *source = flags & REG_EXTENDED ? extended[below(r, 12)] :
							    patterns[below(r, 12)];
		int error;

		begin_input(r);
		s = gen_string(r);
		error = X(regcomp)(&pattern, source, flags | (below(r, 4) ? 0 : REG_NEWLINE));
		put_int(r, error);
		if (error)
			continue;
		put_int(r, pattern.re_nsub);
		memset(found, 0, sizeof(found));
		error = X(regexec)(&pattern, s, 5, found, below(r, 3) ? 0 : REG_NOTBOL);
		put_int(r, error);
		if (!error)
			put(r, found, sizeof(found));
		put_int(r, X(regerror)(error, &pattern, out, sizeof(out)));
		put_text(r, out);
		X(regfree)(&pattern);
		error = X(regcomp)(&pattern, "a\\{1,", 0);
		X(regerror)(error, &pattern, out, sizeof(out));
		put_text(r, out);
		end_input(r);
	}
}

static void gnu_expressions(struct run *r)
{
	EACH
	{
		struct re_pattern_buffer buffer = { 0 };
		struct re_registers registers = { 0 };
		const char *s, *source = extended[below(r, 12)];
		int length, place;

		begin_input(r);
		s = gen_string(r);
		length = (int)strlen(s);
		X(re_set_syntax)(RE_SYNTAX_POSIX_EXTENDED);
		buffer.fastmap = malloc(256);
		put_text(r, X(re_compile_pattern)(source, strlen(source), &buffer));
		put_int(r, X(re_compile_fastmap)(&buffer));
		put(r, buffer.fastmap, 256);
		place = X(re_search)(&buffer, s, length, 0, length, &registers);
		put_int(r, place);
		for (unsigned i = 0; place >= 0 && i < registers.num_regs; i++)
			put_int(r, registers.start[i] * 1000 + registers.end[i]);
		put_int(r,
			X(re_match)(&buffer, s, length, (int)below(r, (uint64_t)length + 1), NULL));
		put_int(r, X(re_search_2)(&buffer, "the ", 4, s, length, 0, length + 4, NULL,
					  length + 4));
		put_int(r, X(re_match_2)(&buffer, "ab", 2, s, length, 0, NULL, length + 2));
		free(registers.start);
		free(registers.end);
		regfree(&buffer);
		source = X(re_comp)(patterns[below(r, 8)]);
		put_text(r, source);
		if (!source)
			put_int(r, X(re_exec)(s));
		end_input(r);
	}
}

static void globs(struct run *r)
{
	static const char *const shapes[] = {
		"*",   "?b*", "[a-c]*[!x]", "*a*b*",  "**/x",  "[[:digit:]]*",
		"\\*", "a?c", "*.[ch]",	    "+(a|b)", "!(x*)", "@(a|ab)*",
	};
	static const char *const words[] = {
		"a b c",   "$HOME ~",	   "'single $x' \"double\"", "${UNSET:-default} x",
		"a\\ b c", "$((3 + 4)) x",
	};

	EACH
	{
		const char *s;
		wordexp_t expanded = { 0 };
		int code;

		begin_input(r);
		s = gen_string(r);
		for (int i = 0; i < 12; i++)
			put_int(r, X(fnmatch)(shapes[i], s,
					      (int)below(r, 32) | (i > 8 ? FNM_EXTMATCH : 0)));
		end_input(r);
		code = X(wordexp)(words[below(r, 6)], &expanded, WRDE_NOCMD);
		put_int(r, code);
		for (size_t i = 0; !code && i < expanded.we_wordc; i++)
			put_text(r, strchr(expanded.we_wordv[i], '/') ? "" : expanded.we_wordv[i]);
		X(wordfree)(&expanded);
	}
	FEW(2)
	{
		static const char *const places[] = { "/usr/include/s*[dt].h",
						      "/usr/{include,lib}/std*.h" };
		glob_t found = { 0 };

		put_int(r, X(glob)(places[input], GLOB_BRACE, NULL, &found));
		for (size_t i = 0; i < found.gl_pathc; i++)
			put_text(r, found.gl_pathv[i]);
		X(globfree)(&found);
	}
}

/* ---- vectors of strings, obstacks, the heap ---- */

static void vectors(struct run *r)
{
	EACH
	{
		char *argz = NULL, *envz = NULL, *more = NULL, *words[20];
		size_t size = 0, envz_size = 0, more_size = 0;
		unsigned replaced = 0;
		char *entry = NULL, flat[2000];

		begin_input(r);
		put_int(r, X(argz_create_sep)(gen_string(r), 'e', &argz, &size));
		put_int(r, X(argz_add)(&argz, &size, gen_string(r)));
		put_int(r, X(argz_add_sep)(&argz, &size, gen_string(r), ' '));
		put_int(r, X(argz_count)(argz, size));
		put_int(r, X(argz_append)(&argz, &size, "one\0two", 8));
		entry = X(argz_next)(argz, size, NULL);
		put_text(r, entry);
		entry = argz && size ? X(argz_next)(argz, size, entry) : NULL;
		put_text(r, entry);
		put_int(r, X(argz_insert)(&argz, &size, entry, "inserted"));
		put_int(r, X(argz_replace)(&argz, &size, "a", "bcd", &replaced));
		put_int(r, replaced);
		entry = argz_next(argz, size, NULL);
		if (entry)
			X(argz_delete)(&argz, &size, entry);
		put(r, argz, size);
		if (X(argz_count)(argz, size) < 19) {
			X(argz_extract)(argz, size, words);
			for (int i = 0; words[i]; i++)
				put_text(r, words[i]);
		}
		if (size && size < sizeof(flat)) {
			memcpy(flat, argz, size);
			X(argz_stringify)(flat, size, ',');
			put_text(r, flat);
		}
		end_input(r);
		for (int i = 0; i < 12; i++) {
			char name[8], value[8];

			snprintf(name, sizeof(name), "n%d", (int)below(r, 9));
			snprintf(value, sizeof(value), "v%d", (int)below(r, 99));
			put_int(r,
				X(envz_add)(i % 3 ? &envz : &more, i % 3 ? &envz_size : &more_size,
					    name, i % 4 ? value : NULL));
		}
		put_int(r, X(envz_merge)(&envz, &envz_size, more, more_size, (int)below(r, 2)));
		put_text(r, X(envz_get)(envz, envz_size, "n3"));
		put_text(r, X(envz_entry)(envz, envz_size, "n4"));
		X(envz_remove)(&envz, &envz_size, "n5");
		X(envz_strip)(&envz, &envz_size);
		put(r, envz, envz_size);
		free(argz);
		free(envz);
		free(more);
		words[0] = "one";
		words[1] = "two";
		words[2] = NULL;
		X(argz_create)(words, &argz, &size);
		put(r, argz, size);
		free(argz);
	}
}

#define obstack_chunk_alloc malloc
#define obstack_chunk_free free

static void obstacks(struct run *r)
{
	int (*begin)(struct obstack *, size_t, size_t, void *(*)(size_t), void (*)(void *)) =
		find("libc.so.6", "_obstack_begin");
	void (*free_to)(struct obstack *, void *) = find("libc.so.6", "obstack_free");

	touch("_obstack_newchunk", (void *)_obstack_newchunk);
	EACH
	{
		struct obstack stack;
		char *first;

		begin(&stack, 200, 0, malloc, free);
		first = obstack_alloc(&stack, 10);
		for (int i = 0; i < 60; i++) {
			put_int(r, X(obstack_printf)(&stack, "%d-%x ", gen_int(r), i));
			obstack_grow(&stack, "some bytes", 1 + below(r, 9));
			obstack_1grow(&stack, 0);
			put_text(r, obstack_finish(&stack));
		}
		put_int(r, X(_obstack_allocated_p)(&stack, first));
		put_int(r, X(_obstack_memory_used)(&stack) > 0);
		free_to(&stack, first);
		free_to(&stack, NULL);
	}
}

static void heap(struct run *r)
{
	EACH
	{
		unsigned char *p[24] = { 0 };
		void *aligned = NULL;

		for (int i = 0; i < 200; i++) {
			int k = (int)below(r, 24);
			size_t size = 1 + below(r, below(r, 4) ? 300 : 300000);

			X(free)(p[k]);
			switch (below(r, 9)) {
			case 0:
				p[k] = X(calloc)(size, 1);
				break;
			case 1:
				p[k] = X(realloc)(X(malloc)(size / 2 + 1), size);
				break;
			case 2:
				p[k] = X(aligned_alloc)(64, (size + 63) / 64 * 64);
				put_int(r, (uintptr_t)p[k] % 64);
				break;
			case 3:
				put_int(r, X(posix_memalign)(&aligned, 4096, size));
				p[k] = aligned;
				put_int(r, (uintptr_t)p[k] % 4096);
				break;
			case 4:
				p[k] = X(memalign)(256, size);
				break;
			case 5:
				p[k] = X(valloc)(size);
				break;
			case 6:
				p[k] = X(pvalloc)(size);
				break;
			case 7:
				p[k] = X(reallocarray)(NULL, size, 1);
				break;
			default:
				p[k] = X(malloc)(size);
			}
			put_int(r, X(malloc_usable_size)(p[k]) >= size);
			memset(p[k], k, size);
			put_int(r, p[k][size - 1]);
		}
		for (int k = 0; k < 24; k++)
			free(p[k]);
	}
	put_int(r, X(mallinfo2)().uordblks > 0);
	put_int(r, X(mallopt)(M_TOP_PAD, 131072));
	X(malloc_trim)(0);
}

/* ---- character sets, messages, names ---- */

static void character_sets(struct run *r)
{
	static const char *const sets[] = {
		"ISO-8859-1",  "ISO-8859-15", "UTF-16", "UTF-16BE",	   "UCS-4LE",
		"UTF-7",       "CP1252",      "KOI8-R", "EUC-JP",	   "SHIFT_JIS",
		"GB18030",     "BIG5",	      "EUC-KR", "ASCII//TRANSLIT", "UTF-8//IGNORE",
		"ISO-2022-JP", "IBM850",      "UTF-32",
	};

	FEW(40)
	{
		const char *set = sets[input % 18];
		iconv_t to = X(iconv_open)(set, "UTF-8"), from = X(iconv_open)("UTF-8", set);
		char source[400], middle[2000] = "", back[2000] = "";
		char *in = source, *out = middle;
		size_t size = 0, room = sizeof(middle), left;

		put_int(r, to != (iconv_t)-1);
		if (to == (iconv_t)-1)
			continue;
		while (size < 300) {
			wchar_t c = (wchar_t)gen_wchar(r);

			if (c && (c < 0xd800 || c >= 0xe000)) {
				mbstate_t state = { 0 };
				locale_t before = uselocale(r->locale);
				size_t more = wcrtomb(source + size, c, &state);

				uselocale(before);
				size += more < 8 ? more : 0;
			}
		}
		errno = 0;
		left = size;
		while (left && room > 20) {
			if (X(iconv)(to, &in, &left, &out, &room) == (size_t)-1) {
				put_int(r, errno * 1000 + (int64_t)left);
				if (errno == E2BIG)
					break;
				in++; /* what this set does not have */
				left--;
			}
		}
		X(iconv)(to, NULL, NULL, &out, &room);
		size = sizeof(middle) - room;
		put(r, middle, size);
		in = middle;
		out = back;
		room = sizeof(back);
		put_int(r, (int64_t)X(iconv)(from, &in, &size, &out, &room));
		put(r, back, sizeof(back) - room);
		put_int(r, X(iconv_close)(to) + X(iconv_close)(from));
	}
}

static void messages(struct run *r)
{
	char out[200];

	FEW(60)
	{
		int number = (int)below(r, 140);
		const char *name;

		put_text(r, X(strerror)(number));
		put_text(r, X(strerror_r)(number, out, sizeof(out)));
		put_text(r, X(strerror_l)(number, r->locale));
		put_text(r, X(strerrorname_np)(number));
		put_text(r, X(strerrordesc_np)(number));
		put_text(r, X(strsignal)(number % 64));
		name = X(sigabbrev_np)(number % 64);
		put_text(r, name ? name : "none");
		put_text(r, X(sigdescr_np)(number % 64));
		put_text(r, X(gai_strerror)(-number % 12));
		put_text(r, X(hstrerror)(number % 6));
		put_int(r, X(__xpg_strerror_r)(number, out, below(r, 40)));
		put_text(r, X(nl_langinfo)(_NL_ITEM(LC_TIME, number % 40)));
		put_text(r, X(nl_langinfo_l)(CODESET, r->locale));
		put_text(r, X(gettext)("No such file or directory"));
		put_text(r, X(dgettext)("libc", "Success"));
		put_text(r, X(dcgettext)("libc", "Success", LC_MESSAGES));
		put_text(r, X(ngettext)("%d file", "%d files", (unsigned long)number));
		put_text(r, X(dngettext)("libc", "one", "many", (unsigned long)number));
		put_text(r, X(dcngettext)("libc", "a", "b", (unsigned long)number, LC_MESSAGES));
	}
	put_text(r, X(textdomain)("textpoke"));
	put_text(r, X(bindtextdomain)("textpoke", "/nonexistent"));
	put_text(r, X(bind_textdomain_codeset)("textpoke", "UTF-8"));
	put_text(r, X(gnu_get_libc_version)());
}

static void locales(struct run *r)
{
	FEW(10)
	{
		locale_t one = X(newlocale)(LC_ALL_MASK, input % 2 ? "C" : "C.UTF-8", NULL);
		locale_t two = X(duplocale)(one), before = X(uselocale)(two);
		struct lconv *c = X(localeconv)();

		put_text(r, c->decimal_point);
		put_text(r, c->thousands_sep);
		put_int(r, MB_CUR_MAX);
		X(uselocale)(before);
		X(freelocale)(two);
		X(freelocale)(one);
		put_text(r, X(setlocale)(LC_CTYPE, NULL));
	}
}

static void names(struct run *r)
{
	static char *const keys[] = { "ro", "rw", "name", NULL };
	static const struct option options[] = {
		{ "alpha", no_argument, NULL, 'a' },
		{ "beta", required_argument, NULL, 'b' },
		{ "gamma", optional_argument, NULL, 'g' },
		{ 0 },
	};

	EACH
	{
		char line[64], out[PATH_MAX], *rest = line, *value;
		char *words[] = { "prog",  "-a",      "file", "--beta=7", "-b",	 "3",
				  "--gam", "--alpha", "-x",   "--",	  "end", NULL };
		int code, kind = input % 3, many = 11;

		snprintf(line, sizeof(line), "rw,name=%d,ro,odd", gen_int(r));
		while (*rest) {
			put_int(r, X(getsubopt)(&rest, keys, &value));
			put_text(r, value);
		}
		optind = 0;
		opterr = 0;
		do {
			code = kind == 0 ?
				       X(getopt)(many, words, "ab:g::") :
			       kind == 1 ?
				       X(getopt_long)(many, words, "ab:g::", options, NULL) :
				       X(getopt_long_only)(many, words, "ab:g::", options, NULL);
			put_int(r, code * 100 + optind);
			put_text(r, code > 0 ? optarg : NULL);
		} while (code != -1);
		put_text(r, X(realpath)("/usr/bin/../lib/./", out));
		value = X(canonicalize_file_name)("/usr/share/../bin");
		put_text(r, value);
		free(value);
		put_int(r, (int64_t)X(confstr)(_CS_PATH, out, sizeof(out)));
		put_text(r, out);
		put_int(r, X(sysconf)(_SC_PAGESIZE) + X(getpagesize)() + X(getdtablesize)());
		put_int(r, X(pathconf)("/", _PC_NAME_MAX));
		put_text(r, X(getenv)("TZ"));
		put_text(r, X(secure_getenv)("TZ"));
		put_int(r, X(setenv)("TEXTPOKE_D", line, 1));
		put_text(r, getenv("TEXTPOKE_D"));
		put_int(r, X(unsetenv)("TEXTPOKE_D"));
		put_int(r, X(getauxval)(6));
		put_int(r, X(toascii)(input));
	}
}

/* ---- signals, jumps, contexts ---- */

static void signal_sets(struct run *r)
{
	EACH
	{
		sigset_t a, b, c;

		X(sigemptyset)(&a);
		X(sigfillset)(&b);
		for (int i = 0; i < 20; i++) {
			put_int(r, X(sigaddset)(&a, 1 + (int)below(r, 64)));
			put_int(r, X(sigdelset)(&b, 1 + (int)below(r, 64)));
			put_int(r, X(sigismember)(&a, 1 + (int)below(r, 64)));
		}
		put_int(r, X(sigandset)(&c, &a, &b));
		put(r, &c, 8);
		put_int(r, X(sigorset)(&c, &a, &b));
		put(r, &c, 8);
		put_int(r, X(sigisemptyset)(&c));
	}
}

static void jumps(struct run *r)
{
	touch("_setjmp", (void *)_setjmp);
	touch("__sigsetjmp", (void *)__sigsetjmp);
	EACH
	{
		jmp_buf plain;
		sigjmp_buf with_mask;
		volatile int count = 0, code;

		code = _setjmp(plain);
		put_int(r, code);
		count++;
		if (count < 4)
			X(longjmp)(plain, count + input);
		code = sigsetjmp(with_mask, 1);
		put_int(r, code);
		if (count++ < 8)
			X(siglongjmp)(with_mask, 100 + count);
		code = _setjmp(plain);
		put_int(r, code);
		if (count++ < 12)
			X(_longjmp)(plain, 200 + count);
	}
}

static ucontext_t here, there;
static int context_sum;

static void in_context(int a, int b)
{
	context_sum += a * 10 + b;
	X(swapcontext)(&there, &here);
	context_sum += a - b;
}

static void contexts(struct run *r)
{
	static char stack[65536];

	EACH
	{
		context_sum = 0;
		X(getcontext)(&there);
		there.uc_stack.ss_sp = stack;
		there.uc_stack.ss_size = sizeof(stack);
		there.uc_link = &here;
		X(makecontext)(&there, (void (*)(void))in_context, 2, input, (int)below(r, 50));
		put_int(r, X(swapcontext)(&here, &there));
		put_int(r, context_sum);
		put_int(r, X(swapcontext)(&here, &there));
		put_int(r, context_sum);
	}
}

static __attribute__((noinline)) int deep(int n)
{
	void *frames[64];

	if (n)
		return deep(n - 1) + 1;
	return X(backtrace)(frames, 64) * 1000;
}

static int by_depth(const void *a, const void *b)
{
	void *frames[64];

	comparing->digest += (uint64_t)X(backtrace)(frames, 64);
	return by_value(a, b);
}

static void backtraces(struct run *r)
{
	comparing = r;
	FEW(8)
	{
		uint32_t values[20];
		void *frames[4];
		char **lines;

		put_int(r, deep((int)below(r, 20)));
		for (int i = 0; i < 20; i++)
			values[i] = (uint32_t)rnd(r);
		qsort(values, 20, 4, by_depth);
		put(r, values, sizeof(values));
		lines = X(backtrace_symbols)(frames, X(backtrace)(frames, 4));
		put_int(r, lines != NULL);
		free(lines);
	}
}

/* ---- threads and what they wait for ---- */

static void attributes(struct run *r)
{
	FEW(20)
	{
		pthread_attr_t a;
		pthread_mutexattr_t m;
		pthread_condattr_t c;
		pthread_rwlockattr_t w;
		pthread_barrierattr_t b;
		struct sched_param param = { 0 };
		clockid_t clock;
		cpu_set_t cpus;
		sigset_t mask;
		size_t size = 0;
		void *stack;
		int i = 0, choice = (int)below(r, 2);

		put_int(r, X(pthread_attr_init)(&a));
		put_int(r, X(pthread_attr_setdetachstate)(&a, choice));
		put_int(r, X(pthread_attr_getdetachstate)(&a, &i) + i);
		put_int(r, X(pthread_attr_setguardsize)(&a, 4096 * below(r, 9)));
		put_int(r, X(pthread_attr_getguardsize)(&a, &size));
		put_int(r, (int64_t)size);
		put_int(r, X(pthread_attr_setinheritsched)(&a, choice));
		put_int(r, X(pthread_attr_getinheritsched)(&a, &i) + i);
		put_int(r, X(pthread_attr_setschedpolicy)(&a, (int)below(r, 4)));
		put_int(r, X(pthread_attr_getschedpolicy)(&a, &i) + i);
		param.sched_priority = (int)below(r, 99);
		put_int(r, X(pthread_attr_setschedparam)(&a, &param));
		put_int(r, X(pthread_attr_getschedparam)(&a, &param));
		put_int(r, param.sched_priority);
		put_int(r, X(pthread_attr_setscope)(&a, choice));
		put_int(r, X(pthread_attr_getscope)(&a, &i) + i);
		put_int(r, X(pthread_attr_setstacksize)(&a, below(r, 1 << 20)));
		put_int(r, X(pthread_attr_getstacksize)(&a, &size));
		put_int(r, (int64_t)size);
		put_int(r, X(pthread_attr_setstack)(&a, (void *)0x10000, 1 << 20));
		put_int(r, X(pthread_attr_getstack)(&a, &stack, &size));
		put_int(r, (int64_t)stack + (int64_t)size);
		CPU_ZERO(&cpus);
		CPU_SET(below(r, 30), &cpus);
		put_int(r, X(pthread_attr_setaffinity_np)(&a, sizeof(cpus), &cpus));
		put_int(r, X(pthread_attr_getaffinity_np)(&a, sizeof(cpus), &cpus));
		put(r, &cpus, 8);
		sigemptyset(&mask);
		put_int(r, X(pthread_attr_setsigmask_np)(&a, &mask));
		put_int(r, X(pthread_attr_getsigmask_np)(&a, &mask));
		put_int(r, X(pthread_attr_destroy)(&a));
		put_int(r, X(pthread_mutexattr_init)(&m));
		put_int(r, X(pthread_mutexattr_settype)(&m, (int)below(r, 5)));
		put_int(r, X(pthread_mutexattr_gettype)(&m, &i) + i);
		put_int(r, X(pthread_mutexattr_setpshared)(&m, choice));
		put_int(r, X(pthread_mutexattr_getpshared)(&m, &i) + i);
		put_int(r, X(pthread_mutexattr_setprotocol)(&m, (int)below(r, 4)));
		put_int(r, X(pthread_mutexattr_getprotocol)(&m, &i) + i);
		put_int(r, X(pthread_mutexattr_setrobust)(&m, choice));
		put_int(r, X(pthread_mutexattr_getrobust)(&m, &i) + i);
		put_int(r, X(pthread_mutexattr_setprioceiling)(&m, 1 + (int)below(r, 90)));
		put_int(r, X(pthread_mutexattr_getprioceiling)(&m, &i) + i);
		put_int(r, X(pthread_mutexattr_destroy)(&m));
		put_int(r, X(pthread_condattr_init)(&c));
		put_int(r, X(pthread_condattr_setclock)(&c, (int)below(r, 3)));
		put_int(r, X(pthread_condattr_getclock)(&c, &clock) + clock);
		put_int(r, X(pthread_condattr_setpshared)(&c, choice));
		put_int(r, X(pthread_condattr_getpshared)(&c, &i) + i);
		put_int(r, X(pthread_condattr_destroy)(&c));
		put_int(r, X(pthread_rwlockattr_init)(&w));
		put_int(r, X(pthread_rwlockattr_setkind_np)(&w, (int)below(r, 3)));
		put_int(r, X(pthread_rwlockattr_getkind_np)(&w, &i) + i);
		put_int(r, X(pthread_rwlockattr_setpshared)(&w, choice));
		put_int(r, X(pthread_rwlockattr_getpshared)(&w, &i) + i);
		put_int(r, X(pthread_rwlockattr_destroy)(&w));
		put_int(r, X(pthread_barrierattr_init)(&b));
		put_int(r, X(pthread_barrierattr_setpshared)(&b, choice));
		put_int(r, X(pthread_barrierattr_getpshared)(&b, &i) + i);
		put_int(r, X(pthread_barrierattr_destroy)(&b));
		put_int(r, X(sched_get_priority_max)(choice) + X(sched_get_priority_min)(choice));
		put_int(r, X(__sched_cpucount)(sizeof(cpus), &cpus));
		X(__sched_cpufree)(X(__sched_cpualloc)(200));
	}
}

static pthread_mutex_t shared_lock = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t shared_word = PTHREAD_COND_INITIALIZER;
static pthread_barrier_t shared_barrier;
static sem_t shared_count;
static uint64_t shared_sum;
static int shared_done;
static pthread_key_t shared_key;
static __thread uint64_t own;
static pthread_once_t once = PTHREAD_ONCE_INIT;
static once_flag other_once = ONCE_FLAG_INIT;

static void nothing(void)
{
}

static void at_end(void *value)
{
	__atomic_fetch_add(&shared_sum, (uint64_t)(uintptr_t)value, __ATOMIC_RELAXED);
}

static void cleanup(void *value)
{
	*(int *)value += 7;
}

static void *in_thread(void *opaque)
{
	uint64_t number = (uint64_t)(uintptr_t)opaque;
	int old, undone = 0;

	own = number;
	X(pthread_setspecific)(shared_key, (void *)(uintptr_t)(number + 1));
	X(pthread_once)(&once, nothing);
	X(pthread_setcancelstate)(PTHREAD_CANCEL_DISABLE, &old);
	X(pthread_setcanceltype)(PTHREAD_CANCEL_DEFERRED, &old);
	X(pthread_setcancelstate)(PTHREAD_CANCEL_ENABLE, &old);
	X(pthread_testcancel)();
	pthread_cleanup_push(cleanup, &undone);
	for (int i = 0; i < 20; i++) {
		X(pthread_mutex_lock)(&shared_lock);
		shared_sum += number * (uint64_t)i +
			      (uint64_t)(uintptr_t)X(pthread_getspecific)(shared_key);
		X(pthread_mutex_unlock)(&shared_lock);
	}
	pthread_cleanup_pop(1);
	X(pthread_barrier_wait)(&shared_barrier);
	X(pthread_barrier_wait)(&shared_barrier); /* the lock is taken: somebody will wait */
	X(pthread_mutex_lock)(&shared_lock);
	shared_done++;
	shared_sum += (uint64_t)undone;
	X(pthread_cond_signal)(&shared_word);
	X(pthread_mutex_unlock)(&shared_lock);
	X(sem_post)(&shared_count);
	if (number % 2)
		X(pthread_exit)((void *)(uintptr_t)(own * 3));
	return (void *)(uintptr_t)(own * 2);
}

static int in_c11_thread(void *opaque)
{
	X(thrd_yield)();
	return (int)(uintptr_t)opaque * 5;
}

static void *cancelled(void *opaque)
{
	int *count = opaque;

	pthread_cleanup_push(cleanup, count);
	for (;;)
		X(usleep)(1000);
	pthread_cleanup_pop(0);
	return NULL;
}

static void threads(struct run *r)
{
	FEW(3)
	{
		pthread_t thread[3], victim;
		thrd_t other;
		pthread_attr_t a;
		void *result;
		int code = 0, count = 0;
		struct timespec past = { 1, 0 };

		shared_sum = shared_done = 0;
		put_int(r, X(pthread_key_create)(&shared_key, at_end));
		put_int(r, X(pthread_barrier_init)(&shared_barrier, NULL, 4));
		put_int(r, X(sem_init)(&shared_count, 0, 0));
		X(pthread_attr_init)(&a);
		X(pthread_attr_setstacksize)(&a, 256 << 10);
		for (uintptr_t i = 0; i < 3; i++)
			put_int(r, X(pthread_create)(&thread[i], &a, in_thread, (void *)i));
		put_int(r, X(pthread_barrier_wait)(&shared_barrier) <= 0);
		X(pthread_mutex_lock)(&shared_lock);
		put_int(r, X(pthread_barrier_wait)(&shared_barrier) <= 0);
		while (shared_done < 3)
			X(pthread_cond_wait)(&shared_word, &shared_lock);
		put_int(r, X(pthread_cond_timedwait)(&shared_word, &shared_lock, &past));
		put_int(r, X(pthread_cond_clockwait)(&shared_word, &shared_lock, CLOCK_MONOTONIC,
						     &past));
		X(pthread_mutex_unlock)(&shared_lock);
		for (int i = 0; i < 3; i++) {
			put_int(r, X(sem_wait)(&shared_count));
			put_int(r, X(pthread_join)(thread[i], &result));
			put_int(r, (int64_t)(uintptr_t)result);
		}
		put_int(r, (int64_t)shared_sum);
		put_int(r, X(sem_trywait)(&shared_count));
		put_int(r, X(sem_timedwait)(&shared_count, &past));
		put_int(r, X(sem_clockwait)(&shared_count, CLOCK_MONOTONIC, &past));
		X(sem_post)(&shared_count);
		put_int(r, X(sem_getvalue)(&shared_count, &code) + code);
		put_int(r, X(sem_destroy)(&shared_count));
		put_int(r, X(pthread_barrier_destroy)(&shared_barrier));
		put_int(r, X(pthread_key_delete)(shared_key));
		/* Cancelled in a system call: the unwinder walks over our frames. */
		put_int(r, X(pthread_create)(&victim, &a, cancelled, &count));
		X(usleep)(2000);
		put_int(r, X(pthread_cancel)(victim));
		put_int(r, X(pthread_join)(victim, &result));
		put_int(r, result == PTHREAD_CANCELED);
		put_int(r, count);
		X(pthread_attr_destroy)(&a);
		put_int(r, X(thrd_create)(&other, in_c11_thread, (void *)(uintptr_t)input));
		put_int(r, X(thrd_join)(other, &code));
		put_int(r, code);
		X(call_once)(&other_once, nothing);
		put_int(r, X(pthread_equal)(X(pthread_self)(), pthread_self()));
		put_int(r, X(thrd_equal)(X(thrd_current)(), thrd_current()));
	}
}

static void locks(struct run *r)
{
	EACH
	{
		pthread_mutex_t m;
		pthread_mutexattr_t a;
		pthread_rwlock_t w;
		pthread_spinlock_t s;
		pthread_cond_t c;
		mtx_t x;
		cnd_t y;
		tss_t k;
		struct timespec past = { 1, 0 }, nap = { 0, 1 };
		int kind = (int)below(r, 3);

		pthread_mutexattr_init(&a);
		pthread_mutexattr_settype(&a, kind);
		put_int(r, X(pthread_mutex_init)(&m, &a));
		put_int(r, X(pthread_mutex_lock)(&m));
		put_int(r, X(pthread_mutex_trylock)(&m));
		put_int(r, X(pthread_mutex_timedlock)(&m, &past));
		put_int(r, X(pthread_mutex_clocklock)(&m, CLOCK_MONOTONIC, &past));
		for (int i = 0; i < (kind == PTHREAD_MUTEX_RECURSIVE ? 4 : 1); i++)
			put_int(r, X(pthread_mutex_unlock)(&m));
		put_int(r, X(pthread_mutex_consistent)(&m));
		put_int(r, X(pthread_mutex_destroy)(&m));
		put_int(r, X(pthread_rwlock_init)(&w, NULL));
		put_int(r, X(pthread_rwlock_rdlock)(&w));
		put_int(r, X(pthread_rwlock_tryrdlock)(&w));
		put_int(r, X(pthread_rwlock_trywrlock)(&w));
		put_int(r, X(pthread_rwlock_timedwrlock)(&w, &past));
		put_int(r, X(pthread_rwlock_unlock)(&w) + X(pthread_rwlock_unlock)(&w));
		put_int(r, X(pthread_rwlock_wrlock)(&w));
		put_int(r, X(pthread_rwlock_timedrdlock)(&w, &past));
		put_int(r, X(pthread_rwlock_clockrdlock)(&w, CLOCK_MONOTONIC, &past));
		put_int(r, X(pthread_rwlock_unlock)(&w));
		put_int(r, X(pthread_rwlock_destroy)(&w));
		put_int(r, X(pthread_spin_init)(&s, 0) + X(pthread_spin_lock)(&s));
		put_int(r, X(pthread_spin_trylock)(&s));
		put_int(r, X(pthread_spin_unlock)(&s) + X(pthread_spin_destroy)(&s));
		put_int(r, X(pthread_cond_init)(&c, NULL) + X(pthread_cond_signal)(&c));
		put_int(r, X(pthread_cond_broadcast)(&c) + X(pthread_cond_destroy)(&c));
		put_int(r, X(mtx_init)(&x, mtx_timed) + X(mtx_lock)(&x));
		put_int(r, X(mtx_trylock)(&x) * 10 + X(mtx_timedlock)(&x, &past));
		put_int(r, X(mtx_unlock)(&x));
		X(mtx_destroy)(&x);
		put_int(r, X(cnd_init)(&y) + X(cnd_signal)(&y) + X(cnd_broadcast)(&y));
		X(cnd_destroy)(&y);
		put_int(r, X(tss_create)(&k, NULL) + X(tss_set)(k, &x));
		put_int(r, X(tss_get)(k) == &x);
		X(tss_delete)(k);
		if (!input)
			put_int(r, X(thrd_sleep)(&nap, NULL) + X(nanosleep)(&nap, NULL));
	}
}

/* ---- the floating-point environment ---- */

static void environments(struct run *r)
{
	static const int rounds[] = { FE_TONEAREST, FE_UPWARD, FE_DOWNWARD, FE_TOWARDZERO };

	EACH
	{
		fenv_t e;
		fexcept_t x;
		femode_t m;
		int raised = (int)below(r, 64) & FE_ALL_EXCEPT;

		put_int(r, X(fegetenv)(&e));
		put_int(r, X(feclearexcept)(FE_ALL_EXCEPT));
		put_int(r, X(feraiseexcept)(raised));
		put_int(r, X(fetestexcept)(FE_ALL_EXCEPT));
		put_int(r, X(fegetexceptflag)(&x, FE_ALL_EXCEPT));
		put_int(r, X(fetestexceptflag)(&x, FE_ALL_EXCEPT));
		put_int(r, X(fesetexceptflag)(&x, raised));
		put_int(r, X(fesetexcept)(FE_INEXACT));
		put_int(r, X(fesetround)(rounds[below(r, 4)]));
		put_int(r, X(fegetround)());
		put_int(r, X(feholdexcept)(&e));
		put_int(r, X(feupdateenv)(&e));
		put_int(r, X(fetestexcept)(FE_ALL_EXCEPT));
		put_int(r, X(fegetmode)(&m) + X(fesetmode)(&m));
		put_int(r, X(feenableexcept)(0) + X(fedisableexcept)(FE_ALL_EXCEPT) +
				   X(fegetexcept)());
		put_int(r, X(fesetenv)(FE_DFL_ENV));
	}
}

static void odd_mathematics(struct run *r)
{
	static const char *const endings[] = { "", "f", "l", "f128" };
	int (*two[8][4])(const void *, const void *);
	static const char *const names_of_two[] = { "canonicalize", "totalorder", "totalordermag" };
	double (*payload)(const double *) = find("libm.so.6", "getpayload");
	float (*payload_f)(const float *) = find("libm.so.6", "getpayloadf");
	long double (*payload_l)(const long double *) = find("libm.so.6", "getpayloadl");
	int (*set)(double *, double) = find("libm.so.6", "setpayload");
	int (*set_f)(float *, float) = find("libm.so.6", "setpayloadf");
	int (*set_signalling)(double *, double) = find("libm.so.6", "setpayloadsig");
	int (*set_signalling_f)(float *, float) = find("libm.so.6", "setpayloadsigf");
	double (*not_a)(const char *) = find("libm.so.6", "nan");
	float (*not_a_f)(const char *) = find("libm.so.6", "nanf");
	long double (*not_a_l)(const char *) = find("libm.so.6", "nanl");
	int (*classes[12])(double) = { 0 };
	static const char *const names_of_classes[] = { "__fpclassify", "__issignaling",
							"__signbit" };

	for (int i = 0; i < 3; i++) {
		for (int k = 0; k < 4; k++) {
			char *name = NULL;

			if (asprintf(&name, "%s%s", names_of_two[i], endings[k]) > 0)
				two[i][k] = find("libm.so.6", name); /* the name stays */
		}
		classes[i] = find("libm.so.6", names_of_classes[i]);
	}
	EACH
	{
		struct {
			_Float128 q[2];
			long double l[2];
			double d[2];
			float f[2];
		} x = { { gen_q(r), gen_q(r) },
			{ gen_l(r), gen_l(r) },
			{ gen_d(r), gen_d(r) },
			{ gen_f(r), gen_f(r) } };
		double d = 0;
		float f = 0;

		for (int i = 0; i < 3; i++) {
			if (two[i][0])
				put_int(r, two[i][0](&x.d[0], &x.d[1]));
			if (two[i][1])
				put_int(r, two[i][1](&x.f[0], &x.f[1]));
			if (two[i][2])
				put_int(r, two[i][2](&x.l[0], &x.l[1]));
			if (two[i][3])
				put_int(r, two[i][3](&x.q[0], &x.q[1]));
			if (classes[i])
				put_int(r, classes[i](x.d[1]));
		}
		put_d(r, x.d[0]);
		put_f(r, x.f[0]);
		put_l(r, x.l[0]);
		put_q(r, x.q[0]);
		put_d(r, payload(&x.d[1]));
		put_f(r, payload_f(&x.f[1]));
		put_l(r, payload_l(&x.l[1]));
		put_int(r, set(&d, (double)below(r, 1000)) + set_f(&f, (float)below(r, 1000)));
		put_d(r, d);
		put_f(r, f);
		put_int(r, set_signalling(&d, (double)below(r, 99)) + set_signalling_f(&f, 7));
		put_d(r, d);
		put_f(r, f);
		put_d(r, not_a("0x123"));
		put_f(r, not_a_f("77"));
		put_l(r, not_a_l(""));
	}
}

/* ---- zlib ---- */

#define SOURCE_BYTES 20000
static unsigned char source[SOURCE_BYTES], packed[2 * SOURCE_BYTES + 5000],
	unpacked[SOURCE_BYTES + 64];

static void checksums(struct run *r)
{
	EACH
	{
		size_t size = text(r, source, SOURCE_BYTES / 8), half = below(r, size + 1);
		uLong a = X(crc32)(0, source, (uInt)half),
		      b = X(crc32_z)(0, source + half, size - half);
		uLong c = X(adler32)(1, source, (uInt)half),
		      d = X(adler32_z)(1, source + half, size - half);

		put_int(r, (int64_t)X(crc32_combine)(a, b, (z_off_t)(size - half)));
		put_int(r, (int64_t)X(crc32_combine_op)(
				   a, b, X(crc32_combine_gen)((z_off_t)(size - half))));
		put_int(r, (int64_t)X(adler32_combine)(c, d, (z_off_t)(size - half)));
		put_int(r, (int64_t)crc32(0, source, (uInt)size) +
				   (int64_t)adler32(1, source, (uInt)size));
		put(r, X(get_crc_table)(), 1024);
	}
}

static void packing(struct run *r)
{
	FEW(12)
	{
		size_t size = text(r, source, SOURCE_BYTES);
		uLongf to = sizeof(packed), back = sizeof(unpacked);
		uLong from;

		put_int(r, (int64_t)X(compressBound)(size));
		put_int(r, X(compress2)(packed, &to, source, size, input % 11 - 1));
		put(r, packed, to);
		from = to;
		put_int(r, X(uncompress2)(unpacked, &back, packed, &from));
		put_int(r, back == size && !memcmp(unpacked, source, size));
		to = sizeof(packed);
		put_int(r, X(compress)(packed, &to, source, size));
		back = sizeof(unpacked);
		put_int(r, X(uncompress)(unpacked, &back, packed, to));
		put_int(r, (int64_t)back);
		packed[below(r, to)] ^= 4; /* damaged */
		back = sizeof(unpacked);
		put_int(r, X(uncompress)(unpacked, &back, packed, to));
		put_text(r, X(zError)(-(int)below(r, 6)));
		put_text(r, X(zlibVersion)());
		put_int(r, (int64_t)X(zlibCompileFlags)());
	}
}

static unsigned back_in(void *opaque, z_const unsigned char **next)
{
	size_t *at = opaque;
	unsigned size = (unsigned)(at[1] - at[0] < 100 ? at[1] - at[0] : 100);

	*next = packed + at[0];
	at[0] += size;
	return size;
}

static int back_out(void *opaque, unsigned char *from, unsigned size)
{
	put(opaque, from, size);
	return 0;
}

static void deflating(struct run *r)
{
	FEW(20)
	{
		static const int wbits[] = { 15, -15, 31, -9, 12 };
		size_t size = text(r, source, SOURCE_BYTES), out, at[2];
		int bits = wbits[below(r, 5)], level = input % 10, strategy = (int)below(r, 5),
		    pending;
		unsigned more, length = 0;
		unsigned char window[32768] = "", dictionary[300];
		z_stream z = { 0 }, copy = { 0 };
		gz_header header = { .text = 1,
				     .name = (Bytef *)"name",
				     .comment = (Bytef *)"why" };

		put_int(r, X(deflateInit2_)(&z, level, Z_DEFLATED, bits, 1 + (int)below(r, 9),
					    strategy, ZLIB_VERSION, sizeof(z)));
		if (bits == 31)
			put_int(r, X(deflateSetHeader)(&z, &header));
		else if (below(r, 2)) {
			put_int(r, X(deflateSetDictionary)(&z, source, (uInt)(size / 3)));
			memset(dictionary, 0, sizeof(dictionary));
			if (size / 3 <= sizeof(dictionary)) {
				put_int(r, X(deflateGetDictionary)(&z, dictionary, &length));
				put(r, dictionary, length);
			}
		}
		put_int(r,
			X(deflateTune)(&z, 4 + (int)below(r, 30), 8, 20 + (int)below(r, 90), 40));
		put_int(r, (int64_t)X(deflateBound)(&z, size));
		z.next_in = source;
		z.avail_in = (uInt)(size / 2);
		z.next_out = packed;
		z.avail_out = sizeof(packed);
		put_int(r, X(deflate)(&z, below(r, 2) ? Z_SYNC_FLUSH : Z_BLOCK));
		put_int(r, X(deflatePending)(&z, &more, &pending));
		put_int(r, X(deflateCopy)(&copy, &z));
		put_int(r, X(deflateParams)(&z, (int)below(r, 10), (int)below(r, 5)));
		z.avail_in += (uInt)(size - size / 2);
		put_int(r, X(deflate)(&z, Z_FINISH));
		out = z.total_out;
		put(r, packed, out);
		put_int(r, X(deflateEnd)(&copy));
		put_int(r, X(deflateReset)(&z) + X(deflateResetKeep)(&z));
		put_int(r, X(deflatePrime)(&z, 3, 5));
		put_int(r, X(deflateEnd)(&z));
		memset(&z, 0, sizeof(z));
		put_int(r, X(inflateInit2_)(&z, bits == -9 ? -15 : bits, ZLIB_VERSION, sizeof(z)));
		z.next_in = packed;
		z.avail_in = (uInt)out;
		z.next_out = unpacked;
		z.avail_out = sizeof(unpacked);
		if (bits == 31)
			put_int(r, X(inflateGetHeader)(&z, &header));
		put_int(r, X(inflate)(&z, Z_BLOCK));
		put_int(r, X(inflateMark)(&z) + X(inflateSyncPoint)(&z));
		put_int(r, (int64_t)X(inflateCodesUsed)(&z));
		put_int(r, X(inflateCopy)(&copy, &z) + X(inflateEnd)(&copy));
		pending = X(inflate)(&z, Z_FINISH);
		if (pending == Z_NEED_DICT) {
			put_int(r, X(inflateSetDictionary)(&z, source, (uInt)(size / 3)));
			pending = X(inflate)(&z, Z_FINISH);
			put_int(r, X(inflateGetDictionary)(&z, window, &length));
			put(r, window, length);
		}
		put_int(r, pending);
		put(r, unpacked, z.total_out);
		put_int(r,
			X(inflateReset)(&z) + X(inflateReset2)(&z, 15) + X(inflateValidate)(&z, 0));
		put_int(r, X(inflatePrime)(&z, 2, 1) + X(inflateUndermine)(&z, 0) +
				   X(inflateResetKeep)(&z));
		z.next_in = packed;
		z.avail_in = (uInt)out;
		put_int(r, X(inflateSync)(&z));
		put_int(r, X(inflateEnd)(&z));
		if (bits != -15)
			continue;
		memset(&z, 0, sizeof(z));
		put_int(r, X(inflateBackInit_)(&z, 15, window, ZLIB_VERSION, sizeof(z)));
		at[0] = 0;
		at[1] = out;
		put_int(r, X(inflateBack)(&z, back_in, at, back_out, r));
		put_int(r, X(inflateBackEnd)(&z));
	}
	FEW(2)
	{
		z_stream z = { 0 };

		put_int(r, X(deflateInit_)(&z, 6, ZLIB_VERSION, sizeof(z)) + X(deflateEnd)(&z));
		put_int(r, X(inflateInit_)(&z, ZLIB_VERSION, sizeof(z)) + X(inflateEnd)(&z));
	}
}

static void gz_files(struct run *r)
{
	FEW(4)
	{
		int fd = memfd_create("gz", 0), again = dup(fd), code;
		size_t size = text(r, source, SOURCE_BYTES / 2);
		char line[100];
		gzFile f = X(gzdopen)(fd, "wb6");

		put_int(r, X(gzbuffer)(f, 4096));
		put_int(r, X(gzwrite)(f, source, (unsigned)size));
		put_int(r, X(gzputs)(f, "a line\n") + X(gzputc)(f, 'c'));
		put_int(r, X(gzprintf)(f, "%d %s\n", gen_int(r), "text"));
		put_int(r, X(gzsetparams)(f, 9, Z_FILTERED));
		put_int(r, (int64_t)X(gzfwrite)(source, 1, size / 2, f));
		put_int(r, X(gzflush)(f, Z_SYNC_FLUSH));
		put_int(r, X(gztell)(f) + X(gzoffset)(f));
		put_int(r, X(gzclose_w)(f));
		lseek(again, 0, SEEK_SET);
		f = X(gzdopen)(again, "rb");
		put_int(r, X(gzdirect)(f));
		put_int(r, X(gzread)(f, unpacked, (unsigned)size));
		put(r, unpacked, size);
		put_text(r, X(gzgets)(f, line, sizeof(line)));
		put_int(r, X(gzgetc)(f) + X(gzungetc)('u', f) + X(gzgetc_)(f));
		put_int(r, X(gzseek)(f, (z_off_t)below(r, size + 1), SEEK_SET));
		put_int(r, (int64_t)X(gzfread)(unpacked, 1, 200, f));
		put(r, unpacked, 200);
		put_int(r, X(gzrewind)(f) + X(gzeof)(f));
		put_text(r, X(gzerror)(f, &code));
		X(gzclearerr)(f);
		put_int(r, X(gzclose_r)(f));
	}
}

/* ---- zstd ---- */

static void zstandard(struct run *r)
{
	FEW(8)
	{
		size_t size = text(r, source, SOURCE_BYTES), out, back;
		ZSTD_CCtx *c = X(ZSTD_createCCtx)();
		ZSTD_DCtx *d = X(ZSTD_createDCtx)();
		ZSTD_CDict *cdict;
		ZSTD_DDict *ddict;
		ZSTD_outBuffer to = { packed, sizeof(packed), 0 };
		ZSTD_inBuffer from = { source, size, 0 };
		ZSTD_bounds bounds = X(ZSTD_cParam_getBounds)(ZSTD_c_strategy);
		ZSTD_frameHeader header;

		put_int(r, (int64_t)X(ZSTD_compressBound)(size));
		out = X(ZSTD_compress)(packed, sizeof(packed), source, size, input % 8 - 2);
		put_int(r, X(ZSTD_isError)(out));
		put(r, packed, out);
		put_int(r, (int64_t)X(ZSTD_getFrameContentSize)(packed, out));
		put_int(r, (int64_t)X(ZSTD_findFrameCompressedSize)(packed, out));
		put_int(r, (int64_t)X(ZSTD_getDecompressedSize)(packed, out));
		put_int(r, (int64_t)X(ZSTD_decompressBound)(packed, out));
		put_int(r, (int64_t)X(ZSTD_frameHeaderSize)(packed, out));
		put_int(r, (int64_t)X(ZSTD_getFrameHeader)(&header, packed, out));
		put_int(r, X(ZSTD_isFrame)(packed, out));
		back = X(ZSTD_decompress)(unpacked, sizeof(unpacked), packed, out);
		put_int(r, back == size && !memcmp(unpacked, source, size));
		out = X(ZSTD_compressCCtx)(c, packed, sizeof(packed), source, size,
					   1 + (int)below(r, 12));
		put(r, packed, out);
		back = X(ZSTD_decompressDCtx)(d, unpacked, sizeof(unpacked), packed, out);
		put_int(r, (int64_t)back);
		for (int strategy = bounds.lowerBound; strategy <= bounds.upperBound; strategy++) {
			X(ZSTD_CCtx_reset)(c, ZSTD_reset_session_and_parameters);
			put_int(r,
				(int64_t)X(ZSTD_CCtx_setParameter)(c, ZSTD_c_strategy, strategy));
			X(ZSTD_CCtx_setParameter)(c, ZSTD_c_windowLog, 14);
			X(ZSTD_CCtx_setParameter)(c, ZSTD_c_checksumFlag, 1);
			X(ZSTD_CCtx_setPledgedSrcSize)(c, size / 4);
			out = X(ZSTD_compress2)(c, packed, sizeof(packed), source, size / 4);
			put(r, packed, out);
			X(ZSTD_DCtx_reset)(d, ZSTD_reset_session_only);
			put_int(r, (int64_t)X(ZSTD_decompressDCtx)(d, unpacked, sizeof(unpacked),
								   packed, out));
		}
		X(ZSTD_CCtx_reset)(c, ZSTD_reset_session_and_parameters);
		while (from.pos < from.size)
			X(ZSTD_compressStream2)(c, &to, &from, ZSTD_e_continue);
		put_int(r, (int64_t)X(ZSTD_compressStream2)(c, &to, &from, ZSTD_e_end));
		put(r, packed, to.pos);
		from = (ZSTD_inBuffer){ packed, to.pos, 0 };
		to = (ZSTD_outBuffer){ unpacked, sizeof(unpacked), 0 };
		put_int(r, (int64_t)X(ZSTD_decompressStream)(d, &to, &from));
		put(r, unpacked, to.pos);
		put_int(r, (int64_t)X(ZSTD_CStreamInSize)() + (int64_t)X(ZSTD_CStreamOutSize)());
		put_int(r, (int64_t)X(ZSTD_DStreamInSize)() + (int64_t)X(ZSTD_DStreamOutSize)());
		cdict = X(ZSTD_createCDict)(source, size / 3, 3);
		ddict = X(ZSTD_createDDict)(source, size / 3);
		out = X(ZSTD_compress_usingCDict)(c, packed, sizeof(packed), source, size, cdict);
		put(r, packed, out);
		put_int(r, (int64_t)X(ZSTD_decompress_usingDDict)(d, unpacked, sizeof(unpacked),
								  packed, out, ddict));
		out = X(ZSTD_compress_usingDict)(c, packed, sizeof(packed), source, size, source,
						 size / 2, 2);
		put(r, packed, out);
		put_int(r, (int64_t)X(ZSTD_decompress_usingDict)(d, unpacked, sizeof(unpacked),
								 packed, out, source, size / 2));
		put_int(r, X(ZSTD_getDictID_fromFrame)(packed, out) +
				   X(ZSTD_getDictID_fromDDict)(ddict));
		put_text(r, X(ZSTD_getErrorName)((size_t)-(int64_t)below(r, 80)));
		put_int(r, X(ZSTD_getErrorCode)((size_t)-(int64_t)below(r, 80)));
		put_int(r, X(ZSTD_versionNumber)() + X(ZSTD_minCLevel)() + X(ZSTD_maxCLevel)());
		put_text(r, X(ZSTD_versionString)());
		put_int(r, X(ZSTD_defaultCLevel)());
		put_int(r, X(ZSTD_getCParams)((int)below(r, 20), size, 0).windowLog);
		X(ZSTD_freeCDict)(cdict);
		X(ZSTD_freeDDict)(ddict);
		X(ZSTD_freeCCtx)(c);
		X(ZSTD_freeDCtx)(d);
	}
	FEW(1)
	{
		size_t sizes[40], at = 0;

		for (int i = 0; i < 40; i++) {
			sizes[i] = 200 + below(r, 200);
			for (size_t k = 0; k < sizes[i]; k++)
				source[at + k] =
					(unsigned char)("key=value;"[k % 10] + (int)below(r, 2));
			at += sizes[i];
		}
		at = X(ZDICT_trainFromBuffer)(packed, 4000, source, sizes, 40);
		put_int(r, X(ZDICT_isError)(at));
		put_text(r, X(ZDICT_getErrorName)(at));
		if (!ZDICT_isError(at))
			put_int(r, X(ZDICT_getDictID)(packed, at));
	}
}

/* ---- libcrypto ---- */

static void digests_by_name(struct run *r)
{
	static const char *const all[] = {
		"MD5",	     "SHA1",	   "SHA224",	 "SHA256",     "SHA384",
		"SHA512",    "SHA512-224", "SHA512-256", "SHA3-224",   "SHA3-256",
		"SHA3-384",  "SHA3-512",   "BLAKE2S256", "BLAKE2B512", "SM3",
		"RIPEMD160", "MD5-SHA1",   "SHAKE128",	 "SHAKE256",
	};
	const size_t many = sizeof(all) / sizeof(*all);

	for (size_t n = 0; n < many; n++) {
		const EVP_MD *kind = X(EVP_get_digestbyname)(all[n]);
		EVP_MD_CTX *c = X(EVP_MD_CTX_new)();
		unsigned char out[EVP_MAX_MD_SIZE] = "";
		unsigned size = 0;
		size_t length = text(r, source, 3000);

		put_int(r, kind != NULL);
		if (kind && X(EVP_DigestInit_ex)(c, kind, NULL) == 1) {
			for (size_t at = 0; at < length;) {
				size_t more = 1 + below(r, length - at);

				put_int(r, X(EVP_DigestUpdate)(c, source + at, more));
				at += more;
			}
			put_int(r, X(EVP_DigestFinal_ex)(c, out, &size));
			put(r, out, size);
			put_int(r, X(EVP_MD_get_size)(kind) + X(EVP_MD_get_block_size)(kind));
			put_int(r, X(EVP_MD_get_type)(kind));
			put_int(r, X(EVP_Digest)(source, length, out, &size, kind, NULL));
			put(r, out, size);
			put_text(r, X(EVP_MD_get0_name)(kind));
		}
		X(EVP_MD_CTX_reset)(c);
		X(EVP_MD_CTX_free)(c);
		if (kind && n < 12 &&
		    X(HMAC)(kind, "some key", (int)below(r, 9), source, length, out, &size)) {
			put(r, out, size);
			put_int(r,
				X(PKCS5_PBKDF2_HMAC)("word", 4, source, 16, 20, kind, 40, packed));
			put(r, packed, 40);
		}
	}
}

static void digests_of_old(struct run *r)
{
	EACH
	{
		size_t size = text(r, source, 700);
		unsigned char out[64];
		MD5_CTX m;
		SHA_CTX s;
		SHA256_CTX s256;
		SHA512_CTX s512;
		MD4_CTX m4;
		RIPEMD160_CTX ripe;
		WHIRLPOOL_CTX w;

		put(r, X(MD5)(source, size, out), 16);
		put(r, X(SHA1)(source, size, out), 20);
		put(r, X(SHA224)(source, size, out), 28);
		put(r, X(SHA256)(source, size, out), 32);
		put(r, X(SHA384)(source, size, out), 48);
		put(r, X(SHA512)(source, size, out), 64);
		put(r, X(MD4)(source, size, out), 16);
		put(r, X(RIPEMD160)(source, size, out), 20);
		put(r, X(WHIRLPOOL)(source, size, out), 64);
		put_int(r,
			X(MD5_Init)(&m) + X(MD5_Update)(&m, source, size) + X(MD5_Final)(out, &m));
		put(r, out, 16);
		put_int(r, X(SHA1_Init)(&s) + X(SHA1_Update)(&s, source, size) +
				   X(SHA1_Final)(out, &s));
		put(r, out, 20);
		put_int(r, X(SHA224_Init)(&s256) + X(SHA224_Update)(&s256, source, size));
		put_int(r, X(SHA224_Final)(out, &s256));
		put(r, out, 28);
		put_int(r, X(SHA256_Init)(&s256) + X(SHA256_Update)(&s256, source, size));
		put_int(r, X(SHA256_Final)(out, &s256));
		put(r, out, 32);
		put_int(r, X(SHA384_Init)(&s512) + X(SHA384_Update)(&s512, source, size));
		put_int(r, X(SHA384_Final)(out, &s512));
		put(r, out, 48);
		put_int(r, X(SHA512_Init)(&s512) + X(SHA512_Update)(&s512, source, size));
		put_int(r, X(SHA512_Final)(out, &s512));
		put(r, out, 64);
		put_int(r, X(MD4_Init)(&m4) + X(MD4_Update)(&m4, source, size) +
				   X(MD4_Final)(out, &m4));
		put(r, out, 16);
		put_int(r, X(RIPEMD160_Init)(&ripe) + X(RIPEMD160_Update)(&ripe, source, size));
		put_int(r, X(RIPEMD160_Final)(out, &ripe));
		put(r, out, 20);
		put_int(r, X(WHIRLPOOL_Init)(&w) + X(WHIRLPOOL_Update)(&w, source, size));
		put_int(r, X(WHIRLPOOL_Final)(out, &w));
		put(r, out, 64);
	}
}

static void ciphers_by_name(struct run *r)
{
	static const char *const all[] = {
		"AES-128-ECB",	    "AES-192-CBC",	"AES-256-CTR",	"AES-128-GCM",
		"AES-256-GCM",	    "AES-128-OCB",	"AES-128-CFB",	"AES-256-CFB8",
		"AES-192-OFB",	    "AES-256-XTS",	"ChaCha20",	"ChaCha20-Poly1305",
		"CAMELLIA-128-CBC", "CAMELLIA-256-CTR", "ARIA-128-CBC", "ARIA-256-CTR",
		"DES-EDE3-CBC",	    "SM4-CBC",		"SM4-CTR",	"AES-128-CBC",
		"AES-256-CBC",
	};

	for (size_t n = 0; n < sizeof(all) / sizeof(*all); n++) {
		EVP_CIPHER *kind = X(EVP_CIPHER_fetch)(NULL, all[n], NULL);
		EVP_CIPHER_CTX *c = X(EVP_CIPHER_CTX_new)();
		unsigned char key[64], iv[32];
		size_t size = 16 + below(r, 100) * 16;
		int out = 0, end = 0, back = 0;

		put_int(r, kind != NULL);
		bytes(r, key, sizeof(key));
		bytes(r, iv, sizeof(iv));
		bytes(r, source, size);
		if (kind && X(EVP_EncryptInit_ex)(c, kind, NULL, key, iv) == 1) {
			put_int(r, X(EVP_CIPHER_get_key_length)(kind) +
					   X(EVP_CIPHER_get_iv_length)(kind));
			put_int(r,
				X(EVP_CIPHER_get_block_size)(kind) + X(EVP_CIPHER_get_mode)(kind));
			put_text(r, X(EVP_CIPHER_get0_name)(kind));
			put_int(r, X(EVP_EncryptUpdate)(c, packed, &out, source, (int)size));
			put_int(r, X(EVP_EncryptFinal_ex)(c, packed + out, &end));
			put(r, packed, (size_t)(out + end));
			put_int(r, X(EVP_CIPHER_CTX_reset)(c));
			put_int(r, X(EVP_DecryptInit_ex)(c, kind, NULL, key, iv));
			put_int(r, X(EVP_CIPHER_CTX_set_padding)(c, 1));
			put_int(r, X(EVP_DecryptUpdate)(c, unpacked, &back, packed, out + end));
			put_int(r, X(EVP_DecryptFinal_ex)(c, unpacked + back, &end));
			put(r, unpacked, (size_t)back);
		}
		X(EVP_CIPHER_CTX_free)(c);
		X(EVP_CIPHER_free)(kind);
	}
}

static void ciphers_of_old(struct run *r)
{
	EACH
	{
		unsigned char key[32], iv[16], in[64], out[64], ecount[16] = "";
		AES_KEY aes;
		CAMELLIA_KEY camellia;
		RC4_KEY rc4;
		CAST_KEY cast;
		BF_KEY blowfish;
		DES_cblock des_iv;
		DES_key_schedule schedule[3];
		unsigned words[2];
		int num = 0;

		bytes(r, key, sizeof(key));
		bytes(r, iv, sizeof(iv));
		bytes(r, in, sizeof(in));
		put_int(r, X(AES_set_encrypt_key)(key, 128 + 64 * (int)below(r, 3), &aes));
		X(AES_encrypt)(in, out, &aes);
		X(AES_ecb_encrypt)(in + 16, out + 16, &aes, AES_ENCRYPT);
		put(r, out, 32);
		X(AES_cbc_encrypt)(in, out, 64, &aes, iv, AES_ENCRYPT);
		put(r, out, 64);
		X(AES_cfb128_encrypt)(in, out, 60, &aes, iv, &num, AES_ENCRYPT);
		put(r, out, 60);
		num = 0;
		X(AES_ofb128_encrypt)(in, out, 50, &aes, iv, &num);
		put(r, out, 50);
		put_int(r, X(AES_wrap_key)(&aes, NULL, out, in, 32));
		put(r, out, 40);
		put_int(r, X(AES_set_decrypt_key)(key, 256, &aes));
		X(AES_decrypt)(in, out, &aes);
		put(r, out, 16);
		put_int(r, X(Camellia_set_key)(key, 192, &camellia));
		X(Camellia_encrypt)(in, out, &camellia);
		X(Camellia_decrypt)(in, out + 16, &camellia);
		X(Camellia_cbc_encrypt)(in, out + 32, 32, &camellia, iv, CAMELLIA_ENCRYPT);
		put(r, out, 64);
		X(RC4_set_key)(&rc4, 16, key);
		X(RC4)(&rc4, 64, in, out);
		put(r, out, 64);
		X(CAST_set_key)(&cast, 16, key);
		X(CAST_ecb_encrypt)(in, out, &cast, 1);
		X(CAST_cbc_encrypt)(in, out + 8, 40, &cast, iv, 1);
		put(r, out, 48);
		if (input < 4) {
			X(BF_set_key)(&blowfish, 16, key);
			X(BF_ecb_encrypt)(in, out, &blowfish, 1);
			X(BF_cbc_encrypt)(in, out + 8, 40, &blowfish, iv, 0);
			put(r, out, 48);
			memcpy(words, in, 8);
			X(BF_encrypt)(words, &blowfish);
			X(BF_decrypt)(words, &blowfish);
			put(r, words, 8);
		}
		X(DES_set_odd_parity)((DES_cblock *)key);
		put_int(r, X(DES_check_key_parity)((const_DES_cblock *)key));
		put_int(r, X(DES_is_weak_key)((const_DES_cblock *)key));
		for (int i = 0; i < 3; i++)
			X(DES_set_key_unchecked)((const_DES_cblock *)(key + 8 * i), &schedule[i]);
		X(DES_ecb_encrypt)((const_DES_cblock *)in, (DES_cblock *)out, &schedule[0], 1);
		X(DES_ecb3_encrypt)((const_DES_cblock *)in, (DES_cblock *)(out + 8), &schedule[0],
				    &schedule[1], &schedule[2], 0);
		memcpy(des_iv, iv, 8);
		X(DES_ncbc_encrypt)(in, out + 16, 32, &schedule[0], &des_iv, 1);
		put(r, out, 48);
		X(DES_ede3_cbc_encrypt)(in, out, 64, &schedule[0], &schedule[1], &schedule[2],
					&des_iv, 1);
		put(r, out, 64);
		put_int(r, X(DES_cbc_cksum)(in, (DES_cblock *)out, 40, &schedule[1], &des_iv));
		put(r, X(DES_fcrypt)("password", "ab", (char *)out), 13);
		put(r, ecount, 16);
	}
}

static BIGNUM *big(struct run *r, BIGNUM *to, int bits)
{
	unsigned char data[80];
	size_t size = 1 + below(r, (uint64_t)bits / 8);

	bytes(r, data, size);
	X(BN_bin2bn)(data, (int)size, to);
	X(BN_set_negative)(to, !below(r, 4));
	return to;
}

static void put_big(struct run *r, const BIGNUM *n)
{
	unsigned char data[400];
	int size = X(BN_bn2bin)(n, data);

	put_int(r, size * 2 + X(BN_is_negative)(n));
	put(r, data, (size_t)size);
}

static void big_numbers(struct run *r)
{
	BN_CTX *ctx = X(BN_CTX_new)();
	BIGNUM *a = X(BN_new)(), *b = BN_new(), *m = BN_new(), *x = BN_new(), *y = BN_new();

	EACH
	{
		unsigned char data[200];
		char *s;

		X(BN_CTX_start)(ctx);
		X(BN_CTX_get)(ctx);
		big(r, a, 600);
		big(r, b, 400);
		big(r, m, 300);
		X(BN_set_negative)(m, 0);
		X(BN_set_bit)(m, 0); /* odd, not zero */
		X(BN_set_bit)(m, 70);
		put_int(r, X(BN_add)(x, a, b) + X(BN_sub)(y, a, b));
		put_big(r, x);
		put_big(r, y);
		put_int(r, X(BN_uadd)(x, a, b) + X(BN_usub)(y, a, b));
		put_big(r, x);
		put_int(r, X(BN_mul)(x, a, b, ctx) + X(BN_sqr)(y, a, ctx));
		put_big(r, x);
		put_big(r, y);
		put_int(r, X(BN_div)(x, y, a, m, ctx));
		put_big(r, x);
		put_big(r, y);
		put_int(r, X(BN_nnmod)(a, a, m, ctx) + X(BN_nnmod)(b, b, m, ctx));
		put_int(r, X(BN_mod_add)(x, a, b, m, ctx) + X(BN_mod_sub)(y, a, b, m, ctx));
		put_big(r, x);
		put_big(r, y);
		put_int(r, X(BN_mod_add_quick)(x, a, b, m) + X(BN_mod_sub_quick)(y, a, b, m));
		put_big(r, x);
		put_int(r, X(BN_mod_mul)(x, a, b, m, ctx) + X(BN_mod_sqr)(y, a, m, ctx));
		put_big(r, x);
		put_big(r, y);
		put_int(r, X(BN_mod_lshift)(x, a, 13, m, ctx) + X(BN_mod_lshift1)(y, a, m, ctx));
		put_big(r, x);
		put_int(r, X(BN_mod_lshift_quick)(x, a, 9, m) + X(BN_mod_lshift1_quick)(y, a, m));
		put_big(r, x);
		put_int(r, X(BN_gcd)(x, a, b, ctx));
		put_big(r, x);
		put_int(r, X(BN_mod_inverse)(x, a, m, ctx) != NULL);
		put_int(r, X(BN_kronecker)(a, m, ctx));
		if (input < 6) {
			put_int(r, X(BN_mod_exp)(x, a, b, m, ctx));
			put_big(r, x);
			put_int(r, X(BN_mod_exp_mont)(x, a, b, m, ctx, NULL));
			put_big(r, x);
			put_int(r, X(BN_mod_exp_mont_consttime)(x, a, b, m, ctx, NULL));
			put_big(r, x);
			put_int(r, X(BN_mod_exp_simple)(x, a, b, m, ctx) +
					   X(BN_mod_exp_recp)(y, a, b, m, ctx));
			put_big(r, y);
			put_int(r, X(BN_mod_exp2_mont)(x, a, b, b, a, m, ctx, NULL));
			put_big(r, x);
			put_int(r, X(BN_mod_exp_mont_word)(x, 7, b, m, ctx, NULL));
			X(BN_set_word)(y, 10 + below(r, 20));
			put_int(r, X(BN_exp)(x, y, y, ctx));
			put_big(r, x);
			put_int(r, X(BN_check_prime)(m, ctx, NULL));
		}
		put_int(r, X(BN_lshift)(x, a, (int)below(r, 90)) + X(BN_lshift1)(y, a));
		put_big(r, x);
		put_int(r, X(BN_rshift)(x, a, (int)below(r, 90)) + X(BN_rshift1)(y, a));
		put_big(r, x);
		put_int(r, X(BN_num_bits)(a) + X(BN_num_bits_word)(below(r, 999)));
		put_int(r, X(BN_is_bit_set)(a, (int)below(r, 300)) +
				   X(BN_clear_bit)(a, (int)below(r, 60)));
		put_int(r, X(BN_mask_bits)(x, 50));
		put_int(r, X(BN_cmp)(a, b) * 3 + X(BN_ucmp)(a, b));
		put_int(r,
			X(BN_add_word)(a, 99) + X(BN_sub_word)(a, 3) + X(BN_mul_word)(a, 1234567));
		put_int(r, (int64_t)X(BN_mod_word)(a, 97) + (int64_t)X(BN_div_word)(a, 1001));
		put_big(r, a);
		s = X(BN_bn2hex)(a);
		put_text(r, s);
		put_int(r, X(BN_hex2bn)(&x, s));
		OPENSSL_free(s);
		s = X(BN_bn2dec)(a);
		put_text(r, s);
		put_int(r, X(BN_dec2bn)(&x, s) + X(BN_asc2bn)(&y, s));
		OPENSSL_free(s);
		put_int(r, X(BN_bn2binpad)(b, data, 100) + X(BN_bn2lebinpad)(b, data + 100, 100));
		put(r, data, 200);
		put_int(r, X(BN_lebin2bn)(data, 60, x) != NULL);
		put_int(r, X(BN_bn2mpi)(b, data));
		put_int(r, X(BN_mpi2bn)(data, (int)X(BN_bn2mpi)(b, NULL), y) != NULL);
		put_int(r, X(BN_is_zero)(a) + 2 * X(BN_is_one)(a) + 4 * X(BN_is_odd)(a));
		put_int(r,
			X(BN_is_word)(a, 7) + X(BN_abs_is_word)(a, 8) + (int64_t)X(BN_get_word)(b));
		put_int(r, X(BN_copy)(x, a) != NULL);
		X(BN_swap)(x, y);
		X(BN_consttime_swap)(below(r, 2), x, y, 2);
		put_int(r, X(BN_nist_mod_256)(x, b, X(BN_get0_nist_prime_256)(), ctx));
		put_big(r, x);
		put_int(r, X(BN_nist_mod_192)(x, b, X(BN_get0_nist_prime_192)(), ctx));
		put_int(r, X(BN_nist_mod_224)(x, b, X(BN_get0_nist_prime_224)(), ctx));
		put_int(r, X(BN_nist_mod_384)(x, b, X(BN_get0_nist_prime_384)(), ctx));
		put_int(r, X(BN_nist_mod_521)(x, b, X(BN_get0_nist_prime_521)(), ctx));
		put_big(r, x);
		put_int(r, X(BN_GF2m_add)(x, a, b) + X(BN_GF2m_mod)(y, a, m));
		put_int(r, X(BN_GF2m_mod_mul)(x, a, b, m, ctx) + X(BN_GF2m_mod_sqr)(y, a, m, ctx));
		put_big(r, x);
		X(BN_zero_ex)(x);
		X(BN_clear)(y);
		X(BN_CTX_end)(ctx);
	}
	X(BN_free)(a);
	X(BN_clear_free)(b);
	BN_free(m);
	BN_free(x);
	BN_free(y);
	X(BN_CTX_free)(ctx);
}

static void curves(struct run *r)
{
	static const int all[] = { NID_X9_62_prime256v1, NID_secp384r1, NID_secp256k1 };

	FEW(3)
	{
		EC_GROUP *g = X(EC_GROUP_new_by_curve_name)(all[input]);
		EC_POINT *p = X(EC_POINT_new)(g), *q = EC_POINT_new(g);
		BN_CTX *ctx = BN_CTX_new();
		BIGNUM *n = BN_new(), *x = BN_new(), *y = BN_new();
		unsigned char data[200];
		size_t size;

		big(r, n, 256);
		BN_set_negative(n, 0);
		put_int(r, X(EC_POINT_mul)(g, p, n, NULL, NULL, ctx));
		put_int(r, X(EC_POINT_dbl)(g, q, p, ctx) + X(EC_POINT_add)(g, q, q, p, ctx));
		put_int(r, X(EC_POINT_invert)(g, p, ctx) + X(EC_POINT_is_on_curve)(g, q, ctx));
		put_int(r, X(EC_POINT_get_affine_coordinates)(g, q, x, y, ctx));
		put_big(r, x);
		put_big(r, y);
		size = X(EC_POINT_point2oct)(g, q, POINT_CONVERSION_COMPRESSED, data, sizeof(data),
					     ctx);
		put(r, data, size);
		put_int(r, X(EC_POINT_oct2point)(g, p, data, size, ctx) +
				   X(EC_POINT_cmp)(g, p, q, ctx));
		put_int(r, X(EC_GROUP_get_degree)(g) + X(EC_GROUP_get_curve_name)(g));
		BN_free(n);
		BN_free(x);
		BN_free(y);
		BN_CTX_free(ctx);
		X(EC_POINT_free)(p);
		EC_POINT_free(q);
		X(EC_GROUP_free)(g);
	}
}

static void encodings(struct run *r)
{
	EACH
	{
		size_t size = text(r, source, 400);
		unsigned char out[1000] = "";
		char *s;
		long length = 0;
		int n = X(EVP_EncodeBlock)(out, source, (int)size);
		ASN1_INTEGER *number = X(ASN1_INTEGER_new)();
		ASN1_OBJECT *object;
		EVP_ENCODE_CTX *c = X(EVP_ENCODE_CTX_new)();
		unsigned char *der = NULL, *data;

		put(r, out, (size_t)n);
		put_int(r, X(EVP_DecodeBlock)(unpacked, out, n));
		X(EVP_EncodeInit)(c);
		put_int(r, X(EVP_EncodeUpdate)(c, out, &n, source, (int)size));
		X(EVP_EncodeFinal)(c, out + n, &n);
		X(EVP_DecodeInit)(c);
		put_int(r, X(EVP_DecodeUpdate)(c, unpacked, &n, out, 64));
		put_int(r, X(EVP_DecodeFinal)(c, unpacked + n, &n));
		X(EVP_ENCODE_CTX_free)(c);
		s = X(OPENSSL_buf2hexstr)(source, (long)(size / 4));
		put_text(r, s);
		data = X(OPENSSL_hexstr2buf)(s, &length);
		put_int(r, length);
		OPENSSL_free(data);
		OPENSSL_free(s);
		put_int(r, X(ASN1_INTEGER_set_int64)(number, gen_long(r)));
		put_int(r, X(ASN1_INTEGER_get)(number));
		n = X(i2d_ASN1_INTEGER)(number, &der);
		put(r, der, (size_t)n);
		OPENSSL_free(der);
		X(ASN1_INTEGER_free)(number);
		object = X(OBJ_txt2obj)("1.2.840.113549.1.1.11", 1);
		put_int(r,
			X(OBJ_obj2nid)(object) + X(OBJ_sn2nid)("SHA256") + X(OBJ_ln2nid)("sha512"));
		put_int(r, X(OBJ_obj2txt)((char *)out, sizeof(out), object, 1));
		put_text(r, (char *)out);
		put_text(r, X(OBJ_nid2sn)((int)below(r, 900)));
		put_text(r, X(OBJ_nid2ln)((int)below(r, 900)));
		X(ASN1_OBJECT_free)(object);
		put_int(r, X(CRYPTO_memcmp)(source, out, 8) != 0);
		put_int(r, (int64_t)X(OPENSSL_strlcpy)((char *)out, "some text to copy",
						       below(r, 30)));
		put_int(r, (int64_t)X(OPENSSL_strlcat)((char *)out, "more", 40));
		put_int(r, (int64_t)X(OPENSSL_strnlen)((char *)out, below(r, 30)));
		X(OPENSSL_cleanse)(out, 20);
		put(r, out, 40);
	}
}

const struct test_case hand_written[] = {
	{ "sorting", sorting },
	{ "trees", trees },
	{ "tables", tables },
	{ "tokens", tokens },
	{ "copies", copies },
	{ "divisions", divisions },
	{ "multibyte", multibyte },
	{ "printing", printing },
	{ "scanning", scanning },
	{ "old_numbers", old_numbers },
	{ "streams", streams },
	{ "wide_streams", wide_streams },
	{ "times", times },
	{ "random_numbers", random_numbers },
	{ "addresses", addresses },
	{ "regular_expressions", regular_expressions },
	{ "gnu_expressions", gnu_expressions },
	{ "globs", globs },
	{ "vectors", vectors },
	{ "obstacks", obstacks },
	{ "heap", heap },
	{ "character_sets", character_sets },
	{ "messages", messages },
	{ "locales", locales },
	{ "names", names },
	{ "signal_sets", signal_sets },
	{ "jumps", jumps },
	{ "contexts", contexts },
	{ "backtraces", backtraces },
	{ "attributes", attributes },
	{ "threads", threads },
	{ "locks", locks },
	{ "environments", environments },
	{ "odd_mathematics", odd_mathematics },
	{ "checksums", checksums },
	{ "packing", packing },
	{ "deflating", deflating },
	{ "gz_files", gz_files },
	{ "zstandard", zstandard },
	{ "digests_by_name", digests_by_name },
	{ "digests_of_old", digests_of_old },
	{ "ciphers_by_name", ciphers_by_name },
	{ "ciphers_of_old", ciphers_of_old },
	{ "big_numbers", big_numbers },
	{ "curves", curves },
	{ "encodings", encodings },
};
const int hand_written_count = sizeof(hand_written) / sizeof(*hand_written);

/* ---- what differential.py calls ---- */

extern const struct test_case generated[];
extern const int generated_count;

static const struct test_case *case_of(int index)
{
	return index < hand_written_count ? &hand_written[index] :
					    &generated[index - hand_written_count];
}

int differential_cases(void)
{
	int many = hand_written_count + generated_count;

	if (many > MOST_CASES)
		abort();
	return many;
}

const char *differential_case(int index)
{
	return case_of(index)->name;
}

uint64_t differential_run(int index, uint64_t seed, int inputs)
{
	static locale_t locale;
	struct run r = { .state = seed * 1000003 + (uint64_t)index, .inputs = inputs };

	if (!locale) {
		locale = newlocale(LC_ALL_MASK, "C.UTF-8", NULL);
		setenv("TZ", "CET-1CEST,M3.5.0,M10.5.0/3", 1);
		tzset();
	}
	r.locale = locale;
	current_case = index;
	case_of(index)->run(&r);
	return r.digest;
}

int differential_functions(void)
{
	return function_count;
}

const char *differential_function(int index)
{
	return functions[index].name;
}

int differential_calls(int index, int of_case)
{
	return functions[index].cases[of_case / 8] >> of_case % 8 & 1;
}

const char *differential_module(int index)
{
	Dl_info info;

	return dladdr(functions[index].address, &info) ? info.dli_fname : "";
}

uint64_t differential_offset(int index)
{
	Dl_info info;

	if (!dladdr(functions[index].address, &info))
		return 0;
	return (uint64_t)((char *)functions[index].address - (char *)info.dli_fbase);
}
