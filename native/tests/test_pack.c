/* SPDX-License-Identifier: Apache-2.0 */
/** @file pack.c and unpack.c: what goes in comes out, and what is damaged is said to be. */
#include <errno.h>
#include <stdlib.h>

#include "check.h"
#include "pack.h"

static struct tp_packer packer;
static struct tp_unpacker unpacker;
static uint64_t state = 1;

static uint64_t any(uint64_t end)
{
	state = state * 6364136223846793005ull + 1442695040888963407ull;
	return (state >> 20) % end;
}

static struct tp_event call(uint64_t tsc, uint64_t address, uint64_t kind)
{
	return (struct tp_event){ tsc, address << 16 | kind };
}

/* As the tool unpacks: room behind, and not a byte more. */
static int unpack(const uint8_t *payload, uint64_t bytes, struct tp_event *events, uint32_t count)
{
	uint8_t *copy = malloc(bytes + TP_PACKED_ROOM);
	int error;

	memcpy(copy, payload, bytes);
	memset(copy + bytes, 0xa5, TP_PACKED_ROOM);
	error = tp_unpack(&unpacker, copy, bytes, events, count);
	free(copy);
	return error;
}

/* Returns the bytes that it took. */
static uint64_t there_and_back(const struct tp_event *events, uint32_t count)
{
	struct tp_event *found = malloc((count + 1) * sizeof(*found));
	uint64_t bytes = tp_pack(&packer, events, count);

	CHECK(bytes + TP_PACKED_ROOM <= sizeof(packer.out));
	CHECK_EQ(unpack(packer.out, bytes, found, count), 0);
	CHECK_BYTES(found, events, count * sizeof(*events));
	free(found);
	return bytes;
}

static struct packed_header header(void)
{
	struct packed_header found;

	memcpy(&found, packer.out, sizeof(found));
	return found;
}

TEST(nothing_at_all)
{
	struct tp_event none = { 0, 0 };

	CHECK_EQ(there_and_back(&none, 0), TP_PACKED_HEADER_BYTES);
	CHECK_EQ(header().events, 0);
	CHECK_EQ(header().first_tsc, 0);
}

TEST(a_loop_takes_two_bytes_an_event)
{
	static struct tp_event events[TP_PACKED_EVENTS];
	uint64_t bytes;

	for (uint32_t i = 0; i < TP_PACKED_EVENTS; i++)
		events[i] = call(1000000ull + i * 40, 0x401005 + i / 2 % 3, i & 1 ? 2 : 1);
	bytes = there_and_back(events, TP_PACKED_EVENTS);
	CHECK(bytes < TP_PACKED_EVENTS * 2 + 100);
	CHECK_EQ(header().first_tsc, 1000000);
}

TEST(every_event_of_an_address_of_its_own)
{
	static struct tp_event events[TP_PACKED_EVENTS];

	for (int turn = 0; turn < 3; turn++) { /* the table is the same one, block after block */
		for (uint32_t i = 0; i < TP_PACKED_EVENTS; i++)
			events[i] = call(any(UINT64_MAX), (0x7f0000000000 + i * 64ull), 1);
		there_and_back(events, TP_PACKED_EVENTS);
	}
}

TEST(times_that_jump_to_and_fro)
{
	static const uint64_t times[] = {
		0,	    UINT64_MAX, 1, 1ull << 63,	    0x7f, 0x80, 0x7fff, 0x8000, 1ull << 31,
		1ull << 32, UINT64_MAX, 0, (1ull << 63) - 1
	};
	struct tp_event events[sizeof(times) / sizeof(*times)];

	for (uint32_t i = 0; i < sizeof(times) / sizeof(*times); i++)
		events[i] = call(times[i], ADDRESS_MASK - i % 2, 1 + i % 2);
	there_and_back(events, sizeof(times) / sizeof(*times));
}

TEST(payloads_and_what_they_begin_with)
{
	struct tp_event events[] = {
		{ 7, 2ull << 16 | 3 }, /* the rest of one in the block before */
		{ 8, 3ull << 16 | 3 },
		call(500, 0x401005, 1),
		{ UINT64_MAX, (0ull | 3 << 8) << 16 | 3 },
		{ 0, (1ull | 3 << 8) << 16 | 3 },
		{ 0x100, (2ull | 3 << 8) << 16 | 3 },
		call(600, 0x401005, 2),
		{ 0x1000000, (0ull | 1 << 8 | 1 << 16) << 16 | 3 },
		{ 5, 0x20000ull << 16 | 3 }, /* bits that mean nothing */
		{ 6, DATA_MASK << 16 | 3 },
		{ 6, 0ull << 16 | 3 },
		{ 9, 0xfedcba987654321ull << 4 | 9 }, /* a type that nobody knows */
		call(700, 0x401005, 1),
	};

	there_and_back(events, sizeof(events) / sizeof(*events));
	CHECK_EQ(header().rest, 2);
	CHECK_EQ(header().first_tsc, 500);
}

TEST(many_blocks_use_the_table_again)
{
	struct tp_event events[3];

	for (uint32_t turn = 0; turn < 70000; turn++) { /* the epoch comes round */
		CHECK_NOTE("turn %u", turn);
		events[0] = call(turn, 0x1000 + turn % 7, 1);
		events[1] = call(turn + 9, 0x1000 + turn % 5, 2);
		events[2] = call(turn + 12, 0x1000 + turn % 3, 1);
		there_and_back(events, 3);
	}
}

static struct tp_event random_event(uint64_t *tsc)
{
	uint64_t address = 0x401000 + any(any(8) ? 40 : 100000);

	*tsc += any(8) ? any(400) : any(1ull << 40) - (1ull << 39);
	switch (any(10)) {
	case 0:
		return (struct tp_event){ any(UINT64_MAX), any(1 << 17) << 16 | 3 };
	case 1:
		return (struct tp_event){ any(256), any(4) << 16 | 3 };
	case 2:
		return (struct tp_event){ any(UINT64_MAX), any(UINT64_MAX) << 4 | (4 + any(12)) };
	default:
		return call(*tsc, address, 1 + any(2));
	}
}

TEST(anything)
{
	static struct tp_event events[TP_PACKED_EVENTS];

	for (uint32_t turn = 0; turn < 300; turn++) {
		uint32_t count = (uint32_t)any(turn % 10 ? 200 : TP_PACKED_EVENTS + 1);
		uint64_t tsc = any(1ull << 60);

		CHECK_NOTE("turn %u", turn);
		for (uint32_t i = 0; i < count; i++)
			events[i] = random_event(&tsc);
		there_and_back(events, count);
	}
}

TEST(every_damaged_byte_is_seen)
{
	struct tp_event events[64], found[64];
	uint64_t tsc = 5, bytes;

	for (uint32_t i = 0; i < 64; i++)
		events[i] = random_event(&tsc);
	bytes = tp_pack(&packer, events, 64);
	for (uint64_t i = 0; i < bytes; i++) {
		packer.out[i] ^= 0x40;
		CHECK_NOTE("byte %d", (int)i);
		CHECK_EQ(unpack(packer.out, bytes, found, 64), -EBADMSG);
		packer.out[i] ^= 0x40;
		CHECK_EQ(unpack(packer.out, i, found, 64), -EBADMSG);
	}
	CHECK_EQ(unpack(packer.out, bytes, found, 63), -EBADMSG);
	CHECK_EQ(unpack(packer.out, bytes, found, 64), 0);
}

/* The check is right, what it covers is not: whoever writes such a file may do what he wants. */
static int unpack_signed(struct packed_header head, const uint8_t *body, uint64_t bytes)
{
	uint8_t payload[256];
	struct tp_event found[8];

	head.check = packed_check(&head, body, bytes);
	memcpy(payload, &head, sizeof(head));
	memcpy(payload + sizeof(head), body, bytes);
	return unpack(payload, sizeof(head) + bytes, found, head.events);
}

TEST(what_cannot_be_is_refused)
{
	static const struct {
		uint32_t events;
		uint16_t zero;
		uint32_t bytes;
		uint8_t body[24];
	} bad[] = {
		{ 1, 0, 2, { 1, 5 } },		   /* what follows: nothing yet */
		{ 1, 0, 3, { 1 | 1 << 4, 5, 0 } }, /* the first address, which is not there */
		{ 1, 0, 4, { 1 | 2 << 4, 5, 9, 9 } },
		{ 1, 0, 2, { 3, 5 } }, /* the next word of no payload */
		{ 1, 0, 3, { 3 | 1 << 4, 5, 0 } },
		{ 1, 0, 5, { 3 | 3 << 4, 5, 0, 0, 2 } }, /* bits that DATA has not */
		{ 1, 0, 17, { 4 } },			 /* a control byte of no meaning */
		{ 1, 0, 8, { 0x40 | 1 | 3 << 4, 5, 1 } },
		{ 1, 0, 7, { 1 | 3 << 4, 5, 1 } }, /* a byte too few */
		{ 1, 0, 9, { 1 | 3 << 4, 5, 1 } }, /* one too many */
		{ 2, 0, 8, { 1 | 3 << 4, 5, 1 } }, /* an event too few */
		{ 1, 1, 8, { 1 | 3 << 4, 5, 1 } },
	};
	struct packed_header good = { .events = 1 };

	for (uint32_t i = 0; i < sizeof(bad) / sizeof(*bad); i++) {
		struct packed_header head = { .events = bad[i].events, .zero = bad[i].zero };

		CHECK_NOTE("case %u", i);
		CHECK_EQ(unpack_signed(head, bad[i].body, bad[i].bytes), -EBADMSG);
	}
	CHECK_NOTE(" ");
	CHECK_EQ(unpack_signed(good, (const uint8_t[]){ 1 | 3 << 4, 5, 1, 0, 0, 0, 0, 0 }, 8), 0);
}
