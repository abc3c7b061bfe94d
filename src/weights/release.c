/* SPDX-License-Identifier: MIT
 * Which release a file is of, by tensors that no other has. Files of other families don't open as models, so this looks
 * at their own keys. */
#include "weights/format.h"

#include <string.h>
#include <sys/stat.h>

/* A key that holds `piece` (at its end, if `last`), and has `value` in dimension `dim` if value is not 0. */
static const struct tell {
    const char *piece;
    int dim;
    bool last;
    int64_t value;
    const char *name, *advice;
} tells[] = {
    {"conditioner.embedders.", 0, false, 0, "Stable Diffusion XL", "use a Stable Diffusion 1.5 model"},
    {"add_embedding.linear_1.", 0, false, 0, "Stable Diffusion XL", "use a Stable Diffusion 1.5 model"},
    {"attn2.to_k.weight", 1, true, 2048, "Stable Diffusion XL", "use a Stable Diffusion 1.5 model"},
    {"cond_stage_model.model.", 0, false, 0, "Stable Diffusion 2", "use a Stable Diffusion 1.5 model"},
    {"attn2.to_k.weight", 1, true, 1024, "Stable Diffusion 2", "use a Stable Diffusion 1.5 model"},
    {"joint_blocks.0.", 0, false, 0, "Stable Diffusion 3", "use a Stable Diffusion 1.5 model"},
    {"double_blocks.0.", 0, false, 0, "Flux", "use a Stable Diffusion 1.5 model"},
    {"lora_down.weight", 0, true, 0, "a LoRA", "merge it into its model with the program that you train with"},
    {"lora.down.weight", 0, true, 0, "a LoRA", "merge it into its model with the program that you train with"},
    {"lora_A.weight", 0, true, 0, "a LoRA", "merge it into its model with the program that you train with"},
    {"emb_params", 0, true, 0, "a textual inversion", "give a whole model"},
    {"string_to_param", 0, false, 0, "a textual inversion", "give a whole model"},
    {"adapter.body.0.", 0, false, 0, "a T2I-Adapter", "use a ControlNet"},
    {"input_blocks.0.0.weight", 1, true, 9, "Stable Diffusion inpainting", "use the model without inpainting"},
    {"input_blocks.0.0.weight", 1, true, 8, "InstructPix2Pix", "use a Stable Diffusion 1.5 model"},
};

static bool matches(const struct tell *t, const lw_tensor *tensor) {
    const char *at = strstr(tensor->key, t->piece);
    if (!at || (t->last && strcmp(tensor->key + strlen(tensor->key) - strlen(t->piece), t->piece) != 0)) return false;
    return t->value == 0 || (t->dim < tensor->rank && tensor->dims[t->dim] == t->value);
}

static lw_status list_file(const char *path, lw_listing *listing, lw_error *err) {
    lw_source source;
    lw_container container;
    LW_TRY(lw_source_open(&source, path, err));
    lw_status status = lw_container_of(&source, &container, err);
    if (status == LW_OK)
        status = container == LW_CONTAINER_ZIP ? lw_torch_list(&source, listing, err)
                                               : lw_safetensors_list(&source, listing, err);
    lw_source_close(&source);
    return status;
}

lw_status lw_weights_other_release(const char *path, const char **name, const char **advice, lw_error *err) {
    struct stat st;
    lw_status status = LW_OK;
    lw_folder folder = {.n = 1};
    lw_listing listing = {.arena = lw_arena_new()};
    *name = *advice = NULL;
    if (!listing.arena) return lw_fail(err, LW_ENOMEM, "%s: no memory to open it", path);
    folder.files[0].path = path;
    if (stat(path, &st) == 0 && S_ISDIR(st.st_mode))
        LW_GO(lw_folder_find(path, LW_NET_NONE, listing.arena, &folder, err));
    for (size_t i = 0; i < folder.n; i++) LW_GO(list_file(folder.files[i].path, &listing, err));
    for (size_t t = 0; t < sizeof tells / sizeof *tells && !*name; t++)
        for (size_t i = 0; i < listing.n && !*name; i++)
            if (matches(&tells[t], &listing.entries[i].tensor)) *name = tells[t].name, *advice = tells[t].advice;
out:
    lw_free(listing.entries);
    lw_arena_free(listing.arena);
    return status;
}
