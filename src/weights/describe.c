/* SPDX-License-Identifier: MIT
 * A model's headers as one JSON object. */
#include "weights/format.h"
#include "weights/names.h"

#include <jansson.h>
#include <string.h>

static lw_network network_of(const lw_tensor *t) {
    const char *rest;
    return lw_canonical_network(t->name, &rest);
}

static bool is_real(lw_dtype dtype) {
    return dtype == LW_F32 || dtype == LW_F16 || dtype == LW_BF16 || dtype == LW_F64;
}

/* {"tensors","parameters","bytes","dtypes":{name: tensors}}; NULL: no memory. Parameters are real numbers: CLIP's
 * position_ids are tensors but none. */
static json_t *describe_network(const lw_weights *w, lw_network network) {
    uint64_t tensors = 0, parameters = 0, bytes = 0, of_type[LW_N_DTYPES] = {0};
    for (size_t i = 0; i < lw_weights_count(w); i++) {
        const lw_tensor *t = lw_weights_at(w, i);
        if (network_of(t) != network) continue;
        tensors++;
        of_type[t->dtype]++;
        if (is_real(t->dtype)) parameters += t->n;
        bytes += (uint64_t)t->n * lw_dtype_bytes(t->dtype);
    }
    json_t *dtypes = json_object();
    for (int i = 0; i < LW_N_DTYPES; i++)
        if (of_type[i]) json_object_set_new(dtypes, lw_dtype_name((lw_dtype)i), json_integer((json_int_t)of_type[i]));
    return json_pack("{s:I,s:I,s:I,s:o}", "tensors", (json_int_t)tensors, "parameters", (json_int_t)parameters, "bytes",
                     (json_int_t)bytes, "dtypes", dtypes);
}

static bool has_network(const lw_weights *w, lw_network network) {
    for (size_t i = 0; i < lw_weights_count(w); i++)
        if (network_of(lw_weights_at(w, i)) == network) return true;
    return false;
}

static json_t *describe_store(const lw_weights *w) {
    json_t *networks = json_object(), *metadata = json_object();
    for (int i = 0; i < LW_N_NETS; i++)
        if (has_network(w, (lw_network)i))
            json_object_set_new(networks, lw_network_name((lw_network)i), describe_network(w, (lw_network)i));
    size_t n;
    const lw_field *fields = lw_weights_fields(w, &n);
    for (size_t i = 0; i < n; i++) json_object_set_new(metadata, fields[i].key, json_string(fields[i].value));
    json_t *where = json_string(lw_weights_path(w)); /* a path need not be UTF-8, JSON has to be */
    return json_pack("{s:o,s:s,s:I,s:I,s:I,s:o,s:o}", "path", where ? where : json_null(), "layout",
                     lw_weights_layout(w), "file_bytes", (json_int_t)lw_weights_file_bytes(w), "tensors",
                     (json_int_t)lw_weights_count(w), "ignored", (json_int_t)lw_weights_ignored(w), "networks",
                     networks, "metadata", metadata);
}

lw_status lw_weights_describe(const char *path, char **json, lw_error *err) {
    lw_weights *w;
    *json = NULL;
    LW_TRY(lw_weights_open(&w, path, err));
    json_t *root = lw_fault_hit() ? NULL : describe_store(w);
    lw_weights_close(&w);
    *json = root ? json_dumps(root, JSON_COMPACT) : NULL; /* from malloc, as lw_free wants it */
    json_decref(root);
    return *json ? LW_OK : lw_fail(err, LW_ENOMEM, "%s: no memory to describe it", path);
}
