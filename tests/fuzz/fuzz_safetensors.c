/*
 * Fuzzes safetensors files, whole: the input is a file's bytes. A header that is accepted must be
 * what the format promises, since readers index the data by it; then the same bytes go through
 * open, read and verify.
 */
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "trainer/checkpoint.h"
#include "trainer/safetensors.h"

static void check_header(const safetensors_header *h, uint64_t data_length)
{
    uint64_t at = 0;
    for (size_t i = 0; i < h->tensors; i++) {
        const safetensors_tensor *t = &h->tensor[i];
        uint64_t elements = 1;
        char text[32];
        for (int d = 0; d < t->dims; d++)
            elements *= (uint64_t)t->dim[d];
        ASSERT(t->begin == at && t->end >= t->begin);
        ASSERT(elements * safetensors_dtype_size(t->dtype) == t->end - t->begin);
        ASSERT(safetensors_find(h, t->name) == t);
        safetensors_describe(t, text, sizeof text);
        ASSERT(strlen(text) < sizeof text);
        at = t->end;
    }
    ASSERT(at == data_length);
    for (size_t i = 0; i < h->strings; i++)
        ASSERT(safetensors_metadata(h, h->metadata[i].key) == h->metadata[i].value);
}

static void parse(const uint8_t *data, size_t size, uint64_t length)
{
    safetensors_header h;
    errbuf err = {0};
    const uint64_t data_length = size - 8 - length;
    if (safetensors_parse((const char *)data + 8, length, data_length, &h, &err) != STATUS_OK) {
        ASSERT(err.text[0] != '\0' && strchr(err.text, '\n') == NULL);
        return;
    }
    check_header(&h, data_length);
    safetensors_header_fini(&h);
}

static void read_tensors(const safetensors_file *file)
{
    for (size_t i = 0; i < file->header.tensors; i++) {
        const safetensors_tensor *t = &file->header.tensor[i];
        void *values = malloc(t->end - t->begin + 1);
        ASSERT(values != NULL);
        ASSERT(safetensors_read(file, t, values, NULL) == STATUS_OK);
        free(values);
    }
}

static void open_file(const uint8_t *data, size_t size)
{
    safetensors_file *file = NULL;
    checkpoint_head head = {0};
    errbuf err = {0};
    char path[64];
    const int fd = memfd_create("input", MFD_CLOEXEC);
    ASSERT(fd >= 0 && write(fd, data, size) == (ssize_t)size);
    snprintf(path, sizeof path, "/proc/self/fd/%d", fd);
    if (safetensors_open(path, &file, &err) == STATUS_OK) {
        read_tensors(file);
        if (safetensors_verify(file, &err) == STATUS_OK)
            ASSERT(file->header.sealed);
        safetensors_close(&file);
    } else
        ASSERT(strncmp(err.text, path, strlen(path)) == 0 && strchr(err.text, '\n') == NULL);
    if (checkpoint_verify(path, &head, NULL) == STATUS_OK)
        checkpoint_head_fini(&head);
    close(fd);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    uint64_t length = 0;
    if (size >= 8) {
        memcpy(&length, data, sizeof length);
        /* a wrong length hides the header from the parser: have it seen all the same */
        parse(data, size, length <= size - 8 ? length : size - 8);
    }
    open_file(data, size);
    return 0;
}
