/* SPDX-License-Identifier: MIT
 * The file that keeps tuning's choices between runs: CACHE/tactics-DEVICE.json,
 *
 *   {"linework": VERSION, "devices": {DESCRIPTION: {SIGNATURE: {"op": TEXT, "tactic": NAME, "us": TIME}}}}
 *
 * DESCRIPTION is the backend's: libraries and their versions, CPU features, thread count. */
#ifndef LW_PIPE_CHOICES_H
#define LW_PIPE_CHOICES_H

#include "ops/tune.h"

/* NULL: no memory. lw_free. */
char *lw_choices_path(const lw_backend *backend, const char *cache_dir);

/* Puts into the table what the file holds for this version and backend. No file, one of another version or without
 * this backend: nothing. A damaged one: nothing, and *remark (lw_free) says what is wrong with it. Tactics that this
 * build does not have are left out. LW_ENOMEM. */
lw_status lw_choices_load(lw_choices *choices, const lw_backend *backend, const char *cache_dir, char **remark,
                          lw_error *err);

/* Writes the table as this backend's; what the file holds for others of the same version stays. LW_EOUTPUT. */
lw_status lw_choices_save(const lw_choices *choices, const lw_backend *backend, const char *cache_dir, lw_error *err);

#endif
