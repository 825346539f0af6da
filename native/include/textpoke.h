/* SPDX-License-Identifier: Apache-2.0 */
/**
 * @file
 * The native side of the tool: ptrace, the command channel, draining rings. Every call returns 0
 * or more, or a negative errno (or code of errors.def); nothing prints, nothing is global. ptrace
 * ties a tracee to one thread of the tool: make all calls about one target from the same thread.
 */
#ifndef TEXTPOKE_H
#define TEXTPOKE_H

#ifndef TP_CDEF
#include <stdbool.h>
#endif

#include "errors.h"
#include "wire.h"

/** What to load into a target, and where a system call can be borrowed. */
struct tp_inject {
	uint8_t *image; /* file bytes of the agent, laid out by virtual address */
	uint64_t image_file_bytes;
	uint64_t image_bytes;	     /* with bss, gate page and stack */
	uint64_t head_offset;	     /* of struct tp_image */
	uint64_t entry_offset;	     /* of tpa_bootstrap */
	const uint64_t *relocations; /* pairs: offset, addend */
	uint64_t relocation_count;
	uint64_t syscall_at; /* address of "0f 05" in any r-x mapping */
	int mem_fd;	     /* mem file of the target, read and write */
	uint32_t ring_count;
	uint32_t ring_bytes;
	uint64_t request_bytes;
	uint32_t local_tid; /* the seized thread's id in its own pid namespace */
};

struct tp_injected {
	uint64_t base;
	int64_t agent_tid; /* in the target's pid namespace */
	uint64_t hold_ns;  /* from the request to stop to the release */
	uint32_t tid_offset;
	uint32_t fixed_eintr; /* an interrupted system call was put back by hand */
};

/** A stopped thread of a target, and what it was doing. */
struct tp_held;

struct tp_held *tp_held_create(void);
void tp_held_destroy(struct tp_held *held);
bool tp_hurry(void);
void tp_relax(bool hurried);
int tp_seize(struct tp_held *held, int pid, int tid);
int tp_launch(struct tp_held *held, const char *path, char *const argv[], char *const envp[]);
int tp_run_to_start(struct tp_held *held, uint64_t loaded_at, uint64_t state_at);
int tp_held_pid(const struct tp_held *held);
uint64_t tp_held_mask(const struct tp_held *held);
int tp_inject(struct tp_held *held, const struct tp_inject *in, struct tp_injected *out);
int tp_inject_thread(int pid, int tid, const struct tp_inject *in, struct tp_injected *out);
int tp_inject_self(const struct tp_inject *in, struct tp_injected *out);
int64_t tp_remote_syscall(struct tp_held *held, uint64_t syscall_at, long nr, const uint64_t *args);
int tp_release(struct tp_held *held);

/* status.c */

/** What proc/PID/task/TID/status says of a thread; sets of signals have a bit each. */
struct tp_thread {
	int32_t tid;
	int32_t tracer; /* process id, or 0 */
	uint64_t blocked;
	uint64_t pending;	 /* for this thread */
	uint64_t shared_pending; /* for any */
	uint32_t seccomp;	 /* its mode */
	char state;
	char name[67]; /* as proc escapes it */
};

int tp_read_status(int pid, int tid, struct tp_thread *thread);
int64_t tp_read_threads(int pid, struct tp_thread *threads, uint64_t room);

/* maps.c */
/** Code of a file as it is mapped. */
struct tp_code {
	uint64_t start;
	uint64_t end;
	uint64_t offset;
	uint64_t inode;
	uint32_t major; /* of the device */
	uint32_t minor;
};

int64_t tp_read_code(int pid, struct tp_code *found, uint64_t room);

/* ask.c */
int tp_ask(int socket_fd, int pidfd, const void *request, uint64_t request_bytes, void *answer,
	   uint64_t answer_bytes, int timeout_ms);
int tp_allow_tracer(int pid);

/* channel.c */
int tp_send_fds(int tid, int remote_fd, const int fds[4]);
int tp_command(struct tp_wire *wire, uint32_t command, const uint64_t *args, int timeout_ms,
	       int pid, int tid);

/** A batch with sites of several instructions: where threads may stand inside of them. */
struct tp_look {
	int pid;
	int agent_tid;
	uint64_t restorer;	     /* tells the signal frames of our own handler */
	const struct tp_poke *pokes; /* the tool's own copy of the batch */
	uint64_t count;
	uint8_t *busy; /* for each: a thread was inside */
};

int tp_command_looking(struct tp_wire *wire, uint32_t command, const uint64_t *args, int timeout_ms,
		       const struct tp_look *look);

/* leave.c */
struct tp_leave {
	int pid;
	uint64_t syscall_at;
	/* Pairs start, end. First the parts of ours that can be executed, where a return address may
	 * point; then all of ours, to be unmapped. */
	const uint64_t *ranges;
	uint64_t range_count;
	uint64_t code_count;   /* of the former */
	const uint64_t *sites; /* sorted: site + 1 is where an int3 leaves a thread */
	uint64_t site_count;
	const uint64_t *stacks; /* pairs start, end of writable mappings, sorted */
	uint64_t stack_count;
	uint64_t handler; /* ours */
	uint64_t
		restorer; /* of our handler: a frame of its own, often a dead one, proves nothing */
	uint64_t old_action; /* address of the saved struct sigaction in the target */
	uint64_t scratch;    /* writable address of ours in the target */
	int mem_fd;
	const struct tp_known *known; /* what to put back first: sites that no agent can any more */
	uint64_t known_count;
	uint64_t shadow_heads; /* struct tp_shadow[]: their frames are let go; 0: there are none */
	uint64_t shadow_frames;
	uint64_t shadow_count;
	int unmap;		 /* 0: look only, and let frames go */
	int spared;		 /* the agent's thread, while there is one; or 0 */
	uint64_t jit_descriptor; /* where our entry is in gdb's list; 0: in none */
	uint64_t jit_entry;
};

/** Put our entry into the program's list of code for debuggers. */
struct tp_jit_link {
	int pid;
	int mem_fd;
	int is_held;	     /* no thread of the program runs: nobody need be stopped */
	uint64_t descriptor; /* __jit_debug_descriptor */
	uint64_t image_at;   /* struct tp_image in the target: it holds the entry */
	uint64_t object;
	uint64_t object_bytes;
};

/** Run one command while every thread but the agent's is held. */
struct tp_stop {
	int pid;
	int agent_tid;
	struct tp_wire *wire;
	uint32_t command;
	int timeout_ms;
	uint64_t args[4];
	const uint64_t *sites; /* pairs start, end, sorted: nobody may be in their interior */
	uint64_t site_count;
	uint32_t all_nops;   /* a thread inside one of them may be moved to its end */
	struct tp_look look; /* the batch: a thread inside goes on in the copy */
	int leave_busy; /* leave out sites that a signal frame points into; else nothing is written */
	int prepare;	/* the command is a batch: have it prepared before anybody is held */
	const uint64_t *ranges; /* pairs start, end, sorted: once it is done, is somebody there? */
	uint64_t range_count;
};

struct tp_stopped {
	uint64_t threads;
	uint64_t hold_ns;
	int64_t inside_tid;
	uint64_t inside_at;
	uint64_t busy; /* sites of several instructions that a signal frame points into */
	int result;    /* the command's answer; when its first half failed, nobody was held */
	int in_ranges; /* a thread was there, or nobody has looked */
};

struct tp_left {
	uint64_t threads;
	uint64_t hold_ns;
	int64_t busy_tid;  /* the thread that is still inside something of ours */
	uint64_t busy_at;  /* the address that says so */
	uint32_t busy_why; /* enum tp_busy */
	uint32_t handler_restored;
	uint64_t unmapped;
	uint64_t put_back;
};

enum tp_busy {
	TP_BUSY_NO,
	TP_BUSY_RIP,
	TP_BUSY_SITE,
	TP_BUSY_PENDING,
	TP_BUSY_STACK,
	TP_BUSY_LIST, /* it may be about to write to our entry of the list for debuggers */
};

int tp_stop_and_run(const struct tp_stop *in, struct tp_stopped *out);
int tp_leave(const struct tp_leave *in, struct tp_left *out);
int tp_link_jit(const struct tp_jit_link *in);
int tp_look_inside(int pid, const uint64_t *addresses, uint64_t count, uint64_t site_bytes,
		   uint8_t *inside);
int tp_look_in_ranges(int pid, int agent_tid, const uint64_t *ranges, uint64_t count);

/* pack.c, unpack.c: events as a capture holds them */
enum {
	TP_PACKED_EVENTS = 16384,    /* in one block, at most */
	TP_PACKED_HEADER_BYTES = 24, /* before them */
	TP_PACKED_EVENT_BYTES = 17,  /* of one, at most */
	TP_PACKED_ROOM = 32,	     /* that can be read, or written, behind them */
};

struct tp_packer {
	uint32_t epoch;			      /* which entries of the table are of this block */
	uint32_t count;			      /* addresses that it has so far */
	uint32_t table[2 * TP_PACKED_EVENTS]; /* epoch and number */
	uint64_t addresses[TP_PACKED_EVENTS];
	uint16_t follows[2 * TP_PACKED_EVENTS]; /* behind an ENTRY or EXIT of each */
	uint8_t out[TP_PACKED_HEADER_BYTES + TP_PACKED_EVENT_BYTES * TP_PACKED_EVENTS +
		    TP_PACKED_ROOM];
};

struct tp_unpacker {
	uint32_t count;
	uint64_t addresses[TP_PACKED_EVENTS];
	uint16_t follows[2 * TP_PACKED_EVENTS];
};

uint64_t tp_pack(struct tp_packer *p, const struct tp_event *events, uint32_t count);
int tp_unpack(struct tp_unpacker *u, const uint8_t *payload, uint64_t bytes,
	      struct tp_event *events, uint32_t count);

/* ring_read.c */
struct tp_rings {
	uint8_t *map; /* shared object, mapped read and write */
	uint64_t map_bytes;
	uint64_t ring_offset;
	uint32_t ring_count;
	uint32_t ring_stride;
	uint32_t ring_bytes;
	uint64_t waiting;	  /* events that may wait in a ring before the thread drops */
	int fd;			  /* capture; -1: count only */
	struct tp_packer *packer; /* NULL: events go there as they are */
	uint64_t *tails;	  /* private: ring_count entries */
	uint64_t *dropped;	  /* private: ring_count entries */
	uint64_t *dead_since_ns;  /* private: ring_count entries */
	uint8_t *buffer;	  /* ring_bytes + header */
	const uint64_t
		*sites;	     /* sorted; what a ring begins with that is of none of them is stale */
	uint64_t site_count; /* 0: nothing is */
	uint8_t *begun;	     /* private: ring_count entries */
};

struct tp_drained {
	uint64_t events;
	uint64_t lost;
	uint64_t bytes;
	uint64_t blocks;
	uint32_t incomplete; /* events reserved but not yet written */
	uint32_t rings_freed;
	uint64_t fullest; /* events waiting in the fullest ring */
};

int tp_rings_start(struct tp_rings *rings);
int tp_drain_rings(struct tp_rings *rings, int final, struct tp_drained *out);

/* ring_copy.c */

/** What is wanted of rings that run on. */
struct tp_span {
	uint64_t from_tsc, to_tsc; /* both included */
	uint64_t *given;      /* private: ring_count entries: index behind what was copied before */
	const uint32_t *tids; /* of these threads only; NULL: of all */
	uint32_t tid_count;
	uint32_t again;		  /* what was copied before, too; and leave @given as it is */
	int fd;			  /* capture; -1: count only */
	struct tp_packer *packer; /* NULL: events go there as they are */
};

struct tp_copied {
	uint64_t events;
	uint64_t lost; /* of the span: overwritten during the copy, or never written */
	uint64_t bytes;
	uint64_t blocks;
	/* Of the ring that reaches back least far, if not to from_tsc; else 0. */
	uint64_t short_from_tsc;  /* its oldest event */
	uint64_t short_until_tsc; /* its newest one */
	uint64_t short_events;	  /* from the one to the other */
	uint32_t short_tid;
	uint32_t padding;
};

int tp_copy_rings(struct tp_rings *rings, const struct tp_span *span, struct tp_copied *out);
uint64_t tp_look_at_rings(struct tp_rings *rings, uint64_t dead_ns, uint64_t *touched);

/* native/code/survey.c: functions as compilers left them, and how their entries can be patched */

/** Why a function's entry cannot be displaced; the documented list is docs/sites.md. */
enum tp_refusal {
	TP_REFUSE_NOTHING,
	TP_REFUSE_COLD,	     /* a part of a function that is jumped to, no entry */
	TP_REFUSE_SIGRETURN, /* the way back from a signal handler: unwinders know it by its bytes */
	TP_REFUSE_GO,	     /* Go code: small stacks that move */
	TP_REFUSE_SHORT,     /* the code ends before five bytes, and no padding follows */
	TP_REFUSE_CALL,	     /* a CALL that is not the last instruction of the first five bytes */
	TP_REFUSE_SYSCALL,   /* a system call in the first five bytes */
	TP_REFUSE_TRAP,	     /* int3, ud2, hlt or xbegin in the first five bytes */
	TP_REFUSE_BRANCH,    /* a branch of the module goes into the first five bytes */
	TP_REFUSE_TABLE,     /* a jump table, pointer or landing pad goes there */
	TP_REFUSE_ENTRY,     /* another function begins there */
	TP_REFUSE_DECODE,    /* not decodable: data in code, or an unknown instruction */
	TP_REFUSE_OUTSIDE,   /* its address is not in the module's code */
	TP_REFUSE_MOVE,	     /* an instruction that does not work elsewhere */
	TP_REFUSALS,
	/* of branches only */
	TP_REFUSE_UNREACHED = TP_REFUSALS, /* nothing that is known leads there: it may be data */
	TP_REFUSE_JUMPS, /* its function jumps through a table that was not found */
	TP_REFUSE_FULL,	 /* more branches or bytes than a window takes */
	TP_BRANCH_REFUSALS
};

enum tp_function_flags {
	TP_FUNCTION_COLD = 1 << 0,	/* input: TP_REFUSE_COLD */
	TP_FUNCTION_SIGRETURN = 1 << 1, /* input: TP_REFUSE_SIGRETURN */
	TP_FUNCTION_GO = 1 << 2,	/* input: TP_REFUSE_GO */
	TP_FUNCTION_LOOPS = 1 << 3,	/* output: its own code branches to its entry */
	TP_FUNCTION_PADDED = 1 << 4,	/* output: the window ends in the padding behind the code */
	TP_FUNCTION_GAPS = 1 << 5,	/* output: parts of its code could not be decoded */
	TP_FUNCTION_CALLS = 1 << 6,	/* output: the window's last instruction is a CALL */
	TP_FUNCTION_MOVES = 1 << 7,	/* output: an instruction depends on its place */
};

/** One function: where it is (input), and how its entry can be displaced (output). */
struct tp_function {
	uint64_t vaddr; /* entry, ELF virtual address; the table is sorted by it, no two alike */
	uint32_t bytes; /* of its code, by its symbol or unwind entry; 0: up to the next function */
	uint8_t flags;	/* enum tp_function_flags */
	uint8_t at;	/* bytes from the entry to the site: 4 behind an endbr64, else 0 */
	uint8_t window; /* bytes that are displaced from the site on: whole instructions, five or more */
	uint8_t heads;	/* bit i, 1 to 4: an instruction begins i bytes into the window */
	uint8_t reason; /* enum tp_refusal; TP_REFUSE_NOTHING: it can be displaced */
	uint8_t first; /* of a refused one: the bytes of its first instruction, if that alone can be
			 * displaced by a JMP of one changed byte (a natural pun); else 0 */
	uint8_t alone; /* likewise if it can be done elsewhere at all: under an int3 for good */
	uint8_t reserved[5];
};

/** A piece of an ELF file by virtual address. */
struct tp_piece {
	uint64_t vaddr;
	const uint8_t *bytes;
	uint64_t count;
};

/** What goes where: for each byte of code a bit, piece after piece. */
struct tp_goes {
	uint64_t *branches; /* direct branches and calls */
	uint64_t *pointers; /* jump tables, relocations, landing pads, words in data */
	uint64_t *named;    /* code has its address in an instruction */
};

struct tp_survey {
	const struct tp_piece *code; /* executable segments, sorted, disjoint */
	uint64_t code_count;
	const struct tp_piece *data; /* other loaded segments: jump tables, pointers to code */
	uint64_t data_count;
	const uint64_t *targets; /* other addresses that are jumped to: relocations, landing pads */
	uint64_t target_count;
	struct tp_function *functions; /* in and out */
	uint64_t function_count;
	const struct tp_goes *goes; /* out: zeroed bitmaps, or NULL for none */
};

struct tp_surveyed {
	uint64_t instructions;
	uint64_t undecodable; /* bytes in functions */
	uint64_t branches;
	uint64_t tables; /* jump tables that were followed */
};

int tp_survey(const struct tp_survey *in, struct tp_surveyed *out);

/* native/code/move.c */

enum { TP_MOST_WINDOW = 19, TP_MOST_MOVED = 96 };

/** A window's code at another place. */
struct tp_moved {
	uint8_t code[TP_MOST_MOVED];
	uint32_t bytes;
	uint8_t head_at
		[8]; /* [i]: where the instruction that began i bytes into the window is, i = 0 to 4 */
	uint32_t
		pushed_at; /* from here on a CALL's return address is pushed; 0: there is no CALL */
	uint32_t back_at;  /* the jump that goes on behind the window; 0: none is needed */
};

int tp_move_window(const uint8_t *window, uint64_t window_bytes, uint64_t from, uint64_t to,
		   struct tp_moved *out);

/* native/code/stub.c */

enum { TP_MOST_STUB = 32 + TP_MOST_MOVED };

/** What the JMP at a displaced entry goes to. */
struct tp_stub {
	uint8_t code[TP_MOST_STUB];
	uint32_t bytes;
	uint32_t return_at; /* offset that the thunk returns to: events carry it */
	uint8_t head_at
		[8]; /* [i], 1 to 4: where the instruction i bytes into the window is; 0: none */
	uint32_t copy_at;   /* offset of the displaced instructions */
	uint32_t pushed_at; /* offsets, as in struct tp_moved */
	uint32_t back_at;
};

void tp_make_returns(uint8_t *code, uint64_t count, uint32_t before);
int tp_make_stub(const uint8_t *window, uint64_t window_bytes, uint64_t from, uint64_t at,
		 uint64_t thunk, struct tp_stub *stub);

/* native/code/branches.c: conditional branches, and how they can be counted */

enum {
	TP_MOST_BRANCH_WINDOW = 32,
	TP_MOST_WINDOW_BRANCHES = 4, /* in one window */
};

enum tp_branch_live {
	TP_LIVE_NOT_TAKEN = 1 << 0, /* what follows may look at the flags */
	TP_LIVE_TAKEN = 1 << 1,
};

/** One conditional branch: jcc, loop, jrcxz. */
struct tp_branch {
	uint64_t vaddr;
	uint64_t target;
	uint32_t function; /* index */
	uint8_t length;
	uint8_t reason; /* enum tp_refusal; TP_REFUSE_NOTHING: it is in a window */
	uint8_t live;	/* enum tp_branch_live */
	uint8_t reserved;
};

/** Whole instructions that give way to one JMP, with all the branches among them. */
struct tp_branch_window {
	uint64_t vaddr;
	uint32_t first; /* row of its first branch; the others follow */
	uint8_t count;
	uint8_t bytes; /* five or more */
	uint8_t heads; /* bit i, 1 to 4: an instruction begins i bytes into it */
	uint8_t live;  /* enum tp_branch_live of each branch, two bits each */
};

struct tp_branches {
	struct tp_branch *rows; /* by address within a function */
	uint64_t count;
	struct tp_branch_window *windows;
	uint64_t window_count;
};

int tp_find_branches(const struct tp_survey *in, const uint32_t *functions, uint64_t function_count,
		     struct tp_branches *out);
void tp_free_branches(struct tp_branches *branches);

/* native/code/branch_stub.c: the code that counts them */

enum {
	TP_MOST_BRANCH_STUB = 1024,
	TP_MOST_BRANCH_MARKS = 80,
	TP_BRANCH_STUB_ALIGN = 16,
	TP_COUNTER_BYTES = 16, /* of a branch: taken, not taken */
};

/** A window at its place in memory. */
struct tp_branch_site {
	uint64_t addr;
	uint64_t counters; /* address of the first branch's; the others' follow */
	uint8_t bytes;
	uint8_t live; /* as in struct tp_branch_window */
	uint8_t reserved[6];
	uint8_t window[TP_MOST_BRANCH_WINDOW];
};

/** From this byte of a stub on the stack is that of a place in the window, or lower. */
struct tp_branch_mark {
	uint16_t at;
	uint8_t head;	 /* bytes from the window's first one */
	uint8_t lowered; /* bytes */
};

struct tp_branch_stub {
	uint8_t code[TP_MOST_BRANCH_STUB];
	uint32_t bytes;
	uint8_t head_at[8]; /* as in struct tp_stub */
	uint32_t mark_count;
	struct tp_branch_mark marks[TP_MOST_BRANCH_MARKS]; /* the last one at a byte holds */
};

/** Where a site's stub is, in bytes from the first one. */
struct tp_branch_placed {
	uint32_t offset;
	uint32_t bytes;
	int32_t error; /* of tp_make_branch_stub(); there is no stub then */
	uint8_t heads[4];
};

int tp_make_branch_stub(const struct tp_branch_site *site, uint64_t at,
			struct tp_branch_stub *stub);
uint64_t tp_place_branch_stubs(const struct tp_branch_site *sites, uint64_t count, uint64_t start,
			       uint8_t *code, struct tp_branch_placed *placed);

/* native/code/frames.c: what unwind tables say of functions */

enum tp_frame_flags {
	TP_FRAME_SIGNAL = 1 << 0, /* the way back from a signal handler */
	TP_FRAME_MIDDLE = 1 << 1, /* its stack is not as after a CALL: it is no entry */
};

/** One entry of .eh_frame: a function, or a part of one. */
struct tp_frame {
	uint64_t vaddr;
	uint64_t bytes;
	uint64_t lsda;	/* ELF virtual address of its table of landing pads; 0: none */
	uint64_t flags; /* enum tp_frame_flags */
};

int tp_read_frames(const struct tp_piece *section, struct tp_frame *rows, uint64_t room,
		   uint64_t *count);
int tp_read_landing_pads(const struct tp_frame *rows, uint64_t row_count,
			 const struct tp_piece *pieces, uint64_t piece_count, uint64_t *pads,
			 uint64_t room, uint64_t *count);

/* native/code/functions.c: every function of a module, from all of its tables */

struct tp_range {
	uint64_t start;
	uint64_t end;
};

/** Symbols with their strings. */
struct tp_symbol_table {
	const uint8_t *rows; /* Elf64_Sym */
	uint64_t row_count;
	const uint8_t *strings;
	uint64_t string_bytes;
	const struct tp_range *sections; /* [i]: section i, empty unless it holds code */
	uint64_t section_count;		 /* 0: no section headers, addresses alone decide */
};

/** What a module's file says of its functions and pointers to them. */
struct tp_tables {
	const struct tp_symbol_table *symbols; /* a name is taken from the first that has one */
	uint64_t symbol_table_count;
	uint64_t dynamic; /* index of the table that relocations mean; symbol_table_count: none */
	const struct tp_frame *frames;
	uint64_t frame_count;
	const struct tp_piece *code; /* executable segments, sorted, disjoint */
	uint64_t code_count;
	const struct tp_piece *data; /* other loaded segments, sorted, disjoint */
	uint64_t data_count;
	const struct tp_piece *rela; /* Elf64_Rela */
	uint64_t rela_count;
	const struct tp_piece *relr; /* Elf64_Relr */
	uint64_t relr_count;
	const struct tp_range *stubs; /* sections of PLT slots */
	uint64_t stub_count;
	uint32_t go; /* there is Go code: what has no unwind entry is Go's */
};

enum { TP_NO_TABLE = 255 };

enum tp_label_flags {
	TP_LABEL_PLT = 1 << 0,	    /* a PLT slot for the function with this name */
	TP_LABEL_RESOLVER = 1 << 1, /* an indirect function's resolver, called once by the loader */
};

/** A function's name. */
struct tp_label {
	uint32_t text; /* offset in its table's strings; without table: 1 + index of the function
			* that it is a part of, 0 for none */
	uint8_t table; /* index of the symbol table, or TP_NO_TABLE */
	uint8_t flags; /* enum tp_label_flags */
	uint16_t reserved;
};

/** Room for the result; all three arrays have tp_most_functions() entries. */
struct tp_found {
	struct tp_function *functions; /* sorted, ready for tp_survey() */
	struct tp_label *labels;       /* one for each function */
	uint64_t *targets;	       /* places in functions that have a name of their own */
	uint64_t count;
	uint64_t target_count;
};

uint64_t tp_most_functions(const struct tp_tables *in);
int tp_find_functions(const struct tp_tables *in, struct tp_found *out);
int tp_read_targets(const struct tp_tables *in, uint64_t *targets, uint64_t room, uint64_t *count);

/* native/code/callers.c: whose calls' returns may be redirected */

int tp_find_callers(const struct tp_tables *in, const uint64_t *targets, uint64_t target_count,
		    int absolute, struct tp_range *rows, uint64_t room, uint64_t *count);

/* pair.c: calls from entries and exits, read from a capture */

/** Turns ticks into nanoseconds; without a known rate they stay ticks. */
struct tp_pair_clock {
	uint64_t start_tsc;
	double ns_per_tick;
	int is_known;
};

/** How many words follow the entries and exits of a site. */
struct tp_shape {
	uint8_t entry_words;
	uint8_t exit_words;
	uint8_t is_threshold; /* no entries; the exit's first word is the duration in ticks */
};

/** Columns with a row for each call; all NULL: only sums are wanted. */
struct tp_calls {
	int32_t *site;
	int64_t *start_ns;
	int64_t *end_ns; /* -1: unfinished */
	int64_t *self_ns;
	uint32_t *depth;
	int64_t *parent;     /* -1: none */
	int64_t *entry_data; /* index in words; -1: none */
	int64_t *exit_data;
	uint64_t *words;
	uint64_t room;
	uint64_t word_room;
	uint64_t count; /* rows so far */
	uint64_t word_count;
	int32_t *ended_site; /* what ended in the last tp_pair(); NULL: not wanted */
	int64_t *ended_ns;   /* how long it took */
	uint64_t ended_room;
	uint64_t ended_count;
};

/** The calls of one function. */
struct tp_call_sum {
	uint64_t calls; /* finished */
	uint64_t unfinished;
	uint64_t total_ns; /* of those that are not inside of another call of the same function */
	uint64_t self_ns;
	int64_t min_ns;
	int64_t max_ns;
	double sum; /* of all durations */
	double squares;
};

struct tp_pair_counts {
	uint64_t finished;
	uint64_t unfinished;	 /* entries whose exits did not come */
	uint64_t orphans;	 /* exits whose entries did not come */
	uint64_t long_calls;	 /* of the finished: recorded at their exits alone */
	uint64_t short_payloads; /* some words are missing */
	uint64_t stray_data;	 /* words that belong to nothing */
};

/** The open calls of a thread, and the sums of all. */
struct tp_pairing;

struct tp_pairing *tp_pairing_create(const struct tp_pair_clock *clock,
				     const struct tp_shape *shapes, uint32_t site_count,
				     int with_sums);
void tp_pairing_destroy(struct tp_pairing *pairing);
void tp_pair_breaks(struct tp_pairing *pairing, const uint64_t *breaks, uint64_t count);
int tp_pair(struct tp_pairing *pairing, const struct tp_event *events, const int32_t *sites,
	    uint64_t count, struct tp_calls *calls);
void tp_pair_end_thread(struct tp_pairing *pairing);
void tp_pair_counts(const struct tp_pairing *pairing, struct tp_pair_counts *counts);
const struct tp_call_sum *tp_pair_sums(const struct tp_pairing *pairing);
int tp_call_depths(const int64_t *parent, uint32_t *depth, uint64_t count);

/* rows.c: drained events on their way to the capture */

struct tp_scan {
	uint64_t first_late; /* index of the first event that is too late; the count: none is */
	uint64_t found;
	uint64_t data; /* DATA events before it */
};

void tp_scan_rows(const struct tp_event *events, uint64_t count, uint64_t late_tsc,
		  const uint64_t *addresses, uint64_t address_count, uint32_t *found,
		  struct tp_scan *out);

int tp_probe_cost(const void *code, struct tp_probe_words *words, uint64_t *ticks);
uint64_t tp_rdtsc(void);
const char *tp_error_text(int code);

#ifndef TP_CDEF
_Static_assert(sizeof(struct tp_function) == 24, "a column of numpy's");
_Static_assert(sizeof(struct tp_branch) == 24, "branches.py unpacks it");
_Static_assert(sizeof(struct tp_branch_window) == 16, "branches.py unpacks it");
_Static_assert(sizeof(struct tp_branch_site) == 56, "branch_stubs.py packs it");
_Static_assert(sizeof(struct tp_branch_placed) == 16, "branch_stubs.py unpacks it");
_Static_assert(sizeof(struct tp_branch_mark) == 4, "branch_stubs.py unpacks it");
_Static_assert(sizeof(struct tp_shape) == 3, "a column of numpy's");
_Static_assert(sizeof(struct tp_call_sum) == 64, "a column of numpy's");
#endif

#endif
