// SPDX-License-Identifier: Apache-2.0
/** @file C++ names: namespaces, overloads, templates, operators, lambdas, constructor aliases. */
#include <stdio.h>

volatile int sink;

namespace shop
{
struct Cart {
	Cart();
	int add(int item);
	int add(const char *name);
	bool operator!() const;
	Cart &operator<<(int item);
	operator int() const;
};

__attribute__((noipa)) Cart::Cart()
{
	sink++;
}

__attribute__((noipa)) int Cart::add(int item)
{
	return sink += item;
}

__attribute__((noipa)) int Cart::add(const char *name)
{
	return sink += *name;
}

__attribute__((noipa)) bool Cart::operator!() const
{
	return !sink;
}

__attribute__((noipa)) Cart &Cart::operator<<(int item)
{
	sink += item;
	return *this;
}

__attribute__((noipa)) Cart::operator int() const
{
	return sink;
}

template <typename T> __attribute__((noipa)) unsigned long total(T first, T (*step)(T))
{
	return sink += (int)step(first);
}
} // namespace shop

namespace
{
__attribute__((noipa)) int hidden(int x)
{
	return sink += x;
}
} // namespace

int main()
{
	shop::Cart cart;
	cart.add(1);
	cart.add("x");
	cart << 3;
	sink += !cart + (int)cart;
	shop::total<int>(1, [](int x) { return hidden(x); });
	puts("ready");
	fflush(stdout);
	return getchar() == EOF;
}
