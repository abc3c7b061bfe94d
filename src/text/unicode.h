/* SPDX-License-Identifier: MIT
 * The part of Unicode that CLIP's tokenizer needs: NFC, white space, lower case per character, letters and numbers.
 * The tables are in unicode_data.c, which tools/unicode_tables.py writes. */
#ifndef LW_UNICODE_H
#define LW_UNICODE_H

#include "base/base.h"

typedef enum lw_char_class {
    LW_CHAR_OTHER = 0,
    LW_CHAR_LETTER = 1,
    LW_CHAR_NUMBER = 2,
    LW_CHAR_SPACE = 3
} lw_char_class;

/* A character and where in the original text it comes from. */
typedef struct lw_char {
    uint32_t code;
    uint32_t at; /* byte of the original character; a composed one is where its first part was */
} lw_char;

/* The character at text[*at] of n bytes; *at goes past it. False: not UTF-8 (overlong, surrogate, cut, too large). */
bool lw_utf8_next(const char *text, size_t n, size_t *at, uint32_t *code);
/* Writes 1 to 4 bytes. */
size_t lw_utf8_put(uint32_t code, uint8_t out[4]);

lw_char_class lw_unicode_class(uint32_t code);
bool lw_unicode_space(uint32_t code); /* White_Space: what \s is */
/* 1 or 2 characters. Per character: no final sigma. */
size_t lw_unicode_lower(uint32_t code, uint32_t out[2]);

/* NFC of n bytes of UTF-8. *out holds *n_out characters, freed with lw_free. LW_EINPUT: not UTF-8, with the byte. */
lw_status lw_unicode_nfc(const char *text, size_t n, lw_char **out, size_t *n_out, lw_error *err);

/* ---- the tables */

typedef struct lw_unicode_range {
    uint32_t first, last;
    uint8_t value;
} lw_unicode_range;

typedef struct lw_unicode_lower_run {
    uint32_t first, last;
    int32_t step, delta; /* every step-th character from first to last has its lower case delta further on */
} lw_unicode_lower_run;

typedef struct lw_unicode_decomposition {
    uint32_t code, first, second; /* second 0: a single other character */
} lw_unicode_decomposition;

extern const lw_unicode_range lw_unicode_classes[], lw_unicode_combining[];
extern const lw_unicode_lower_run lw_unicode_lower_runs[];
extern const lw_unicode_decomposition lw_unicode_decompositions[]; /* by code */
extern const uint16_t lw_unicode_compositions[]; /* rows of decompositions that compose again, by (first, second) */
extern const size_t lw_unicode_classes_n, lw_unicode_combining_n, lw_unicode_lower_runs_n, lw_unicode_decompositions_n,
    lw_unicode_compositions_n;

#endif
