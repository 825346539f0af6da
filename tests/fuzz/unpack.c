/* SPDX-License-Identifier: Apache-2.0 */
/**
 * @file
 * Fuzzer of packed events (native/control/pack.c, unpack.c): what was packed comes back, and what
 * somebody has written by hand, check and all, is refused or read without a step beside it.
 */
#include <errno.h>

#include "fuzz.h"
#include "pack.h"

enum { MOST = 96 };

static struct tp_packer packer;
static struct tp_unpacker unpacker;

static struct tp_event event(uint64_t tsc)
{
	uint64_t kind = fuzz_below(8) ? 1 + fuzz_below(3) : fuzz_below(16);
	uint64_t rest = fuzz_below(4) ? fuzz_below(1 << 18) : fuzz_number();

	if (kind == TP_EVENT_ENTRY || kind == TP_EVENT_EXIT)
		rest &= ADDRESS_MASK; /* and no lap, which means nothing in a capture */
	return (struct tp_event){ kind == TP_EVENT_DATA ? fuzz_number() : tsc, rest << 16 | kind };
}

/* To the byte, so that a sanitizer sees a step beside it. */
static int unpack(const uint8_t *payload, uint64_t bytes, struct tp_event *found, uint32_t count)
{
	uint8_t *copy = malloc(bytes + TP_PACKED_ROOM);
	int error;

	memcpy(copy, payload, bytes);
	memset(copy + bytes, 0, TP_PACKED_ROOM);
	error = tp_unpack(&unpacker, copy, bytes, found, count);
	free(copy);
	return error;
}

static uint64_t round_trip(struct tp_event *events, uint32_t count)
{
	struct tp_event *found = malloc((count + 1) * sizeof(*found));
	uint64_t bytes;

	for (uint32_t i = 0; i < count; i++)
		events[i] = event(fuzz_below(3) ? i * 50 : fuzz_number());
	bytes = tp_pack(&packer, events, count);
	FUZZ_CHECK(bytes <= TP_PACKED_HEADER_BYTES + count * (uint64_t)TP_PACKED_EVENT_BYTES);
	FUZZ_CHECK(unpack(packer.out, bytes, found, count) == 0);
	FUZZ_CHECK(!memcmp(found, events, count * sizeof(*found)));
	free(found);
	return bytes;
}

static void run(void)
{
	struct tp_event events[MOST];
	uint32_t count = (uint32_t)fuzz_below(MOST + 1);
	uint64_t bytes = round_trip(events, count);
	struct packed_header header;
	struct tp_event *found;
	int error;

	for (uint64_t i = fuzz_below(4); i; i--)
		packer.out[fuzz_below(bytes)] = (uint8_t)fuzz_next();
	if (!fuzz_below(4))
		bytes = fuzz_below(bytes + 1);
	if (bytes < sizeof(header))
		return;
	memcpy(&header, packer.out, sizeof(header));
	header.events %= MOST + 2;
	header.check = packed_check(&header, packer.out + sizeof(header), bytes - sizeof(header));
	memcpy(packer.out, &header, sizeof(header));
	found = malloc((header.events + 1) * sizeof(*found));
	error = unpack(packer.out, bytes, found, header.events);
	FUZZ_CHECK(!error || error == -EBADMSG);
	free(found);
}

int main(int argc, char **argv)
{
	return fuzz_main(argc, argv, run);
}
