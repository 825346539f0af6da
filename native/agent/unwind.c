/* SPDX-License-Identifier: Apache-2.0 */
/**
 * @file
 * Before somebody unwinds the stack, return addresses go back to where they stood; afterwards the
 * frames that are still there are redirected again. Runs on the program's threads.
 */
#include "agent.h"

enum { JMP_BUF_RSP = 6 };

#define MOST_PAGES 2048 /* of a stack that are looked at */

/*
 * Put @to where @from stands, if it does. In one instruction where nothing forbids: another thread may
 * be on the stack.
 */
static int swap(uint64_t slot, uint64_t from, uint64_t to)
{
	if (!tpa_holds(slot, from))
		return 0;
	if (slot % sizeof(from)) { /* a locked access across two lines may be a fault */
		*(volatile uint64_t *)slot = to;
		return 1;
	}
	return __atomic_compare_exchange_n((uint64_t *)slot, &from, to, 0, __ATOMIC_SEQ_CST,
					   __ATOMIC_RELAXED);
}

/** Where a function really returns that was left by a jump: to whom, not to the trampoline of whom. */
uint64_t tpa_final_return(uint64_t real)
{
	uint64_t count = tpa_image.shadow_count * TP_SHADOW_DEPTH;

	for (uint64_t i = 0; i < count; i++) {
		uint64_t number = (real - tpa_image.shadow_returns) / TP_RETURN_BYTES;

		if (real < tpa_image.shadow_returns || number >= count)
			break;
		real = ((const struct tp_call *)tpa_image.shadow_frames)[number].real;
	}
	return real;
}

/**
 * The return address to where its trampoline stands, if it does. 0: somebody is on the way to the
 * trampoline nevertheless; the frame must stay.
 */
int tpa_put_back(struct tp_shadow *shadow, struct tp_call *frame)
{
	if (tpa_state(tpa_word(frame)) != TP_FRAME_FREE)
		swap(frame->slot, tpa_trampoline(shadow, frame), tpa_final_return(frame->real));
	return !tpa_is_passed(shadow, frame);
}

/* Frames whose slot is in [low, high): from the newest on, since one may redirect to another. */
static void restore(struct tp_shadow *shadow, uint64_t low, uint64_t high, enum tp_frame_state to)
{
	for (struct tp_call *frame = (struct tp_call *)shadow->top;
	     (uint64_t)--frame >= shadow->base;) {
		uint64_t word = tpa_word(frame);
		enum tp_frame_state state = tpa_state(word);

		if (state == TP_FRAME_DEAD || state == to || frame->slot < low ||
		    frame->slot >= high)
			continue;
		if (tpa_put_back(shadow, frame))
			tpa_change(frame, word, to);
	}
}

/* Where the readable memory ends in which @at is. */
static uint64_t end_of_stack(uint64_t at)
{
	uint64_t page = PAGE_OF(at);

	for (int i = 0; i < MOST_PAGES; i++) {
		page += TP_PAGE_BYTES;
		if (!tpa_is_readable(page))
			break;
	}
	return page;
}

/**
 * Is @at below @stack->rsp, with nothing but readable memory between them, and not much: on the same
 * stack? What was found out before is kept there.
 */
int tpa_is_below(struct tpa_stack *stack, uint64_t at)
{
	uint64_t page = PAGE_OF(at);

	if (at >= stack->rsp || at < stack->hole || stack->rsp - at > MOST_PAGES * TP_PAGE_BYTES)
		return 0;
	for (; (page += TP_PAGE_BYTES) < stack->known;)
		if (!tpa_is_readable(page)) {
			stack->hole = page;
			return 0;
		}
	if (PAGE_OF(at) < stack->known)
		stack->known = PAGE_OF(at);
	return 1;
}

/*
 * A thread may be on the own stack of another one, which is on a coroutine's meanwhile. Nobody else
 * is there then, and nothing is pushed there.
 */
static void restore_of_host(struct tp_shadow *shadow, uint64_t slot)
{
	uint64_t newest = ((const struct tp_call *)shadow->top - 1)->slot;

	if ((newest > slot && newest - slot > MOST_PAGES * TP_PAGE_BYTES) ||
	    !tpa_is_own(shadow, slot))
		return;
	for (struct tp_call *frame = (struct tp_call *)shadow->base; (uint64_t)frame < shadow->top;
	     frame++)
		if (frame->slot > slot && tpa_holds(frame->slot, tpa_trampoline(shadow, frame)))
			tpa_note_migration();
	restore(shadow, slot + 1, ~0ull, TP_FRAME_DEAD);
}

static int is_over(const struct tp_call *frame, struct tpa_stack *stack)
{
	if (tpa_frames_migrate()) /* another thread may be unwinding there: never again */
		return 1;
	return frame->slot == stack->rsp || tpa_is_below(stack, frame->slot);
}

static void redirect_frame(struct tp_shadow *shadow, struct tp_call *frame, struct tpa_stack *stack)
{
	uint64_t word = tpa_word(frame);

	if (tpa_state(word) != TP_FRAME_RESTORED)
		return;
	if (tpa_is_replaced(shadow, frame) || is_over(frame, stack)) {
		if (tpa_put_back(shadow, frame))
			tpa_change(frame, word, TP_FRAME_DEAD);
	} else if (frame->slot >= stack->rsp && tpa_holds(frame->slot, frame->real) &&
		   tpa_change(frame, word, TP_FRAME_LIVE)) {
		swap(frame->slot, frame->real, tpa_trampoline(shadow, frame));
		if (tpa_state(tpa_word(frame)) != TP_FRAME_LIVE) /* a handler unwound just before */
			swap(frame->slot, tpa_trampoline(shadow, frame),
			     tpa_final_return(frame->real));
	}
}

/* Where the return address of the outermost unwinder stands that has not come to an end; or 0. */
static uint64_t *unwinder_of(const struct tp_shadow *shadow)
{
	return &((struct tp_call *)shadow->base - 1)->aux;
}

/* Has the thread come back to above an unwinder? */
static int is_gone(uint64_t unwinder, uint64_t rsp)
{
	struct tpa_stack stack = { rsp, 0, rsp };

	return unwinder == rsp || tpa_is_below(&stack, unwinder) ||
	       !tpa_is_readable(unwinder & ~7ull);
}

/*
 * A signal handler may unwind and catch, or walk, within the work of another unwinder. One that is
 * asked for tables within a walk is that walk's.
 */
static void note_unwinder(struct tp_shadow *shadow, uint64_t slot)
{
	uint64_t *unwinder = unwinder_of(shadow);

	if (!(shadow->walker && slot < shadow->walker) && (!*unwinder || is_gone(*unwinder, slot)))
		*unwinder = slot;
}

/** Redirect again what was restored and is still there, older ones first. Below @rsp nothing is. */
void tpa_redirect_again(struct tp_shadow *shadow, uint64_t rsp)
{
	struct tpa_stack stack = { rsp, 0, rsp };
	uint64_t *unwinder = unwinder_of(shadow);

	shadow->walker = 0;
	shadow->limit = tpa_end_of(shadow);
	if (*unwinder && !is_gone(*unwinder, rsp))
		return;
	*unwinder = 0;

	for (struct tp_call *frame = (struct tp_call *)shadow->base; (uint64_t)frame < shadow->top;
	     frame++)
		redirect_frame(shadow, frame, &stack);
	tpa_lower_top(shadow);
}

static uint64_t rotate_right(uint64_t value, int bits)
{
	return value >> bits | value << (64 - bits);
}

/*
 * Where longjmp() goes to: glibc keeps the stack pointer rotated and mixed with a word of the
 * thread's (PTR_MANGLE of sysdeps/x86_64), musl as it is. 0: unknown.
 */
static uint64_t destination(uint64_t jmp_buf)
{
	uint64_t kept = ((const uint64_t *)jmp_buf)[JMP_BUF_RSP], guard, plain;

	__asm__("movq %%fs:0x30, %0" : "=r"(guard));
	plain = rotate_right(kept, 17) ^ guard;
	if (tpa_is_readable(plain & ~3ull))
		return plain;
	return tpa_is_readable(kept & ~3ull) ? kept : 0;
}

/* The jump leads within one stack; or to another one, from a signal handler's or a coroutine's. */
static void jump(struct tp_shadow *shadow, uint64_t slot, uint64_t jmp_buf)
{
	uint64_t to = destination(jmp_buf);
	struct tpa_stack stack = { to, 0, to };
	int within = tpa_is_below(&stack, slot);
	uint64_t end = within ? to : end_of_stack(slot);

	restore(shadow, slot, end, TP_FRAME_DEAD);
	for (uint64_t at = shadow->base; to && !within && at < shadow->top;
	     at += sizeof(struct tp_call)) {
		uint64_t left = ((const struct tp_call *)at)->slot;

		if (tpa_is_below(&stack, left))
			restore(shadow, left, left + 1, TP_FRAME_DEAD);
	}
	tpa_lower_top(shadow);
}

static void unwind(struct tp_shadow *shadow, uint64_t what, uint64_t slot, uint64_t argument)
{
	if (!tpa_any_gate_open()) { /* nobody asks any more */
		restore(shadow, 0, ~0ull, TP_FRAME_DEAD);
		tpa_lower_top(shadow);
		return;
	}
	switch (what) {
	case TP_UNWIND_WALKS: /* the next call from here, or above, tells that it is over */
		if (slot > shadow->walker)
			shadow->walker = slot;
		shadow->limit = 0;
		restore(shadow, 0, ~0ull, TP_FRAME_RESTORED);
		break;
	case TP_UNWIND_BEGINS:
		note_unwinder(shadow, slot);
		restore(shadow, 0, ~0ull, TP_FRAME_RESTORED);
		break;
	case TP_UNWIND_CAUGHT:
		tpa_redirect_again(shadow, slot);
		break;
	default:
		jump(shadow, slot, argument);
	}
}

/**
 * A function was entered that looks at the stack, or leaves a part of it.
 * @what: enum tp_unwind.
 * @slot: where its return address stands.
 * @argument: its first one.
 */
void tpa_unwind(uint64_t fs_base, uint64_t what, uint64_t slot, uint64_t argument)
{
	struct tp_shadow *heads = (struct tp_shadow *)tpa_image.shadow_heads;

	/* They are taken in order, and never given back. */
	for (uint64_t i = 0; i < tpa_image.shadow_count && heads[i].state; i++) {
		if (heads[i].top <= heads[i].base)
			continue;
		if (heads[i].fs_base != fs_base) {
			if (what == TP_UNWIND_BEGINS || what == TP_UNWIND_WALKS)
				restore_of_host(&heads[i], slot);
		} else if (heads[i].tid == (uint32_t)sys0(__NR_gettid)) {
			unwind(&heads[i], what, slot, argument);
		} else { /* of a thread that is gone, or of before a fork */
			restore(&heads[i], 0, ~0ull, TP_FRAME_DEAD);
		}
	}
}
