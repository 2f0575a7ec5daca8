/* Images that the device makes from bytes, against the host's choices (kernels/random.h) and the
 * floats that the host would have packed: every bit, padding too. */
#include "kernels/random.h"
#include "ops/harness.h"

enum {
    PLANES = IMAGE_CHANNELS,
    LEVELS = 256
};

typedef struct set_case {
    int64_t count;
    int size;
    bool shuffled, cropped;
    uint64_t first;
    uint32_t epoch;
    int64_t row, end;
    int rows;
} set_case;

/* count, size, shuffled, cropped, first, epoch, row, end, rows */
static const set_case set_cases[] = {
    {10, 8, false, false, 0, 0, 0, 10, 4},      {10, 8, true, true, 3, 7, 2, 10, 5},
    {10, 8, true, true, 6, 1, 2, 10, 7},        {33, 16, true, true, 8, 2, 0, 20, 9},
    {33, 16, false, true, 0, 3, 30, 33, 8},     {5, 32, true, true, 0, 0xffffffffu, 0, 5, 5},
    {3, 70, true, true, 1, 5, 0, 3, 3},         {2, 65, false, false, 0, 0, 0, 2, 2},
    {1000, 4, true, true, 100, 9, 0, 1000, 64}, {4, 8, true, true, 4, 1, 0, 4, 2},
};

static const compute_type types[] = {COMPUTE_FP32, COMPUTE_BF16};

/* The backend of this round, opened for the type; NULL where it has no images or not the type. */
static backend *open_typed(const backend_ops *ops, compute_type type)
{
    backend_options options = {.threads = 1, .lanes = 1, .compute = type};
    backend *be = NULL;
    errbuf err = {0};
    if (!ops || !ops->images_from_set || !(ops->computes >> type & 1))
        return NULL;
    ck_assert_msg(ops->open(&options, &be, &err) == STATUS_OK, "%s", err.text);
    return be;
}

static uint8_t *random_bytes(int64_t n)
{
    uint8_t *bytes = malloc((size_t)n + 1);
    ck_assert_ptr_nonnull(bytes);
    for (int64_t i = 0; i < n; i++)
        bytes[i] = (uint8_t)(host_unit(5, i) * LEVELS);
    return bytes;
}

/* As normalisation makes them: black is not zero. */
static float *make_levels(void)
{
    float *level = host_new(PLANES * LEVELS);
    for (int c = 0; c < PLANES; c++)
        for (int v = 0; v < LEVELS; v++)
            level[c * LEVELS + v] = (float)((v / 255.0 - 0.4 - 0.05 * c) / (0.2 + 0.01 * c));
    return level;
}

/* ---- the same on the host ---- */

/* The window of an image whose corner is (x0, y0); black outside. */
static void host_image(const uint8_t *pixels, int size, crop_choice crop, const float *level,
                       float *nchw)
{
    for (int c = 0; c < PLANES; c++)
        for (int y = 0; y < size; y++)
            for (int x = 0; x < size; x++) {
                int from_y = y + crop.y, from_x = x + crop.x;
                int to_x = crop.mirrored ? size - 1 - x : x;
                bool inside = from_y >= 0 && from_y < size && from_x >= 0 && from_x < size;
                uint8_t byte = inside ? pixels[(c * size + from_y) * size + from_x] : 0;
                nchw[(c * size + y) * size + to_x] = level[c * LEVELS + byte];
            }
}

static void host_from_set(const set_case *s, const image_set *set, const uint8_t *pixels,
                          const int32_t *set_labels, const float *level, float *nchw,
                          int32_t *labels)
{
    int64_t elements = (int64_t)PLANES * s->size * s->size;
    feistel order = sample_order(set->seed, s->epoch, (uint32_t)s->count);
    for (int i = 0; i < s->rows; i++) {
        int64_t place = (int64_t)s->first + s->row + i;
        labels[i] = -1;
        if (place >= s->end)
            continue;
        uint32_t sample = (uint32_t)place;
        crop_choice crop = {0, 0, 0};
        if (s->shuffled)
            sample = feistel_apply(&order, sample);
        if (s->cropped)
            crop = choose_crop(set->seed, sample, s->epoch, s->size);
        host_image(pixels + sample * elements, s->size, crop, level, nchw + i * elements);
        labels[i] = set_labels[sample];
    }
}

/* ---- comparison ---- */

/* The image tensor holds what packing the floats would have put there; labels are the same. */
static void check_images(backend *be, shape s, const tensor *images, const float *nchw,
                         const tensor *labels, const int32_t *expect)
{
    tensor packed = tensor_new(be, s, LAYOUT_IMAGE, nchw);
    char *got = malloc(images->bytes + 1), *wanted = malloc(images->bytes + 1);
    int32_t *numbers = calloc((size_t)s.n, sizeof *numbers);
    ck_assert(got && wanted && numbers);
    MUST(be->ops->download(be, got, images->data, images->bytes));
    MUST(be->ops->download(be, wanted, packed.data, images->bytes));
    ck_assert_msg(memcmp(got, wanted, images->bytes) == 0, "%s: images differ", be->ops->name);
    MUST(be->ops->download(be, numbers, labels->data, (size_t)s.n * sizeof *numbers));
    for (int i = 0; i < s.n; i++)
        ck_assert_int_eq(numbers[i], expect[i]);
    tensor_check_guards(images);
    tensor_check_guards(labels);
    tensor_free(&packed);
    free(got);
    free(wanted);
    free(numbers);
}

/* Junk of the size of an image tensor, padding too. */
static tensor image_junk(backend *be, shape s)
{
    size_t bytes = be->ops->tensor_bytes(be, s, LAYOUT_IMAGE);
    char *junk = malloc(bytes + 1);
    ck_assert_ptr_nonnull(junk);
    memset(junk, 0x55, bytes);
    tensor t = tensor_bytes_new(be, bytes, junk);
    free(junk);
    return t;
}

static void check_set(backend *be, const set_case *s)
{
    int64_t elements = (int64_t)PLANES * s->size * s->size;
    shape out = {s->rows, PLANES, s->size, s->size};
    uint8_t *pixels = random_bytes(s->count * elements);
    int32_t *set_labels = calloc((size_t)s->count, sizeof *set_labels);
    int32_t *labels = calloc((size_t)s->rows, sizeof *labels);
    float *level = make_levels(), *nchw = host_new(s->rows * elements);
    ck_assert(set_labels && labels);
    for (int64_t i = 0; i < s->count; i++)
        set_labels[i] = (int32_t)(i * 7 % 1000);
    step_control control = {.step = 3, .in = {.first = s->first, .epoch = s->epoch}};
    tensor on[] = {tensor_bytes_new(be, (size_t)(s->count * elements), pixels),
                   tensor_bytes_new(be, (size_t)s->count * sizeof *labels, set_labels),
                   tensor_bytes_new(be, PLANES * LEVELS * sizeof *level, level),
                   tensor_bytes_new(be, sizeof control, &control),
                   tensor_bytes_new(be, (size_t)s->rows * sizeof *labels, NULL)};
    tensor images = image_junk(be, out);
    image_set set = {.pixels = (const uint8_t *)on[0].data,
                     .labels = (const int32_t *)(const void *)on[1].data,
                     .level = on[2].data,
                     .count = s->count,
                     .size = s->size,
                     .shuffled = s->shuffled,
                     .cropped = s->cropped,
                     .seed = 0x123456789abcdefull};
    MUST(be->ops->images_from_set(be, &set, (const step_control *)(const void *)on[3].data, s->row,
                                  s->end, s->rows, images.data, (int32_t *)(void *)on[4].data));
    host_from_set(s, &set, pixels, set_labels, level, nchw, labels);
    check_images(be, out, &images, nchw, &on[4], labels);
    for (int i = 0; i < COUNT(on); i++)
        tensor_free(&on[i]);
    tensor_free(&images);
    free(pixels);
    free(set_labels);
    free(labels);
    free(level);
    free(nchw);
}

START_TEST(set_is_as_on_the_host)
{
    const set_case *s = &set_cases[_i % COUNT(set_cases)];
    const backend_ops *ops = loop_backend(_i, COUNT(set_cases));
    for (int t = 0; t < COUNT(types); t++) {
        backend *be = open_typed(ops, types[t]);
        if (!be)
            continue;
        check_set(be, s);
        be->ops->close(be);
    }
}
END_TEST

/* ---- staged bytes ---- */

enum {
    SLOTS = 3,
    SLOT_ROWS = 6
};

static void check_staged(backend *be, int size, uint64_t step, int row, int rows)
{
    int64_t elements = (int64_t)PLANES * size * size;
    shape out = {rows, PLANES, size, size};
    uint8_t *bytes = random_bytes(SLOTS * SLOT_ROWS * elements);
    int32_t staged[SLOTS * SLOT_ROWS];
    float *level = make_levels(), *nchw = host_new(rows * elements);
    for (int i = 0; i < SLOTS * SLOT_ROWS; i++)
        staged[i] = i % 4 == 2 ? -1 : i;
    step_control control = {.step = step};
    tensor on[] = {tensor_bytes_new(be, (size_t)(SLOTS * SLOT_ROWS * elements), bytes),
                   tensor_bytes_new(be, sizeof staged, staged),
                   tensor_bytes_new(be, PLANES * LEVELS * sizeof *level, level),
                   tensor_bytes_new(be, sizeof control, &control),
                   tensor_bytes_new(be, (size_t)rows * sizeof *staged, NULL)};
    tensor images = image_junk(be, out);
    MUST(be->ops->images_from_bytes(be, (const uint8_t *)on[0].data,
                                    (const int32_t *)(const void *)on[1].data, SLOTS, SLOT_ROWS,
                                    on[2].data, (const step_control *)(const void *)on[3].data, row,
                                    rows, size, images.data, (int32_t *)(void *)on[4].data));
    int at = (int)(step % SLOTS) * SLOT_ROWS + row;
    for (int i = 0; i < rows; i++)
        if (staged[at + i] >= 0)
            host_image(bytes + (at + i) * elements, size, (crop_choice){0, 0, 0}, level,
                       nchw + i * elements);
    check_images(be, out, &images, nchw, &on[4], staged + at);
    for (int i = 0; i < COUNT(on); i++)
        tensor_free(&on[i]);
    tensor_free(&images);
    free(bytes);
    free(level);
    free(nchw);
}

START_TEST(staged_bytes_are_as_on_the_host)
{
    const backend_ops *ops = loop_backend(_i, 1);
    for (int t = 0; t < COUNT(types); t++) {
        backend *be = open_typed(ops, types[t]);
        if (!be)
            continue;
        check_staged(be, 8, 0, 0, SLOT_ROWS);
        check_staged(be, 8, 4, 2, 3);
        check_staged(be, 33, 8, 5, 1);
        check_staged(be, 65, (uint64_t)1 << 40, 1, 4);
        be->ops->close(be);
    }
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("images");
    TCase *tc = tcase_create("images");
    ADD_CASES(tc, set_is_as_on_the_host, COUNT(set_cases));
    ADD_CASES(tc, staged_bytes_are_as_on_the_host, 1);
    suite_add_tcase(suite, tc);
    return run_suite(suite);
}
