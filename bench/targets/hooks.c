/* SPDX-License-Identifier: Apache-2.0 */
/**
 * @file
 * What gcc's -finstrument-functions calls: nothing, or with RECORD the least that a recorder can do:
 * time and function, 16 bytes, to a buffer of the thread.
 */
#include <stdint.h>
#include <x86intrin.h>

#define EVENTS (1u << 16)
#define HOOK __attribute__((no_instrument_function))

HOOK void __cyg_profile_func_enter(void *function, void *caller);
HOOK void __cyg_profile_func_exit(void *function, void *caller);

#ifdef RECORD
struct event {
	uint64_t tsc;
	uint64_t what;
};

static __thread struct event events[EVENTS];
static __thread uint32_t head;

HOOK static inline void record(void *function, uint64_t type)
{
	events[head++ % EVENTS] = (struct event){ __rdtsc(), (uint64_t)function << 16 | type };
}
#else
#define record(function, type) ((void)(function))
#endif

void __cyg_profile_func_enter(void *function, void *caller)
{
	(void)caller;
	record(function, 1);
}

void __cyg_profile_func_exit(void *function, void *caller)
{
	(void)caller;
	record(function, 2);
}
