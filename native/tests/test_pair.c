/* SPDX-License-Identifier: Apache-2.0 */
/** @file pair.c: calls from entries and exits. tests/unit/test_calls.py holds it against a model. */
#include <errno.h>
#include <stdlib.h>

#include "check.h"
#include "textpoke.h"

enum { ENTRY = 1, EXIT = 2, DATA = 3, SITES = 3, ROOM = 4096 };

static const struct tp_shape shapes[SITES] = { { 0, 0, 0 }, { 2, 1, 0 }, { 0, 2, 1 } };
static const struct tp_pair_clock ticks = { 0, 1.0, 0 };

/* A pairing and everything around it. */
struct rig {
	struct tp_pairing *pairing;
	struct tp_calls calls;
	struct tp_event events[ROOM];
	int32_t sites[ROOM];
	uint64_t count;
	int32_t site[ROOM];
	int64_t start_ns[ROOM], end_ns[ROOM], self_ns[ROOM], parent[ROOM], entry_data[ROOM],
		exit_data[ROOM];
	uint32_t depth[ROOM];
	uint64_t words[ROOM];
	int32_t ended_site[ROOM];
	int64_t ended_ns[ROOM];
};

static struct rig *make(int with_sums)
{
	struct rig *rig = calloc(1, sizeof(*rig));

	rig->pairing = tp_pairing_create(&ticks, shapes, SITES, with_sums);
	rig->calls = (struct tp_calls){
		.site = rig->site,
		.start_ns = rig->start_ns,
		.end_ns = rig->end_ns,
		.self_ns = rig->self_ns,
		.depth = rig->depth,
		.parent = rig->parent,
		.entry_data = rig->entry_data,
		.exit_data = rig->exit_data,
		.words = rig->words,
		.room = ROOM,
		.word_room = ROOM,
		.ended_site = rig->ended_site,
		.ended_ns = rig->ended_ns,
		.ended_room = ROOM,
	};
	return rig;
}

static void drop(struct rig *rig)
{
	tp_pairing_destroy(rig->pairing);
	free(rig);
}

static void add(struct rig *rig, uint64_t tsc, int32_t site, uint64_t type)
{
	rig->events[rig->count] = (struct tp_event){ tsc, (uint64_t)(site + 100) << 16 | type };
	rig->sites[rig->count++] = site;
}

static void add_data(struct rig *rig, int is_exit, uint64_t index, uint64_t count, uint64_t word)
{
	uint64_t head = (uint64_t)is_exit << 16 | count << 8 | index;

	rig->events[rig->count] = (struct tp_event){ word, head << 16 | DATA };
	rig->sites[rig->count++] = -1;
}

static int run(struct rig *rig)
{
	int error = tp_pair(rig->pairing, rig->events, rig->sites, rig->count, &rig->calls);

	rig->count = 0;
	return error;
}

static struct tp_pair_counts counts(const struct rig *rig)
{
	struct tp_pair_counts found;

	tp_pair_counts(rig->pairing, &found);
	return found;
}

TEST(pair_inner_call_is_not_its_callers_own_time)
{
	struct rig *rig = make(1);

	add(rig, 10, 0, ENTRY);
	add(rig, 20, 1, ENTRY);
	add(rig, 50, 1, EXIT);
	add(rig, 100, 0, EXIT);
	CHECK_EQ(run(rig), 0);
	CHECK_EQ(rig->calls.count, 2);
	CHECK_EQ(rig->end_ns[0], 100);
	CHECK_EQ(rig->self_ns[0], 60);
	CHECK_EQ(rig->self_ns[1], 30);
	CHECK_EQ(rig->parent[0], -1);
	CHECK_EQ(rig->parent[1], 0);
	CHECK_EQ(rig->depth[1], 1);
	CHECK_EQ(tp_pair_sums(rig->pairing)[1].total_ns, 90);
	drop(rig);
}

TEST(pair_no_call_reaches_over_a_break)
{
	static const uint64_t breaks[] = { 5, 60, 70 };
	struct rig *rig = make(1);

	tp_pair_breaks(rig->pairing, breaks, 3);
	for (int thread = 0; thread < 2; thread++) {
		add(rig, 10, 0, ENTRY);
		add(rig, 20, 1, ENTRY);
		add(rig, 30, 1, EXIT);
		add(rig, 70, 0, ENTRY);
		add(rig, 90, 0, EXIT);
		add(rig, 95, 0, EXIT);
		CHECK_EQ(run(rig), 0);
		tp_pair_end_thread(rig->pairing);
	}
	CHECK_EQ(counts(rig).finished, 4);
	CHECK_EQ(counts(rig).unfinished, 2);
	CHECK_EQ(counts(rig).orphans, 2);
	CHECK_EQ(rig->end_ns[0], -1);
	CHECK_EQ(rig->parent[2], -1);
	CHECK_EQ(rig->depth[5], 0);
	CHECK_EQ(tp_pair_sums(rig->pairing)[1].total_ns, 40);
	drop(rig);
}

TEST(pair_long_call_over_a_break_is_whole)
{
	static const uint64_t breaks[] = { 50 };
	struct rig *rig = make(0);

	tp_pair_breaks(rig->pairing, breaks, 1);
	add(rig, 30, 2, EXIT);
	add_data(rig, 1, 0, 2, 10);
	add_data(rig, 1, 1, 2, 0);
	add(rig, 90, 2, EXIT);
	add_data(rig, 1, 0, 2, 80);
	add_data(rig, 1, 1, 2, 0);
	CHECK_EQ(run(rig), 0);
	CHECK_EQ(rig->parent[0], 1);
	CHECK_EQ(rig->self_ns[1], 70);
	drop(rig);
}

TEST(pair_exit_without_entry_is_an_orphan_and_its_words_stray)
{
	struct rig *rig = make(0);

	add(rig, 10, 1, EXIT);
	add_data(rig, 1, 0, 1, 7);
	CHECK_EQ(run(rig), 0);
	CHECK_EQ(rig->calls.count, 0);
	CHECK_EQ(counts(rig).orphans, 1);
	CHECK_EQ(counts(rig).stray_data, 1);
	CHECK(!tp_pair_sums(rig->pairing));
	drop(rig);
}

TEST(pair_words_come_over_a_seam)
{
	struct rig *rig = make(0);

	add(rig, 10, 1, ENTRY);
	CHECK_EQ(run(rig), 0);
	add_data(rig, 0, 0, 2, 7);
	CHECK_EQ(run(rig), 0);
	CHECK_EQ(rig->entry_data[0], -1);
	add_data(rig, 0, 1, 2, 8);
	CHECK_EQ(run(rig), 0);
	CHECK_EQ(rig->entry_data[0], 0);
	CHECK_EQ(rig->words[0], 7);
	CHECK_EQ(rig->words[1], 8);
	drop(rig);
}

TEST(pair_thread_that_ends_leaves_nothing_open_to_the_next)
{
	struct rig *rig = make(0);

	add(rig, 10, 0, ENTRY);
	CHECK_EQ(run(rig), 0);
	tp_pair_end_thread(rig->pairing);
	add(rig, 20, 0, EXIT);
	CHECK_EQ(run(rig), 0);
	CHECK_EQ(rig->end_ns[0], -1);
	CHECK_EQ(counts(rig).unfinished, 1);
	CHECK_EQ(counts(rig).orphans, 1);
	drop(rig);
}

TEST(pair_columns_that_are_too_short_and_sites_that_are_none_are_refused)
{
	struct rig *rig = make(0);

	rig->calls.room = 1;
	add(rig, 10, 0, ENTRY);
	add(rig, 20, 0, ENTRY);
	CHECK_EQ(run(rig), -ERANGE);
	rig->calls.room = ROOM;
	rig->calls.ended_room = 1;
	add(rig, 10, 0, ENTRY);
	add(rig, 20, 0, EXIT);
	CHECK_EQ(run(rig), -ERANGE);
	rig->calls.ended_room = ROOM;
	add(rig, 10, SITES, ENTRY);
	CHECK_EQ(run(rig), -ERANGE);
	CHECK_EQ(rig->calls.count, 0);
	drop(rig);
}

TEST(pair_tells_what_ended_in_these_events_and_how_long_it_took)
{
	struct rig *rig = make(0);

	add(rig, 10, 0, ENTRY);
	add(rig, 11, 0, ENTRY);
	add(rig, 14, 0, EXIT);
	CHECK_EQ(run(rig), 0);
	CHECK_EQ(rig->calls.ended_count, 1);
	CHECK_EQ(rig->ended_ns[0], 3);
	add(rig, 9, 0, EXIT); /* a clock that ran backwards */
	CHECK_EQ(run(rig), 0);
	CHECK_EQ(rig->calls.ended_count, 1);
	CHECK_EQ(rig->ended_site[0], 0);
	CHECK_EQ(rig->ended_ns[0], 0);
	drop(rig);
}

static uint64_t dice(uint64_t *state)
{
	*state = *state * 6364136223846793005ull + 1442695040888963407ull;
	return *state >> 33;
}

/* Whatever stands in a file: the sanitizers watch, and the sums agree with the rows. */
static void check_random(uint64_t seed)
{
	static const uint64_t types[] = { ENTRY, EXIT, DATA, DATA, 0, 7 };
	struct rig *rig = make(1);
	uint64_t state = seed, finished = 0, ended = 0, self_ns = 0, sum_self_ns = 0;

	for (int turn = 0; turn < 8; turn++) {
		for (int i = 0; i < 200; i++) {
			uint64_t type = types[dice(&state) % 6], shape = dice(&state);

			if (type == DATA)
				add_data(rig, shape & 1, shape >> 1 & 1, 1 + (shape >> 2 & 1),
					 dice(&state) << (shape >> 4 & 31));
			else
				add(rig, dice(&state) << (shape >> 4 & 31),
				    (int32_t)(shape % 4) - 1, type);
		}
		CHECK_EQ(run(rig), 0);
		ended += rig->calls.ended_count;
		if (dice(&state) & 1)
			tp_pair_end_thread(rig->pairing);
	}
	for (uint64_t i = 0; i < rig->calls.count; i++) {
		finished += rig->end_ns[i] != -1;
		self_ns += (uint64_t)rig->self_ns[i];
		CHECK(rig->entry_data[i] < (int64_t)rig->calls.word_count);
		CHECK(rig->parent[i] < (int64_t)rig->calls.count);
	}
	CHECK_EQ(finished, counts(rig).finished);
	CHECK_EQ(ended, finished);
	for (int i = 0; i <= SITES; i++)
		sum_self_ns += tp_pair_sums(rig->pairing)[i].self_ns;
	CHECK_EQ(self_ns, sum_self_ns);
	drop(rig);
}

TEST(pair_takes_whatever_a_file_holds)
{
	for (uint64_t seed = 0; seed < 500; seed++) {
		CHECK_NOTE("seed %u", (unsigned int)seed);
		check_random(seed);
	}
}
