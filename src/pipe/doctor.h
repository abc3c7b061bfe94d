/* SPDX-License-Identifier: MIT
 * pipe: what is wrong with a model's file, and what it can be used for. */
#ifndef LW_DOCTOR_H
#define LW_DOCTOR_H

#include "pipe/session.h"

/* Opens a device, or fails where this machine or build has no such: memory is told for each that there is. */
typedef lw_status (*lw_open_fn)(lw_backend **out, lw_device device, lw_precision precision, lw_error *err);

lw_status lw_doctor(const char *path, const lw_doctor_params *params, lw_open_fn open, char **json, lw_error *err);

#endif
