/* SPDX-License-Identifier: Apache-2.0 */
/**
 * @file
 * Before somebody unwinds the stack, return addresses go back to where they stood; afterwards the
 * frames that are still there are redirected again. Runs on the program's threads.
 */
#include "agent.h"

enum { JMP_BUF_RSP = 6 };

/* Frames whose slot is in [low, high): from the newest on, since one may redirect to another. */
static void restore(struct tp_shadow *shadow, uint64_t low, uint64_t high,
		    enum tp_frame_state state)
{
	for (struct tp_call *frame = (struct tp_call *)shadow->top;
	     (uint64_t)--frame >= shadow->base;) {
		if (frame->state != TP_FRAME_LIVE || frame->slot < low || frame->slot >= high)
			continue;
		if (tpa_holds(frame->slot, tpa_trampoline(shadow, frame)))
			*(uint64_t *)frame->slot = frame->real;
		frame->state = state;
	}
}

/** Redirect again what was restored and is still there, older ones first. Below @rsp nothing is. */
void tpa_redirect_again(struct tp_shadow *shadow, uint64_t rsp)
{
	for (struct tp_call *frame = (struct tp_call *)shadow->base; (uint64_t)frame < shadow->top;
	     frame++) {
		if (frame->state != TP_FRAME_RESTORED)
			continue;
		if (frame->slot < rsp) {
			frame->state = TP_FRAME_DEAD;
		} else if (tpa_holds(frame->slot, frame->real)) {
			frame->state = TP_FRAME_LIVE;
			*(uint64_t *)frame->slot = tpa_trampoline(shadow, frame);
		}
	}
	tpa_lower_top(shadow);
	shadow->walker = 0;
	shadow->limit = shadow->end;
}

static uint64_t rotate_right(uint64_t value, int bits)
{
	return value >> bits | value << (64 - bits);
}

/*
 * Where longjmp() goes to: glibc keeps the stack pointer rotated and mixed with a word of the
 * thread's (PTR_MANGLE of sysdeps/x86_64), musl as it is. 0: unknown.
 */
static uint64_t destination(uint64_t jmp_buf, uint64_t slot)
{
	uint64_t kept = ((const uint64_t *)jmp_buf)[JMP_BUF_RSP], guard, plain;

	__asm__("movq %%fs:0x30, %0" : "=r"(guard));
	plain = rotate_right(kept, 17) ^ guard;
	if (plain > slot && plain - slot < 1ull << 40)
		return plain;
	return kept > slot && kept - slot < 1ull << 40 ? kept : 0;
}

static void jump(struct tp_shadow *shadow, uint64_t slot, uint64_t jmp_buf)
{
	uint64_t to = destination(jmp_buf, slot);

	restore(shadow, to ? slot : 0, to ? to : ~0ull, TP_FRAME_DEAD);
	tpa_lower_top(shadow);
}

static void unwind(struct tp_shadow *shadow, uint64_t what, uint64_t slot, uint64_t argument)
{
	switch (what) {
	case TP_UNWIND_WALKS: /* the next call from here, or above, tells that it is over */
		shadow->walker = slot;
		shadow->limit = 0;
		__attribute__((fallthrough));
	case TP_UNWIND_BEGINS:
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

	for (uint64_t i = 0; i < tpa_image.shadow_count; i++)
		if (heads[i].state && heads[i].fs_base == fs_base && heads[i].top > heads[i].base)
			unwind(&heads[i], what, slot, argument);
}
