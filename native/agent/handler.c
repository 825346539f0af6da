/* SPDX-License-Identifier: Apache-2.0 */
/**
 * @file
 * The SIGTRAP handler. Ours are int3s (si_code SI_KERNEL) at known sites; everything else goes,
 * untouched, to whoever handled SIGTRAP before us.
 */
#include "agent.h"

enum {
	SIGTRAP_NR = 5,
	SIGNALS = 64,
	SI_KERNEL_CODE = 0x80,
	SIG_IGN_VALUE = 1,
	SA_SIGINFO_FLAG = 0x4,
	SA_RESTORER_FLAG = 0x04000000,
	SA_ONSTACK_FLAG = 0x08000000,
	SA_NODEFER_FLAG = 0x40000000,
};

#define SA_RESETHAND_FLAG 0x80000000ul
#define SIGMASK_BYTES 8
#define BIT(signal) (1ull << ((signal) - 1))
/* A program's handler nested in ours could siglongjmp away and leak a count (pitfalls 18): block
 * all but SIGTRAP itself and the faults that the interrupted instruction might cause. */
#define HANDLER_MASK (~(BIT(4) | BIT(5) | BIT(7) | BIT(8) | BIT(11)))

struct kernel_sigaction {
	uint64_t handler;
	uint64_t flags;
	uint64_t restorer;
	uint64_t mask;
};

struct signal_info {
	int32_t signal;
	int32_t error;
	int32_t code;
};

/* struct ucontext of the kernel, as far as we need it (arch/x86/include/uapi/asm/ucontext.h). */
struct signal_frame {
	uint64_t flags;
	uint64_t link;
	uint64_t stack[3];
	uint64_t r8_to_rcx[15];
	uint64_t rsp;
	uint64_t rip;
	uint64_t rflags;
	uint64_t rest[14];
	uint64_t mask;
};

_Static_assert(offsetof(struct signal_frame, rip) == 168, "kernel ABI");
_Static_assert(offsetof(struct signal_frame, mask) == 296, "kernel ABI");

typedef void handler_fn(int signal, struct signal_info *info, struct signal_frame *frame);

void tpa_sigtrap(void);
void tpa_restorer(void);
void tpa_on_sigtrap(int signal, struct signal_info *info, struct signal_frame *frame);

static struct kernel_sigaction *old_action(void)
{
	return (struct kernel_sigaction *)tpa_image.old_action;
}

/* Nobody handled SIGTRAP before us: die of it as the program would have. */
static void die_by_sigtrap(void)
{
	struct kernel_sigaction action = { 0 };
	uint64_t mask = BIT(SIGTRAP_NR);

	sys4(__NR_rt_sigaction, SIGTRAP_NR, (long)&action, 0, SIGMASK_BYTES);
	sys4(__NR_rt_sigprocmask, 1, (long)&mask, 0, SIGMASK_BYTES); /* SIG_UNBLOCK */
	sys3(__NR_tgkill, sys0(__NR_getpid), sys0(__NR_gettid), SIGTRAP_NR);
}

static void chain(int signal, struct signal_info *info, struct signal_frame *frame)
{
	struct kernel_sigaction *old = old_action();
	handler_fn *handler = (handler_fn *)old->handler;
	uint64_t mask = frame->mask | old->mask;

	if (old->handler == SIG_IGN_VALUE && info->code != SI_KERNEL_CODE)
		return; /* SIG_IGN */
	if (old->handler <= SIG_IGN_VALUE) {
		die_by_sigtrap();
		return;
	}
	if (!(old->flags & SA_NODEFER_FLAG))
		mask |= BIT(SIGTRAP_NR);
	if (old->flags & SA_RESETHAND_FLAG)
		old->handler = 0;
	sys4(__NR_rt_sigprocmask, 2, (long)&mask, 0, SIGMASK_BYTES); /* SIG_SETMASK */
	handler(signal, info, frame);
	/* Not a tail call: while the program's handler runs, the stack shows that it returns to us. */
	__asm__ volatile("");
}

/** The C part of the handler; called by tpa_sigtrap. */
void tpa_on_sigtrap(int signal, struct signal_info *info, struct signal_frame *frame)
{
	struct tp_frame regs = { frame->rip, frame->rsp, frame->rflags };

	if (info->code == SI_KERNEL_CODE && tp_trap(&tpa.engine, &regs) != TP_TRAP_FOREIGN) {
		frame->rip = regs.rip;
		frame->rsp = regs.rsp;
		return;
	}
	chain(signal, info, frame);
}

/** True while the kernel still calls our handler. */
int tpa_handler_is_ours(void)
{
	struct kernel_sigaction now = { 0 };

	sys4(__NR_rt_sigaction, SIGTRAP_NR, 0, (long)&now, SIGMASK_BYTES);
	return now.handler == (uint64_t)tpa_sigtrap;
}

/* A runtime's handlers of faults are the end in any case; libc's own signals (32 to 34) run libc. */
#define ROOM_ENOUGH \
	(BIT(4) | BIT(6) | BIT(7) | BIT(8) | BIT(11) | BIT(31) | BIT(32) | BIT(33) | BIT(34))

static int forbids_traps(const struct kernel_sigaction *action, int signal, int room)
{
	if (action->handler <= SIG_IGN_VALUE)
		return 0;
	if (action->mask & BIT(SIGTRAP_NR) ||
	    (signal == SIGTRAP_NR && !(action->flags & SA_NODEFER_FLAG)))
		return 1;
	return !room && action->flags & SA_ONSTACK_FLAG && !(BIT(signal) & ROOM_ENOUGH);
}

/**
 * True when an int3 that some handler of the program met could kill it, and it may begin at any
 * moment: the handler runs with SIGTRAP blocked (sigfillset in sa_mask is common; its handler of
 * SIGTRAP itself, which we chain to, counts), or on an alternate stack, which may have no room for
 * a second frame, unless the caller knows that there is @room.
 */
int tpa_a_handler_forbids_traps(int room)
{
	for (int signal = 1; signal <= SIGNALS; signal++) {
		struct kernel_sigaction action = { 0 };

		if (signal == SIGTRAP_NR)
			action = *old_action();
		else if (sys_failed(
				 sys4(__NR_rt_sigaction, signal, 0, (long)&action, SIGMASK_BYTES)))
			continue;
		if (forbids_traps(&action, signal, room))
			return 1;
	}
	return 0;
}

/**
 * Take SIGTRAP and remember its last owner. A program that ignores the signal keeps that: its
 * children inherit it, and batches without traps remain. Returns 0 or -errno.
 */
int tpa_install_handler(void)
{
	struct kernel_sigaction action = {
		.handler = (uint64_t)tpa_sigtrap,
		.flags = SA_SIGINFO_FLAG | SA_RESTORER_FLAG | SA_ONSTACK_FLAG | SA_NODEFER_FLAG,
		.restorer = (uint64_t)tpa_restorer,
		.mask = HANDLER_MASK,
	};
	long ret = sys4(__NR_rt_sigaction, SIGTRAP_NR, 0, (long)old_action(), SIGMASK_BYTES);

	if (sys_failed(ret) || old_action()->handler == SIG_IGN_VALUE)
		return (int)ret;
	ret = sys4(__NR_rt_sigaction, SIGTRAP_NR, (long)&action, (long)old_action(), SIGMASK_BYTES);
	tpa_image.handler = action.handler;
	tpa_image.handler_installed = !sys_failed(ret);
	return (int)ret;
}
