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
#define NOT_HERE (IS(TP_SITE_BUSY) | IS(TP_SITE_LEFT))
#define ANY_STATE (~(IS(TP_SITE_SKIPPED) | NOT_HERE))

enum { STRANGER = 0x42 };

struct control {
	const char *name;
	const char *script; /* steps by hand, see take_step(); else the whole engine */
	const char *(*run)(struct proof *proof, size_t argument);
	size_t argument;
	enum tp_mode mode; /* what is promised meanwhile */
	enum tp_mode
		batch; /* the check that takes the batch, where a script passes by the mode's own */
	enum proof_windows windows;
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
	{ 'B',
	  0xff,
	  { .phase = TP_PHASE_LOOK,
	    .edit = TP_EDIT_WHOLE,
	    .from = IS(TP_SITE_BUSY),
	    .to = TP_SITE_LEFT } },
};

static uint8_t state_of(const struct proof *proof)
{
	for (size_t i = 0; i < proof->rig.count; i++) {
		const struct tp_poke *poke = &proof->rig.pokes[i];

		if (proof_is_real(poke) && !(IS(poke->outcome) & NOT_HERE))
			return poke->outcome;
	}
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
	if (!pass.from)
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
	else if (letter == 'L')
		engine->ops->look(engine->ctx, &proof->rig.batch);
	else
		take_pass(proof, letter);
	if (proof->fetch.mode != TP_MODE_STOP)
		fetch_look(&proof->fetch);
}

/* P(ublish), S(ync), L(ook), R(etire) and the passes of the shipped engine, by hand. */
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
	proof_check_run(proof, proof_run(proof));
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

/*
 * Windows with an int3 at their first byte alone: the others never get into the memory, and all that
 * reads it is told that they are there.
 */
static uint8_t hidden[64]; /* a bit a head, of each site */

static long write_no_heads(void *ctx, uint64_t addr, const void *buf, size_t len)
{
	const struct fake *fake = ctx;
	struct proof *proof = (struct proof *)fake->owner;

	memcpy(proof->scratch, buf, len);
	for (size_t i = 0; i < proof->fetch.count; i++) {
		const struct fetch_site *site = &proof->fetch.sites[i];

		for (size_t at = 1; at < 5; at++) {
			uint64_t offset = site->addr + at - addr;
			bool is_ours = !site->spec->is_null && offset < len &&
				       site->old->heads >> at & 1;

			if (is_ours)
				hidden[i] &= (uint8_t)~(1u << at);
			if (!is_ours || proof->scratch[offset] != TP_INT3)
				continue;
			hidden[i] |= (uint8_t)(1u << at);
			proof->scratch[offset] = site->old->bytes[at];
		}
	}
	return fake_ops.write(ctx, addr, proof->scratch, len);
}

static int read_hidden_heads(void *ctx, uint64_t addr, void *buf, size_t len)
{
	const struct fake *fake = ctx;
	const struct proof *proof = (const struct proof *)fake->owner;
	int error = fake_ops.read(ctx, addr, buf, len);

	for (size_t i = 0; i < proof->fetch.count; i++)
		for (size_t at = 1; at < 5; at++) {
			uint64_t offset = proof->fetch.sites[i].addr + at - addr;

			if (hidden[i] >> at & 1 && offset < len)
				((uint8_t *)buf)[offset] = TP_INT3;
		}
	return error;
}

static const char *run_headless(struct proof *proof, size_t argument)
{
	static struct tp_ops wrong;

	memset(hidden, 0, sizeof(hidden));
	wrong = fake_ops;
	wrong.write = write_no_heads;
	wrong.read = read_hidden_heads;
	proof->rig.engine.ops = &wrong;
	return run_whole(proof, argument);
}

/* Nobody has looked, and nobody is said to be inside. */
static int look_at_nothing(void *ctx, struct tp_batch *batch)
{
	(void)batch;
	return (int)fake_record(ctx, FAKE_LOOK, 0, NULL, 0);
}

/* Who is inside is known, and the site written all the same. */
static int look_and_forget(void *ctx, struct tp_batch *batch)
{
	int error = fake_ops.look(ctx, batch);

	for (size_t i = 0; i < batch->count; i++)
		if (batch->pokes[i].outcome == TP_SITE_BUSY)
			batch->pokes[i].outcome = TP_SITE_INT3;
	return error;
}

static const char *run_careless(struct proof *proof, size_t looks)
{
	static struct tp_ops wrong;

	wrong = fake_ops;
	wrong.look = looks ? look_and_forget : look_at_nothing;
	proof->rig.engine.ops = &wrong;
	return run_whole(proof, 0);
}

/* What the trap handler reads about a copy: that of another instruction, or nothing at all. */
static void set_copies(struct proof *proof, bool ignored)
{
	for (size_t i = 0; i < proof->rig.count; i++) {
		struct tp_poke *poke = &proof->rig.pokes[i];
		const struct fetch_site *site = proof_site(proof, poke);

		for (size_t at = 1; site->old->heads && at < 5; at++)
			poke->new_[11 + at] = ignored ? 0 : (uint8_t)(site->spec->copies[at] + 1);
	}
}

static void spoil_copies(struct fake *fake, const struct fake_op *op)
{
	(void)op;
	set_copies((struct proof *)fake->owner, false);
}

static void ignore_copies(struct fake *fake, const struct fake_op *op)
{
	(void)op;
	set_copies((struct proof *)fake->owner, true);
}

static const char *run_astray(struct proof *proof, size_t ignored)
{
	proof->rig.fake.before = ignored ? ignore_copies : spoil_copies;
	return run_whole(proof, 0);
}

/* The table of known sites forgets that a site has had int3s behind its first byte. */
static const char *run_headless_table(struct proof *proof, size_t argument)
{
	(void)argument;
	proof_run(proof);
	for (size_t i = 0; i < proof->rig.known.count; i++)
		proof->rig.known.entries[i].heads = 0;
	fetch_look(&proof->fetch);
	return proof_end(proof);
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
#define EMPTY .windows = PROOF_EMPTY
#define BUSY .windows = PROOF_BUSY
#define LEFT .windows = PROOF_LEFT
#define BACK .windows = PROOF_BACK

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
	{ "windows: as shipped", .run = run_whole, EMPTY },
	{ "windows: as shipped, rolling back", .run = run_deaf_rollback, .argument = SIZE_MAX,
	  EMPTY },
	{ "windows: as shipped, somebody inside fails the batch", .run = run_whole, BUSY },
	{ "windows: as shipped, somebody inside is left", .run = run_whole, LEFT },
	{ "windows: as shipped, back", .run = run_whole, BACK },
	{ "windows: a stranger's byte before the batch", .run = run_stranger, EMPTY },
	{ "windows: a write that did not happen", .run = run_lying_write, EMPTY },
	{ "windows: the shipped passes in their order", .script = "PISLTSFSR", EMPTY },
	{ "windows: the shipped passes, one is left", .script = "PISLBTSFSR", LEFT },
	{ "windows: the shipped passes, there and back", .script = "PISLTSFSiStSfSR", EMPTY },
	{ "windows: the shipped passes, undone before the look", .script = "PIStSfSR", EMPTY },
	{ "windows: the shipped passes, undone after the look", .script = "PISLStSfSR", EMPTY },
	{ "windows: the shipped passes, back", .script = "PISTSFSR", BACK },
	{ "windows: no int3 at later heads", .run = run_headless, EMPTY, WRONG },
	{ "windows: nobody has looked", .run = run_careless, .argument = 0, EMPTY, WRONG },
	{ "windows: nobody has looked, somebody is inside", .run = run_careless, .argument = 0,
	  LEFT, WRONG },
	{ "windows: who is inside fails nothing", .run = run_careless, .argument = 1, BUSY, WRONG },
	{ "windows: who is inside is not left", .run = run_careless, .argument = 1, LEFT, WRONG },
	{ "windows: a trap goes to another copy", .run = run_astray, .argument = 0, EMPTY, WRONG },
	{ "windows: copies are ignored", .run = run_astray, .argument = 1, EMPTY, WRONG },
	{ "windows: late traps at later heads are nobody's", .run = run_headless_table, LEFT,
	  WRONG },
	{ "windows: no sync after int3", .run = run_deaf, .argument = 0, EMPTY, WRONG },
	{ "windows: no sync after tails", .run = run_deaf, .argument = 1, EMPTY, WRONG },
	{ "windows: no sync after first bytes", .run = run_deaf, .argument = 2, EMPTY, WRONG },
	{ "windows: no look", .script = "PISTSFSR", EMPTY, WRONG },
	{ "windows: tails before the look", .script = "PISTLSFSR", EMPTY, WRONG },
	{ "windows: tails and their sync before the look", .script = "PISTSLFSR", EMPTY, WRONG },
	{ "windows: the look before the first sync", .script = "PILSTSFSR", EMPTY, WRONG },
	{ "windows: the look before the int3s", .script = "PLISTSFSR", EMPTY, WRONG },
	{ "windows: nobody is left, int3s stay", .script = "PISLTSFSR", LEFT, WRONG },
	{ "windows: left when it is too late", .script = "PISLTSFSRB", LEFT, WRONG },
	{ "windows: left without a sync", .script = "PISLTSFSBR", LEFT, WRONG },
	{ "windows: undo: first bytes alone", .script = "PISLSfSR", EMPTY, WRONG },
	{ "windows: undo: first bytes before tails, with no sync", .script = "PISLSftR", EMPTY,
	  WRONG },
	{ "windows: rollback: its first sync is dropped", .run = run_deaf_rollback, .argument = 2,
	  EMPTY, WRONG },
	{ "windows: rollback: its second sync is dropped", .run = run_deaf_rollback, .argument = 3,
	  EMPTY, WRONG },
	{ "windows: rollback: its last sync is dropped", .run = run_deaf_rollback, .argument = 4,
	  EMPTY, WRONG },
	{ "windows: retired before the look", .script = "PISRLTSFS", EMPTY, WRONG },
	{ "windows: back, no int3", .script = "PTSFSR", BACK, WRONG },
	{ "windows: back, first bytes before tails", .script = "PISFSTSR", BACK, WRONG },
	{ "windows: back, no sync after int3", .run = run_deaf, .argument = 0, BACK, WRONG },
	{ "windows: back, no sync after tails", .run = run_deaf, .argument = 1, BACK, WRONG },
	{ "windows: back, and taken back", .script = "PISTSFSiStSfSR", BACK, WRONG },
	{ "windows: direct", .script = "WS", .mode = TP_MODE_DIRECT, .batch = TP_MODE_STOP, EMPTY,
	  WRONG },
	{ "windows: stop, as shipped", .run = run_whole, STOP, EMPTY },
	{ "windows: stop, as shipped, rolling back", .run = run_deaf_rollback, .argument = SIZE_MAX,
	  STOP, EMPTY },
	{ "windows: stop, as shipped, back", .run = run_whole, STOP, BACK },
	{ "windows: stop, no sync", .run = run_deaf, .argument = 0, STOP, EMPTY, WRONG },
	{ "windows: stop, int3s of later heads are left", .script = "ISfS", STOP, EMPTY, WRONG },
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

uint32_t proof_control_windows(size_t control)
{
	return controls[control].windows;
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
