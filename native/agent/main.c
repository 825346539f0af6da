/* SPDX-License-Identifier: Apache-2.0 */
/**
 * @file
 * The agent's thread: start, then wait for commands. It is born with every signal blocked, its own
 * copy of the fd table and its own fs base; nothing of the program's is used or kept open.
 */
#include <linux/futex.h>
#include <linux/membarrier.h>

#include "agent.h"

#define PR_SET_NAME_NR 15
#define PR_SET_VMA_NR 0x53564d41
#define F_ADD_SEALS_NR 1033
#define SEALS (0x2 | 0x4) /* F_SEAL_SHRINK | F_SEAL_GROW: the tool maps it without fear of SIGBUS */
#define MFD_FLAGS (0x1 | 0x2)  /* CLOEXEC | ALLOW_SEALING */
#define HIGHEST_PRIORITY (-20) /* while a batch waits, the program's threads run into its int3s */
#define FAR_BYTES (16ull << 30)
#define WATCH_NS 250000000
#define COPIES_BYTES PAGE_UP(sizeof(struct tp_copies))

#define DECLARE_PROBE(name)     \
	void name(void);        \
	void name##_tail(void); \
	void name##_words(void);
#define PROBE(name, at_exit, calls, others)                                       \
	{ (uint64_t)(name),	    (uint64_t)(name##_tail), (uint64_t)(at_exit), \
	  (uint64_t)(name##_words), (uint64_t)(calls),	     (uint64_t)(others) }

DECLARE_PROBE(tpa_thunk_function)
DECLARE_PROBE(tpa_graph)
DECLARE_PROBE(tpa_profile)
DECLARE_PROBE(tpa_unwind_probe)
DECLARE_PROBE(tpa_rich)
void tpa_rich_exit(void);
void tpa_graph_exit(void);
void tpa_profile_exit(void);
void tpa_return(void);
void tpa_return_words(void);

struct tp_image tpa_image __attribute__((section(".tp_image"), aligned(TP_PAGE_BYTES))) = {
	.magic = TP_WIRE_MAGIC,
	.version = TP_WIRE_VERSION,
	.templates = {
		[TP_PROBE_FUNCTION] = PROBE(tpa_thunk_function, 0, 0, 0),
		[TP_PROBE_GRAPH] = PROBE(tpa_graph, tpa_graph_exit, tpa_write_long, 0),
		[TP_PROBE_PROFILE] = PROBE(tpa_profile, tpa_profile_exit, tpa_profile_find, tpa_count_overrun),
		[TP_PROBE_UNWIND] = PROBE(tpa_unwind_probe, 0, tpa_unwind, 0),
		[TP_PROBE_RICH] =
			PROBE(tpa_rich, tpa_rich_exit, tpa_rich_enter, tpa_rich_leave),
	},
	.return_start = (uint64_t)tpa_return,
	.return_words = (uint64_t)tpa_return_words,
	.gate = (uint64_t)&tpa_gate,
	.set = (uint64_t)&tpa.sets[0],
	.claim = (uint64_t)tpa_claim,
	.sweep = (uint64_t)tpa_shadow_sweep,
	.check = (uint64_t)tpa_shadow_check,
	.pop = (uint64_t)tpa_shadow_pop,
};
struct tpa_state tpa = { .mem_fd = -1,
			 .status_fd = -1,
			 .stat_fd = -1,
			 .task_fd = -1,
			 .shared_fd = -1,
			 .socket_fd = -1 };

void tpa_restorer(void);

static void leave(uint32_t state, long error)
{
	tpa_image.error = (int32_t)error;
	__atomic_store_n(&tpa_image.state, state, __ATOMIC_SEQ_CST);
	sys1(__NR_exit, 0);
	__builtin_unreachable();
}

/* Every start-up step passes through here: the tool learns which one failed, and how. */
static long step(long ret)
{
	if (sys_failed(ret))
		leave(TP_AGENT_FAILED, ret);
	tpa_image.step++;
	return ret;
}

static void close_inherited(void)
{
	if (!sys_failed(sys3(__NR_close_range, 0, 0xffffffffu, 0)))
		return;
	for (long fd = 0; fd < 65536; fd++)
		sys1(__NR_close, fd);
}

static uint64_t shared_size(void)
{
	uint64_t stride = TP_PAGE_BYTES + (uint64_t)tpa_image.ring_bytes;

	return TP_PAGE_BYTES + tpa_image.request_bytes + COPIES_BYTES +
	       stride * tpa_image.ring_count;
}

static void fill_wire(struct tp_wire *wire, uint64_t bytes)
{
	wire->version = TP_WIRE_VERSION;
	wire->header_bytes = sizeof(*wire);
	wire->total_bytes = bytes;
	wire->request_offset = TP_PAGE_BYTES;
	wire->request_bytes = tpa_image.request_bytes;
	wire->copies_bytes = COPIES_BYTES;
	wire->ring_offset = TP_PAGE_BYTES + tpa_image.request_bytes + COPIES_BYTES;
	wire->ring_count = tpa_image.ring_count;
	wire->ring_stride = TP_PAGE_BYTES + tpa_image.ring_bytes;
	wire->ring_bytes = tpa_image.ring_bytes;
	wire->agent_tid = tpa_image.tid;
	wire->image_base = tpa_image.base;
	wire->magic = TP_WIRE_MAGIC;
}

/* A hint: gigabytes of rings just below the libraries would stand where their pads belong. */
static uint64_t far_away(uint64_t bytes)
{
	uint64_t distance = FAR_BYTES + bytes;

	return tpa_image.base > 2 * distance ? (tpa_image.base - distance) & -4096ul : 0;
}

/* Kept open: its link in our fd table is how a later tool finds the object. */
static void map_shared(void)
{
	uint64_t bytes = shared_size();
	long at;

	tpa.shared_fd = (int)step(sys2(__NR_memfd_create, (long)TP_NAME, MFD_FLAGS));
	step(sys2(__NR_ftruncate, tpa.shared_fd, (long)bytes));
	step(sys3(__NR_fcntl, tpa.shared_fd, F_ADD_SEALS_NR, SEALS));
	at = step(sys6(__NR_mmap, (long)far_away(bytes), (long)bytes, 3, 1, tpa.shared_fd, 0));
	step(sys3(__NR_madvise, at, (long)bytes, MADV_DONTFORK_NR));
	step(sys3(__NR_madvise, at, (long)bytes, MADV_DONTDUMP_NR));
	tpa.wire = (struct tp_wire *)at;
	fill_wire(tpa.wire, bytes);
	tpa_image.shared_fd = tpa.shared_fd;
	tpa_image.shared_base = (uint64_t)at;
	tpa_image.shared_bytes = bytes;
	tpa_choose_copies((struct tp_copies *)(at + TP_PAGE_BYTES + (long)tpa_image.request_bytes));
}

static void map_slots(void)
{
	tpa_image.slots_bytes = TPA_SLOT_COUNT * sizeof(struct tpa_slot);
	tpa.sets[0] = (struct tpa_set){ .wire = tpa.wire, .gate = &tpa_gate, .fd = tpa.shared_fd };
	tpa.sets[0].slots = tpa_map_private(tpa_image.slots_bytes);
	step(tpa.sets[0].slots ? 0 : -12); /* ENOMEM */
	tpa.set_count = 1;
	tpa_init_rings(&tpa.sets[0]);
	tpa_image.slots_base = (uint64_t)tpa.sets[0].slots;
	step(sys3(__NR_madvise, (long)&tpa_gate, TP_PAGE_BYTES, MADV_WIPEONFORK_NR));
}

static void open_socket(void)
{
	int pair[2];

	step(sys4(__NR_socketpair, 1, 5 | 02000000, 0, (long)pair)); /* UNIX, SEQPACKET | CLOEXEC */
	tpa.socket_fd = pair[0];
	tpa_image.socket_fd = pair[1];
}

static void close_socket(void)
{
	sys1(__NR_close, tpa.socket_fd);
	sys1(__NR_close, tpa_image.socket_fd);
	tpa.socket_fd = tpa_image.socket_fd = -1;
}

static void start(void)
{
	tpa.engine.ops = &tpa_ops;
	tpa.engine.window_pages = TP_WINDOW_PAGES;
	tpa.pid = (int)sys0(__NR_getpid);
	tpa_image.tid = (uint32_t)sys0(__NR_gettid);
	tpa_image.restorer = (uint64_t)tpa_restorer;
	sys2(__NR_prctl, PR_SET_NAME_NR, (long)TP_NAME);
	sys5(__NR_prctl, PR_SET_VMA_NR, 0, (long)tpa_image.base, tpa_image.image_bytes,
	     (long)TP_NAME);
	close_inherited();
	sys3(__NR_setpriority, 0, 0,
	     HIGHEST_PRIORITY); /* of this thread, where root's program allows */
	tpa_note_usual();
	tpa_drop_privileges();
	step(sys3(__NR_membarrier, MEMBARRIER_CMD_REGISTER_PRIVATE_EXPEDITED_SYNC_CORE, 0, 0));
	map_shared();
	map_slots();
	open_socket();
	step(tpa_install_handler());
}

static void wait_for_command(uint32_t seen)
{
	const uint64_t span[2] = { 0, WATCH_NS };

	sys6(__NR_futex, (long)&tpa.wire->command_seq, FUTEX_WAIT, seen, (long)span, 0, 0);
}

static void answer(struct tp_wire *wire, uint32_t seq, int result)
{
	wire->result = result;
	__atomic_store_n(&wire->done_seq, seq, __ATOMIC_SEQ_CST);
	sys6(__NR_futex, (long)&wire->done_seq, FUTEX_WAKE, 1, 0, 0, 0);
}

/** Entered once, by tpa_bootstrap, on the agent's own stack. */
void tpa_main(void)
{
	struct tp_wire *wire;
	uint32_t done = 0, command;
	int result;

	start();
	wire = tpa.wire;
	__atomic_store_n(&tpa_image.state, TP_AGENT_READY, __ATOMIC_SEQ_CST);
	for (;;) {
		uint32_t seq = __atomic_load_n(&wire->command_seq, __ATOMIC_SEQ_CST);

		if (seq == done) {
			wait_for_command(seq);
			tpa_watch();
			if (__atomic_load_n(&wire->command_seq, __ATOMIC_SEQ_CST) == seq)
				tpa_be_as_usual();
			continue;
		}
		done = seq;
		command = wire->command; /* once answered, the next one may already stand there */
		tpa.command_seq = seq;
		result = tpa_run_command(wire);
		answer(wire, seq, result);
		if (command == TP_CMD_FDS)
			close_socket();
		if (command == TP_CMD_QUIT && !result)
			leave(TP_AGENT_QUIT, 0);
	}
}
