/* Whether the host has room; see memory_check.h. */
#include "trainer/net/memory_check.h"

#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#include "kernels/backend.h"
#include "trainer/net/report.h"

#define PATH_MAX_LENGTH 4096

/* The number behind `key` in a file of "key number" lines; without a key, the file's number. */
static bool read_number(const char *path, const char *key, uint64_t *ret_value)
{
    char line[256];
    bool is_found = false;
    size_t length = key ? strlen(key) : 0;
    FILE *file = fopen(path, "r");
    if (!file)
        return false;
    while (!is_found && fgets(line, sizeof line, file))
        if (!key || (strncmp(line, key, length) == 0 && strchr(" :\t", line[length])))
            is_found =
                sscanf(line + length + (key && line[length] == ':'), "%" SCNu64, ret_value) == 1;
    fclose(file);
    return is_found;
}

/* Names that the two versions of control groups give to the same things. */
typedef struct cgroup_files {
    const char *folder, *limit, *usage, *cache;
} cgroup_files;

static const cgroup_files cgroup_v1 = {"sys/fs/cgroup/memory", "memory.limit_in_bytes",
                                       "memory.usage_in_bytes", "total_inactive_file"};
static const cgroup_files cgroup_v2 = {"sys/fs/cgroup", "memory.max", "memory.current",
                                       "inactive_file"};

/* What one group leaves; UINT64_MAX: it has no limit, or is not there. */
static uint64_t group_room(const char *root, const cgroup_files *f, const char *group)
{
    char path[PATH_MAX_LENGTH];
    uint64_t limit, usage, cache = 0;
    snprintf(path, sizeof path, "%s/%s%s/%s", root, f->folder, group, f->limit);
    if (!read_number(path, NULL, &limit)) /* missing, or "max" */
        return UINT64_MAX;
    snprintf(path, sizeof path, "%s/%s%s/%s", root, f->folder, group, f->usage);
    if (!read_number(path, NULL, &usage))
        return UINT64_MAX;
    snprintf(path, sizeof path, "%s/%s%s/memory.stat", root, f->folder, group);
    if (read_number(path, f->cache, &cache))
        usage -= cache < usage ? cache : usage;
    return limit > usage ? limit - usage : 0;
}

/* The tightest of a group and those around it. Inside a container the group's path may not exist
 * below the mount: the walk upward then ends at the container's own group. */
static uint64_t path_room(const char *root, const cgroup_files *f, char *group)
{
    uint64_t room = UINT64_MAX;
    group[strcspn(group, "\n")] = '\0';
    for (;;) {
        char *slash = strrchr(group, '/');
        if (slash && slash[1] == '\0') /* "/" is the folder itself */
            *slash = '\0';
        uint64_t here = group_room(root, f, group);
        if (here < room)
            room = here;
        slash = strrchr(group, '/');
        if (!slash)
            return room;
        *slash = '\0';
    }
}

uint64_t memory_available(const char *root)
{
    char path[PATH_MAX_LENGTH], line[PATH_MAX_LENGTH];
    uint64_t available = UINT64_MAX, kib;
    snprintf(path, sizeof path, "%s/proc/meminfo", root);
    if (read_number(path, "MemAvailable", &kib))
        available = kib * 1024;
    snprintf(path, sizeof path, "%s/proc/self/cgroup", root);
    FILE *file = fopen(path, "r");
    while (file && fgets(line, sizeof line, file)) { /* number:controllers:path */
        char *controllers = strchr(line, ':');
        char *group = controllers ? strchr(controllers + 1, ':') : NULL;
        if (!group)
            continue;
        *group++ = '\0';
        const cgroup_files *files = NULL;
        if (controllers[1] == '\0')
            files = &cgroup_v2;
        else if (strcmp(controllers + 1, "memory") == 0)
            files = &cgroup_v1;
        uint64_t room = files ? path_room(root, files, group) : UINT64_MAX;
        if (room < available)
            available = room;
    }
    if (file)
        fclose(file);
    return available;
}

/* ---- what a run needs ---- */

#define BEYOND_COUNTING 0x1p60 /* bytes that nothing has, and that size_t still counts */

int memory_lanes(const spec *s, bool on_device)
{
    const int64_t shards = s->train.batch / s->train.shard / s->resources.workers;
    if (!s->train.exact || on_device)
        return 1;
    return (int)(shards < s->resources.threads ? shards : s->resources.threads);
}

/* The reference generates one copy of the weights through one table; cpu has a copy for backward
 * data and sorted uses beside it. */
static bool is_reference(const spec *s)
{
    const backend_ops *cpu = backend_find("cpu");
    return s->backend.name == BACKEND_REFERENCE ||
           (s->backend.name == BACKEND_AUTO && !(cpu && cpu->available()));
}

/* Whether a shard's activations alone are beyond any machine, and beyond what can be counted. */
static bool is_beyond_counting(const net *n, const spec *s, int lanes)
{
    double bytes = 0;
    for (int i = 0; i < n->tensors; i++)
        bytes += (double)sizeof(float) * (double)shape_elements(n->tensor[i].shape);
    return bytes * (double)s->train.shard * lanes > BEYOND_COUNTING;
}

/* Shards that one loader holds at a time: no more than it reads. */
static double loader_bytes(const memory_run *run, int lanes, int64_t images)
{
    const spec *s = run->spec;
    const int64_t depth = 2 * lanes > run->loader_depth ? 2 * lanes : run->loader_depth;
    const int64_t shards = images / s->train.shard / s->resources.workers;
    const double pixels = 3.0 * (double)s->data.size * (double)s->data.size;
    if (run->on_device) { /* bytes of two steps, and of two more on their way */
        const int64_t step = s->train.batch / s->resources.workers;
        return pixels * 4 * (double)(images < step ? images : step);
    }
    return (double)sizeof(float) * pixels * (double)s->train.shard *
           (double)(shards < depth ? shards : depth);
}

/* Of one rank. */
static void add_params(const net *n, const memory_run *run, int lanes, memory_need *need)
{
    const spec *s = run->spec;
    const double params = 4.0 * (double)n->param_elements,
                 stats = 4.0 * (double)n->running_elements;
    const double shards = (double)s->train.batch / (double)s->train.shard;
    const double mine = shards / (double)s->resources.workers;
    if (!run->training) { /* on the device; a whole checkpoint on the host */
        need->part[MEMORY_PARAMS] += 3 * params + 2 * stats;
        return;
    }
    need->part[MEMORY_PARAMS] += 3 * params + 2 * stats; /* with momentum and the flat buffer */
    need->part[MEMORY_PARAMS] += params + stats;         /* host copies while all begin */
    if (s->train.exact)
        need->part[MEMORY_PARAMS] += 2 * params + stats * (shards + mine);
    if (s->train.exact || mine > 1)
        need->part[lanes > 1 ? MEMORY_LANES : MEMORY_PARAMS] += lanes * (params + stats);
}

static status add_net(const net *n, const memory_run *run, int lanes, memory_need *need,
                      errbuf *err)
{
    net_memory m;
    net_counts c;
    double kernels = 0;
    for (int i = 0; i < n->kernels; i++)
        kernels += 4.0 * (double)kernel_elements(n->kernel[i].shape);
    net_count(n, &c);
    const bool one_copy = is_reference(run->spec) || !run->training;
    need->part[MEMORY_WEIGHTS] += one_copy ? kernels : 2 * kernels;
    if (one_copy)
        need->part[MEMORY_WEIGHTS] += 4.0 * (double)c.generated;
    if (!run->training)
        return STATUS_OK;
    need->part[MEMORY_WEIGHTS] += kernels;
    need->part[MEMORY_LANES] += (lanes - 1) * kernels;
    if (is_beyond_counting(n, run->spec, lanes)) {
        need->part[MEMORY_ACTIVATIONS] += BEYOND_COUNTING;
        return STATUS_OK;
    }
    TRY(net_estimate_memory(n, (int)run->spec->train.shard, lanes, &m, err));
    need->part[MEMORY_ACTIVATIONS] += (double)m.activations;
    need->part[MEMORY_WEIGHTS] += one_copy ? 0 : (double)m.tables;
    return STATUS_OK;
}

status memory_estimate(const net *n, const memory_run *run, memory_need *ret, errbuf *err)
{
    memory_need need = {0};
    const int lanes = memory_lanes(run->spec, run->on_device);
    if (run->on_device) /* of the host: copies for checkpoints, and images */
        need.part[MEMORY_PARAMS] = 8.0 * (double)(n->param_elements + n->running_elements);
    else
        add_params(n, run, lanes, &need);
    if (!run->on_device)
        TRY(add_net(n, run, lanes, &need, err));
    need.part[MEMORY_LOADERS] =
        loader_bytes(run, lanes, run->train_images) + loader_bytes(run, lanes, run->eval_images);
    for (int i = 0; i < MEMORY_PARTS; i++)
        need.part[i] *= run->ranks;
    if (run->training && run->is_rank_0)
        need.part[MEMORY_PARAMS] += 4.0 * (double)n->param_elements; /* momentum, for checkpoints */
    for (int i = 0; i < MEMORY_PARTS; i++)
        need.total += need.part[i];
    int64_t ring = 0;
    for (int i = 0; i < n->rings; i++)
        ring += n->ring[i].n;
    need.is_ring = 2 * ring > n->param_elements;
    *ret = need;
    return STATUS_OK;
}

/* ---- the judgement ---- */

/* "<what>: lower <field>" of a part. */
static void explain(memory_part part, bool is_ring, const memory_run *run, char *text, size_t size)
{
    const spec *s = run->spec;
    const int lanes = memory_lanes(s, run->on_device);
    const bool is_side_by_side = lanes > 1;
    const bool is_whole = s->train.shard * s->resources.workers == s->train.batch;
    const char *const shard = is_whole          ? "train.batch or train.shard"
                              : is_side_by_side ? "train.shard or resources.threads"
                                                : "train.shard";
    switch (part) {
    case MEMORY_PARAMS:
        snprintf(text, size, "%s with gradient, optimiser state and copies: lower %s",
                 is_ring ? "the ring" : "the network's parameters",
                 !is_ring                      ? "model.width"
                 : s->rpg.scope == SCOPE_BLOCK ? "rpg.size or rpg.sizes"
                                               : "rpg.size");
        return;
    case MEMORY_WEIGHTS:
        snprintf(text, size, "%s weights with gradients and tables: lower model.width",
                 s->rpg.scope != SCOPE_NONE ? "generated" : "the network's");
        return;
    case MEMORY_LANES:
        snprintf(text, size, "gradients of %d shards side by side: lower resources.threads", lanes);
        return;
    case MEMORY_ACTIVATIONS:
        snprintf(text, size, "activations of shards of %" PRId64 " images: lower %s",
                 s->train.shard, shard);
        return;
    default:
        snprintf(text, size, "images made ahead by the loaders: lower %s, or data.size", shard);
        return;
    }
}

status memory_judge(const memory_need *need, const memory_run *run, uint64_t available, errbuf *err)
{
    char largest[200], ranks[64] = "";
    int part = 0;
    if (need->total <= (double)available)
        return STATUS_OK;
    for (int i = 1; i < MEMORY_PARTS; i++)
        if (need->part[i] > need->part[part])
            part = i;
    explain((memory_part)part, need->is_ring, run, largest, sizeof largest);
    if (run->ranks > 1)
        snprintf(ranks, sizeof ranks, " for %d ranks", run->ranks);
    return errbuf_set(err, STATUS_BAD_INPUT,
                      "%s needs at least %.2f GB of host memory%s, %.2f GB are available; %.2f GB "
                      "are %s",
                      run->training ? "training" : "evaluation", 1e-9 * need->total, ranks,
                      1e-9 * (double)available, 1e-9 * need->part[part], largest);
}

status memory_check_net(const net *n, const memory_run *run, errbuf *err)
{
    memory_need need;
    TRY(memory_estimate(n, run, &need, err));
    return memory_judge(&need, run, memory_available(""), err);
}
