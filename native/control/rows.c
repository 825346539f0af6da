/* SPDX-License-Identifier: Apache-2.0 */
/** @file Drained events looked through once, for what stands between rings and capture. */
#include <string.h>

#include "textpoke.h"

#define HASH_BITS 12
#define HASHES (1u << HASH_BITS)

static uint32_t hash_of(uint64_t address)
{
	return (uint32_t)(address * 0x9e3779b97f4a7c15ull >> (64 - HASH_BITS));
}

static int is_among(const uint64_t *addresses, uint64_t count, uint64_t address)
{
	uint64_t low = 0, high = count;

	while (low < high) {
		uint64_t middle = low + (high - low) / 2;

		if (addresses[middle] < address)
			low = middle + 1;
		else
			high = middle;
	}
	return low < count && addresses[low] == address;
}

/**
 * Look through @count events. @found, with room for all, gets the indexes of the ENTRYs and EXITs
 * whose return addresses are among the sorted @addresses, up to the first event after @late_tsc.
 */
void tp_scan_rows(const struct tp_event *events, uint64_t count, uint64_t late_tsc,
		  const uint64_t *addresses, uint64_t address_count, uint32_t *found,
		  struct tp_scan *out)
{
	uint64_t maybe[HASHES / 64] = { 0 }, number = 0, data = 0, i;

	for (i = 0; i < address_count; i++)
		maybe[hash_of(addresses[i]) / 64] |= 1ull << hash_of(addresses[i]) % 64;
	for (i = 0; i < count; i++) {
		uint64_t address = events[i].word >> 16;
		uint32_t hash = hash_of(address), kind = events[i].word & 0xf;

		if (kind == TP_EVENT_DATA) {
			data++;
			continue;
		}
		if (events[i].tsc > late_tsc)
			break;
		if (maybe[hash / 64] >> hash % 64 & 1 && kind <= TP_EVENT_EXIT &&
		    is_among(addresses, address_count, address))
			found[number++] = (uint32_t)i;
	}
	*out = (struct tp_scan){ .first_late = i, .found = number, .data = data };
}
