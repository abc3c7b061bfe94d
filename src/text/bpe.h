/* SPDX-License-Identifier: MIT
 * text: CLIP's byte-level BPE (declared in linework.h: lw_tokenizer_*) over Unicode tables that tools/unicode_tables.py
 * writes. Knows no networks. */
#ifndef LW_BPE_H
#define LW_BPE_H

#include "base/base.h"

/* Opens from memory (borrowed until this returns); name stands in messages. Rules as lw_tokenizer_open. */
lw_status lw_tokenizer_open_memory(lw_tokenizer **out, const void *bytes, size_t n_bytes, const char *name,
                                   int32_t n_vocab, lw_error *err);
int32_t lw_tokenizer_n_vocab(const lw_tokenizer *tokenizer);

#endif
