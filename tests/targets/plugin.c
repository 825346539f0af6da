// SPDX-License-Identifier: Apache-2.0
/**
 * @file
 * A shared object that tests/targets/plugins.c opens and closes again and again. FACTOR makes one
 * differ from another; PADDING moves its functions.
 */
#ifndef FACTOR
#define FACTOR 3
#endif
#ifndef PADDING
#define PADDING 0
#endif

#define HOT __attribute__((noipa))
#if PADDING
HOT __attribute__((used)) static unsigned long padding(unsigned long x)
{
	for (unsigned long i = 0; i < x; i++)
		x ^= i << 3;
	return x;
}
#endif

HOT unsigned long leaf(unsigned long x)
{
	return x * FACTOR;
}

HOT unsigned long plugin(unsigned long x)
{
#if PADDING
	if (x > 1ul << 40)
		x = padding(x);
#endif
	return leaf(x) + leaf(x + 1);
}
