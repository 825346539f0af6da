/* SPDX-License-Identifier: Apache-2.0 */
/**
 * @file
 * Events of sixteen bytes in about three: times as differences, addresses as numbers, and what
 * follows an event as it did the last time not at all. Every block is packed by itself.
 */
#include "pack.h"

enum { TABLE = TP_PACKED_EVENTS * 2 };

static uint32_t place_of(uint64_t address)
{
	return (uint32_t)((address * 0x9e3779b97f4a7c15ull) >> 49) & (TABLE - 1);
}

/* The number of an address in this block; @is_new: it has just got it. */
static uint32_t number_of(struct tp_packer *p, uint64_t address, int *is_new)
{
	uint32_t at = place_of(address);

	for (;; at = (at + 1) & (TABLE - 1)) {
		uint32_t number = p->table[at] & 0xffff;

		if (p->table[at] >> 16 != p->epoch)
			break;
		if (p->addresses[number] == address) {
			*is_new = 0;
			return number;
		}
	}
	*is_new = 1;
	p->table[at] = p->epoch << 16 | p->count;
	p->addresses[p->count] = address;
	p->follows[state_of(p->count, TP_EVENT_ENTRY)] = 0;
	p->follows[state_of(p->count, TP_EVENT_EXIT)] = 0;
	return p->count++;
}

static void begin(struct tp_packer *p)
{
	p->epoch = (p->epoch + 1) & 0xffff;
	if (!p->epoch) {
		memset(p->table, 0, sizeof(p->table));
		p->epoch = 1;
	}
	p->count = 0;
	p->follows[0] = 0;
}

/* 0, 1, 2, 3: one, two, four, eight bytes hold it. */
static uint32_t width_of(uint64_t value)
{
	return (value > 0xff) + (value > 0xffff) + (value > 0xffffffff);
}

static uint8_t *put(uint8_t *out, uint64_t value, uint32_t bytes)
{
	memcpy(out, &value, 8); /* there is room behind */
	return out + bytes;
}

struct last {
	uint64_t tsc;	/* of the last ENTRY or EXIT */
	uint64_t data;	/* the bits of the last event, where that was DATA; else UINT64_MAX */
	uint32_t state; /* of the last ENTRY or EXIT */
};

static uint8_t *put_call(struct tp_packer *p, const struct tp_event *event, struct last *last,
			 uint8_t *out)
{
	uint32_t kind = event->word & 0xf;
	int64_t step = (int64_t)(event->tsc - last->tsc);
	uint64_t zigzag = (uint64_t)step << 1 ^ (uint64_t)(step >> 63);
	uint32_t width = width_of(zigzag), place;
	int is_new;
	uint32_t number = number_of(p, event->word >> 16, &is_new);
	uint8_t *control = out;

	out = put(out + 1, zigzag, 1u << width);
	if (is_new) {
		place = PLACE_NEW;
		out = put(out, event->word >> 16, ADDRESS_BYTES);
	} else if (p->follows[last->state] == number) {
		place = PLACE_EXPECTED;
	} else {
		place = number > 0xff ? PLACE_SHORT : PLACE_BYTE;
		out = put(out, number, place == PLACE_SHORT ? 2 : 1);
	}
	*control = (uint8_t)(kind | width << WIDTH_SHIFT | place << PLACE_SHIFT);
	p->follows[last->state] = (uint16_t)number;
	*last = (struct last){ event->tsc, UINT64_MAX, state_of(number, kind) };
	return out;
}

static uint8_t *put_data(const struct tp_event *event, struct last *last, uint8_t *out)
{
	uint32_t width = width_of(event->tsc);
	uint64_t bits = event->word >> 16 & DATA_MASK;
	uint32_t place = last->data != UINT64_MAX && bits == last->data + 1 ? PLACE_EXPECTED :
									      PLACE_NEW;
	uint8_t *control = out;

	out = put(out + 1, event->tsc, 1u << width);
	if (place == PLACE_NEW)
		out = put(out, bits, DATA_BYTES);
	*control = (uint8_t)(TP_EVENT_DATA | width << WIDTH_SHIFT | place << PLACE_SHIFT);
	last->data = bits;
	return out;
}

/* Of a type that nobody knows, or with bits that have no meaning: as it is. */
static uint8_t *put_other(const struct tp_event *event, uint8_t *out)
{
	*out = 0;
	memcpy(out + 1, event, OTHER_BYTES);
	return out + 1 + OTHER_BYTES;
}

static int is_plain_data(uint64_t word)
{
	return (word & 0xf) == TP_EVENT_DATA && word >> 16 <= DATA_MASK;
}

static struct packed_header header_of(const struct tp_event *events, uint32_t count)
{
	struct packed_header header = { .events = count };

	while (header.rest < count && (events[header.rest].word & 0xf) == TP_EVENT_DATA)
		header.rest++;
	if (header.rest < count)
		header.first_tsc = events[header.rest].tsc;
	return header;
}

/**
 * Pack @count events (TP_PACKED_EVENTS at most) into p->out. Returns the bytes of the payload.
 */
uint64_t tp_pack(struct tp_packer *p, const struct tp_event *events, uint32_t count)
{
	struct packed_header header = header_of(events, count);
	struct last last = { 0, UINT64_MAX, 0 };
	uint8_t *begun = p->out + sizeof(header), *out = begun;

	begin(p);
	for (uint32_t i = 0; i < count; i++) {
		uint32_t kind = events[i].word & 0xf;

		if (kind == TP_EVENT_ENTRY || kind == TP_EVENT_EXIT) {
			out = put_call(p, &events[i], &last, out);
		} else if (is_plain_data(events[i].word)) {
			out = put_data(&events[i], &last, out);
		} else {
			out = put_other(&events[i], out);
			last.data = UINT64_MAX;
		}
	}
	header.check = packed_check(&header, begun, (uint64_t)(out - begun));
	memcpy(p->out, &header, sizeof(header));
	return (uint64_t)(out - p->out);
}
