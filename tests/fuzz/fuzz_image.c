/*
 * Fuzzes the decoding of images: any bytes are an image or one error line. The side that a JPEG may
 * be scaled down to follows from the input's size, so that inputs are plain image files. Mutated
 * PNG files get right checksums again: libpng drops a file at the first wrong one.
 */
#include <stdint.h>
#include <string.h>
#include <zlib.h>

#include "trainer/data/dataset.h"

#define PNG_SIGNATURE "\x89PNG\r\n\x1a\n"
#define PNG_CHUNK_MIN 12 /* length, type, checksum */

size_t LLVMFuzzerMutate(uint8_t *data, size_t size, size_t max_size);
size_t LLVMFuzzerCustomMutator(uint8_t *data, size_t size, size_t max_size, unsigned seed);
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static uint32_t read_u32(const uint8_t *from)
{
    return (uint32_t)from[0] << 24 | (uint32_t)from[1] << 16 | (uint32_t)from[2] << 8 | from[3];
}

static void seal_chunks(uint8_t *data, size_t size)
{
    for (size_t at = 8; at + PNG_CHUNK_MIN <= size;) {
        const size_t length = read_u32(data + at);
        if (length > size - at - PNG_CHUNK_MIN)
            return;
        const uint32_t sum = (uint32_t)crc32(0, data + at + 4, (uInt)length + 4);
        uint8_t *to = data + at + 8 + length;
        for (int i = 0; i < 4; i++)
            to[i] = (uint8_t)(sum >> (24 - 8 * i));
        at += length + PNG_CHUNK_MIN;
    }
}

size_t LLVMFuzzerCustomMutator(uint8_t *data, size_t size, size_t max_size, unsigned seed)
{
    size = LLVMFuzzerMutate(data, size, max_size);
    if (seed % 8 != 0 && size > 8 && memcmp(data, PNG_SIGNATURE, 8) == 0)
        seal_chunks(data, size);
    return size;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static const int sides[3] = {0, 8, 224};
    image im = {0};
    errbuf err = {0};
    const status st = image_decode(data, size, sides[size % 3], &im, &err);
    if (st == STATUS_OK) {
        uint64_t sum = 0;
        ASSERT(im.w > 0 && im.h > 0 && im.capacity >= (size_t)im.w * (size_t)im.h * 3);
        for (size_t i = 0; i < (size_t)im.w * (size_t)im.h * 3; i++) /* every byte is there */
            sum += im.pixels[i];
        ASSERT(sum <= (uint64_t)255 * 3 * (uint64_t)im.w * (uint64_t)im.h);
    } else
        ASSERT(err.code == st && err.text[0] != '\0' && strchr(err.text, '\n') == NULL);
    image_fini(&im);
    return 0;
}
