/* SPDX-License-Identifier: Apache-2.0 */
/**
 * @file
 * The commands of the tool, one at a time. A request is copied to private memory before it is
 * looked at: the shared object can change under us, and a forked child must still find its table. What
 * is read of it later can only leave out sites.
 */
#include <errno.h>

#include "agent.h"

#define PROT_R 1
#define PROT_RW 3
#define PROT_RX 5
#define DRAIN_NS 10000000
#define VERIFIED_NS 5000000 /* so long a batch that was verified may wait: threads run meanwhile */
#define MAP_PADS 0x104022   /* PRIVATE | ANONYMOUS | NORESERVE | FIXED_NOREPLACE */
#define PR_SET_VMA_NR 0x53564d41

/* One private block: the batch, its pokes. Kept for ever if a handler may still be using it. */
struct job {
	struct tp_batch batch;
	struct tp_outcome outcome;
	uint64_t bytes;
	int room; /* on alternate stacks, for a trap: the caller answers for it */
	int guards;
	uint64_t verified_ns;
	struct tp_poke pokes[] __attribute__((aligned(TP_LINE_BYTES))); /* one line each */
};

struct table_block {
	struct tp_known_table table;
	uint64_t bytes;
	struct tp_known entries[];
};

static struct table_block *known_block;
static struct job *spare_job; /* the last job's memory: its pages need no fault again */
static struct job
	*prepared_job; /* waits for TP_CMD_WRITE, which is the next command or never comes */

/** Memory that lives until the detach: the tool unmaps what stands in this list. */
int tpa_note_region(uint64_t start, uint64_t bytes)
{
	uint64_t i = tpa_image.region_count;

	if (i >= TP_MAX_REGIONS)
		return -ENOSPC;
	tpa_image.regions[i] = (struct tp_region){ start, bytes };
	tpa_image.region_count = i + 1;
	return 0;
}

static struct job *job_memory(uint64_t bytes)
{
	struct job *job = spare_job;

	spare_job = NULL;
	if (job && job->bytes >= bytes)
		return job;
	if (job)
		tpa_unmap(job, job->bytes);
	job = tpa_map_private(bytes);
	if (job)
		job->bytes = bytes;
	return job;
}

static struct job *new_job(uint64_t count)
{
	struct job *job = job_memory(PAGE_UP(sizeof(*job) + count * sizeof(struct tp_poke)));

	if (!job)
		return NULL;
	job->batch = (struct tp_batch){ 0 };
	job->room = job->guards = 0;
	job->outcome = (struct tp_outcome){ 0 };
	job->batch.pokes = job->pokes;
	job->batch.count = count;
	job->batch.outcome = &job->outcome;
	return job;
}

static void end_job(struct job *job)
{
	if (!job->outcome.undrained && !tpa.engine.broken)
		spare_job = job;
	else
		tpa_note_region((uint64_t)job, job->bytes);
}

/* Both are sorted: one walk along the table, from the first site of the batch on. */
static int all_known(const struct job *job)
{
	const struct tp_known *entry = tp_known_begin(&tpa.engine, &job->batch);
	const struct tp_known *end = entry ? known_block->entries + known_block->table.count : NULL;

	for (uint64_t i = 0; i < job->batch.count; i++) {
		const struct tp_poke *poke = &job->batch.pokes[i];

		if (poke->flags & (TP_POKE_NO_OLD | TP_POKE_NO_NEW))
			continue;
		while (entry < end && entry->addr < poke->addr)
			entry++;
		if (entry == end || entry->addr != poke->addr || entry->len < poke->len ||
		    tp_heads(poke) & ~(unsigned int)entry->heads)
			return 0;
	}
	return 1;
}

static void publish_known(struct table_block *fresh)
{
	struct table_block *old = known_block;

	tpa_image.known_generation++;
	known_block = fresh;
	__atomic_store_n(&tpa.engine.known, &fresh->table, __ATOMIC_SEQ_CST);
	tpa_image.known_base = (uint64_t)fresh->entries;
	tpa_image.known_bytes = fresh->bytes;
	tpa_image.known_count = fresh->table.count;
	tpa_image.known_generation++;
	if (old && tp_drain(&tpa.engine, DRAIN_NS))
		tpa_unmap(old, old->bytes);
	else if (old)
		tpa_note_region((uint64_t)old, old->bytes);
}

/* The table must hold a site before its first int3 is written: late traps are told by it. */
static int learn_sites(const struct job *job)
{
	uint64_t room = job->batch.count + (known_block ? known_block->table.count : 0);
	uint64_t bytes = PAGE_UP(sizeof(struct table_block) + room * sizeof(struct tp_known));
	struct table_block *fresh = tpa_map_private(bytes);

	if (!fresh)
		return -ENOMEM;
	fresh->bytes = bytes;
	fresh->table.entries = fresh->entries;
	fresh->table.count = tp_known_merge(&tpa.engine, known_block ? &known_block->table : NULL,
					    job->batch.pokes, job->batch.count, fresh->entries);
	publish_known(fresh);
	return 0;
}

/* Both are sorted; what is there already need not be in the table. */
static void mark_guards(const struct job *job)
{
	struct tp_known *entry = tp_known_begin(&tpa.engine, &job->batch);
	const struct tp_known *end = entry ? known_block->entries + known_block->table.count : NULL;

	for (uint64_t i = 0; i < job->batch.count; i++) {
		const struct tp_poke *poke = &job->batch.pokes[i];

		if (poke->outcome == TP_SITE_SKIPPED)
			continue;
		while (entry < end && entry->addr < poke->addr)
			entry++;
		if (entry < end && entry->addr == poke->addr)
			entry->guard = 1;
	}
}

static int prepare_job(struct job *job)
{
	int error;

	if (tpa.mem_fd < 0)
		return -TP_EMEMFILE;
	if (job->batch.mode == TP_MODE_INT3 && !tpa_handler_is_ours())
		return -TP_EHANDLER;
	if (job->batch.mode == TP_MODE_INT3 && tpa_a_handler_forbids_traps(job->room))
		return -TP_EMASKING;
	error = tp_prepare_batch(&tpa.engine, &job->batch);
	if (error != -TP_EKNOWN)
		return error;
	error = learn_sites(job);
	return error ? error : tp_prepare_batch(&tpa.engine, &job->batch);
}

/* In stop mode the tool must still hold everybody, and does so from here on until the answer. */
static bool take_hold(void)
{
	uint32_t open = tp_hold_of(tpa.command_seq, TP_HOLD_OPEN);
	uint32_t taken = tp_hold_of(tpa.command_seq, TP_HOLD_TAKEN);

	return __atomic_compare_exchange_n(&tpa.wire->hold, &open, taken, false, __ATOMIC_SEQ_CST,
					   __ATOMIC_SEQ_CST) ||
	       open == taken;
}

static int write_job(struct job *job)
{
	int error;

	if (job->batch.mode == TP_MODE_STOP && !take_hold())
		return -TP_EHOLD;
	if (job->guards)
		mark_guards(job);
	tpa_image.known_generation++;
	error = tp_write_batch(&tpa.engine, &job->batch);
	tpa_image.known_generation++;
	tpa_image.broken = tpa.engine.broken;
	return error;
}

static int run_job(struct job *job)
{
	int error = prepare_job(job);

	return error ? error : write_job(job);
}

static void add_outcome(struct tp_outcome *sum, const struct tp_outcome *one)
{
	struct tp_outcome total = *one;

	total.sites += sum->sites;
	total.finished += sum->finished;
	total.syncs += sum->syncs;
	total.writes += sum->writes;
	total.reads += sum->reads;
	total.pages += sum->pages;
	total.conflicts += sum->conflicts;
	total.traps += sum->traps;
	total.late_traps += sum->late_traps;
	total.total_ns += sum->total_ns;
	total.undrained |= sum->undrained;
	total.left += sum->left;
	for (int i = 0; i < TP_PHASES; i++)
		total.phase_ns[i] += sum->phase_ns[i];
	*sum = total;
}

/* A protocol run a site: what everybody without batches pays. For measurement. */
static int run_one_by_one(struct job *job)
{
	struct tp_outcome sum = { 0 };
	struct tp_poke *all = job->batch.pokes;
	uint64_t count = job->batch.count;
	int error;

	tp_sort_pokes(all, count);
	error = all_known(job) ? 0 : learn_sites(job);
	job->batch.count = 1;
	for (uint64_t i = 0; !error && i < count; i++) {
		job->batch.pokes = all + i;
		error = run_job(job);
		add_outcome(&sum, &job->outcome);
	}
	job->batch.pokes = all;
	job->batch.count = count;
	job->outcome = sum;
	return error;
}

/* Site by site only after a failure: after success every site is done, or was skipped. */
static void report_job(struct tp_wire *wire, struct tp_poke *request, const struct job *job)
{
	wire->outcome = job->outcome;
	if (!job->outcome.code && !job->outcome.left)
		return;
	for (uint64_t i = 0; i < job->batch.count; i++) {
		uint32_t index = job->pokes[i].index;

		if (index < job->batch.count)
			request[index].outcome = job->pokes[i].outcome;
	}
}

static int end_batch(struct tp_wire *wire, struct job *job, int error)
{
	report_job(wire, tp_request_of(wire), job);
	end_job(job);
	return error;
}

static int run_batch(struct tp_wire *wire, const uint64_t args[4])
{
	uint64_t count = args[0];
	struct job *job;
	int error;

	if (count > tpa_image.request_bytes / sizeof(struct tp_poke))
		return -TP_ETOOMANY;
	job = new_job(count);
	if (!job)
		return -ENOMEM;
	tpa_copy(job->pokes, tp_request_of(wire), count * sizeof(struct tp_poke));
	job->batch.all_or_nothing = args[1] & TP_BATCH_ALL_OR_NOTHING;
	job->batch.leave_busy = args[1] & TP_BATCH_LEAVE_BUSY;
	job->batch.mode = (enum tp_mode)(args[1] >> TP_BATCH_MODE_SHIFT & 0xff);
	job->room = (args[1] & TP_BATCH_ROOM) != 0;
	job->guards = (args[1] & TP_BATCH_GUARDS) != 0;
	job->batch.is_handled = (bool (*)(uint64_t))args[2];
	job->batch.finish = (int (*)(const struct tp_poke *, void *))args[3];
	if (!(args[1] & TP_BATCH_PREPARE)) {
		error = args[1] & TP_BATCH_ONE_BY_ONE ? run_one_by_one(job) : run_job(job);
		return end_batch(wire, job, error);
	}
	error = job->batch.mode != TP_MODE_STOP || args[1] & TP_BATCH_ONE_BY_ONE ? -TP_EMODE :
										   prepare_job(job);
	if (error)
		return end_batch(wire, job, error);
	job->verified_ns = tpa_ops.clock_ns(NULL);
	prepared_job = job;
	return 0;
}

/* The tool has seen threads inside of some sites since. Returns how many were left out. */
static uint64_t heed_left_out(struct job *job, const struct tp_poke *request)
{
	const uint8_t null = TP_POKE_NO_OLD | TP_POKE_NO_NEW;
	uint64_t before = job->batch.skipped;

	for (uint64_t i = 0; i < job->batch.count; i++) {
		struct tp_poke *poke = &job->pokes[i];

		if (poke->index < job->batch.count && (request[poke->index].flags & null) == null)
			tp_leave_out(&job->batch, poke);
	}
	return job->batch.skipped - before;
}

/* Of a site that is seen for the first time the table learns what it was verified to hold. */
static int verify_if_old(struct job *job)
{
	bool is_old = tpa_ops.clock_ns(NULL) - job->verified_ns > VERIFIED_NS;

	return job->batch.must_learn || is_old ? tp_verify_again(&tpa.engine, &job->batch) : 0;
}

static int write_prepared(struct tp_wire *wire, const uint64_t args[4])
{
	struct job *job = prepared_job;
	int error;

	prepared_job = NULL;
	wire->outcome = (struct tp_outcome){ 0 };
	if (!job)
		return -TP_ECOMMAND;
	if (args[0] && heed_left_out(job, tp_request_of(wire)) != args[0])
		return end_batch(wire, job, -TP_ECOMMAND); /* it could be any of them */
	error = verify_if_old(job);
	return end_batch(wire, job, error ? error : write_job(job));
}

/* Whoever prepared it has gone another way: what it was checked against may change now. */
static void forget_prepared(void)
{
	if (prepared_job)
		end_job(prepared_job);
	prepared_job = NULL;
}

static struct tp_poke undo_of(const struct tp_known *entry, uint32_t index)
{
	bool stays = entry->handler && entry->current[0] == TP_INT3;
	struct tp_poke poke = { .addr = entry->addr,
				.handler = stays ? entry->handler : 0,
				.len = stays ? 1 : entry->len,
				.index = index };

	tpa_copy(poke.old, entry->current, sizeof(poke.old));
	tpa_copy(poke.new_, entry->original, sizeof(poke.new_));
	return poke;
}

/* Does the text still hold what we have left there? */
static bool is_in_place(const struct tp_known *entry)
{
	uint8_t *found = tpa.engine.copies->readback;

	return !tpa_read_text(NULL, entry->addr, found, entry->len) &&
	       tp_same_prefix(found, entry->current, entry->len);
}

/*
 * Sites of two modules that stood at one address, one after the other, may overlap; at most one of them
 * is there now. Forgets the other. Returns whether it was the @earlier one.
 */
static bool forget_one_of(struct tp_known *earlier, struct tp_known *later)
{
	bool is_earlier = !is_in_place(earlier);

	(is_earlier ? earlier : later)->patched = 0;
	return is_earlier;
}

/* Of the sites that were last written in one of @modes; without guards where those must stay. */
static struct job *undo_job(uint32_t modes, int keep_guards)
{
	uint64_t count = known_block ? known_block->table.count : 0, used = 0;
	struct job *job = new_job(count);
	struct tp_known *last = NULL;

	for (uint64_t i = 0; job && i < count; i++) {
		struct tp_known *entry = &known_block->entries[i];

		if (!entry->patched || !(modes & 1u << entry->mode) ||
		    (entry->guard && keep_guards))
			continue;
		if (last && entry->addr < last->addr + last->len) {
			if (!forget_one_of(last, entry))
				continue;
			used--;
		}
		job->pokes[used] = undo_of(entry, (uint32_t)used);
		used++;
		last = entry;
	}
	if (job)
		job->batch.count = used;
	return job;
}

/* A site whose bytes a stranger has changed, or whose module is gone, is no longer ours to undo. */
static void forget_failed_site(const struct tp_outcome *outcome)
{
	struct tp_known *entry = tp_known_find(&known_block->table, outcome->fail_addr);

	if (entry)
		entry->patched = 0;
}

/**
 * Put the sites back that were last written in one of @modes (a bit each), in mode @how. @flags:
 * TP_BATCH_ROOM as for a batch, TP_BATCH_GUARDS leaves the guards. Sites that
 * strangers have changed are left out: at most *@strangers, which then says how many it were.
 */
int tpa_undo(uint32_t modes, enum tp_mode how, uint64_t flags, uint64_t *strangers,
	     struct tp_outcome *outcome)
{
	uint64_t most = *strangers;

	forget_prepared();
	for (*strangers = 0;;) {
		struct job *job = undo_job(modes, (flags & TP_BATCH_GUARDS) != 0);
		int error;

		if (!job)
			return -ENOMEM;
		job->batch.mode = how;
		job->room = (flags & TP_BATCH_ROOM) != 0;
		error = job->batch.count ? run_job(job) : 0;
		*outcome = job->outcome;
		if (!error || job->outcome.phase != TP_PHASE_VERIFY || *strangers >= most) {
			end_job(job);
			return error;
		}
		++*strangers;
		forget_failed_site(&job->outcome);
		end_job(job);
	}
}

/* args[0] bounds the strangers' sites that are left out, args[1] is the mode. */
static int restore_all(struct tp_wire *wire, const uint64_t args[4])
{
	uint64_t strangers = args[0];
	struct tp_outcome outcome = { 0 };
	int error;

	if (args[1] >= TP_MODES)
		return -TP_EMODE;
	error = tpa_undo(~0u, (enum tp_mode)args[1],
			 (args[2] & TP_BATCH_ROOM) | (args[3] & TP_BATCH_GUARDS), &strangers,
			 &outcome);
	wire->outcome = outcome;
	wire->args[0] = strangers;
	return error;
}

/** Has any site, last written in one of @modes, other bytes than it had before us? Guards count
 * while they have nothing to guard. */
int tpa_any_patched(uint32_t modes)
{
	int keep_guards = tpa_any_frames();
	uint64_t count = known_block ? known_block->table.count : 0;

	for (uint64_t i = 0; i < count; i++)
		if (known_block->entries[i].patched && modes & 1u << known_block->entries[i].mode &&
		    !(known_block->entries[i].guard && keep_guards))
			return 1;
	return 0;
}

#define FD_WORDS (2 + (TP_HANDED_FDS * sizeof(int) + 7) / 8)

struct fd_message {
	uint64_t header[7]; /* struct msghdr */
	uint64_t vector[2];
	uint64_t control[FD_WORDS];
	char byte;
};

/* SCM_RIGHTS from the tool: the mem file and the status file, opened on its side (pitfalls 14). */
static int receive_fds(void)
{
	struct fd_message message = { 0 };
	int *fds = (int *)&message.control[2];
	long done;

	message.vector[0] = (uint64_t)&message.byte;
	message.vector[1] = 1;
	message.header[2] = (uint64_t)message.vector;
	message.header[3] = 1;
	message.header[4] = (uint64_t)message.control;
	message.header[5] = sizeof(message.control);
	done = sys3(__NR_recvmsg, tpa.socket_fd, (long)message.header,
		    0x40000040); /* CLOEXEC, DONTWAIT */
	if (sys_failed(done))
		return (int)done;
	if (message.control[0] != 16 + TP_HANDED_FDS * sizeof(int) ||
	    message.control[1] != (1ull << 32 | 1))
		return -TP_EMEMFILE;
	tpa.mem_fd = fds[0];
	tpa.status_fd = fds[1];
	tpa.stat_fd = fds[2];
	tpa.task_fd = fds[3];
	return 0;
}

static int open_here(const char *path, int flags)
{
	return (int)sys4(__NR_openat, -100, (long)path, flags, 0);
}

static int take_fds(const uint64_t args[4])
{
	tpa.ids_watched = args[1] != 0;
	tpa.seen_tid = args[0] ? (uint32_t)args[2] : tpa_image.tid;
	if (args[0])
		return receive_fds();
	tpa.mem_fd = open_here("/proc/thread-self/mem", 02000002);
	tpa.status_fd = open_here("/proc/self/status", 02000000);
	tpa.stat_fd = open_here("/proc/self/stat", 02000000);
	tpa.task_fd = open_here("/proc/self/task", 02200000);
	return tpa.mem_fd < 0 ? tpa.mem_fd : 0;
}

/* By enum tp_map_kind: never writable and executable. */
static const int map_rights[] = { PROT_RX, PROT_R, PROT_RW };

static int map_region(const uint64_t args[4])
{
	long ret;

	if (tpa_image.region_count >= TP_MAX_REGIONS || !args[1] ||
	    (args[0] | args[1]) % TP_PAGE_BYTES || args[2] >= TP_MAP_KINDS)
		return -EINVAL;
	ret = sys6(__NR_mmap, (long)args[0], (long)args[1], map_rights[args[2]], MAP_PADS, -1, 0);
	if (sys_failed(ret))
		return (int)ret;
	if ((uint64_t)ret != args[0]) { /* a kernel without FIXED_NOREPLACE took it as a hint */
		sys2(__NR_munmap, ret, (long)args[1]);
		return -EEXIST;
	}
	sys5(__NR_prctl, PR_SET_VMA_NR, 0, ret, (long)args[1], (long)TP_NAME);
	return tpa_note_region(args[0], args[1]);
}

static int quit(void)
{
	if (tpa.engine.broken)
		return -TP_EBROKEN;
	if (spare_job)
		tpa_unmap(spare_job, spare_job->bytes);
	spare_job = NULL;
	return 0;
}

/** Run the command that the tool has posted. Returns its result. */
int tpa_run_command(struct tp_wire *wire)
{
	const uint32_t command = wire->command;
	uint64_t args[4];

	tpa_copy(args, wire->args, sizeof(args));
	if (command == TP_CMD_WRITE)
		return write_prepared(wire, args);
	forget_prepared();
	switch (command) {
	case TP_CMD_FDS:
		return take_fds(args);
	case TP_CMD_MAP:
		return map_region(args);
	case TP_CMD_BATCH:
		return run_batch(wire, args);
	case TP_CMD_RESTORE:
		return restore_all(wire, args);
	case TP_CMD_RECORD:
		return tpa_record(args);
	case TP_CMD_RINGS:
		return tpa_add_set(wire, args);
	case TP_CMD_CAPTURE:
		return tpa_set_captures((const char *)wire + TP_PAGE_BYTES, args);
	case TP_CMD_CALLERS:
		return tpa_set_callers((const char *)wire + TP_PAGE_BYTES, args);
	case TP_CMD_SHADOW:
		return tpa_make_shadows(wire, args);
	case TP_CMD_STORE:
		return tpa_store_words(wire, args);
	case TP_CMD_KEEP:
		tpa_image.keep = args[0] != 0;
		return 0;
	case TP_CMD_QUIT:
		return quit();
	default:
		return -TP_ECOMMAND;
	}
}
