/* SPDX-License-Identifier: Apache-2.0 */
/** @file What the parts of the agent share. All state is private memory of the target. */
#ifndef TPA_AGENT_H
#define TPA_AGENT_H

#include "engine.h"
#include "sys.h"
#include "wire.h"

#define TPA_SLOT_COUNT 4096u /* probe.inc: SLOT_MASK */

#define PAGE_UP(bytes) (((bytes) + TP_PAGE_BYTES - 1) & ~(uint64_t)(TP_PAGE_BYTES - 1))
#define PAGE_OF(at) ((at) & ~(uint64_t)(TP_PAGE_BYTES - 1))

/** Where a thread finds its ring: keyed by fs base, never emptied. */
struct tpa_slot {
	uint64_t fs_base;
	struct tp_ring *ring;
	struct tp_shadow *shadow;
	uint64_t guess; /* where the slot may be of who has a stack here: probe.inc */
};

/** Rings, and the gate that says whether threads write to them. The first set is the agent's own. */
struct tpa_set {
	struct tp_wire *wire; /* layout of the shared object, and its counters */
	struct tpa_slot *slots;
	struct tpa_slot **gate; /* alone in its page, which fork wipes */
	int fd;
	const void *captures; /* rich.c */
	uint32_t profiled;    /* functions that a ring has rows for; 0: it holds events */
};

/**
 * Registers of the program at a call or a return, as a thunk saves them for tpa_capture(). At a
 * return @slot is where the return address was.
 */
struct tpa_regs {
	union {
		uint64_t gpr[16]; /* in the order of DWARF: TP_CAPTURE_GPR */
		struct {
			uint64_t rax, rdx, rcx, rbx, rsi, rdi, rbp, rsp;
			uint64_t r8, r9, r10, r11, r12, r13, r14, r15;
		};
	};
	uint64_t xmm[8]; /* their low halves */
	uint64_t slot;	 /* address of the return address; the arguments on the stack follow it */
};

_Static_assert(offsetof(struct tpa_regs, xmm) == 128, "thunks know these offsets");
_Static_assert(sizeof(struct tpa_regs) == 200, "thunks know these offsets");

struct tpa_state {
	struct tp_wire *wire;
	uint32_t command_seq; /* of the command that runs */
	struct tpa_set sets[TP_MAX_SETS];
	uint32_t set_count;
	struct tp_engine engine;
	int mem_fd;
	int status_fd;
	int stat_fd;
	int task_fd;	   /* the directory of the program's threads */
	uint32_t seen_tid; /* ours in that directory: another pid namespace counts differently */
	int shared_fd;
	int socket_fd;
	int pid;
	int ids_watched;
	int is_filtered; /* a seccomp filter may kill a thread for a call that it did not expect */
	uint32_t ids[6]; /* ruid euid suid rgid egid sgid of this thread */
};

extern struct tp_image tpa_image;
extern struct tpa_state tpa;
extern struct tpa_slot *tpa_gate; /* of the first set */

/* main.c */
void tpa_main(void) __attribute__((noreturn));

/* memory.c */
extern const struct tp_ops tpa_ops;
void *tpa_map_private(size_t bytes);
int tpa_store_words(const struct tp_wire *wire, const uint64_t args[4]);
void tpa_unmap(void *start, size_t bytes);
void tpa_copy(void *to, const void *from, size_t bytes);
void tpa_pause(void);

/* reads.c */
void tpa_choose_copies(struct tp_copies *shared);
int tpa_read_text(void *ctx, uint64_t addr, void *buf, size_t len);

/* look.c */
int tpa_look(void *ctx, struct tp_batch *batch);

/* handler.c */
int tpa_install_handler(void);
int tpa_handler_is_ours(void);
int tpa_a_handler_forbids_traps(int room);

/* commands.c */
int tpa_run_command(struct tp_wire *wire);
int tpa_undo(uint32_t modes, enum tp_mode how, uint64_t flags, uint64_t *strangers,
	     struct tp_outcome *outcome);
int tpa_any_patched(uint32_t modes);

/* ring_write.c */
struct tpa_slot *tpa_claim(uint64_t fs_base, struct tpa_set *set);
int tpa_is_ring_of(const struct tp_ring *ring, uint64_t fs_base, uint32_t tid);
void tpa_init_rings(const struct tpa_set *set);
void tpa_count_overrun(uint64_t fs_base, struct tpa_set *set);
void tpa_set_limits(const struct tpa_set *set, uint64_t waiting);
void tpa_retire_rings(void);
struct tp_ring *tpa_ring(const struct tpa_set *set, uint32_t i);
int tpa_holds(uint64_t at, uint64_t value);
int tpa_is_readable(uint64_t at);
void tpa_write_long(struct tp_ring *ring, uint64_t word, uint64_t now, uint64_t ticks);

/* sets.c */
int tpa_add_set(struct tp_wire *wire, const uint64_t args[4]);
int tpa_record(const uint64_t args[4]);
void tpa_close_gates(void);
int tpa_any_gate_open(void);

/* shadow.c */
int tpa_make_shadows(struct tp_wire *wire, const uint64_t args[4]);
struct tp_shadow *tpa_shadow_claim(uint64_t fs_base, uint32_t tid);
#define TPA_NOT_OWN ((struct tp_call *)1) /* the stack: probe.inc */
struct tp_call *tpa_shadow_check(struct tp_shadow *shadow, uint64_t slot, uint64_t site,
				 uint64_t exit);
struct tp_call *tpa_shadow_sweep(struct tp_shadow *shadow, uint64_t slot);
void tpa_lower_top(struct tp_shadow *shadow);
int tpa_is_own(const struct tp_shadow *shadow, uint64_t at);
int tpa_any_frames(void);
int tpa_is_replaced(const struct tp_shadow *shadow, const struct tp_call *frame);
int tpa_is_passed(const struct tp_shadow *shadow, const struct tp_call *frame);
void tpa_forget_callers(void);
void tpa_note_migration(void);
int tpa_frames_migrate(void);

static inline uint64_t tpa_trampoline(const struct tp_shadow *shadow, const struct tp_call *frame)
{
	return ((uint64_t)frame >> 2) + shadow->returns;
}

/** What a trampoline leaves in the slot until the return address is there. */
static inline uint64_t tpa_number(const struct tp_call *frame)
{
	return ((uint64_t)frame - tpa_image.shadow_frames) / sizeof(*frame);
}

static inline enum tp_frame_state tpa_state(uint64_t word)
{
	return (enum tp_frame_state)(word & 0xff);
}

/** Compare and swap in one instruction: a signal comes before or after, other threads do not count. */
static inline int tpa_move(uint64_t *word, uint64_t from, uint64_t to)
{
	uint64_t found = from;

	__asm__ volatile("cmpxchgq %2, %1"
			 : "+a"(found), "+m"(*(volatile uint64_t *)word)
			 : "r"(to)
			 : "memory", "cc");
	return found == from;
}

/** Change the state of a frame that is used as it was when @word was read, and only then. */
static inline int tpa_change(struct tp_call *frame, uint64_t word, enum tp_frame_state to)
{
	return tpa_move(&frame->state, word, (word & ~0xffull) | to);
}

static inline uint64_t tpa_end_of(const struct tp_shadow *shadow)
{
	return shadow->base + (TP_SHADOW_DEPTH - 1) * sizeof(struct tp_call);
}

static inline uint64_t tpa_word(const struct tp_call *frame)
{
	return *(const volatile uint64_t *)&frame->state;
}

struct tp_ring *tpa_shadow_pop(struct tp_call *frame, struct tp_shadow *shadow, uint64_t fs_base,
			       struct tpa_set *set);

/* callers.c */
int tpa_set_callers(const void *request, const uint64_t args[4]);
const struct tp_caller *tpa_callers(void);
int tpa_is_known_caller(uint64_t real);

/* rich.c */
int tpa_set_captures(const void *request, const uint64_t args[4]);
void tpa_rich_enter(const struct tpa_regs *regs, uint64_t site, const struct tp_probe_words *probe);
void tpa_rich_leave(const struct tpa_regs *regs, const struct tp_probe_words *probe,
		    struct tp_call *frame, struct tp_shadow *shadow);

/* profile.c */
struct tp_profile *tpa_profile_find(struct tp_ring *ring, uint64_t site);

/* unwind.c */
/** A stack pointer, and what is known of the memory below it. */
struct tpa_stack {
	uint64_t rsp;
	uint64_t hole;	/* the highest page below that cannot be read; 0: none is known */
	uint64_t known; /* from here on it can */
};

uint64_t tpa_final_return(uint64_t real);
void tpa_unwind(uint64_t fs_base, uint64_t what, uint64_t slot, uint64_t argument);
int tpa_is_below(struct tpa_stack *stack, uint64_t at);
int tpa_put_back(struct tp_shadow *shadow, struct tp_call *frame);
void tpa_redirect_again(struct tp_shadow *shadow, uint64_t rsp);

/* commands.c */
int tpa_note_region(uint64_t start, uint64_t bytes);

/* capture.c */
uint32_t tpa_capture(const struct tp_capture_op *ops, uint32_t count, const struct tpa_regs *regs,
		     bool may_read, uint64_t *words, uint32_t room);

/* watch.c */
void tpa_drop_privileges(void);
void tpa_watch(void);
const char *tpa_field(const char *text, const char *name);

/* orphan.c */
void tpa_watch_tool(void);
void tpa_note_usual(void);
void tpa_be_as_usual(void);

#endif
