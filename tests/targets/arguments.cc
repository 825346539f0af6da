/* SPDX-License-Identifier: Apache-2.0 */
/* Methods whose arguments and return values are known, for tests/unit/test_arguments.py. */
#include <string>

#define KEEP __attribute__((noinline, noclone, used))

extern "C" void run_everything(void);

volatile long sink;

enum class shade : unsigned char { dark = 1, light = 200 };

namespace shop
{
struct base {
	long base_value;
	static int shared;
	virtual ~base() = default;
	KEEP virtual int turn(int by)
	{
		sink += by;
		return (int)base_value + by;
	}
};
int base::shared = 5;

struct second {
	int second_value;
};

struct item : base, second {
	int count;
	shade tone;
	std::string label;
	static const int limit = 7;
	item(long value, int n, const char *text) __attribute__((noinline, used));
	KEEP long add(int a, const double &b, item &other, item &&last, shade s)
	{
		sink += a + (long)b + other.count + last.count + (int)s;
		return count + a;
	}
	KEEP static short fixed(short a)
	{
		sink += a;
		return a;
	}
	KEEP std::string named(int n) const
	{
		sink += n;
		return label;
	}
	KEEP int turn(int by) override
	{
		sink += by;
		return count - by;
	}
	KEEP bool operator()(unsigned a) const
	{
		sink += a;
		return a > 3;
	}
};

item::item(long value, int n, const char *text) : count(n), tone(shade::light), label(text)
{
	base_value = value;
	second_value = 3 * n;
}

/* With a virtual base class a constructor has hidden parameters. */
struct joint : virtual base {
	int own;
	joint(int a, int b) __attribute__((noinline, used));
};
joint::joint(int a, int b) : own(a + b)
{
	base_value = a;
}
struct lower : joint {
	lower(int a) __attribute__((noinline, used));
};
lower::lower(int a) : joint(a, 9)
{
	sink += own;
}
} // namespace shop

struct counted {
	int number;
	int more;
	counted(int n) : number(n), more(n + 1)
	{
	}
	counted(const counted &other) : number(other.number), more(other.more)
	{
	}
	~counted()
	{
		sink += number;
	}
};
struct empty {};
struct derived_pair : empty {
	int x;
	float y;
};

KEEP int by_value(counted a, int b, empty c, derived_pair d, std::string e)
{
	(void)c;
	sink += a.number + b + d.x + (long)e.size();
	return a.more;
}
KEEP counted make(int n)
{
	return counted(n + 100);
}
KEEP int pointers(int shop::item::*a,
		  long (shop::item::*b)(int, const double &, shop::item &, shop::item &&, shade),
		  std::nullptr_t c, int d, const std::string &e)
{
	(void)a;
	(void)b;
	(void)c;
	sink += d + (long)e.size();
	return d;
}
template <typename T> KEEP T larger(T a, T b)
{
	sink += (long)a;
	return a > b ? a : b;
}
template <typename... T> KEEP int pack(int first, T... rest)
{
	sink += (first + ... + (int)rest);
	return first;
}
KEEP int &reference(int &a, int *&b)
{
	sink += a + *b;
	return a;
}

void run_everything(void)
{
	shop::item one(11, 22, "a label"), two(33, 44, "a very long label that lies elsewhere");
	shop::lower low(5);
	counted c(71);
	derived_pair d;
	int number = 17, *at = &number;
	auto lambda = [&](int x) __attribute__((noinline)) { return x + number; };

	d.x = 6;
	d.y = 7.5f;
	one.add(1, 2.5, two, shop::item(55, 66, "last"), shade::dark);
	shop::item::fixed(-9);
	sink += (long)two.named(8).size();
	static_cast<shop::base *>(&one)->turn(4);
	sink += one(3u);
	by_value(c, -2, empty(), d, "by value");
	make(1);
	pointers(&shop::item::count, &shop::item::add, nullptr, 12, "referred to");
	larger(1.5, 2.5);
	larger<short>(4, -3);
	pack(1, 2L, 3.5f, 'c');
	reference(number, at);
	sink += lambda(20);
}
