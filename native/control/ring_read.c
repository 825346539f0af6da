/* SPDX-License-Identifier: Apache-2.0 */
/**
 * @file
 * The reading side of the rings: copy whole events out, write them to the capture as blocks. The
 * rings lie in memory that the target can write: nothing read there is used as an address or size.
 */
#include <errno.h>
#include <string.h>
#include <sys/uio.h>
#include <unistd.h>
#include <x86intrin.h>

#include "held.h"
#include "textpoke.h"

#define BLOCK_MAGIC 0x4b425054u /* "TPBK" */
#define BLOCK_EVENTS 2u
#define DEAD_NS 1000000000ull  /* a thunk may still be writing its last event */
#define MOST_LOST (1ull << 48) /* of one ring in one drain; more is a target that lies */

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

uint64_t tp_rdtsc(void)
{
	return __rdtsc();
}

static struct tp_ring *ring_at(const struct tp_rings *rings, uint32_t i)
{
	return (struct tp_ring *)(rings->map + rings->ring_offset +
				  (uint64_t)i * rings->ring_stride);
}

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

static int write_block(struct tp_rings *rings, uint32_t i, uint64_t sequence, uint64_t events,
		       uint64_t lost, struct tp_drained *out)
{
	const struct tp_ring *ring = ring_at(rings, i);
	struct block_header header = {
		.magic = BLOCK_MAGIC,
		.type = BLOCK_EVENTS,
		.payload_bytes = events * sizeof(struct tp_event),
		.lost = lost,
		.tid = ring->tid,
		.generation = ring->generation,
		.sequence = sequence,
		.ring = i,
	};
	struct iovec vector[2] = { { &header, sizeof(header) },
				   { rings->buffer, header.payload_bytes } };

	header.check = checksum(&header, sizeof(header) - sizeof(header.check));
	out->events += events;
	out->lost += lost;
	out->blocks++;
	out->bytes += sizeof(header) + header.payload_bytes;
	return rings->fd < 0 ? 0 : write_all(rings->fd, vector, 2);
}

/* Copy events [from, to) as far as they are whole: right lap, type set. Returns how many. */
static uint64_t copy_whole(const struct tp_rings *rings, const struct tp_event *events,
			   uint64_t from, uint64_t to)
{
	uint64_t mask = rings->ring_bytes / sizeof(struct tp_event) - 1;
	struct tp_event *copy = (struct tp_event *)rings->buffer;
	uint64_t i;

	for (i = from; i < to; i++) {
		const struct tp_event *event = &events[i & mask];
		uint64_t word = __atomic_load_n(&event->word, __ATOMIC_ACQUIRE);

		if (!(word & 0xf) || ((word >> 4) & TP_LAP_MASK) != ((i >> 12) & TP_LAP_MASK))
			break;
		copy[i - from] = (struct tp_event){ event->tsc, word };
	}
	return i - from;
}

/* The ring of a thread that is gone, read to its end and quiet for a while, may serve another. */
static void free_dead_ring(struct tp_rings *rings, uint32_t i, struct tp_drained *out)
{
	struct tp_ring *ring = ring_at(rings, i);
	uint64_t now = tp_now_ns();

	if (__atomic_load_n(&ring->state, __ATOMIC_ACQUIRE) != TP_RING_DEAD)
		return;
	if (!rings->dead_since_ns[i])
		rings->dead_since_ns[i] = now;
	if (now - rings->dead_since_ns[i] < DEAD_NS)
		return;
	rings->dead_since_ns[i] = 0;
	__atomic_store_n(&ring->state, TP_RING_FREE, __ATOMIC_RELEASE);
	out->rings_freed++;
}

static uint64_t plausible(uint64_t lost)
{
	return lost < MOST_LOST ? lost : MOST_LOST;
}

static int drain_ring(struct tp_rings *rings, uint32_t i, int final, struct tp_drained *out)
{
	struct tp_ring *ring = ring_at(rings, i);
	const struct tp_event *events = (const struct tp_event *)((uint8_t *)ring + TP_PAGE_BYTES);
	uint64_t capacity = rings->ring_bytes / sizeof(struct tp_event);
	uint64_t head = __atomic_load_n(&ring->head, __ATOMIC_ACQUIRE);
	uint64_t dropped = __atomic_load_n(&ring->dropped, __ATOMIC_RELAXED);
	uint64_t tail = rings->tails[i], lost = dropped - rings->dropped[i], whole;
	int error = 0;

	if (head == tail && !lost) {
		free_dead_ring(rings, i, out);
		return 0;
	}
	if (head - tail > capacity) { /* overwritten, or a target that lies */
		lost = plausible(lost) + plausible(head - tail - capacity);
		tail = head - capacity;
	}
	lost = plausible(lost);
	if (head - tail > out->fullest)
		out->fullest = head - tail;
	whole = copy_whole(rings, events, tail, head);
	if (whole || lost)
		error = write_block(rings, i, tail, whole, lost, out);
	tail += whole;
	if (tail != head && final) { /* reserved by a thread that never came back to write it */
		lost = 1;
		out->lost++;
		tail++;
	}
	out->incomplete += (uint32_t)(head - tail);
	rings->tails[i] = tail;
	rings->dropped[i] = dropped;
	__atomic_store_n(&ring->tail, tail, __ATOMIC_RELEASE);
	__atomic_store_n(&ring->limit, tail + rings->waiting, __ATOMIC_RELEASE);
	return error;
}

/* Whole rings of 2^n events, all of them inside of what is mapped? */
static int is_sane(const struct tp_rings *rings)
{
	uint64_t bytes = (uint64_t)rings->ring_count * rings->ring_stride;

	return rings->ring_bytes >= TP_PAGE_BYTES &&
	       !(rings->ring_bytes & (rings->ring_bytes - 1)) &&
	       rings->ring_stride == TP_PAGE_BYTES + rings->ring_bytes &&
	       rings->ring_offset % TP_PAGE_BYTES == 0 && rings->ring_offset <= rings->map_bytes &&
	       bytes <= rings->map_bytes - rings->ring_offset;
}

/** Begin at what is in the rings now: earlier events belong to another session. */
int tp_rings_start(struct tp_rings *rings)
{
	if (!is_sane(rings))
		return -EINVAL;
	for (uint32_t i = 0; i < rings->ring_count; i++) {
		struct tp_ring *ring = ring_at(rings, i);

		rings->tails[i] = __atomic_load_n(&ring->head, __ATOMIC_ACQUIRE);
		rings->dropped[i] = __atomic_load_n(&ring->dropped, __ATOMIC_RELAXED);
		__atomic_store_n(&ring->tail, rings->tails[i], __ATOMIC_RELEASE);
	}
	return 0;
}

/**
 * Take what all rings hold to the capture. With @final, step over an event that was reserved but
 * never written. Returns 0 or -errno of the capture's write.
 */
int tp_drain_rings(struct tp_rings *rings, int final, struct tp_drained *out)
{
	int error = 0;

	memset(out, 0, sizeof(*out));
	for (uint32_t i = 0; !error && i < rings->ring_count; i++)
		error = drain_ring(rings, i, final, out);
	return error;
}
