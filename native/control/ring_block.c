/* SPDX-License-Identifier: Apache-2.0 */
/** @file Events as they stand in a capture: docs/formats.md. */
#include <errno.h>
#include <sys/uio.h>
#include <unistd.h>

#include "rings.h"

#define BLOCK_MAGIC 0x4b425054u /* "TPBK" */
#define BLOCK_EVENTS 2u
#define BLOCK_PACKED 7u

struct block_header {
	uint32_t magic;
	uint32_t type;
	uint64_t payload_bytes;
	uint64_t lost;
	uint32_t tid;
	uint32_t generation;
	uint64_t sequence;
	uint32_t ring;
	uint32_t check;
};

_Static_assert(sizeof(struct block_header) == 48, "docs/formats.md");

/* FNV-1a, 32 bits. */
static uint32_t checksum(const void *data, size_t bytes)
{
	const uint8_t *byte = data;
	uint32_t hash = 0x811c9dc5u;

	for (size_t i = 0; i < bytes; i++)
		hash = (hash ^ byte[i]) * 0x01000193u;
	return hash;
}

static int write_all(int fd, struct iovec *vector, int count)
{
	while (count) {
		ssize_t done = writev(fd, vector, count);

		if (done < 0 && errno == EINTR)
			continue;
		if (done < 0)
			return -errno;
		while (count && (size_t)done >= vector->iov_len) {
			done -= (ssize_t)vector->iov_len;
			vector++;
			count--;
		}
		if (count) {
			vector->iov_base = (char *)vector->iov_base + done;
			vector->iov_len -= (size_t)done;
		}
	}
	return 0;
}

static int write_one(const struct tp_rings *rings, uint32_t i, int fd, uint32_t type,
		     const struct tp_block *block, struct iovec payload, uint64_t *bytes)
{
	const struct tp_ring *ring = ring_at(rings, i);
	struct block_header header = {
		.magic = BLOCK_MAGIC,
		.type = type,
		.payload_bytes = payload.iov_len,
		.lost = block->lost,
		.tid = ring->tid,
		.generation = ring->generation,
		.sequence = block->sequence,
		.ring = i,
	};
	struct iovec vector[2] = { { &header, sizeof(header) }, payload };

	header.check = checksum(&header, sizeof(header) - sizeof(header.check));
	*bytes += sizeof(header) + header.payload_bytes;
	return fd < 0 ? 0 : write_all(fd, vector, 2);
}

/* As several blocks that follow each other; what was lost is at one end. */
static int write_packed(const struct tp_rings *rings, uint32_t i, int fd, struct tp_packer *packer,
			const struct tp_block *block, uint64_t *bytes)
{
	const struct tp_event *events = (const struct tp_event *)rings->buffer + block->at;
	int error = 0;

	for (uint64_t done = 0, part; !error && done < block->events; done += part) {
		struct tp_block one = { .sequence = block->sequence + done };
		struct iovec payload = { .iov_base = packer->out };

		part = block->events - done;
		if (part > TP_PACKED_EVENTS)
			part = TP_PACKED_EVENTS;
		if (block->older ? !done : done + part == block->events)
			one.lost = block->lost;
		payload.iov_len = tp_pack(packer, events + done, (uint32_t)part);
		error = write_one(rings, i, fd, BLOCK_PACKED, &one, payload, bytes);
	}
	return error;
}

/** Write events from the buffer as blocks of ring @i; fd -1: only count. 0 or -errno. */
int tp_write_block(const struct tp_rings *rings, uint32_t i, int fd, struct tp_packer *packer,
		   const struct tp_block *block, uint64_t *bytes)
{
	struct iovec payload = { rings->buffer + block->at * sizeof(struct tp_event),
				 block->events * sizeof(struct tp_event) };

	if (packer && block->events && fd >= 0)
		return write_packed(rings, i, fd, packer, block, bytes);
	return write_one(rings, i, fd, BLOCK_EVENTS, block, payload, bytes);
}
