/*
 * Checkpoints: a run read back is the run that was written, whatever is damaged or belongs to
 * another run is refused with its reason, and a failed or killed write leaves the file before.
 */
#include <dirent.h>
#include <fcntl.h>
#include <signal.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "tests/trainer/tiny_run.h"
#include "trainer/safetensors.h"

static char folder[256], path[300];

static void make_folder(void)
{
    const char *root = getenv("TMPDIR");
    snprintf(folder, sizeof folder, "%s/checkpoint-XXXXXX", root != NULL ? root : "/tmp");
    ck_assert_ptr_nonnull(mkdtemp(folder));
    snprintf(path, sizeof path, "%s/ckpt-120.safetensors", folder);
}

/* Names in the folder; every one is removed where `remove` says so. */
static int count_files(bool remove)
{
    int count = 0;
    DIR *dir = opendir(folder);
    for (struct dirent *e = readdir(dir); e != NULL; e = readdir(dir)) {
        char name[600];
        if (e->d_name[0] == '.' && (e->d_name[1] == '\0' || e->d_name[1] == '.'))
            continue;
        count++;
        snprintf(name, sizeof name, "%s/%s", folder, e->d_name);
        if (remove)
            unlink(name);
    }
    closedir(dir);
    return count;
}

static void remove_folder(void)
{
    count_files(true);
    ck_assert_int_eq(rmdir(folder), 0);
}

static size_t load(uint8_t *to, size_t size)
{
    FILE *f = fopen(path, "rb");
    ck_assert_ptr_nonnull(f);
    const size_t n = fread(to, 1, size, f);
    fclose(f);
    ck_assert_uint_lt(n, size);
    return n;
}

static bool same_vectors(const tiny_run *a, const tiny_run *b)
{
    const size_t params = (size_t)a->net->param_elements * sizeof(float);
    const size_t running = (size_t)a->net->running_elements * sizeof(float);
    return memcmp(a->c.params, b->c.params, params) == 0 &&
           memcmp(a->momentum.values, b->momentum.values, params) == 0 &&
           memcmp(a->c.running, b->c.running, running) == 0;
}

static void ck_same_run(const tiny_run *a, const tiny_run *b)
{
    ck_assert(same_vectors(a, b));
    ck_assert_mem_eq(&a->c.state, &b->c.state, sizeof a->c.state);
    ck_assert_str_eq(a->c.results, b->c.results);
    ck_assert_str_eq(a->c.plan, b->c.plan);
    ck_assert_str_eq(a->c.data_hash, b->c.data_hash);
}

START_TEST(round_trip_is_bit_exact)
{
    tiny_run a = tiny_begin((tiny_options){0}, 1), b = tiny_begin((tiny_options){0}, 99);
    free(b.c.plan);
    b.c.plan = strdup("other");
    memset(&b.c.state, 0, sizeof b.c.state);
    TINY_OK(tiny_write(&a, path, &oops));
    TINY_OK(tiny_read(&b, path, &oops));
    ck_same_run(&a, &b);
    tiny_end(&a);
    tiny_end(&b);
}
END_TEST

START_TEST(no_best_yet_survives)
{
    tiny_run a = tiny_begin((tiny_options){0}, 1);
    checkpoint_head head = {0};
    a.c.state = (train_state){.best_top1 = -1, .best_step = -1, .best_epoch = -1};
    TINY_OK(tiny_write(&a, path, &oops));
    TINY_OK(checkpoint_read_head(path, &head, &oops));
    ck_assert_mem_eq(&head.state, &a.c.state, sizeof head.state);
    checkpoint_head_fini(&head);
    tiny_end(&a);
}
END_TEST

START_TEST(same_content_makes_same_bytes)
{
    static uint8_t first[16384], second[16384];
    tiny_run a = tiny_begin((tiny_options){0}, 1), b = tiny_begin((tiny_options){0}, 1);
    TINY_OK(tiny_write(&a, path, &oops));
    const size_t one = load(first, sizeof first);
    snprintf(path, sizeof path, "%s/elsewhere", folder);
    TINY_OK(tiny_write(&b, path, &oops));
    const size_t two = load(second, sizeof second);
    ck_assert_uint_eq(one, two);
    ck_assert_mem_eq(first, second, one);
    tiny_end(&a);
    tiny_end(&b);
}
END_TEST

/* FORMATS 4: names, and nothing in the metadata that depends on where and when it ran. */
START_TEST(file_holds_what_the_format_says)
{
    static const char *const tensors[] = {"ring.global",
                                          "layer1.0.bn1.weight",
                                          "layer1.0.bn1.bias",
                                          "layer1.0.bn1.running_mean",
                                          "layer1.0.bn1.running_var",
                                          "fc.weight",
                                          "fc.bias",
                                          "optim.momentum.ring.global",
                                          "optim.momentum.fc.weight"};
    static const char *const keys[] = {"best",           "data_hash",     "epoch",       "format",
                                       "format_version", "header_sha256", "map_version", "next_seq",
                                       "plan",           "results",       "slots",       "step",
                                       "tensors_sha256", "train"};
    tiny_run a = tiny_begin((tiny_options){0}, 1);
    safetensors_file *file = NULL;
    TINY_OK(tiny_write(&a, path, &oops));
    TINY_OK(safetensors_open(path, &file, &oops));
    for (size_t i = 0; i < sizeof tensors / sizeof tensors[0]; i++)
        ck_assert_msg(safetensors_find(&file->header, tensors[i]) != NULL, "no %s", tensors[i]);
    ck_assert_uint_eq(file->header.tensors, 5 + 2 + 5);
    ck_assert_uint_eq(file->header.strings, sizeof keys / sizeof keys[0]);
    for (size_t i = 0; i < file->header.strings; i++)
        ck_assert_str_eq(file->header.metadata[i].key, keys[i]);
    ck_assert_str_eq(safetensors_metadata(&file->header, "slots"),
                     "[{\"name\":\"layer1.0.conv1.weight\",\"offset\":0,\"ring\":\"global\","
                     "\"shape\":[2,2,1,1]},{\"name\":\"layer1.0.conv2.weight\",\"offset\":4,"
                     "\"ring\":\"global\",\"shape\":[2,2,1,3]}]");
    ck_assert_str_eq(safetensors_metadata(&file->header, "best"),
                     "{\"epoch\":2,\"step\":80,\"top1\":0.30000000000000004}");
    ck_assert_str_eq(safetensors_metadata(&file->header, "format"), "ringmaster-checkpoint");
    safetensors_close(&file);
    tiny_end(&a);
}
END_TEST

START_TEST(eval_passes_over_optimiser_states)
{
    tiny_run a = tiny_begin((tiny_options){0}, 1), b = tiny_begin((tiny_options){0}, 99);
    TINY_OK(tiny_write(&a, path, &oops));
    b.c.optims = 0;
    TINY_OK(tiny_read(&b, path, &oops));
    ck_assert_mem_eq(a.c.params, b.c.params, (size_t)a.net->param_elements * sizeof(float));
    tiny_end(&a);
    tiny_end(&b);
}
END_TEST

/* Reads as `t` would; the status. What `t` holds must be as before where it fails. */
static status try_read(tiny_run *t, errbuf *err)
{
    tiny_run before = tiny_begin((tiny_options){0}, 99);
    const bool is_same_net = t->net->param_elements == before.net->param_elements;
    const status st = tiny_read(t, path, err);
    if (st != STATUS_OK && is_same_net)
        ck_same_run(&before, t);
    tiny_end(&before);
    return st;
}

START_TEST(every_truncation_is_refused)
{
    static uint8_t bytes[16384];
    tiny_run a = tiny_begin((tiny_options){0}, 1), b = tiny_begin((tiny_options){0}, 99);
    checkpoint_head head = {0};
    TINY_OK(tiny_write(&a, path, &oops));
    const size_t size = load(bytes, sizeof bytes);
    for (size_t n = size; n-- > 0;) {
        errbuf err = {0}, verify = {0};
        ck_assert_int_eq(truncate(path, (off_t)n), 0);
        ck_assert_msg(tiny_read(&b, path, &err) == STATUS_BAD_INPUT, "%zu bytes pass", n);
        ck_assert_ptr_nonnull(strstr(err.text, path));
        ck_assert_int_eq(checkpoint_verify(path, &head, &verify), STATUS_BAD_INPUT);
    }
    tiny_end(&a);
    tiny_end(&b);
}
END_TEST

START_TEST(every_flipped_bit_is_refused)
{
    static uint8_t bytes[16384];
    tiny_run a = tiny_begin((tiny_options){0}, 1), b = tiny_begin((tiny_options){0}, 99);
    checkpoint_head head = {0};
    TINY_OK(tiny_write(&a, path, &oops));
    const size_t size = load(bytes, sizeof bytes);
    const int fd = open(path, O_WRONLY);
    for (size_t bit = 0; bit < 8 * size; bit++) {
        const uint8_t flipped = bytes[bit / 8] ^ (uint8_t)(1 << bit % 8);
        errbuf err = {0};
        ck_assert_int_eq(pwrite(fd, &flipped, 1, (off_t)(bit / 8)), 1);
        if (checkpoint_verify(path, &head, &err) != STATUS_BAD_INPUT)
            ck_abort_msg("bit %zu of byte %zu passes verification", bit % 8, bit / 8);
        errbuf_clear(&err);
        if (bit % 8 == bit / 8 % 8 && tiny_read(&b, path, &err) != STATUS_BAD_INPUT)
            ck_abort_msg("bit %zu of byte %zu is read", bit % 8, bit / 8);
        ck_assert_int_eq(pwrite(fd, &bytes[bit / 8], 1, (off_t)(bit / 8)), 1);
    }
    close(fd);
    TINY_OK(tiny_read(&b, path, &oops));
    ck_same_run(&a, &b);
    tiny_end(&a);
    tiny_end(&b);
}
END_TEST

/* Another network than the file's, and a word of the line that must say so. */
static const struct {
    tiny_options here;
    const char *says;
} strangers[] = {
    {{.ring = 6}, "tensor 'ring.global' is F32 [5], this network has F32 [6]"},
    {{.classes = 3}, "tensor 'fc.weight' is F32 [2, 2], this network has F32 [3, 2]"},
    {{.swap = true}, "slot table of another network: slot 0 is"},
    {{.ring_name = "layer1"}, "slot table of another network"},
    {{.has_bias = true}, "tensor 'layer1.0.conv1.bias' is missing"},
};

START_TEST(another_network_is_refused)
{
    tiny_run a = tiny_begin((tiny_options){0}, 1), b = tiny_begin(strangers[_i].here, 99);
    errbuf err = {0};
    TINY_OK(tiny_write(&a, path, &oops));
    ck_assert_int_eq(try_read(&b, &err), STATUS_BAD_INPUT);
    ck_assert_msg(strstr(err.text, strangers[_i].says) != NULL, "%s", err.text);
    tiny_end(&a);
    tiny_end(&b);
}
END_TEST

START_TEST(extra_tensor_is_refused)
{
    tiny_run a = tiny_begin((tiny_options){.has_bias = true}, 1),
             b = tiny_begin((tiny_options){0}, 99);
    errbuf err = {0};
    TINY_OK(tiny_write(&a, path, &oops));
    ck_assert_int_eq(try_read(&b, &err), STATUS_BAD_INPUT);
    ck_assert_msg(strstr(err.text, "'layer1.0.conv1.bias' is not of this network") != NULL, "%s",
                  err.text);
    tiny_end(&a);
    tiny_end(&b);
}
END_TEST

START_TEST(unknown_optimiser_state_is_refused)
{
    tiny_run a = tiny_begin((tiny_options){0}, 1), b = tiny_begin((tiny_options){0}, 99);
    errbuf err = {0};
    a.momentum.name = "variance";
    TINY_OK(tiny_write(&a, path, &oops));
    ck_assert_int_eq(try_read(&b, &err), STATUS_BAD_INPUT);
    ck_assert_msg(strstr(err.text, "'optim.momentum.ring.global' is missing") != NULL, "%s",
                  err.text);
    tiny_end(&a);
    tiny_end(&b);
}
END_TEST

/* The metadata of a good file with one string replaced or left out (NULL), sealed anew. */
static const struct {
    const char *key, *value, *says;
} strange_metadata[] = {
    {"map_version", "2", "ring map version 2"},
    {"format_version", "9", "format version 9"},
    {"format", "other", "not a checkpoint"},
    {"format", NULL, "not a checkpoint"},
    {"step", NULL, "no 'step'"},
    {"step", "-1", "'step' is not a number"},
    {"step", "1x", "'step' is not a number"},
    {"epoch", "9999999999999999999", "'epoch' is not a number"},
    {"next_seq", "", "'next_seq' is not a number"},
    {"best", "{\"epoch\":1,\"step\":2}", "best.top1"},
    {"best", "{\"epoch\":1,\"step\":2.5,\"top1\":0}", "step"},
    {"best", "[", "best"},
    {"train", "{}", "train.count"},
    {"slots", "{}", "slot table"},
    {"slots", "[]", "slot 0 is missing in the file"},
    {"slots", NULL, "no 'slots'"},
    {"results", NULL, "no 'results'"},
    {"plan", NULL, "no 'plan'"},
    {"data_hash", NULL, "no 'data_hash'"},
    {"data_hash", "0123456789012345678901234567890123456789012345678901234567890123456789",
     "'data_hash' is too long"},
};

START_TEST(strange_metadata_is_refused)
{
    tiny_run a = tiny_begin((tiny_options){0}, 1), b = tiny_begin((tiny_options){0}, 99);
    errbuf err = {0};
    TINY_OK(tiny_write(&a, path, &oops));
    tiny_rewrite(path, "none", NULL);
    TINY_OK(tiny_read(&b, path, &oops)); /* rewriting as such does no harm */
    tiny_fill(b.c.params, b.net->param_elements, 99);
    tiny_fill(b.c.running, b.net->running_elements, 100);
    tiny_fill(b.momentum.values, b.net->param_elements, 101);
    tiny_rewrite(path, strange_metadata[_i].key, strange_metadata[_i].value);
    ck_assert_int_eq(try_read(&b, &err), STATUS_BAD_INPUT);
    ck_assert_msg(strstr(err.text, strange_metadata[_i].says) != NULL &&
                      strncmp(err.text, path, strlen(path)) == 0,
                  "%s", err.text);
    tiny_end(&a);
    tiny_end(&b);
}
END_TEST

START_TEST(compare_names_what_differs)
{
    tiny_run a = tiny_begin((tiny_options){0}, 1);
    checkpoint_head head = {0};
    errbuf err = {0};
    char *other = tiny_results("train.lr=0.25");
    TINY_OK(tiny_write(&a, path, &oops));
    TINY_OK(checkpoint_read_head(path, &head, &oops));
    ck_assert_int_eq(checkpoint_compare(a.c.results, a.c.data_hash, &head, path, &err), STATUS_OK);
    ck_assert_int_eq(checkpoint_compare(other, a.c.data_hash, &head, path, &err), STATUS_BAD_INPUT);
    ck_assert_msg(strstr(err.text, "train.lr: 0.25 here") != NULL, "%s", err.text);
    ck_assert_ptr_null(strchr(err.text, '\n'));
    errbuf_clear(&err);
    ck_assert_int_eq(checkpoint_compare(a.c.results, "77", &head, path, &err), STATUS_BAD_INPUT);
    ck_assert_msg(strstr(err.text, "other data") != NULL, "%s", err.text);
    free(other);
    checkpoint_head_fini(&head);
    tiny_end(&a);
}
END_TEST

/* A file that may not grow past a limit stands for a full disk: the write fails the same way. */
START_TEST(full_disk_leaves_the_one_before)
{
    tiny_run a = tiny_begin((tiny_options){0}, 1), b = tiny_begin((tiny_options){0}, 2),
             c = tiny_begin((tiny_options){0}, 99);
    struct rlimit old, tight;
    static uint8_t bytes[16384];
    TINY_OK(tiny_write(&a, path, &oops));
    const size_t size = load(bytes, sizeof bytes);
    signal(SIGXFSZ, SIG_IGN);
    getrlimit(RLIMIT_FSIZE, &old);
    for (size_t limit = 0; limit < size; limit += limit < 16 ? 1 : 97) {
        errbuf err = {0};
        tight = old;
        tight.rlim_cur = limit;
        setrlimit(RLIMIT_FSIZE, &tight);
        const status st = tiny_write(&b, path, &err);
        setrlimit(RLIMIT_FSIZE, &old);
        ck_assert_int_eq(st, STATUS_ENVIRONMENT);
        ck_assert_msg(strstr(err.text, folder) != NULL, "%s", err.text);
        ck_assert_int_eq(count_files(false), 1);
    }
    TINY_OK(tiny_read(&c, path, &oops));
    ck_same_run(&a, &c);
    tiny_end(&a);
    tiny_end(&b);
    tiny_end(&c);
}
END_TEST

START_TEST(missing_folder_is_an_environment_error)
{
    tiny_run a = tiny_begin((tiny_options){0}, 1);
    errbuf err = {0};
    snprintf(path, sizeof path, "%s/none/ckpt-1.safetensors", folder);
    ck_assert_int_eq(tiny_write(&a, path, &err), STATUS_ENVIRONMENT);
    ck_assert_msg(strstr(err.text, "none") != NULL, "%s", err.text);
    tiny_end(&a);
}
END_TEST

/* Writes checkpoints of growing steps until it is killed. */
static void write_for_ever(tiny_run *t)
{
    for (t->c.state.step = 1;; t->c.state.step++) {
        errbuf err = {0};
        snprintf(path, sizeof path, "%s/ckpt-%lld.safetensors", folder,
                 (long long)(t->c.state.step % 3));
        if (tiny_write(t, path, &err) != STATUS_OK)
            _exit(1);
    }
}

/* Killed at any moment, every file that has a checkpoint's name is a whole one. */
START_TEST(kill_leaves_only_whole_files)
{
    tiny_run t = tiny_begin((tiny_options){.classes = 5000}, 1);
    int valid = 0;
    for (int round = 0; round < 40; round++) {
        const pid_t child = fork();
        if (child == 0)
            write_for_ever(&t);
        const struct timespec pause = {.tv_nsec = 1000000 + round * 433000};
        nanosleep(&pause, NULL);
        kill(child, SIGKILL);
        int how = 0;
        ck_assert_int_eq(waitpid(child, &how, 0), child);
        ck_assert(WIFSIGNALED(how));
        for (int i = 0; i < 3; i++) {
            checkpoint_head head = {0};
            errbuf err = {0};
            snprintf(path, sizeof path, "%s/ckpt-%d.safetensors", folder, i);
            if (access(path, F_OK) != 0)
                continue;
            ck_assert_msg(checkpoint_verify(path, &head, &err) == STATUS_OK, "%s", err.text);
            ck_assert_int_eq(head.state.step % 3, i);
            checkpoint_head_fini(&head);
            valid++;
        }
    }
    ck_assert_int_gt(valid, 0);
    tiny_end(&t);
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("checkpoint");
    TCase *tc = tcase_create("checkpoint");
    tcase_add_checked_fixture(tc, make_folder, remove_folder);
    tcase_add_test(tc, round_trip_is_bit_exact);
    tcase_add_test(tc, no_best_yet_survives);
    tcase_add_test(tc, same_content_makes_same_bytes);
    tcase_add_test(tc, file_holds_what_the_format_says);
    tcase_add_test(tc, eval_passes_over_optimiser_states);
    tcase_add_test(tc, every_truncation_is_refused);
    tcase_add_test(tc, every_flipped_bit_is_refused);
    tcase_add_loop_test(tc, another_network_is_refused, 0, sizeof strangers / sizeof strangers[0]);
    tcase_add_test(tc, extra_tensor_is_refused);
    tcase_add_test(tc, unknown_optimiser_state_is_refused);
    tcase_add_loop_test(tc, strange_metadata_is_refused, 0,
                        sizeof strange_metadata / sizeof strange_metadata[0]);
    tcase_add_test(tc, compare_names_what_differs);
    tcase_add_test(tc, full_disk_leaves_the_one_before);
    tcase_add_test(tc, missing_folder_is_an_environment_error);
    tcase_add_test(tc, kill_leaves_only_whole_files);
    suite_add_tcase(suite, tc);
    SRunner *runner = srunner_create(suite);
    srunner_run_all(runner, CK_ENV);
    const int failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failed != 0;
}
