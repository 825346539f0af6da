/* SPDX-License-Identifier: Apache-2.0 */
/**
 * @file
 * What the tool and the agent share: the layout of the shared memory object and of the agent's
 * image header. One version number; every size is asserted. Nothing here is trusted by either side.
 */
#ifndef TP_WIRE_H
#define TP_WIRE_H

#ifndef TP_CDEF /* the declarations are also read by cffi, which knows these types */
#include <stddef.h>
#include <stdint.h>
#endif

#define TP_WIRE_MAGIC 0x454b4f5054584554ull /* "TEXTPOKE" */

enum {
	TP_WIRE_VERSION = 7,
	TP_PAGE_BYTES = 4096,
	TP_MAX_INSN = 15,
	TP_INT3 = 0xcc,
	TP_MAX_REGIONS = 256,
	TP_EVENT_ENTRY = 1,
	TP_EVENT_EXIT = 2,
	TP_EVENT_DATA = 3, /* 8 bytes of payload of the ENTRY or EXIT before it */
	TP_DATA_OF_EXIT = 1
		<< 16,		/* in the place of its instruction pointer; index and count below */
	TP_SHADOW_DEPTH = 1024, /* frames a thread, the first of them never used: probe.inc */
	TP_RETURN_BYTES = 16,	/* of a frame's trampoline */
	TP_MOST_CALLERS = 1023, /* stretches of code whose calls are followed */
	TP_MAX_SETS = 16,
	TP_PROFILE_BUCKETS = 112,
	TP_LAP_MASK = 0xfff,
	TP_HANDED_FDS = 4, /* mem, status, stat, task directory */
};

/* Names a program sees: the thread's comm, the memfd, the label of private mappings. */
#define TP_NAME "textpoke"

enum tp_poke_flags {
	TP_POKE_NO_OLD = 1 << 0, /* the seed's NULL opcodes: "already there" */
	TP_POKE_NO_NEW = 1 << 1,
	/* Bits 2 to 5: an instruction begins at byte 1, 2, 3, 4 of the code that gives way to a JMP. */
	TP_POKE_HEADS = 0xf << 2,
	TP_POKE_BACK = 1 << 6, /* or that comes back in its place */
	/* Without heads: each side is one instruction, whatever it looks like: the rest is padding. */
	TP_POKE_ONE = 1 << 6,
	TP_POKE_ALIKE = 1
		<< 7, /* filled by the engine: all bytes are those of the poke before it */
};

/** Where one site of a batch stands. */
enum tp_outcome_of_site {
	TP_SITE_PENDING,  /* nothing written */
	TP_SITE_SKIPPED,  /* NULL opcodes: counted, finished, never written */
	TP_SITE_INT3,	  /* int3 in place, tail old */
	TP_SITE_TAIL,	  /* int3 in place, tail new */
	TP_SITE_WRITTEN,  /* new in place, finish not yet called */
	TP_SITE_DONE,	  /* new in place, finish called */
	TP_SITE_RESTORED, /* old in place again */
	TP_SITE_BUSY,	  /* int3 in place, a thread stands behind its first instruction */
	TP_SITE_LEFT,	  /* old in place again for that reason; the rest of the batch went on */
};

enum tp_phase {
	TP_PHASE_CHECK,
	TP_PHASE_VERIFY,
	TP_PHASE_INT3,
	TP_PHASE_TAIL,
	TP_PHASE_FIRST,
	TP_PHASE_RECOVER,
	TP_PHASE_ROLLBACK,
	TP_PHASE_LOOK, /* between int3 and tail: is a thread inside of a site? */
	TP_PHASES
};

/** One site of a batch: replace the instruction at @addr. */
struct tp_poke {
	uint64_t addr;
	/* A trapped thread continues here; 0: emulate the instruction. A site of one byte with a handler
	 * may be turned into an int3 for good: whoever traps there later goes on there too. */
	uint64_t handler;
	uint64_t target; /* filled by the engine: where the emulated branch goes */
	uint32_t index;	 /* position in the caller's order */
	uint8_t len;
	uint8_t flags;	 /* enum tp_poke_flags */
	uint8_t outcome; /* enum tp_outcome_of_site */
	uint8_t emulate; /* filled by the engine: enum tp_insn_kind, condition code in the high bits */
	uint8_t old[16];
	uint8_t new_[16]; /* with heads, [12] to [15]: where in the JMP's target each goes on */
};

/** What a batch did: everything that a caller may assert or print. */
struct tp_outcome {
	int32_t code;	     /* 0, -errno or a negated code of errors.def */
	uint32_t phase;	     /* enum tp_phase: where it failed */
	uint64_t fail_count; /* index within the phase, skipped sites included */
	uint64_t fail_addr;
	uint32_t fail_index; /* position in the caller's order */
	uint8_t fail_len;
	uint8_t recovered;   /* recovery ran and left no int3 of ours */
	uint8_t rolled_back; /* finished sites were put back too */
	uint8_t undrained;   /* a thread was still in the handler at the time-out */
	uint8_t expected[16];
	uint8_t found[16];
	uint64_t sites;
	uint64_t finished;
	uint64_t syncs;
	uint64_t writes;
	uint64_t reads;
	uint64_t pages;	    /* page windows of the int3 phase */
	uint64_t conflicts; /* windows whose other bytes changed under the write */
	uint64_t traps;	    /* threads that ran into an int3 of this batch */
	uint64_t late_traps;
	uint64_t phase_ns[8]; /* indexed by enum tp_phase */
	uint64_t total_ns;
	uint64_t left; /* sites that a thread was inside of: TP_SITE_LEFT */
};

/** A site ever poked: its first bytes, and what is there now. Private memory, never shrinks. */
struct tp_known {
	uint64_t addr;
	uint8_t original[16];
	uint8_t current[16];
	uint8_t len;
	uint8_t patched;
	uint8_t written; /* ever; until then nothing but a batch's word says what its first bytes are */
	uint8_t mode;  /* enum tp_mode of the last batch: how it may be undone */
	uint8_t heads; /* bit i: a batch has had an int3 i bytes into the site, too */
	uint8_t guard; /* TP_BATCH_GUARDS: goes last, after the frames that it guards */
	uint8_t reserved[2];
	uint64_t handler; /* while the site is an int3 for good: where a trapped thread goes on */
};

enum tp_map_kind {
	TP_MAP_CODE,	 /* r-x: pads, thunks, stubs */
	TP_MAP_DATA,	 /* r--: what debuggers read */
	TP_MAP_COUNTERS, /* rw-: what stubs count in */
	TP_MAP_KINDS
};

enum tp_command {
	TP_CMD_NONE,
	TP_CMD_FDS, /* take the files from the socket, or open them here; arg0 = 1: they were sent; arg1 = 1: the tool counts users as the target does; arg2: the agent's thread id as the sent directory has it */
	TP_CMD_MAP, /* map arg1 bytes of private memory at arg0; arg2 = enum tp_map_kind */
	TP_CMD_BATCH, /* run arg0 pokes of the request area; arg1 = enum tp_batch_flags; arg2 = is_handled, arg3 = finish */
	TP_CMD_WRITE, /* write the batch that TP_BATCH_PREPARE has kept; arg0: as many of its records are to be left out, marked in the request area */
	TP_CMD_RESTORE, /* put every known site back; arg0 = strangers to leave out at most, arg1 = enum tp_mode, arg2 = TP_BATCH_ROOM or 0, arg3 = TP_BATCH_GUARDS: all but the guards */
	TP_CMD_KEEP,	/* arg0: 1 = keep everything when the tool is gone, 0 = then turn it off */
	TP_CMD_RECORD, /* arg0: 1 = thunks write events, 0 = they return at once; arg1 = events that may wait in a ring; arg2 = set */
	TP_CMD_RINGS, /* another set of rings: arg0 of arg1 bytes; arg2 = functions to profile, or 0. Its number is the result; args become fd, gate, address of the set. With arg3 = its number + 1: close that fd */
	TP_CMD_SHADOW, /* shadow stacks for arg0 threads, whose trampolines stand at arg1; args become heads, frames */
	TP_CMD_CAPTURE, /* what is captured where: arg0 bytes of the request area hold struct tp_capture_head, its sites, its operations; arg1 = set */
	TP_CMD_STORE, /* arg1 aligned words at arg0, in memory of TP_MAP_DATA: the request area holds what they are, then what they become; -EILSEQ: they are not, nothing is stored */
	TP_CMD_CALLERS, /* code whose calls' returns may be redirected: arg0 struct tp_caller of the request area, the one with most callers first */
	TP_CMD_QUIT,	/* leave: the agent's thread ends, memory stays for the tool to unmap */
};

enum tp_batch_flags {
	TP_BATCH_ALL_OR_NOTHING = 1 << 0,
	TP_BATCH_ONE_BY_ONE = 1 << 1, /* for measurement: a protocol run a site */
	TP_BATCH_ROOM = 1
		<< 2, /* the caller answers for alternate stacks: they have room for a trap */
	TP_BATCH_LEAVE_BUSY = 1
		<< 3, /* leave out sites that a thread is inside of; else they fail the batch */
	TP_BATCH_GUARDS = 1 << 4, /* probes that unwinders need while returns are redirected */
	TP_BATCH_PREPARE = 1
		<< 5, /* of stop mode: check, verify and keep it for TP_CMD_WRITE; any other command forgets it */
	TP_BATCH_MODE_SHIFT = 8, /* enum tp_mode stands in the byte above */
};

/** How a batch is written. */
enum tp_mode {
	TP_MODE_INT3,	/* the protocol: int3, tails, first bytes; threads run on and may trap */
	TP_MODE_DIRECT, /* one pass: only the first byte of a site changes, or NOPs become NOPs */
	TP_MODE_STOP,	/* one pass: the caller holds every thread, and none is inside a site */
	TP_MODES
};

/** Whether a batch in stop mode may be written: a tool that gives up waiting lets all threads go. */
enum tp_hold {
	TP_HOLD_OPEN,  /* the tool waits, and what it holds stays held */
	TP_HOLD_TAKEN, /* the agent writes: now the tool waits for the end */
	TP_HOLD_OVER,  /* the tool has given up: nothing may be written */
};

enum tp_agent_state {
	TP_AGENT_STARTING,
	TP_AGENT_READY,
	TP_AGENT_FAILED,
	TP_AGENT_QUIT,
};

struct tp_region {
	uint64_t start;
	uint64_t bytes;
};

/** struct jit_code_entry of gdb's manual, "JIT Interface": one element of the program's list. */
struct tp_jit_entry {
	uint64_t next;
	uint64_t prev;
	uint64_t object; /* an ELF file in the target's memory */
	uint64_t object_bytes;
};

/** What stands at the end of a copy of a probe's code (probe.inc). */
struct tp_probe_words {
	uint64_t gate;
	uint64_t claim;
	uint64_t set;
	uint64_t
		offset; /* from the place of the probe's return address to that of the function's */
	uint64_t exit;
	uint64_t threshold; /* ticks */
	uint64_t depth;	    /* bytes of frames */
	uint64_t sweep;
	uint64_t check;
	uint64_t pop;
	uint64_t call;
	uint64_t other;
	uint64_t argument;
};

enum tp_probe {
	TP_PROBE_FUNCTION,
	TP_PROBE_GRAPH,
	TP_PROBE_PROFILE,
	TP_PROBE_UNWIND,
	TP_PROBE_RICH,
	TP_PROBES,
};

/** What functions that a TP_PROBE_UNWIND stands at do to the stack. */
enum tp_unwind {
	TP_UNWIND_BEGINS, /* it reads return addresses and leaves frames: exceptions, cancellation */
	TP_UNWIND_WALKS,  /* it reads them and comes back: backtrace */
	TP_UNWIND_CAUGHT, /* an exception has arrived: __cxa_begin_catch */
	TP_UNWIND_JUMPS,  /* longjmp and its kin: arg1 is the jmp_buf */
};

/** Where a probe's template is in the agent. */
struct tp_template {
	uint64_t start;
	uint64_t tail;	/* the RET of its entry part */
	uint64_t exit;	/* what runs at a redirected return; 0: nothing */
	uint64_t words; /* struct tp_probe_words; the code ends there */
	uint64_t call;	/* what only this probe calls */
	uint64_t other; /* likewise, at a return */
};

/** A call whose return is redirected (shadow.c). Private memory of the target. */
struct tp_call {
	uint64_t real; /* the return address */
	uint64_t slot; /* where it stood, and stands again when the call is let go */
	uint64_t word; /* of the EXIT event */
	uint64_t tsc;
	uint64_t exit;
	uint64_t aux;	/* the ring, or the row of the profile */
	uint64_t child; /* ticks in calls below */
	uint64_t state; /* enum tp_frame_state; above the low byte, how often the frame was used */
};

enum tp_frame_state {
	TP_FRAME_FREE,
	TP_FRAME_LIVE,	   /* its trampoline stands in the slot, or soon will */
	TP_FRAME_RESTORED, /* the return address does: somebody is unwinding */
	TP_FRAME_DEAD,	   /* nobody will return, but frames above it are in use */
	TP_FRAME_PUSHED,   /* the code that fills it may be interrupted, and comes back */
};

/** Code whose calls are followed (callers.c). */
struct tp_caller {
	uint64_t start;
	uint64_t span;
};

/** A thread's shadow stack; frames from base to top are in use. */
struct tp_shadow {
	uint64_t top;
	uint64_t limit;
	uint64_t base;
	uint64_t fs_base;
	uint64_t returns; /* a frame's trampoline stands at frame / 4 + returns */
	uint32_t tid;
	uint32_t state;	 /* 0: free, 1: in use */
	uint64_t low;	 /* of the thread's own stack, as far as it was looked at (shadow.c) */
	uint64_t walker; /* where the return address of that somebody stands; or 0 */
	struct tp_caller first; /* what most calls come from */
	uint64_t caller;	/* the struct tp_caller of the last call that came from elsewhere */
	uint64_t callers;	/* where the address of the table stands */
	uint64_t unused[4];
};

/**
 * A function's row in a profile; times in ticks. The last call is not yet among the squares and the
 * buckets: the reader adds it. Where there was none, that makes up for a bucket 0 of -1.
 */
struct tp_profile {
	uint64_t site; /* return address of the site */
	uint64_t hits;
	uint64_t total;
	uint64_t self;
	uint64_t max;
	uint64_t squares[2];		      /* sum of squares of times, low word first */
	uint64_t last;			      /* of the last call */
	uint32_t buckets[TP_PROFILE_BUCKETS]; /* of times; four to an octave: profile.S */
};

/**
 * The head of the agent's writable image. The tool fills the first half before the thread is
 * born; a later tool reads the second half through the mem file to find out what is in place.
 */
struct tp_image {
	uint64_t magic;
	uint32_t version;
	uint32_t image_bytes; /* whole span: code, data, gate page, stack */
	/* filled by the tool */
	uint64_t base;
	uint32_t ring_count;
	uint32_t ring_bytes; /* power of two: bytes of events of one ring */
	uint64_t request_bytes;
	uint32_t tid_offset; /* of the thread id behind the fs base; 0: unknown */
	uint32_t step;	     /* start-up steps that succeeded: names the one that failed */
	/* in the image's file: the tool copies the thunk to where the sites can reach it */
	struct tp_template templates[TP_PROBES];
	uint64_t
		return_start; /* of the code before the trampolines; ends with two words: heads, frames */
	uint64_t return_words;
	uint64_t gate;
	uint64_t set;
	uint64_t claim;
	uint64_t sweep;
	uint64_t check;
	uint64_t pop;
	/* filled by the agent */
	uint32_t state; /* enum tp_agent_state, a futex */
	int32_t error;	/* -errno of a failed start */
	int32_t shared_fd;
	int32_t socket_fd; /* the tool's end */
	uint32_t tid;
	uint32_t broken;
	uint64_t shared_base;
	uint64_t shared_bytes;
	uint64_t slots_base; /* table of rings by fs base, private */
	uint64_t slots_bytes;
	uint64_t shadow_heads;	/* struct tp_shadow[shadow_count] */
	uint64_t shadow_frames; /* struct tp_call[TP_SHADOW_DEPTH] of each */
	uint64_t shadow_count;
	uint64_t shadow_returns; /* the first trampoline */
	uint64_t callers;	 /* struct tp_caller[], the last of span ~0; 0: none are known */
	uint64_t main_stack;	 /* where the stack of the process's first thread begins, on top */
	uint64_t known_base;	 /* struct tp_known[known_count] */
	uint64_t known_bytes;	 /* of the whole mapping, which begins in the same page */
	uint64_t known_count;
	uint64_t known_generation; /* odd while the table changes */
	uint64_t restorer;
	uint64_t handler;
	uint64_t handler_installed;
	uint32_t keep;	   /* what is patched stays when the tool is gone */
	uint32_t orphaned; /* times that a tool was gone and the agent turned its probes off */
	uint64_t inflight; /* threads inside the trap handler, as last seen */
	uint64_t jit_descriptor; /* of gdb's JIT interface, when our entry is in its list; else 0 */
	struct tp_jit_entry jit_entry;
	uint64_t old_action[4]; /* struct kernel_sigaction of whoever handled SIGTRAP before */
	uint64_t set_count; /* shared objects of further sets of rings: a forked child lacks them */
	struct tp_region sets[TP_MAX_SETS];
	uint64_t region_count;
	struct tp_region regions[TP_MAX_REGIONS];
};

enum tp_ring_state { TP_RING_FREE, TP_RING_CLAIMED, TP_RING_LIVE, TP_RING_DEAD };

/** One event. word = instruction pointer << 16 | lap << 4 | type. */
struct tp_event {
	uint64_t tsc;
	uint64_t word;
};

/** Head of a ring, one page; the events follow. One thread writes, one tool reads. */
struct tp_ring {
	/* the writer's line: thunk.S knows these offsets */
	uint64_t head;	  /* events reserved, ever */
	uint64_t limit;	  /* head must stay below; the reader moves it on with its tail */
	uint64_t mask;	  /* events - 1 */
	uint64_t tid_at;  /* address that holds the owner's tid */
	uint64_t dropped; /* events that found the ring full */
	uint32_t tid;
	uint32_t rows; /* of a profile, in use */
	uint64_t tid_copy;
	uint64_t overruns; /* calls that found no frame: too deep, or no shadow stack */
	/* the reader's line */
	uint64_t tail; /* events read, ever */
	uint64_t dropped_seen;
	uint64_t padding1[6];
	/* cold */
	uint32_t state; /* enum tp_ring_state */
	uint32_t generation;
	uint64_t fs_base;
	uint64_t bytes; /* of events, or of the profile */
};

/** First page of the shared memory object. */
struct tp_wire {
	uint64_t magic;
	uint32_t version;
	uint32_t header_bytes;
	uint64_t total_bytes;
	uint64_t request_offset;
	uint64_t request_bytes;
	uint64_t ring_offset;
	uint32_t ring_count;
	uint32_t ring_stride; /* bytes from ring to ring, its head page included */
	uint32_t ring_bytes;
	uint32_t agent_tid;
	uint64_t image_base;
	/* command block */
	uint32_t command_seq; /* futex: the tool adds one */
	uint32_t done_seq;    /* futex: the agent follows */
	uint32_t command;
	int32_t result;
	uint64_t args[4];
	struct tp_outcome outcome;
	uint64_t events_without_ring;
	uint64_t claims;
	/* a look at all threads, in the midst of a batch: the agent asks, the tool answers */
	uint32_t look_seq;     /* the agent adds one, and wakes done_seq */
	uint32_t looked_seq;   /* futex: the tool follows */
	int32_t look_result;   /* 0: busy sites are marked in the request area; or -errno */
	uint32_t hold;	       /* tp_hold_of() a command, by its command_seq */
	uint64_t copies_bytes; /* behind the request area: where the agent reads text to */
};

#ifndef TP_CDEF
/** What @hold says of one command and of no other. */
static inline uint32_t tp_hold_of(uint32_t command_seq, enum tp_hold hold)
{
	return command_seq << 2 | hold;
}

/** Where the pokes of a batch stand. */
static inline struct tp_poke *tp_request_of(const struct tp_wire *wire)
{
	return (struct tp_poke *)((char *)wire + TP_PAGE_BYTES);
}
#endif

/** Where the value of a capture begins. */
enum tp_capture_source {
	TP_CAPTURE_GPR,	  /* register @number, counted as DWARF does: rax rdx rcx rbx rsi rdi ... */
	TP_CAPTURE_XMM,	  /* low half of xmm0 to xmm7 */
	TP_CAPTURE_STACK, /* address of the @number'th word behind the return address */
	TP_CAPTURE_CALLER, /* the return address */
};

/** What is kept of it: of the value itself, or of what lies at the last offset from it. */
enum tp_capture_what {
	TP_CAPTURE_VALUE,  /* the value plus the last offset */
	TP_CAPTURE_LOAD,   /* @size bytes there */
	TP_CAPTURE_STRING, /* the C string there, @bytes of it at most */
};

enum {
	TP_CAPTURE_MOST_LOADS = 4,
	TP_CAPTURE_MOST_BYTES = 256,
	TP_CAPTURE_MOST_OPS = 32,
	TP_CAPTURE_MOST_WORDS = 64, /* of all operations at an ENTRY, or at an EXIT */
	TP_CAPTURE_SIGNED = 1,	    /* flags: the field's highest bit is its sign */
};

/**
 * One value to capture: @loads times the 8 bytes at offsets[i] from the value become the value, then
 * @what decides. Gives one word, a string as many as its @bytes need.
 */
struct tp_capture_op {
	uint8_t source; /* enum tp_capture_source */
	uint8_t number;
	uint8_t loads;
	uint8_t what;  /* enum tp_capture_what */
	uint8_t size;  /* 1, 2, 4, 8 */
	uint8_t shift; /* the field within the word: how many bits stand below it */
	uint8_t width; /* bits of the field, 1 to 64 */
	uint8_t flags;
	uint16_t bytes;
	uint16_t reserved;
	int32_t offsets[5]; /* TP_CAPTURE_MOST_LOADS, and the last */
};

/** What is captured at a site; operations are counted from the first of all. */
struct tp_capture_site {
	uint64_t site; /* return address */
	uint32_t entry;
	uint32_t entry_count;
	uint32_t exit;
	uint32_t exit_count;
};

/** Sites, sorted by address, then operations. */
struct tp_capture_head {
	uint64_t sites;
	uint64_t ops;
};

#ifndef TP_CDEF
_Static_assert(sizeof(struct tp_capture_site) == 24, "wire layout");
_Static_assert(sizeof(struct tp_capture_op) == 32, "wire layout");
_Static_assert(sizeof(struct tp_poke) == 64, "wire layout");
_Static_assert(sizeof(struct tp_known) == 56, "wire layout");
_Static_assert(sizeof(struct tp_event) == 16, "wire layout");
_Static_assert(sizeof(struct tp_ring) == 152, "wire layout");
_Static_assert(sizeof(struct tp_call) == 64, "wire layout");
_Static_assert(sizeof(struct tp_shadow) == 128, "wire layout");
_Static_assert(sizeof(struct tp_profile) == 512, "wire layout");
_Static_assert(sizeof(struct tp_probe_words) == 104, "wire layout");
_Static_assert(sizeof(struct tp_wire) <= TP_PAGE_BYTES, "wire layout");
_Static_assert(sizeof(struct tp_image) <= 2 * TP_PAGE_BYTES, "wire layout");
#endif

#endif
