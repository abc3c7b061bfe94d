/* SPDX-License-Identifier: MIT
 * A vocabulary up to the first NUL, then the text: both as they come. Without a NUL all is text, for a small
 * vocabulary. */
#include "text/bpe.h"

#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    static const char small[] = "#\nt h\nth e</w>\na n\nan d</w>\n1 2</w>\n\u00c3 \u00a9</w>\n\u00cc \u0123</w>\n";
    const uint8_t *zero = size ? memchr(data, 0, size) : NULL;
    const void *vocabulary = zero ? (const void *)data : small;
    size_t n = zero ? (size_t)(zero - data) : sizeof small - 1, skip = zero ? n + 1 : 0;
    int32_t ids[LW_N_TOKENS];
    lw_tokenizer *t;
    lw_error err;
    char *text = lw_strndup(size ? (const char *)data + skip : "", size - skip), *cut = NULL;
    if (text && lw_tokenizer_open_memory(&t, vocabulary, n, "fuzz", 0, &err) == LW_OK) {
        if (lw_tokenize(t, text, ids, &cut, &err) == LW_OK) {
            int32_t n_vocab = lw_tokenizer_n_vocab(t);
            for (int i = 0; i < LW_N_TOKENS; i++)
                if (ids[i] < 0 || ids[i] >= n_vocab) __builtin_trap();
            if (ids[0] != n_vocab - 2 || ids[LW_N_TOKENS - 1] != n_vocab - 1) __builtin_trap();
            size_t length = cut ? strlen(cut) : 0, whole = strlen(text);
            if (length > whole || (cut && strcmp(cut, text + whole - length) != 0)) __builtin_trap();
        }
        lw_free(cut);
        lw_tokenizer_close(&t);
    }
    lw_free(text);
    return 0;
}
