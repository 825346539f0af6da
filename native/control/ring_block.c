/* SPDX-License-Identifier: Apache-2.0 */
/** @file Events as they stand in a capture: docs/formats.md. */
#include <errno.h>
#include <sys/uio.h>
#include <unistd.h>

#include "rings.h"

#define BLOCK_MAGIC 0x4b425054u /* "TPBK" */
#define BLOCK_EVENTS 2u

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

/** Write events from the buffer as a block of ring @i; fd -1: only count. 0 or -errno. */
int tp_write_block(const struct tp_rings *rings, uint32_t i, int fd, const struct tp_block *block,
		   uint64_t *bytes)
{
	const struct tp_ring *ring = ring_at(rings, i);
	struct block_header header = {
		.magic = BLOCK_MAGIC,
		.type = BLOCK_EVENTS,
		.payload_bytes = block->events * sizeof(struct tp_event),
		.lost = block->lost,
		.tid = ring->tid,
		.generation = ring->generation,
		.sequence = block->sequence,
		.ring = i,
	};
	struct iovec vector[2] = { { &header, sizeof(header) },
				   { rings->buffer + block->at * sizeof(struct tp_event),
				     header.payload_bytes } };

	header.check = checksum(&header, sizeof(header) - sizeof(header.check));
	*bytes += sizeof(header) + header.payload_bytes;
	return fd < 0 ? 0 : write_all(fd, vector, 2);
}
