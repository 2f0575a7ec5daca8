/*
 * Decoded images, and decoding JPEG and PNG into them.
 *
 * Both libraries report errors by longjmp. Each decoder keeps that inside one function that owns
 * nothing itself: whatever must survive the jump lives in a state struct of its caller, which
 * frees it on every path. Neither library ever prints: their handlers only fill in a line.
 */
#include "trainer/data/dataset.h"

#include <png.h>
#include <setjmp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <jpeglib.h> /* needs stdio.h before it */

#include <jerror.h> /* needs jpeglib.h before it */

#define IMAGE_MAX_PIXELS   (1 << 28)
#define IMAGE_MAX_SIDE     65535
#define JPEG_MAX_SCANS     200                    /* more is a file made to burn time */
#define DECODER_MAX_MEMORY ((long)1 << 30)        /* of a library's own tables */
#define PNG_MAX_CHUNK      ((png_uint_32)8 << 20) /* of an ancillary chunk */

void image_fini(image *im)
{
    if (!im)
        return;
    free(im->pixels);
    *im = (image){0};
}

status image_reserve(image *im, int w, int h, errbuf *err)
{
    if (w < 1 || h < 1)
        return errbuf_set(err, STATUS_DATA, "image of %d x %d pixels: it is empty", w, h);
    if ((int64_t)w * h > IMAGE_MAX_PIXELS)
        return errbuf_set(err, STATUS_DATA, "image of %d x %d pixels: at most %d in all are read",
                          w, h, IMAGE_MAX_PIXELS);
    size_t need = (size_t)w * (size_t)h * 3;
    if (need > im->capacity) {
        uint8_t *pixels = malloc(need);
        if (!pixels)
            return errbuf_set(err, STATUS_OUT_OF_MEMORY, "no memory for an image of %d x %d pixels",
                              w, h);
        free(im->pixels);
        im->pixels = pixels;
        im->capacity = need;
    }
    im->w = w;
    im->h = h;
    return STATUS_OK;
}

/* n interleaved RGB pixels into three planes at offset `at`. */
static void split_planes(const uint8_t *rgb, int n, image *im, size_t at)
{
    size_t plane = (size_t)im->w * (size_t)im->h;
    uint8_t *r = im->pixels + at, *g = r + plane, *b = g + plane;
    for (int x = 0; x < n; x++) {
        r[x] = rgb[3 * x];
        g[x] = rgb[3 * x + 1];
        b[x] = rgb[3 * x + 2];
    }
}

/* -- JPEG -- */

typedef struct jpeg_state {
    struct jpeg_error_mgr errors; /* first: libjpeg hands back a pointer to it */
    jmp_buf jump;
    char message[JMSG_LENGTH_MAX];
    struct jpeg_progress_mgr progress;
    struct jpeg_decompress_struct codec;
    image *im;
    errbuf *err;
    status st;
} jpeg_state;

static void jpeg_error(j_common_ptr codec)
{
    jpeg_state *state = (jpeg_state *)codec->err;
    codec->err->format_message(codec, state->message);
    longjmp(state->jump, 1);
}

/* Warnings that mean wrong pixels end the decoding; stray bytes between markers do not. */
static void jpeg_message(j_common_ptr codec, int level)
{
    if (level >= 0)
        return;
    switch (codec->err->msg_code) {
    case JWRN_JPEG_EOF:
    case JWRN_HIT_MARKER:
    case JWRN_HUFF_BAD_CODE:
    case JWRN_ARITH_BAD_CODE:
    case JWRN_MUST_RESYNC:
        jpeg_error(codec);
        break;
    default:
        codec->err->num_warnings++;
    }
}

static void jpeg_silent(j_common_ptr codec)
{
    (void)codec;
}

static void jpeg_watch_scans(j_common_ptr codec)
{
    jpeg_state *state = (jpeg_state *)codec->err;
    if (codec->is_decompressor && ((j_decompress_ptr)codec)->input_scan_number > JPEG_MAX_SCANS) {
        snprintf(state->message, sizeof state->message, "more than %d progressive scans",
                 JPEG_MAX_SCANS);
        longjmp(state->jump, 1);
    }
}

/* Header, size limits and scale; the frame is not decoded yet. */
static void jpeg_open(jpeg_state *state, const uint8_t *bytes, size_t length, int short_side)
{
    struct jpeg_decompress_struct *codec = &state->codec;
    jpeg_mem_src(codec, bytes, (unsigned long)length);
    jpeg_read_header(codec, TRUE);
    int w = (int)codec->image_width, h = (int)codec->image_height;
    if ((int64_t)w * h > IMAGE_MAX_PIXELS) {
        state->st = errbuf_set(state->err, STATUS_DATA,
                               "image of %d x %d pixels: at most %d in all are read", w, h,
                               IMAGE_MAX_PIXELS);
        return;
    }
    if (codec->jpeg_color_space == JCS_CMYK || codec->jpeg_color_space == JCS_YCCK) {
        state->st = errbuf_set(state->err, STATUS_DATA, "CMYK JPEG: convert it to RGB");
        return;
    }
    int denominator = 8, shorter = w < h ? w : h;
    while (denominator > 1 && (short_side <= 0 || shorter / denominator < short_side))
        denominator /= 2;
    codec->scale_num = 1;
    codec->scale_denom = (unsigned)denominator;
    codec->out_color_space = JCS_RGB;
    codec->dct_method = JDCT_ISLOW;
}

/* Everything that can jump. Owns nothing; `state` outlives it. */
static status jpeg_run(jpeg_state *state, const uint8_t *bytes, size_t length, int short_side)
{
    struct jpeg_decompress_struct *codec = &state->codec;
    if (setjmp(state->jump))
        return errbuf_set(state->err, STATUS_DATA, "damaged JPEG: %s", state->message);
    jpeg_create_decompress(codec);
    codec->mem->max_memory_to_use = DECODER_MAX_MEMORY;
    codec->progress = &state->progress;
    jpeg_open(state, bytes, length, short_side);
    if (state->st != STATUS_OK)
        return state->st;
    jpeg_start_decompress(codec);
    int w = (int)codec->output_width;
    state->st = image_reserve(state->im, w, (int)codec->output_height, state->err);
    if (state->st != STATUS_OK)
        return state->st;
    /* The row belongs to the codec's pool, so that a jump cannot leak it. */
    JSAMPARRAY row =
        codec->mem->alloc_sarray((j_common_ptr)codec, JPOOL_IMAGE, (JDIMENSION)w * 3, 1);
    while (codec->output_scanline < codec->output_height) {
        size_t at = (size_t)codec->output_scanline * (size_t)w;
        jpeg_read_scanlines(codec, row, 1);
        split_planes(row[0], w, state->im, at);
    }
    jpeg_finish_decompress(codec);
    return STATUS_OK;
}

static status jpeg_decode(const uint8_t *bytes, size_t length, int short_side, image *im,
                          errbuf *err)
{
    jpeg_state state;
    memset(&state, 0, sizeof state);
    state.im = im;
    state.err = err;
    state.codec.err = jpeg_std_error(&state.errors);
    state.errors.error_exit = jpeg_error;
    state.errors.emit_message = jpeg_message;
    state.errors.output_message = jpeg_silent;
    state.progress.progress_monitor = jpeg_watch_scans;
    status st = jpeg_run(&state, bytes, length, short_side);
    jpeg_destroy_decompress(&state.codec);
    return st;
}

/* -- PNG -- */

typedef struct png_state {
    const uint8_t *bytes;
    size_t length, at;
    char message[200];
    png_structp png;
    png_infop info;
    uint8_t *rgb; /* interleaved pixels: one row, or all where the file is interlaced */
    image *im;
    errbuf *err;
} png_state;

static void png_failed(png_structp png, png_const_charp message)
{
    png_state *state = png_get_error_ptr(png);
    snprintf(state->message, sizeof state->message, "%s", message);
    png_longjmp(png, 1);
}

static void png_silent(png_structp png, png_const_charp message)
{
    (void)png;
    (void)message;
}

static void png_take(png_structp png, png_bytep out, size_t count)
{
    png_state *state = png_get_io_ptr(png);
    if (count > state->length - state->at)
        png_error(png, "the file ends too early");
    memcpy(out, state->bytes + state->at, count);
    state->at += count;
}

/* Whatever the file holds, ask for 8-bit RGB. Returns the passes over the rows. */
static int png_ask_rgb(png_state *state)
{
    png_structp png = state->png;
    int type = png_get_color_type(png, state->info);
    if (type == PNG_COLOR_TYPE_PALETTE)
        png_set_palette_to_rgb(png);
    if (!(type & PNG_COLOR_MASK_COLOR)) {
        png_set_expand_gray_1_2_4_to_8(png);
        png_set_gray_to_rgb(png);
    }
    png_set_scale_16(png);
    png_set_strip_alpha(png);
    int passes = png_set_interlace_handling(png);
    png_read_update_info(png, state->info);
    return passes;
}

/* Each pass of an interlaced file fills in pixels of all rows, so that these need the whole image
 * interleaved; others go by one row. */
static status png_rows(png_state *state, int w, int h, int passes)
{
    size_t stride = (size_t)w * 3, held = passes > 1 ? (size_t)h : 1;
    if (png_get_rowbytes(state->png, state->info) != stride)
        return errbuf_set(state->err, STATUS_DATA, "PNG of a pixel format that cannot become RGB");
    TRY(image_reserve(state->im, w, h, state->err));
    state->rgb = malloc(stride * held);
    if (!state->rgb)
        return errbuf_set(state->err, STATUS_OUT_OF_MEMORY,
                          "no memory for an image of %d x %d pixels", w, h);
    for (int pass = 0; pass < passes; pass++)
        for (int y = 0; y < h; y++) {
            uint8_t *row = state->rgb + (held > 1 ? stride * (size_t)y : 0);
            png_read_row(state->png, row, NULL);
            if (pass == passes - 1)
                split_planes(row, w, state->im, (size_t)y * (size_t)w);
        }
    return STATUS_OK;
}

/* Everything that can jump. Owns nothing; `state` outlives it. */
static status png_run(png_state *state)
{
    if (setjmp(png_jmpbuf(state->png)))
        return errbuf_set(state->err, STATUS_DATA, "damaged PNG: %s", state->message);
    png_set_read_fn(state->png, state, png_take);
    png_set_user_limits(state->png, IMAGE_MAX_SIDE, IMAGE_MAX_SIDE);
    png_set_chunk_malloc_max(state->png, PNG_MAX_CHUNK);
    png_read_info(state->png, state->info);
    int64_t w = png_get_image_width(state->png, state->info);
    int64_t h = png_get_image_height(state->png, state->info);
    if (w * h > IMAGE_MAX_PIXELS)
        return errbuf_set(state->err, STATUS_DATA,
                          "image of %d x %d pixels: at most %d in all are read", (int)w, (int)h,
                          IMAGE_MAX_PIXELS);
    int passes = png_ask_rgb(state);
    TRY(png_rows(state, (int)w, (int)h, passes));
    png_read_end(state->png, NULL);
    return STATUS_OK;
}

static status png_decode(const uint8_t *bytes, size_t length, image *im, errbuf *err)
{
    png_state state = {.bytes = bytes, .length = length, .im = im, .err = err};
    status st = STATUS_OUT_OF_MEMORY;
    state.png = png_create_read_struct(PNG_LIBPNG_VER_STRING, &state, png_failed, png_silent);
    if (state.png)
        state.info = png_create_info_struct(state.png);
    if (state.info)
        st = png_run(&state);
    else
        errbuf_set(err, st, "no memory for decoding a PNG");
    png_destroy_read_struct(&state.png, &state.info, NULL);
    free(state.rgb);
    return st;
}

status image_decode(const uint8_t *bytes, size_t length, int short_side, image *im, errbuf *err)
{
    static const uint8_t png_magic[8] = {0x89, 'P', 'N', 'G', '\r', '\n', 0x1a, '\n'};
    if (length == 0)
        return errbuf_set(err, STATUS_DATA, "the file is empty");
    if (length >= 3 && bytes[0] == 0xff && bytes[1] == 0xd8 && bytes[2] == 0xff)
        return jpeg_decode(bytes, length, short_side, im, err);
    if (length >= 8 && !memcmp(bytes, png_magic, 8))
        return png_decode(bytes, length, im, err);
    return errbuf_set(err, STATUS_DATA, "neither a JPEG nor a PNG file");
}
