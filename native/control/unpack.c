/* SPDX-License-Identifier: Apache-2.0 */
/** @file The events of a packed block (pack.c) again; nothing in it is trusted. */
#include <errno.h>

#include "pack.h"

struct reader {
	const uint8_t *in, *end;
	uint64_t tsc, data;
	uint32_t state;
};

static uint64_t masked(const uint8_t *bytes, uint32_t count)
{
	uint64_t value;

	memcpy(&value, bytes, 8); /* there is room behind */
	return count == 8 ? value : value & ((1ull << count * 8) - 1);
}

/* The number of the address that an ENTRY or EXIT names; UINT32_MAX: there is no such. */
static uint32_t read_number(struct tp_unpacker *u, struct reader *r, enum place place)
{
	uint32_t number;

	switch (place) {
	case PLACE_EXPECTED:
		number = u->follows[r->state];
		break;
	case PLACE_BYTE:
		number = *r->in++;
		break;
	case PLACE_SHORT:
		number = (uint32_t)masked(r->in, 2);
		r->in += 2;
		break;
	default:
		if (u->count == TP_PACKED_EVENTS)
			return UINT32_MAX;
		number = u->count++;
		u->addresses[number] = masked(r->in, ADDRESS_BYTES);
		u->follows[state_of(number, TP_EVENT_ENTRY)] = 0;
		u->follows[state_of(number, TP_EVENT_EXIT)] = 0;
		r->in += ADDRESS_BYTES;
	}
	return number < u->count ? number : UINT32_MAX;
}

static int read_call(struct tp_unpacker *u, struct reader *r, uint32_t kind, uint64_t zigzag,
		     enum place place, struct tp_event *event)
{
	uint32_t number = read_number(u, r, place);

	if (number == UINT32_MAX)
		return -EBADMSG;
	r->tsc += zigzag >> 1 ^ (0 - (zigzag & 1));
	*event = (struct tp_event){ r->tsc, u->addresses[number] << 16 | kind };
	u->follows[r->state] = (uint16_t)number;
	r->state = state_of(number, kind);
	r->data = UINT64_MAX;
	return 0;
}

static int read_data(struct reader *r, uint64_t value, enum place place, struct tp_event *event)
{
	if (place == PLACE_NEW) {
		r->data = masked(r->in, DATA_BYTES);
		r->in += DATA_BYTES;
	} else if (place == PLACE_EXPECTED && r->data != UINT64_MAX) {
		r->data++;
	} else {
		return -EBADMSG;
	}
	if (r->data > DATA_MASK)
		return -EBADMSG;
	*event = (struct tp_event){ value, r->data << 16 | TP_EVENT_DATA };
	return 0;
}

static int read_event(struct tp_unpacker *u, struct reader *r, struct tp_event *event)
{
	uint32_t control = *r->in++, kind = control & KIND_MASK;
	uint32_t width = 1u << (control >> WIDTH_SHIFT & 3);
	enum place place = control >> PLACE_SHIFT & 3;
	uint64_t value;

	if (control >> CONTROL_BITS)
		return -EBADMSG;
	if (!kind) {
		memcpy(event, r->in, OTHER_BYTES);
		r->in += OTHER_BYTES;
		r->data = UINT64_MAX;
		return control ? -EBADMSG : 0;
	}
	value = masked(r->in, width);
	r->in += width;
	return kind == TP_EVENT_DATA ? read_data(r, value, place, event) :
				       read_call(u, r, kind, value, place, event);
}

/**
 * Unpack a payload of @bytes, behind which TP_PACKED_ROOM more can be read, into @events, of which
 * there are as many as its header says: @count. 0; -EBADMSG: it is damaged.
 */
int tp_unpack(struct tp_unpacker *u, const uint8_t *payload, uint64_t bytes,
	      struct tp_event *events, uint32_t count)
{
	struct packed_header header;
	struct reader r = { payload + sizeof(header), payload + bytes, 0, UINT64_MAX, 0 };

	if (bytes < sizeof(header))
		return -EBADMSG;
	memcpy(&header, payload, sizeof(header));
	if (header.events != count || count > TP_PACKED_EVENTS || header.zero ||
	    header.check != packed_check(&header, r.in, (uint64_t)(r.end - r.in)))
		return -EBADMSG;
	u->count = 0;
	u->follows[0] = 0;
	for (uint32_t i = 0; i < count; i++)
		if (r.in >= r.end || read_event(u, &r, &events[i]))
			return -EBADMSG;
	return r.in == r.end ? 0 : -EBADMSG;
}
