/* SPDX-License-Identifier: Apache-2.0 */
/**
 * @file
 * Engines made wrong, from outside: deaf syncs, the shipped passes in another order, a descriptor at
 * the wrong time, reads that lie, finishes that come twice. A proof that does not catch them proves
 * nothing; and the right engine, taken the same way, must pass.
 */
#include <errno.h>
#include <string.h>

#include "proof_run.h"

#define IS(state) (1u << (state))
#define ANY_STATE (~IS(TP_SITE_SKIPPED))

enum { STRANGER = 0x42 };

struct control {
	const char *name;
	const char *script; /* steps by hand, see take_step(); else the whole engine */
	const char *(*run)(struct proof *proof, size_t argument);
	size_t argument;
	enum tp_mode mode; /* what is promised meanwhile */
	enum tp_mode
		batch; /* the check that takes the batch, where a script passes by the mode's own */
	bool is_wrong;
};

/* Which pass a letter stands for: forward in capitals, undo in small ones. */
static const struct {
	char letter;
	uint8_t needs; /* states of the sites before it, when it comes in its order */
	struct tp_pass pass;
} passes[] = {
	{ 'I',
	  IS(TP_SITE_PENDING),
	  { .phase = TP_PHASE_INT3, .edit = TP_EDIT_INT3, .to = TP_SITE_INT3 } },
	{ 'T',
	  IS(TP_SITE_INT3),
	  { .phase = TP_PHASE_TAIL, .edit = TP_EDIT_TAIL, .to_new = true, .to = TP_SITE_TAIL } },
	{ 'F',
	  IS(TP_SITE_TAIL),
	  { .phase = TP_PHASE_FIRST,
	    .edit = TP_EDIT_FIRST,
	    .to_new = true,
	    .to = TP_SITE_WRITTEN } },
	{ 'i',
	  IS(TP_SITE_WRITTEN),
	  { .phase = TP_PHASE_ROLLBACK, .edit = TP_EDIT_INT3, .to = TP_SITE_TAIL } },
	{ 't',
	  IS(TP_SITE_TAIL),
	  { .phase = TP_PHASE_RECOVER, .edit = TP_EDIT_TAIL, .to = TP_SITE_INT3 } },
	{ 'f',
	  IS(TP_SITE_INT3),
	  { .phase = TP_PHASE_RECOVER, .edit = TP_EDIT_FIRST, .to = TP_SITE_RESTORED } },
	{ 'W',
	  IS(TP_SITE_PENDING),
	  { .phase = TP_PHASE_FIRST,
	    .edit = TP_EDIT_WHOLE,
	    .to_new = true,
	    .to = TP_SITE_WRITTEN } },
	{ 'w',
	  IS(TP_SITE_WRITTEN),
	  { .phase = TP_PHASE_RECOVER, .edit = TP_EDIT_WHOLE, .to = TP_SITE_RESTORED } },
};

static uint8_t state_of(const struct proof *proof)
{
	for (size_t i = 0; i < proof->rig.count; i++)
		if (proof_is_real(&proof->rig.pokes[i]))
			return proof->rig.pokes[i].outcome;
	return TP_SITE_PENDING;
}

/* A pass out of its order takes the sites as they are and leaves their state alone. */
static void take_pass(struct proof *proof, char letter)
{
	size_t i = 0;
	struct tp_pass pass;

	while (passes[i].letter != letter)
		i++;
	pass = passes[i].pass;
	pass.from = ANY_STATE;
	if (!(passes[i].needs & IS(state_of(proof))))
		pass.to = state_of(proof);
	tp_run_pass(&proof->rig.engine, &proof->rig.batch, &pass);
}

static void take_step(struct proof *proof, char letter)
{
	struct tp_engine *engine = &proof->rig.engine;

	if (letter == 'P' || letter == 'R')
		tp_publish(engine, letter == 'P' ? &proof->rig.batch : NULL);
	else if (letter == 'S')
		engine->ops->sync(engine->ctx);
	else
		take_pass(proof, letter);
	if (proof->fetch.mode != TP_MODE_STOP)
		fetch_look(&proof->fetch);
}

/* P(ublish), S(ync), R(etire) and the passes of the shipped engine, by hand. */
static void run_script(struct proof *proof, const struct control *control)
{
	const char *script = control->script;

	rig_learn(&proof->rig);
	fake_forget(&proof->rig.fake);
	proof->rig.outcome = (struct tp_outcome){ 0 };
	if (tp_check_batch(&proof->rig.engine, &proof->rig.batch))
		fetch_violate(&proof->fetch, "the batch of a control is refused");
	for (size_t i = 0; i < proof->rig.count; i++) /* as the first pass of a batch leaves it */
		if (!proof_is_real(&proof->rig.pokes[i]))
			proof->rig.pokes[i].outcome = TP_SITE_SKIPPED;
	proof_set_mode(proof, control->mode);
	for (; *script; script++)
		take_step(proof, *script);
}

static const char *run_whole(struct proof *proof, size_t argument)
{
	(void)argument;
	proof_check_success(proof, proof_run(proof));
	return proof_end(proof);
}

static const char *run_deaf(struct proof *proof, size_t sync)
{
	proof->fetch.deaf_sync = sync;
	return run_whole(proof, 0);
}

/* The last finish fails, everything is taken back, and a sync on that way does not happen. */
static const char *run_deaf_rollback(struct proof *proof, size_t sync)
{
	struct rig *rig = &proof->rig;

	rig->batch.finish = proof->finish;
	rig->batch.all_or_nothing = true;
	rig->fake.faults[0] = (struct fake_fault){ FAKE_FINISH, rig->count - 1, 1, -ENOSPC };
	proof->fetch.deaf_sync = sync;
	if (proof_run(proof) != -ENOSPC)
		fetch_violate(&proof->fetch, "a failed finish is not told");
	return proof_end(proof);
}

/* Reads a stranger's byte as what the engine hopes for: as if it did not verify. */
static int read_and_lie(void *ctx, uint64_t addr, void *buf, size_t len)
{
	const struct fake *fake = ctx;
	const struct proof *proof = (const struct proof *)fake->owner;
	int error = fake_ops.read(ctx, addr, buf, len);
	uint64_t at = fake->stranger_addr;

	if (at >= addr && at < addr + len && ((uint8_t *)buf)[at - addr] == STRANGER)
		for (size_t i = 0; i < proof->fetch.count; i++)
			if (proof->fetch.sites[i].addr == at && !proof->specs[i].is_null)
				((uint8_t *)buf)[at - addr] = proof->fetch.sites[i].old->bytes[0];
	return error;
}

/* Somebody has put his byte on a site before the batch. */
static const char *run_stranger(struct proof *proof, size_t lies)
{
	static struct tp_ops lying;
	struct rig *rig = &proof->rig;
	size_t i = 0;

	lying = fake_ops;
	lying.read = read_and_lie;
	if (lies)
		rig->engine.ops = &lying;
	while (proof->specs[i].is_null)
		i++;
	proof->fetch.sites[i].is_foreign = true;
	rig->fake.stranger_addr = proof->fetch.sites[i].addr;
	*(uint8_t *)rig->fake.stranger_addr = STRANGER;
	proof_run(proof);
	if (*(uint8_t *)rig->fake.stranger_addr != STRANGER)
		fetch_violate(&proof->fetch, "a stranger's byte is overwritten");
	if (rig->fake.count[FAKE_WRITE])
		fetch_violate(&proof->fetch, "a batch that must be refused has written");
	return proof_end(proof);
}

static int finish_twice(const struct tp_poke *poke, void *ctx)
{
	fake_record(ctx, FAKE_FINISH, poke->addr, poke, sizeof(*poke));
	return (int)fake_record(ctx, FAKE_FINISH, poke->addr, poke, sizeof(*poke));
}

static int finish_all_but_one(const struct tp_poke *poke, void *ctx)
{
	if (!poke->index)
		return 0;
	return (int)fake_record(ctx, FAKE_FINISH, poke->addr, poke, sizeof(*poke));
}

static const char *run_finish(struct proof *proof, size_t twice)
{
	proof->rig.batch.finish = twice ? finish_twice : finish_all_but_one;
	return run_whole(proof, 0);
}

/* Before the first operation after the check: the emulation of every site is made a mere skip. */
static void skip_emulation(struct fake *fake, const struct fake_op *op)
{
	const struct rig *rig = fake->owner;

	(void)op;
	for (size_t i = 0; i < rig->count; i++) {
		rig->pokes[i].emulate = TP_INSN_NOP;
		rig->pokes[i].handler = 0;
	}
}

static const char *run_skipping(struct proof *proof, size_t argument)
{
	proof->rig.fake.before = skip_emulation;
	return run_whole(proof, argument);
}

/* The table of known sites is lost with the descriptor: late traps are nobody's. */
static const char *run_forgetful(struct proof *proof, size_t argument)
{
	(void)argument;
	proof_run(proof);
	proof->rig.known.count = 0;
	fetch_look(&proof->fetch);
	return proof_end(proof);
}

/* A write that claims more than it did: must be noticed by reading back, and undone. */
static long write_and_lie(void *ctx, uint64_t addr, const void *buf, size_t len)
{
	const struct fake *fake = ctx;
	long done = fake_ops.write(ctx, addr, buf, len);

	return fake->count[FAKE_WRITE] == 1 && done >= 0 ? (long)len : done;
}

static const char *run_lying_write(struct proof *proof, size_t argument)
{
	static struct tp_ops lying;
	struct rig *rig = &proof->rig;
	bool int3 = rig->batch.mode == TP_MODE_INT3;
	enum tp_phase phase = int3 ? TP_PHASE_INT3 : TP_PHASE_FIRST;
	int code;

	(void)argument;
	lying = fake_ops;
	lying.write = write_and_lie;
	rig->engine.ops = &lying;
	rig->fake.faults[0] = (struct fake_fault){ FAKE_WRITE, 0, 1, 0 };
	code = proof_run(proof);
	if (code != -TP_EVERIFY || rig->outcome.phase != phase || rig->engine.broken)
		fetch_violate(&proof->fetch, "a write that did not happen gives %d", code);
	for (size_t i = 0; i < rig->count; i++)
		if (proof_is_real(&rig->pokes[i]) && !proof_holds(proof, &rig->pokes[i], false))
			fetch_violate(&proof->fetch, "a write that did not happen left its mark");
	return proof_end(proof);
}

#define WRONG .is_wrong = true
#define DIRECT .mode = TP_MODE_DIRECT, .batch = TP_MODE_DIRECT
#define STOP .mode = TP_MODE_STOP, .batch = TP_MODE_STOP

static const struct control controls[] = {
	{ "the engine as shipped", .run = run_whole },
	{ "the engine as shipped, rolling back", .run = run_deaf_rollback, .argument = SIZE_MAX },
	{ "the shipped passes in their order", .script = "PISTSFSR" },
	{ "the shipped passes, there and back", .script = "PISTSFSiStSfSR" },
	{ "a stranger's byte before the batch", .run = run_stranger },
	{ "a write that did not happen", .run = run_lying_write },
	{ "no sync after int3", .run = run_deaf, .argument = 0, WRONG },
	{ "no sync after tails", .run = run_deaf, .argument = 1, WRONG },
	{ "no sync after first bytes", .run = run_deaf, .argument = 2, WRONG },
	{ "no sync after int3, by hand", .script = "PITSFSR", WRONG },
	{ "no sync after tails, by hand", .script = "PISTFSR", WRONG },
	{ "no sync after first bytes, by hand", .script = "PISTSFR", WRONG },
	{ "no syncs at all", .script = "PITFR", WRONG },
	{ "tails before int3", .script = "PTSISFSR", WRONG },
	{ "first bytes before tails", .script = "PISFSTSR", WRONG },
	{ "first bytes before int3", .script = "PFSTSISR", WRONG },
	{ "int3 last", .script = "PTSFSISR", WRONG },
	{ "first bytes first, tails last", .script = "PFSISTSR", WRONG },
	{ "no int3 at all", .script = "PTSFSR", WRONG },
	{ "no tails at all", .script = "PISFSR", WRONG },
	{ "published after int3", .script = "IPSTSFSR", WRONG },
	{ "published after the first sync", .script = "ISPTSFSR", WRONG },
	{ "published after tails", .script = "ISTSPFSR", WRONG },
	{ "never published", .script = "ISTSFS", WRONG },
	{ "retired before the last sync", .script = "PISTSFRS", WRONG },
	{ "retired before first bytes", .script = "PISTSRFS", WRONG },
	{ "retired before tails", .script = "PISRTSFS", WRONG },
	{ "retired at once", .script = "PRISTSFS", WRONG },
	{ "undo: no int3 again", .script = "PISTSFStSfSR", WRONG },
	{ "undo: no sync after int3", .script = "PISTSFSitSfSR", WRONG },
	{ "undo: no sync after tails", .script = "PISTSFSiStfSR", WRONG },
	{ "undo: no sync after first bytes", .script = "PISTSFSiStSfR", WRONG },
	{ "undo: first bytes before tails", .script = "PISTSFSiSfStSR", WRONG },
	{ "undo: first bytes alone", .script = "PISTSFSiSfSR", WRONG },
	{ "undo: half way, first bytes before tails", .script = "PISTSfStSR", WRONG },
	{ "rollback: its first sync is dropped", .run = run_deaf_rollback, .argument = 2, WRONG },
	{ "rollback: its second sync is dropped", .run = run_deaf_rollback, .argument = 3, WRONG },
	{ "rollback: its last sync is dropped", .run = run_deaf_rollback, .argument = 4, WRONG },
	{ "verification is removed", .run = run_stranger, .argument = 1, WRONG },
	{ "finish is called twice", .run = run_finish, .argument = 1, WRONG },
	{ "finish is left out once", .run = run_finish, .argument = 0, WRONG },
	{ "a trapped thread merely skips", .run = run_skipping, WRONG },
	{ "late traps are nobody's", .run = run_forgetful, WRONG },
	{ "direct: as shipped", .run = run_whole, DIRECT },
	{ "direct: as shipped, rolling back", .run = run_deaf_rollback, .argument = SIZE_MAX,
	  DIRECT },
	{ "direct: the shipped pass, there and back", .script = "WSwS", DIRECT },
	{ "direct: a stranger's byte before the batch", .run = run_stranger, DIRECT },
	{ "direct: a write that did not happen", .run = run_lying_write, DIRECT },
	{ "direct: a tail that differs", .script = "WS", .mode = TP_MODE_DIRECT, WRONG },
	{ "direct: a tail that differs, synced apart", .script = "WSwS", .mode = TP_MODE_DIRECT,
	  WRONG },
	{ "direct: no sync", .run = run_deaf, .argument = 0, DIRECT, WRONG },
	{ "direct: no sync, by hand", .script = "W", DIRECT, WRONG },
	{ "direct: undo without its sync", .script = "WSw", DIRECT, WRONG },
	{ "direct: rollback without its sync", .run = run_deaf_rollback, DIRECT, WRONG },
	{ "direct: verification is removed", .run = run_stranger, .argument = 1, DIRECT, WRONG },
	{ "direct: int3 after all", .script = "PISFSR", DIRECT, WRONG },
	{ "direct: finish is called twice", .run = run_finish, .argument = 1, DIRECT, WRONG },
	{ "stop: as shipped", .run = run_whole, STOP },
	{ "stop: as shipped, rolling back", .run = run_deaf_rollback, .argument = SIZE_MAX, STOP },
	{ "stop: the shipped pass, there and back", .script = "WSwS", STOP },
	{ "stop: a stranger's byte before the batch", .run = run_stranger, STOP },
	{ "stop: a write that did not happen", .run = run_lying_write, STOP },
	{ "stop: threads run on", .script = "WS", .mode = TP_MODE_DIRECT, .batch = TP_MODE_STOP,
	  WRONG },
	{ "stop: first bytes alone", .script = "ISFS", STOP, WRONG },
	{ "stop: no sync", .run = run_deaf, .argument = 0, STOP, WRONG },
	{ "stop: no sync, by hand", .script = "W", STOP, WRONG },
	{ "stop: undo without its sync", .script = "WSw", STOP, WRONG },
	{ "stop: rollback without its sync", .run = run_deaf_rollback, STOP, WRONG },
	{ "stop: verification is removed", .run = run_stranger, .argument = 1, STOP, WRONG },
	{ "stop: finish is left out once", .run = run_finish, .argument = 0, STOP, WRONG },
};

size_t proof_controls(void)
{
	return sizeof(controls) / sizeof(*controls);
}

const char *proof_control_name(size_t control)
{
	return controls[control].name;
}

bool proof_control_is_wrong(size_t control)
{
	return controls[control].is_wrong;
}

uint32_t proof_control_batch(size_t control)
{
	return controls[control].batch;
}

const char *proof_control(struct proof *proof, size_t control)
{
	const struct control *what = &controls[control];

	proof_prepare(proof);
	if (what->run)
		return what->run(proof, what->argument);
	run_script(proof, what);
	fetch_end(&proof->fetch);
	return proof_end(proof);
}
