// SPDX-License-Identifier: Apache-2.0
/**
 * @file
 * Runtimes that walk their own frames: code made at run time, code in the file that no compiler of C has
 * made (no unwind entries), and code whose return addresses are listed in data. Each calls traced
 * functions, which tell what stands as their return address. Lines: "generated N", "embedded N",
 * "listed N": how many of N calls found another one than the CALL has left; "plain N": calls from C;
 * "quit".
 */
#define _GNU_SOURCE
#include <stdint.h>
#include <sys/mman.h>

#include "target.h"

typedef void *asked(void);

static volatile unsigned long called;

TRACED void *who_called(void)
{
	called++;
	return __builtin_return_address(0);
}

TRACED void *who_called_deeper(void)
{
	who_called(); /* from C: followed */
	return __builtin_return_address(0);
}

void *embedded(void), *listed(void);
extern const char behind_embedded[], behind_listed[];
extern const char *const return_addresses[];

/* Both answer what who_called_deeper() does. */
__asm__(".text\n"
	".skip 512, 0xcc\n"
	".globl embedded, behind_embedded\n"
	"embedded: push %rbp\n"
	"mov %rsp, %rbp\n"
	"call who_called_deeper\n"
	"behind_embedded: pop %rbp\n"
	"ret\n"
	".skip 512, 0xcc\n"
	".globl listed, behind_listed\n"
	"listed: .cfi_startproc\n"
	"sub $8, %rsp\n"
	".cfi_adjust_cfa_offset 8\n"
	".irp n, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18, 19\n"
	"call who_called\n"
	"9\\n: nop\n"
	".pushsection .data.rel.ro, \"aw\"\n"
	".quad 9\\n\\()b\n"
	".popsection\n"
	".endr\n"
	"call who_called_deeper\n"
	"behind_listed: add $8, %rsp\n"
	".cfi_adjust_cfa_offset -8\n"
	"ret\n"
	".cfi_endproc\n"
	".pushsection .data.rel.ro, \"aw\"\n"
	".quad behind_listed\n"
	".popsection\n");

/* push %rbp; mov $function, %rax; call *%rax; pop %rbp; ret */
PLAIN static const char *generate(unsigned char *code)
{
	asked *function = who_called_deeper;

	code[0] = 0x55;
	code[1] = 0x48;
	code[2] = 0xb8;
	memcpy(code + 3, &function, sizeof(function));
	memcpy(code + 11, "\xff\xd0\x5d\xc3", 4);
	return (const char *)code + 13;
}

PLAIN static unsigned long wrong(asked *runtime, const char *right, unsigned long rounds)
{
	unsigned long found = 0;

	for (unsigned long i = 0; i < rounds; i++)
		found += runtime() != right;
	return found;
}

PLAIN int main(void)
{
	unsigned char *code = mmap(NULL, 4096, PROT_READ | PROT_WRITE | PROT_EXEC,
				   MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	const char *behind = generate(code);

	say_ready();
	for (;;) {
		const char *line = hear();
		unsigned long rounds =
			strtoul(strchr(line, ' ') ? strchr(line, ' ') : "0", NULL, 10);

		if (*line == 'g')
			say("%lu", wrong((asked *)(uintptr_t)code, behind, rounds));
		else if (*line == 'e')
			say("%lu", wrong(embedded, behind_embedded, rounds));
		else if (*line == 'l')
			say("%lu", wrong(listed, behind_listed, rounds));
		else if (*line == 'p')
			say("%lu", wrong(who_called_deeper, NULL, rounds));
		else
			return 0;
	}
}
