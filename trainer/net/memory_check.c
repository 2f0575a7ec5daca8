/* Whether the host has room; see memory_plan.h. */
#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#include "trainer/net/memory_plan.h"

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

status memory_check(uint64_t needed, const char *what, const char *field, errbuf *err)
{
    uint64_t available = memory_available("");
    if (needed <= available)
        return STATUS_OK;
    return errbuf_set(err, STATUS_BAD_INPUT,
                      "%s needs %" PRIu64 " bytes of host memory, %" PRIu64
                      " are available; lower %s",
                      what, needed, available, field);
}

status memory_check_net(const net *n, int states, int ranks, errbuf *err)
{
    int64_t ring = 0;
    for (int i = 0; i < n->rings; i++)
        ring += n->ring[i].n;
    bool is_ring = 2 * ring > n->param_elements;
    uint64_t needed = (uint64_t)n->param_elements * sizeof(float) * (uint64_t)(2 + states);
    return memory_check(needed * (uint64_t)ranks,
                        is_ring ? "the ring with its gradient and optimiser state"
                                : "the network's parameters with gradients and optimiser state",
                        is_ring ? "rpg.size" : "model.width", err);
}
