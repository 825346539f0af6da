// SPDX-License-Identifier: Apache-2.0
/**
 * @file
 * Every way to leave a function but by its return, and odd ways to return: exceptions, jumps, stacks
 * that are switched, threads that end, forks, signals. Lines: "run NAME ROUNDS" (answers how many
 * results were wrong), "storm NAME THREADS" and "calm" (answers rounds and wrong results), "quit".
 */
#include <atomic>
#include <condition_variable>
#include <csetjmp>
#include <csignal>
#include <ctime>
#include <cstdarg>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <exception>
#include <execinfo.h>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <pthread.h>
#include <spawn.h>
#include <stdexcept>
#include <string>
#include <sys/mman.h>
#include <sys/wait.h>
#include <thread>
#include <ucontext.h>
#include <unistd.h>
#include <unwind.h>
#include <vector>
#if __cplusplus >= 202002L
#include <coroutine>
#endif

#include "thrown.hh"

extern "C" {
int regs_checked();
long loops_to_its_start(long n);
long tail_ping(long n);
long pushes_words();
void switch_stack(void **from, void *to);
extern char **environ;
}

namespace
{

/* ---- exceptions */

TRACED int dive_plain(int depth, int what)
{
	if (depth)
		return dive_plain(depth - 1, what) + 1;
	if (what == 0)
		throw 42;
	if (what == 1)
		throw std::string("text");
	throw std::out_of_range("far");
}

TRACED int again(int &alive)
{
	try {
		return dive(19, alive);
	} catch (const std::runtime_error &) {
		Counted here(alive);
		throw;
	}
}

struct Nested {
	int &alive;
	TRACED explicit Nested(int &count) : alive(count) { alive++; }
	TRACED ~Nested()
	{
		try {
			dive(7, alive);
		} catch (const std::exception &) {
			alive--;
		}
	}
};

TRACED int with_nested(int depth, int &alive)
{
	Nested here(alive);

	return depth ? with_nested(depth - 1, alive) + 1 : dive(3, alive);
}

TRACED int never_throws(int &alive) noexcept
{
	try {
		return dive(10, alive);
	} catch (...) {
		return 7;
	}
}

TRACED int exceptions()
{
	int alive = 0, wrong = 0;

	try {
		again(alive);
		wrong++;
	} catch (const std::exception &what) {
		wrong += alive != 0 || strcmp(what.what(), "bottom") != 0;
	}
	try {
		dive_plain(20, 0);
		wrong++;
	} catch (int number) {
		wrong += number != 42;
	}
	try {
		dive_plain(20, 1);
		wrong++;
	} catch (std::string text) {
		wrong += text != "text";
	}
	try {
		dive_plain(20, 2);
		wrong++;
	} catch (std::exception &what) {
		wrong += strcmp(what.what(), "far") != 0;
	}
	try {
		with_nested(6, alive);
		wrong++;
	} catch (const std::runtime_error &) {
		wrong += alive != 0;
	}
	return wrong + (never_throws(alive) != 7) + (alive != 0);
}

TRACED std::exception_ptr caught(int depth, int &alive)
{
	try {
		dive(depth, alive);
	} catch (...) {
		return std::current_exception();
	}
	return nullptr;
}

TRACED int passed_on()
{
	int alive = 0, wrong = 0;
	std::exception_ptr kept;
	std::thread([&] { kept = caught(9, alive); }).join();

	try {
		std::rethrow_exception(kept);
	} catch (const std::runtime_error &what) {
		wrong += strcmp(what.what(), "bottom") != 0;
	}
	return wrong + alive;
}

/* ---- jumps */

TRACED int jump(int depth, jmp_buf to, int how)
{
	if (depth)
		return jump(depth - 1, to, how) + 1;
	if (how == 0)
		longjmp(to, 5);
	_longjmp(to, 5);
}

TRACED int builtin_jump(int depth, void **to)
{
	if (depth)
		return builtin_jump(depth - 1, to) + 1;
	__builtin_longjmp(to, 1);
}

TRACED int builtin_jumps()
{
	void *to[5];

	if (__builtin_setjmp(to))
		return 0;
	builtin_jump(11, to);
	return 1;
}

TRACED int jumps()
{
	jmp_buf to;
	int wrong = 0;

	for (int round = 0; round < 2; round++) {
		volatile int how = round;
		int got = setjmp(to);

		if (!got)
			wrong += jump(3 + 20 * how, to, how);
		else
			wrong += got != 5;
	}
	return wrong + builtin_jumps();
}

thread_local sigjmp_buf out;
thread_local int want_out;

TRACED void leave_handler(int depth)
{
	if (depth)
		leave_handler(depth - 1);
	else
		siglongjmp(out, 3);
	__asm__ volatile("" ::: "memory");
}

TRACED void on_usr1(int)
{
	leave_handler(5);
}

TRACED int raised(int depth, int number)
{
	if (depth)
		return raised(depth - 1, number) + 1;
	raise(number);
	return 0;
}

TRACED int jumps_out_of_handlers()
{
	int got = sigsetjmp(out, 1);

	if (!got)
		return 1 + raised(6, SIGUSR1);
	return got != 3;
}

/* ---- stacks */

constexpr size_t STACK = 64 << 10;

struct Coroutine {
	void *sp;
	char *stack;
	std::function<void(Coroutine &)> body;
	void *back;
	bool done;
};

thread_local Coroutine *starting;

PLAIN void coroutine_main()
{
	Coroutine *self = starting;

	self->body(*self);
	self->done = true;
	switch_stack(&self->sp, self->back);
	abort();
}

PLAIN char *guarded_stack()
{
	auto *memory = static_cast<char *>(mmap(nullptr, STACK + 2 * 4096, PROT_NONE,
						MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));

	mprotect(memory + 4096, STACK, PROT_READ | PROT_WRITE);
	return memory + 4096;
}

PLAIN Coroutine *make(std::function<void(Coroutine &)> body)
{
	auto *made = new Coroutine{ nullptr,
				    static_cast<char *>(mmap(nullptr, STACK, PROT_READ | PROT_WRITE,
							     MAP_PRIVATE | MAP_ANONYMOUS, -1, 0)),
				    std::move(body), nullptr, false };
	auto *top = reinterpret_cast<uint64_t *>(made->stack + STACK);

	*--top = 0;
	*--top = reinterpret_cast<uint64_t>(coroutine_main);
	made->sp = top - 6;
	return made;
}

PLAIN void drop(Coroutine *one)
{
	munmap(one->stack, STACK);
	delete one;
}

TRACED void resume(Coroutine &one)
{
	starting = &one;
	switch_stack(&one.back, one.sp);
}

TRACED void yield(Coroutine &one)
{
	switch_stack(&one.sp, one.back);
}

TRACED int descend(Coroutine &one, int depth)
{
	if (!depth) {
		yield(one);
		return 0;
	}
	if (depth % 3 == 0)
		yield(one);
	return descend(one, depth - 1) + 1;
}

TRACED int descend_and_throw(Coroutine &one, int depth, int &alive)
{
	Counted here(alive);

	if (!depth) {
		yield(one);
		throw std::runtime_error("bottom");
	}
	return descend_and_throw(one, depth - 1, alive) + 1;
}

TRACED int guarded_descent(Coroutine &one, int depth)
{
	int alive = 0;

	try {
		return 100 + descend_and_throw(one, depth, alive);
	} catch (const std::runtime_error &) {
		return alive;
	}
}

/* Several at once, their steps interleaved; every other one throws, some are dropped half-way. */
TRACED int switched()
{
	int wrong = 0;
	Coroutine *all[8];
	int results[8];

	for (int i = 0; i < 8; i++)
		all[i] = make([i, &results](Coroutine &self) {
			results[i] = i % 2 ? guarded_descent(self, 3 + i) : descend(self, 6 + i);
		});
	for (int round = 0; round < 12; round++)
		for (int i = 0; i < 8; i++)
			if (!all[(i * 3) % 8]->done && (i != 5 || round < 2))
				resume(*all[(i * 3) % 8]);
	for (int i = 0; i < 8; i++) {
		if (all[i]->done)
			wrong += results[i] != (i % 2 ? 0 : 6 + i);
		drop(all[i]);
	}
	return wrong;
}

ucontext_t contexts[2];

TRACED int context_step(int n)
{
	swapcontext(&contexts[1], &contexts[0]);
	return n + 1;
}

TRACED void context_body(int from)
{
	int n = from;

	while (n < 20)
		n = context_step(n);
	contexts[1].uc_stack.ss_flags = n;
}

TRACED int contexts_switched()
{
	static char stack[STACK];
	static std::mutex one_at_a_time;
	std::lock_guard<std::mutex> guard(one_at_a_time);
	int wrong = 0;

	getcontext(&contexts[1]);
	contexts[1].uc_stack.ss_sp = stack;
	contexts[1].uc_stack.ss_size = sizeof(stack);
	contexts[1].uc_stack.ss_flags = 0;
	contexts[1].uc_link = &contexts[0];
	makecontext(&contexts[1], reinterpret_cast<void (*)()>(context_body), 1, 0);
	for (int i = 0; i <= 20; i++)
		swapcontext(&contexts[0], &contexts[1]);
	wrong += contexts[1].uc_stack.ss_flags != 20;
	return wrong;
}

/* Suspended on one thread, resumed on another; there it throws, returns, jumps on, is dropped. */
TRACED long jumps_on(Coroutine &one, long n)
{
	yield(one);
	return tail_ping(n); /* a jump, by -O2 */
}

TRACED long before_jump(Coroutine &one, long n)
{
	return jumps_on(one, n) + 1;
}

PLAIN void on_another_thread(Coroutine &one)
{
	std::thread([&] {
		int alive = 0;

		never_throws(alive);
		resume(one);
	}).join();
}

TRACED int moved()
{
	int result = -1, wrong = 0;
	Coroutine *one = make([&](Coroutine &self) { result = guarded_descent(self, 9); });

	resume(*one);
	on_another_thread(*one);
	wrong += !one->done || result != 0;
	drop(one);
	one = make([&](Coroutine &self) { result = descend(self, 9); });
	resume(*one);
	while (!one->done) {
		on_another_thread(*one);
		if (!one->done)
			resume(*one);
	}
	wrong += result != 9;
	drop(one);
	one = make([&](Coroutine &self) { result = static_cast<int>(before_jump(self, 9)); });
	resume(*one);
	on_another_thread(*one);
	wrong += !one->done || result != 2;
	drop(one);
	one = make([&](Coroutine &self) { result = descend(self, 30); });
	resume(*one);
	on_another_thread(*one);
	drop(one);
	return wrong;
}

#if __cplusplus >= 202002L
struct Generator {
	struct promise_type {
		int value = 0;
		std::exception_ptr failure;
		Generator get_return_object()
		{
			return { std::coroutine_handle<promise_type>::from_promise(*this) };
		}
		std::suspend_always initial_suspend() noexcept { return {}; }
		std::suspend_always final_suspend() noexcept { return {}; }
		std::suspend_always yield_value(int given)
		{
			value = given;
			return {};
		}
		void return_void() {}
		void unhandled_exception() { failure = std::current_exception(); }
	};
	std::coroutine_handle<promise_type> handle;
};

Generator count_and_throw(int n, int &alive)
{
	Counted here(alive);

	for (int i = 0; i < n; i++)
		co_yield i;
	dive(4, alive);
}

TRACED int generated()
{
	int alive = 0, wrong = 0, sum = 0;
	Generator all = count_and_throw(10, alive), half = count_and_throw(10, alive);

	half.handle.resume();
	for (all.handle.resume(); !all.handle.done(); all.handle.resume())
		sum += all.handle.promise().value;
	std::thread([&] { half.handle.resume(); }).join();
	wrong += sum != 45 || !all.handle.promise().failure || half.handle.promise().value != 1;
	all.handle.destroy();
	half.handle.destroy();
	return wrong + alive;
}
#else
int generated()
{
	return 0;
}
#endif

/* ---- threads that end */

struct Ending {
	int how, alive = 0, cleaned = 0;
	std::atomic<int> there{ 0 };
};

TRACED void clean(void *of)
{
	static_cast<Ending *>(of)->cleaned++;
}

/* Nothing to clean up here: C++ ends the program if a cancel comes between two calls of what has. */
TRACED void cancelled_anywhere()
{
	pthread_setcanceltype(PTHREAD_CANCEL_ASYNCHRONOUS, nullptr);
	for (;;)
		tail_ping(10);
}

TRACED int end_here(int depth, Ending &one)
{
	Counted here(one.alive);

	if (depth)
		return end_here(depth - 1, one) + 1;
	if (one.how == 0)
		pthread_exit(&one);
	one.there = 1;
	if (one.how == 1)
		for (;;)
			usleep(1000000);
	cancelled_anywhere();
	return 0;
}

TRACED void *ending(void *of)
{
	pthread_cleanup_push(clean, of);
	end_here(static_cast<Ending *>(of)->how == 2 ? 0 : 12, *static_cast<Ending *>(of));
	pthread_cleanup_pop(0);
	return nullptr;
}

TRACED int ended()
{
	int wrong = 0;

	for (int how = 0; how < 3; how++) {
		Ending one{ how };
		pthread_t thread;
		void *result;

		pthread_create(&thread, nullptr, ending, &one);
		while (how && !one.there)
			usleep(100);
		if (how)
			pthread_cancel(thread);
		pthread_join(thread, &result);
		wrong += result != (how ? PTHREAD_CANCELED : static_cast<void *>(&one));
		/* Where a signal finds the thread in a place without unwind entry, the way up ends. */
		wrong += how < 2 && (one.cleaned != 1 || one.alive != 0);
	}
	return wrong;
}

/* ---- processes */

TRACED int child_result(int depth)
{
	int alive = 0;

	return depth ? child_result(depth - 1) + 1 : never_throws(alive);
}

TRACED int in_fork(int depth)
{
	int status;
	pid_t child;

	if (depth)
		return in_fork(depth - 1);
	child = fork();
	if (!child)
		return -1; /* through frames of before */
	waitpid(child, &status, 0);
	return !WIFEXITED(status) || WEXITSTATUS(status) != 17;
}

TRACED int in_vfork(int depth)
{
	int status;
	pid_t child;

	if (depth)
		return in_vfork(depth - 1) + 0;
	child = vfork();
	if (!child) {
		tail_ping(20);
		_exit(static_cast<int>(tail_ping(1)) + 3);
	}
	waitpid(child, &status, 0);
	return !WIFEXITED(status) || WEXITSTATUS(status) != 4;
}

TRACED int in_spawn()
{
	char name[] = "/bin/true";
	char *words[] = { name, nullptr };
	pid_t child;
	int status = -1;

	if (posix_spawn(&child, name, nullptr, nullptr, words, environ))
		return 1;
	waitpid(child, &status, 0);
	return status != 0;
}

TRACED void exits(int depth)
{
	if (depth)
		exits(depth - 1);
	else
		exit(child_result(10));
	__asm__ volatile("" ::: "memory");
}

TRACED int processes()
{
	int wrong = in_fork(8);

	if (wrong < 0)
		exits(6);
	wrong += in_vfork(3) + in_spawn();
	return wrong + (system("exit 3") != 3 << 8);
}

/* ---- depth, values */

TRACED long recurse(long n)
{
	long below = n ? recurse(n - 1) : 0;

	__asm__ volatile("" ::: "memory");
	return below + 1;
}

PLAIN void *deep_thread(void *)
{
	long wrong = (recurse(99999) != 100000) + (recurse(99999) != 100000);

	return reinterpret_cast<void *>(wrong);
}

PLAIN int deep()
{
	pthread_attr_t attr;
	pthread_t thread;
	void *wrong;

	pthread_attr_init(&attr);
	pthread_attr_setstacksize(&attr, 64 << 20);
	pthread_create(&thread, &attr, deep_thread, nullptr);
	pthread_join(thread, &wrong);
	return wrong != nullptr;
}

struct Big {
	long words[9];
};
struct Pair {
	long first;
	double second;
};

TRACED Big big(long n)
{
	Big made;

	for (int i = 0; i < 9; i++)
		made.words[i] = n + i;
	return made;
}
TRACED Pair pair(long n)
{
	return { n, static_cast<double>(n) / 2 };
}
TRACED long double extended(long n)
{
	return static_cast<long double>(n) / 3;
}
TRACED float single(float x)
{
	return x * 1.5f;
}
TRACED __int128 wide(__int128 n)
{
	return n * n;
}
TRACED long double _Complex complex(long n)
{
	long double _Complex made;

	__real__ made = static_cast<long double>(n);
	__imag__ made = 2.5L;
	return made;
}
TRACED long sum(int count, ...)
{
	va_list all;
	long found = 0;

	va_start(all, count);
	for (int i = 0; i < count; i++)
		found += i % 2 ? static_cast<long>(va_arg(all, double)) : va_arg(all, long);
	va_end(all);
	return found;
}
TRACED char *text(char *at, size_t size, int n)
{
	snprintf(at, size, "%d %s %.2f %Lg", n, "words", n / 4.0, static_cast<long double>(n));
	return at;
}

TRACED int values()
{
	char room[64];
	__int128 n = (static_cast<__int128>(1) << 62) + 3;
	long double _Complex c = complex(4);
	int wrong = big(7).words[8] != 15;

	wrong += pair(9).first != 9 || pair(9).second != 4.5;
	wrong += extended(10) != 10.0L / 3;
	wrong += single(3.0f) != 4.5f;
	wrong += wide(n) != n * n;
	wrong += __real__ c != 4.0L || __imag__ c != 2.5L;
	wrong += sum(9, 1l, 2.0, 3l, 4.0, 5l, 6.0, 7l, 8.0, 9l) != 45;
	wrong += strcmp(text(room, sizeof(room), 3), "3 words 0.75 3") != 0;
	for (int i = 0; i < 10; i++)
		wrong += regs_checked();
	wrong += loops_to_its_start(1000) != 1 || tail_ping(3000) != 1;
	wrong += pushes_words() != 42;
	return wrong;
}

/* ---- who walks the stack */

struct Walk {
	void *at[64];
	int count;
};

TRACED _Unwind_Reason_Code note(_Unwind_Context *context, void *of)
{
	auto *walk = static_cast<Walk *>(of);

	if (walk->count < 64)
		walk->at[walk->count++] = reinterpret_cast<void *>(_Unwind_GetIP(context));
	return _URC_NO_REASON;
}

TRACED int look(int depth, Walk &walk, int how)
{
	if (depth)
		return look(depth - 1, walk, how) + 1;
	walk.count = 0;
	if (how)
		_Unwind_Backtrace(note, &walk);
	else
		walk.count = backtrace(walk.at, 64);
	return 0;
}

Walk expected[2][2];

/* The first one, before anybody traces, says what is right. */
TRACED int walked()
{
	int wrong = 0;
	Walk walk;

	for (int i = 0; i < 4; i++) {
		Walk &right = expected[i & 1][i >> 1];

		if (look(i & 1 ? 30 : 4, walk, i >> 1) != (i & 1 ? 30 : 4) && ++wrong)
			fprintf(stderr, "walk %d: a wrong result\n", i);
		if (!right.count)
			right = walk;
		/* Above this function, what is main() the first time may be another thread's. */
		for (int k = 0; k < right.count - 5; k++)
			if (walk.at[k] != right.at[k] && ++wrong)
				fprintf(stderr, "walk %d, frame %d of %d: %p, not %p\n", i, k,
					walk.count, walk.at[k], right.at[k]);
	}
	return wrong;
}

/* ---- signals */

std::atomic<long> signals, short_walks;
std::atomic<int> walk_in_handlers;
thread_local volatile bool may_throw; /* to allocate in a handler is not allowed everywhere */

TRACED void handler_work(int depth)
{
	void *at[64];

	if (depth)
		return handler_work(depth - 1);
	/* At the last instruction of _Unwind_Resume, libgcc's own entry is wrong: no walk from there. */
	if (walk_in_handlers && may_throw && signals % 7 == 0 && backtrace(at, 64) < 3)
		short_walks++;
	tail_ping(3);
}

TRACED void on_tick(int)
{
	int kept = errno;

	signals++;
	handler_work(2);
	if (may_throw && signals % 4 == 0) {
		int alive = 0;

		never_throws(alive);
	}
	errno = kept;
}

PLAIN void own_stack()
{
	thread_local std::unique_ptr<char[]> room;
	stack_t stack = {};

	if (room)
		return;
	room.reset(new char[STACK * 2]);
	stack.ss_sp = room.get();
	stack.ss_size = STACK * 2;
	sigaltstack(&stack, nullptr);
}

/* setitimer() would be held to the kernel's own tick. */
PLAIN void tick(bool on, long us)
{
	static timer_t timer;
	itimerspec every = { { 0, on ? us * 1000 : 0 }, { 0, on ? us * 1000 : 0 } };
	sigevent event = {};

	event.sigev_notify = SIGEV_SIGNAL;
	event.sigev_signo = SIGPROF;
	if (!timer)
		timer_create(CLOCK_MONOTONIC, &event, &timer);
	timer_settime(timer, 0, &every, nullptr);
}

TRACED int ticked()
{
	int alive = 0, wrong = 0;

	own_stack();
	for (int i = 0; i < 200; i++) {
		may_throw = true;
		wrong += tail_ping(30) != 1 || recurse(20) != 21 || regs_checked() != 0;
		may_throw = false;
		wrong += never_throws(alive) != 7;
	}
	return wrong;
}

PLAIN void handle(int number, void (*handler)(int), int flags)
{
	struct sigaction action = {};

	action.sa_handler = handler;
	action.sa_flags = flags;
	sigaction(number, &action, nullptr);
}

/* A scheduler in a signal handler: it goes on with another stack, whatever was interrupted. */
constexpr int TASKS = 4;
ucontext_t tasks[TASKS], home;
std::atomic<int> current, finished;
long task_wrong;
thread_local bool is_scheduled;

TRACED void task_body(int)
{
	int alive = 0;
	sigset_t turn;

	sigemptyset(&turn);
	sigaddset(&turn, SIGPROF);
	for (int i = 0; i < 3000; i++) {
		task_wrong += tail_ping(20) != 1 || recurse(15) != 16;
		if (i % 50)
			continue;
		/* Exceptions that are being handled are the thread's, not the stack's. */
		pthread_sigmask(SIG_BLOCK, &turn, nullptr);
		task_wrong += never_throws(alive) != 7;
		pthread_sigmask(SIG_UNBLOCK, &turn, nullptr);
	}
	finished = finished + 1;
	for (;;)
		tail_ping(3);
}

TRACED void on_turn(int)
{
	int from = current, to = (from + 1) % TASKS;

	if (!is_scheduled)
		return;
	if (finished == TASKS) {
		setcontext(&home);
		return;
	}
	current = to;
	swapcontext(&tasks[from], &tasks[to]);
}

PLAIN int preempted()
{
	static char *stacks[TASKS];
	struct sigaction action = {};
	volatile bool begun = false;
	sigset_t turn;

	finished = 0;
	task_wrong = 0;
	for (int i = 0; i < TASKS; i++) {
		if (!stacks[i])
			stacks[i] = guarded_stack();
		getcontext(&tasks[i]);
		tasks[i].uc_stack.ss_sp = stacks[i];
		tasks[i].uc_stack.ss_size = STACK;
		tasks[i].uc_link = nullptr;
		makecontext(&tasks[i], reinterpret_cast<void (*)()>(task_body), 1, i);
	}
	action.sa_handler = on_turn;
	action.sa_flags = SA_RESTART;
	sigaction(SIGPROF, &action, nullptr);
	getcontext(&home);
	if (!begun) {
		begun = true;
		sigemptyset(&turn);
		sigaddset(&turn, SIGPROF);
		pthread_sigmask(SIG_BLOCK, &turn, nullptr); /* until the first task runs */
		is_scheduled = true;
		current = 0;
		tick(true, 1000);
		setcontext(&tasks[0]);
	}
	is_scheduled = false;
	tick(false, 0);
	handle(SIGPROF, on_tick, SA_RESTART | SA_ONSTACK);
	return static_cast<int>(task_wrong);
}

const std::map<std::string, int (*)()> parts = {
	{ "exceptions", exceptions },
	{ "passed", passed_on },
	{ "jumps", jumps },
	{ "handlers", jumps_out_of_handlers },
	{ "switched", switched },
	{ "contexts", contexts_switched },
	{ "moved", moved },
	{ "generated", generated },
	{ "ended", ended },
	{ "processes", processes },
	{ "deep", deep },
	{ "values", values },
	{ "walked", walked },
	{ "ticked", ticked },
	{ "preempted", preempted },
};

std::atomic<bool> running;
std::atomic<long> rounds, wrongs;

PLAIN void storm(int (*part)())
{
	own_stack();
	while (running) {
		wrongs += part();
		rounds++;
	}
}

} // namespace

PLAIN int main()
{
	std::vector<std::thread> threads;
	char line[80], name[32];
	int count;

	alarm(200);
	own_stack();
	handle(SIGUSR1, on_usr1, SA_ONSTACK | SA_NODEFER);
	handle(SIGPROF, on_tick, SA_RESTART | SA_ONSTACK);
	walked();
	puts("ready");
	fflush(stdout);
	while (fgets(line, sizeof(line), stdin) && line[0] != 'q') {
		if (sscanf(line, "run %31s %d", name, &count) == 2) {
			long wrong = 0;

			for (int i = 0; i < count; i++)
				wrong += parts.at(name)();
			printf("%ld\n", wrong);
		} else if (sscanf(line, "storm %31s %d", name, &count) == 2) {
			puts("storm");
			fflush(stdout); /* a forked child that exits would say it again */
			running = true;
			for (int i = 0; i < count; i++)
				threads.emplace_back(storm, parts.at(name));
		} else if (sscanf(line, "tick %d %d", &count, reinterpret_cast<int *>(&walk_in_handlers)) ==
			   2) {
			tick(count != 0, count);
			printf("%ld %ld\n", signals.load(), short_walks.load());
		} else {
			running = false;
			for (auto &thread : threads)
				thread.join();
			threads.clear();
			printf("%ld %ld\n", rounds.exchange(0), wrongs.exchange(0));
		}
		fflush(stdout);
	}
	return 0;
}
