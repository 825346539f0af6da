/* SPDX-License-Identifier: Apache-2.0 */
/** @file Sets of rings: each trace has its own, with a gate of its own, so that none fills another's. */
#include "agent.h"

#define SETS_NAME "tp-rings"
#define MFD_FLAGS (0x1 | 0x2) /* CLOEXEC | ALLOW_SEALING */
#define F_ADD_SEALS_NR 1033
#define SEALS (0x2 | 0x4)
#define MOST_RING_BYTES (1ull << 28)
#define MOST_RINGS (1u << 12)

/* The shared object of a set: a head page with its layout, then the rings. */
static int map_rings(struct tpa_set *set, uint64_t count, uint64_t ring_bytes)
{
	uint64_t bytes = TP_PAGE_BYTES + count * (TP_PAGE_BYTES + ring_bytes);
	struct tp_wire *wire;
	long at, fd = sys2(__NR_memfd_create, (long)SETS_NAME, MFD_FLAGS);

	if (sys_failed(fd))
		return (int)fd;
	set->fd = (int)fd;
	at = sys2(__NR_ftruncate, fd, (long)bytes);
	if (!sys_failed(at))
		at = sys3(__NR_fcntl, fd, F_ADD_SEALS_NR, SEALS);
	if (!sys_failed(at))
		at = sys6(__NR_mmap, 0, (long)bytes, 3, 1, fd, 0);
	if (sys_failed(at)) {
		sys1(__NR_close, fd);
		return (int)at;
	}
	sys3(__NR_madvise, at, (long)bytes, MADV_DONTFORK_NR);
	sys3(__NR_madvise, at, (long)bytes, MADV_DONTDUMP_NR);
	wire = set->wire = (struct tp_wire *)at;
	wire->version = TP_WIRE_VERSION;
	wire->header_bytes = sizeof(*wire);
	wire->total_bytes = bytes;
	wire->request_offset = wire->ring_offset = TP_PAGE_BYTES;
	wire->ring_count = (uint32_t)count;
	wire->ring_stride = (uint32_t)(TP_PAGE_BYTES + ring_bytes);
	wire->ring_bytes = (uint32_t)ring_bytes;
	wire->magic = TP_WIRE_MAGIC;
	tpa_image.sets[tpa_image.set_count++] = (struct tp_region){ (uint64_t)at, bytes };
	return 0;
}

static int map_gate(struct tpa_set *set)
{
	uint64_t bytes = TPA_SLOT_COUNT * sizeof(struct tpa_slot);
	int error;

	set->slots = tpa_map_private(bytes);
	set->gate = tpa_map_private(TP_PAGE_BYTES);
	if (!set->slots || !set->gate)
		return -12; /* ENOMEM */
	error = (int)sys3(__NR_madvise, (long)set->gate, TP_PAGE_BYTES, MADV_WIPEONFORK_NR);
	if (!error)
		error = tpa_note_region((uint64_t)set->slots, bytes);
	return error ? error : tpa_note_region((uint64_t)set->gate, TP_PAGE_BYTES);
}

static int close_fd(uint64_t number)
{
	struct tpa_set *set = &tpa.sets[number];

	if (!number || number >= tpa.set_count || set->fd < 0)
		return -22; /* EINVAL */
	sys1(__NR_close, set->fd);
	set->fd = -1;
	return 0;
}

/** TP_CMD_RINGS: make another set. What a failed attempt has mapped goes with the detach. */
int tpa_add_set(struct tp_wire *wire, const uint64_t args[4])
{
	struct tpa_set *set = &tpa.sets[tpa.set_count];
	int error;

	if (args[3])
		return close_fd(args[3] - 1);
	if (tpa.set_count == TP_MAX_SETS || tpa_image.set_count == TP_MAX_SETS)
		return -28; /* ENOSPC */
	if (!args[0] || args[0] > MOST_RINGS || args[1] < TP_PAGE_BYTES ||
	    args[1] > MOST_RING_BYTES || args[1] & (args[1] - 1) ||
	    args[2] > MOST_RING_BYTES / sizeof(struct tp_profile))
		return -22; /* EINVAL */
	error = map_rings(set, args[0], args[1]);
	if (!error)
		error = map_gate(set);
	if (error)
		return error;
	set->profiled = (uint32_t)args[2];
	tpa_init_rings(set);
	wire->args[0] = (uint64_t)set->fd;
	wire->args[1] = (uint64_t)set->gate;
	wire->args[2] = (uint64_t)set;
	return (int)tpa.set_count++;
}

/** TP_CMD_RECORD: open or close a set's gate. */
int tpa_record(const uint64_t args[4])
{
	const struct tpa_set *set = &tpa.sets[args[2]];

	if (args[2] >= tpa.set_count)
		return -22; /* EINVAL */
	if (args[0])
		tpa_set_limits(set, args[1]);
	__atomic_store_n(set->gate, args[0] ? set->slots : NULL, __ATOMIC_SEQ_CST);
	return 0;
}

void tpa_close_gates(void)
{
	for (uint32_t i = 0; i < tpa.set_count; i++)
		__atomic_store_n(tpa.sets[i].gate, NULL, __ATOMIC_SEQ_CST);
}

int tpa_any_gate_open(void)
{
	for (uint32_t i = 0; i < tpa.set_count; i++)
		if (*tpa.sets[i].gate)
			return 1;
	return 0;
}
