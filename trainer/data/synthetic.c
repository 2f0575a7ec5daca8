/*
 * The procedural image set: a stand-in for real images that is hard enough to tell models apart.
 *
 * A class is a pair (shape, texture), from 145 classes on a triple with the backdrop; neither part
 * alone tells classes from one another. The figure that counts is the largest one of the image, at
 * a random place, size, tilt and in random colours, over a random backdrop, among smaller figures
 * of any shape and texture, partly hidden by a bar, under noise. Shapes and textures are the same
 * mirrored left to right, as the augmentation mirrors images.
 *
 * An image is a pure function of (data.seed, split, index), drawn in integer arithmetic only, so
 * that its bytes are the same on every machine. SYNTHETIC_VERSION stands in the content hash:
 * whoever changes a pixel changes it.
 *
 * Lengths are in 1/65536 of the image's side; figure coordinates in 1/256 of the figure's radius.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "kernels/random.h"
#include "trainer/data/source.h"

#define SHAPES   12
#define TEXTURES 12
#define UNIT     65536 /* the image's side */

/* Up to this side images are drawn at twice the side and averaged: textures would alias. */
#define SMALL_SIDE 24

/* Where all images together need more than this, they are drawn when they are read. */
#define RESIDENT_BYTES ((int64_t)2 << 30)

/* cos and sin of k / 256 of a turn, times 2^14. */
static const int16_t tilt_table[][2] = {{16384, 0},    {16379, 402},  {16364, 804},  {16340, 1205},
                                        {16305, 1606}, {16261, 2006}, {16207, 2404}, {16143, 2801},
                                        {16069, 3196}, {15986, 3590}, {15893, 3981}, {15791, 4370}};
#define MAX_TILT 11

typedef struct colour {
    uint8_t c[3];
} colour;

typedef struct figure {
    int shape, texture;
    int x, y, radius; /* centre and size, of UNIT */
    int cosine, sine; /* of the tilt, times 2^14 */
    int phase_x, phase_y;
    colour paint[2];
} figure;

typedef struct canvas {
    uint8_t *pixels; /* planes */
    int side;
    const int *centre; /* [side] of UNIT: where the middle of pixel i is */
} canvas;

typedef struct synthetic_set {
    dataset base;
    uint64_t seed;
    data_split split;
    int side;
    int *centre;     /* see canvas; of the side that is drawn */
    uint8_t *pixels; /* of all images in order; NULL = they are drawn when they are read */
} synthetic_set;

int synthetic_classes(const spec *s)
{
    return s->model.classes ? (int)s->model.classes : 10;
}

int64_t synthetic_side(const spec *s)
{
    return s->data.size ? s->data.size : 32;
}

/* -- figures -- */

/* Is (u, v), in 1/256 of the radius, inside the shape? v grows downwards. */
static bool shape_covers(int shape, int u, int v)
{
    int au = abs(u), av = abs(v), far = au > av ? au : av, near = au > av ? av : au;
    int square = u * u + v * v;
    switch (shape) {
    case 0: /* disc */
        return square < 240 * 240;
    case 1: /* square */
        return far < 212;
    case 2: /* triangle */
        return v < 190 && au * 16 < (v + 240) * 10;
    case 3: /* cross */
        return near < 84 && far < 250;
    case 4: /* ring */
        return square < 256 * 256 && square > 130 * 130;
    case 5: /* diamond */
        return au + av < 290;
    case 6: /* upright ellipse */
        return 3 * u * u + v * v < 256 * 256;
    case 7: /* lying ellipse */
        return u * u + 3 * v * v < 256 * 256;
    case 8: /* half disc */
        return square < 256 * 256 && v > -40;
    case 9: /* frame */
        return far < 224 && far > 120;
    case 10: /* hourglass */
        return au < av + 30 && far < 220;
    default: /* diagonal cross */
        return far < 220 && far - near < 80;
    }
}

/* Which of the two paints covers the place? (x, y) in UNIT with a random phase; (u, v) as above. */
static int texture_paint(int texture, int x, int y, int u, int v)
{
    enum {
        COARSE = UNIT / 8,
        FINE = UNIT / 14
    };
    switch (texture) {
    case 0: /* lying stripes */
        return y / COARSE & 1;
    case 1: /* upright stripes */
        return x / COARSE & 1;
    case 2: /* chequers */
        return (x / COARSE + y / COARSE) & 1;
    case 3: /* plain */
        return 0;
    case 4: /* dots */
        return x % (2 * COARSE) < COARSE && y % (2 * COARSE) < COARSE;
    case 5: /* rings around the centre */
        return (u * u + v * v) / (96 * 96) & 1;
    case 6: /* fine lying stripes */
        return y / FINE & 1;
    case 7: /* fine upright stripes */
        return x / FINE & 1;
    case 8: /* fine chequers */
        return (x / FINE + y / FINE) & 1;
    case 9: /* mesh */
        return x % (2 * COARSE) < FINE || y % (2 * COARSE) < FINE;
    case 10: /* upper and lower half */
        return v < 0;
    default: /* core and rim */
        return u * u + v * v < 110 * 110;
    }
}

static void put(canvas *to, int x, int y, const colour *paint)
{
    size_t plane = (size_t)to->side * (size_t)to->side;
    uint8_t *p = to->pixels + (size_t)y * (size_t)to->side + (size_t)x;
    p[0] = paint->c[0];
    p[plane] = paint->c[1];
    p[2 * plane] = paint->c[2];
}

static int clamp(int v, int low, int high)
{
    return v < low ? low : v > high ? high : v;
}

static void draw_figure(canvas *to, const figure *f)
{
    int side = to->side, reach = f->radius + f->radius / 2;
    int x0 = clamp((int)((int64_t)(f->x - reach) * side / UNIT), 0, side);
    int x1 = clamp((int)((int64_t)(f->x + reach) * side / UNIT) + 1, 0, side);
    int y0 = clamp((int)((int64_t)(f->y - reach) * side / UNIT), 0, side);
    int y1 = clamp((int)((int64_t)(f->y + reach) * side / UNIT) + 1, 0, side);
    int64_t gain = ((int64_t)1 << 30) / f->radius; /* no division a pixel */
    for (int y = y0; y < y1; y++) {
        int py = to->centre[y];
        int64_t dy = py - f->y;
        for (int x = x0; x < x1; x++) {
            int px = to->centre[x];
            int64_t dx = px - f->x;
            int u = (int)(((dx * f->cosine + dy * f->sine) >> 6) * gain >> 30);
            int v = (int)(((dy * f->cosine - dx * f->sine) >> 6) * gain >> 30);
            if (shape_covers(f->shape, u, v))
                put(to, x, y,
                    &f->paint[texture_paint(f->texture, px + f->phase_x, py + f->phase_y, u, v)]);
        }
    }
}

/* -- scenes -- */

static colour random_colour(random_stream *s)
{
    uint32_t w = random_word(s);
    return (colour){{(uint8_t)w, (uint8_t)(w >> 8), (uint8_t)(w >> 16)}};
}

static int colour_distance(const colour *a, const colour *b)
{
    int sum = 0;
    for (int c = 0; c < 3; c++)
        sum += abs(a->c[c] - b->c[c]);
    return sum;
}

/* A colour that differs visibly from `other`: moved away from it where chance left it near. */
static colour contrasting_colour(random_stream *s, const colour *other, int least)
{
    colour made = random_colour(s);
    if (colour_distance(&made, other) < least)
        for (int c = 0; c < 3; c++)
            made.c[c] = (uint8_t)(made.c[c] + (other->c[c] < 128 ? 96 : 160));
    return made;
}

static void random_figure(random_stream *s, int shape, int texture, int low, int high,
                          const colour *behind, figure *ret)
{
    int tilt = random_between(s, -MAX_TILT, MAX_TILT);
    ret->shape = shape;
    ret->texture = texture;
    ret->radius = random_between(s, low, high);
    ret->cosine = tilt_table[abs(tilt)][0];
    ret->sine = tilt < 0 ? -tilt_table[-tilt][1] : tilt_table[tilt][1];
    ret->phase_x = random_between(s, 0, UNIT);
    ret->phase_y = random_between(s, 0, UNIT);
    ret->paint[0] = contrasting_colour(s, behind, 150);
    ret->paint[1] = contrasting_colour(s, &ret->paint[0], 150);
}

/* Two colours that run into one another, crossed by faint bands. */
static void draw_backdrop(canvas *to, random_stream *s, int backdrop, colour *ret_mean)
{
    colour a = random_colour(s), b = random_colour(s);
    int along_x = random_between(s, -256, 256), along_y = random_between(s, -256, 256);
    int phase = random_between(s, 0, UNIT), depth = random_between(s, 4, 20);
    int side = to->side;
    size_t plane = (size_t)side * (size_t)side;
    for (int y = 0; y < side; y++)
        for (int x = 0; x < side; x++) {
            int px = to->centre[x], py = to->centre[y];
            int ramp =
                clamp(128 + (along_x * (px - UNIT / 2) + along_y * (py - UNIT / 2)) / UNIT, 0, 256);
            int band = texture_paint(backdrop, px + phase, py + phase, 0, py - UNIT / 2);
            for (int c = 0; c < 3; c++) {
                int v = (a.c[c] * (256 - ramp) + b.c[c] * ramp) >> 8;
                to->pixels[(size_t)c * plane + (size_t)y * (size_t)side + (size_t)x] =
                    (uint8_t)clamp(v + (band ? depth : -depth), 0, 255);
            }
        }
    for (int c = 0; c < 3; c++)
        ret_mean->c[c] = (uint8_t)((a.c[c] + b.c[c]) / 2);
}

/* A bar across part of the image, lying or upright. */
static void draw_bar(canvas *to, random_stream *s)
{
    int side = to->side, thick = random_between(s, UNIT / 16, UNIT / 9);
    int at = random_between(s, UNIT / 8, UNIT * 3 / 4);
    bool lies = random_below(s, 2);
    colour paint = random_colour(s);
    int first = (int)((int64_t)at * side / UNIT);
    int last = clamp((int)((int64_t)(at + thick) * side / UNIT), first + 1, side);
    for (int i = first; i < last; i++)
        for (int j = 0; j < side; j++)
            put(to, lies ? j : i, lies ? i : j, &paint);
}

/* Triangular noise; its own generator, as a Philox word a pixel would cost more than the scene. */
static void add_noise(canvas *to, random_stream *s)
{
    size_t n = (size_t)to->side * (size_t)to->side * 3;
    int amount = random_between(s, 12, 48);
    uint32_t state = random_word(s) | 1;
    for (size_t i = 0; i < n; i++) {
        state = state * 1664525u + 1013904223u;
        int noise = (int)(state >> 24) + (int)(state >> 16 & 255) - 255;
        to->pixels[i] = (uint8_t)clamp(to->pixels[i] + noise * amount / 256, 0, 255);
    }
}

/* What makes the class; the rest of the scene is chance. */
static void class_parts(int label, int classes, int *ret_shape, int *ret_texture, int *ret_backdrop)
{
    int grid = 1;
    while (grid < SHAPES && grid * grid < classes)
        grid++;
    int cell = label % (grid * grid);
    *ret_shape = cell % grid;
    *ret_texture = (cell % grid + cell / grid) % grid;
    *ret_backdrop = classes > SHAPES * TEXTURES ? label / (SHAPES * TEXTURES) : -1;
}

/* Everything but the noise. */
static void draw_scene(canvas *to, random_stream *s, int label, int classes)
{
    int shape, texture, backdrop;
    class_parts(label, classes, &shape, &texture, &backdrop);
    int chance = random_between(s, 0, TEXTURES - 3);
    colour behind;
    draw_backdrop(to, s, backdrop < 0 ? chance : backdrop, &behind);
    figure f;
    int others = random_between(s, 1, 3);
    for (int i = 0; i <= others; i++) {
        bool counts = i == others - 1; /* one of the small ones may lie over it */
        int any_shape = random_between(s, 0, SHAPES - 1);
        int any_texture = random_between(s, 0, TEXTURES - 1);
        random_figure(s, counts ? shape : any_shape, counts ? texture : any_texture,
                      counts ? UNIT * 24 / 100 : UNIT * 8 / 100,
                      counts ? UNIT * 40 / 100 : UNIT * 15 / 100, &behind, &f);
        int margin = counts ? UNIT * 30 / 100 : 0;
        f.x = random_between(s, margin, UNIT - margin);
        f.y = random_between(s, margin, UNIT - margin);
        draw_figure(to, &f);
    }
    if (random_below(s, 2))
        draw_bar(to, s);
}

/* Rounded averages of 2 x 2 pixels. */
static void halve(const canvas *from, canvas *to)
{
    int side = to->side, stride = from->side;
    for (int y = 0; y < 3 * side; y++) { /* planes lie one under the other */
        const uint8_t *in = from->pixels + (size_t)(2 * y) * (size_t)stride;
        for (int x = 0; x < side; x++) {
            /* NOLINTNEXTLINE(clang-analyzer-core.UndefinedBinaryOperatorResult): all drawn on */
            int sum = in[2 * x] + in[2 * x + 1] + in[stride + 2 * x] + in[stride + 2 * x + 1];
            to->pixels[(size_t)y * (size_t)side + (size_t)x] = (uint8_t)((sum + 2) / 4);
        }
    }
}

static void draw_image(const synthetic_set *set, int64_t index, uint8_t *pixels)
{
    uint8_t fine[3 * 4 * SMALL_SIDE * SMALL_SIDE];
    bool is_small = set->side <= SMALL_SIDE;
    canvas to = {.pixels = pixels, .side = set->side};
    canvas drawn = {.pixels = is_small ? fine : pixels,
                    .side = is_small ? 2 * set->side : set->side,
                    .centre = set->centre};
    random_stream s =
        random_open(set->seed, RANDOM_SYNTHETIC, (uint32_t)index, (uint32_t)set->split);
    int classes = set->base.info.classes;
    draw_scene(&drawn, &s, (int)(index % classes), classes);
    if (is_small)
        halve(&drawn, &to);
    add_noise(&to, &s);
}

/* -- the set -- */

static size_t image_bytes(const synthetic_set *set)
{
    return (size_t)set->side * (size_t)set->side * 3;
}

static status synthetic_read(dataset *base, int64_t i, int short_side, image *im,
                             int32_t *ret_label, errbuf *err)
{
    (void)short_side;
    const synthetic_set *set = (const synthetic_set *)base;
    TRY(image_reserve(im, set->side, set->side, err));
    if (set->pixels)
        memcpy(im->pixels, set->pixels + (size_t)i * image_bytes(set), image_bytes(set));
    else
        draw_image(set, i, im->pixels);
    *ret_label = (int32_t)(i % set->base.info.classes);
    return STATUS_OK;
}

static void synthetic_close(dataset *base)
{
    synthetic_set *set = (synthetic_set *)base;
    free(set->pixels);
    free(set->centre);
}

static status draw_one(void *ctx, int64_t i, errbuf *err)
{
    const synthetic_set *set = ctx;
    (void)err;
    draw_image(set, i, set->pixels + (size_t)i * image_bytes(set));
    return STATUS_OK;
}

static status part_names(int classes, char ***ret_names, errbuf *err)
{
    static const char *const shapes[SHAPES] = {
        "disc",      "square",  "triangle",        "cross",
        "ring",      "diamond", "upright ellipse", "lying ellipse",
        "half disc", "frame",   "hourglass",       "diagonal cross"};
    static const char *const textures[TEXTURES] = {
        "lying stripes",      "upright stripes",      "chequers",      "plain", "dots",   "rings",
        "fine lying stripes", "fine upright stripes", "fine chequers", "mesh",  "halves", "core"};
    char **names = calloc((size_t)classes, sizeof *names);
    for (int i = 0; names && i < classes; i++) {
        int shape, texture, backdrop;
        char text[80];
        class_parts(i, classes, &shape, &texture, &backdrop);
        if (backdrop < 0)
            snprintf(text, sizeof text, "%s, %s", shapes[shape], textures[texture]);
        else
            snprintf(text, sizeof text, "%s, %s, on %s", shapes[shape], textures[texture],
                     textures[backdrop]);
        names[i] = strdup(text);
        if (!names[i]) {
            names_free(names, classes);
            names = NULL;
        }
    }
    if (!names)
        return errbuf_set(err, STATUS_OUT_OF_MEMORY, "no memory for class names");
    *ret_names = names;
    return STATUS_OK;
}

static status fill_synthetic(synthetic_set *set, const dataset_progress *progress, errbuf *err)
{
    void *centre = NULL;
    TRY(part_names(set->base.info.classes, &set->base.names, err));
    int drawn = set->side <= SMALL_SIDE ? 2 * set->side : set->side;
    TRY(bytes_alloc("the procedural images", drawn, sizeof *set->centre, 1, &centre, err));
    set->centre = centre;
    for (int i = 0; i < drawn; i++)
        set->centre[i] = (int)((int64_t)(2 * i + 1) * UNIT / (2 * drawn));
    int64_t bytes = (int64_t)image_bytes(set), count = set->base.info.count;
    if (count > RESIDENT_BYTES / bytes)
        return STATUS_OK;
    void *pixels = NULL;
    TRY(bytes_alloc("the procedural images", count, bytes, 1, &pixels, err));
    set->pixels = pixels;
    return parallel_for(count, 64, 0, draw_one, set, progress, err);
}

status synthetic_open(const spec *s, data_split split, const dataset_progress *progress,
                      dataset **ret_set, errbuf *err)
{
    int64_t side = synthetic_side(s), classes = synthetic_classes(s);
    int64_t count = split == SPLIT_TRAIN ? s->data.train_count : s->data.eval_count;
    if (side < 8 || side > 4096)
        return errbuf_set(err, STATUS_BAD_INPUT,
                          "data.size is %lld: procedural images have sides from 8 to 4096",
                          (long long)side);
    if (classes < 2 || classes > 1000)
        return errbuf_set(err, STATUS_BAD_INPUT,
                          "model.classes is %lld: the procedural set has 2 to 1000 classes",
                          (long long)classes);
    if (count < 1 || count > DATASET_MAX_COUNT)
        return errbuf_set(err, STATUS_BAD_INPUT, "%s is %lld: expected 1 to %d",
                          split == SPLIT_TRAIN ? "data.train_count" : "data.eval_count",
                          (long long)count, DATASET_MAX_COUNT);
    synthetic_set *set = calloc(1, sizeof *set);
    if (!set)
        return errbuf_set(err, STATUS_OUT_OF_MEMORY, "no memory for a data set");
    set->seed = s->data.seed;
    set->split = split;
    set->side = (int)side;
    set->base.read = synthetic_read;
    set->base.close = synthetic_close;
    set->base.info = (dataset_info){.count = count,
                                    .classes = (int)classes,
                                    .w = (int)side,
                                    .h = (int)side,
                                    .is_resident = true};
    dataset *base = &set->base;
    status st = fill_synthetic(set, progress, err);
    if (st != STATUS_OK)
        dataset_close(&base);
    else
        *ret_set = base;
    return st;
}
