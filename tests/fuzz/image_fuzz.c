/* SPDX-License-Identifier: MIT
 * Any bytes as a picture; what is one goes through everything that the job does with it, and out and in again. */
#include "image/image.h"

#include <stdlib.h>
#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

/* abort() is how a fuzz target says that a promise was broken. */
static void promise(bool kept) {
    if (!kept) abort();
}

static void work(const lw_image *image, const lw_fields *fields) {
    lw_image rgb, sized, edges, back;
    lw_fields back_fields;
    lw_error err;
    void *bytes;
    size_t n;
    promise(lw_image_to_rgb(image, &rgb, &err) == LW_OK);
    if (lw_image_resize(&rgb, 64, &sized, &err) == LW_OK) {
        promise(lw_canny(&sized, 100, 200, &edges, &err) == LW_OK);
        lw_image_free(&sized);
        lw_image_free(&edges);
    }
    promise(lw_image_resize_to(image, 1 + image->height % 70, 1 + image->width % 50, &sized, &err) == LW_OK);
    lw_image_free(&sized);
    promise(lw_canny(&rgb, 1, 30, &edges, &err) == LW_OK);
    if (lw_image_encode(image, "png", fields, &bytes, &n, &err) == LW_OK) {
        promise(lw_image_decode(bytes, n, "again", &back, &back_fields, &err) == LW_OK);
        promise(back.width == image->width && back.channels == image->channels && back_fields.n == fields->n);
        promise(memcmp(back.data, image->data, image->stride * (size_t)image->height) == 0);
        for (uint32_t i = 0; i < fields->n; i++)
            promise(strcmp(fields->items[i].value, back_fields.items[i].value) == 0);
        lw_image_free(&back);
        lw_fields_free(&back_fields);
        lw_free(bytes);
    }
    lw_image_free(&edges);
    lw_image_free(&rgb);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    lw_image image;
    lw_fields fields;
    lw_error err = {0};
    lw_status status = lw_image_decode(data, size, "fuzz", &image, &fields, &err);
    promise(status == LW_OK ? image.data != NULL : image.data == NULL && err.message[0] && fields.items == NULL);
    if (status == LW_OK && (int64_t)image.width * image.height <= 10000) work(&image, &fields);
    lw_image_free(&image);
    lw_fields_free(&fields);
    return 0;
}
