/* SPDX-License-Identifier: Apache-2.0 */
/* Functions whose arguments and return values are known, for tests/unit/test_arguments.py. */
#include <complex.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define KEEP __attribute__((noinline, noclone, used))

enum colour { RED, GREEN = 7, BLUE = 1000000 };
enum level { LOW = -3, HIGH = 5 };
typedef enum { ONE = 1, TWO } anonymous_enum;
typedef char *sds;
typedef const volatile int quite_constant;
typedef quite_constant deeper;
typedef deeper deepest;

struct inner {
	short number;
	const char *text;
	long values[4];
};
struct flags {
	unsigned int low : 3;
	int middle : 5;
	unsigned int : 2;
	unsigned int high : 12;
	unsigned long long wide : 40;
	enum colour hue : 20;
	_Bool yes : 1;
};
union either {
	int32_t whole;
	float real;
	char bytes[8];
};
struct client {
	uint64_t id;
	int argc;
	char **argv;
	struct inner inner;
	struct inner *other;
	struct {
		int hidden;
		union {
			double fraction;
			uint64_t raw;
		};
	};
	union either either;
	struct flags flags;
	char name[12];
	enum level level;
	int (*callback)(int);
	struct client *next;
	int matrix[2][3];
	struct inner array[2];
	void *opaque;
};
struct pair {
	int a;
	int b;
};
struct mixed {
	double real;
	long whole;
};
struct floats {
	float x, y, z;
};
struct large {
	long a, b, c;
};
struct __attribute__((packed)) packed {
	char c;
	long l;
};
struct bits {
	unsigned int a : 4;
	int b : 7;
	unsigned long c : 50;
};
struct text {
	char bytes[8];
};
struct nested {
	struct pair pair;
	float f[2];
};
struct aligned {
	long long a __attribute__((aligned(16)));
};

volatile long sink;

KEEP long integers(int8_t a, uint16_t b, int c, unsigned int d, long e, unsigned long long f,
		   short g, int64_t h, unsigned char i)
{
	sink = a + b + c + d + e + f + g + h + i;
	return -77;
}
KEEP float reals(float a, double b, int c, float d)
{
	sink = (long)(a + b + c + d);
	return a;
}
KEEP double many_reals(double a, double b, double c, double d, double e, double f, double g,
		       double h, double i, float j)
{
	sink = (long)(a + b + c + d + e + f + g + h + i + j);
	return i;
}
KEEP const char *texts(const char *a, sds b, char **c, unsigned char *d, char e, signed char f)
{
	sink = *a + *b + **c + *d + e + f;
	return b;
}
KEEP enum colour enums(enum colour a, enum level b, anonymous_enum c, bool d)
{
	sink = a + b + c + d;
	return BLUE;
}
KEEP struct client *clients(struct client *c, deepest x, struct client **cc, int (*f)(int))
{
	sink = c->argc + x + (*cc)->argc + f(1);
	return c;
}
KEEP struct pair pairs(struct pair a, struct mixed b, struct floats c, struct nested d)
{
	sink = a.a + b.whole + (long)c.z + d.pair.a;
	return a;
}
KEEP struct mixed mixeds(struct mixed a, struct mixed b, struct mixed c, struct mixed d,
			 struct mixed e, struct mixed f, struct mixed g, int h)
{
	sink = a.whole + b.whole + c.whole + d.whole + e.whole + f.whole + g.whole + h;
	return g;
}
KEEP struct large larges(struct large a, int b, struct packed c, struct bits d, struct text e)
{
	sink = a.a + b + c.l + d.c + e.bytes[0];
	return a;
}
/* The struct of two words does not fit where one register is left, and a later int does. */
KEEP int leftover(long a, long b, long c, long d, long e, struct pair f, struct text g,
		  struct large h, struct mixed i, int j, int k)
{
	sink = a + b + c + d + e + f.a + g.bytes[0] + h.a + i.whole + j + k;
	return k;
}
KEEP int wide(__int128 a, long double b, int c, struct aligned d, double complex e, float complex f,
	      float g, long double h, int i, int j, int k)
{
	sink = (long)a + (long)b + c + d.a + (long)creal(e) + (long)creal(f) + (long)g + (long)h +
	       i + j + k;
	return k;
}
KEEP __int128 wide_again(int a, int b, int c, int d, int e, __int128 f, int g, int h, __int128 i)
{
	sink = a + b + c + d + e + (long)f + g + h + (long)i;
	return i;
}
KEEP void quiet(int a, struct large b, const char *format, ...)
{
	sink = a + b.b + *format;
}
struct opaque;
struct opaque *only_declared(void);
KEEP int opaques(struct opaque *o)
{
	sink = o != NULL;
	return 3;
}
KEEP void nothing(void)
{
	sink = 0;
}
KEEP unsigned char narrow(_Bool a, ptrdiff_t b, wchar_t c)
{
	sink = a + b + c;
	return 200;
}
static inline int copied(int a, const char *b)
{
	sink += a;
	return b[0] + a;
}
typedef int (*copied_type)(int, const char *);
copied_type volatile copied_at = copied;

/* Its second argument is always the same: gcc makes a clone without it. */
static __attribute__((noinline)) int cloned(int a, int b, int c)
{
	sink += a + b;
	return a * b + c * (int)sink;
}

static int callee(int a)
{
	return a;
}

void run_everything(void);
void run_everything(void)
{
	char name[] = "a name", *argv[] = { "GET", "key", NULL };
	struct client last = { .id = 3, .argc = 0, .name = "last" };
	struct inner other = { 5, "other text", { 1, 2, 3, 4 } };
	struct client c = {
		.id = 0x1122334455667788,
		.argc = -2,
		.argv = argv,
		.inner = { -7, "inner text", { 10, 20, 30, -40 } },
		.other = &other,
		.hidden = 99,
		.fraction = 2.5,
		.flags = { 5, -9, 0xabc, 0x123456789a, GREEN, 1 },
		.name = "twelve bytes",
		.level = LOW,
		.callback = callee,
		.next = &last,
		.matrix = { { 1, 2, 3 }, { 4, 5, 6 } },
		.array = { { 1, "first", { 0 } }, { 2, "second", { 0, 0, 8 } } },
		.opaque = &other,
	};
	struct client *pc = &c;
	struct mixed m[7] = { { 0.5, 1 }, { 1.5, 2 }, { 2.5, 3 }, { 3.5, 4 },
			      { 4.5, 5 }, { 5.5, 6 }, { 6.5, 7 } };

	c.either.whole = -5;
	integers(-1, 65535, -3, 4000000000u, -5, 1ull << 63, -7, -8, 255);
	reals(1.5f, -2.25, 3, 4.5f);
	many_reals(1, 2, 3, 4, 5, 6, 7, 8, 9.5, 10.5f);
	texts("a text that is much longer than thirty-two bytes", name, argv, (unsigned char *)name,
	      'x', -1);
	enums(GREEN, LOW, TWO, true);
	clients(&c, 42, &pc, callee);
	pairs((struct pair){ 1, -2 }, m[0], (struct floats){ 1, 2, 3.5f },
	      (struct nested){ { 3, 4 }, { 5.5f, 6.5f } });
	mixeds(m[0], m[1], m[2], m[3], m[4], m[5], m[6], 8);
	larges((struct large){ 1, -2, 3 }, 4, (struct packed){ 'p', -6 },
	       (struct bits){ 9, -33, 1ul << 49 }, (struct text){ "sevenby" });
	leftover(1, 2, 3, 4, 5, (struct pair){ 6, 7 }, (struct text){ "t" },
		 (struct large){ 8, 9, 10 }, m[1], 11, 12);
	wide(5 - ((__int128)1 << 64), 2.5L, 3, (struct aligned){ 4 }, 5.5 + 6.5 * I,
	     7.5f + 8.5f * I, 9.5f, 10.5L, 11, 12, 13);
	wide_again(1, 2, 3, 4, 5, 6, 7, 8, -9);
	quiet(-6, (struct large){ 1, 2, 3 }, "%d", 4);
	opaques(only_declared());
	nothing();
	narrow(true, -5, L'w');
	copied_at(21, "copy");
	cloned(31, 7, 41);
	cloned(31, 7, 42);
}
