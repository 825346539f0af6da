/* SPDX-License-Identifier: Apache-2.0 */
/**
 * @file
 * Shadow stacks: where return addresses are while a probe waits for the return.
 *
 * Each frame has a trampoline of its own, so a return finds its frame by where it arrives, in
 * whatever order. Three rules keep that safe. A frame is filled before its trampoline is put on the
 * stack. It is used again only when it was popped, or when its slot holds neither the trampoline nor
 * the return address any more. And returns are redirected on a thread's own stack only: those of
 * coroutines move to other threads, and are unmapped, while their frames would be looked at.
 *
 * Everything here runs on the program's threads, perhaps in a signal handler that interrupts the
 * same code: top is moved before a frame is filled, frames at and above top belong to nobody.
 */
#include "agent.h"

#define MOST_SHADOWS 4096
#define SHADOW_NONE ((struct tp_shadow *)1) /* probe.inc */
#define FULL_CALLS 1024			    /* between two looks for dead frames that found none */
#define MOST_STACK (1ull << 30)

enum { SHADOW_UNUSED, SHADOW_USED, SHADOW_SEARCHED };

static uint32_t frames_migrate;

static struct tp_shadow *heads(void)
{
	return (struct tp_shadow *)tpa_image.shadow_heads;
}

/* TP_CMD_SHADOW. The tool has mapped the trampolines' place and fills it afterwards. */
int tpa_make_shadows(struct tp_wire *wire, const uint64_t args[4])
{
	uint64_t count = args[0], frames = count * TP_SHADOW_DEPTH * sizeof(struct tp_call);
	uint64_t first = PAGE_UP(count * sizeof(struct tp_shadow));
	char *memory;
	int error;

	if (!count || count > MOST_SHADOWS || tpa_image.shadow_count)
		return -22; /* EINVAL */
	memory = tpa_map_private(first + frames);
	if (!memory)
		return -12; /* ENOMEM */
	error = tpa_note_region((uint64_t)memory, first + frames);
	if (error)
		return error;
	if (!tpa_image.callers)
		tpa_image.callers = (uint64_t)tpa_callers(); /* nobody */
	tpa_image.shadow_heads = wire->args[0] = (uint64_t)memory;
	tpa_image.shadow_frames = wire->args[1] = (uint64_t)memory + first;
	tpa_image.shadow_returns = args[1];
	tpa_image.main_stack = args[2];
	__atomic_store_n(&tpa_image.shadow_count, count, __ATOMIC_RELEASE);
	return 0;
}

static void begin(struct tp_shadow *shadow, uint64_t number, uint64_t fs_base, uint32_t tid)
{
	struct tp_call *frames = (struct tp_call *)tpa_image.shadow_frames;
	struct tp_call *sentinel = &frames[number * TP_SHADOW_DEPTH];

	/* Above every other frame. libc keeps a thread's descriptor on top of its stack. */
	sentinel->slot = tid == (uint32_t)tpa.pid ? tpa_image.main_stack : fs_base;
	shadow->low = PAGE_OF(sentinel->slot);
	shadow->fs_base = fs_base;
	shadow->tid = tid;
	shadow->returns = tpa_image.shadow_returns - (tpa_image.shadow_frames >> 2);
	shadow->base = (uint64_t)(sentinel + 1);
	shadow->limit = tpa_end_of(shadow);
	shadow->walker = sentinel->tsc = sentinel->aux = 0;
	shadow->first = *tpa_callers();
	if (shadow->first.span == ~0ull)
		shadow->first.span = 0;
	shadow->caller = (uint64_t)&shadow->first;
	shadow->callers = (uint64_t)&tpa_image.callers;
	__atomic_store_n(&shadow->top, shadow->base, __ATOMIC_RELEASE);
	__atomic_store_n(&shadow->state, SHADOW_USED, __ATOMIC_RELEASE);
}

/* What is readable without a gap up to where the thread's own stack begins, as far down as @at. */
static uint64_t look_down(const struct tp_shadow *shadow, uint64_t at)
{
	uint64_t high = ((const struct tp_call *)shadow->base - 1)->slot, low = shadow->low;

	if (at >= high || high - at > MOST_STACK)
		return ~0ull;
	while (low > at && tpa_is_readable(low - TP_PAGE_BYTES))
		low -= TP_PAGE_BYTES;
	return low;
}

/** Is @at on the thread's own stack? */
int tpa_is_own(const struct tp_shadow *shadow, uint64_t at)
{
	return at >= look_down(shadow, at);
}

/* The same for the calling thread's: what was found out is kept. */
static int is_on_own(struct tp_shadow *shadow, uint64_t at)
{
	uint64_t low = look_down(shadow, at);

	if (low < shadow->low)
		shadow->low = low;
	return at >= low;
}

static int redirects_to(const struct tp_call *frame, const struct tp_call *below,
			const struct tp_shadow *shadow)
{
	return frame->slot == below->slot && frame->real == tpa_trampoline(shadow, below);
}

static const struct tp_shadow *shadow_of(const struct tp_call *frame)
{
	return &heads()[tpa_number(frame) / TP_SHADOW_DEPTH];
}

/* Code that a signal has interrupted fills it, or takes it away. */
static int is_in_hand(const struct tp_call *frame)
{
	enum tp_frame_state state = tpa_state(tpa_word(frame));

	return state == TP_FRAME_FREE || state == TP_FRAME_PUSHED;
}

/**
 * Has another call been made from the same place on the stack since? Then this one is gone, unless it
 * was left by a jump to that.
 */
int tpa_is_replaced(const struct tp_shadow *shadow, const struct tp_call *frame)
{
	int found = 0;

	for (const struct tp_call *above = frame + 1; (uint64_t)above < shadow->top; above++) {
		enum tp_frame_state state = tpa_state(tpa_word(above));

		if (above->slot != frame->slot || state == TP_FRAME_DEAD)
			continue;
		if (state == TP_FRAME_PUSHED || above->real == tpa_trampoline(shadow, frame))
			return 0;
		found |= state != TP_FRAME_FREE;
	}
	return found;
}

static int is_on_the_way(const struct tp_call *frame)
{
	return is_in_hand(frame) || tpa_holds(frame->slot, tpa_number(frame));
}

/* The return comes by the trampoline. */
static int is_waiting(const struct tp_shadow *shadow, const struct tp_call *frame)
{
	return is_on_the_way(frame) || tpa_holds(frame->slot, tpa_trampoline(shadow, frame));
}

/* What stands in the slot leads to the frame, or past it to where it leads. */
static int is_in_place(const struct tp_shadow *shadow, const struct tp_call *frame)
{
	return is_waiting(shadow, frame) || tpa_holds(frame->slot, frame->real);
}

/* May @frame's return address be the trampoline of @below? Who has yet to note it counts. */
static int may_redirect(const struct tp_call *frame, const struct tp_call *below,
			const struct tp_shadow *shadow)
{
	enum tp_frame_state state = tpa_state(tpa_word(frame));

	if (frame == below || frame->slot != below->slot || state == TP_FRAME_DEAD)
		return 0;
	return state == TP_FRAME_PUSHED || frame->real == tpa_trampoline(shadow, below);
}

typedef int fact(const struct tp_shadow *shadow, const struct tp_call *frame);

/* 1: such a frame redirects to @below, and is so. Else *@next is the last that is not. */
static int find_redirecting(const struct tp_shadow *shadow, const struct tp_call *below, fact *is,
			    const struct tp_call **next)
{
	for (uint64_t i = 0; i < tpa_image.shadow_count; i++) {
		const struct tp_shadow *of = &heads()[i];
		uint64_t top = of->state ? of->top : 0;

		for (uint64_t at = of->base; at < top; at += sizeof(struct tp_call)) {
			const struct tp_call *frame = (const struct tp_call *)at;

			if (!may_redirect(frame, below, shadow))
				continue;
			if (is(of, frame))
				return 1;
			*next = frame;
		}
	}
	return 0;
}

/*
 * Functions that were left by a jump return to each other's trampolines. Is there one so, from which
 * the way leads to @frame? On whichever shadow stack: a coroutine may have moved in between.
 */
static int some_above(const struct tp_shadow *shadow, const struct tp_call *frame, fact *is)
{
	for (int i = 0; i < TP_SHADOW_DEPTH; i++) {
		const struct tp_call *next = NULL;

		if (find_redirecting(shadow, frame, is, &next))
			return 1;
		if (!next)
			return 0;
		frame = next;
		shadow = shadow_of(frame);
	}
	return 1; /* never gamble */
}

/** Is somebody on the way to the trampoline, or does another frame's return lead there? */
int tpa_is_passed(const struct tp_shadow *shadow, const struct tp_call *frame)
{
	return is_on_the_way(frame) || some_above(shadow, frame, is_waiting);
}

/*
 * Will somebody return to this frame? @above is the live frame above it: a function that was left by
 * a jump to another one has its trampoline there.
 */
static int is_live(const struct tp_shadow *shadow, const struct tp_call *frame,
		   const struct tp_call *above)
{
	if (tpa_state(tpa_word(frame)) == TP_FRAME_DEAD)
		return 0;
	if (above && redirects_to(above, frame, shadow))
		return 1;
	if (!is_in_hand(frame) && tpa_is_replaced(shadow, frame))
		return 0;
	return is_in_place(shadow, frame) || some_above(shadow, frame, is_in_place);
}

/** Give back the topmost frames that are dead. A nested handler may push and pop at any moment. */
void tpa_lower_top(struct tp_shadow *shadow)
{
	for (;;) {
		uint64_t top = *(volatile uint64_t *)&shadow->top;
		struct tp_call *frame = (struct tp_call *)top - 1;
		uint64_t word = tpa_word(frame);

		if (top <= shadow->base || tpa_state(word) != TP_FRAME_DEAD ||
		    !tpa_change(frame, word, TP_FRAME_FREE))
			return;
		if (!tpa_move(&shadow->top, top, (uint64_t)frame))
			tpa_change(frame, word & ~0xffull, TP_FRAME_DEAD);
	}
}

/* @above as for is_live(). Returns whether the frame is dead. */
static int bury(struct tp_shadow *shadow, struct tp_call *frame, const struct tp_call *above)
{
	uint64_t word = tpa_word(frame);

	return !is_live(shadow, frame, above) && tpa_change(frame, word, TP_FRAME_DEAD);
}

static void sweep(struct tp_shadow *shadow)
{
	struct tp_call *above = NULL;

	for (struct tp_call *frame = (struct tp_call *)shadow->top;
	     (uint64_t)--frame >= shadow->base;)
		if (!bury(shadow, frame, above))
			above = frame;
	tpa_lower_top(shadow);
}

/* As sweep(), down to the first frame that is live. */
static void trim(struct tp_shadow *shadow)
{
	for (;;) {
		struct tp_call *top = (struct tp_call *)*(volatile uint64_t *)&shadow->top;

		if ((uint64_t)top <= shadow->base || !bury(shadow, top - 1, NULL))
			return;
		tpa_lower_top(shadow);
	}
}

static int is_gone(uint32_t tid)
{
	return sys3(__NR_tgkill, tpa.pid, tid, 0) == -3; /* ESRCH */
}

static int take(struct tp_shadow *shadow)
{
	uint32_t free = SHADOW_UNUSED;

	return __atomic_compare_exchange_n(&shadow->state, &free, SHADOW_SEARCHED, 0,
					   __ATOMIC_ACQ_REL, __ATOMIC_RELAXED);
}

/*
 * What was restored for an unwinder and not found again: frames whose slot is below @rsp, on the same
 * stack. On another one a signal may have found a thread just before a trampoline's first instruction,
 * and nothing but its saved rip tells.
 */
static void let_go_restored(struct tp_shadow *shadow, struct tp_call *frame, uint64_t rsp)
{
	struct tpa_stack stack = { rsp, 0, rsp };

	for (; (uint64_t)frame < shadow->top; frame++) {
		uint64_t word = tpa_word(frame);

		if (tpa_state(word) == TP_FRAME_RESTORED && tpa_is_below(&stack, frame->slot) &&
		    tpa_put_back(shadow, frame))
			tpa_change(frame, word, TP_FRAME_DEAD);
	}
}

/* Of a thread that is gone: the return addresses are in place, nobody needs the frames. */
static void let_go_of_dead(struct tp_shadow *shadow)
{
	for (struct tp_call *frame = (struct tp_call *)shadow->base; (uint64_t)frame < shadow->top;
	     frame++) {
		uint64_t word = tpa_word(frame);

		/* in hand: a signal came, and its handler never returned */
		if (!tpa_frames_migrate() &&
		    (is_in_hand(frame) ||
		     (tpa_state(word) == TP_FRAME_RESTORED && tpa_put_back(shadow, frame))))
			tpa_change(frame, word, TP_FRAME_DEAD);
	}
}

/*
 * One whose thread is gone, and to whose frames nobody will return. Looked at by one thread only:
 * its frames belong to the next one from then on.
 */
static int take_over(struct tp_shadow *shadow)
{
	uint32_t used = SHADOW_USED;

	if (!is_gone(shadow->tid) ||
	    !__atomic_compare_exchange_n(&shadow->state, &used, SHADOW_SEARCHED, 0,
					 __ATOMIC_ACQ_REL, __ATOMIC_RELAXED))
		return 0;
	if (is_gone(shadow->tid)) { /* another thread may just have made it its own */
		let_go_of_dead(shadow);
		sweep(shadow);
		if (shadow->top == shadow->base)
			return 1;
	}
	__atomic_store_n(&shadow->state, SHADOW_USED, __ATOMIC_RELEASE);
	return 0;
}

/** The calling thread's shadow stack; NULL: there are none yet; SHADOW_NONE: none is left. */
struct tp_shadow *tpa_shadow_claim(uint64_t fs_base, uint32_t tid)
{
	uint64_t count = __atomic_load_n(&tpa_image.shadow_count, __ATOMIC_ACQUIRE);

	for (uint64_t i = 0; i < count; i++)
		if (heads()[i].state == SHADOW_USED && heads()[i].fs_base == fs_base &&
		    heads()[i].tid == tid)
			return &heads()[i];
	for (int again = 0; again < 2; again++)
		for (uint64_t i = 0; i < count; i++)
			if (again ? take_over(&heads()[i]) : take(&heads()[i])) {
				begin(&heads()[i], i, fs_base, tid);
				return &heads()[i];
			}
	return count ? SHADOW_NONE : NULL;
}

/* Looking costs two system calls a frame, and a deep recursion finds none dead. */
static void make_room(struct tp_shadow *shadow)
{
	struct tp_call *sentinel = (struct tp_call *)shadow->base - 1;

	if (sentinel->tsc++ % FULL_CALLS)
		return;
	sweep(shadow);
	if (shadow->top < tpa_end_of(shadow))
		sentinel->tsc = 0;
}

/**
 * A call finds no room: since somebody walked the stack, or since there is none. Where its frame
 * goes; NULL: nowhere.
 */
struct tp_call *tpa_shadow_sweep(struct tp_shadow *shadow, uint64_t slot)
{
	if (shadow->walker && slot >= shadow->walker)
		tpa_redirect_again(shadow, slot); /* the walk is over */
	if (shadow->top >= tpa_end_of(shadow))
		make_room(shadow);
	return shadow->top < tpa_end_of(shadow) ? (struct tp_call *)shadow->top : NULL;
}

/*
 * The code of a function may jump back to its first byte: a loop, or tail recursion. Where a site
 * has several probes, their frames stand one above the other.
 */
static int is_loop(const struct tp_shadow *shadow, const struct tp_call *frame, uint64_t slot,
		   uint64_t site, uint64_t exit)
{
	uint64_t found = *(const uint64_t *)slot;

	for (; (uint64_t)frame >= shadow->base; frame--) {
		if (tpa_state(frame->state) != TP_FRAME_LIVE || frame->slot != slot ||
		    frame->word >> 16 != site || found != tpa_trampoline(shadow, frame))
			return 0;
		if (frame->exit == exit)
			return 1;
		found = frame->real;
	}
	return 0;
}

/* Does the slot lead to this frame? Whoever calls from there stands above it. */
static int is_below(const struct tp_shadow *shadow, const struct tp_call *frame, uint64_t slot)
{
	return tpa_state(frame->state) == TP_FRAME_LIVE && frame->slot == slot &&
	       *(const uint64_t *)slot == tpa_trampoline(shadow, frame);
}

/**
 * Where the frame of a call goes whose slot is not below the top one's, or not known to be on the
 * thread's own stack: dead ones make room. NULL: it is the same call; TPA_NOT_OWN: nowhere.
 */
struct tp_call *tpa_shadow_check(struct tp_shadow *shadow, uint64_t slot, uint64_t site,
				 uint64_t exit)
{
	if (!is_on_own(shadow, slot))
		return TPA_NOT_OWN;
	for (;;) {
		struct tp_call *top = (struct tp_call *)*(volatile uint64_t *)&shadow->top;

		if ((uint64_t)top <= shadow->base || top[-1].slot > slot)
			return top;
		if (is_loop(shadow, &top[-1], slot, site, exit))
			return NULL;
		if (is_below(shadow, &top[-1], slot) || !bury(shadow, &top[-1], NULL))
			return top;
		tpa_lower_top(shadow);
	}
}

/** A thread is on another one's own stack. */
void tpa_note_migration(void)
{
	__atomic_store_n(&frames_migrate, 1, __ATOMIC_SEQ_CST);
}

int tpa_frames_migrate(void)
{
	return __atomic_load_n(&frames_migrate, __ATOMIC_SEQ_CST) != 0;
}

/**
 * Take a frame away that is not the calling thread's top one.
 * @return The ring for its EXIT; NULL: that cannot be recorded.
 */
struct tp_ring *tpa_shadow_pop(struct tp_call *frame, struct tp_shadow *shadow, uint64_t fs_base,
			       struct tpa_set *set)
{
	struct tp_ring *ring = (struct tp_ring *)frame->aux;
	int own = shadow->fs_base == fs_base;
	struct tpa_slot *slot;

	if (!own)
		tpa_note_migration();
	__atomic_store_n(&frame->state, (frame->state & ~0xffull) | TP_FRAME_DEAD,
			 __ATOMIC_RELEASE);
	if (own) {
		let_go_restored(shadow, frame + 1, frame->slot);
		tpa_lower_top(shadow);
		trim(shadow);
		return ring;
	}
	slot = *set->gate ? tpa_claim(fs_base, set) : NULL;
	return slot ? slot->ring : NULL;
}

/** Other callers are known by now: let no thread go by what it has found before. */
void tpa_forget_callers(void)
{
	for (uint64_t i = 0; i < tpa_image.shadow_count; i++)
		__atomic_store_n(&heads()[i].caller, (uint64_t)&heads()[i].first, __ATOMIC_RELAXED);
}

/** Is any return redirected? */
int tpa_any_frames(void)
{
	for (uint64_t i = 0; i < tpa_image.shadow_count; i++)
		if (heads()[i].state && heads()[i].top > heads()[i].base)
			return 1;
	return 0;
}
