/* SPDX-License-Identifier: Apache-2.0 */
/**
 * @file
 * The fetch oracle. Between two syncs a core may fetch any mix of old and new value of each byte
 * written since. After every operation of the engine, every mix at every site of the rig must be the
 * old instruction, the new one, or int3; and int3 only while a descriptor is published.
 */
#ifndef TP_ORACLE_H
#define TP_ORACLE_H

#include "rig.h"

enum { ORACLE_VALUES = 8 };

struct oracle_byte {
	uint8_t values[ORACLE_VALUES]; /* that a core may fetch */
	uint8_t count;
};

struct oracle {
	struct rig *rig;
	struct oracle_byte *bytes; /* of the whole fake memory */
	uint8_t *seen;		   /* the memory as it was last looked at */
	size_t *unsettled;	   /* those with more than one value */
	size_t unsettled_count;
	size_t deaf_sync; /* a control: the sync with this number does not happen */
	size_t operations;
	size_t violations;
	size_t first_violation; /* number of the operation after which it was seen */
};

void oracle_open(struct oracle *oracle, struct rig *rig);
void oracle_close(struct oracle *oracle);
void oracle_look(struct oracle *oracle);

#endif
