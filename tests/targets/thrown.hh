// SPDX-License-Identifier: Apache-2.0
/** @file What the targets that throw share: a cleanup that counts, and a depth to throw from. */
#ifndef THROWN_H
#define THROWN_H

#include <stdexcept>

#define PLAIN __attribute__((noipa, no_instrument_function, patchable_function_entry(0)))
#define TRACED __attribute__((noipa))

struct Counted {
	int &alive;
	TRACED explicit Counted(int &count) : alive(count) { alive++; }
	TRACED ~Counted() { alive--; }
};

TRACED inline int dive(int depth, int &alive)
{
	Counted here(alive);

	if (!depth)
		throw std::runtime_error("bottom");
	return dive(depth - 1, alive) + 1;
}

#endif
