/* SPDX-License-Identifier: Apache-2.0 */
/**
 * @file
 * What a displaced entry jumps to: call the thunk, do what was displaced, go on behind it.
 *
 * The thunk's frame stands below the red zone: what looks like an entry may be a place that leaf code
 * jumps to. The return address into us is wiped behind the call, because a dead one, found on a stack
 * that was not written since, would look like a thread that is still to return here (leave.c).
 */
#include <errno.h>
#include <string.h>

#include "textpoke.h"

static const uint8_t below_red_zone[] = { 0x48, 0x8d, 0x64, 0x24, 0x80 }; /* lea -128(%rsp),%rsp */
static const uint8_t wipe[] = { 0x48, 0xc7, 0x44, 0x24, 0xf8, 0, 0, 0, 0 }; /* movq $0,-8(%rsp) */
static const uint8_t back_up[] = { 0x48, 0x8d, 0xa4, 0x24, 0x80, 0, 0, 0 }; /* lea 128(%rsp),%rsp */

static void append(struct tp_stub *stub, const void *code, size_t bytes)
{
	memcpy(stub->code + stub->bytes, code, bytes);
	stub->bytes += (uint32_t)bytes;
}

static int append_call(struct tp_stub *stub, uint64_t at, uint64_t target)
{
	int64_t reach = (int64_t)(target - (at + stub->bytes + 5));
	int32_t displacement = (int32_t)reach;
	const uint8_t call = 0xe8;

	if (reach != displacement)
		return -ERANGE;
	append(stub, &call, 1);
	append(stub, &displacement, sizeof(displacement));
	return 0;
}

/**
 * Make the stub at @at for the window at runtime address @from. Returns 0, or a negative code of
 * tp_move_window(). How large it is does not depend on @at and @thunk.
 */
int tp_make_stub(const uint8_t *window, uint64_t window_bytes, uint64_t from, uint64_t at,
		 uint64_t thunk, struct tp_stub *stub)
{
	struct tp_moved moved;
	int error;

	stub->bytes = 0;
	append(stub, below_red_zone, sizeof(below_red_zone));
	error = append_call(stub, at, thunk);
	if (error)
		return error;
	stub->return_at = stub->bytes;
	append(stub, wipe, sizeof(wipe));
	append(stub, back_up, sizeof(back_up));
	error = tp_move_window(window, window_bytes, from, at + stub->bytes, &moved);
	if (error)
		return error;
	for (int head = 0; head < 5; head++)
		stub->head_at[head] =
			moved.head_at[head] ? (uint8_t)(stub->bytes + moved.head_at[head]) : 0;
	stub->copy_at = stub->bytes;
	stub->pushed_at = moved.pushed_at ? stub->bytes + moved.pushed_at : 0;
	stub->back_at = moved.back_at ? stub->bytes + moved.back_at : 0;
	append(stub, moved.code, moved.bytes);
	return 0;
}

/**
 * The trampolines of @count redirected returns: `push $number`, then a jump to the code that stands
 * @before bytes before the first one. The number is the frame's.
 */
void tp_make_returns(uint8_t *code, uint64_t count, uint32_t before)
{
	for (uint64_t i = 0; i < count; i++) {
		uint8_t *at = code + i * TP_RETURN_BYTES;
		uint32_t number = (uint32_t)i;
		int32_t distance = -(int32_t)(before + i * TP_RETURN_BYTES + 10);

		memset(at, TP_INT3, TP_RETURN_BYTES);
		at[0] = 0x68;
		memcpy(at + 1, &number, sizeof(number));
		at[5] = 0xe9;
		memcpy(at + 6, &distance, sizeof(distance));
	}
}
