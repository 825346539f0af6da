/* SPDX-License-Identifier: Apache-2.0 */
/**
 * @file
 * Fuzzer of the engine's decoder and emulation (native/engine/emulate.c) and of the check of a batch
 * (batch.c): opcodes, lengths, flags and addresses from anywhere. Pokes are allocated to the byte.
 */
#include "engine.h"
#include "fuzz.h"

#define MOST_POKES 12

/* A byte that begins or continues something that the decoder knows, or any. */
static uint8_t code_byte(void)
{
	static const uint8_t known[] = { 0x90, 0x66, 0x0f, 0x1f, 0xe8, 0xe9, 0xeb, 0xc3, 0xc2,
					 0xcc, 0x70, 0x84, 0x2e, 0x3e, 0x44, 0x00, 0xf2, 0xf3 };

	return fuzz_below(8) ? known[fuzz_below(sizeof(known))] : (uint8_t)fuzz_next();
}

static void fuzz_classify(void)
{
	size_t len = 1 + fuzz_below(TP_MAX_INSN);
	uint8_t *code = malloc(len);
	struct tp_insn insn;

	for (size_t i = 0; i < len; i++)
		code[i] = code_byte();
	insn = tp_classify(code, len, fuzz_number());
	FUZZ_CHECK(insn.length <= len);
	FUZZ_CHECK(insn.kind <= TP_INSN_HANDLER && insn.condition < 16);
	FUZZ_CHECK(!tp_is_nop_mix(code, len) || insn.kind == TP_INSN_NOP);
	free(code);
}

static int no_read(void *ctx, uint64_t addr, void *buf, size_t len)
{
	(void)ctx, (void)addr;
	memset(buf, 0, len);
	return 0;
}

static void fuzz_check(void)
{
	size_t count = fuzz_below(MOST_POKES);
	struct tp_poke *pokes = calloc(count ? count : 1, sizeof(*pokes));
	struct tp_outcome outcome = { 0 };
	struct tp_batch batch = { .pokes = pokes, .count = count, .outcome = &outcome };
	static const struct tp_ops ops = { .read = no_read };
	static struct tp_engine engine;
	int error;

	engine.ops = &ops;
	for (size_t i = 0; i < count; i++) {
		struct tp_poke *poke = &pokes[i];

		for (size_t k = 0; k < 16; k++) {
			poke->old[k] = code_byte();
			poke->new_[k] = fuzz_below(3) ? poke->old[k] : code_byte();
		}
		poke->addr = fuzz_below(4) ? 0x1000 + fuzz_below(64) * 5 : fuzz_number();
		poke->len = (uint8_t)(fuzz_below(4) ? 5 : fuzz_next());
		poke->flags = (uint8_t)(fuzz_below(4) ? 0 : fuzz_next());
		poke->handler = fuzz_below(2) ? 0 : fuzz_number();
		poke->outcome = (uint8_t)fuzz_next();
		poke->emulate = (uint8_t)fuzz_next();
		poke->index = (uint32_t)fuzz_number();
	}
	error = tp_check_batch(&engine, &batch);
	FUZZ_CHECK(error <= 0);
	for (size_t i = 0; !error && i < count; i++)
		if (!(pokes[i].flags & (TP_POKE_NO_OLD | TP_POKE_NO_NEW)))
			FUZZ_CHECK(pokes[i].len >= 1 && pokes[i].len <= TP_MAX_INSN);
	for (size_t i = 1; !error && i < count; i++)
		FUZZ_CHECK(pokes[i - 1].addr <= pokes[i].addr);
	free(pokes);
}

static void run(void)
{
	fuzz_classify();
	fuzz_check();
}

int main(int argc, char **argv)
{
	return fuzz_main(argc, argv, run);
}
