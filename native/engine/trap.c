/* SPDX-License-Identifier: Apache-2.0 */
/**
 * @file
 * The trap path: called from the SIGTRAP handler on any thread, at any time. No calls out, no
 * locks, no allocation. The count of handlers in flight keeps a descriptor alive (1f676247f36a).
 */
#include "engine.h"

static struct tp_slot *slot_of(struct tp_engine *engine, uint64_t rsp)
{
	return &engine->slots[(rsp >> 12) * 0x9e3779b97f4a7c15ull >> 58];
}

static bool is_head(const struct tp_poke *poke, uint64_t addr)
{
	return addr - poke->addr < poke->len && tp_old_heads(poke) >> (addr - poke->addr) & 1;
}

/* The site at @addr, or the one with an instruction there that has a trap of its own. */
static const struct tp_poke *find_poke(const struct tp_batch *batch, uint64_t addr)
{
	size_t low = 0, high = batch->count;

	while (low < high) {
		size_t middle = low + (high - low) / 2;

		if (batch->pokes[middle].addr < addr)
			low = middle + 1;
		else
			high = middle;
	}
	for (size_t i = low; i < batch->count && batch->pokes[i].addr == addr; i++)
		if (batch->pokes[i].outcome != TP_SITE_SKIPPED)
			return &batch->pokes[i];
	while (low && batch->pokes[low - 1].outcome == TP_SITE_SKIPPED)
		low--;
	return low && is_head(&batch->pokes[low - 1], addr) ? &batch->pokes[low - 1] : NULL;
}

/** Publish a descriptor before its first int3, or retire it (NULL) after the last sync. */
void tp_publish(struct tp_engine *engine, const struct tp_batch *batch)
{
	__atomic_store_n(&engine->active, batch, __ATOMIC_SEQ_CST);
	__atomic_add_fetch(&engine->generation, 1, __ATOMIC_SEQ_CST);
}

static const struct tp_poke *find_active(const struct tp_engine *engine, uint64_t ip)
{
	const struct tp_batch *batch = __atomic_load_n(&engine->active, __ATOMIC_SEQ_CST);

	if (!batch || (batch->is_handled && !batch->is_handled(ip)))
		return NULL;
	return find_poke(batch, ip - 1);
}

/*
 * A thread may reach its handler long after the batch has ended (kernel 2aebf5ee43bf and mails of
 * June 2025; far wider here, signal delivery is preemptible). If the int3 is gone, run it again. If
 * there is one, it is foreign only when no other batch has begun since we looked for the site.
 */
static enum tp_trap_result look_up(struct tp_engine *engine, struct tp_frame *frame)
{
	uint64_t addr = frame->rip - 1, generation;

	do {
		const struct tp_known_table *known;
		const struct tp_known *entry;
		const struct tp_poke *poke;
		uint64_t handler;

		generation = __atomic_load_n(&engine->generation, __ATOMIC_SEQ_CST);
		poke = find_active(engine, frame->rip);
		if (poke) {
			if (poke->addr == addr)
				tp_emulate(poke, frame);
			else
				tp_emulate_head(poke, (unsigned int)(addr - poke->addr), frame);
			return TP_TRAP_EMULATED;
		}
		known = __atomic_load_n(&engine->known, __ATOMIC_ACQUIRE);
		entry = known ? tp_known_covering(known, addr) : NULL;
		if (!entry)
			return TP_TRAP_FOREIGN;
		/* First: where the int3 is still there, the handler was not yet taken away. */
		handler = __atomic_load_n(&entry->handler, __ATOMIC_SEQ_CST);
		if (*(const volatile uint8_t *)addr != TP_INT3) {
			frame->rip = addr;
			return TP_TRAP_LATE;
		}
		if (handler && entry->addr == addr) {
			frame->rip = handler;
			return TP_TRAP_PERMANENT;
		}
	} while (generation != __atomic_load_n(&engine->generation, __ATOMIC_SEQ_CST));
	return TP_TRAP_FOREIGN;
}

/** Handle the int3 that @frame has just executed; its rip points past it. */
enum tp_trap_result tp_trap(struct tp_engine *engine, struct tp_frame *frame)
{
	struct tp_slot *slot = slot_of(engine, frame->rsp);
	enum tp_trap_result result;

	__atomic_add_fetch(&slot->inflight, 1, __ATOMIC_SEQ_CST);
	result = look_up(engine, frame);
	__atomic_add_fetch(result == TP_TRAP_EMULATED  ? &slot->traps :
			   result == TP_TRAP_LATE      ? &slot->late :
			   result == TP_TRAP_PERMANENT ? &slot->permanent :
							 &slot->foreign,
			   1, __ATOMIC_RELAXED);
	__atomic_sub_fetch(&slot->inflight, 1, __ATOMIC_SEQ_CST);
	return result;
}

/** Number of threads inside tp_trap() now. */
uint64_t tp_handlers_in_flight(const struct tp_engine *engine)
{
	uint64_t sum = 0;

	for (size_t i = 0; i < TP_SLOTS; i++)
		sum += __atomic_load_n(&engine->slots[i].inflight, __ATOMIC_SEQ_CST);
	return sum;
}

/** Wait until nobody uses a retired descriptor. Returns false on time-out: keep its memory. */
bool tp_drain(struct tp_engine *engine, uint64_t timeout_ns)
{
	uint64_t start = engine->ops->clock_ns(engine->ctx);

	while (tp_handlers_in_flight(engine)) {
		if (engine->ops->clock_ns(engine->ctx) - start > timeout_ns)
			return false;
		engine->ops->relax(engine->ctx);
	}
	return true;
}
