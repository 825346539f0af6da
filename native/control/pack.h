/* SPDX-License-Identifier: Apache-2.0 */
/** @file What packing events (pack.c) and unpacking them (unpack.c) share: docs/formats.md, PACKED. */
#ifndef TP_PACK_H
#define TP_PACK_H

#include <string.h>

#include "textpoke.h"

/** Before the packed events. */
struct packed_header {
	uint32_t events;
	uint16_t rest; /* DATA at the begin: of an event in the ring's block before */
	uint16_t zero;
	uint64_t first_tsc; /* of the first event behind those; 0: there is none */
	uint64_t check;	    /* of all that is before and behind this field */
};

_Static_assert(sizeof(struct packed_header) == TP_PACKED_HEADER_BYTES, "docs/formats.md");

/* The control byte of an event. */
enum { KIND_MASK = 3, WIDTH_SHIFT = 2, PLACE_SHIFT = 4, CONTROL_BITS = 6 };

/** How the second word is told: an ENTRY's or EXIT's address, or which word of its payload DATA is. */
enum place {
	PLACE_EXPECTED, /* what followed the last time; of DATA, the next word */
	PLACE_BYTE,	/* number of the address, in one byte */
	PLACE_SHORT,	/* in two */
	PLACE_NEW, /* an address that gets the next number, in six bytes; of DATA, all bits in three */
};

enum { ADDRESS_BYTES = 6, DATA_BYTES = 3, OTHER_BYTES = 16 };

#define ADDRESS_MASK 0xffffffffffffull
#define DATA_MASK 0x1ffffull /* index, count, whether of an EXIT */

/** An event whose second word follows from that of the one before: where to look what followed. */
static inline uint32_t state_of(uint32_t number, uint32_t kind)
{
	return number << 1 | (kind == TP_EVENT_EXIT);
}

static inline uint64_t load(const uint8_t *bytes, uint64_t count)
{
	uint64_t value = 0;

	memcpy(&value, bytes, count);
	return value;
}

/** FNV-1a's steps on words of eight bytes, for a payload of these two parts. */
static inline uint64_t packed_check(const struct packed_header *header, const uint8_t *bytes,
				    uint64_t count)
{
	uint64_t hash = 0xcbf29ce484222325ull, i;

	hash = (hash ^ load((const uint8_t *)header, 8)) * 0x100000001b3ull;
	hash = (hash ^ header->first_tsc) * 0x100000001b3ull;
	for (i = 0; i + 8 <= count; i += 8)
		hash = (hash ^ load(bytes + i, 8)) * 0x100000001b3ull;
	return (hash ^ load(bytes + i, count - i)) * 0x100000001b3ull;
}

#endif
